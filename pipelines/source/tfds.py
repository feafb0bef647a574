"""Datasets prepared by TensorFlow Datasets on this machine, read from its TFRecord files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from joulecache.pipelines.source.naming import as_split, as_splits
from joulecache.pipelines.source.records import Source, SourceError, local_archive
from joulecache.pipelines.source.rows import join_files
from joulecache.pipelines.source.tfrecord import list_tfrecord

TFDS = "tfds:"


def open_tfds(text: str, limit: int | None) -> Source:
    """List a dataset: its splits named train, val and test, or all splits if there are no such names.

    Args:
        text: ``tfds:NAME``; NAME may have a config and a version.
        limit: Maximum number of records.

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
    features = dict(getattr(builder.info.features, "items", dict)())
    names = getattr(features.get("label"), "names", None)
    if names is None or "image" not in features:
        raise SourceError(
            f"{text!r} must have an image and a ClassLabel named label, got {', '.join(sorted(features))}"
        )
    used = [name for name in splits if as_split(name)] or list(splits)
    files, file_splits = [], []
    for name, split in zip(used, as_splits(used) or [None] * len(used), strict=True):
        for path in map(Path, splits[name].filepaths):
            files.append(dataclasses.replace(list_tfrecord(local_archive(path), path.name), class_names=tuple(names)))
            file_splits.append(split)
    left_out = Counter({f"(split {name})": splits[name].num_examples for name in splits if name not in used})
    return dataclasses.replace(join_files(text, files, limit, file_splits), skipped=left_out)


def _builder(text: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise SourceError(f"{text!r} needs tensorflow-datasets: run `pip install 'joulecache[tfds]'`") from error
    try:
        return tensorflow_datasets.builder(text.removeprefix(TFDS))
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError, LookupError, OSError, AssertionError) as error:
        raise SourceError(f"cannot open {text!r}: {str(error).strip().splitlines()[0]}") from error
