"""Arms: the ways in which one chain's images reach a workload."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import tensorflow as tf

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.experiment.files import ImageFiles
from joulecache.pipelines.experiment.names import (
    CACHED,
    REFERENCE,
    TF_CACHE,
    TF_CACHE_FILE,
    TFRECORD,
    TUNED,
    WITHOUT_MODEL,
)
from joulecache.pipelines.experiment.online_arms import BATCH, READ, TF_DATA, OnlineChain, count_steady_ops
from joulecache.pipelines.loading.loader import load
from joulecache.transforms.chain import Chain, fixed_size, op_text, output_channels, output_size
from joulecache.transforms.custom import custom_ops
from joulecache.transforms.tensorflow_targets import Mask


def _same_every_epoch(epoch: int) -> None:
    """Do nothing: the dataset counts its epochs, or has no draws."""


@dataclass(frozen=True)
class Arm:
    """One way to feed a workload.

    Attributes:
        name: Name of the arm.
        records: Images in an epoch.
        dataset: Yields images `[B, H, W, C]`, uint8 or after `to_float` float32, and targets, as `load` does.
        start_epoch: Called with the number of the next epoch.
        fills: Whether its first epoch fills a cache, whose cost is the difference from the next epoch.
        stays: Whether what it prepared outlives a training: its one-time cost is paid once for all trainings.
        reads_on: Whether it may keep working after the last batch of an epoch.
    """

    name: str
    records: int
    dataset: tf.data.Dataset
    start_epoch: Callable[[int], None] = _same_every_epoch
    fills: bool = False
    stays: bool = False
    reads_on: bool = False


def check_chain(chain: Chain, workloads: Sequence[str], *, own_model: bool = False) -> None:
    """Raise ArmError for a chain whose images the workloads cannot use. A user's own model may train on floats."""
    if chain.is_float and not own_model and not WITHOUT_MODEL.issuperset(workloads):
        raise ArmError(
            f"{str(chain)!r} makes floats, but the models of an audit scale uint8 images themselves: choose --workload input, or drop "
            "to_float and normalize"
        )


def image_shape(chain: Chain) -> tuple[int, int, int]:
    """Return height, width and channels of the images of a chain; raise ArmError if they vary in size."""
    size = fixed_size(chain.ops)
    if size is None:
        raise ArmError(f"the images of {str(chain)!r} vary in size and cannot be batched: add a resize or a crop")
    return *size, output_channels(chain.ops)


def make_arms(
    names: Sequence[str],
    files: ImageFiles,
    cache: Cache,
    batch_size: int,
    *,
    shuffle: bool = True,
    folder: Path | None = None,
    tfrecord: Cache | None = None,
) -> list[Arm]:
    """Make arms by name.

    Args:
        names: Their names.
        files: The files that the online arms read.
        cache: The cache that `optimized` reads.
        batch_size: Images in a batch.
        shuffle: Whether every epoch has another order.
        folder: A new folder, in which `tf_cache_file` keeps its file.
        tfrecord: The cache that `tfrecord` reads, in TFRecord files: that of the same records, in the same order.

    Raises:
        ArmError: The chain's images vary in size, or the caches hold different records.
    """
    chain = files.ops.chain
    image_shape(chain)
    if tfrecord is not None and tfrecord.rows("train")["key"] != cache.rows("train")["key"]:
        raise ArmError(f"{TFRECORD} and {CACHED} hold different records: some could not be cached")

    def make(name: str) -> Arm:
        records = len(files.paths)
        if name == CACHED:
            return Arm(
                name, records, load(cache, "train", batch_size, shuffle=shuffle, ops=custom_ops(chain.ops)), stays=True
            )
        online = OnlineChain(files, cache.manifest.variants, batch_size, shuffle=shuffle)
        if name == TFRECORD:
            assert tfrecord is not None
            return Arm(name, records, online.precomputed(tfrecord), online.start_epoch, stays=True)
        if name == TF_CACHE_FILE:
            assert folder is not None
            dataset = online.cached_in_file(folder / TF_CACHE_FILE)
            return Arm(name, records, dataset, online.start_epoch, fills=True, stays=True)
        dataset = {REFERENCE: online.naive, TUNED: online.tuned, TF_CACHE: online.cached_in_memory}[name]()
        return Arm(name, records, dataset, online.start_epoch, fills=name == TF_CACHE)

    return [make(name) for name in names]


def make_prefix_arms(files: ImageFiles, cache: Cache, batch_size: int) -> list[Arm]:
    """Make the naive arm truncated after each step: `tf.data` alone, `read`, each op by its text, and `batch`, the whole arm.

    Ops that mix the images of a batch come after `batch`. The arms before it yield one number per file instead of an image: the first
    number of the step's output, or the length of the file. Computing it requires the whole step, and batching such numbers costs the
    same after every step.
    """
    online = OnlineChain(files, cache.manifest.variants, batch_size)
    names, on_images = _numbered([op_text(op) for op in files.ops.chain.ops]), online.on_images
    datasets = [online.listing(), *(online.first_numbers(count) for count in range(on_images + 1))]
    datasets += [online.truncated(count) for count in range(on_images, len(names) + 1)]
    names = [TF_DATA, READ, *names[:on_images], BATCH, *names[on_images:]]
    return [
        Arm(name, len(files.paths), dataset, online.start_epoch) for name, dataset in zip(names, datasets, strict=True)
    ]


def _numbered(names: Sequence[str]) -> list[str]:
    """Append a number to names that occur several times, from the second occurrence on."""
    return [
        name if name not in names[:place] else f"{name} {1 + names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


def refused_arms(names: Sequence[str], files: ImageFiles, cache: Cache, folder: Path) -> dict[str, str]:
    """Return the arms that this machine cannot run, with the reason: those whose `cache()` needs over half of the free room.

    That of `tf_cache` is in memory, that of `tf_cache_file` on the disk of `folder`.
    """
    chain = files.ops.chain
    kept = chain.ops[: count_steady_ops(chain, cache.manifest.variants)]
    sizes = [output_size(kept, height, width) for height, width in files.sizes.tolist()]
    channels = output_channels(kept) + sum(isinstance(target, Mask) for target in files.targets.values())
    needed = sum(height * width for height, width in sizes) * channels
    room = {
        TF_CACHE: ("RAM", psutil.virtual_memory().available),
        TF_CACHE_FILE: ("disk", shutil.disk_usage(folder).free),
    }
    return {
        name: f"its cache needs {needed / 1e9:.1f} GB of {kind}, and {free / 1e9:.1f} GB are free"
        for name, (kind, free) in room.items()
        if name in names and needed > free // 2
    }
