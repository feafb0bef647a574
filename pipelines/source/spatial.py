"""Features whose targets move with the pixels: masks, boxes and points.

A source gives them encoded: a mask as an image file, boxes and points as bytes. The shards have them as the ops moved them, for every
variant; the index has a digest of what the source gave, from which an update sees that it changed.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.feature import MOST_ELEMENTS, Feature, Named, Target, checked_names
from joulecache.transforms.images import Array
from joulecache.transforms.kernels import histogram
from joulecache.transforms.ops.decode import decode_ids
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget

VOID = 255
"""The id of pixels without a class, beside any names."""

_DIGEST_BYTES = 16
_BOX_BYTES = 4 * 4 + 8


class SpatialFeature(Feature):
    """A feature whose targets move with the pixels. Its column in the index has digests; see `index_value`."""

    @property
    def dtype(self) -> str:
        """NumPy's name of the stored type."""
        return "float32"

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of its column in the index."""
        return pa.binary(_DIGEST_BYTES)

    def column(self, targets: Sequence[Target]) -> pa.Array:
        """Return index values as an Arrow column."""
        return pa.array(targets, self.arrow_type)

    def targets(self, column: pa.Array) -> list[Target]:
        """Return the index values in a column."""
        return [*column.to_pylist()]

    def index_value(self, target: Target) -> Target:
        """Return the first half of the SHA-256 of a target."""
        assert isinstance(target, bytes)
        return hashlib.sha256(target).digest()[:_DIGEST_BYTES]

    def check(self, target: Target) -> None:
        """Raise ValueError unless a record may have this target."""
        self.decode(target)

    @abstractmethod
    def decode(self, target: Target) -> SpatialTarget:
        """Return a target as ops move it; ValueError if it is malformed."""


@dataclass(frozen=True)
class Mask(SpatialFeature, Named):
    """A class for each pixel; uint8 ``[B, H, W, 1]``.

    A source gives it as an image of one channel, whose levels or palette indices are the numbers of classes. Pixels without a class have
    255. Of two classes, the second may be written as 255.

    Attributes:
        names: Names of the classes; () if they have none, and any id is allowed.
        kind: ``mask``.

    Raises:
        ValueError: A name is not a text, or there are more than 255.
    """

    names: tuple[str, ...] = ()
    kind: Literal["mask"] = field(default="mask", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names))
        if len(self.names) > VOID:
            raise ValueError(f"names must have at most {VOID} classes, got {len(self.names):,}")

    @property
    def dtype(self) -> str:
        """NumPy's name of the stored type."""
        return "uint8"

    def check(self, target: Target) -> None:
        """Raise ValueError unless a target is bytes. `decode` checks the ids: a mask is decoded once."""
        if not isinstance(target, bytes):
            raise ValueError(f"its mask must be an encoded image, got {shown(target)}")

    def decode(self, target: Target) -> MaskTarget:
        """Return a mask; ValueError if it is not an image of class ids, or has ids beyond the names."""
        self.check(target)
        assert isinstance(target, bytes)
        try:
            ids = decode_ids(target)
        except ValueError as error:
            raise ValueError(f"its mask cannot be decoded: {error}") from None
        return MaskTarget(self._known(ids))

    def _known(self, ids: Array) -> Array:
        if not self.names:
            return ids
        present = histogram(ids[:, :, 0])
        beyond = np.flatnonzero(present[len(self.names) : VOID])
        if len(beyond):
            number = len(self.names) + int(beyond[0])
            raise ValueError(f"its mask has id {number}, but there are {len(self.names)} classes")
        if len(self.names) == 2 and present[VOID]:
            if present[1]:
                raise ValueError("its mask has both 1 and 255 for the second class: write one of them")
            return np.minimum(ids, 1)
        return ids


@dataclass(frozen=True)
class Boxes(SpatialFeature, Named):
    """Any number of boxes, each with a class.

    `load` yields a dict of ``boxes``, float32 ``[B, M, 4]``, left, top, right and bottom in pixels, and ``classes``, int64 ``[B, M]``. M
    is the largest number of boxes of an image in the split; images with fewer are padded with -1.

    Attributes:
        names: Names of the classes.
        kind: ``boxes``.

    Raises:
        ValueError: There are no names, or one is not a text.
    """

    names: tuple[str, ...]
    kind: Literal["boxes"] = field(default="boxes", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names))
        if not self.names:
            raise ValueError("names must have at least one class, got none")

    def columns(self, name: str) -> tuple[str, ...]:
        """Return the names of the columns of boxes and of classes."""
        return name, f"{name}_classes"

    def encode(self, boxes: NDArray[np.float32] | Sequence[Sequence[float]], classes: Sequence[int]) -> bytes:
        """Return a target.

        Args:
            boxes: Left, top, right and bottom of each box in pixels.
            classes: The number of each box's class.

        Raises:
            ValueError: A box is reversed, empty or not finite, or its class is unknown.
        """
        corners = np.asarray(boxes, "<f4").reshape(-1, 4)
        target = corners.tobytes() + np.asarray(classes, "<i8").reshape(-1).tobytes()
        self.check(target)
        return target

    def decode(self, target: Target) -> BoxesTarget:
        """Return boxes; ValueError if one is reversed, empty or not finite, or its class is unknown."""
        if not isinstance(target, bytes) or len(target) % _BOX_BYTES or len(target) > _BOX_BYTES * MOST_ELEMENTS:
            raise ValueError(f"its boxes must have four numbers and a class each, got {shown(target)}")
        count = len(target) // _BOX_BYTES
        boxes = np.frombuffer(target, "<f4", 4 * count).reshape(-1, 4)
        classes = np.frombuffer(target, "<i8", count, 16 * count)
        if not np.isfinite(boxes).all():
            raise ValueError("a box must have finite numbers")
        empty = np.flatnonzero((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
        if len(empty):
            raise ValueError(f"a box must have a positive width and height, got {boxes[empty[0]].tolist()}")
        unknown = np.flatnonzero((classes < 0) | (classes >= len(self.names)))
        if len(unknown):
            raise ValueError(f"a box has class {classes[unknown[0]]}, but there are {len(self.names)} classes")
        return BoxesTarget(boxes, classes)


@dataclass(frozen=True)
class Points(SpatialFeature):
    """A fixed number of points, such as the joints of a body; float32 ``[B, n, 3]``: x and y in pixels, and visibility.

    Attributes:
        n: Number of points.
        kind: ``points``.

    Raises:
        ValueError: The number is not positive.
    """

    n: int
    kind: Literal["points"] = field(default="points", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if type(self.n) is not int or not 1 <= self.n <= MOST_ELEMENTS // 3:
            raise ValueError(f"n must be an integer from 1 to {MOST_ELEMENTS // 3:,}, got {shown(self.n)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 3)."""
        return self.n, 3

    def encode(self, points: NDArray[np.float32] | Sequence[Sequence[float]]) -> bytes:
        """Return a target; ValueError if the points are not finite or not n.

        Args:
            points: x, y and visibility of each: 0 for a point that is not in the image. Without a visibility it is 2, as in COCO.
        """
        found = np.asarray(points, "<f4")
        if found.shape == (self.n, 2):
            found = np.concatenate([found, np.full((self.n, 1), 2, "<f4")], axis=1)
        target = found.tobytes()
        self.check(target)
        return target

    def decode(self, target: Target) -> PointsTarget:
        """Return points; ValueError if they are not finite or not n."""
        if not isinstance(target, bytes) or len(target) != self.n * 12:
            raise ValueError(f"its points must be {self.n} of x, y and visibility")
        points = np.frombuffer(target, "<f4").reshape(self.n, 3)
        if not np.isfinite(points).all():
            raise ValueError("a point must have finite numbers")
        return PointsTarget(points)
