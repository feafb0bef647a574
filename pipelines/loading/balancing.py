"""Draw the classes of a split evenly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.loading.order import Order, Rows
from joulecache.pipelines.loading.subset import digest
from joulecache.pipelines.source.feature import as_numbers
from joulecache.pipelines.source.features import ClassLabel
from joulecache.transforms.randomness import philox

_LOG = logging.getLogger("joulecache")
_WORD = 0xFFFFFFFF
_CLASSES, _MEMBERS = (
    3 << 30,
    3 << 30 | 1,
)  # in the last counter word: those of ops and of permutations never set both bits


@dataclass(frozen=True)
class Balanced(Order):
    """An order in which every C positions have a record of each of C classes, counted over all epochs.

    Each class is drawn in its own passes: all of its records in random order, then again in another order. So the t-th draw of any
    class is in the t-th group of C positions, and any position can be computed without those before it.

    Attributes:
        label: The target.
        digest: Of `members` and `sizes`.
        members: All rows by class, int64 ``[N]``.
        sizes: Number of rows of each class, int64 ``[C]``.
    """

    label: str = ""
    digest: str = ""
    members: Rows = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)
    sizes: Rows = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)
    _passes: dict[int, tuple[int, Rows]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def picks(self, epoch: int, start: int, stop: int) -> tuple[Rows, Rows]:
        """Return the rows at positions `start` to `stop` - 1, and the draws of each: the pass of its class."""
        groups, places = np.divmod(epoch * self.records + np.arange(start, stop), len(self.sizes))
        if not len(groups):
            return groups, groups
        classes = self._classes(np.arange(groups[0], groups[-1] + 1))[groups - groups[0], places]
        passes, ranks = np.divmod(groups, self.sizes[classes])
        rows = np.empty_like(groups)
        for number in np.unique(classes).tolist():
            of_class = np.flatnonzero(classes == number)
            for one in np.unique(passes[of_class]).tolist():
                chosen = of_class[passes[of_class] == one]
                rows[chosen] = self._pass(number, one)[ranks[chosen]]
        return rows, passes

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return the rows at positions `start` to `stop` - 1, int64 ``[stop - start]``."""
        return self.picks(epoch, start, stop)[0]

    def _classes(self, groups: Rows) -> Rows:
        """Return the classes of groups of positions, in random order, int64 ``[groups, C]``."""
        numbers, classes = groups.astype(np.uint64)[:, None], np.arange(len(self.sizes), dtype=np.uint64)
        words = _random(self.seed, [numbers & np.uint64(_WORD), numbers >> np.uint64(32), classes], _CLASSES)
        return np.argsort(words, axis=-1, kind="stable")

    def _pass(self, number: int, one: int) -> Rows:
        """Return the rows of a class in the order of a pass; the last pass of each class is kept."""
        kept, rows = self._passes.get(number, (-1, self.members))
        if kept != one:
            first = int(self.sizes[:number].sum())
            members = self.members[first : first + int(self.sizes[number])]
            counter = [np.array([one & _WORD], np.uint64), np.array([number], np.uint64)]
            words = _random(self.seed, [*counter, np.arange(len(members), dtype=np.uint64)], _MEMBERS)
            rows = members[np.argsort(words, kind="stable")]
            self._passes[number] = (one, rows)
        return rows


def _random(seed: int, counter: Sequence[NDArray[np.uint64]], domain: int) -> NDArray[np.uint64]:
    """Return random numbers of 64 bits."""
    words = philox((seed & _WORD, seed >> 32), [*counter, np.array([domain], np.uint64)]).astype(np.uint64)
    return words[..., 0] << np.uint64(32) | words[..., 1]


def balance(cache: Cache, split: str, label: str, chosen: Rows | None, seed: int) -> Balanced:
    """Return the order that draws the classes of a split evenly.

    Args:
        cache: The cache.
        split: The split.
        label: The target with the classes.
        chosen: The rows to draw from; None for all.
        seed: Seed of the order.

    Raises:
        ValueError: There is no such target, or it has no classes.
    """
    feature = cache.manifest.features.get(label)
    if not isinstance(feature, ClassLabel):
        known = [name for name, each in cache.manifest.features.items() if isinstance(each, ClassLabel)]
        raise ValueError(
            f"balance must name a target that is a class ({', '.join(known) or 'none here'}), got {label!r}"
        )
    labels = as_numbers(cache.rows(split)[label])
    rows = np.arange(len(labels)) if chosen is None else chosen
    members = rows[np.argsort(labels[rows], kind="stable")]
    sizes = np.bincount(labels[rows], minlength=len(feature.names))
    if chosen is None and not sizes.all():
        _LOG.warning(
            "%d of %d classes have no records in %r: balance draws the others", (sizes == 0).sum(), len(sizes), split
        )
    sizes = sizes[sizes > 0]
    return Balanced(
        len(rows),
        seed,
        "all",
        label=label,
        digest=digest(np.concatenate([sizes, members])),
        members=members,
        sizes=sizes,
    )
