"""Uncompressed tars of images: class folders, or WebDataset's ``key.jpg`` with ``key.cls`` beside it."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import PurePosixPath

from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.source.images import CLASS_SUFFIX, Images, places_of, sample_of
from joulecache.pipelines.source.naming import is_sidecar, printable, unfit
from joulecache.pipelines.source.records import Archive, SourceError

_LONGEST_CLASS = 64  # bytes


def list_tar(archive: Archive, prefix: str = "") -> Images:
    """List the images of a tar, without reading them; their keys begin with `prefix`.

    Raises SourceError for a damaged or compressed tar, and for a name that stands in it twice.
    """
    places: dict[str, tuple[int, int]] = {}  # by name: offset and size
    classes: dict[str, bytes] = {}
    skipped: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    try:
        with open_binary(archive.location) as data, tarfile.open(fileobj=data, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps an object for every one
                inside = PurePosixPath(member.name)
                stem = sample_of(inside.as_posix())
                is_class = inside.as_posix() == stem + CLASS_SUFFIX and bool(inside.stem)
                if member.isdir():
                    continue
                if is_sidecar(inside) and not is_class:
                    skipped[inside.suffix.lower() or inside.name] += 1
                elif reason := unfit(member.name):
                    refused.append((prefix + printable(member.name), reason))
                elif not member.isreg() or member.issparse():
                    refused.append((prefix + member.name, "a link, device or sparse file, not a plain one"))
                elif is_class:
                    _refuse_twice(archive, inside.as_posix(), stem in classes)
                    stream = tar.extractfile(member)
                    classes[stem] = stream.read(_LONGEST_CLASS) if stream else b""
                else:
                    _refuse_twice(archive, inside.as_posix(), inside.as_posix() in places)
                    places[inside.as_posix()] = member.offset_data, member.size
            data.seek(tar.offset)
            if data.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end mark where its members end")  # tarfile itself would stop in silence
    except tarfile.TarError as error:
        raise SourceError(
            f"cannot read {archive.name!r} as an uncompressed tar ({error}): decompress it if it is compressed, "
            f"so that members can be read at random; copy it again if it is cut short"
        ) from error
    sizes, offsets = [size for _, size in places.values()], [offset for offset, _ in places.values()]
    mtimes_ns = [archive.mtime_ns] * len(places)
    where = places_of(archive.location, sizes, mtimes_ns, offsets)
    return Images(prefix, list(places), where, classes, skipped, refused)


def _refuse_twice(archive: Archive, name: str, there: bool) -> None:
    if there:
        raise SourceError(f"{archive.name!r} holds {name!r} twice: a key must be unique")
