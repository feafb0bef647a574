"""What the cells of a table and the keys of .json files mean as targets."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.annotations import (
    BOX_BYTES,
    ONLY_CLASS,
    Corners,
    boxes_notes,
    corners,
    encode_boxes,
    encode_points,
    number_of_points,
    objects,
)
from joulecache.pipelines.source.classes import crowding, holds_numbers, sort_key
from joulecache.pipelines.source.config import Wanted
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import (
    AnyFeature,
    ClassLabel,
    MultiLabel,
    TargetTable,
    Text,
    Value,
    check_names,
)
from joulecache.pipelines.source.records import MAX_CLASSES, SourceError
from joulecache.pipelines.source.spatial import Boxes, Mask, Points

MISSING = ("", "nan")
"""Cells without a value, in any case."""

_LISTS = re.compile(r"\s*[;|]\s*")
_LOOSE_LISTS = re.compile(r"[\s,;|]+")
_INTEGER = re.compile("[-+]?[0-9]{1,18}")
_LONGEST_TEXT = 1 << 20  # bytes
_DEEPEST = 16  # lists in lists


def cell_text(value: object) -> str:
    """Return a JSON or Arrow value as the text of a cell; ValueError if it is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"must have a number, a text or a list of them, got {shown(value)}") from None


def infer_kind(name: str, cells: Iterable[str], where: str) -> str:
    """Return the kind of a column; SourceError with the ways to say it if it is ambiguous.

    Args:
        name: Its name.
        cells: Its cells; those without a value are ignored.
        where: The file, for messages.
    """
    given = [cell for cell in cells if cell.lower() not in MISSING]
    distinct = set(given)
    if not distinct:
        raise SourceError(f"column {name!r} of {where} is empty: name another column with --target")
    if all(cell.startswith(("{", "[{")) for cell in distinct) and any(_holds_boxes(cell) for cell in distinct):
        return "boxes"
    if any(cell.startswith("[") and isinstance(_json(cell), list) for cell in distinct):
        lists = [_json_list(cell) for cell in distinct]
        if all(found and all(isinstance(item, str) for item in found) for found in lists):
            return "multilabel"
        if any(isinstance(item, list) and len(item) in (2, 3) for found in lists for item in found):
            raise SourceError(_ways(name, where, "lists of lists", "value", "points"))
        raise SourceError(_ways(name, where, "lists", "multilabel", "value"))
    if all(map(holds_numbers, distinct)):
        if any(_LOOSE_LISTS.search(cell) for cell in distinct):
            raise SourceError(_ways(name, where, "several numbers in one cell", "multilabel", "value"))
        if any(not _INTEGER.fullmatch(cell) for cell in distinct):
            return "value"
        if number := next(
            (cell for cell in distinct if not cell.isdigit() or len(cell) >= len(str(MAX_CLASSES))), None
        ):
            raise SourceError(_ways(name, where, f"integers that are no classes, such as {number}", "value", "class"))
        if crowd := crowding(len(distinct), len(given)):
            raise SourceError(_ways(name, where, f"integers, {crowd}", "value", "class"))
        return "class"
    if any(map(_LISTS.search, distinct)):
        return "multilabel"
    if any(_is_loose_list(cell, distinct) for cell in distinct):
        raise SourceError(_ways(name, where, "several names in one cell", "multilabel", "class"))
    if crowd := crowding(len(distinct), len(given)):
        raise SourceError(_ways(name, where, crowd, "text", "class"))
    return "class"


def _is_loose_list(cell: str, cells: Set[str]) -> bool:
    """Return whether a cell may be a list of other cells, or is one in braces."""
    if cell.startswith("{") and cell.endswith("}"):
        return True
    words = re.split("[ ,]+", cell)
    return (len(words) > 1 and set(words) <= cells) or (
        "," in cell and all(part.strip() in cells for part in cell.split(","))
    )


def _ways(name: str, where: str, what: str, *kinds: str) -> str:
    ways = " or ".join(f"--target {name}:{kind}" for kind in kinds)
    return f"column {name!r} of {where} has {what}: pass {ways}"


def read_column(
    name: str, kind: str, cells: Sequence[str | None]
) -> tuple[AnyFeature, list[Target | None], dict[int, str]]:
    """Return the feature of a column, the target in each cell, and why a cell has none, by its row.

    Args:
        name: Name of the target.
        kind: One of `KINDS`.
        cells: The cells; None for an image without a line.
    """
    parsed: list[Any] = []
    reasons: dict[int, str] = {}
    for row, cell in enumerate(cells):
        value = None
        if cell is not None:
            try:
                value = _parse(kind, cell)
            except ValueError as error:
                reasons[row] = f"its {name!r} {error}"
        parsed.append(value)
    feature = _feature(kind, parsed)
    targets: list[Target | None] = []
    for row, value in enumerate(parsed):
        target = None
        if value is not None:
            try:
                target = encode_target(feature, value)
                feature.check(target)
            except ValueError as error:
                target, reasons[row] = None, f"its {name!r} {error}"
        targets.append(target)
    return feature, targets, reasons


def _parse(kind: str, cell: str) -> Any:
    """Return a cell as what `encode_target` accepts."""
    if cell.lower() in MISSING:
        raise ValueError("is empty")
    if kind in ("text", "class"):
        return cell
    if kind == "boxes":
        found = _json(cell)
        if found is None:
            raise ValueError(f"must have an object with lists of bbox and category, got {shown(cell)}")
        return found
    items = _json_list(cell) if cell.startswith("[") else None
    if kind == "multilabel":
        if items is None:
            items = _LISTS.split(cell) if _LISTS.search(cell) else re.split(r"\s*,\s*", cell)
        if any(isinstance(item, list | dict | float) or item is None for item in items):
            raise ValueError(f"must have names or integers, got {shown(cell)}")
        return [str(item) for item in items if item != ""]
    if items is not None:
        return _numbers(items, cell)
    if not holds_numbers(cell):
        raise ValueError(f"must have numbers, got {shown(cell)}")
    if kind == "points":
        return [_number(text) for text in _LOOSE_LISTS.split(cell.strip()) if text]
    numbers = [_number(text) for text in _LOOSE_LISTS.split(cell.strip()) if text]
    return numbers[0] if len(numbers) == 1 else numbers


def _number(text: str) -> int | float:
    return int(text) if _INTEGER.fullmatch(text) else float(text)


def _numbers(items: Any, cell: object) -> Any:
    if isinstance(items, list):
        return [_numbers(item, cell) for item in items]
    if isinstance(items, bool) or not isinstance(items, int | float):
        raise ValueError(f"must have numbers, got {shown(cell)}")
    return items


def _json_list(cell: str) -> list[Any]:
    found = _json(cell)
    return found if isinstance(found, list) else [cell]


def _json(cell: str) -> Any:
    """Return a cell as JSON, or as pandas writes lists and objects; None if it is neither, or deeply nested."""
    for text in (cell, cell.replace("'", '"')):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        return None if _is_deep(found) else found
    return None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, list | dict))
        level = [*itertools.chain.from_iterable(inside)]
        if not level:
            return False
    return True


def _holds_boxes(cell: str) -> bool:
    try:
        objects(_json(cell))
    except ValueError:
        return False
    return True


def _feature(kind: str, values: Sequence[Any]) -> AnyFeature:
    """Return the feature that most values fit; `values` are as `_parse` returns them."""
    given = [value for value in values if value is not None]
    if kind == "text":
        return Text()
    if kind == "class":
        names = {*given}
        return ClassLabel(tuple(sorted(names, key=sort_key(names))))
    if kind == "multilabel":
        names = {*itertools.chain.from_iterable(given)}
        return MultiLabel(tuple(sorted(names, key=sort_key(names))) or ("none",))
    if kind == "boxes":
        return Boxes(box_names(given))
    if kind == "points":
        return Points(number_of_points(given))
    shape = shape_of(given[0]) if given else ()
    whole = all(isinstance(number, int) for value in given for number in flat(value))
    return Value("int64" if whole and given else "float32", shape)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists, by their first items."""
    return (len(value), *shape_of(value[0])) if isinstance(value, list) and value else ()


def flat(value: Any) -> list[Any]:
    """Return the items of nested lists."""
    return [item for each in value for item in flat(each)] if isinstance(value, list) else [value]


def encode_target(feature: AnyFeature, value: Any) -> Target:
    """Return a value of a source as a target; ValueError if it does not fit the feature.

    Args:
        feature: The feature.
        value: A class number or name, or a list of them; a number or nested lists of them; or a text.
    """
    match feature:
        case ClassLabel():
            return _class_number(feature, value)
        case MultiLabel():
            items = value if isinstance(value, list) else [value]
            return feature.encode(_class_number(feature, item) for item in items)
        case Value():
            numbers = flat(value)
            if any(isinstance(number, str | bytes) or number is None for number in numbers):
                raise ValueError(f"must have numbers, got {shown(value)}")
            if isinstance(value, list) and not _is_regular(value, feature.shape):
                raise ValueError(f"must have numbers of shape {feature.shape}, got {shape_of(value)}")
            return feature.encode(numbers)
        case Mask():
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise ValueError(f"must be an encoded image in the file, got {shown(value)}")
            return data
        case Boxes():
            return encode_objects(feature, value)[0]
        case Points():
            return encode_points(feature, value)
        case Text():
            if isinstance(value, bytes):
                value = value.decode(errors="strict")
            if not isinstance(value, str):
                raise ValueError(f"must have a text, got {shown(value)}")
            if len(value.encode(errors="replace")) > _LONGEST_TEXT:
                raise ValueError(f"must have at most {_LONGEST_TEXT:,} bytes")
            return value
        case _:
            raise ValueError(f"cannot be read as {feature.kind}")


def _is_regular(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return not isinstance(value, list)
    return isinstance(value, list) and len(value) == shape[0] and all(_is_regular(item, shape[1:]) for item in value)


def box_names(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of the classes of boxes, as sources have them: numbers up to the largest, or names in order."""
    items = {item for value in values for item in _classes_of(value)}
    words = {item for item in items if isinstance(item, str)}
    if words:
        return tuple(sorted(words, key=sort_key(words)))
    numbers = [item for item in items if isinstance(item, int) and 0 <= item < MAX_CLASSES]
    return tuple(map(str, range(max(numbers) + 1))) if numbers else (ONLY_CLASS,)


def _classes_of(value: Any) -> list[Any]:
    try:
        _, classes = objects(value)
    except ValueError:
        return []
    return [item for item in classes or () if isinstance(item, str | int)]


def encode_objects(feature: Boxes, value: Any) -> tuple[bytes, int]:
    """Return boxes with their classes as a target, and the number of boxes without width or height, which it lacks."""
    if isinstance(value, Corners):
        boxes, classes = value.boxes, value.classes
    else:
        given, classes = objects(value)
        boxes = [corners(box) for box in given]
    numbers = [0] * len(boxes) if classes is None else [_class_number(feature, item) for item in classes]
    target, used = encode_boxes(feature, boxes, numbers)
    return target, len(boxes) - used


def _class_number(feature: ClassLabel | MultiLabel | Boxes, value: Any) -> int:
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        if value not in feature.numbers:
            raise ValueError(f"label {shown(value)} is not one of the {len(feature.names)} classes")
        return feature.numbers[value]
    if isinstance(value, float) or not hasattr(value, "__index__"):
        raise ValueError(f"must have a class name or number, got {shown(value)}")
    number = int(value)
    if not 0 <= number < len(feature.names):
        raise ValueError(f"label {number} is not one of the {len(feature.names)} classes")
    return number


def read_table(
    wanted: Sequence[Wanted], columns: Mapping[str, Sequence[str | None]], where: str
) -> tuple[TargetTable, dict[int, str], list[str]]:
    """Return the targets of images, why an image has none, by its row, and notes about what was found and dropped.

    Args:
        wanted: The targets.
        columns: The cells of each, in the order of the images; None for an image without a line.
        where: The file, for messages.

    Raises:
        SourceError: A kind is ambiguous, or a target has the name of a column of each cache.
    """
    try:
        check_names(each.name for each in wanted)
    except ValueError as error:
        raise SourceError(str(error)) from None
    features: dict[str, AnyFeature] = {}
    targets: dict[str, list[Target | None]] = {}
    reasons: dict[int, str] = {}
    notes: list[str] = []
    for name, kind in wanted:
        cells = columns[name]
        given = kind or infer_kind(name, (cell for cell in cells if cell is not None), where)
        try:
            features[name], targets[name], missing = read_column(name, given, cells)
        except ValueError as error:
            raise SourceError(f"column {name!r} of {where}: {error}") from None
        reasons = {**missing, **reasons}
        notes += _notes(features[name], targets[name], cells, where)
    for row, cells_of_row in enumerate(zip(*columns.values(), strict=True)):
        if None in cells_of_row:
            reasons[row] = f"it has no label in {where}"
    return TargetTable(features, targets), reasons, notes


def _notes(feature: AnyFeature, targets: Sequence[Target | None], cells: Sequence[str | None], where: str) -> list[str]:
    if not isinstance(feature, Boxes):
        return []
    used = sum(len(target) // BOX_BYTES for target in targets if isinstance(target, bytes))
    given = sum(
        len(objects(_json(cell))[0]) for cell, target in zip(cells, targets, strict=True) if cell and target is not None
    )
    return boxes_notes(feature, used, given - used, where)
