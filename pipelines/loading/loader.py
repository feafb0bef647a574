"""`load`: a split of a cache as a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from joulecache.pipelines.cache.cache import CacheLike
from joulecache.pipelines.cache.local_copy import STAGE_LIMIT_BYTES
from joulecache.pipelines.loading.config import LoadConfig, Shuffle, Verify
from joulecache.pipelines.loading.dataset import make_dataset
from joulecache.pipelines.loading.device import check_accelerator, to_device
from joulecache.pipelines.loading.mixing import Mix
from joulecache.pipelines.loading.opening import open_steps
from joulecache.pipelines.loading.where import Where
from joulecache.transforms.ops import Op


def load(
    cache: CacheLike | Mix,
    split: str,
    batch_size: int,
    *,
    shuffle: Shuffle | None = None,
    seed: int | None = None,
    drop_remainder: bool = False,
    hosts: tuple[int, int] | tf.distribute.InputContext | None = None,
    dtype: str = "uint8",
    epochs: int | None = None,
    start: tuple[int, int] = (0, 0),
    targets: str | Sequence[str] | None = None,
    sample_weight: str | None = None,
    follow: bool = False,
    where: Where | None = None,
    balance: str | None = None,
    views: int = 1,
    verify: Verify = "open",
    ops: Mapping[str, type[Op]] | None = None,
    stage_limit_bytes: int = STAGE_LIMIT_BYTES,
    prefetch_to_device: str | None = None,
) -> tf.data.Dataset:
    """Load a split of a cache as a `tf.data.Dataset`.

    Each iteration yields the next epoch, with its order, variant and draws of the ops after the cut, all determined by the
    seed. If you append expensive work, end with `prefetch`.

    Args:
        cache: A folder, the URL of a cache in an object store, an opened `Cache`, or a `mix` of caches.
        split: ``train``, ``val`` or ``test``.
        batch_size: Images per batch, on each host.
        shuffle: True for a uniform permutation of the split, slow and logged as such for images that do not fit in memory; False
            for the order of the cache; ``"blocks"`` for caches that do not fit in memory: whole shards in random order, shuffled
            inside windows of 128 MiB, read once and ahead of their use. By default only ``train`` is shuffled.
        seed: Seed of the order and of the draws; the cache's by default.
        drop_remainder: Drop the last batch of an epoch if it is smaller, so that all hosts run the same number of steps.
        hosts: (index, count) or an `InputContext`: load one host's share of every epoch. Shares differ by at most one record.
        dtype: ``uint8`` leaves images as the chain outputs them: uint8, or float32 after to_float. ``float32``, ``float16`` and
            ``bfloat16`` yield the same values, 0 to 255, as floats. Masks are uint8 in any case.
        epochs: Number of epochs per iteration, the same ones every time. A `tf.train.Checkpoint` of an iterator then has less
            than 1 KB and resumes with the same images; a dataset over other images or with other arguments refuses it.
        start: (epoch, batch) to start with. Without `epochs` the first iteration is then shorter, and the cardinality unknown.
        targets: Names of the targets to yield. Default: all of the cache, but for `sample_weight`.
        sample_weight: Name of a `Value` that weights each image in Keras: the third element of a batch, float32 or int64 ``[B]``. With
            masks, boxes or points it has the structure of the targets, and axes of 1 for their pixels, boxes or points.
        follow: Read the newest draws that the cache has when an epoch begins, for a cache that `precompute` advances meanwhile.
        where: The records to load: an expression over keys and targets, such as ``"label in ('cat', 'dog')"``, or a function that
            takes the columns of the index, a dict-like of arrays ``[N]`` by name, and returns bool ``[N]``. No pixels are read.
        balance: Name of a class target whose classes are drawn evenly, shuffled: one record of each in every C positions, for C classes.
            An epoch has as many records as without; small classes repeat, each time with the next variant and draws.
        views: Images of each record, V, with independent draws of the ops after the cut, and different variants where there are any.
            With several, a tuple of them is in the place of the images; epoch e has draws e * V to e * V + V - 1 of the usual stream.
        verify: ``open`` checks the sizes of all files, as every epoch does; ``full`` reads them and checks their SHA-256.
        ops: Custom ops in the chain, by name.
        stage_limit_bytes: The disk that the files of a cache in an object store may use in ``$JOULECACHE_STAGE``, by default
            ``~/.cache/joulecache``. A larger cache is not copied, but read as it arrives, with ``shuffle="blocks"`` by default.

        prefetch_to_device: Name of an accelerator, such as ``/GPU:0``, to which batches are copied while the last one is used. Nothing
            may be appended to such a dataset; its cardinality is unknown to TensorFlow, and its iterators cannot be saved: use `start`.

    Returns:
        A dataset of images, uint8 ``[B, H, W, C]``, and labels, int64 ``[B]``, or another target; with several targets a dict of
        them by name, and without any the images alone. `jc.features` has their dtypes and shapes. Masks, boxes and points have
        moved with the pixels of their image. If the training chain has mixup or cutmix, classes are float32 ``[B, K]`` in every
        split, so that all splits fit one loss. The dataset has a known cardinality, reads ahead, and has the attributes
        `class_names`, of the only target, and `num_classes`.

    Raises:
        CacheError: The cache cannot be read.
        ValueError: An argument is invalid, a target cannot be mixed, or a custom op after the cut does not say how targets move.
    """
    config = LoadConfig(
        split,
        batch_size,
        shuffle,
        seed,
        drop_remainder,
        _as_pair(hosts),
        dtype=dtype,
        epochs=epochs,
        start=start,
        targets=targets,
        sample_weight=sample_weight,
        follow=follow,
        where=where,
        balance=balance,
        views=views,
    )
    if prefetch_to_device is not None:
        check_accelerator(prefetch_to_device)
    reader = open_steps(cache, config, verify=verify, ops=ops, stage_limit_bytes=stage_limit_bytes)
    dataset = make_dataset(reader, config)
    return dataset if prefetch_to_device is None else to_device(dataset, prefetch_to_device)


def _as_pair(hosts: tuple[int, int] | tf.distribute.InputContext | None) -> tuple[int, int]:
    if isinstance(hosts, tf.distribute.InputContext):
        return hosts.input_pipeline_id, hosts.num_input_pipelines
    return (0, 1) if hosts is None else hosts
