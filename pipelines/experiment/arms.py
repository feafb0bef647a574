"""The arms of an audit: one chain, the same files, the same draws, fed to the trainer in four ways."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core.user_code import describe_failure
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.source import Source
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms.chain import Chain, fixed_size, op_text, output_channels, output_size
from joulecache.transforms.ops import BatchOp, Brightness, Decode, FlipLr, Op, RandomCrop
from joulecache.transforms.ops.decode import EXIF_ORIENTATION
from joulecache.transforms.randomness import random_words

ARMS = ("naive", "tuned", "tf_cache", "optimized")
TF_DATA, READ, BATCH = "tf.data", "read", "batch"  # the steps of the naive arm beside its ops
_LYING = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_LARGE = 120 * 120  # pixels: from here on `_BY_IMAGE` cost less image by image than on batches
_BY_IMAGE = (RandomCrop, FlipLr, Brightness)


class ArmError(ValueError):
    """An arm that cannot be run on this chain or source; the message says why."""


@contextmanager
def naming_failures(name: str) -> Iterator[None]:
    """Raise what TensorFlow raises inside as an ArmError of one line that names the arm."""
    try:
        yield
    except tf.errors.OpError as error:
        raise ArmError(f"{name} failed: {describe_failure(error)}") from error


@dataclass(frozen=True)
class Files:
    """The training images as files, the same for every arm.

    `drawn` holds the ops' random parameters, int32 ``[E, N, P]`` for E epochs: online arms get them for nothing, so that a
    comparison of energy compares neither random generators nor different pictures. So do the EXIF `orientations`, int32 ``[N]``,
    which TensorFlow cannot read: None where every image is upright, and nothing has to be turned.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    drawn: NDArray[np.int32]
    sizes: NDArray[np.int64]  # [N, 2]: height and width after decode
    orientations: NDArray[np.int32] | None


@dataclass(frozen=True)
class Arm:
    """One way to feed the trainer.

    `dataset` yields (uint8 ``[B, H, W, C]``, float32 behind to_float, and int64 ``[B]``), `records` images in an epoch; `start_epoch` says
    which epoch comes next. `fills`: whether its first epoch fills a cache, which is charged as what it costs beyond the next one;
    `reads_on`: whether it may work on behind an epoch's last batch.
    """

    name: str
    records: int
    dataset: Any
    start_epoch: Callable[[int], None]
    fills: bool = False
    reads_on: bool = False


def check_chain(chain: Chain, workloads: Sequence[str]) -> None:
    """Raise ArmError for a chain that the online arms cannot run, or whose images the workloads cannot take."""
    why = graphs.refused(chain.ops)
    if why:
        raise ArmError(f"{why}; an audit runs it in TensorFlow too")
    if chain.is_float and set(workloads) != {"input"}:
        raise ArmError(
            f"{str(chain)!r} makes floats, and the models of an audit scale uint8 themselves: give --workload input, or leave "
            "to_float and normalize out"
        )


def as_folder(source: Source, work: Path, tell: Callable[[str, int, int], None]) -> Path:
    """Return a folder with the source's images as files of their keys' names: itself where it is one, else a copy."""
    if Path(source.location).is_dir():
        return Path(source.location).resolve()
    root = work / "files"
    done = 0
    for unit in source.units:
        for record in unit.read():
            path = root / record.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record.data)
            done += 1
            if done % 64 == 0:
                tell("unpacking the source", done, source.records)
    return root


def list_files(folder: Path, cache: Path, epochs: int) -> Files:
    """List the training images that a cache holds as files in `folder`, with the draws of the first `epochs` epochs.

    Raises ArmError for a file that TensorFlow does not decode as the reference does.
    """
    manifest = open_manifest(cache)
    chain = manifest.parsed_chain()
    rows = read_index(cache, manifest).slice(0, manifest.split(SPLITS[0]).records)
    keys: list[str] = rows["key"].to_pylist()
    hashes = rows["key_hash"].to_numpy()
    paths = tuple(str(folder / key) for key in keys)
    headers = np.array([_header(chain.decode, path) for path in paths], np.int64).reshape(-1, 3)
    sizes, orientations = headers[:, :2], headers[:, 2].astype(np.int32)
    count = graphs.drawn_count(chain.ops)
    drawn = np.empty((epochs, len(keys), count), np.int32)
    for epoch in range(epochs):
        # Before the cut the draws are the variant's: an epoch of K variants sees what the cache holds.
        before = random_words(chain.prefix, 0, manifest.seed, hashes, epoch % manifest.variants)
        after = random_words(chain.suffix, chain.cut, manifest.seed, hashes, epoch)
        for row, words in enumerate(map(list.__add__, before, after)):
            drawn[epoch, row] = _parameters(chain, words, *sizes[row].tolist())
    turned = orientations if (orientations != 1).any() else None
    return Files(paths, rows["label"].to_numpy(), drawn, sizes, turned)


def some_files(files: Files, count: int, seed: int) -> Files:
    """Return so many of the files, drawn by the seed, in their order."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(files.paths))[:count])
    return Files(
        tuple(files.paths[row] for row in rows),
        files.labels[rows],
        files.drawn[:, rows],
        files.sizes[rows],
        None if files.orientations is None else files.orientations[rows],
    )


def _header(decode: Decode, path: str) -> tuple[int, int, int]:
    """Return height and width after decode, and the EXIF orientation: 1 where it is none that the reference heeds."""
    with Image.open(path) as image:
        why = _unlike(decode, image)
        if why:
            raise ArmError(
                f"TensorFlow does not decode {path!r} as the reference does: {why}; leave it out of an audit"
            )
        width, height = image.size
        orientation = image.getexif().get(EXIF_ORIENTATION)
        orientation = next((turn for turn in range(2, 9) if turn == orientation), 1)
        scale = decode.jpeg_scale(height, width) if image.format in ("JPEG", "MPO") else 1
    height, width = -(-height // scale), -(-width // scale)
    if orientation in _LYING:
        height, width = width, height
    return height, width, orientation


def _unlike(decode: Decode, image: Image.Image) -> str | None:
    """Return why TensorFlow does not see what the reference sees in an opened file, None where it does."""
    match image.format:
        case "JPEG" | "MPO" if image.mode == "CMYK":
            if decode.channels == 1:
                return "it is CMYK, which TensorFlow cannot decode to grey"
            return None if "adobe" in image.info else "it is CMYK without Adobe's marker, which TensorFlow inverts"
        case "BMP" if image.mode in ("1", "P"):
            return "it is a BMP with a palette"
        case "WEBP" if image.mode != "RGB" or getattr(image, "is_animated", False):
            return "it is a WebP with transparency or many frames"
        case "JPEG" | "MPO" | "PNG" | "GIF" | "BMP" | "WEBP":
            return None
        case other:
            return f"it is {other}"


def _parameters(chain: Chain, words: Sequence[int], height: int, width: int) -> list[int]:
    drawn: list[int] = []
    taken = 0
    for op in chain.ops[1:]:
        drawn += op.draw(words[taken : taken + op.random_words], height, width)
        taken += op.random_words
        height, width = op.output_size(height, width)
    return drawn


def make_arms(names: Sequence[str], files: Files, cache: Path, batch_size: int, *, shuffle: bool = True) -> list[Arm]:
    """Make the arms by name; ArmError for one that this chain or this machine's memory does not allow."""
    manifest = open_manifest(cache)
    chain = manifest.parsed_chain()
    if fixed_size(chain.ops) is None:
        raise ArmError(f"the images of {str(chain)!r} vary in size and cannot be batched: add a resize or crop")
    makers = {"naive": _naive, "tuned": _tuned, "tf_cache": _tf_cache}
    arms = []
    for name in names:
        if name == "optimized":
            dataset = load(cache, SPLITS[0], batch_size, shuffle=shuffle)
            arms.append(Arm(name, len(files.paths), dataset, lambda epoch: None))
            continue
        epoch_now = tf.Variable(0, dtype=tf.int64, trainable=False)
        online = _Online(chain, _steady(chain, manifest.variants), files, batch_size, shuffle, epoch_now)
        setter = _epoch_setter(epoch_now, len(files.drawn))
        arms.append(Arm(name, len(files.paths), makers[name](online), setter, fills=name == "tf_cache"))
    return arms


def make_prefixes(files: Files, cache: Path, batch_size: int) -> list[Arm]:
    """Make the naive arm cut off after each of its steps in turn: tf.data by itself, `read`, each op by its text, and whole, as `batch`.

    All but the last yield one number of each file instead of its image: the first one of the step's output, the length of what was
    read. Only with all of the step done is it known, whatever the image's size, and it costs the same to batch after every step.
    """
    manifest = open_manifest(cache)
    chain = manifest.parsed_chain()
    epoch_now = tf.Variable(0, dtype=tf.int64, trainable=False)
    online = _Online(chain, _steady(chain, manifest.variants), files, batch_size, True, epoch_now)
    steps = [online.listed, *(online.first_number(last) for last in range(len(chain.ops) + 1))]
    datasets = [_collated(online, step) for step in steps]
    names = [TF_DATA, READ, *_numbered([op_text(op) for op in chain.ops]), BATCH]
    setter = _epoch_setter(epoch_now, len(files.drawn))
    return [
        Arm(name, online.records, dataset, setter)
        for name, dataset in zip(names, [*datasets, _naive(online)], strict=True)
    ]


def _numbered(names: Sequence[str]) -> list[str]:
    """Tell apart what occurs several times."""
    return [
        name if name not in names[:place] else f"{name} {1 + names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


def refused_arms(names: Sequence[str], files: Files, cache: Path) -> dict[str, str]:
    """Return the arms that this machine cannot run, with the reason: `tf_cache` where its images take half of the free memory."""
    manifest = open_manifest(cache)
    chain = manifest.parsed_chain()
    steady = chain.ops[: _steady(chain, manifest.variants)]
    sizes = [output_size(steady, height, width) for height, width in files.sizes.tolist()]
    needed = sum(height * width for height, width in sizes) * output_channels(steady)
    available = psutil.virtual_memory().available
    if "tf_cache" not in names or needed <= available // 2:
        return {}
    return {"tf_cache": f"its cache would hold {needed / 1e9:.1f} GB in RAM, where {available / 1e9:.1f} GB are free"}


def _steady(chain: Chain, variants: int) -> int:
    """Return how many ops, from the first on, give the same uint8 in every epoch: what is cached in one variant is drawn once too."""
    for place, op in enumerate(chain.ops):
        if isinstance(op, BatchOp) or (op.random and (variants > 1 or place >= chain.cut)):
            return place
    return len(chain.ops)


def _epoch_setter(epoch_now: Any, epochs: int) -> Callable[[int], None]:
    def start(epoch: int) -> None:
        epoch_now.assign(epoch % epochs)

    return start


class _Online:
    """What the online arms share: the files as a dataset, and the chain's ops as map functions.

    The first `steady` ops give the same in every epoch. The functions take the numbers of the ops that they run, `first` up to `last`.
    """

    def __init__(self, chain: Chain, steady: int, files: Files, batch_size: int, shuffle: bool, epoch_now: Any) -> None:
        self.ops, self.steady, self.batch_size, self.shuffle = chain.ops, steady, batch_size, shuffle
        self.records = len(files.paths)
        self.files = tf.data.Dataset.from_tensor_slices((list(files.paths), files.labels, np.arange(self.records)))
        # Flat: to pick an epoch first would copy all of it for every image.
        self._drawn = tf.constant(np.concatenate(files.drawn))
        self._epoch_now = epoch_now
        self._orientations = None if files.orientations is None else tf.constant(files.orientations)

    def drawn_of(self, rows: Any, first: int, last: int) -> Any:
        """Return the parameters that those ops take for those rows in the present epoch, int32 ``[..., P]``."""
        start, end = graphs.drawn_count(self.ops[:first]), graphs.drawn_count(self.ops[:last])
        return tf.gather(self._drawn, self._epoch_now * self.records + rows)[..., start:end]

    def read(self, last: int) -> Callable[..., Any]:
        """Read one file and run the ops from decode on."""

        def function(path: Any, label: Any, row: Any) -> Any:
            orientation = None if self._orientations is None else self._orientations[row]
            drawn = self.drawn_of(row, 0, last)
            return graphs.apply(self.ops[:last], tf.io.read_file(path), drawn, orientation), label, row

        return function

    def listed(self, path: Any, label: Any, row: Any) -> Any:
        """Return a number without reading the file."""
        return tf.cast(row, tf.int32), label, row

    def first_number(self, last: int) -> Callable[..., Any]:
        """Do what `read` does, and return the first number of the image, or without any ops the length of the file."""
        read = self.read(last)

        def function(path: Any, label: Any, row: Any) -> Any:
            made, label, row = read(path, label, row)
            return tf.cast(made[0, 0, 0], tf.int32) if last else tf.strings.length(made), label, row

        return function

    def on_image(self, first: int, last: int) -> Callable[..., Any]:
        """Run ops on one image."""

        def function(image: Any, label: Any, row: Any) -> Any:
            return graphs.apply(self.ops[first:last], image, self.drawn_of(row, first, last)), label, row

        return function

    def on_batch(self, first: int) -> Callable[..., Any]:
        """Run the ops from that one on on a batch, and drop the row numbers."""

        def function(images: Any, labels: Any, rows: Any) -> Any:
            ops = self.ops[first:]
            return graphs.apply_batch(ops, images, self.drawn_of(rows, first, len(self.ops))), labels

        return function


def _naive(online: _Online) -> Any:
    """What people write first: one image at a time, then batches."""
    return _collated(online, online.read(len(online.ops)))


def _collated(online: _Online, function: Callable[..., Any]) -> Any:
    """Map a function on one file after the other, then make batches."""
    dataset = online.files.shuffle(online.records, seed=0) if online.shuffle else online.files
    return dataset.map(function).batch(online.batch_size).map(online.on_batch(len(online.ops)))


def _tuned(online: _Online) -> Any:
    """The guide's advice: parallel map, parallel batch, cheap ops on whole batches, prefetch."""
    batched = batched_from(online.ops, 1)
    dataset = online.files.shuffle(online.records, seed=0) if online.shuffle else online.files
    return _batches(online, dataset.map(online.read(batched), num_parallel_calls=tf.data.AUTOTUNE), batched)


def _tf_cache(online: _Online) -> Any:
    """`tuned` with `cache()` in RAM, as uint8, after the ops that are the same every epoch."""
    dataset = online.files.map(online.read(online.steady), num_parallel_calls=tf.data.AUTOTUNE).cache()
    if online.shuffle:
        # Of the whole set: the buffer holds references to what lies in RAM anyway, and files come sorted by class.
        dataset = dataset.shuffle(online.records, seed=0)
    batched = batched_from(online.ops, online.steady)
    if batched > online.steady:
        dataset = dataset.map(online.on_image(online.steady, batched), num_parallel_calls=tf.data.AUTOTUNE)
    return _batches(online, dataset, batched)


def _batches(online: _Online, dataset: Any, batched: int) -> Any:
    """Make batches, and run the ops on them from that number on."""
    return (
        dataset.batch(online.batch_size, num_parallel_calls=tf.data.AUTOTUNE)
        .map(online.on_batch(batched), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def batched_from(ops: tuple[Op, ...], first: int) -> int:
    """Return the number of the op, at least `first`, from which on batches cost less than images one by one.

    The rest must have batch kernels and images of one size. Small images are dear by the number of ops that are called, large ones by the
    memory that they go through: a batch of them fits no processor's cache, and is gathered column by column.
    """
    start = len(ops)
    while start > first and graphs.runs_on_batches(ops[start - 1]) and fixed_size(ops[: start - 1]):
        height, width = fixed_size(ops[:start]) or (0, 0)
        if height * width >= _LARGE and isinstance(ops[start - 1], _BY_IMAGE):
            break
        start -= 1
    return start


def thread_counts() -> dict[str, int]:
    """Return the threads that TensorFlow and this process may use: they are part of a measurement."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
    }
