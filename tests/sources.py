"""Helpers that look into sources."""

from __future__ import annotations

import io
import tarfile

from joulecache.pipelines.source import Record, Source


def records(source: Source) -> list[Record]:
    """Read all records, in the order of the units."""
    return [record for unit in source.units for record in unit.read()]


def labels(source: Source) -> dict[str, str]:
    """Return {key: class name}."""
    return {record.key: source.class_names[record.label] for record in records(source)}


def splits(source: Source) -> dict[str, str | None]:
    """Return {key: split}."""
    return {key: unit.split for unit in source.units for key in unit.record_keys()}


def add(tar: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "") -> None:
    """Add a member to a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(data), link
    tar.addfile(member, io.BytesIO(data))
