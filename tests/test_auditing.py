"""Audits: real arms on real files, equal pictures in all of them, and a log of every run."""

from __future__ import annotations

import base64
import io
import json
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_audits import NO_STAGES, arms_in_order, audit, energy, logged

from joulecache.pipelines.auditing import chains
from joulecache.pipelines.auditing.examples import draw_examples
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.building import precomputing
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache, precompute
from joulecache.pipelines.building.results import Built
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.energy.replay import ReplayMeter
from joulecache.pipelines.experiment.arms import Arm, make_arms, refused_arms
from joulecache.pipelines.experiment.blocks import Bench
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.experiment.files import ImageFiles, list_files
from joulecache.pipelines.experiment.names import ARMS, DEFAULT_ARMS
from joulecache.pipelines.experiment.online_arms import batched_from
from joulecache.pipelines.experiment.python_ops import OnlineOps
from joulecache.pipelines.experiment.runs import RunLog
from joulecache.pipelines.experiment.statistics import break_even
from joulecache.pipelines.experiment.workloads import InputOnly, SpentIterators
from joulecache.pipelines.source import open_source, synthetic_photo
from joulecache.transforms.chain import Chain, op_text, parse

CHAIN = "decode|resize(40) || random_crop(32)|flip_lr"


def arms_of(
    synthetic_folder: Path, folder: Path, chain: str, names: Sequence[str] = ARMS, **options: Any
) -> tuple[ImageFiles, dict[str, Any]]:
    config = BuildConfig(chain=parse(chain), **options)
    source = open_source(synthetic_folder, config)
    build_cache(source, folder, config, Meter())
    cache = open_cache(folder)
    files = list_files(synthetic_folder, cache, 3)
    return files, arms_in_order(names, source, config, files, cache, 16)


def pixels(arm: Any, epoch: int) -> Any:
    arm.start_epoch(epoch)
    return np.concatenate([images for images, _ in arm.dataset.as_numpy_iterator()])


@pytest.mark.parametrize(
    "chain",
    [
        CHAIN,
        pytest.param("decode(shorter=48)|resize_shorter(48)|central_crop(40)|random_crop(32)", marks=pytest.mark.slow),
        "decode|resize(64) || random_resized_crop(32)|flip_lr|brightness(0.2)",
        pytest.param(
            "decode|resize(40)|pad((1, 2, 3, 4), (9, 8, 7))|flip_ud || random_crop(32)|cutout((8, 40), 128)|central_crop(31)",
            marks=pytest.mark.slow,
        ),
        "decode(1)|pad(9, padding_mode='reflect')|random_crop(64)|resize(40)|cutout(9) || flip_ud|pad(2, padding_mode='edge')",
        "decode|resize(40)|flip_ud || random_crop(32)|to_float|normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))",
        pytest.param(
            "decode(shorter=140)|random_crop(140) || random_crop(128)|flip_lr|brightness(0.2)|cutout(64)|to_float",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_all_arms_show_the_reference_pictures(synthetic_folder: Path, tmp_path: Path, chain: str) -> None:
    cut = parse(chain)
    level = (1 / 255 if cut.is_float else 1.0) / (0.4 if "normalize" in chain else 1.0)
    files, arms = arms_of(synthetic_folder, tmp_path / "cache", chain, limit=12)
    for epoch in (0, 2):
        keys = [Path(path).relative_to(synthetic_folder).as_posix() for path in files.paths]
        expected = np.stack(
            [cut(path, key=key, n=epoch, variants=1) for path, key in zip(files.paths, keys, strict=True)]
        )
        if epoch == 0:  # the optimized arm counts its epochs itself: it is at its first
            assert np.array_equal(pixels(arms["optimized"], 0), expected)
        for name in ARMS[:-1]:
            shown = pixels(arms[name], epoch)
            assert shown.dtype == expected.dtype
            assert np.abs(shown.astype(float) - expected).mean() < level, name


def test_variants_repeat_in_the_online_arms_as_in_the_cache(synthetic_folder: Path, tmp_path: Path) -> None:
    files, arms = arms_of(
        synthetic_folder, tmp_path / "cache", "decode|resize(40)|random_crop(32)", variants=2, limit=6
    )
    assert np.array_equal(files.drawn[0], files.drawn[2])
    assert not np.array_equal(files.drawn[0], files.drawn[1])
    assert np.array_equal(pixels(arms["naive"], 0), pixels(arms["naive"], 2))
    first, second, third = (pixels(arms["tfrecord"], epoch) for epoch in range(3))
    assert np.array_equal(first, pixels(arms["optimized"], 0))
    assert np.array_equal(second, pixels(arms["optimized"], 1))
    assert np.array_equal(first, third)
    assert not np.array_equal(first, second)


def test_every_arm_yields_the_same_types_and_every_image_once(synthetic_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 20, "shards": 3}
    precompute(synthetic_folder, tmp_path / "cache", CHAIN, **options)
    precompute(synthetic_folder, tmp_path / "tfrecord", CHAIN, format="tfrecord", encoding="png", **options)
    cache, tfrecord = open_cache(tmp_path / "cache"), open_cache(tmp_path / "tfrecord")
    files = list_files(synthetic_folder, cache, 1)
    specs, orders = set(), {}
    for arm in make_arms(ARMS, files, cache, 4, folder=tmp_path / "files", tfrecord=tfrecord):
        specs.add(str(arm.dataset.element_spec))
        epochs = [[labels for _, labels in arm.dataset.as_numpy_iterator()] for _ in range(3)]
        orders[arm.name] = {tuple(np.concatenate(labels)) for labels in epochs}
        for order in orders[arm.name]:
            assert sorted(order) == sorted(np.asarray(files.targets["label"])), arm.name
    assert len(specs) == 1
    assert all(len(found) > 1 for found in orders.values())


@pytest.mark.slow
def test_an_audit_measures_every_workload_in_every_arm(chain_audit: tuple[Audit, Path]) -> None:
    result, _ = chain_audit
    assert [workload.workload for workload in result.workloads] == ["input", "train", "infer"]
    for workload in result.workloads:
        assert [arm.name for arm in workload.arms] == list(DEFAULT_ARMS)
        for arm in workload.arms:
            assert arm.runs == (4 if arm.name == "naive" else 2)
            assert arm.active_j_per_1000.low < arm.active_j_per_1000.value < arm.active_j_per_1000.high
            assert (arm.score is not None) == (workload.workload == "train")
        assert {comparison.other for comparison in workload.comparisons} == {*DEFAULT_ARMS} - {"optimized"}
        assert all(comparison.finding == "inconclusive" for comparison in workload.comparisons)


@pytest.mark.slow
def test_the_build_and_the_fill_are_charged(chain_audit: tuple[Audit, Path]) -> None:
    result, _ = chain_audit
    once = {arm.name: arm.one_time.value for arm in result.workloads[0].arms}
    assert once["naive"] == once["tuned"] == 0
    assert result.build is not None
    assert once["optimized"] == pytest.approx(result.build.active_j)
    assert once["tf_cache"] > 0
    assert once["tfrecord"] > 0


@pytest.mark.slow
def test_the_model_ends_pruned_and_quantized(chain_audit: tuple[Audit, Path]) -> None:
    result, out = chain_audit
    assert result.compression is not None
    files = {each.name: each.file_bytes for each in result.compression.model_files}
    assert files["pruned-int8"] < files["pruned-float32"] < files["baseline"]
    assert (out / "models" / "pruned-int8.tflite").stat().st_size == files["pruned-int8"]


@pytest.mark.slow
def test_every_run_is_logged_in_interleaved_blocks(chain_audit: tuple[Audit, Path]) -> None:
    _, out = chain_audit
    runs = logged(out)
    blocks: dict[tuple[str, int], list[tuple[str, str]]] = {}
    fills = [run for run in runs if run["workload"] == "fill"]
    assert [(run["block"], run["arm"]) for run in fills] == [(0, "tf_cache"), (1, "tf_cache")]
    for run in runs:
        if run["workload"] in ("input", "train", "infer"):
            blocks.setdefault((run["workload"], run["block"]), []).append((run["arm"], run["role"]))
    assert len(blocks) == 6
    each = [*((name, "arm") for name in DEFAULT_ARMS), ("naive", "control")]
    assert all(sorted(arms) == sorted(each) for arms in blocks.values())
    assert len({tuple(arms) for arms in blocks.values()}) > 1


@pytest.mark.slow
def test_the_result_is_json_and_nothing_of_the_work_stays(chain_audit: tuple[Audit, Path]) -> None:
    result, out = chain_audit
    body = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert body["report_version"] == 1
    assert body["provenance"]["threads"]["cpus"] >= 1
    assert sorted(path.name for path in out.iterdir()) == [".audit", "models", "runs.jsonl"]
    assert sorted(path.name for path in (out / ".audit").iterdir()) == ["cache.json", "settings.json"]


@pytest.mark.slow
def test_the_source_is_not_touched(
    photo_folder: Path, photos: dict[str, bytes], chain_audit: tuple[Audit, Path]
) -> None:
    assert chain_audit[0].source == str(photo_folder)
    found = {path.relative_to(photo_folder).as_posix(): path.read_bytes() for path in photo_folder.rglob("*.jpg")}
    assert found == photos


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("naive",)}, "arms must include optimized"),
        ({"arms": ("optimized", "naive", "fast")}, "arms must be some of naive, tuned, tf_cache, tf_cache_file"),
        ({"workloads": ()}, "workloads must be some of"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"pairs": True}, "pairs must be"),
        ({"train_epochs": 0}, "train_epochs must be"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    synthetic_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        audit(synthetic_folder, CHAIN, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_out_inside_the_source_is_refused(synthetic_folder: Path) -> None:
    with pytest.raises(ValueError, match="overlap"):
        audit(synthetic_folder, CHAIN, synthetic_folder / "out")
    assert not (synthetic_folder / "out").exists()


def test_a_folder_of_others_is_refused(synthetic_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not an audit"):
        audit(synthetic_folder, CHAIN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_images_of_varying_size_cannot_be_batched(synthetic_folder: Path, tmp_path: Path) -> None:
    precompute(synthetic_folder, tmp_path / "cache", "decode", encoding="jpeg", limit=4)
    cache = open_cache(tmp_path / "cache")
    with pytest.raises(ArmError, match="vary in size"):
        make_arms(ARMS, list_files(synthetic_folder, cache, 1), cache, 16)


# Recorded energy, so that verdicts are tested on joules that are known ------------------------------------------------


REPLAYED: dict[str, Any] = {
    "arms": ("naive", "optimized"),
    "workloads": ("input",),
    "pairs": 6,
    "batch_size": 16,
    "seed": 3,
    "budget": NO_STAGES,
}
BUILD_J = 30.0

Recorded = tuple[Audit, Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def recorded(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """An audit with a real meter, its recording, and its runs."""
    folder = tmp_path_factory.mktemp("recorded")
    file = folder / "windows.jsonl"
    found = audit(photo_folder, CHAIN, folder / "audit", meter=Meter(record=file), **REPLAYED)
    return found, file, logged(folder / "audit")


def test_a_recorded_audit_replays_to_the_last_bit(photo_folder: Path, recorded: Recorded, tmp_path: Path) -> None:
    found, file, _ = recorded
    again = audit(photo_folder, CHAIN, tmp_path / "audit", meter=ReplayMeter(file), **REPLAYED)
    assert again.workloads == found.workloads
    assert again.build is not None
    assert found.build is not None
    assert again.build.energy == found.build.energy
    assert again.provenance.meter == ReplayMeter(file).provenance()


@pytest.mark.slow
def test_the_verdict_counts_the_energy_of_the_processes_that_built_the_cache(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(*arguments: Any) -> Built:
        built.append(precomputing.build_cache(*arguments))
        return built[-1]

    monkeypatch.setattr(precomputing, "_FEW_RECORDS", 0)  # as many worker processes as CPUs
    monkeypatch.setattr(chains, "build_cache", build)
    result = audit(photo_folder, CHAIN, tmp_path / "audit", **REPLAYED)
    [made] = built
    assert made.manifest.energy is not None
    [host] = made.manifest.energy.parts
    assert host.launcher is not None
    assert host.workers is not None
    assert host.worker_processes == len(made.workers)
    assert result.build is not None
    assert result.build.energy == made.manifest.build_energy
    assert result.build.active_j == pytest.approx(host.launcher.active_j + host.workers.active_j)
    workload = result.workloads[0]
    (compared,) = workload.comparisons
    assert result.records is not None
    epoch_j = workload.arms[0].active_j_per_1000.value * result.records.train / 1000
    paid = break_even(result.build.active_j, epoch_j, compared.ratio)
    assert compared.break_even.epochs == (paid.epochs and pytest.approx(paid.epochs, rel=0.2))


@pytest.mark.parametrize(
    ("of_naive", "finding"),
    [
        (0.5, "saves"),
        pytest.param(1.5, "costs", marks=pytest.mark.slow),
        pytest.param(1.0, "no difference shown", marks=pytest.mark.slow),
    ],
    ids=["half", "half as much again", "the same"],
)
@pytest.mark.parametrize("gpu_j", [0.0, pytest.param(40.0, marks=pytest.mark.slow)], ids=["", "with a GPU"])
def test_the_verdict_on_recorded_joules(
    photo_folder: Path, recorded: Recorded, tmp_path: Path, of_naive: float, finding: str, gpu_j: float
) -> None:
    _, file, runs = recorded
    made = [file.read_text().splitlines()[0], json.dumps({"window": "build", "energy": energy(BUILD_J).to_json()})]
    for run in runs:
        # in turns a little more and a little less than naive, so that the control has something to show
        first = (run["arm"], run["role"]) == ("naive", "arm")
        noise = 1.0 if first else 1.02 if run["block"] % 2 else 1 / 1.02
        whole_j = (of_naive if run["arm"] == "optimized" else 1.0) * 50.0 * noise
        share_j = gpu_j * whole_j / 50.0  # a GPU that waits uses energy, too
        spent = energy(whole_j - share_j, share_j or None)
        made.append(json.dumps({"window": run["workload"], "energy": spent.to_json()}))
    (tmp_path / "made.jsonl").write_text("\n".join(made) + "\n")
    meter = ReplayMeter(tmp_path / "made.jsonl")
    result = audit(photo_folder, CHAIN, tmp_path / "audit", meter=meter, epochs=10, runs=5, **REPLAYED)
    (compared,) = result.workloads[0].comparisons
    assert compared.finding == finding
    assert compared.ratio.value == pytest.approx(of_naive, rel=0.03)
    assert result.build is not None
    assert result.records is not None
    assert result.build.active_j == BUILD_J
    if finding == "saves":
        assert compared.break_even.epochs == pytest.approx(BUILD_J / (50.0 - 25.0), rel=0.05)
        assert compared.runs == 5
        assert compared.break_even.epochs is not None
        assert compared.break_even_over_runs.epochs == pytest.approx(compared.break_even.epochs / 5)
    if finding == "costs":
        assert compared.break_even.epochs is None
    assert result.workloads[0].arms[0].active_j_per_1000.value == pytest.approx(
        50.0 / result.records.train * 1000, rel=0.05
    )


@pytest.fixture
def turned_photos(tmp_path: Path) -> Path:
    """Photos that cameras held in different ways: a quarter each upright, on the head, on a side, and with a number that means nothing."""
    folder = tmp_path / "turned"
    folder.mkdir()
    for index in range(8):
        exif = Image.Exif()
        exif[0x0112] = (1, 3, 6, 9)[index % 4]
        Image.open(io.BytesIO(synthetic_photo(index))).save(folder / f"{index:02}.jpg", exif=exif)
    return folder


@pytest.mark.parametrize(
    ("chain", "variants", "later"),
    [
        (CHAIN, 1, 3),
        ("decode(1)|resize((90, 130))|random_crop(80)", 1, 0),
        ("decode(1)|resize((90, 130))|random_crop(80)", 2, 3),
        ("decode|resize(40) || random_crop(32)|flip_lr|to_float", 1, 3),
    ],
)
def test_samples_are_what_the_chain_gives(
    synthetic_folder: Path, tmp_path: Path, chain: str, variants: int, later: int
) -> None:
    precompute(synthetic_folder, tmp_path / "cache", chain, variants=variants, seed=5, limit=8)
    cache = open_cache(tmp_path / "cache")
    samples = draw_examples(list_files(synthetic_folder, cache, 4), synthetic_folder, cache)
    parsed = parse(chain)
    steps = [op_text(op) for op in (*parsed.prefix, *parsed.on_images)]
    assert len({sample.key for sample in samples}) == 3
    for sample in samples:
        assert [picture.step for picture in sample.images] == [*steps, *(f"epoch {1 + n}" for n in range(later))]
        assert [place for place, picture in enumerate(sample.images) if picture.cached] == [parsed.cut - 1]
        assert sample.class_name == sample.key.partition("/")[0]
        shown = Chain((*parsed.prefix, *parsed.on_images), parsed.cut)
        for epoch, picture in enumerate(sample.images[len(steps) - 1 :]):
            data = (synthetic_folder / sample.key).read_bytes()
            whole = shown(data, key=sample.key, seed=5, n=epoch, variants=variants)
            height, width, _ = whole.shape
            seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.jpeg))))
            times = 112 // max(height, width)
            assert seen.shape[:2] == (times * height, times * width)
            there = whole.repeat(times, 0).repeat(times, 1).reshape(seen.shape)
            assert np.abs(there.astype(float) - seen).mean() < 8  # JPEG


@pytest.mark.slow
def test_photos_turned_by_exif_are_the_same_in_every_arm(turned_photos: Path, tmp_path: Path) -> None:
    chain = "decode(shorter=80)|resize_shorter(80)|random_crop((60, 40)) || flip_lr"
    result = audit(turned_photos, chain, tmp_path / "out", workloads=("input",), pairs=1, batch_size=8)
    assert set(result.pixel_difference) == set(DEFAULT_ARMS)
    assert max(result.pixel_difference.values()) <= 0.5


def test_the_orientations_of_files_are_listed_only_where_one_is_turned(
    synthetic_folder: Path, turned_photos: Path, tmp_path: Path
) -> None:
    precompute(turned_photos, tmp_path / "turned-cache", "decode(shorter=80)|resize(32)")
    files = list_files(turned_photos, open_cache(tmp_path / "turned-cache"), 1)
    assert files.orientations is not None
    for path, orientation, (height, width) in zip(files.paths, files.orientations, files.sizes, strict=True):
        assert orientation == (1, 3, 6, 1)[int(Path(path).stem) % 4]
        assert (height > width) == (orientation == 6)
        assert (height, width) == parse("decode(shorter=80)")(path).shape[:2]
    precompute(synthetic_folder, tmp_path / "cache", "decode|resize(32)", limit=4)
    assert list_files(synthetic_folder, open_cache(tmp_path / "cache"), 1).orientations is None


@pytest.mark.slow
def test_floats_are_audited_as_input(synthetic_folder: Path, tmp_path: Path) -> None:
    chain = "decode|resize(40) || random_crop(32)|flip_lr|to_float|normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))"
    result = audit(synthetic_folder, chain, tmp_path / "out", workloads=("input",), pairs=1, batch_size=16)
    assert [workload.workload for workload in result.workloads] == ["input"]
    assert 0 < max(result.pixel_difference.values()) <= 0.5  # in levels: TensorFlow resizes a little differently
    _, arms = arms_of(synthetic_folder, tmp_path / "cache", chain)
    for arm in arms.values():
        images, _ = arm.dataset.element_spec
        assert (images.dtype, images.shape[1:].as_list()) == (tf.float32, [32, 32, 3])


@pytest.mark.parametrize("workloads", [("input", "train", "infer"), ("train",), ("infer",)])
def test_floats_are_refused_where_a_model_would_scale_them_again(
    synthetic_folder: Path, tmp_path: Path, workloads: tuple[str, ...]
) -> None:
    with pytest.raises(ArmError, match=r"makes floats, .* choose --workload input, or drop to_float and normalize"):
        audit(synthetic_folder, "decode|resize(40) || to_float", tmp_path / "out", workloads=workloads)
    assert not (tmp_path / "out").exists()


def saved(kind: str, mode: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        Image.open(io.BytesIO(synthetic_photo(1))).convert(mode).save(folder / f"odd.{kind.lower()}", kind)

    return save


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "P"), ("GIF", "P"), ("BMP", "L"), ("WEBP", "RGB")]
)
def test_a_file_that_tensorflow_decodes_alike_is_the_same_in_every_arm(tmp_path: Path, kind: str, mode: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    saved(kind, mode)(folder)
    online = ("naive", "tuned", "tf_cache")
    names = (*online, "optimized")
    _, arms = arms_of(folder, tmp_path / "cache", "decode|central_crop(40) || flip_lr", names, val_fraction=0)
    expected = pixels(arms["optimized"], 0)
    for name in online:
        assert np.array_equal(pixels(arms[name], 0), expected), name


def cached_images(dataset: Any) -> tuple[Any, list[int | None]]:
    """Return the dtype and the shape of the images that a dataset has in its `cache()`."""
    while "Cache" not in type(dataset).__name__:
        [dataset] = dataset._inputs()
    image = dataset.element_spec[0]
    return image.dtype, image.shape.as_list()


@pytest.mark.parametrize(
    ("chain", "variants", "shape"),
    [
        ("decode|resize(40) || to_float", 1, [40, 40, 3]),
        ("decode|resize(40) || random_crop(32)|to_float", 1, [40, 40, 3]),
        ("decode|resize(48) || flip_ud(1.0)|central_crop(36)|cutout(8)|central_crop(32)", 1, [36, 36, 3]),
        ("decode|resize(40)|random_crop(36)|pad(1) || random_crop(32)", 2, [40, 40, 3]),
        ("decode|resize_shorter(40)|random_crop(32)", 1, [32, 32, 3]),
        ("decode|resize_shorter(40)|random_crop(32)", 2, [None, None, 3]),
    ],
)
def test_tf_cache_holds_uint8_after_all_that_is_the_same_in_every_epoch(
    synthetic_folder: Path, tmp_path: Path, chain: str, variants: int, shape: list[int | None]
) -> None:
    _, arms = arms_of(synthetic_folder, tmp_path / "cache", chain, ["tf_cache"], variants=variants, limit=8)
    assert cached_images(arms["tf_cache"].dataset) == (tf.uint8, shape)


@pytest.mark.parametrize(
    ("chain", "by_image"),
    [
        ("decode|resize(40)|random_crop(32)|flip_lr", "decode|resize(40)"),
        ("decode|resize(32)|pad(4)|random_crop(32)|flip_ud|cutout(8)|contrast(0.1)", "decode|resize(32)"),
        ("decode|resize(40) || flip_lr|to_float|normalize(0.5, 0.5)", "decode|resize(40)"),
        ("decode|resize(40)|random_resized_crop(32)|flip_ud", "decode|resize(40)|random_resized_crop(32)"),
        ("decode|pad(4)|random_crop(32)|flip_ud", "decode|pad(4)|random_crop(32)"),
        (
            "decode|resize(256)|random_crop(224)|flip_lr|cutout(9) || to_float",
            "decode|resize(256)|random_crop(224)|flip_lr",
        ),
        ("decode|resize(224)|flip_lr|random_crop(64)|pad(2)", "decode|resize(224)|flip_lr"),
        ("decode|resize(40)", "decode|resize(40)"),
    ],
)
def test_batches_are_made_where_the_rest_costs_less_on_them(chain: str, by_image: str) -> None:
    ops = parse(chain).ops
    online = OnlineOps.of(parse(chain))
    assert ops[: batched_from(online, 1)] == parse(by_image).ops
    assert batched_from(online, len(ops)) == len(ops)


def test_online_arms_prefetch_only_where_an_expert_would(synthetic_folder: Path, tmp_path: Path) -> None:
    _, arms = arms_of(synthetic_folder, tmp_path / "cache", CHAIN, limit=4)
    assert "Prefetch" not in type(arms["naive"].dataset).__name__
    assert "Prefetch" in type(arms["tuned"].dataset).__name__
    assert all(isinstance(arm.dataset, tf.data.Dataset) for arm in arms.values())


@pytest.mark.slow
def test_a_cache_that_does_not_fit_memory_is_left_out_with_the_reason(synthetic_folder: Path, tmp_path: Path) -> None:
    precompute(synthetic_folder, tmp_path / "cache", "decode || random_crop(32)", encoding="png")
    cache = open_cache(tmp_path / "cache")
    files = list_files(synthetic_folder, cache, 1)
    assert refused_arms(ARMS, files, cache, tmp_path) == {}
    large = replace(files, sizes=files.sizes * 10_000)
    refused = refused_arms(ARMS, large, cache, tmp_path)
    assert "GB of RAM" in refused["tf_cache"]
    assert "GB of disk" in refused["tf_cache_file"]


class Slow:
    """What waits for a moment when nobody holds it any longer."""

    def __init__(self, moment: threading.Event) -> None:
        self.moment = moment

    def __del__(self) -> None:
        assert self.moment.wait(60)


def test_iterators_are_let_go_of_outside_of_what_is_measured() -> None:
    numbers = tf.data.Dataset.range(8).batch(4)
    work, reads_on = InputOnly(epochs=2), Arm("numbers", 8, numbers, reads_on=True)
    held: list[weakref.ref[object]] = []
    keep: Any = work.spent.keep

    def note(arm: Arm, iterator: object) -> None:
        held.append(weakref.ref(iterator))
        keep(arm, iterator)

    work.spent.keep = note  # type: ignore[method-assign]
    assert work.run(reads_on, 0) == 16
    assert len(held) == 2
    assert all(iterator() is not None for iterator in held)  # the window of a run ends before they do
    work.release()
    assert all(iterator() is None for iterator in held)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_held_behind_the_last_run(tmp_path: Path, fails: bool) -> None:
    def fail(images: Any) -> Any:
        return tf.debugging.assert_less(images, np.int64(4)) if fails else images

    numbers = tf.data.Dataset.range(8).batch(4).map(lambda images: (fail(images), images)[1])
    work = InputOnly(shortest_s=0.02)
    bench = Bench(RunLog(tmp_path / "runs.jsonl"), Meter(), 0, "numbers")
    with pytest.raises(ArmError) if fails else nullcontext():
        bench.measure(work, [Arm("numbers", 8, numbers)], 2)
    # destroyed one after the other by whoever drops the workload, they would sleep for up to a minute each
    assert work.spent._at_rest == []


def test_only_iterators_that_may_still_work_are_waited_for() -> None:
    at_rest = Arm("naive", 8, None)
    spent, moment = SpentIterators(), threading.Event()
    slow: Any = Slow(moment)
    spent.keep(at_rest, slow)
    del slow
    spent.drop()  # waiting here would take a minute, and fail
    moment.set()
    slow = Slow(moment)
    spent.keep(replace(at_rest, reads_on=True), slow)
    del slow
    spent.drop()


def test_a_short_epoch_is_run_several_times_as_often_in_every_block() -> None:
    epochs: list[int] = []
    arm = Arm("short", 8, tf.data.Dataset.range(8).batch(4), epochs.append)
    work = InputOnly(shortest_s=0.05)
    assert work.run(arm, 0) == 16  # its first time, and one that says how long it takes
    times = work.run(arm, 1) // 8
    assert times >= 2
    assert work.run(arm, 1 + times) == 8 * times
    assert epochs == [0, 0, *range(1, 1 + 2 * times)]
    work.release()
    work = InputOnly()
    assert work.run(arm, 0) == 8
    work.release()
