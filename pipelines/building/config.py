"""What shapes the bytes of a cache beside its source."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from joulecache.pipelines.cache.shards import ENCODINGS, FORMATS, Encoding, Format
from joulecache.transforms.chain import Chain, fixed_size, output_channels

DEFAULT_JPEG_QUALITY = 95
DEFAULT_VAL_FRACTION = 0.1
SHARD_TARGET_BYTES = 64 << 20


class BuildError(RuntimeError):
    """A build that could not be finished; nothing of it is visible."""


class EngineError(BuildError):
    """The Beam runner failed, or could not be reached. The finished shards are kept, for a build that goes on."""


class RejectsError(BuildError):
    """Too many records were rejected. The finished shards are kept, for a build that accepts them."""


@dataclass(frozen=True)
class Recipe:
    """All that shapes the bytes of a cache beside its source. `val_fraction` is None where the source says what is held out."""

    chain: Chain
    val_chain: Chain
    variants: int = 1
    format: Format = "arrow"
    encoding: Encoding = "raw"
    quality: int | None = None
    val_fraction: float | None = DEFAULT_VAL_FRACTION
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("variants", self.variants, 1, 999_999)
        require_whole("seed", self.seed, 0, 2**64 - 1)
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
        if self.encoding == "jpeg":
            require_whole("quality", self.quality, 1, 100)
        elif self.quality is not None:
            raise ValueError(f"quality goes with encoding jpeg, got quality {self.quality} with {self.encoding}")
        if isinstance(self.val_fraction, bool) or not 0 <= (self.val_fraction or 0) <= 0.9:
            raise ValueError(f"val_fraction must be from 0 to 0.9, got {self.val_fraction!r}")
        for name, chain in (("chain", self.chain), ("val_chain", self.val_chain)):
            if fixed_size(chain.prefix) is None and self.encoding == "raw":
                raise ValueError(
                    f"the cached part of the {name} {str(chain)!r} leaves images of varying size, raw needs one size: add a "
                    f"resize or crop before the cut, or choose encoding png or jpeg"
                )
            fixed_size(chain.ops)
        if self.val_chain.mixes:
            raise ValueError(
                f"held-out records are not mixed: leave mixup and cutmix out of the val_chain {str(self.val_chain)!r}"
            )

    def of(self, split: str) -> tuple[Chain, int]:
        """Return a split's chain and number of variants; held-out records have one."""
        return (self.chain, self.variants) if split == "train" else (self.val_chain, 1)

    def split_of(self, key: str, given: str | None) -> str:
        """Return the split that a record belongs to: the one that its source gives, else by a hash of its key that draws do not use."""
        if given is not None:
            return given
        if not self.val_fraction:
            return "train"
        digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest()
        share = int.from_bytes(digest, "little") / 2**64
        return "val" if share < self.val_fraction else "train"

    @property
    def raw_bytes(self) -> int | None:
        """The bytes of one training image in a raw cache; None where images are encoded."""
        size = fixed_size(self.chain.prefix)
        if self.encoding != "raw" or size is None:
            return None
        return math.prod(size) * output_channels(self.chain.prefix)


def require_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
