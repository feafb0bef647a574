"""The arguments of a build, the estimate of its size, and its limit on memory."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from caches import CHAIN, build
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from sources import classes

from joulecache.pipelines.building.beam_graph import run_specs
from joulecache.pipelines.building.config import (
    DEFAULT_JPEG_QUALITY,
    DEFAULT_VAL_FRACTION,
    MANY_SHARDS,
    MAX_SHARDS,
    BuildConfig,
    BuildError,
    ShardConfig,
)
from joulecache.pipelines.building.images import ImageMaker, encode, mean_image_bytes, pixel_stats_of
from joulecache.pipelines.building.job import default_shards
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.cache.data_file import PixelStats
from joulecache.pipelines.cache.names import Encoding
from joulecache.pipelines.core.codec import documented
from joulecache.pipelines.source import ImageFile, Record, SourceConfig, open_source
from joulecache.transforms import parse
from joulecache.transforms.randomness import key_hash

# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": 0}, "variants must be an integer from 1 to 999999, got 0"),
        ({"seed": -1}, "seed"),
        ({"shards": 100_000}, "shards"),
        ({"workers": 0}, "workers"),
        ({"format": "csv"}, "format must be one of arrow, tfrecord, got 'csv'"),
        ({"encoding": "webp"}, "encoding must be one of raw, jpeg, png, got 'webp'"),
        ({"quality": 90}, "quality needs encoding jpeg, got quality 90 with raw"),
        ({"encoding": "jpeg", "quality": 0}, "quality must be an integer from 1 to 100, got 0"),
        ({"val_fraction": 1}, "val_fraction must be a number from 0 to 0.9, got 1"),
        ({"max_reject_rate": -0.1}, "max_reject_rate must be a number from 0 to 1, got -0.1"),
        ({"replace": 1}, "replace must be True or False, got 1"),
        ({"chain": "decode|resize(20)|random_crop(24)"}, "crop 24x24 is larger than the image 20x20"),
        ({"chain": "decode|resize(40) || random_crop(48)"}, "crop 48x48 is larger than the image 40x40"),
        ({"chain": "decode|resise(20)"}, "did you mean 'resize'"),
        ({"chain": "decode|resize_shorter(20)"}, "varying size, but raw needs one size: .* choose encoding png"),
        ({"val_chain": "decode"}, "val_chain 'decode' return images of varying size"),
        ({"beam_options": ["--runer=X"]}, "unknown Beam option '--runer=X': did you mean --runner?"),
        ({"beam_options": ["--xyzzy"]}, "unknown Beam option '--xyzzy'$"),
        ({"beam_options": ["stray"]}, "unknown Beam option 'stray': expected --NAME=VALUE; put a pattern"),
        ({"beam_options": ["--runner"]}, "--runner: expected one argument"),
        ({"beam_options": ["--runner=Nonsense"]}, "no runner 'Nonsense'"),
        ({"beam_options": ["--direct_num_workers=many"]}, "invalid int value: 'many'"),
        ({"beam_options": ["--direct_running_mode=multi_processing"]}, "multi_processing hangs when a worker dies"),
        (
            {"beam_options": "--runner=FlinkRunner --parallelism 2"},
            r"^beam_options must be a list of options, got a string: pass \['--runner=FlinkRunner', '--parallelism', '2'\]$",
        ),
        ({"beam_options": {"runner": "FlinkRunner"}}, r"a list, such as .* or Beam's PipelineOptions, got \{'runner'"),
        ({"beam_options": [3]}, r"or Beam's PipelineOptions, got \[3\]$"),
        ({"beam_options": PipelineOptions(["--runer=X"])}, "^unknown Beam option 'runer': did you mean runner?"),
        ({"beam_options": PipelineOptions([], runer="X")}, "^unknown Beam option 'runer': did you mean runner?"),
        ({"beam_options": PipelineOptions(runner="Nonsense")}, "no runner 'Nonsense'"),
        ({"beam_options": PipelineOptions(["--direct_num_workers=many"])}, "invalid int value: 'many'$"),
        (
            {"beam_options": PipelineOptions(direct_running_mode="multi_processing")},
            "multi_processing hangs when a worker dies",
        ),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_written(
    tmp_path: Path, photo_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(photo_folder, tmp_path / "cache", **{"chain": CHAIN, **options})
    assert list(tmp_path.iterdir()) == []


def test_arguments_may_be_numbers_of_numpy() -> None:
    given: dict[str, Any] = {"variants": np.int64(2), "seed": np.uint64(3), "val_fraction": np.float32(0.25)}
    plain: dict[str, Any] = {"variants": 2, "seed": 3, "val_fraction": 0.25}
    assert repr(BuildConfig(chain=parse(CHAIN), **given)) == repr(BuildConfig(chain=parse(CHAIN), **plain))


def test_every_argument_is_declared_in_the_config_with_its_default_and_help() -> None:
    parameters = dict(inspect.signature(precompute).parameters)
    for name in ("source", "cache", "beam_options", "meter", "progress"):
        del parameters[name]
    fields = {field.name: field for field in dataclasses.fields(BuildConfig)}
    assert sorted(fields) == sorted(parameters)
    texts = documented(BuildConfig)[1]
    assert f"Default: {DEFAULT_JPEG_QUALITY}." in texts["quality"]
    assert f"Default: {DEFAULT_VAL_FRACTION}," in texts["val_fraction"]
    for name, field in fields.items():
        assert texts[name]
        if name != "chain":
            assert field.default == parameters[name].default


def test_defaults_are_filled_in() -> None:
    chain = parse(CHAIN)
    plain = BuildConfig(chain=chain).shard_config(holds_out=False)
    assert (plain.val_chain, plain.quality, plain.val_fraction) == (chain.for_validation(), None, 0.1)
    jpeg = BuildConfig(chain=chain, encoding="jpeg").shard_config(holds_out=True)
    assert (jpeg.quality, jpeg.val_fraction) == (95, None)


@given(st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_larger_held_out_share_contains_the_smaller_one(one: float, other: float) -> None:
    chain = parse("decode|resize(8)")
    low, high = (ShardConfig(chain, chain, val_fraction=share) for share in sorted([one, other]))
    keys = [f"{number}.jpg" for number in range(400)]
    held, more = ({key for key in keys if config.split_of(key, None) == "val"} for config in (low, high))
    assert held <= more
    assert abs(len(more) / 400 - max(one, other)) < 0.1


# Size and statistics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_the_size_of_encoded_images_is_estimated_from_a_sample(photo_folder: Path, encoding: Encoding) -> None:
    chain = parse("decode|resize(64)|brightness(0.5)")
    quality = 95 if encoding == "jpeg" else None
    config = ShardConfig(chain, chain, variants=3, encoding=encoding, quality=quality)
    source = open_source(photo_folder)
    units, features = source.units, source.features
    sizes, maker = [], ImageMaker(config, "train", features)
    for unit in units:
        [record] = unit.read()
        [words] = maker.draw([key_hash(record.key)])
        sizes += [len(encode(made.image, config)[0]) for made in maker.make(record.data, record.targets, words)]
    assert mean_image_bytes(units, config, features) == pytest.approx(3 * np.mean(sizes), rel=0.05)
    broken = [ImageFile("broken.jpg", str(photo_folder), (0,), None, 5, 0)]
    assert mean_image_bytes(broken, config, features) == 3 * (256 << 10)
    assert mean_image_bytes([*units, *broken], config, features) == pytest.approx(3 * np.mean(sizes), rel=0.05)


def test_the_size_of_raw_images_is_known() -> None:
    chain = parse("decode(1)|resize((8, 10))")
    assert mean_image_bytes([], ShardConfig(chain, chain, variants=3), {}) == 3 * 80


@given(
    image=st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    times=st.sampled_from([1, 60, 300]),
)
@settings(deadline=None, max_examples=50)
def test_pixel_sums_are_exact(image: NDArray[np.uint8], times: int) -> None:
    tall = np.concatenate([image] * times)
    wide = tall.astype(np.int64).reshape(-1, image.shape[2])
    expected = PixelStats(len(wide), tuple(wide.sum(axis=0).tolist()), tuple((wide**2).sum(axis=0).tolist()))
    assert pixel_stats_of(tall) == expected


def test_pixel_sums_of_a_large_white_image_are_exact() -> None:
    assert pixel_stats_of(np.full((1025, 700, 3), 255, np.uint8)) == PixelStats(
        1025 * 700, (255 * 1025 * 700,) * 3, (255 * 255 * 1025 * 700,) * 3
    )


@given(st.floats(0, 1e15))
def test_default_shards_are_large_but_enough_for_many_workers(cache_bytes: float) -> None:
    shards = default_shards(cache_bytes, is_raw=True)
    assert 1 <= shards <= MANY_SHARDS
    assert cache_bytes / shards <= 64 << 20 or shards == MANY_SHARDS
    assert shards <= 1 or cache_bytes / (shards - 1) > 4 << 20
    assert shards >= min(16, cache_bytes / (4 << 20))
    encoded = default_shards(cache_bytes, is_raw=False)
    assert cache_bytes / encoded <= 1 << 30 or encoded == MAX_SHARDS
    assert encoded in (shards, -(-cache_bytes // (1 << 30)), MAX_SHARDS)


# Workers that break ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FaultyUnit:
    """A unit that raises what no unit should."""

    error: type[BaseException]
    name: str = "faulty"
    count: int = 1
    split: None = None
    mtime_ns: int = 0
    size_bytes: int | None = None
    targets: tuple[int] | None = None

    def record_keys(self) -> Iterator[str]:
        yield "faulty"

    def read(self) -> Iterator[Record]:
        raise self.error


def run_faulty(folder: Path, error: type[BaseException]) -> None:
    (folder / WORK).mkdir()
    chain = parse("decode|resize(8)")
    run_specs([ShardSpec(str(folder), 0, 1, (FaultyUnit(error),), classes(1), ShardConfig(chain, chain))])


@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError])
def test_a_worker_that_breaks_fails_the_build_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    with pytest.raises(BuildError, match=f"the Beam pipeline failed: .*{error.__name__}") as caught:
        run_faulty(tmp_path, error)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_interrupt_is_not_taken_for_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_faulty(tmp_path, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be an integer"),
        ({"splits": {"valid": "b", "train": "a"}}, "splits must be one of train, val, test, got 'valid'"),
        ({"splits": {"test": "b"}}, "splits must name train"),
        (
            {"target": "age:number"},
            "target must be NAME or NAME:KIND with a kind of class, multilabel, value, text, mask, boxes, points, got 'age:number'",
        ),
        ({"target": ":class"}, "target must name a column before its kind"),
        ({"splits": {"train": "a", "test": "a"}}, "a different name for each split"),
        ({"splits": {"train": ""}}, "the name of split train"),
        ({"image": ""}, "image must be a non-empty string"),
        ({"target": ""}, "target must be a non-empty string"),
    ],
)
def test_options_of_a_source_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SourceConfig(**options)
