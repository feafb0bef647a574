"""Uncompressed tars of images, in class folders or with WebDataset's label files beside them."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.source.label_members import LONGEST_LABEL, Label, Unusable, read_member, sample_names
from joulecache.pipelines.source.listing import LABEL_SUFFIXES, ImageListing, image_places
from joulecache.pipelines.source.naming import is_hidden, is_sidecar, key_problem, printable
from joulecache.pipelines.source.records import Archive, SourceError

_IRREGULAR = "not a regular file: a link, device or sparse file"
_MASKS = (".mask.png", ".seg.png")


def list_tar(archive: Archive, prefix: str = "", target: str | None = None) -> ImageListing:
    """List the images of a tar and read its label files, but no images.

    Args:
        archive: The tar.
        prefix: Start of the keys.
        target: The key of the class in .json files.

    Raises:
        SourceError: The tar is damaged or compressed, or has two images of the same name.
    """
    places: dict[str, tuple[int, int]] = {}  # by name: offset and size
    labels: dict[str, dict[str, Label]] = {suffix: {} for suffix in LONGEST_LABEL}
    beside: list[str] = []
    skipped: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    try:
        with open_binary(archive.location) as data, tarfile.open(fileobj=data, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member in memory
                inside = PurePosixPath(member.name)
                name, suffix = inside.as_posix(), inside.suffix.lower()
                if member.isdir():
                    continue
                reason = key_problem(member.name)
                if is_sidecar(inside):
                    skipped[suffix or inside.name] += 1
                    if reason or is_hidden(inside):
                        continue
                    if suffix in LONGEST_LABEL:
                        _add_label(tar, member, name, labels[suffix], target)
                    elif suffix in LABEL_SUFFIXES:
                        beside.append(name)
                elif reason:
                    refused.append((prefix + printable(member.name), reason))
                elif not member.isreg() or member.issparse():
                    refused.append((prefix + member.name, _IRREGULAR))
                elif name in places:
                    raise SourceError(f"{archive.name!r} has {name!r} twice: keys must be unique")
                else:
                    places[name] = member.offset_data, member.size
            data.seek(tar.offset)
            if data.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end mark after its members")  # tarfile itself accepts this
    except tarfile.TarError as error:
        raise SourceError(
            f"cannot read {archive.name!r} as an uncompressed tar ({error}): decompress it, or copy it again if it was truncated"
        ) from error
    for mask in _masks(places):
        del places[mask]
        skipped["(mask)"] += 1
    sizes, offsets = [size for _, size in places.values()], [offset for offset, _ in places.values()]
    mtimes_ns = [archive.mtime_ns] * len(places)
    table = image_places(archive.location, sizes, mtimes_ns, offsets)
    return ImageListing(prefix, list(places), table, labels, beside, skipped, refused)


def _add_label(
    tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, labels: dict[str, Label], target: str | None
) -> None:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each name costs more
    suffix = suffix.lower()
    if stem in labels:
        labels[stem] = Unusable(f"its {suffix} file is in the tar twice")
    elif not member.isreg() or member.issparse():
        labels[stem] = Unusable(f"its {suffix} file is {_IRREGULAR}")
    else:
        stream = tar.extractfile(member)
        labels[stem] = read_member(suffix, stream.read(LONGEST_LABEL[suffix] + 1) if stream else b"", target)


def _masks(names: Iterable[str]) -> list[str]:
    """Return the images that WebDataset names as masks of other images: ``0.seg.png`` of ``0.jpg``."""
    masks = [name for name in names if name.lower().endswith(_MASKS)]
    if not masks:
        return []
    others = {stem for name in names if name not in masks for stem in sample_names(name)}
    return [name for name in masks if name[: name.lower().rindex(".", 0, -4)] in others]
