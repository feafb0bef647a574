"""The targets of a cache: the records of each class, the ranges of values, and what masks, boxes and points have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from joulecache.pipelines.cache.data_file import TargetSummary
from joulecache.pipelines.cache.manifest import Manifest, Split
from joulecache.pipelines.core.quantities import NO_BREAK, count, number, plural, share, shortened
from joulecache.pipelines.report.document import Block, Column, Paragraph, Table, table, words
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, MultiLabel, Value, spatial_features
from joulecache.pipelines.source.spatial import Boxes, Mask, Points

_CLASSES_SHOWN = 20
S = TypeVar("S")


@dataclass(frozen=True)
class _Found:
    """The targets of one feature in a split, and the images and pixels there, of all variants."""

    summary: TargetSummary
    images: int
    pixels: int

    @property
    def counts(self) -> tuple[int, ...]:
        return self.summary.counts or ()

    @property
    def range(self) -> str:
        low, high = self.summary.low, self.summary.high
        return "-" if low is None or high is None else f"{low:g} to {high:g}"


_FACTS: Mapping[type[AnyFeature], Mapping[str, Callable[[_Found], str]]] = {
    Mask: {"Empty (only 0 and 255)": lambda found: share((found.summary.empty or 0) / found.images)},
    Boxes: {
        "Boxes per image": lambda found: number(sum(found.counts) / found.images),
        "Most in an image": lambda found: count(found.summary.most or 0),
        "Images without boxes": lambda found: share((found.summary.empty or 0) / found.images),
    },
    Points: {
        "Coordinates (pixels)": lambda found: found.range,
        "Images without points": lambda found: share((found.summary.empty or 0) / found.images),
    },
}
"""What is said of targets that move with the pixels, besides their classes."""


def describe_targets(manifest: Manifest, splits: Mapping[str, Split]) -> Iterator[Block]:
    """Yield what is known of the targets of a cache."""
    if manifest.targets is None:
        yield _classes(manifest.class_names, {name: split.class_counts for name, split in splits.items()})
        return
    if not manifest.targets:
        yield Paragraph("No targets: images alone.")
    for name, feature in manifest.targets.items():
        found = {
            split: _Found((each.targets or {})[name], each.records * each.variants, _pixels(each))
            for split, each in splits.items()
        }
        kind = "" if name == feature.kind else f" ({feature.kind})"
        yield from _target(f"Target {name}{kind}", feature, found)
    if manifest.variants > 1 and spatial_features(manifest.targets):
        yield Paragraph("Masks, boxes and points are counted in all variants.")


def _pixels(split: Split) -> int:
    return sum(file.pixel_stats.pixels for file in split.files if file.pixel_stats) or 1


def _target(title: str, feature: AnyFeature, found: Mapping[str, _Found]) -> Iterator[Block]:
    counts = {split: each.counts for split, each in found.items()}
    facts = _FACTS.get(type(feature))
    match feature:
        case ClassLabel() | MultiLabel():
            yield Paragraph(f"{title}:")
        case Value(dtype, shape):
            sides = " of shape " + "x".join(map(str, shape)) if shape else ""
            ranges = [f"{split} {each.range}" for split, each in found.items() if each.summary.low is not None]
            yield Paragraph(", ".join([f"{title}: {dtype}{sides}", *ranges]) + ".")
        case _:
            yield Paragraph(f"{title}:" if facts else f"{title}.")
    if facts:
        yield by_split("Images", facts, found)
    match feature:
        case ClassLabel(names) | MultiLabel(names):
            yield _classes(names, counts)
        case Mask(names):
            yield _shares(names, found)
        case Boxes(names):
            yield _classes(names, counts, "Boxes", "box")
        case Points(n):
            yield _classes(list(map(str, range(n))), counts, "Images with point", "image")


def _classes(
    names: Sequence[str], splits: Mapping[str, Sequence[int]], title: str = "Class", noun: str = "record"
) -> Block:
    """Return the records of each class: in each split if there are few classes, else in total."""
    if not names:
        return Paragraph("No classes.")
    if len(names) <= _CLASSES_SHOWN:
        return by_split(title, {name: _count_of(place) for place, name in enumerate(names)}, splits)
    totals = [sum(counts) for counts in zip(*splits.values(), strict=True)]
    first = [f"{name}{NO_BREAK}({count(records)})" for name, records in zip(names, totals, strict=True)]
    fewest, most = min(totals), max(totals)
    sizes = plural(most, noun) if fewest == most else f"{count(fewest)} to {plural(most, noun)}"
    return Paragraph(f"{count(len(names))} classes, {sizes} each: {shortened(first, _CLASSES_SHOWN)}.")


def _count_of(place: int) -> Callable[[Sequence[int]], str]:
    return lambda counts: count(counts[place])


def _shares(names: Sequence[str], splits: Mapping[str, _Found]) -> Block:
    """Return the share of the pixels of a mask that each class has; of many classes, the largest."""
    ids = range(len(names) or max(len(found.counts) for found in splits.values()))
    titles = dict(zip(ids, names, strict=True)) if names else {place: str(place) for place in ids}
    totals = {place: sum(sum(found.counts[place : place + 1]) for found in splits.values()) for place in ids}
    shown = sorted(sorted(ids, key=lambda place: -totals[place])[:_CLASSES_SHOWN])
    rows = {titles[place]: _share_of(place) for place in shown}
    if len(ids) > len(shown):
        rows[f"{len(ids) - len(shown)} other classes"] = lambda found: share(
            sum(of_class for place, of_class in enumerate(found.counts) if place not in shown) / found.pixels
        )
    if any(sum(found.counts) < found.pixels for found in splits.values()):
        rows["no class (255)"] = lambda found: share(1 - sum(found.counts) / found.pixels)
    return by_split("Pixels", rows, splits)


def _share_of(place: int) -> Callable[[_Found], str]:
    return lambda found: share(sum(found.counts[place : place + 1]) / found.pixels)


def by_split(title: str, rows: Mapping[str, Callable[[S], str]], splits: Mapping[str, S]) -> Table:
    """Return a table with a column for each split."""

    def of(split: S) -> Callable[[str], str]:
        return lambda name: rows[name](split)

    columns: dict[Column, Callable[[str], str]] = {words(title): lambda name: name}
    return table("", rows, columns | {Column(name): of(split) for name, split in splits.items()})
