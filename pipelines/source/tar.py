"""Uncompressed tars of images, in class folders or with WebDataset's label files."""

from __future__ import annotations

import functools
import os
import tarfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.core.progress import Tally
from joulecache.pipelines.source.label_members import LONGEST_LABEL, Label, Unusable, longest_label, read_member
from joulecache.pipelines.source.listing import FILES_AT_ONCE, LABEL_SUFFIXES, ImageListing, image_places
from joulecache.pipelines.source.names import NamesBuilder, first_duplicate
from joulecache.pipelines.source.naming import (
    HIDDEN,
    NOT_UTF8,
    is_hidden_path,
    is_utf8,
    key_problem,
    printable,
    skipped_kind,
)
from joulecache.pipelines.source.records import Archive, SourceError

_REGULAR = tarfile.REGTYPE[0]
_IRREGULAR = "not a regular file: a link, device or sparse file"


class _Member(tarfile.TarInfo):
    """A member of a tar, of which only what a listing needs is read from an ordinary header: tarfile reads eight fields more."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Read a header: name, size, checksum and type of a regular file, else all of it."""
        if len(buf) == tarfile.BLOCKSIZE and buf[156] == _REGULAR:
            try:
                checksum, size = (int(buf[start:end].partition(b"\0")[0], 8) for start, end in ((148, 156), (124, 136)))
            except ValueError:  # a large size in base 256, or damage
                checksum = -1
            if checksum == sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
                member = cls(bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors))
                if prefix := bytes(buf[345:500]).partition(b"\0")[0]:
                    member.name = f"{prefix.decode(encoding, errors)}/{member.name}"
                member.size, member.chksum, member.type = size, checksum, tarfile.REGTYPE
                return member
        return super().frombuf(buf, encoding, errors)


@functools.lru_cache(maxsize=1024)
def _in_folder(path: str) -> tuple[str, str | None, bool]:
    """Return the start of the names in a folder, why these cannot be keys, and whether they are hidden."""
    inside = PurePosixPath(path)
    start = "" if inside == PurePosixPath() else f"{inside.as_posix().rstrip('/')}/"
    return start, key_problem(path), is_hidden_path(inside)


def _split(name: str) -> tuple[str, str | None, str | None]:
    """Return a member's name without redundant parts, why it cannot be a key, and the kind under which it is skipped."""
    path, slash, file = name.rpartition("/")
    if file in ("", ".", ".."):
        inside = PurePosixPath(name)
        return (
            inside.as_posix(),
            key_problem(name),
            HIDDEN if is_hidden_path(inside.parent) else skipped_kind(inside.name),
        )
    start, problem, is_hidden = _in_folder(path + slash)
    return start + file, problem if is_utf8(file) else NOT_UTF8, HIDDEN if is_hidden else skipped_kind(file)


def list_tar(
    archive: Archive,
    prefix: str = "",
    target: str | None = None,
    keys: Sequence[str] = (),
    members: Tally | None = None,
) -> ImageListing:
    """List the images of a tar and read its label files, but no images.

    Args:
        archive: The tar.
        prefix: Start of the keys.
        target: The key of the class in .json files.
        keys: Names of targets to read instead: keys of .json files, and txt for the texts of .txt files.
        members: Counts its members.

    Raises:
        SourceError: The tar is damaged or compressed, or has two images of the same name.
    """
    found = NamesBuilder()
    offsets, sizes = array("q"), array("q")
    labels: dict[str, dict[str, Label]] = {suffix: {} for suffix in LONGEST_LABEL}
    beside: list[str] = []
    skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    refused: list[tuple[str, str]] = []
    try:
        with open_binary(archive.location) as data, tarfile.open(fileobj=data, mode="r:", tarinfo=_Member) as tar:
            headers: Iterator[tarfile.TarInfo] = iter(tar.next, None)
            for member in members.counted(headers, FILES_AT_ONCE) if members else headers:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member in memory
                name, reason, kind = _split(member.name)
                if member.isdir():
                    skipped[printable(name)] += Counter()  # it may be empty
                    continue
                if kind:
                    suffix = PurePosixPath(name).suffix.lower()
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
                else:
                    found.append(name)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
            data.seek(tar.offset)
            if data.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end mark after its members")  # tarfile itself accepts this
    except (tarfile.TarError, OverflowError) as error:  # the latter for a size that no file has
        raise SourceError(
            f"cannot read {archive.name!r} as an uncompressed tar ({error}): decompress it, or copy it again if it was truncated"
        ) from error
    names = found.build()
    if twice := first_duplicate(names):
        raise SourceError(f"{archive.name!r} has {twice!r} twice: keys must be unique")
    table = image_places(archive.location, sizes, np.full(len(names), archive.mtime_ns), offsets)
    return ImageListing(prefix, names, table, labels, beside, skipped, refused)


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
