"""Names: splits, formats and encodings, and the file names that a build gives to its data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

Format = Literal["arrow", "tfrecord"]
FORMATS: tuple[Format, ...] = ("arrow", "tfrecord")
Encoding = Literal["raw", "jpeg", "png"]
ENCODINGS: tuple[Encoding, ...] = ("raw", "jpeg", "png")
SPLITS = ("train", "val", "test")

_SHARD_NAME = re.compile(
    r"(?P<split>train|val|test)-v(?P<variant>\d{1,6})-(?P<shard>\d{5,8})-of-(?P<shards>\d{5,8})-(?P<hash>[0-9a-f]{8})"
    r"\.(?P<format>arrow|tfrecord)",
    re.ASCII,
)
_INDEX_NAME = re.compile(r"index-[0-9a-f]{8}\.arrow")
_REJECTED_NAME = re.compile(r"rejected-[0-9a-f]{8}\.jsonl")


@dataclass(frozen=True)
class ShardName:
    """The name of a shard file: ``train-v0-00003-of-00016-1a2b3c4d.arrow``.

    Attributes:
        split: The split that its records belong to.
        variant: The variant of its images.
        shard: Its number, from 0.
        shards: How many shards there are.
        hash: The first 8 hex digits of the SHA-256 of its content.
        format: Its format.
    """

    split: str
    variant: int
    shard: int
    shards: int
    hash: str
    format: Format

    def __str__(self) -> str:
        return f"{self.split}-v{self.variant}-{self.shard:05d}-of-{self.shards:05d}-{self.hash}.{self.format}"


def parse_shard_name(name: str) -> ShardName | None:
    """Parse the name of a shard file; None where it is not one."""
    match = _SHARD_NAME.fullmatch(name)
    if not match:
        return None
    split, variant, shard, shards, digest, kind = match.groups()
    parsed = ShardName(split, int(variant), int(shard), int(shards), digest, cast("Format", kind))
    return parsed if str(parsed) == name else None


def is_index(name: str) -> bool:
    """Return whether a file name is that of an index."""
    return _INDEX_NAME.fullmatch(name) is not None


def is_rejected(name: str) -> bool:
    """Return whether a file name is that of a list of rejected records."""
    return _REJECTED_NAME.fullmatch(name) is not None


def is_data_file(name: str) -> bool:
    """Return whether a file name is one that a build gives to its data: only such files are ever deleted."""
    return parse_shard_name(name) is not None or is_index(name) or is_rejected(name)
