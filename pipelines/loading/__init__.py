"""Feed a cache to TensorFlow: mapped files, one gather for many batches, the suffix fresh every epoch."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from joulecache.pipelines.cache.local_copy import STAGE_LIMIT_BYTES, staged
from joulecache.pipelines.cache.manifest import CacheError, find_problems
from joulecache.pipelines.loading.memory import memory_limit
from joulecache.pipelines.loading.order import BLOCK_BYTES, WINDOW_BYTES, Order, Shuffle
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.loading.steps import Batches, StepReader
from joulecache.transforms.ops import Op

__all__ = ["CachedSplit", "load"]

DTYPES = ("uint8", "float16", "bfloat16", "float32")
# Of batches that are read at once: a call of Python for each of small images would cost more than they do. Three or four such steps
# lie in memory: with 16 MiB a tenth of the CPU less, and 64 MB.
_STEP_BYTES = 8 << 20
_WORKED_STEP_BYTES = 1 << 20  # where ops or decoding take longer than any call
_STEPS_AHEAD = 1
_MARK_BITS = 31


def load(
    cache: str | os.PathLike[str],
    split: str,
    batch_size: int,
    *,
    shuffle: bool | Literal["blocks"] | None = None,
    seed: int | None = None,
    drop_remainder: bool = False,
    hosts: tuple[int, int] | tf.distribute.InputContext | None = None,
    dtype: str = "uint8",
    epochs: int | None = None,
    start: tuple[int, int] = (0, 0),
    verify: Literal["open", "full"] = "open",
    ops: Mapping[str, type[Op]] | None = None,
    stage_limit_bytes: int = STAGE_LIMIT_BYTES,
) -> Any:
    """Return a `tf.data.Dataset` of (uint8 ``[B, H, W, C]``, int64 ``[B]``) over a split of a cache.

    Each time that it is iterated it gives the next epoch: its order, its variant and its draws of the ops after the cut. It has a known
    cardinality, is read ahead, and carries `class_names` and `num_classes`. What you append and that takes time, end with `prefetch`.

    `shuffle` is by default True for ``train`` only: a uniform permutation of the whole split. ``"blocks"`` is for caches that do not fit
    memory: blocks of 1 MiB in random order, shuffled inside windows of 128 MiB, read once and ahead. `seed` sets order and draws (default:
    the cache's own). `ops` are the ops of your own that the chain names.

    `hosts` (index, count), or an `InputContext`, gives the share of one of several hosts, of equal size up to one record; `batch_size`
    is that of a host. Where all must make the same number of steps, give `drop_remainder`.

    `dtype` "float32", "float16" or "bfloat16" gives the same levels, 0 to 255, as floats; "uint8" leaves images as the chain makes
    them: float32 where it has to_float. Labels are float32 ``[B, K]``, one-hot or mixed, where the training chain has mixup or cutmix,
    so that both splits fit one categorical loss.

    With `epochs` the dataset runs through all of them, up to that number, the same each time it is iterated; a `tf.train.Checkpoint` of
    its iterator holds less than 1 KB and goes on with the same images, and is refused by a dataset over other images or with other
    arguments. `start` (epoch, batch) begins there; without `epochs` the first iteration is then shorter, and the cardinality unknown.

    A cache in an object store is first copied to ``~/.cache/joulecache``, or ``$JOULECACHE_STAGE``, if it has at most `stage_limit_bytes`;
    every file is checked when it comes. What has been copied before is not copied again.

    `verify` "open" checks the sizes of all files, as every epoch does; "full" reads them and checks their SHA-256.

    Raises CacheError for a cache that cannot be read, ValueError for arguments. Warns when the images do not fit memory and are shuffled
    as a whole.
    """
    _check_whole("batch_size", batch_size, 1)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("verify", verify, ("open", "full"))
    _check_whole("stage_limit_bytes", stage_limit_bytes, 1)
    cache = staged(cache, stage_limit_bytes)
    if verify == "full" and (problems := find_problems(cache)):
        raise CacheError(f"{cache} is damaged ({'; '.join(problems[:5])}): build it again")
    opened = CachedSplit(cache, split, seed, ops)
    order = _order(opened, split == "train" if shuffle is None else shuffle)
    image_type = tf.float32 if opened.chain.is_float else tf.uint8
    given_type = image_type if dtype == "uint8" else tf.as_dtype(dtype)
    host, batches = _batches(opened, batch_size, drop_remainder, hosts, given_type.size)
    begin = _check_start(start, batches.count, epochs)
    reader = StepReader(opened, order, host, batches, begin)
    classes = len(opened.manifest.class_names)
    label_type, label_shape = (tf.float32, [classes]) if opened.soft_labels else (tf.int64, [])
    size = None if batches.rest else batch_size
    # What begins inside an epoch, once, skips steps: they are steps without batches.
    many = batches.per_step > 1 or (epochs is None and begin[1] > 0)
    coming = itertools.count(begin[0])
    previous = -1

    def read(epoch: int, step: int) -> tuple[Any, Any]:
        """Read a step of an epoch: batches, or the only one."""
        nonlocal previous
        position = epoch * batches.steps + step
        goes_on, previous = position == previous + 1, position
        images, labels = reader.read(epoch, step, goes_on)
        return (images, labels) if many else (images[0], labels[0])

    def read_next(epoch: Any, step: Any) -> tuple[Any, ...]:
        """Read a step of the epoch that this iterator is in, -1: of one that none has had."""
        epoch = np.int64(next(coming)) if epoch < 0 else epoch
        return epoch, *read(int(epoch), int(step))

    def read_at(position: Any) -> tuple[Any, ...]:
        """Read the step at a position: a number of steps since epoch 0, with a mark in the low bits of whose it is."""
        step, found = divmod(int(position), scale)
        if found != mark:
            raise CacheError(
                "this iterator was saved from a dataset over other images, or with other arguments of load: give the same, or begin anew"
            )
        return read(*divmod(step, batches.steps))

    def shaped(images: Any, labels: Any) -> tuple[Any, Any]:
        if given_type != image_type:
            images = tf.cast(images, given_type)
        shape = [None, size] if many else [size]
        return tf.ensure_shape(images, [*shape, *opened.image_shape]), tf.ensure_shape(labels, [*shape, *label_shape])

    # Few ops in these functions: more would cost milliseconds each time an epoch begins.
    def scan(epoch: Any, step: Any) -> tuple[Any, tuple[Any, Any]]:
        epoch, *batch = tf.numpy_function(read_next, [epoch, step], [tf.int64, image_type, label_type], stateful=False)
        return tf.ensure_shape(epoch, []), shaped(*batch)

    def map_position(position: Any) -> tuple[Any, Any]:
        return shaped(*tf.numpy_function(read_at, [position], [image_type, label_type], stateful=False))

    if epochs is None:
        steps = _in_one_thread(tf.data.Dataset.range(batches.steps).scan(np.int64(-1), scan))
    else:
        mark, scale = _mark(reader), 1 << _MARK_BITS
        first = begin[0] * batches.steps + (batches.step_of(begin[1]) if begin[1] else 0)
        stop = epochs * batches.steps
        steps = tf.data.Dataset.range(first * scale + mark, stop * scale + mark, scale).map(map_position)
    dataset = steps.prefetch(_STEPS_AHEAD)
    if many:
        dataset = dataset.flat_map(lambda *step: tf.data.Dataset.from_tensor_slices(step))
    if epochs is not None or not begin[1]:
        count = batches.count if epochs is None else (epochs - begin[0]) * batches.count - begin[1]
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    options = tf.data.Options()
    # Steps are read ahead: to do it again with batches costs a fifth of a small one.
    options.experimental_optimization.inject_prefetch = False
    options.experimental_symbolic_checkpoint = epochs is not None  # positions, not the batches that were read ahead
    dataset = dataset.with_options(options)
    dataset.class_names = list(opened.manifest.class_names)
    dataset.num_classes = classes
    return dataset


def _order(opened: CachedSplit, shuffle: bool | str) -> Order:
    """Return the order of the epochs; warn of a shuffle that would read from disk again and again."""
    if not isinstance(shuffle, bool) and shuffle != "blocks":
        raise ValueError(f'shuffle must be True, False or "blocks", got {shuffle!r}')
    kind: Shuffle | None = "blocks" if shuffle == "blocks" else "all" if shuffle else None
    stored, limit = sum(file.bytes for file in opened.listed.files), memory_limit()
    if kind == "all" and stored > limit:
        warnings.warn(
            f"the images in {str(opened.folder)!r} take {stored / 1e9:.1f} GB, and there are {limit / 1e9:.1f} GB of memory: a shuffle of "
            'all reads them from disk in small pieces, every epoch; give shuffle="blocks"',
            stacklevel=3,
        )
    if kind != "blocks":
        return Order(len(opened), opened.seed, kind)
    opened.expect_random()
    image_bytes = stored / (len(opened) * opened.listed.variants)
    block = max(1, round(BLOCK_BYTES / image_bytes))
    return Order(len(opened), opened.seed, kind, block, max(1, round(WINDOW_BYTES / image_bytes / block)))


def _batches(
    opened: CachedSplit,
    batch_size: int,
    drop_remainder: bool,
    hosts: tuple[int, int] | tf.distribute.InputContext | None,
    level_bytes: int,
) -> tuple[int, Batches]:
    """Return the number of this host, and its batches."""
    if hosts is None:
        hosts = 0, 1
    elif isinstance(hosts, tf.distribute.InputContext):
        hosts = hosts.input_pipeline_id, hosts.num_input_pipelines
    match hosts:
        case (int(host), int(count)) if 0 <= host < count:
            pass
        case _:
            raise ValueError(f"hosts must be an InputContext or (index, count) with 0 <= index < count, got {hosts!r}")
    if count > len(opened):
        raise ValueError(
            f"{count} hosts are more than the {len(opened)} records in {opened.name!r}: give each at least one"
        )
    first, end = (len(opened) * number // count for number in (host, host + 1))
    records = len(opened) // count if drop_remainder else end - first
    if drop_remainder and batch_size > records:
        each = "" if count == 1 else f", {records} for each of {count} hosts,"
        raise ValueError(
            f"batch_size {batch_size} with drop_remainder leaves nothing of the {len(opened)} records{each} in {opened.name!r}"
        )
    worked = opened.chain.on_images or opened.manifest.encoding != "raw"
    step_bytes = _WORKED_STEP_BYTES if worked else _STEP_BYTES
    per_step = max(1, step_bytes // (batch_size * math.prod(opened.image_shape) * level_bytes))
    return host, Batches(first, records, batch_size, drop_remainder, 1 if opened.chain.mixes else per_step)


def _check_start(start: tuple[int, int], batches: int, epochs: int | None) -> tuple[int, int]:
    """Return the epoch and the batch to begin with; the end of an epoch is the beginning of the next."""
    if epochs is not None:
        _check_whole("epochs", epochs, 1)
    match start:
        case (int(epoch), int(batch)) if epoch >= 0 and 0 <= batch <= batches:
            epoch, batch = epoch + batch // batches, batch % batches
        case _:
            raise ValueError(
                f"start must be (epoch, batch) with epoch >= 0 and batch from 0 to {batches}, got {start!r}"
            )
    if epochs is not None and (epoch, batch) > (epochs, 0):
        raise ValueError(f"start {start!r} lies behind the last of {epochs} epochs: give more epochs, or begin earlier")
    return epoch, batch


def _in_one_thread(dataset: Any) -> Any:
    """Run a dataset in one thread: from one of TensorFlow's pool to the next, large batches cost a tenth more.

    Such a dataset has no symbolic checkpoints.
    """
    variant = tf.raw_ops.PrivateThreadPoolDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        num_threads=1,
        output_types=tf.nest.map_structure(lambda spec: spec.dtype, list(dataset.element_spec)),
        output_shapes=tf.nest.map_structure(lambda spec: spec.shape, list(dataset.element_spec)),
    )
    return tf.data.experimental.from_variant(variant, dataset.element_spec)


def _mark(reader: StepReader) -> int:
    """Return a number of `_MARK_BITS` bits for all that the meaning of a position depends on."""
    opened = reader.opened
    said = [str(opened.chain), [file.sha256 for file in opened.listed.files], repr(reader.order), repr(reader.batches)]
    digest = hashlib.sha256(json.dumps([*said, reader.host, reader.start]).encode()).digest()
    return int.from_bytes(digest, "big") % (1 << _MARK_BITS)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
