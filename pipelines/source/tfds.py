"""Datasets prepared by TensorFlow Datasets on this machine, read from its TFRecord files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.source.annotations import CATEGORY_KEYS, first_of
from joulecache.pipelines.source.columns import (
    BOXES,
    BYTES,
    FLOAT,
    IMAGE,
    INTEGER,
    LIST,
    MASK,
    BoxColumns,
    Column,
    choose_columns,
)
from joulecache.pipelines.source.config import SourceConfig
from joulecache.pipelines.source.records import Archive, Source, SourceError, local_archive
from joulecache.pipelines.source.rows import join_files
from joulecache.pipelines.source.splits import choose_splits, split_words
from joulecache.pipelines.source.tfrecord import list_tfrecord, with_content

TFDS = "tfds:"

_BOX = "bbox"


def open_tfds(text: str, config: SourceConfig) -> Source:
    """List a dataset: its splits of known names, or all splits if there are none.

    Args:
        text: ``tfds:NAME``; NAME may have a config and a version.
        config: Its `splits` are names of the dataset's splits. By default, the classes are those of the dataset's `supervised_keys`, of
            `label`, or of its only ClassLabel.

    Raises:
        SourceError: tensorflow-datasets is not installed, or the dataset is unknown, not prepared, or has no images with classes.
    """
    builder = _builder(text)
    splits = dict(builder.info.splits)
    if not splits:
        raise SourceError(
            f"{text!r} is not prepared in {builder.data_dir}: run "
            f"`python -c \"import tensorflow_datasets as t; t.builder('{text.removeprefix(TFDS)}').download_and_prepare()\"`"
        )
    kind = getattr(builder.info.file_format, "value", builder.info.file_format)
    if kind != "tfrecord":
        raise SourceError(f"{text!r} is stored as {kind}: prepare it with file_format='tfrecord'")
    supervised = [name for name in builder.info.supervised_keys or () if isinstance(name, str)]
    columns = sorted(_columns(builder.info.features), key=lambda column: column.name)
    choice = choose_columns([Archive(text, text, 0)], lambda _: columns, config, preferred=[*supervised[1:], "label"])
    split_of = _split_of({name: split.num_examples for name, split in splits.items()}, config)
    files, file_splits = [], []
    for name, split in split_of.items():
        for path in map(Path, splits[name].filepaths):
            listed = list_tfrecord(with_content(local_archive(path)), path.name, choice, columns)
            files.append(dataclasses.replace(listed, class_names=choice.target.class_names))
            file_splits.append(split)
    left_out = {name: split.num_examples for name, split in splits.items() if name not in split_of}
    source = join_files(text, files, choice, config.limit, file_splits)
    return dataclasses.replace(
        source,
        skipped=source.skipped + Counter({f"(split {name})": images for name, images in left_out.items()}),
        notes=(
            *(f"left out split {name!r}, {plural(images, 'image')}" for name, images in left_out.items()),
            *source.notes,
        ),
    )


def _split_of(counts: Mapping[str, int], config: SourceConfig) -> dict[str, str | None]:
    """Return the split, None without one, of each split of a dataset that is used."""
    if config.splits is None:
        known = split_words(counts)
        splits = choose_splits({name: counts[name] for name in known}) if "train" in known.values() else None
        return {**(splits or dict.fromkeys(known or counts))}
    missing = [name for name in config.splits.values() if name not in counts]
    if missing:
        raise SourceError(f"there is no split {missing[0]!r}: --splits must name some of {', '.join(counts)}")
    return {name: split for split, name in config.splits.items()}


def _columns(features: Any, prefix: str = "") -> Iterator[Column]:
    """Yield the features of a dataset as its TFRecords have them."""
    import tensorflow_datasets.core.features as kinds

    if not isinstance(features, kinds.FeaturesDict):
        return
    for name, feature in features.items():
        match feature:
            case kinds.FeaturesDict():
                yield from _columns(feature, f"{prefix}{name}/")
            case kinds.Sequence(feature=kinds.FeaturesDict() as items) if _BOX in items:
                yield _box_column(prefix + name, items)
            case kinds.Sequence(feature=kinds.ClassLabel() as label):
                yield Column(prefix + name, LIST, _names(label))
            case kinds.LabeledImage():
                yield Column(prefix + name, MASK, _names(feature))
            case kinds.Image():
                yield Column(prefix + name, IMAGE)
            case kinds.ClassLabel():
                yield Column(prefix + name, INTEGER, _names(feature))
            case kinds.Text():
                yield Column(prefix + name, BYTES)
            case kinds.Tensor() if feature.np_dtype.kind in "iuf":
                kind = FLOAT if feature.np_dtype.kind == "f" else INTEGER
                yield Column(prefix + name, LIST if feature.shape else kind)
            case _:
                yield Column(prefix + name, type(feature).__name__)


def _box_column(name: str, items: Any) -> Column:
    """Return the boxes in a sequence of features, as object detection has them."""
    classes = first_of(items, CATEGORY_KEYS)
    crowds = f"{name}/is_crowd" if "is_crowd" in items else None
    boxes = BoxColumns((f"{name}/{_BOX}",), f"{name}/{classes}" if classes else None, crowds)
    return Column(name, BOXES, _names(items[classes]) if classes else None, boxes)


def _names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a feature; None without."""
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def _builder(text: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise SourceError(f"{text!r} needs tensorflow-datasets: run `pip install 'joulecache[tfds]'`") from error
    try:
        return tensorflow_datasets.builder(text.removeprefix(TFDS))
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError, LookupError, OSError, AssertionError) as error:
        raise SourceError(f"cannot open {text!r}: {str(error).strip().splitlines()[0]}") from error
