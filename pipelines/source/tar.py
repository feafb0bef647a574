"""Uncompressed tars of images in class folders, or of WebDataset's pairs ``key.jpg`` and ``key.cls``."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import PurePosixPath

from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.source.images import CLASS_SUFFIX, ImageListing, image_places, sample_of
from joulecache.pipelines.source.naming import is_sidecar, key_problem, printable
from joulecache.pipelines.source.records import Archive, SourceError

_LONGEST_CLASS = 64  # bytes


def list_tar(archive: Archive, prefix: str = "") -> ImageListing:
    """List the images of a tar without reading them; SourceError if it is damaged or compressed, or has a duplicate name."""
    places: dict[str, tuple[int, int]] = {}  # by name: offset and size
    classes: dict[str, bytes] = {}
    skipped: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    try:
        with open_binary(archive.location) as data, tarfile.open(fileobj=data, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member in memory
                inside = PurePosixPath(member.name)
                stem = sample_of(inside.as_posix())
                is_class = inside.as_posix() == stem + CLASS_SUFFIX and bool(inside.stem)
                if member.isdir():
                    continue
                if is_sidecar(inside) and not is_class:
                    skipped[inside.suffix.lower() or inside.name] += 1
                elif reason := key_problem(member.name):
                    refused.append((prefix + printable(member.name), reason))
                elif not member.isreg() or member.issparse():
                    refused.append((prefix + member.name, "not a regular file: a link, device or sparse file"))
                elif is_class:
                    _refuse_twice(archive, inside.as_posix(), stem in classes)
                    stream = tar.extractfile(member)
                    classes[stem] = stream.read(_LONGEST_CLASS) if stream else b""
                else:
                    _refuse_twice(archive, inside.as_posix(), inside.as_posix() in places)
                    places[inside.as_posix()] = member.offset_data, member.size
            data.seek(tar.offset)
            if data.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end mark after its members")  # tarfile itself accepts this
    except tarfile.TarError as error:
        raise SourceError(
            f"cannot read {archive.name!r} as an uncompressed tar ({error}): decompress it, or copy it again if it was truncated"
        ) from error
    sizes, offsets = [size for _, size in places.values()], [offset for offset, _ in places.values()]
    mtimes_ns = [archive.mtime_ns] * len(places)
    table = image_places(archive.location, sizes, mtimes_ns, offsets)
    return ImageListing(prefix, list(places), table, classes, skipped, refused)


def _refuse_twice(archive: Archive, name: str, is_known: bool) -> None:
    if is_known:
        raise SourceError(f"{archive.name!r} has {name!r} twice: keys must be unique")
