"""Ops and files that the online arms run in Python: the reference's pixels and targets, byte for byte."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import encoded
from PIL import Image
from processes import run_python
from small_audits import arms_in_order, audit

from joulecache.pipelines.auditing.examples import draw_examples
from joulecache.pipelines.auditing.results import Audit, InPython
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.arms import Arm, make_prefix_arms
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.experiment.files import ImageFiles, list_files
from joulecache.pipelines.experiment.names import ARMS, CACHED
from joulecache.pipelines.experiment.online_arms import batched_from
from joulecache.pipelines.experiment.python_ops import OnlineOps
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.render.markdown import to_markdown
from joulecache.pipelines.source import open_source, synthetic_photo
from joulecache.transforms import parse
from joulecache.transforms.images import Array
from joulecache.transforms.ops import Hue, Op, Rotate
from joulecache.transforms.ops.decode import EXIF_ORIENTATION

ONLINE = [name for name in ARMS if name != CACHED]
BATCH, EPOCHS = 4, 3


@dataclass(frozen=True)
class Shade(Op):
    """Subtract a random number, which needs all 32 bits of its word."""

    random_words: ClassVar[int] = 1

    def draw(self, words: tuple[int, ...], height: int, width: int) -> tuple[int, ...]:  # type: ignore[override]
        return (words[0] >> 24, 1 << 40)

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        return (image - np.minimum(image, drawn[0])).astype(np.uint8)


@dataclass(frozen=True)
class Broken(Op):
    """Fail, but not in the validation chain, which has no random ops."""

    random_words: ClassVar[int] = 1

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        raise KeyError("lamp")


OWN = {"shade": Shade}

READ_ONE_BATCH = """
import sys
from pathlib import Path
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.experiment.arms import make_arms
from joulecache.pipelines.experiment.files import list_files

cache = open_cache(sys.argv[1])
[arm] = make_arms(["tuned"], list_files(Path(sys.argv[2]), cache, 1), cache, 2)
batches = iter(arm.dataset.repeat())
next(batches)
print("read")
"""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small photos in two classes."""
    folder = tmp_path_factory.mktemp("few")
    for number in range(10):
        path = folder / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.open(io.BytesIO(synthetic_photo(number))).resize((50 + number, 60)).save(path)
    return folder


def built(
    folder: Path, out: Path, chain: str, ops: Mapping[str, type[Op]] | None = None
) -> tuple[ImageFiles, Cache, dict[str, Arm]]:
    """Return the files of a folder, a cache of them with two variants, and the online arms."""
    config = BuildConfig(chain=parse(chain, ops), variants=2, val_fraction=0, seed=3)
    source = open_source(folder, config)
    build_cache(source, out / "cache", config, Meter())
    cache = open_cache(out / "cache")
    files = list_files(folder, cache, EPOCHS, ops=ops)
    return files, cache, arms_in_order(ONLINE, source, config, files, cache, BATCH)


def check_same(arms: Mapping[str, Arm], cache: Cache, ops: Mapping[str, type[Op]] | None = None) -> None:
    """Check that arms yield what the cache does, in several epochs."""
    for epoch in (0, EPOCHS - 1):
        expected = load(cache, "train", BATCH, shuffle=False, start=(epoch, 0), ops=ops)
        wanted = [*expected.take(len(arms["naive"].dataset)).as_numpy_iterator()]
        for name, arm in arms.items():
            arm.start_epoch(epoch)
            got = [*arm.dataset.as_numpy_iterator()]
            assert len(got) == len(wanted)
            for (images, targets), (like, same) in zip(got, wanted, strict=True):
                assert images.dtype == like.dtype
                np.testing.assert_array_equal(images, like, name)
                assert targets.dtype == same.dtype
                np.testing.assert_array_equal(targets, same, name)
        assert len({str(arm.dataset.element_spec) for arm in arms.values()}) == 1


@pytest.mark.parametrize(
    ("chain", "in_python", "on_batches_from"),
    [
        ("decode|resize(40)|random_crop(36) || flip_lr|rand_augment|flip_ud|shade|pad(1)", "1-6", 2),
        pytest.param(
            *(
                "decode(background=255)|saturation(0.1)|resize(40) || random_crop(32)|color_jitter(0.3)|to_float",
                "0-4",
                3,
            ),
            marks=pytest.mark.slow,
        ),
        ("decode|central_crop(48) || flip_lr|trivial_augment|mixup", "3-4", 2),
        pytest.param(
            *("decode(1)|pad(2)|random_crop(40) || affine(10)|to_float|cutmix|mixup|normalize(0.5, 0.5)", "3, 5-6", 3),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_arms_run_ops_in_python_as_the_cache_does(
    few: Path, tmp_path: Path, chain: str, in_python: str, on_batches_from: int
) -> None:
    files, cache, arms = built(few, tmp_path, chain, OWN)
    spans = [[int(end) for end in span.split("-")] for span in in_python.split(", ")]
    assert files.ops.in_python == {number for span in spans for number in range(span[0], span[-1] + 1)}
    assert batched_from(files.ops, 1) == on_batches_from
    check_same(arms, cache, OWN)
    images = draw_examples(files, few, cache)[0].images
    assert sum(not image.step.startswith("epoch") for image in images) == len(parse(chain, OWN).ops) - len(
        parse(chain, OWN).on_batches
    )


def test_truncated_arms_mix_images_after_they_are_batched(few: Path, tmp_path: Path) -> None:
    files, cache, arms = built(few, tmp_path, "decode|resize(16) || posterize(4)|mixup|to_float")
    made = {arm.name: arm.dataset for arm in make_prefix_arms(files.sample(6, 0), cache, BATCH)}
    assert list(made) == ["tf.data", "read", "decode", "resize(16)", "posterize(4)", "batch", "mixup", "to_float"]
    for name, dataset in made.items():
        images, shares = next(iter(dataset))
        assert images.shape == ((BATCH, 16, 16, 3) if name in ("batch", "mixup", "to_float") else (BATCH,)), name
        assert shares.shape == (BATCH, 2)
    assert made["to_float"].element_spec == arms["naive"].dataset.element_spec


def test_files_that_tensorflow_decodes_otherwise_are_decoded_in_python(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.open(io.BytesIO(synthetic_photo(1))).resize((60, 50))
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    photo.save(folder / "plain.jpg", exif=turned)
    photo.save(folder / "turned.tiff", exif=turned)
    photo.save(folder / "some.avif")
    photo.convert("P").save(folder / "palette.bmp")
    photo.convert("RGBA").save(folder / "plain.png")
    photo.putalpha(photo.convert("L"))
    photo.save(folder / "transparent.webp")
    inverted = encoded(photo.convert("CMYK"), "JPEG")
    marker = inverted.index(b"\xff\xee")
    after = marker + 2 + int.from_bytes(inverted[marker + 2 : marker + 4])
    (folder / "without_adobe.jpg").write_bytes(inverted[:marker] + inverted[after:])
    small = bytearray(encoded(Image.new("P", (50, 50), 1), "GIF"))
    small[6:8] = (60).to_bytes(2, "little")  # width of the canvas
    (folder / "small_frame.gif").write_bytes(small)
    files, cache, arms = built(folder, tmp_path, "decode|central_crop(40) || flip_lr")
    assert files.decoded_in_python is not None
    odd = {Path(path).name for path, found in zip(files.paths, files.decoded_in_python, strict=True) if found}
    assert odd == {
        *("turned.tiff", "some.avif", "palette.bmp", "transparent.webp", "without_adobe.jpg", "small_frame.gif")
    }
    check_same(arms, cache)
    some = files.sample(3, 0)
    assert some.decoded_in_python is not None
    assert some.decoded_in_python.tolist() == [Path(path).name in odd for path in some.paths]


def test_a_resize_runs_in_python_only_before_ops_that_do() -> None:
    online = OnlineOps.of(parse("decode|resize(40)|flip_lr || equalize|random_resized_crop(32)|to_float"))
    assert online.in_python == {1, 2, 3}
    assert [*online.runs(0, 6)] == [(0, 1, False), (1, 4, True), (4, 6, False)]
    assert [*online.runs(2, 5)] == [(2, 4, True), (4, 5, False)]


@pytest.mark.parametrize(
    ("chain", "in_python"),
    [
        ("decode|resize(32)|hue(0.1)|rotate(10)", set()),
        ("decode|resize(224)|hue(0.1)", {1, 2}),
        ("decode|hue(0.1)|resize(32)", {1}),
        ("decode|resize(32)|hue(0.1)|equalize", {1, 2, 3}),
    ],
)
def test_ops_whose_kernel_costs_less_on_small_images_run_in_tensorflow_there(chain: str, in_python: set[int]) -> None:
    assert OnlineOps.of(parse(chain)).in_python == in_python
    assert OnlineOps.of(parse(chain), moving=True).in_python >= {
        number for number, op in enumerate(parse(chain).ops) if isinstance(op, Hue | Rotate)
    }


@pytest.mark.slow
def test_the_interpreter_ends_while_arms_run_python(few: Path, tmp_path: Path) -> None:
    built(few, tmp_path, "decode|resize(40) || rand_augment")
    done = run_python(READ_ONE_BATCH, tmp_path / "cache", few)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


@pytest.mark.slow
def test_an_audit_of_a_custom_op_says_what_ran_in_python(few: Path, tmp_path: Path) -> None:
    chain = parse("decode|resize(24)|random_crop(20) || shade", OWN)
    options: dict[str, Any] = {"workloads": ("input", "train"), "pairs": 1, "variants": (1, 2), "model": "mlp"}
    result = audit(few, chain, tmp_path / "out", **options, batch_size=4)
    assert result.in_python == InPython(("resize(24)", "random_crop(20)", "shade"), 0)
    assert not any(result.pixel_difference.values())
    assert Audit.from_json(result.to_json()) == result
    result = replace(result, in_python=replace(result.in_python, files=3))
    text = to_markdown(describe_audit(result)).replace("`", "")
    assert "resize(24), random_crop(20), shade ran in Python (tf.numpy_function) in the arms without a cache" in text
    assert "3 of 9 files were decoded in Python" in text


@pytest.mark.slow
def test_an_op_that_fails_after_the_cut_is_named_in_one_line(few: Path, tmp_path: Path) -> None:
    chain = parse("decode|resize(24) || broken", {"broken": Broken})
    with pytest.raises(ArmError, match=r"^naive failed: .*broken failed: KeyError: 'lamp'[^\n]*$"):
        audit(few, chain, tmp_path / "out", workloads=("input",), pairs=1)
