"""The ops against torchvision v2: images, masks, boxes and points, as scripts/golden_torchvision.py wrote them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from joulecache.transforms import Op, parse
from joulecache.transforms.chain import apply_batch_ops
from joulecache.transforms.ops import OPS, BatchOp, Decode, GaussianNoise, Mixture, op_name
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget, apply_with_targets

GOLDEN = Path(__file__).parent / "golden" / "torchvision"
DOCUMENT: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
CASES: dict[str, dict[str, Any]] = {f"{number:02}": case for number, case in enumerate(DOCUMENT["cases"])}
MOVED = [name for name, case in CASES.items() if "boxes" in case]
MASKED = [name for name, case in CASES.items() if case["moves"]]
CLASSES = np.arange(len(DOCUMENT["boxes"]))

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn(Op):
    """An op with the parameters that it draws."""

    op: Op
    drawn: tuple[int, ...]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.op.output_size(height, width)

    def output_channels(self, channels: int) -> int:
        return self.op.output_channels(channels)

    def draw(self, words: Any, height: int, width: int) -> tuple[int, ...]:
        return self.drawn

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        return self.op.pixels(image, drawn)

    def mask(self, mask: Array, drawn: tuple[int, ...]) -> Array:
        return self.op.mask(mask, drawn)

    def boxes(self, boxes: Any, drawn: tuple[int, ...], size: tuple[int, int]) -> Any:
        return self.op.boxes(boxes, drawn, size)

    def points(self, points: Any, drawn: tuple[int, ...], size: tuple[int, int]) -> Any:
        return self.op.points(points, drawn, size)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    with np.load(GOLDEN / "arrays.npz") as stored:
        return dict(stored)


def called(name: str) -> str:
    return f"{CASES[name]['op']}-{CASES[name]['drawn']}"


def ops_of(case: dict[str, Any]) -> tuple[Op, ...]:
    return parse(f"decode || {case['op']}").suffix


def moved(name: str, image: Array, target: SpatialTarget) -> SpatialTarget:
    [op] = ops_of(CASES[name])
    [found] = apply_with_targets([Drawn(op, tuple(CASES[name]["drawn"]))], image, (), [target])[1]
    return found


def test_every_op_is_compared() -> None:
    """But for those whose draw is an image of noise, or depends on the batch."""
    named = {op_name(type(op)) for case in CASES.values() for op in ops_of(case)} | {"trivial_augment"}
    left_out = (Decode, GaussianNoise, Mixture)
    assert named == {name for name, kind in OPS.items() if not issubclass(kind, left_out)}
    augmented = {case["drawn"][0] for case in CASES.values() if case["op"].startswith("rand_augment")}
    assert augmented == set(range(14))


@pytest.mark.parametrize("name", CASES, ids=called)
def test_pixels_are_within_a_level_of_torchvisions(name: str, arrays: dict[str, Array]) -> None:
    ops, expected = ops_of(CASES[name]), arrays[f"{name}-pixels"]
    if isinstance(ops[0], BatchOp):
        floats = apply_batch_ops(ops, arrays["image"].copy(), ())
        np.testing.assert_allclose(floats, expected, rtol=1e-6, atol=1e-6)
        return
    got = ops[0].pixels(arrays["image"], tuple(CASES[name]["drawn"]))
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", MASKED, ids=called)
def test_masks_are_torchvisions(name: str, arrays: dict[str, Array]) -> None:
    target = moved(name, arrays["image"], MaskTarget(arrays["mask"]))
    assert isinstance(target, MaskTarget)
    np.testing.assert_array_equal(target.ids, arrays[f"{name}-mask"])


@pytest.mark.parametrize("name", MOVED, ids=called)
def test_boxes_are_torchvisions(name: str, arrays: dict[str, Array]) -> None:
    target = moved(name, arrays["image"], BoxesTarget(np.array(DOCUMENT["boxes"], np.float32), CLASSES))
    assert isinstance(target, BoxesTarget)
    expected = np.array(CASES[name]["boxes"], np.float32).reshape(-1, 4)
    assert target.boxes.dtype == np.float32
    np.testing.assert_array_equal(target.classes, CASES[name]["kept"])
    # Products of matrices add up in another order.
    np.testing.assert_allclose(target.boxes, expected, rtol=0, atol=1e-4 if CASES[name]["pillow"] else 0)


@pytest.mark.parametrize("name", MOVED, ids=called)
def test_points_are_torchvisions(name: str, arrays: dict[str, Array]) -> None:
    """Those outside the image, which its `sanitize_keypoints` would drop, are no longer visible."""
    points = np.array(DOCUMENT["points"], np.float32)
    visible = np.full((len(points), 1), 2, np.float32)
    target = moved(name, arrays["image"], PointsTarget(np.concatenate([points, visible], axis=1)))
    assert isinstance(target, PointsTarget)
    assert target.points.dtype == np.float32
    expected = np.array(CASES[name]["points"], np.float32)
    np.testing.assert_allclose(target.points[:, :2], expected, rtol=0, atol=1e-4 if CASES[name]["pillow"] else 0)
    np.testing.assert_array_equal(target.points[:, 2], 2 * np.array(CASES[name]["inside"]))
