"""Uncompressed tars of images, in class folders or with WebDataset's label files."""

from __future__ import annotations

import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.source.label_members import LONGEST_LABEL, Label, Unusable, longest_label, read_member
from joulecache.pipelines.source.listing import LABEL_SUFFIXES, ImageListing, image_places
from joulecache.pipelines.source.naming import HIDDEN, key_problem, printable, sidecar_kind
from joulecache.pipelines.source.records import Archive, SourceError

_IRREGULAR = "not a regular file: a link, device or sparse file"


def list_tar(archive: Archive, prefix: str = "", target: str | None = None, keys: Sequence[str] = ()) -> ImageListing:
    """List the images of a tar and read its label files, but no images.

    Args:
        archive: The tar.
        prefix: Start of the keys.
        target: The key of the class in .json files.
        keys: Names of targets to read instead: keys of .json files, and txt for the texts of .txt files.

    Raises:
        SourceError: The tar is damaged or compressed, or has two images of the same name.
    """
    places: dict[str, tuple[int, int]] = {}  # by name: offset and size
    labels: dict[str, dict[str, Label]] = {suffix: {} for suffix in LONGEST_LABEL}
    beside: list[str] = []
    skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    refused: list[tuple[str, str]] = []
    try:
        with open_binary(archive.location) as data, tarfile.open(fileobj=data, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member in memory
                inside = PurePosixPath(member.name)
                name, suffix = inside.as_posix(), inside.suffix.lower()
                if member.isdir():
                    skipped[printable(name)] += Counter()  # it may be empty
                    continue
                reason = key_problem(member.name)
                if kind := sidecar_kind(inside):
                    skipped[printable(name).rpartition("/")[0]][kind] += 1
                    if reason or kind == HIDDEN:
                        continue
                    if suffix in LONGEST_LABEL:
                        _add_label(tar, member, name, labels[suffix], target, keys)
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
    sizes, offsets = [size for _, size in places.values()], [offset for offset, _ in places.values()]
    mtimes_ns = [archive.mtime_ns] * len(places)
    table = image_places(archive.location, sizes, mtimes_ns, offsets)
    return ImageListing(prefix, list(places), table, labels, beside, skipped, refused)


def _add_label(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    name: str,
    labels: dict[str, Label],
    target: str | None,
    keys: Sequence[str],
) -> None:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each name costs more
    suffix = suffix.lower()
    if stem in labels:
        labels[stem] = Unusable(f"its {suffix} file is in the tar twice")
    elif not member.isreg() or member.issparse():
        labels[stem] = Unusable(f"its {suffix} file is {_IRREGULAR}")
    else:
        stream = tar.extractfile(member)
        labels[stem] = read_member(
            suffix, stream.read(longest_label(suffix, keys) + 1) if stream else b"", target, keys
        )
