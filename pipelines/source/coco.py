"""Boxes and keypoints in COCO's JSON files of instances (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.source.annotations import boxes_notes, corners, encode_boxes, encode_points, plural_boxes
from joulecache.pipelines.source.classes import Labelled
from joulecache.pipelines.source.documents import read_document
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import AnyFeature, TargetTable
from joulecache.pipelines.source.matching import keys_below, match_names
from joulecache.pipelines.source.patterns import matched_paths
from joulecache.pipelines.source.records import SourceError
from joulecache.pipelines.source.spatial import Boxes, Points

BOXES, KEYPOINTS = "boxes", "keypoints"
COCO_KINDS = {BOXES: "boxes", KEYPOINTS: "points"}
"""The targets of a COCO file, and their kinds."""

Object = Mapping[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class CocoFile:
    """A COCO file.

    Attributes:
        path: The file.
        images: File name of each image.
        categories: Name of each category, by its id, in the order of the ids.
        points: Number of keypoints of an annotation; 0 without.
        annotations: The annotations of each image, without crowds.
        crowds: Number of annotations of crowds.
        strays: Number of annotations of images that are not listed.
    """

    path: str
    images: Sequence[str]
    categories: Mapping[Any, str]
    points: int
    annotations: Sequence[Sequence[Object]]
    crowds: int
    strays: int


def read_coco(where: str | os.PathLike[str]) -> list[CocoFile]:
    """Read a COCO file, or those that a pattern matches; SourceError if one is missing or damaged, or they have different categories."""
    text = os.fspath(where)
    paths = [text] if is_remote(text) else [str(path) for path in matched_paths(text)]
    if not paths:
        raise SourceError(f"no COCO file at {text!r}: the pattern matches none")
    files = [_read(path) for path in paths]
    for file in files[1:]:
        if [*file.categories.items()] != [*files[0].categories.items()]:
            raise SourceError(f"{files[0].path!r} and {file.path!r} have different categories: use files with the same")
    return files


def _read(path: str) -> CocoFile:
    data = read_document("the COCO file", path)
    try:
        content = json.loads(data.decode("utf-8-sig"), object_hook=_without_polygons)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"cannot read the COCO file {path!r} as JSON in UTF-8: {error}") from error
    try:
        return _parsed(path, content)
    except ValueError as error:
        raise SourceError(f"cannot read the COCO file {path!r}: {error}") from None


def _without_polygons(parsed: dict[str, Any]) -> dict[str, Any]:
    parsed.pop("segmentation", None)  # most of a large file's memory
    return parsed


def _parsed(path: str, content: object) -> CocoFile:
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        there = list(content) if isinstance(content, dict) else content
        raise ValueError(f"it must have images, annotations and categories, got {shown(there)}")
    categories = _categories(content)
    places: dict[object, int] = {}
    images: list[str] = []
    for index, image in enumerate(_objects(content, "images")):
        name, number = image.get("file_name"), _id(image, "id", f"images[{index}]")
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"images[{index}] must have a file_name, got {shown(image)}")
        if places.setdefault(number, index) != index:
            raise ValueError(f"images[{index}] has the id {shown(number)} of images[{places[number]}]")
        images.append(name)
    annotations: list[list[Object]] = [[] for _ in images]
    crowds = strays = 0
    for index, annotation in enumerate(_objects(content, "annotations")):
        place = places.get(_id(annotation, "image_id", f"annotations[{index}]"))
        if place is None:
            strays += 1
        elif annotation.get("iscrowd"):
            crowds += 1
        else:
            annotations[place].append(annotation)
    points = _number_of_points(content, annotations)
    return CocoFile(path, images, categories, points, annotations, crowds, strays)


def _objects(content: Mapping[str, object], key: str) -> list[Object]:
    found = content.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{key} must be a list, got {shown(found)}")
    for index, each in enumerate(found):
        if not isinstance(each, dict):
            raise ValueError(f"{key}[{index}] must be an object, got {shown(each)}")
    return found


def _id(entry: Object, key: str, where: str) -> int | str:
    number = entry.get(key)
    if isinstance(number, float) and number.is_integer():  # as pandas writes columns with empty cells
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise ValueError(f"{where} must have {key}, a number or text, got {shown(number)}")
    return number


def _categories(content: Mapping[str, object]) -> dict[int | str, str]:
    """Return the names of the categories by id, ordered by id."""
    names: dict[int | str, str] = {}
    for index, category in enumerate(_objects(content, "categories")):
        name, number = category.get("name"), _id(category, "id", f"categories[{index}]")
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise ValueError(f"categories[{index}] must have a name, got {shown(category)}")
        if number in names:
            raise ValueError(f"categories[{index}] has the id {shown(number)} of another category")
        if name in names.values():
            raise ValueError(f"categories[{index}] has the name {shown(name)} of another category: rename one")
        names[number] = name
    if not names:
        raise ValueError("it has no categories")
    numbered = all(isinstance(number, int) for number in names)
    return {number: names[number] for number in sorted(names, key=None if numbered else str)}


def _number_of_points(content: Mapping[str, object], annotations: Sequence[Sequence[Object]]) -> int:
    declared = (category.get("keypoints") for category in _objects(content, "categories"))
    lists = (annotation.get("keypoints") for each in annotations for annotation in each)
    first = next((found for found in declared if isinstance(found, list) and found), None)
    if first is not None:
        return len(first)
    return len(next((found for found in lists if isinstance(found, list) and found), ())) // 3


# Targets --------------------------------------------------------------------------------------------------------------


def coco_targets(
    files: Sequence[CocoFile], keys: Sequence[str], root: Path | None, wanted: Collection[str]
) -> Labelled:
    """Return the targets of images by COCO files.

    Args:
        files: The files.
        keys: Keys of the images.
        root: The folder of the images; None if they are not in a local folder.
        wanted: Which of `COCO_KINDS`.

    Raises:
        SourceError: The files name no image of the source, or one twice, or a name may mean two; or there are no keypoints.
    """
    annotations: list[Sequence[Object] | None] = [None] * len(keys)
    unused: list[str] = []
    for file in files:
        matches = _match(file, keys, root)
        unused += [name for index, name in enumerate(file.images) if index not in matches]
        for index, row in matches.items():
            if annotations[row] is not None:
                raise SourceError(f"{file.path!r} lists {file.images[index]!r}, which another COCO file lists too")
            annotations[row] = file.annotations[index]
    where = ", ".join(file.path for file in files)
    if all(found is None for found in annotations):
        names = [name for file in files for name in file.images]
        there = f"names such as {names[0]!r}" if names else "none"
        raise SourceError(f"{where} names no image of the source: got {there}, expected names such as {min(keys)!r}")
    found = _Targets(files, wanted, where)
    columns: dict[str, list[Target | None]] = {name: [None] * len(keys) for name in found.features}
    reasons: dict[int, str] = {}
    for row, of_image in enumerate(annotations):
        try:
            if of_image is None:
                raise ValueError(f"it is not in {where}")
            for name, target in found.encode(of_image).items():
                columns[name][row] = target
        except ValueError as error:
            reasons[row] = str(error)
    return Labelled(
        [None if row in reasons else 0 for row in range(len(keys))],
        (),
        reasons,
        skipped=Counter({"(label of no image)": len(unused)} if unused else {}),
        notes=(*found.notes(), *_unused_notes(files, where, unused)),
        targets=TargetTable(found.features, columns),
    )


def _match(file: CocoFile, keys: Sequence[str], root: Path | None) -> Mapping[int, int]:
    """Return the row of each image of a file that the source has, by its index."""
    find_key = None if root is None or is_remote(file.path) else keys_below(root, Path(file.path).parent)
    found = match_names(file.images, keys, find_key)
    if found.either:
        index, *rows = found.either
        one, other = sorted(keys[row] for row in rows)
        raise SourceError(f"{file.images[index]!r} in {file.path!r} may be {one!r} or {other!r}: use longer paths")
    if found.twice:
        raise SourceError(f"{file.path!r} lists {file.images[found.twice[1]]!r} twice")
    return found.rows


def _unused_notes(files: Sequence[CocoFile], where: str, unused: Sequence[str]) -> list[str]:
    notes = []
    if unused:
        notes.append(
            f"{where} lists {plural(len(unused), 'image')} that the source does not have, such as {unused[0]!r}"
        )
    if strays := sum(file.strays for file in files):
        notes.append(f"dropped {plural(strays, 'annotation')} of images that {where} does not list")
    return notes


class _Targets:
    """Makes the targets of each image from its annotations, and counts them."""

    def __init__(self, files: Sequence[CocoFile], wanted: Collection[str], where: str) -> None:
        file = files[0]
        self._where, self._points = where, file.points
        self._numbers = {category: number for number, category in enumerate(file.categories)}
        self._counts: Counter[str] = Counter()
        self._crowds = sum(each.crowds for each in files)
        self._boxes = Boxes(tuple(file.categories.values()))
        self.features: dict[str, AnyFeature] = {}
        for name in wanted:
            if name == KEYPOINTS and not file.points:
                raise SourceError(f"{where} has no keypoints: drop --target {KEYPOINTS}")
            self.features[name] = self._boxes if name == BOXES else Points(file.points)

    def encode(self, annotations: Sequence[Object]) -> dict[str, Target]:
        """Return the targets of an image; ValueError if an annotation is malformed."""
        made = {BOXES: self._encode_boxes, KEYPOINTS: self._encode_points}
        return {name: made[name](annotations) for name in self.features}

    def notes(self) -> list[str]:
        """Return what was found and what was dropped."""
        notes = []
        if BOXES in self.features:
            notes += boxes_notes(self._boxes, self._counts["boxes"], self._counts["empty"], self._where)
            if self._crowds:
                notes.append(f"dropped {plural_boxes(self._crowds)} of crowds in {self._where} (iscrowd)")
        if KEYPOINTS in self.features:
            notes.append(f"{plural(self._points, 'keypoint')} of each image from {self._where}")
        return notes

    def _encode_boxes(self, annotations: Sequence[Object]) -> bytes:
        boxes, classes = [], []
        for annotation in annotations:
            try:
                boxes.append(corners(annotation.get("bbox")))
            except ValueError as error:
                raise ValueError(f"its boxes {error}") from None
            category = annotation.get("category_id")
            number = self._numbers.get(category) if isinstance(category, int | str | float) else None
            if number is None:
                raise ValueError(f"a box has category_id {shown(category)}, which {self._where} does not declare")
            classes.append(number)
        target, used = encode_boxes(self._boxes, boxes, classes)
        self._counts["boxes"] += used
        self._counts["empty"] += len(boxes) - used
        return target

    def _encode_points(self, annotations: Sequence[Object]) -> bytes:
        found = [
            each["keypoints"] for each in annotations if each.get("keypoints") and each.get("num_keypoints", 1) != 0
        ]
        if len(found) != 1:
            raise ValueError(f"it must have one annotation with keypoints in {self._where}, got {len(found)}")
        try:
            return encode_points(Points(self._points), found[0])
        except ValueError as error:
            raise ValueError(f"its keypoints {error}") from None
