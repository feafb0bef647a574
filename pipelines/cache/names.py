"""Names: splits, formats and encodings, and the file names that a build gives to its data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from joulecache.pipelines.source.config import SOURCE_SPLITS

Format = Literal["arrow", "tfrecord"]
FORMATS: tuple[Format, ...] = get_args(Format)
Encoding = Literal["raw", "jpeg", "png"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
SPLITS = SOURCE_SPLITS
MAX_DRAW = 999_999

_SHARD_NAME = re.compile(
    r"(?P<split>train|val|test)-v(?P<draw>\d{1,6})-(?P<shard>\d{5,8})-of-(?P<shards>\d{5,8})-(?P<hash>[0-9a-f]{8})"
    r"\.(?P<format>arrow|tfrecord)",
    re.ASCII,
)
_INDEX_NAME = re.compile(r"index-[0-9a-f]{8}\.arrow")
_REJECTED_NAME = re.compile(r"rejected-[0-9a-f]{8}\.jsonl")


@dataclass(frozen=True)
class ShardName:
    """The name of a shard file, such as ``train-v0-00003-of-00016-1a2b3c4d.arrow``.

    It ends in the first 8 hex digits of the SHA-256 of the content; `draw` is the draw of the cached ops, `shards` the
    number of shards.
    """

    split: str
    draw: int
    shard: int
    shards: int
    hash: str
    format: Format

    def __str__(self) -> str:
        return f"{self.split}-v{self.draw}-{self.shard:05d}-of-{self.shards:05d}-{self.hash}.{self.format}"


def parse_shard_name(name: str) -> ShardName | None:
    """Parse the name of a shard file; return None for another name."""
    match = _SHARD_NAME.fullmatch(name)
    if not match:
        return None
    split, draw, shard, shards, digest, kind = match.groups()
    parsed = ShardName(split, int(draw), int(shard), int(shards), digest, cast("Format", kind))
    return parsed if str(parsed) == name else None


def is_index(name: str) -> bool:
    """Return whether a file name is that of an index."""
    return _INDEX_NAME.fullmatch(name) is not None


def is_rejected(name: str) -> bool:
    """Return whether a file name is that of a list of rejected records."""
    return _REJECTED_NAME.fullmatch(name) is not None


def is_data_file(name: str) -> bool:
    """Return whether a build gave a file its name: only such files are ever deleted."""
    return parse_shard_name(name) is not None or is_index(name) or is_rejected(name)
