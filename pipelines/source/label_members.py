"""Label files in a tar of images: WebDataset's `.cls`, `.json` and `.txt` members."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.quantities import listed
from joulecache.pipelines.source.classes import CLASS_KEYS, ClassValue, Labelled, called, class_value
from joulecache.pipelines.source.targets import cell_text

LONGEST_LABEL = {".cls": 1024, ".json": 1 << 20, ".txt": 1024}
"""The suffixes of files with the label of an image, and their largest sizes in bytes. The first kind that a source has is read."""

TEXT_KEY = "txt"
"""The name of a target that is the whole content of .txt files, such as captions."""


@dataclass(frozen=True)
class Unusable:
    """Why a label file has no class."""

    reason: str


Cells = tuple[str, ...]
"""What a .json file has under the keys of targets, as the cells of a table."""

Label = ClassValue | Unusable | Cells
"""What a label file has."""

MemberLabels = Mapping[str, Mapping[str, Label]]
"""The content of label files by suffix and by name without it."""


def longest_label(suffix: str, keys: Sequence[str]) -> int:
    """Return the largest size of a label file in bytes; texts that are targets may be as long as .json files."""
    return LONGEST_LABEL[".json" if suffix == ".txt" and TEXT_KEY in keys else suffix]


def read_member(suffix: str, data: bytes, target: str | None, keys: Sequence[str] = ()) -> Label:
    """Return the class in a label file.

    Args:
        suffix: Its suffix, a key of `LONGEST_LABEL`.
        data: Its content. At most one byte more than the largest size is needed.
        target: The key of the class in a .json file. Default: the only conventional one.
        keys: Names of targets, to read instead: keys of a .json file, or `TEXT_KEY` for a .txt file.
    """
    try:
        if len(data) > longest_label(suffix, keys):
            raise ValueError(f"must have at most {longest_label(suffix, keys):,} bytes")
        text = data.decode("utf-8-sig")
        if suffix == ".txt" and TEXT_KEY in keys:
            return (text.strip(),)
        if suffix == ".json" and (members := [key for key in keys if key != TEXT_KEY]):
            return _json_cells(text, members)
        value = class_value(_json_text(text, target) if suffix == ".json" else text)
        return sys.intern(value) if isinstance(value, str) else value  # of many images of a class
    except UnicodeDecodeError:
        return Unusable(f"its {suffix} file must be UTF-8, got {shown(data)}")
    except ValueError as error:
        return Unusable(f"its {suffix} file {error}")


def _json_cells(text: str, keys: Sequence[str]) -> Cells:
    content = _parsed(text)
    if not isinstance(content, dict):
        raise ValueError(f"must have an object, got {shown(content)}")
    cells = [cell_text(content.get(key)) for key in keys]
    for key, cell in zip(keys, cells, strict=True):
        if cell == "":
            raise ValueError(f"must have a value for {key!r}, got {shown(content)}")
    return tuple(cells)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None


def _json_text(text: str, target: str | None) -> str:
    content = _parsed(text)
    keys: dict[str, object] = content if isinstance(content, dict) else {}
    known = called(keys, CLASS_KEYS) if target is None else [target] if target in keys else []
    if len(known) > 1:
        raise ValueError(f"has the keys {listed(list(map(repr, known)))}: name one with --target")
    if not known:
        wanted = f"a key {', '.join(CLASS_KEYS[:-1])} or {CLASS_KEYS[-1]}" if target is None else f"the key {target!r}"
        raise ValueError(f"must have {wanted}, got {shown(list(keys) or content)}")
    value = keys[known[0]]
    if isinstance(value, bool | int | float | str):
        return str(value)
    raise ValueError(f"must have a class name or number for {known[0]!r}, got {shown(value)}")


def member_labels(suffix: str, found: Sequence[ClassValue | Unusable | None]) -> Labelled:
    """Return the classes of images by what their label files have, None for an image without one.

    Where most files have numbers, the classes are those up to the largest, and names are refused; else the reverse.
    """
    numbers = [value for value in found if isinstance(value, int)]
    words = [value for value in found if isinstance(value, str)]
    index_of: dict[ClassValue, int]
    if len(numbers) >= len(words):
        index_of = {number: number for number in range(max(numbers, default=-1) + 1)}
        expected = "a number"
    else:
        index_of = {name: label for label, name in enumerate(sorted(set(words)))}
        expected = "a name"
    reasons: dict[int, str] = {}
    labels: list[int | None] = []
    for row, value in enumerate(found):
        label = None
        if value is None:
            reasons[row] = f"it has no {suffix} file"
        elif isinstance(value, Unusable):
            reasons[row] = value.reason
        elif (label := index_of.get(value)) is None:
            reasons[row] = f"its {suffix} file must have {expected} as most others have, got {shown(value)}"
        labels.append(label)
    return Labelled(labels, tuple(map(str, index_of)), reasons)


def sample_names(name: str) -> Iterator[str]:
    """Yield the names without suffix that a label file of an image may have: up to each dot of the file name, the last dot first."""
    folder, slash, file = name.rpartition("/")
    while "." in file:
        file = file.rpartition(".")[0]
        if file:
            yield folder + slash + file
