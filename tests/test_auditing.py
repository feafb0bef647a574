"""Audits: real arms on real files, equal pictures in all of them, and a log of every run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from joulecache.pipelines.auditing import ARMS, ArmError, Audit, audit
from joulecache.pipelines.auditing.arms import Files, list_files, make_arms, refused_arms
from joulecache.pipelines.build import precompute
from joulecache.pipelines.source import synthetic_photo
from joulecache.transforms.chain import parse

CHAIN = "decode|resize(40) || random_crop(32)|flip_lr"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(48):
        path = folder / f"{'even' if index % 2 == 0 else 'odd'}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(synthetic_photo(index))
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    out = tmp_path_factory.mktemp("audit")
    return audit(photos, CHAIN, out, pairs=2, train_epochs=1, batch_size=16, epochs=10), out


def arms_of(photos: Path, cache: Path, chain: str, **options: Any) -> tuple[Files, dict[str, Any]]:
    precompute(photos, cache, chain, **options)
    files = list_files(photos, cache, 3)
    return files, {arm.name: arm for arm in make_arms(ARMS, files, cache, 16, shuffle=False)}


def pixels(arm: Any, epoch: int) -> Any:
    arm.start_epoch(epoch)
    return np.concatenate([images for images, _ in arm.dataset.as_numpy_iterator()])


@pytest.mark.parametrize(
    "chain",
    [
        CHAIN,
        "decode(shorter=48)|resize_shorter(48)|central_crop(40)|random_crop(32)",
        "decode|resize(64) || random_resized_crop(32)|flip_lr|brightness(0.2)",
        "decode|resize((40, 48)) || flip_lr|contrast(0.3)|random_crop((24, 32))",
    ],
)
def test_all_arms_show_the_reference_pictures(photos: Path, tmp_path: Path, chain: str) -> None:
    cut = parse(chain)
    files, arms = arms_of(photos, tmp_path / "cache", chain)
    for epoch in (0, 2) if cut.suffix else (0,):  # what is cached whole stays as variant 0 has it
        keys = [Path(path).relative_to(photos).as_posix() for path in files.paths]
        expected = np.stack([cut(path, key=key, n=epoch) for path, key in zip(files.paths, keys, strict=True)])
        if epoch == 0:  # the optimized arm counts its epochs itself: it is at its first
            assert np.array_equal(pixels(arms["optimized"], 0), expected)
        for name in ("naive", "tuned", "tf_cache"):
            difference = np.abs(pixels(arms[name], epoch).astype(int) - expected)
            assert difference.mean() < 1.0, name


def test_variants_repeat_in_the_online_arms_as_in_the_cache(photos: Path, tmp_path: Path) -> None:
    files, arms = arms_of(photos, tmp_path / "cache", "decode|resize(40)|random_crop(32)", variants=2)
    assert np.array_equal(files.drawn[0], files.drawn[2])
    assert not np.array_equal(files.drawn[0], files.drawn[1])
    assert np.array_equal(pixels(arms["naive"], 0), pixels(arms["naive"], 2))


def test_every_arm_yields_the_same_types_and_every_image_once(photos: Path, tmp_path: Path) -> None:
    precompute(photos, tmp_path / "cache", CHAIN)
    files = list_files(photos, tmp_path / "cache", 1)
    specs = set()
    for arm in make_arms(ARMS, files, tmp_path / "cache", 16):
        specs.add(str(arm.dataset.element_spec))
        labels = np.concatenate([labels for _, labels in arm.dataset.as_numpy_iterator()])
        assert sorted(labels) == sorted(files.labels), arm.name
    assert len(specs) == 1


def test_an_audit_measures_every_workload_in_every_arm(finished: tuple[Audit, Path]) -> None:
    result, _ = finished
    assert [workload.workload for workload in result.workloads] == ["input", "train", "infer"]
    for workload in result.workloads:
        assert [arm.name for arm in workload.arms] == list(ARMS)
        for arm in workload.arms:
            assert arm.runs == (4 if arm.name == "naive" else 2)
            assert arm.active_j_per_1000.low < arm.active_j_per_1000.value < arm.active_j_per_1000.high
            assert (arm.accuracy is not None) == (workload.workload == "train")
        assert {comparison.other for comparison in workload.comparisons} == {"naive", "tuned", "tf_cache"}
        assert all(comparison.finding == "inconclusive" for comparison in workload.comparisons)


def test_the_build_and_the_fill_are_charged(finished: tuple[Audit, Path]) -> None:
    result, _ = finished
    once = {arm.name: arm.one_time.value for arm in result.workloads[0].arms}
    assert once["naive"] == once["tuned"] == 0
    assert once["optimized"] == pytest.approx(result.build["active_j"])
    assert once["tf_cache"] > 0


def test_the_model_ends_pruned_and_quantized(finished: tuple[Audit, Path]) -> None:
    result, out = finished
    assert result.compression is not None
    files = {variant["name"]: variant["file_bytes"] for variant in result.compression["variants"]}
    assert files["pruned-int8"] < files["pruned-float32"] < files["baseline"]
    assert (out / "models" / "pruned-int8.tflite").stat().st_size == files["pruned-int8"]


def test_every_run_is_logged_in_interleaved_blocks(finished: tuple[Audit, Path]) -> None:
    _, out = finished
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    blocks: dict[tuple[str, int], list[str]] = {}
    for run in runs:
        blocks.setdefault((run["workload"], run["block"]), []).append(run["arm"])
    assert len(blocks) == 6
    assert all(sorted(arms) == sorted([*ARMS, "naive again"]) for arms in blocks.values())
    assert len({tuple(arms) for arms in blocks.values()}) > 1


def test_the_result_is_json_and_nothing_of_the_work_stays(finished: tuple[Audit, Path]) -> None:
    result, out = finished
    body = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert body["report_version"] == 1
    assert body["provenance"]["threads"]["cpus"] >= 1
    assert sorted(path.name for path in out.iterdir()) == ["models", "runs.jsonl"]


def test_the_source_is_not_touched(photos: Path, finished: tuple[Audit, Path]) -> None:
    assert sorted(path.name for path in photos.iterdir()) == ["even", "odd"]
    assert len(list(photos.rglob("*.jpg"))) == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("naive",)}, "arms must have optimized"),
        ({"arms": ("optimized", "naive", "fast")}, "arms must be some of naive, tuned, tf_cache, optimized"),
        ({"workloads": ()}, "workloads must be some of"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"pairs": True}, "pairs must be"),
        ({"train_epochs": 0}, "train_epochs must be"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        audit(photos, CHAIN, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_out_inside_the_source_is_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match="lie inside each other"):
        audit(photos, CHAIN, photos / "out")
    assert not (photos / "out").exists()


def test_a_folder_of_others_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no audit of ours"):
        audit(photos, CHAIN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_images_of_varying_size_cannot_be_batched(photos: Path, tmp_path: Path) -> None:
    precompute(photos, tmp_path / "cache", "decode", encoding="png")
    with pytest.raises(ArmError, match="vary in size"):
        make_arms(ARMS, list_files(photos, tmp_path / "cache", 1), tmp_path / "cache", 16)


def test_online_arms_prefetch_only_where_an_expert_would(photos: Path, tmp_path: Path) -> None:
    _, arms = arms_of(photos, tmp_path / "cache", CHAIN)
    assert "Prefetch" not in type(arms["naive"].dataset).__name__
    assert "Prefetch" in type(arms["tuned"].dataset).__name__
    assert all(isinstance(arm.dataset, tf.data.Dataset) for arm in arms.values())


def test_a_cache_that_does_not_fit_memory_is_left_out_with_the_reason(photos: Path, tmp_path: Path) -> None:
    precompute(photos, tmp_path / "cache", "decode || random_crop(32)", encoding="png")
    files = list_files(photos, tmp_path / "cache", 1)
    assert refused_arms(ARMS, files, tmp_path / "cache") == {}
    large = replace(files, sizes=files.sizes * 10_000)
    assert "GB in RAM" in refused_arms(ARMS, large, tmp_path / "cache")["tf_cache"]
