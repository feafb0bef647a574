"""Mix caches: batches whose images come from several caches, in exact shares. Imports no TensorFlow."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import CacheLike
from joulecache.pipelines.core.checks import check_integer, check_number, check_path
from joulecache.pipelines.loading.array_pool import ArrayPool
from joulecache.pipelines.loading.config import LoadConfig
from joulecache.pipelines.loading.order import Order
from joulecache.pipelines.loading.reader import FINGERPRINT_BITS, StepReader, stacked
from joulecache.pipelines.loading.split import Images, Targets
from joulecache.pipelines.loading.steps import divide, first_batch

_LONGEST_PERIOD = 1_000_000

AnyCache = TypeVar("AnyCache", bound=CacheLike)


@dataclass(frozen=True, eq=False)
class Mix:
    """Several caches as one; `mix` returns one, and `load` and `batches` take it in place of a cache.

    Attributes:
        shares: The share of the images of each cache, in any unit.
        records: Images in an epoch; None for as many as the caches have together.
    """

    shares: Mapping[CacheLike, float]
    records: int | None = None


def mix(shares: Mapping[AnyCache, float], *, records: int | None = None) -> Mix:
    """Mix caches in exact shares: ``load(mix({"a/": 0.7, "b/": 0.3}), "train", 128)``.

    Positions in the stream belong to the caches in a fixed pattern, so every batch has its shares, up to rounding, and so does every
    host. Each cache is read in its own order, to the end before it begins again with its next epoch, whose variant and draws it
    then has: one with a larger share than its size is read more often. One thread reads all of them.

    Args:
        shares: The share of the images of each cache: numbers of which only the ratio counts. Ratios that do not repeat within a
            million images are rounded to a millionth.
        records: Images in an epoch of the mix. Default: as many as the caches have together.

    Returns:
        The mix, for `load` and `batches`. The caches must agree in what they yield: images of one size and type, and the same targets.

    Raises:
        ValueError: There is no cache, or a share is not a positive number.
    """
    if not isinstance(shares, Mapping) or not shares:
        raise ValueError(f'shares must be a dict of caches, such as {{"a/": 0.7, "b/": 0.3}}, got {shares!r}')
    if records is not None:
        check_integer("records", records)
    for cache in shares:
        check_path("each cache in shares", cache)
    checked: dict[CacheLike, float] = {
        cache: check_number(f"the share of {str(cache)!r}", share, above=0) for cache, share in shares.items()
    }
    return Mix(checked, records)


class _Pattern(NamedTuple):
    """To which source each position of a period belongs, its rank among those of its source there, and their number for each source."""

    source: NDArray[np.int64]
    rank: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class MixedReader(StepReader):
    """Reads batches from several sources.

    `split` is that of the first one, which has the form of all; `order` numbers the positions of an epoch.

    Attributes:
        sources: A reader of each source, for its split and order.
        counts: The images of each source in a period.
    """

    sources: tuple[StepReader, ...] = ()
    counts: tuple[int, ...] = ()
    _pattern: _Pattern = field(init=False, repr=False, compare=False)
    _arrays: ArrayPool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", spread(self.counts))
        object.__setattr__(self, "_arrays", ArrayPool())

    def read(self, epoch: int, step: int, *, sequential: bool) -> tuple[Images, Targets]:
        """Return the batches of a step, as `StepReader.read` does."""
        if step == 0:
            for source in self.sources:
                source.split.check()
        (places, _), first, shape = self._picks(self.split, epoch, step, sequential=sequential)
        images, targets = self._mixed(epoch * self.order.records + places, (self.host << 32) + first)
        return images.reshape(self.views, *shape, *images.shape[2:]), stacked(targets, shape)

    def _mixed(self, positions: NDArray[np.int64], number: int) -> tuple[Images, Targets]:
        """Return the images ``[V, B, H, W, C]`` and targets at consecutive positions of the stream, counted from epoch 0."""
        source_of, ranks, counts = self._pattern
        periods, places = np.divmod(positions, len(source_of))
        sources = source_of[places]
        serials = periods * counts[sources] + ranks[places]  # among all images of its source
        images: Any = None
        targets: tuple[NDArray[Any], ...] = ()
        for number_of, source in enumerate(self.sources):
            chosen = np.flatnonzero(sources == number_of)
            epochs, rows = np.divmod(serials[chosen], source.order.records)
            for epoch in np.unique(epochs).tolist():
                into, found = chosen[epochs == epoch], rows[epochs == epoch]
                picked, draws = source.order.picks(epoch, int(found[0]), int(found[-1]) + 1)
                part, moved = source.split.batch(picked, epoch, number, draws=draws, views=self.views)
                part = part.reshape(self.views, len(picked), *part.shape[1:])
                if images is None:
                    images = self._empty((self.views, len(positions), *part.shape[2:]), part.dtype)
                    targets = tuple(self._empty((len(positions), *each.shape[1:]), each.dtype) for each in moved)
                images[:, into] = part
                for whole, each in zip(targets, moved, strict=True):
                    whole[into] = each
        if images is None:  # no position: the empty step before a start
            images, targets = self.split.batch(np.empty(0, np.int64), 0, number)
            return np.stack([images] * self.views), targets
        return images, targets

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.empty(shape, dtype) if dtype.hasobject else self._arrays.empty(shape, dtype)

    @property
    def gathers(self) -> bool:
        """False: images come from several arrays, by a position that only Python computes."""
        return False

    @property
    def fingerprint(self) -> int:
        """As `StepReader.fingerprint`, of all sources."""
        sources = [source.fingerprint for source in self.sources]
        parts = [super().fingerprint, sources, self.counts]
        digest = hashlib.sha256(json.dumps(parts).encode()).digest()
        return int.from_bytes(digest, "big") % (1 << FINGERPRINT_BITS)


def mix_readers(sources: Sequence[StepReader], mixed: Mix, config: LoadConfig) -> MixedReader:
    """Return a reader of several sources, which were opened for one host.

    Raises:
        ValueError: They do not yield the same forms, or cannot be mixed.
    """
    for source in sources:
        _check(source, sources[0])
    records = mixed.records or sum(source.order.records for source in sources)
    split = sources[0].split
    batches = divide(split, config, records)
    return MixedReader(
        split,
        Order(records, split.seed),
        config.hosts[0],
        batches,
        first_batch(config, batches.count),
        config.views,
        sources=tuple(sources),
        counts=whole_shares([*mixed.shares.values()]),
    )


def _check(source: StepReader, first: StepReader) -> None:
    """Raise ValueError unless a source can be mixed with the first one."""
    location = source.split.cache.location
    if source.split.chain.mixes:
        raise ValueError(
            f"{str(source.split.chain)!r} mixes images of one cache, {location}: leave mixup and cutmix to a layer"
        )
    if source.stream is not None:
        raise ValueError(f"{location} would be read as it arrives, which a mix cannot do: copy it with open_cache")
    for what, form in _forms(first).items():
        if (other := _forms(source)[what]) != form:
            raise ValueError(
                f"the {what} of {location} are {other}, but those of {first.split.cache.location} are {form}: "
                "caches in a mix must yield the same"
            )


def _forms(reader: StepReader) -> dict[str, object]:
    """Return what all sources must have in common, in words."""
    split = reader.split
    features = split.cache.manifest.features
    tensors = [(tensor.dtype, *tensor.shape) for column in split.targets for tensor in column.tensors]
    return {
        "images": ("float32" if split.chain.is_float else "uint8", *split.image_shape),
        "targets": {name: features[name] for name in split.selection.names},
        "shapes of targets": tensors,
    }


def whole_shares(shares: Sequence[float]) -> tuple[int, ...]:
    """Return shares as the smallest integers in their ratio; raise ValueError if one is less than a millionth."""
    exact = [Fraction(str(share)) for share in shares]  # of its digits: 0.7 is 7/10
    parts = [share / sum(exact) for share in exact]
    period = min(math.lcm(*(part.denominator for part in parts)), _LONGEST_PERIOD)
    counts = [int(part * period) for part in parts]
    rest = sorted(range(len(parts)), key=lambda number: counts[number] - parts[number] * period)
    for number in rest[: period - sum(counts)]:
        counts[number] += 1
    if min(counts) < 1:
        raise ValueError(f"shares must be at least a millionth of all, got {float(min(parts)):g}")
    return tuple(counts)


def spread(counts: Sequence[int]) -> _Pattern:
    """Spread the images of each source evenly over a period."""
    sources = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts]) if counts else np.empty(0, np.int64)
    due = (ranks + 0.5) / np.array(counts, np.float64)[sources]
    order = np.argsort(due, kind="stable")
    return _Pattern(sources[order], ranks[order], np.array(counts, np.int64))
