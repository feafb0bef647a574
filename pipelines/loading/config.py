"""The arguments of `load` as one checked value. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core.checks import check_choice, check_flag, check_integer, check_text, make_plain, shown
from joulecache.pipelines.loading.where import Where, parse_where

Shuffle: TypeAlias = bool | Literal["blocks"]
Verify: TypeAlias = Literal["open", "full"]

PIXEL_BYTES = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
"""Bytes of one pixel value, by the `dtype` of images."""
VERIFY: tuple[Verify, ...] = ("open", "full")


@dataclass(frozen=True)
class Budget:
    """The loader's limits in bytes: what it reads at once, shuffles together and keeps in memory. Only tests change them.

    Attributes:
        step_bytes: Images, masks, boxes and points read by one call. Small images are read several batches at a time, because a
            Python call and random draws for each batch would cost more than the batch. Three to four steps are in memory at a
            time: doubling this to 16 MiB would save a tenth of the CPU time and cost 64 MB.
        encoded_step_bytes: The same for encoded images: decoding them costs more than the call, and the first batch waits for it.
        block_bytes: What ``shuffle="blocks"`` reads in one piece, with at most two extra pages.
        window_bytes: What ``shuffle="blocks"`` shuffles together. This window and the next are in the page cache.
        memory_bytes: The memory that a full shuffle may use; None: all memory of this machine or control group.
    """

    step_bytes: int = 8 << 20
    encoded_step_bytes: int = 1 << 20
    block_bytes: int = 1 << 20
    window_bytes: int = 128 << 20
    memory_bytes: int | None = None


@dataclass(frozen=True)
class LoadConfig:
    """The arguments of `load` under the same names, and the budget."""

    split: str
    batch_size: int
    shuffle: Shuffle | None = None
    seed: int | None = None
    drop_remainder: bool = False
    hosts: tuple[int, int] = (0, 1)
    dtype: str = "uint8"
    epochs: int | None = None
    start: tuple[int, int] = (0, 0)
    targets: str | Sequence[str] | None = None
    sample_weight: str | None = None
    follow: bool = False
    where: Where | None = None
    balance: str | None = None
    views: int = 1
    budget: Budget = dataclasses.field(default_factory=Budget, repr=False)

    def __post_init__(self) -> None:
        make_plain(self)
        check_choice("split", self.split, SPLITS)
        check_integer("batch_size", self.batch_size)
        check_choice("dtype", self.dtype, tuple(PIXEL_BYTES))
        if self.shuffle is not None and not isinstance(self.shuffle, bool) and self.shuffle != "blocks":
            raise ValueError(f'shuffle must be True, False or "blocks", got {self.shuffle!r}')
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**64 - 1)
        match self.hosts:
            case (int(index), int(count)) if 0 <= index < count:
                pass
            case _:
                raise ValueError(
                    f"hosts must be an InputContext or (index, count) with 0 <= index < count, got {self.hosts!r}"
                )
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        check_flag("drop_remainder", self.drop_remainder)
        check_flag("follow", self.follow)
        if not isinstance(self.targets, Sequence | None):
            raise ValueError(f"targets must be a name or a sequence of names, got {shown(self.targets)}")
        for name in self.targets or ():
            check_text("targets", name)
        if self.sample_weight is not None:
            check_text("sample_weight", self.sample_weight)
        if isinstance(self.where, str):
            parse_where(self.where)
        elif self.where is not None and not callable(self.where):
            raise ValueError(f"where must be an expression or a function of the columns, got {shown(self.where)}")
        check_integer("views", self.views)
        if self.follow and self.views > 1:
            raise ValueError(f"views must be 1 with follow, which reads one draw in each epoch, got {self.views}")
        if self.balance is not None:
            check_text("balance", self.balance)
            if self.shuffle not in (None, True):
                raise ValueError(f"balance draws from the whole split: shuffle must be True, got {self.shuffle!r}")
        if self.epochs is not None:
            check_integer("epochs", self.epochs)

    @property
    def shuffled(self) -> Shuffle:
        """The shuffle, with its default for the split."""
        return self.split == SPLITS[0] or self.balance is not None if self.shuffle is None else self.shuffle
