"""The arguments of a build, and the errors it raises. The command line shows the `Attributes:` of `BuildConfig` as help."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from joulecache.pipelines.cache.names import ENCODINGS, FORMATS, MAX_DRAW, Encoding, Format
from joulecache.pipelines.core.checks import check_choice, check_flag, check_integer, check_number
from joulecache.pipelines.source.config import SourceConfig
from joulecache.transforms.chain import Chain, fixed_size, output_channels

DEFAULT_JPEG_QUALITY = 95
DEFAULT_VAL_FRACTION = 0.1
MAX_SHARDS = 99_999
LARGE_SHARD_BYTES, SMALL_SHARD_BYTES, ENOUGH_SHARDS = 64 << 20, 4 << 20, 16
MANY_SHARDS = 8_000  # where a loader maps all files, and Linux allows 65,530 maps
ENCODED_SHARD_BYTES = 1 << 30  # Arrow's offsets end at 2 GiB, and sizes are estimated


class BuildError(RuntimeError):
    """A build failed. The cache is unchanged."""


class EngineError(BuildError):
    """The Beam runner failed or could not be reached. Finished shards are kept, and the next build resumes."""


class RejectsError(BuildError):
    """Too many records were rejected. Finished shards are kept, for a build that accepts more rejects."""


@dataclass(frozen=True)
class ShardConfig:
    """The options that determine the bytes of a cache, sent to workers with every shard.

    Attributes:
        chain: The chain of training records.
        val_chain: The chain of held-out records.
        variants: Number of draws of the cached ops to store for each training record. Held-out records have one.
        format: Shard format.
        encoding: Encoding of the stored images.
        quality: JPEG quality, 1 to 100; None for other encodings.
        val_fraction: Fraction of records to hold out; None if the source has a validation split.
        seed: Seed of all draws, 0 to 2**64 - 1.
        first_draw: The draw of the first variant of training records. The others are the draws that follow.

    Raises:
        ValueError: A field is out of range, or fields contradict each other.
    """

    chain: Chain
    val_chain: Chain
    variants: int = 1
    format: Format = "arrow"
    encoding: Encoding = "raw"
    quality: int | None = None
    val_fraction: float | None = DEFAULT_VAL_FRACTION
    seed: int = 0
    first_draw: int = 0

    def __post_init__(self) -> None:
        check_integer("variants", self.variants, 1, MAX_DRAW)
        check_integer("first_draw", self.first_draw, 0, MAX_DRAW + 1 - self.variants)
        check_integer("seed", self.seed, 0, 2**64 - 1)
        check_choice("format", self.format, FORMATS)
        check_choice("encoding", self.encoding, ENCODINGS)
        if self.encoding == "jpeg":
            check_integer("quality", self.quality, 1, 100)
        elif self.quality is not None:
            raise ValueError(f"quality needs encoding jpeg, got quality {self.quality} with {self.encoding}")
        if self.val_fraction is not None:
            check_number("val_fraction", self.val_fraction, 0, 0.9)
        for name, chain in (("chain", self.chain), ("val_chain", self.val_chain)):
            if fixed_size(chain.prefix) is None and self.encoding == "raw":
                raise ValueError(
                    f"the cached ops of the {name} {str(chain)!r} return images of varying size, but raw needs one size: "
                    f"add a resize or crop before the cut, or choose encoding png or jpeg"
                )
            if output_channels(chain.prefix) == 4 and self.encoding == "jpeg":
                raise ValueError(
                    f"the {name} {str(chain)!r} keeps an alpha channel, which JPEG cannot hold: choose encoding raw or png"
                )
            fixed_size(chain.ops)  # raises for a crop that is larger than its image
        if self.val_chain.mixes:
            raise ValueError(f"val_chain must not contain mixup or cutmix, got {str(self.val_chain)!r}")

    def chain_of(self, split: str) -> Chain:
        """Return the chain of a split."""
        return self.chain if split == "train" else self.val_chain

    def variants_of(self, split: str) -> int:
        """Return the number of variants of a split."""
        return self.variants if split == "train" else 1

    def first_draw_of(self, split: str) -> int:
        """Return the draw of the first variant of a split."""
        return self.first_draw if split == "train" else 0

    def split_of(self, key: str, source_split: str | None) -> str:
        """Return the split of a record.

        Args:
            key: The record's key. Its hash, which is independent of draws, decides between train and val.
            source_split: The split that the source assigns, which takes precedence; None if it assigns none.
        """
        if source_split is not None:
            return source_split
        if not self.val_fraction:
            return "train"
        digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest()
        return "val" if int.from_bytes(digest, "little") / 2**64 < self.val_fraction else "train"

    def raw_size_of(self, split: str) -> tuple[int, int] | None:
        """Return (height, width) of the images of a split in a raw cache; None for encoded images."""
        return fixed_size(self.chain_of(split).prefix) if self.encoding == "raw" else None


@dataclass(frozen=True, kw_only=True)
class BuildConfig(SourceConfig):
    """The arguments of `precompute`, checked.

    Attributes:
        chain: Ops and the cut: "decode|resize(72) || flip_lr".
        val_chain: Chain of held-out records. Default: the chain without its random ops.
        variants: Draws of the cached ops to store for each record.
        format: Shard format.
        encoding: Encoding of the stored images.
        quality: JPEG quality. Default: 95.
        val_fraction: Fraction of records to hold out. Default: 0.1, or the source's validation split.
        seed: Seed of all draws.
        shards: Files per split and variant. Default: about 64 MiB each, up to 16 of 4 MiB, at most 8,000.
        workers: Worker processes. Default: one per CPU, or none for a small source.
        max_reject_rate: Fraction of records that may be rejected.
        advance: Compute the next N variants of an existing cache, and drop the oldest N.
        replace: Replace a cache that was built with other options.
        rehash: Compare file contents, not only sizes and times.

    Raises:
        ValueError: A field is out of range, or fields contradict each other.
    """

    chain: Chain
    val_chain: Chain | None = None
    variants: int = 1
    format: Format = "arrow"
    encoding: Encoding = "raw"
    quality: int | None = None
    val_fraction: float | None = None
    seed: int = 0
    shards: int | None = None
    workers: int | None = None
    max_reject_rate: float = 0.05
    advance: int | None = None
    replace: bool = False
    rehash: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None:
            check_integer("workers", self.workers, 1, 4096)
        if self.shards is not None:
            check_integer("shards", self.shards, 1, MAX_SHARDS)
        check_number("max_reject_rate", self.max_reject_rate, 0, 1)
        check_flag("replace", self.replace)
        check_flag("rehash", self.rehash)
        self.shard_config(holds_out=False)  # checks the other fields
        if self.advance is not None:
            self._check_advance(self.advance)

    def _check_advance(self, advance: int) -> None:
        check_integer("advance", advance)
        if self.replace:
            raise ValueError(
                "advance goes on from an existing cache, which replace would not read: leave one of them out"
            )
        if not self.chain.cached_random:
            raise ValueError(
                f"advance {advance} needs random ops before the cut, but the cached ops of {str(self.chain)!r} draw nothing at random"
            )

    def shard_config(self, *, holds_out: bool, first_draw: int = 0) -> ShardConfig:
        """Return the options for workers, with defaults filled in.

        Args:
            holds_out: The source has a validation split.
            first_draw: The draw of the first variant.
        """
        quality, val_fraction = self.quality, self.val_fraction
        if quality is None and self.encoding == "jpeg":
            quality = DEFAULT_JPEG_QUALITY
        if holds_out:
            val_fraction = None
        elif val_fraction is None:
            val_fraction = DEFAULT_VAL_FRACTION
        return ShardConfig(
            chain=self.chain,
            val_chain=self.chain.for_validation() if self.val_chain is None else self.val_chain,
            variants=self.variants,
            format=self.format,
            encoding=self.encoding,
            quality=quality,
            val_fraction=val_fraction,
            seed=self.seed,
            first_draw=first_draw,
        )
