"""The loaders of other libraries that scripts/bench_loader.py measures."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH = 64

Dataset = Any
"""A `tf.data.Dataset`, or another iterable of batches."""
Loaders = dict[str, Callable[[], Iterable[Any]]]
"""Functions that return an iterable over the batches of all epochs, by name."""


def repeated(dataset: Dataset, epochs: int) -> Iterator[Any]:
    """Iterate with a new iterator for every epoch, as training does."""
    for _ in range(epochs):
        yield from dataset


def is_installed(package: str) -> bool:
    """Return whether an optional package is installed."""
    return importlib.util.find_spec(package) is not None


def other_libraries(folder: Path, images: NDArray[np.uint8], epochs: int) -> Loaders:
    """Return the loaders of other libraries that are installed."""
    found: Loaders = {}
    if is_installed("grain"):
        found["grain and ArrayRecord"] = grain_loader(folder / "images.array_record", images, epochs)
    if is_installed("ffcv"):
        found["FFCV, without TensorFlow"] = ffcv_loader(folder / "images.beton", images, epochs)
    return found


def grain_loader(path: Path, images: NDArray[np.uint8], epochs: int) -> Callable[[], Iterable[Any]]:
    """Write the images as ArrayRecord; return a loader without threads, which is its cheapest."""
    import grain.python as grain
    import numpy as np
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for image in images:
        writer.write(image.tobytes() + bytes(8))
    writer.close()

    def parse(record: bytes) -> tuple[NDArray[np.uint8], np.int64]:
        values = np.frombuffer(record, np.uint8)
        return values[:-8].reshape(images.shape[1:]), values[-8:].view(np.int64)[0]

    def loader() -> Iterable[Any]:
        dataset = grain.MapDataset.source(grain.ArrayRecordDataSource([str(path)])).seed(1).shuffle().repeat(epochs)
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        batches: Iterable[Any] = dataset.map(parse).to_iter_dataset(options).batch(BATCH)
        return batches

    return loader


def ffcv_loader(path: Path, images: NDArray[np.uint8], epochs: int) -> Callable[[], Iterable[Any]]:
    """Write the images raw; return a loader with as many threads as there are CPUs."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset([(image, 0) for image in images])
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=len(os.sched_getaffinity(0)),
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    return lambda: repeated(loader, epochs)
