"""The files of `cached`: one ``.npy`` file for each tensor of an element, and a manifest that lists them.

They are in ``elements/`` of the folder, which is filled as ``.fill-<random>/`` next to it and renamed when complete.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from numpy.lib import format as npy
from numpy.typing import NDArray

from joulecache.pipelines.cache.arrow_shards import PAGE
from joulecache.pipelines.cache.data_file import Sha256
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.codec import dumps, from_json, json_sha256, parse_json, to_json
from joulecache.pipelines.core.files import check_folder

FORMAT_VERSION = 1
ELEMENTS = "elements"
MANIFEST = "manifest.json"
WORK_FOLDER = re.compile(r"\.fill-[0-9a-f]{32}")
WORK_FILE = re.compile(r"component-\d{3,}(-[0-9a-f]{8})?\.npy|manifest\.json|\.[0-9a-f]{32}\.tmp")
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)

_LARGEST_MANIFEST = 1 << 24
_NAME_DIGITS = 8  # hex digits of a file's SHA-256 in its name
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name since 3.13


@dataclass(frozen=True)
class Component:
    """One tensor of every element: its `path`, such as ``element[0]['image']``, its dtype, one of `DTYPES`, and its shape."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path}: {self.dtype}{list(self.shape)}"

    @property
    def stored(self) -> np.dtype[Any]:
        """The dtype in the file: NumPy alone cannot load bfloat16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one element's tensor."""
        return math.prod(self.shape) * self.stored.itemsize

    def header(self, count: int) -> bytes:
        """Return the header of a ``.npy`` file of `count` rows, padded to a page: TensorFlow aborts on misaligned data."""
        fields = {"descr": npy.dtype_to_descr(self.stored), "fortran_order": False, "shape": (count, *self.shape)}
        start = npy.magic(1, 0) + (PAGE - npy.MAGIC_LEN - 2).to_bytes(2, "little")
        return start + repr(fields).encode().ljust(PAGE - len(start) - 1) + b"\n"


@dataclass(frozen=True)
class ElementFile:
    """The file of a component: its name, which contains the first 8 hex digits of the SHA-256, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: Sha256


@dataclass(frozen=True)
class ElementManifest:
    """The manifest of a folder of elements.

    Attributes:
        format_version: Version of the format.
        elements: The components as text.
        fingerprint: The one given to `cached`.
        count: Number of elements.
        files: The file of each component.
    """

    format_version: int
    elements: tuple[str, ...]
    fingerprint: str
    count: Annotated[int, Ge(0), Lt(2**53)]
    files: tuple[ElementFile, ...]


def make_manifest(
    components: Sequence[Component], fingerprint: str, count: int, hashes: Sequence[str]
) -> ElementManifest:
    """Return the manifest of `count` elements, by the SHA-256 of each component's file."""
    files = tuple(
        ElementFile(f"component-{number:03d}-{sha256[:_NAME_DIGITS]}.npy", PAGE + count * component.row_bytes, sha256)
        for number, (component, sha256) in enumerate(zip(components, hashes, strict=True))
    )
    return ElementManifest(FORMAT_VERSION, tuple(map(str, components)), fingerprint, count, files)


def manifest_bytes(manifest: ElementManifest) -> bytes:
    """Return the content of a manifest's file, with a digest of the rest."""
    body = to_json(manifest)
    return dumps({**body, "digest": json_sha256(body)}, indent=1).encode()


def is_filled(folder: Path) -> bool:
    """Return True if a folder holds elements and False if it may be filled; raise CacheError for any other."""
    check_folder(folder, "filled by cached()", _may_use, CacheError)
    return os.path.lexists(folder / ELEMENTS)


def _may_use(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return ELEMENTS in names or all(map(WORK_FOLDER.fullmatch, names))


def map_elements(
    folder: Path, components: Sequence[Component], fingerprint: str
) -> tuple[int, list[NDArray[np.generic]]]:
    """Map the elements of a folder; return their number, and an array ``[count, *shape]`` for each component.

    Nothing in the folder is trusted: apart from the number of elements and the hashes, the manifest must equal the one made
    from the components.

    Raises:
        CacheError: The folder holds other elements, or is damaged.
    """
    path = folder / ELEMENTS / MANIFEST
    remedy = f"use another folder, or delete {str(folder)!r} to fill it again"
    manifest = _read_manifest(path, remedy)
    for name, found, expected in (
        ("elements", list(manifest.elements), list(map(str, components))),
        ("fingerprint", manifest.fingerprint, fingerprint),
    ):
        if found != expected:
            raise CacheError(
                f"{str(folder)!r} was filled with {name} {shown(found)}, but this dataset has {shown(expected)}: {remedy}"
            )
    hashes = [file.sha256 for file in manifest.files]
    if len(hashes) != len(components) or manifest != make_manifest(components, fingerprint, manifest.count, hashes):
        raise CacheError(f"{path} does not list the files of this dataset's elements: {remedy}")
    paths = [path.parent / file.name for file in manifest.files]
    return manifest.count, [_map(*each, manifest.count, remedy) for each in zip(paths, components, strict=True)]


def _read_manifest(path: Path, remedy: str) -> ElementManifest:
    if not path.is_file():
        raise CacheError(f"{path} is missing: {remedy}")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise CacheError(
            f"{path} has {path.stat().st_size} bytes, but a manifest has at most {_LARGEST_MANIFEST}: {remedy}"
        )
    try:
        body = parse_json(path.read_bytes())
        if not isinstance(body, dict):
            raise ValueError(f"a manifest is a JSON object, got {shown(body)}")
        if (version := body.get("format_version")) != FORMAT_VERSION:
            raise ValueError(f"format version {shown(version)}, this joulecache reads {FORMAT_VERSION}: upgrade it")
        if body.pop("digest", None) != json_sha256(body):
            raise ValueError("it does not match its own digest: it was edited or damaged")
        return from_json(ElementManifest, body)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path}: {error}: {remedy}") from error


def _map(path: Path, component: Component, count: int, remedy: str) -> NDArray[np.generic]:
    """Map the rows of a file; raise CacheError unless it is exactly the file of the component."""
    size = PAGE + count * component.row_bytes
    try:
        actual = path.stat().st_size
        if actual != size:
            raise CacheError(
                f"{path} has {actual} bytes, not the {size} of its manifest: it was truncated or changed, {remedy}"
            )
        with open(path, "rb") as file:
            if file.read(PAGE) != component.header(count):
                raise CacheError(f"{path} does not hold {count} rows of {component}: it was changed, {remedy}")
            # TensorFlow copies read-only memory, so the mapping is writable, but private: writes never reach the file. Without
            # NORESERVE, the kernel counts all of it as used memory, and refuses a file larger than the machine's memory.
            access = mmap.PROT_READ | mmap.PROT_WRITE
            mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=access)
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing: {remedy}") from error
    return np.ndarray((count, *component.shape), component.stored, mapped, PAGE)
