"""`batches`: a split of a cache as NumPy arrays. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from joulecache.pipelines.cache.cache import CacheLike
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.local_copy import STAGE_LIMIT_BYTES
from joulecache.pipelines.loading.config import LoadConfig, Shuffle, Verify
from joulecache.pipelines.loading.mixing import Mix
from joulecache.pipelines.loading.opening import open_steps
from joulecache.pipelines.loading.reader import StepReader
from joulecache.pipelines.loading.split import Images, Targets
from joulecache.pipelines.loading.steps import first_batch
from joulecache.pipelines.loading.where import Where
from joulecache.transforms.ops import Op

Step: TypeAlias = tuple[Images, Targets]


def batches(
    cache: CacheLike | Mix,
    split: str,
    batch_size: int,
    *,
    shuffle: Shuffle | None = None,
    seed: int | None = None,
    drop_remainder: bool = False,
    hosts: tuple[int, int] = (0, 1),
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
) -> NumPyBatches:
    """Load a split of a cache as NumPy arrays, for PyTorch, JAX or any other consumer, without TensorFlow.

    The batches are those that `load` yields with the same arguments: the same records in the same order, byte for byte.

    Args:
        cache: A folder, the URL of a cache in an object store, an opened `Cache`, or a `mix` of caches.
        split: ``train``, ``val`` or ``test``.
        batch_size: Images per batch, on each host.
        shuffle: True for a uniform permutation of the split; False for the order of the cache; ``"blocks"`` for caches that do not
            fit in memory. By default only ``train`` is shuffled.
        seed: Seed of the order and of the draws; the cache's by default.
        drop_remainder: Drop the last batch of an epoch if it is smaller, so that all hosts run the same number of steps.
        hosts: (index, count): load one host's share of every epoch. Shares differ by at most one record.
        epochs: Number of epochs per iteration, the same ones every time. By default each iteration yields the next epoch.
        start: (epoch, batch) to start with.
        targets: Names of the targets to yield. Default: all of the cache, but for `sample_weight`.
        sample_weight: Name of a `Value` that becomes the third element of a batch.
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

    Returns:
        Batches of images, uint8 ``[B, H, W, C]``, float32 after to_float, and labels, int64 ``[B]``, or another target; with several
        targets a dict of them by name, and without any the images alone. `jc.features` has their dtypes and shapes; texts are
        arrays of `str` objects.

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
        hosts,
        epochs=epochs,
        start=start,
        targets=targets,
        sample_weight=sample_weight,
        follow=follow,
        where=where,
        balance=balance,
        views=views,
    )
    opening = functools.partial(open_steps, cache, config, verify=verify, ops=ops, stage_limit_bytes=stage_limit_bytes)
    return NumPyBatches(opening, config)


class NumPyBatches:
    """The batches of a split as NumPy arrays; `batches` returns them.

    Each iteration yields the next epoch, or the same `epochs`. A thread reads one step ahead: a batch, or several small ones. Arrays
    stay as they are for as long as they, or views or tensors of their memory, are referenced; then their memory is used for
    later batches. They may be written to.

    It can be pickled, for a spawned process for example, which opens the cache again and begins with the same epoch.

    Attributes:
        class_names: The names of the classes of the only target; empty for several or others.
    """

    def __init__(self, opening: Callable[[], StepReader], config: LoadConfig) -> None:
        self._opening, self._reader, self._config = opening, opening(), config
        self._next = self._position = self._reader.start
        self.class_names = self._reader.class_names

    def __len__(self) -> int:
        """Return the number of batches in an iteration; only one that starts inside an epoch, without `epochs`, is shorter."""
        count, (epoch, batch) = self._reader.batches.count, self._reader.start
        return count if self._config.epochs is None else (self._config.epochs - epoch) * count - batch

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or `epochs`, even if the last iteration was left early."""
        start, epochs = self._next, self._config.epochs
        self._position = start
        self._next = (start[0] + 1, 0) if epochs is None else self._reader.start
        return self._iterate(dataclasses.replace(self._reader, start=start), start[0] + 1 if epochs is None else epochs)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what opens the cache again, and the position, not what is mapped."""
        return _open_again, (self._opening, self._config, self._fingerprint, self._next, self._position)

    def state(self) -> dict[str, int]:
        """Return the position after the last batch that was yielded, as a dict for JSON of less than 1 KB."""
        epoch, batch = self._position
        state = {"epoch": epoch, "batch": batch, "fingerprint": self._fingerprint}
        if batch and self._reader.newest:
            state["draw"] = self._reader.newest.draw_of(epoch)
        return state

    def restore(self, state: Mapping[str, int]) -> None:
        """Let the next iteration go on where a state was taken, with the same bytes.

        Raises:
            CacheError: The state was taken over other images or with other arguments. `epochs` and `start` may be others.
            ValueError: This is no state, or it is after the last epoch.
        """
        match state:
            case {"epoch": int(epoch), "batch": int(batch), "fingerprint": int(fingerprint)}:
                pass
            case _:
                raise ValueError(f"state must be a dict that state() returned, got {state!r}")
        if fingerprint != self._fingerprint:
            raise CacheError(
                "this state was saved over other images or with other arguments of batches: restore it with the same, or start again"
            )
        if (
            batch
            and self._reader.newest
            and (draw := self._reader.newest.draw_of(epoch, begins=True)) != state.get("draw")
        ):
            raise CacheError(
                f"this state was saved inside epoch {epoch}, with draw {state.get('draw')}, which the cache does not have any more: pass "
                f"start={(epoch, batch)} to go on with draw {draw}, or restore a state from the beginning of an epoch"
            )
        config = dataclasses.replace(self._config, start=(epoch, batch))
        self._next = self._position = first_batch(config, self._reader.batches.count)

    @functools.cached_property
    def _fingerprint(self) -> int:
        """The reader's, of any `start` and any number of batches per step, since positions do not depend on them."""
        one = dataclasses.replace(self._reader.batches, per_step=1)
        return dataclasses.replace(self._reader, batches=one, start=(0, 0)).fingerprint

    def _iterate(self, reader: StepReader, end: int) -> Iterator[Any]:
        """Yield the batches from the reader's start to the beginning of the epoch `end`."""
        count, (epoch, batch) = reader.batches.count, reader.start
        number = epoch * count + batch
        for images, targets in _read_ahead(reader, end):
            for place in range(images.shape[1]):
                number += 1
                self._position = divmod(number, count)
                yield reader.arrange([*images[:, place]], [each[place] for each in targets])


def _open_again(
    opening: Callable[[], StepReader],
    config: LoadConfig,
    fingerprint: int,
    following: tuple[int, int],
    position: tuple[int, int],
) -> NumPyBatches:
    batches = NumPyBatches(opening, config)
    if batches._fingerprint != fingerprint:
        raise CacheError("the cache was rebuilt after its batches were pickled: call batches again")
    batches._next, batches._position = following, position
    return batches


def _read_ahead(reader: StepReader, end: int) -> Iterator[Step]:
    """Yield the steps from the reader's start to the beginning of the epoch `end`; a thread reads each while the one before is used."""
    steps, (epoch, batch) = reader.batches.steps, reader.start
    numbers = range(epoch * steps + (reader.batches.step_of(batch) if batch else 0), end * steps)

    def read(number: int) -> Step:
        return reader.read(*divmod(number, steps), sequential=number > numbers.start)

    if not numbers:
        return
    thread = ThreadPoolExecutor(1, "joulecache")
    try:
        ahead = _begin(thread, read, numbers[0])
        for number in numbers[1:]:
            step = ahead()
            ahead = _begin(thread, read, number)
            yield step
        yield ahead()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _begin(thread: ThreadPoolExecutor, read: Callable[[int], Step], number: int) -> Callable[[], Step]:
    """Begin to read a step; return a function that waits for it."""
    try:
        return thread.submit(read, number).result
    except RuntimeError:  # the interpreter is ending: pools refuse work, but other threads of the script may go on
        return functools.partial(read, number)
