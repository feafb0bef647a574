#!/usr/bin/env python3
"""Write what torchvision computes to tests/golden/torchvision: boxes and points to cases.json, images and masks to arrays.npz.

    scripts/golden_torchvision.py [--environment DIR]

tests/test_torchvision.py compares the ops with them. Torch is too heavy for the tests' environment, so this one is made in DIR, or in
a temporary folder; it needs 6 GB. Every case names an op, the parameters that it would draw, and torchvision's functional op with the
same parameters.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from environment import ROOT, argument_parser

REQUIREMENTS = ("torchvision==0.29.2", "numpy", "pillow")
GOLDEN = ROOT / "tests" / "golden" / "torchvision"
UNIT = 65536
HEIGHT, WIDTH = 24, 32

BOXES = (
    (2.0, 3.0, 12.0, 20.0),
    (0.0, 0.0, 32.0, 24.0),
    (20.25, 1.5, 31.75, 9.125),
    (28.5, 20.5, 32.0, 24.0),
    (10.0, 10.0, 11.25, 11.5),
    (0.1, 17.3, 6.7, 23.9),
    (14.0, 5.0, 18.0, 6.0),
)
POINTS = ((0.0, 0.0), (31.0, 23.0), (16.0, 12.0), (3.3, 20.7), (30.5, 1.25), (9.0, 4.0))

Moved = Callable[[Any], Any]
"""torchvision's op, on an image, a mask, boxes or points."""


@dataclass(frozen=True)
class Case:
    """An op with its parameters, and the same in torchvision.

    Attributes:
        op: The op as text.
        drawn: Its parameters, as its `draw` returns them.
        torchvision: torchvision's op.
        moves: Whether it moves pixels.
        pillow: Whether torchvision's path for Pillow images is the reference for the image.
    """

    op: str
    drawn: tuple[int, ...]
    torchvision: Moved
    moves: bool = True
    pillow: bool = False


def main(folder: str | None) -> None:
    """Write the files, in an environment with torchvision."""
    if find_spec("torchvision"):
        write()
        return
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(folder or temporary)
        python = str(environment / "bin" / "python")
        if not (environment / "bin" / "python").exists():
            venv.create(environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        subprocess.run([python, __file__], check=True)


def write() -> None:
    """Run all cases and write their results."""
    import numpy as np

    torch: Any = import_module("torch")
    transforms: Any = import_module("torchvision.transforms.v2")
    tensors: Any = import_module("torchvision.tv_tensors")
    functional = transforms.functional
    image = photo()
    levels = torch.tensor(image).permute(2, 0, 1)
    ids = (levels[1:2] // 48).to(torch.uint8)
    size = HEIGHT, WIDTH
    boxes = tensors.BoundingBoxes(torch.tensor(BOXES), format="XYXY", canvas_size=size)
    points = tensors.KeyPoints(torch.tensor(POINTS), canvas_size=size)
    arrays = {"image": image, "mask": ids.permute(1, 2, 0).numpy()}
    results: list[dict[str, object]] = []
    for case in cases(functional, transforms):
        name = f"{len(results):02}"
        result: dict[str, object] = {"op": case.op, "drawn": case.drawn, "moves": case.moves, "pillow": case.pillow}
        source = functional.to_pil_image(levels) if case.pillow else tensors.Image(levels)
        pixels = case.torchvision(source)
        pixels = functional.pil_to_tensor(pixels) if case.pillow else pixels
        arrays[f"{name}-pixels"] = pixels.permute(1, 2, 0).numpy()
        if case.moves:
            arrays[f"{name}-mask"] = case.torchvision(tensors.Mask(ids)).permute(1, 2, 0).numpy()
            result |= coordinates(functional, case.torchvision, boxes, points)
        results.append(result)
    np.savez_compressed(GOLDEN / "arrays.npz", **arrays)
    document = {"boxes": BOXES, "points": POINTS, "cases": results}
    lines = json.dumps(document).replace('{"op"', '\n{"op"')
    (GOLDEN / "cases.json").write_text(lines + "\n", "utf-8")
    print(f"{len(results)} cases of torchvision {import_module('torchvision').__version__}")


def coordinates(functional: Any, op: Moved, boxes: Any, points: Any) -> dict[str, object]:
    """Return the moved boxes, clamped and without those under a pixel, which of them are left, the moved points, and which lie inside.

    torchvision moves neither through a border that is not constant.
    """
    try:
        moved, places = functional.clamp_bounding_boxes(op(boxes)), op(points)
    except ValueError:
        return {}
    kept, valid = functional.sanitize_bounding_boxes(moved, min_size=1.0, min_area=1.0)
    height, width = places.canvas_size
    inside = (places[:, 0] >= 0) & (places[:, 0] < width) & (places[:, 1] >= 0) & (places[:, 1] < height)
    return {
        "boxes": kept.tolist(),
        "kept": valid.nonzero()[:, 0].tolist(),
        "points": places.tolist(),
        "inside": inside.tolist(),
    }


def photo() -> Any:
    """Return a small photo, uint8 ``[HEIGHT, WIDTH, 3]``."""
    import numpy as np
    from PIL import Image

    encoded = io.BytesIO((GOLDEN.parent / "photo.jpg").read_bytes())
    return np.array(Image.open(encoded).resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def cases(functional: Any, transforms: Any) -> Iterator[Case]:
    """Yield all cases."""
    yield from sizes(functional)
    yield from borders(functional)
    yield from warps(functional)
    yield from augmentations(functional, transforms)
    yield from colours(functional)


def sizes(f: Any) -> Iterator[Case]:
    """Yield resizes, crops and flips."""
    for size in ((12, 40), (48, 20), (17, 31), (23, 33), (7, 5), (24, 16)):
        yield Case(f"resize({size})", (), partial(f.resize, size=size))
    for side in (11, 40):
        yield Case(f"resize_shorter({side})", (), partial(f.resize, size=(side,)))
    for size in ((17, 21), (10, 12), (24, 31)):
        yield Case(f"central_crop({size})", (), partial(f.center_crop, output_size=size))
    for top, left in ((0, 0), (3, 7), (9, 12)):
        yield Case("random_crop((15, 20))", (top, left), partial(f.crop, top=top, left=left, height=15, width=20))
    for window in ((0, 0, 24, 32), (3, 7, 11, 13), (10, 1, 14, 29), (5, 5, 3, 4)):
        named = dict(zip(("top", "left", "height", "width"), window, strict=True))
        yield Case("random_resized_crop((19, 26))", window, partial(f.resized_crop, **named, size=(19, 26)))
    yield Case("flip_lr", (1,), f.horizontal_flip)
    yield Case("flip_ud", (1,), f.vertical_flip)


def borders(f: Any) -> Iterator[Case]:
    """Yield borders of all modes."""
    for padding in (3, (2, 5), (1, 2, 3, 4)):
        for mode in ("constant", "edge", "reflect", "symmetric"):
            sides = padding if isinstance(padding, int) else list(padding)
            yield Case(f"pad({padding}, padding_mode='{mode}')", (), partial(f.pad, padding=sides, padding_mode=mode))


def warps(f: Any) -> Iterator[Case]:
    """Yield rotations and affine maps; degrees, scales and shears are drawn in units of 1/65536."""
    for mode in ("nearest", "bilinear"):
        interpolation = f._geometry.InterpolationMode(mode)
        for drawn, center in ((1_234_567, None), (-2_949_120, None), (5_898_240, (10.0, 6.0)), (11_000_000, None)):
            rotate = partial(f.rotate, angle=drawn / UNIT, interpolation=interpolation, center=center)
            yield Case(f"rotate(180, '{mode}', center={center})", (drawn,), rotate, pillow=True)
        for degrees, right, down, scale, along_x, along_y in (
            (655_360, 3, -2, 72_000, 327_680, 0),
            (-1_310_720, -5, 4, 50_000, -200_000, 400_000),
            (0, 0, 0, 131_072, 0, 0),
            (0, -7, 5, UNIT, 0, 0),
        ):
            affine = partial(
                f.affine,
                angle=degrees / UNIT,
                translate=[right, down],
                scale=scale / UNIT,
                shear=[along_x / UNIT, along_y / UNIT],
                interpolation=interpolation,
            )
            text = f"affine(180, (1, 1), (0.5, 2), (-45, 45, -45, 45), '{mode}')"
            yield Case(text, (degrees, right, down, scale, along_x, along_y), affine, pillow=True)


AUGMENTATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),  # these move pixels
    *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
STRENGTHS: dict[str, tuple[tuple[int, float], ...]] = {
    "TranslateX": ((5, 5), (-9, -9)),
    "TranslateY": ((-4, -4), (7, 7)),
    "Rotate": ((2_000_000, 2_000_000 / UNIT), (-1_300_000, -1_300_000 / UNIT)),
    "Posterize": ((4, 4),),
    "Solarize": ((100, 100 / 255),),
}
"""Strengths as the policies draw them, and as torchvision's take them."""


def augmentations(f: Any, transforms: Any) -> Iterator[Case]:
    """Yield the augmentations of the policies. torchvision has no policy for masks, boxes and points, but its augmentations move them."""
    augment = transforms.RandAugment()._apply_image_or_video_transform
    arguments = {"interpolation": f._geometry.InterpolationMode.NEAREST, "fill": {"others": None}}
    for index, name in enumerate(AUGMENTATIONS):
        for drawn, magnitude in STRENGTHS.get(name, ((20_000, 20_000 / UNIT), (-13_000, -13_000 / UNIT))):
            op = partial(augment, transform_id=name, magnitude=magnitude, **arguments)
            yield Case("rand_augment(1)", (index, drawn), op, moves=index < 6, pillow=0 < index < 6)


def colours(f: Any) -> Iterator[Case]:
    """Yield the ops that leave pixels in their places."""
    for drawn in (40_000, 90_000):
        factor = drawn / UNIT
        yield Case("brightness(0.4)", (drawn,), partial(f.adjust_brightness, brightness_factor=factor), moves=False)
        yield Case("contrast(0.4)", (drawn,), partial(f.adjust_contrast, contrast_factor=factor), moves=False)
        yield Case("saturation(0.4)", (drawn,), partial(f.adjust_saturation, saturation_factor=factor), moves=False)
        sharpness = partial(f.adjust_sharpness, sharpness_factor=factor)
        yield Case(f"sharpness({factor}, 1.0)", (1,), sharpness, moves=False)
    for drawn in (6_000, -20_000):
        yield Case("hue(0.5)", (drawn,), partial(f.adjust_hue, hue_factor=drawn / UNIT), moves=False)
    amounts = 5 * UNIT // 4, 3 * UNIT // 4, 3 * UNIT // 2, UNIT // 16
    yield Case("color_jitter(0.5, 0.5, 0.5, 0.25)", (0, *amounts), partial(jittered, f), moves=False)
    for channels in (1, 3):
        yield Case(f"grayscale({channels})", (), partial(f.rgb_to_grayscale, num_output_channels=channels), moves=False)
    for kernel, sigma in (((5, 5), UNIT), ((3, 7), 100_000)):
        blur = partial(f.gaussian_blur, kernel_size=list(kernel), sigma=[sigma / UNIT] * 2)
        yield Case(f"gaussian_blur({kernel})", (sigma,), blur, moves=False)
    yield Case("autocontrast(1.0)", (1,), f.autocontrast, moves=False)
    yield Case("equalize(1.0)", (1,), f.equalize, moves=False)
    yield Case("posterize(3, 1.0)", (1,), partial(f.posterize, bits=3), moves=False)
    yield Case("solarize(128.0, 1.0)", (1,), partial(f.solarize, threshold=128.0), moves=False)
    yield Case("cutout((7, 9))", (4, 12), partial(erased, f), moves=False)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    floats = partial(f.to_dtype, dtype=import_module("torch").float32, scale=True)
    yield Case("to_float", (), floats, moves=False)
    yield Case(f"to_float|normalize({mean}, {std})", (), lambda x: f.normalize(floats(x), mean, std), moves=False)


def jittered(f: Any, x: Any) -> Any:
    """Change brightness, contrast, saturation and hue."""
    x = f.adjust_contrast(f.adjust_brightness(x, 5 / 4), 3 / 4)
    return f.adjust_hue(f.adjust_saturation(x, 3 / 2), 1 / 16)


def erased(f: Any, x: Any) -> Any:
    """Fill a window with black."""
    return f.erase(x, i=4, j=12, h=7, w=9, v=x.new_zeros(1))


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--environment", metavar="DIR", help="folder of the environment with torchvision, kept for another run"
    )
    main(parser.parse_args().environment)
