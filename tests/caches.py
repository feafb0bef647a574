"""Helpers that build and inspect caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.manifest import MANIFEST, Manifest
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.cache.shards import map_images, read_encoded
from joulecache.transforms import Decode
from joulecache.transforms.images import as_array

Pixels = NDArray[np.uint8]

CHAIN = "decode|resize(40)|random_crop(32) || flip_lr"
OPTIONS: dict[str, Any] = {"chain": CHAIN, "variants": 2, "shards": 4, "val_fraction": 0.3, "seed": 3}
"""How `photo_cache` was built."""


def build(source: str | Path, cache: Path, chain: Any = CHAIN, **options: Any) -> Manifest:
    """Build a cache; return its manifest."""
    return precompute(source, cache, chain, **options).manifest


def hashes(manifest: Manifest) -> dict[str, str]:
    """Return the files of a cache, as {name: SHA-256}."""
    return {file.name: file.sha256 for file in manifest.files()}


def shard_hashes(manifest: Manifest) -> dict[str, str]:
    """Return the shards of a cache, as {name: SHA-256}: index and rejects have the modification times of the source."""
    return {name: digest for name, digest in hashes(manifest).items() if name.startswith(SPLITS)}


def names_in(folder: Path) -> set[str]:
    """Return the names of a folder's entries."""
    return {path.name for path in folder.iterdir()}


def is_clean(cache: Path) -> bool:
    """Return whether a cache folder holds the files of its manifest, and nothing else."""
    return names_in(cache) == {*hashes(open_manifest(cache)), MANIFEST}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder, with the bytes of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def times(folder: Path) -> dict[str, int]:
    """Return the modification times of a folder's entries."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def index_of(cache: Path) -> list[dict[str, Any]]:
    """Return the rows of a cache's index."""
    rows: list[dict[str, Any]] = read_index(cache, open_manifest(cache)).to_pylist()
    return rows


def keys_of(cache: Path, split: str) -> list[str]:
    """Return the keys of a split, in the order of the index."""
    return [row["key"] for row in index_of(cache) if row["split"] == SPLITS.index(split)]


def rejects_of(cache: Path) -> list[dict[str, Any]]:
    """Return the rejected records."""
    lines = (cache / open_manifest(cache).rejected.name).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def cached_images(cache: Path, split: str, variant: int) -> list[Pixels]:
    """Return the images that a cache holds, decoded, in the order of the index."""
    manifest = open_manifest(cache)
    listed = manifest.split(split)
    found: list[Pixels] = []
    for file in listed.variant_files(variant):
        if manifest.encoding == "raw":
            height, width, channels = listed.image_shape
            assert height is not None
            assert width is not None
            found += list(map_images(cache / file.name, file, (height, width, channels)))
        else:
            decode = Decode(channels=listed.image_shape[2])
            for image in read_encoded(cache / file.name, file):
                found.append(as_array(decode.pixels(bytes(image))))
    return found
