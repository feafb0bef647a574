"""Boxes and points as files have them: as JSON, or as columns of lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.quantities import count, plural, shortened
from joulecache.pipelines.source.spatial import Boxes, Points

BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
"""What the field of boxes in an object is called."""

CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels", "class", "classes")
"""What the field of the classes of boxes is called."""

ONLY_CLASS = "object"
"""The class of boxes without one."""

BOX_BYTES = 24
"""The size of a box in a target."""

_SHOWN = 10  # names of classes in a note
_VISIBLE = (0, 1, 2)
_MOST = 1e30


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def corners(box: object) -> list[float]:
    """Return left, top, right and bottom of a box given as left, top, width and height; ValueError if it is none, or reversed."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"must have four numbers each, left, top, width and height, got {shown(box)}")
    left, top, width, height = box
    if width < 0 or height < 0:
        raise ValueError(f"must have a positive width and height each, got {shown(box)}")
    return [left, top, left + width, top + height]


@dataclass(frozen=True)
class Corners:
    """Boxes by their corners.

    Attributes:
        boxes: Left, top, right and bottom of each.
        classes: Their classes, as numbers or names; None without.
    """

    boxes: Sequence[Sequence[float]]
    classes: Sequence[int | str | bytes] | None


def encode_boxes(feature: Boxes, boxes: Sequence[Sequence[float]], classes: Sequence[int]) -> tuple[bytes, int]:
    """Return a target without the boxes that have no width or height, as annotations may, and the number of boxes in it."""
    array = np.asarray(boxes, "<f4").reshape(-1, 4)
    used = (array[:, 2] > array[:, 0]) & (array[:, 3] > array[:, 1])
    return feature.encode(array[used], [number for number, kept in zip(classes, used, strict=True) if kept]), int(
        used.sum()
    )


def objects(value: object) -> tuple[list[Any], list[Any] | None]:
    """Return the boxes of an image and their classes, None without; ValueError if it has none of them.

    Args:
        value: An object of lists, ``{"bbox": [[x, y, width, height], ...], "category": [...]}``, or a list of objects with a box each.
    """
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        keys = list(dict.fromkeys(key for each in value for key in each)) or [BOX_KEYS[0]]
        value = {key: [each.get(key) for each in value] for key in keys}
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    boxes = first_of(fields, BOX_KEYS)
    if boxes is None or not isinstance(fields[boxes], list):
        raise ValueError(f"must have an object with lists of bbox and category, got {shown(value)}")
    classes = first_of(fields, CATEGORY_KEYS)
    if classes is None:
        return fields[boxes], None
    if not isinstance(fields[classes], list) or len(fields[classes]) != len(fields[boxes]):
        raise ValueError(f"must have as many {classes} as {boxes}, got {shown(value)}")
    return fields[boxes], fields[classes]


def first_of(fields: Collection[str], known: Sequence[str]) -> str | None:
    """Return the first known name that is there."""
    return next((name for name in known if name in fields), None)


def number_of_points(values: Sequence[Any]) -> int:
    """Return the number of points that most images have: of lists of x, y and visibility, or of x and y; ValueError if they are none.

    Args:
        values: For each image a list of points, or one list of numbers: x, y and visibility if every third is 0, 1 or 2, else x and y.
    """
    lists = [value for value in values if isinstance(value, list) and value]
    if not lists:
        raise ValueError(f"must have lists of points, got {shown(values[0] if values else None)}")
    kinds = Counter((len(value), isinstance(value[0], list)) for value in lists)
    [((length, is_nested), _)] = kinds.most_common(1)
    if is_nested:
        return length
    flat = [value for value in lists if len(value) == length and not isinstance(value[0], list)]
    if length % 3 == 0 and all(number in _VISIBLE for value in flat for number in value[2::3]):
        return length // 3
    if length % 2:
        raise ValueError(f"must have x and y of each point, got {shown(flat[0])}")
    return length // 2


def encode_points(feature: Points, value: object) -> bytes:
    """Return points as a target; ValueError if they are not those of the feature."""
    points = value
    if isinstance(value, list) and value and not isinstance(value[0], list):
        sides = 3 if len(value) == 3 * feature.n else 2
        points = [value[start : start + sides] for start in range(0, len(value), sides)]
    if (
        not isinstance(points, list)
        or len(points) != feature.n
        or not all(isinstance(point, list) and len(point) == len(points[0]) in (2, 3) for point in points)
        or not all(is_number(number) for point in points for number in point)
    ):
        raise ValueError(f"must have {feature.n} points of x, y and visibility, got {shown(value)}")
    return feature.encode(points)


def boxes_notes(feature: Boxes, used: int, empty: int, where: str) -> list[str]:
    """Return what boxes were found and how many were dropped because they have no width or height."""
    classes = plural(1, "class") if len(feature.names) == 1 else f"{count(len(feature.names))} classes"
    names = shortened([repr(name) for name in feature.names], _SHOWN)
    notes = [f"{plural_boxes(used)} of {classes} from {where}: {names}"]
    return [*notes, f"dropped {plural_boxes(empty)} of {where} without width or height"] if empty else notes


def plural_boxes(number: int) -> str:
    """Return a number of boxes in words."""
    return "1 box" if number == 1 else f"{count(number)} boxes"
