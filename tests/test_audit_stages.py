"""Where the joules go: the naive arm is really cut off step by step, the arithmetic closes, and waiting is a separate stage."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_audits import audit, energy, logged

from joulecache.pipelines.auditing.config import Budget
from joulecache.pipelines.auditing.results import Audit, Stages
from joulecache.pipelines.auditing.stages import split, unattributed_j
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.energy import Component, Energy, Meter
from joulecache.pipelines.energy.replay import ReplayMeter
from joulecache.pipelines.experiment.arms import Arm, make_arms, make_prefix_arms
from joulecache.pipelines.experiment.blocks import Bench
from joulecache.pipelines.experiment.files import ImageFiles, list_files
from joulecache.pipelines.experiment.results import Waiting
from joulecache.pipelines.experiment.runs import Role, Run, RunLog
from joulecache.pipelines.experiment.waiting import input_runs, price_waiting
from joulecache.pipelines.experiment.workloads import Training, train_from_scratch
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms.chain import parse

CHAIN = "decode|resize(40) || random_crop(32)|flip_lr"
INPUT = ("tf.data", "read", "decode", "resize(40)", "random_crop(32)", "flip_lr", "batch")
AUDITED = ("tf.data", "read", "decode", "resize(24)", "random_crop(20)", "flip_lr", "batch")  # of the shared audit


@pytest.fixture(scope="module")
def few(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few photos."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(photo_folder.rglob("*.jpg"))[:18]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageFiles, Cache]:
    """The files of a cache, and the cache."""
    folder = tmp_path_factory.mktemp("built") / "cache"
    precompute(few, folder, CHAIN, val_fraction=0)
    cache = open_cache(folder)
    return list_files(few, cache, 2), cache


def numbers(arm: Arm, epoch: int = 0) -> list[int]:
    arm.start_epoch(epoch)
    return sorted(int(number) for batch, _ in arm.dataset.as_numpy_iterator() for number in batch)


# The arms that are cut off --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "names"),
    [
        (
            "decode|resize_shorter(48) || random_crop(32)|flip_lr|pad(2)|flip_lr|brightness(0.3)|to_float",
            ["resize_shorter(48)", "random_crop(32)", "flip_lr", "pad(2)", "flip_lr 2", "brightness(0.3)", "to_float"],
        ),
        (
            "decode|random_resized_crop(30) || contrast(0.4)|cutout(20)|flip_ud|central_crop(24)",
            ["random_resized_crop(30)", "contrast(0.4)", "cutout(20)", "flip_ud", "central_crop(24)"],
        ),
    ],
)
def test_each_prefix_knows_what_its_last_step_made_and_no_step_after_it(
    few: Path, tmp_path: Path, chain: str, names: list[str]
) -> None:
    precompute(few, tmp_path / "cache", chain, val_fraction=0, limit=3, encoding="png")
    cache = open_cache(tmp_path / "cache")
    files = list_files(few, cache, 2)
    first, read, *ops, batch = make_prefix_arms(files, cache, 2)
    assert [arm.name for arm in (first, read, *ops, batch)] == ["tf.data", "read", "decode", *names, "batch"]
    assert numbers(first) == [0, 1, 2]
    assert numbers(read) == sorted(Path(path).stat().st_size for path in files.paths)
    steps = parse(chain).ops
    for count, arm in enumerate(ops, start=1):
        made = []
        for row, path in enumerate(files.paths):
            drawn = tf.constant(files.drawn[1, row])
            made.append(int(graphs.apply(steps[:count], tf.io.read_file(path), drawn)[0, 0, 0]))
        assert numbers(arm, epoch=1) == sorted(made), arm.name
    assert {arm.dataset.element_spec[0].dtype for arm in (first, read, *ops)} == {tf.int32}
    (naive,) = make_arms(["naive"], files, cache, 2)
    assert batch.dataset.element_spec == naive.dataset.element_spec


def test_a_file_that_cannot_be_decoded_breaks_the_prefixes_that_decode(
    built: tuple[ImageFiles, Cache], tmp_path: Path
) -> None:
    files, cache = built
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    first, read, *others = make_prefix_arms(
        replace(files, paths=(str(tmp_path / "broken.jpg"), *files.paths[1:])), cache, 4
    )
    assert len(numbers(first)) == len(numbers(read)) == len(files.paths)
    for arm in others:
        with pytest.raises(tf.errors.InvalidArgumentError):
            list(arm.dataset)


def test_some_files_are_drawn_once_by_the_seed_with_all_that_belongs_to_them(built: tuple[ImageFiles, Cache]) -> None:
    files = replace(built[0], orientations=np.arange(len(built[0].paths), dtype=np.int32))
    some = files.sample(7, seed=3)
    assert some.orientations is not None
    rows = some.orientations.tolist()
    assert len(rows) == len(set(rows)) == 7
    assert rows == sorted(rows) != list(range(7))
    assert some.paths == tuple(files.paths[row] for row in rows)
    assert np.array_equal(some.drawn, files.drawn[:, rows])
    assert np.array_equal(some.sizes, files.sizes[rows])
    assert np.array_equal(np.asarray(some.targets["label"]), np.asarray(files.targets["label"])[rows])
    assert files.sample(7, seed=3).paths == some.paths != files.sample(7, seed=4).paths
    assert files.sample(len(files.paths), seed=3).paths == files.paths


# The arithmetic -------------------------------------------------------------------------------------------------------

series = st.integers(2, 7).flatmap(
    lambda blocks: st.lists(
        st.lists(st.floats(0, 1e3), min_size=blocks, max_size=blocks),
        min_size=1,
        max_size=9,
    )
)


@given(series, st.floats(1e-3, 1e4))
def test_stages_are_paired_differences_never_below_0_and_close_the_sum(
    measured: list[list[float]], whole: float
) -> None:
    names = [str(place) for place in range(len(measured))]
    found = split(dict(zip(names, measured, strict=True)), cached=names[1:2])
    assert [stage.name for stage in found] == names
    assert [stage.cached for stage in found] == [name == "1" for name in names]
    blocks = len(measured[0])
    for place, stage in enumerate(found):
        before = measured[place - 1] if place else [0.0] * blocks
        added = [measured[place][block] - before[block] for block in range(blocks)]
        mean = statistics.fmean(added)
        reach = stats.t.ppf(0.975, blocks - 1) * statistics.stdev(added) / blocks**0.5
        assert stage.low == pytest.approx(max(0.0, mean - reach), rel=1e-6, abs=1e-6)
        assert stage.high == pytest.approx(max(0.0, mean + reach), rel=1e-6, abs=1e-6)
        if stage.active_j_per_1000 is None:
            assert mean - reach <= 1e-6
        else:
            assert stage.active_j_per_1000 == pytest.approx(mean)
            assert 0 < stage.low <= stage.active_j_per_1000 <= stage.high
    resolved = [stage.active_j_per_1000 for stage in found if stage.active_j_per_1000 is not None]
    assert sum(resolved) + unattributed_j(whole, found) == pytest.approx(whole, abs=1e-6)


# Real files, a real meter ---------------------------------------------------------------------------------------------


def stages_of(result: Audit) -> Stages:
    assert result.stages is not None
    return result.stages


@pytest.mark.slow
def test_an_audit_says_where_the_joules_go(chain_audit: tuple[Audit, Path]) -> None:
    result, runs = chain_audit[0], logged(chain_audit[1])
    found = stages_of(result)
    names = [*AUDITED, "copy", "training step"]
    assert [stage.name for stage in found.stages] == names
    assert [stage.name for stage in found.stages if stage.cached] == ["read", "decode", "resize(24)", "random_crop(20)"]
    (whole,) = (workload.arms[0] for workload in result.workloads if workload.workload == "train")
    assert (found.workload, found.blocks) == ("train", 5)
    assert found.whole_j_per_1000 == whole.active_j_per_1000.value
    resolved = [stage.active_j_per_1000 or 0.0 for stage in found.stages]
    assert sum(resolved) + found.unattributed_j_per_1000 == pytest.approx(found.whole_j_per_1000)
    measured = {name: [0.0] * 5 for name in names}
    for run in runs:
        if run["workload"] == "stages":
            assert run["images"] == found.images
            measured[run["arm"]][run["block"]] = 1000 * run["energy"]["active_j"] / run["images"]
    assert found.stages == split(measured, cached=["read", "decode", "resize(24)", "random_crop(20)"])


@pytest.mark.slow
def test_stages_run_in_interleaved_blocks_and_the_warm_up_is_not_kept(chain_audit: tuple[Audit, Path]) -> None:
    runs = logged(chain_audit[1])
    orders = [
        tuple(run["arm"] for run in runs if (run["workload"], run["block"]) == ("stages", block)) for block in range(5)
    ]
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted([*AUDITED, "copy", "training step"]))}
    assert len(set(orders)) > 1


@pytest.mark.slow
def test_trainings_say_how_long_they_waited(chain_audit: tuple[Audit, Path]) -> None:
    result = chain_audit[0]
    for run in logged(chain_audit[1]):
        trains = run["workload"] in ("train", "variants") or run["arm"] == "training step"
        assert (run["waited_s"] is not None) == trains
        if trains:
            assert 0 < run["waited_s"] <= run["energy"]["duration_s"]
    fed, trained, inferred = result.workloads
    assert all(arm.waiting is None for arm in (*fed.arms, *inferred.arms))
    for arm in trained.arms:
        waiting = arm.waiting
        assert waiting is not None
        assert 0 < waiting.share_of_time <= 1
        assert waiting.total_j_per_1000 is not None
        assert waiting.share_of_total is not None
        assert waiting.share_of_total == pytest.approx(
            waiting.total_j_per_1000.value / arm.total_j_per_1000.value, rel=0.2
        )
    json.dumps(result.to_json(), allow_nan=False)


# Recorded energy, so that the stages are known ------------------------------------------------------------------------

REPLAYED: dict[str, Any] = {"arms": ("naive", "optimized"), "workloads": ("input",), "batch_size": 8, "seed": 5}
KNOWN_J = {
    "tf.data": 1.0,
    "read": 2.0,
    "decode": 20.0,
    "resize(40)": 9.0,
    "random_crop(32)": 3.0,
    "flip_lr": 0.0,
    "batch": 5.0,
}


def counted(cpu_j: float, gpu_j: float | None = None, idle_j: float | None = None, duration_s: float = 1.0) -> Energy:
    modelled = "modelled:cpu-seconds@1"
    return energy(cpu_j, gpu_j, idle_j, duration_s=duration_s, bounds=(0.5, 2.0), method=modelled)


@pytest.fixture(scope="module")
def recorded(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path, list[dict[str, Any]]]:
    """An audit of the input with a real meter, its recording, and which run was of what."""
    folder = tmp_path_factory.mktemp("recorded")
    file = folder / "windows.jsonl"
    result = audit(few, CHAIN, folder / "audit", pairs=6, meter=Meter(record=file), **REPLAYED)
    return result, file, logged(folder / "audit")


@pytest.mark.slow
def test_known_joules_come_out_as_known_stages(
    few: Path, recorded: tuple[Audit, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    _, file, runs = recorded
    upto = {name: sum(list(KNOWN_J.values())[: place + 1]) for place, name in enumerate(KNOWN_J)}
    made = [file.read_text().splitlines()[0], json.dumps({"window": "build", "energy": counted(30.0).to_json()})]
    for run in runs:
        per_1000 = 42.0 if run["workload"] == "input" else upto[run["arm"]]
        if run["arm"] == "flip_lr":  # nothing but noise
            per_1000 += 0.4 if run["block"] % 2 else -0.4
        energy = counted(per_1000 * run["images"] / 1000)
        made.append(json.dumps({"window": run["workload"], "energy": energy.to_json()}))
    (tmp_path / "made.jsonl").write_text("\n".join(made) + "\n")
    result = audit(few, CHAIN, tmp_path / "audit", pairs=6, meter=ReplayMeter(tmp_path / "made.jsonl"), **REPLAYED)
    found = stages_of(result)
    assert (found.workload, found.blocks) == ("input", 6)
    assert [stage.name for stage in found.stages] == list(KNOWN_J)  # nothing is trained
    for stage in found.stages:
        if stage.name == "flip_lr":
            assert (stage.active_j_per_1000, stage.low) == (None, 0)
            assert 0 < stage.high < 1
        else:
            assert stage.active_j_per_1000 == pytest.approx(KNOWN_J[stage.name])
    assert found.whole_j_per_1000 == pytest.approx(42)
    assert found.unattributed_j_per_1000 == pytest.approx(2)


# Stopped and gone on with ---------------------------------------------------------------------------------------------


def stopping(block: int, entries: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith(f"stages: block {block} ") and done % entries == 3:
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
def test_stages_go_on_where_they_were_stopped_over_the_same_files(few: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"arms": ("naive", "optimized"), "workloads": ("input",), "batch_size": 4, "pairs": 2}
    out = tmp_path / "audit"
    with pytest.raises(KeyboardInterrupt):
        audit(few, CHAIN, out, progress=stopping(3, len(INPUT)), **settings)
    before = logged(out)
    longer = Budget(shortest_run_s=0.0, stage_run_s=60.0)
    found = stages_of(audit(few, CHAIN, out, budget=longer, **settings))
    after = logged(out)
    assert after[: len(before)] == before
    of = [run for run in after if run["workload"] == "stages"]
    assert {run["images"] for run in of} == {found.images} == {4}
    assert {(run["block"], run["attempt"]) for run in of} == {(0, 1), (1, 1), (2, 1), (2, 2), (3, 2), (4, 2)}
    assert len([run for run in of if run["attempt"] == 2]) == 3 * len(INPUT)


def test_runs_of_older_logs_have_not_waited(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    log.add(run_of("naive", counted(1.0), waited_s=0.25))
    body = json.loads(log.path.read_text())
    assert RunLog(log.path).runs[0].waited_s == 0.25
    del body["waited_s"]
    log.path.write_text(json.dumps(body) + "\n")
    assert RunLog(log.path).runs[0].waited_s is None


# Waiting --------------------------------------------------------------------------------------------------------------


def run_of(
    arm: str,
    energy: Energy,
    workload: str = "train",
    block: int = 0,
    waited_s: float | None = None,
    role: Role = "arm",
    part: str | None = None,
) -> Run:
    return Run(
        attempt=1,
        workload=workload,
        block=block,
        place=0,
        arm=arm,
        images=500,
        energy=energy,
        score=None,
        waited_s=waited_s,
        role=role,
        part=part,
    )


def test_waiting_takes_the_idle_watts_of_the_machine_and_of_the_gpu() -> None:
    # 10 s of training, 8 of them waited: 20 W of idle machine; the GPU takes 70 W while only the input runs
    trained = [run_of("naive", counted(50.0, 900.0, 200.0, 10.0), block=block, waited_s=8.0) for block in range(3)]
    fed = [run_of("naive", counted(40.0, 350.0, 100.0, 5.0), "input"), run_of("tuned", counted(1.0, 9.0), "input")]
    waiting = price_waiting(trained, input_runs("naive", [*fed, *trained]))
    assert waiting is not None
    assert waiting.share_of_time == pytest.approx(0.8)
    assert waiting.total_j_per_1000 is not None
    assert waiting.total_j_per_1000.value == pytest.approx(2 * 8 * (20 + 70))
    assert waiting.total_j_per_1000.low == pytest.approx(8 * (20 + 70))
    assert waiting.total_j_per_1000.high == pytest.approx(4 * 8 * (20 + 70))
    share = 8 * (20 + 70) / (50 + 900 + 200)
    assert share > 0.5  # the largest part
    assert waiting.share_of_total == pytest.approx(share)
    assert waiting.method == "modelled:cpu-seconds@1+measured:nvml"
    assert waiting.at_most


def test_the_input_of_a_training_by_itself_tells_the_watts_of_an_idle_gpu_too() -> None:
    trained = [run_of("mine", counted(50.0, 900.0, 200.0, 10.0), waited_s=2.0)]
    alone = run_of("mine", counted(40.0, 150.0, 60.0, 3.0), role="part", part="input")
    waiting = price_waiting(trained, input_runs("mine", [alone, *trained]))
    assert waiting is not None
    assert waiting.total_j_per_1000 is not None
    assert waiting.total_j_per_1000.value == pytest.approx(2 * 2 * (20 + 50))


@pytest.mark.parametrize(
    ("energy", "inputs"),
    [
        (counted(50.0), []),
        (counted(50.0, 900.0, 20.0), []),
        (counted(50.0, 900.0, 20.0), [counted(40.0, None, 10.0)]),
        (counted(50.0, 900.0), [counted(40.0, 70.0)]),
    ],
    ids=["no idle figure", "no input", "no GPU in the input", "the GPU alone"],
)
def test_waiting_has_no_joules_where_the_idle_watts_are_not_known(energy: Energy, inputs: Sequence[Energy]) -> None:
    fed = [run_of("naive", each, "input") for each in inputs]
    assert price_waiting([run_of("naive", energy, waited_s=0.5)], fed) == Waiting(
        0.5, None, None, None, at_most=energy.components["gpu"] is not None
    )


def test_counters_of_the_machine_have_an_idle_share_too() -> None:
    whole = Component(60.0, 60.0, 60.0, "measured:rapl", "powercap", "machine", "1 uJ")
    active = Component(40.0, 30.0, 50.0, "modelled:rapl-share@1", "powercap; a table", "machine", "1 uJ")
    energy = replace(
        counted(1.0, duration_s=2.0), components={"cpu": whole, **dict.fromkeys(("dram", "gpu", "idle"))}, active=active
    )
    waiting = price_waiting([run_of("naive", energy, waited_s=0.5)], [])
    assert waiting is not None
    assert waiting.total_j_per_1000 is not None
    ends = (waiting.total_j_per_1000.low, waiting.total_j_per_1000.value, waiting.total_j_per_1000.high)
    assert ends == pytest.approx((2 * 0.25 * 10, 2 * 0.25 * 20, 2 * 0.25 * 30))
    assert (waiting.method, waiting.at_most) == ("modelled:rapl-share@1", False)


def test_nothing_is_said_of_waiting_where_nothing_was_timed() -> None:
    assert price_waiting([run_of("naive", counted(1.0, None, 2.0))], []) is None
    timed = run_of("naive", counted(1.0, None, 2.0), waited_s=0.5)
    both = price_waiting([timed, run_of("naive", counted(1.0, None, 2.0))], [])
    assert both == price_waiting([timed], [])


def test_recorded_runs_with_a_gpu_give_the_waiting_of_each_arm(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    for block in range(5):
        slots: tuple[tuple[str, Role, float], ...] = (
            ("naive", "arm", 8.0),
            ("naive", "control", 8.0),
            ("tuned", "arm", 1.0),
        )
        for arm, role, waited_s in slots:
            log.add(run_of(arm, counted(40.0, 350.0, 100.0, 5.0), "input", block, role=role))
            log.add(run_of(arm, counted(50.0, 900.0, 200.0, 10.0), "train", block, waited_s, role))
    log.attempt = 1
    arms = [Arm(name, 500, None) for name in ("naive", "tuned")]
    model = keras.Sequential([keras.layers.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    bench = Bench(log, Meter(), 0, "naive")
    naive, tuned = bench.measure(train_from_scratch(model, None, 1), arms, 5).arms  # all blocks are known: nothing runs
    for measured, waited in ((naive, 8), (tuned, 1)):
        assert measured.waiting is not None
        assert measured.waiting.total_j_per_1000 is not None
        assert measured.waiting.total_j_per_1000.value == pytest.approx(2 * waited * (20 + 70))
        assert measured.waiting.share_of_total == pytest.approx(waited * (20 + 70) / (50 + 900 + 200))


def test_a_slow_input_is_waited_for() -> None:
    def slowly(batch: Any) -> Any:
        time.sleep(0.05)
        return batch

    images = np.zeros((32, 4, 4, 3), np.uint8)
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(32, np.int64))).batch(8)
    slow = data.map(lambda images, labels: (tf.numpy_function(slowly, [images], tf.uint8, stateful=True), labels))
    slow = slow.map(lambda images, labels: (tf.ensure_shape(images, [None, 4, 4, 3]), labels))
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    training: Training = train_from_scratch(model, None, 2)
    waited: Mapping[str, float | None] = {}
    for name, dataset in (("slow", slow), ("quick", data), ("slow again", slow)):
        training.prepare(0)
        assert training.run(Arm(name, 32, dataset), 0) == 64
        waited = {**waited, name: training.waited_s(1e9)}
    for name in ("slow", "slow again"):
        assert (waited[name] or 0) > 2 * 4 * 0.05 * 0.5  # of both epochs, of which the first batches are read ahead
    assert training.waited_s(0.01) == 0.01  # never longer than the run
    training.epochs = 0
    training.run(Arm("nothing", 32, slow), 0)
    assert training.waited_s(1e9) is None  # each run counts for itself
