"""Draws that are seen again: what is refused, what every cache shows a seed, and what accuracies may be said to show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_audits import audit

from joulecache.pipelines.auditing.config import AuditConfig
from joulecache.pipelines.auditing.results import Audit, VariantPoint
from joulecache.pipelines.auditing.variants import draw_reuse, measure_variants
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.blocks import Bench
from joulecache.pipelines.experiment.claims import inferiority
from joulecache.pipelines.experiment.runs import RunLog
from joulecache.pipelines.experiment.workloads import Training, train_from_scratch
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.models.classifiers import build_model
from joulecache.transforms.chain import parse

CHAIN = "decode|resize(24)|random_crop(20) || flip_lr"
SEEDS = 3
EPOCHS = 2


def small_audit(photo_folder: Path, out: Path, chain: str = CHAIN, **changes: Any) -> Audit:
    options: dict[str, Any] = {
        "arms": ("naive", "optimized"),
        "workloads": ("train",),
        "pairs": 1,
        "train_epochs": EPOCHS,
        "model": "mlp",
        "batch_size": 8,
        "epochs": 10,
    }
    return audit(photo_folder, chain, out, **{**options, **changes})


Seen = list[tuple[str, int, int, tuple[int, ...]]]


@contextmanager
def watched() -> Iterator[Seen]:
    """Note what the caches give for training: the name of the folder, the variant, the epoch, the rows."""
    seen, batch = [], CachedSplit.batch

    def watching(self: CachedSplit, rows: Any, epoch: int, number: int, **draws: Any) -> Any:
        if self.name == "train":
            seen.append((self.cache.folder.name, epoch % self.entry.variants, epoch, tuple(rows.tolist())))
        return batch(self, rows, epoch, number, **draws)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedSplit, "batch", watching)
        yield seen


# ---- what an audit does ----


@pytest.mark.slow
def test_repeated_draws_are_compared_with_fresh_ones_seed_by_seed(chain_audit: tuple[Audit, Path]) -> None:
    result, out = chain_audit
    reuse = result.reuse
    assert reuse is not None
    assert (reuse.variants, reuse.horizon_reuse, reuse.train_epochs, reuse.train_reuse) == (1, 10, EPOCHS, EPOCHS)
    one, fresh = reuse.points
    assert [(point.name, point.variants, point.build_epochs) for point in reuse.points] == [
        ("1 variant", 1, 10),
        ("fresh", EPOCHS, EPOCHS),
    ]
    runs = [run for run in RunLog(out / "runs.jsonl").runs if run.workload == "variants"]
    assert sorted((run.block, run.arm) for run in runs) == [
        (seed, arm) for seed in range(SEEDS) for arm in ("1 variant", "fresh")
    ]
    for point in reuse.points:
        of = sorted((run for run in runs if run.arm == point.name), key=lambda run: run.block)
        assert list(point.scores) == [run.score for run in of]
        assert point.score == mean_of(point.scores)
        built_j = point.build.active_j
        assert result.records is not None
        records = result.records.train
        assert all(run.images == EPOCHS * records for run in of)
        each = [1000 * (run.energy.active_j / run.images + built_j / (point.build_epochs * records)) for run in of]
        assert point.with_build_j_per_1000.value == pytest.approx(statistics.fmean(each))
        trained_j = statistics.fmean(1000 * run.energy.active_j / run.images for run in of)
        assert point.active_j_per_1000.value == pytest.approx(trained_j)
    differences = [a - b for a, b in zip(one.scores, fresh.scores, strict=True)]
    assert (one.difference, one.finding, one.why) == inferiority(differences)
    assert (fresh.difference, fresh.finding, fresh.why) == (None, None, None)


@pytest.mark.slow
def test_every_build_is_measured(chain_audit: tuple[Audit, Path]) -> None:
    result, _ = chain_audit
    assert result.reuse is not None
    assert result.build is not None
    one, fresh = result.reuse.points
    assert one.build == result.build.energy
    assert one.cache_bytes == result.build.cache_bytes
    assert fresh.build.active_j > 0
    assert fresh.build != one.build
    assert fresh.cache_bytes > 1.5 * one.cache_bytes


@pytest.mark.slow
def test_a_seed_sees_the_same_records_in_the_same_order_in_every_cache(photo_folder: Path, tmp_path: Path) -> None:
    with watched() as seen:
        measured(photo_folder, tmp_path, (1,), EPOCHS)
    fresh = [each for each in seen if each[0] == f"cache-{EPOCHS}"]
    # each seed has its own epochs: a different order and different draws after the cut
    assert {epoch for _, _, epoch, _ in fresh} == set(range(SEEDS * EPOCHS))
    for _, _, epoch, rows in fresh:
        assert (epoch, rows) in {(other, same) for folder, _, other, same in seen if folder == "cache-1"}
    # in fresh draws no training sees a variant twice
    for seed in range(SEEDS):
        of_seed = {(epoch, variant) for _, variant, epoch, _ in fresh if epoch // EPOCHS == seed}
        assert len({variant for _, variant in of_seed}) == len(of_seed) == EPOCHS


def measured(photo_folder: Path, folder: Path, variants: Sequence[int], epochs: int) -> tuple[VariantPoint, ...]:
    """Measure variants as an audit does, without all else that it does."""
    folder.mkdir(exist_ok=True)

    def build(count: int) -> Cache:
        precompute(photo_folder, folder / f"cache-{count}", CHAIN, variants=count)
        return open_cache(folder / f"cache-{count}")

    config = AuditConfig(variants=tuple(variants), epochs=10, train_epochs=epochs, batch_size=8, pairs=1)
    network = build_model("mlp", (20, 20, 3), 3)
    training = train_from_scratch(network, load(build(variants[0]), "val", 8), epochs)
    bench = Bench(RunLog(folder / "runs.jsonl"), Meter(), 0, "naive")
    return measure_variants(bench, training, build, config)


@pytest.mark.slow
def test_one_that_was_stopped_goes_on_with_the_same_epochs(photo_folder: Path, tmp_path: Path) -> None:
    run, count = Training.run, 0

    def dies(self: Training, arm: Arm, first_epoch: int) -> int:
        nonlocal count
        count += arm.name == "fresh"
        if count == 3:  # the warm-up, block 0, and here block 1
            raise KeyboardInterrupt
        return run(self, arm, first_epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            measured(photo_folder, tmp_path / "out", (1,), EPOCHS)
    log = tmp_path / "out" / "runs.jsonl"
    before = log.read_text()
    with watched() as seen:
        points = measured(photo_folder, tmp_path / "out", (1,), EPOCHS)
    assert log.read_text().startswith(before)
    fresh = [run for run in RunLog(log).runs if run.arm == "fresh"]
    assert [(run.attempt, run.block) for run in fresh] == [(1, 0), (2, 1), (2, 2)]
    assert all(len(point.scores) == SEEDS for point in points)
    # the warm-up has the epochs of seed 0
    assert {epoch for folder, _, epoch, _ in seen if folder == "cache-2"} == set(range(SEEDS * EPOCHS))


@pytest.mark.slow
def test_a_curve_has_a_point_for_each_number_of_variants(photo_folder: Path, tmp_path: Path) -> None:
    points = measured(photo_folder, tmp_path / "out", (2, 1), 3)
    assert [(point.name, point.variants) for point in points] == [("2 variants", 2), ("1 variant", 1), ("fresh", 3)]
    assert [(point.train_reuse, point.build_epochs) for point in points] == [(1.5, 10), (3, 10), (1, 3)]
    assert all(len(point.scores) == SEEDS for point in points)
    reuse = draw_reuse(AuditConfig(variants=(2, 1), epochs=10, train_epochs=3), points)
    assert (reuse.variants, reuse.horizon_reuse, reuse.train_reuse) == (2, 5, 1.5)


@pytest.mark.parametrize(
    ("variants", "workloads", "train_epochs", "held_out", "why"),
    [
        ((1,), ("input",), 3, 5, "the workload train was not asked for"),
        ((1,), ("train",), 1, 5, "a training of 1 epoch sees no draw twice"),
        ((4,), ("train",), 3, 5, "a training of 3 epochs sees no draw twice"),
        ((1,), ("train",), 3, 0, "no records are held out"),
        ((1, 2), ("train",), 3, 5, None),
        ((2,), ("train",), 3, 5, None),
    ],
)
def test_why_nothing_can_be_measured(
    variants: Sequence[int], workloads: Sequence[str], train_epochs: int, held_out: int, why: str | None
) -> None:
    config = AuditConfig(variants=tuple(variants), workloads=tuple(workloads), train_epochs=train_epochs)
    assert config.why_unmeasured(held_out) == why


def test_a_prefix_without_draws_says_nothing(photo_folder: Path, tmp_path: Path) -> None:
    chain = "decode|resize(20) || flip_lr"
    assert not parse(chain).cached_random
    assert small_audit(photo_folder, tmp_path / "out", chain, workloads=("input",)).reuse is None


# ---- what is refused ----


@pytest.mark.parametrize(
    ("variants", "chain", "workloads", "message"),
    [
        ((), CHAIN, ("train",), "different integers, got none"),
        ((1, 1), CHAIN, ("train",), "different integers, got 1, 1"),
        ((0,), CHAIN, ("train",), "integer of at least 1, got 0"),
        ((1, 2.5), CHAIN, ("train",), r"integer of at least 1, got 2\.5"),
        ((1, 2), "decode|resize(20) || flip_lr", ("train",), "draw nothing at random: all would be the same"),
        ((4,), "decode|resize(20) || flip_lr", ("train",), "draw nothing at random: all would be the same"),
        ((1, 2), CHAIN, ("input",), "the workload train measures: add it"),
        ((1, 8, 16), CHAIN, ("train",), "no draw of 8, 16 variants twice.*at least 17 epochs with train_epochs"),
    ],
)
def test_variants_that_cannot_be_compared_are_refused_in_one_line(
    variants: Sequence[Any], chain: str, workloads: Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        AuditConfig(variants=tuple(variants), workloads=tuple(workloads), train_epochs=8).check_draws(parse(chain))
    assert "\n" not in str(refused.value)


def test_variants_are_refused_before_anything_is_built(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draw nothing at random"):
        small_audit(photo_folder, tmp_path / "out", "decode|resize(20) || flip_lr", variants=(4,))
    assert not (tmp_path / "out").exists()


def test_a_curve_without_held_out_records_is_refused() -> None:
    with pytest.raises(ValueError, match="no records are held out to measure accuracy: use more images"):
        AuditConfig(variants=(1, 2), workloads=("train",), train_epochs=3).why_unmeasured(held_out=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("1,x", "integers separated by commas"),
        ("1,2", "the workload train measures"),
        ("1,1", "different integers"),
    ],
)
def test_the_command_line_takes_numbers_with_commas(
    run: Callable[..., tuple[int, str, str]], photo_folder: Path, tmp_path: Path, given: str, said: str
) -> None:
    options = ("--chain", CHAIN, "--out", tmp_path / "out", "--workload", "input", "--variants", given)
    code, _, err = run("audit", photo_folder, *options)
    assert code == 2
    assert said in " ".join(err.split())
    assert not (tmp_path / "out").exists()


# ---- what accuracies show ----


@pytest.mark.parametrize(
    ("differences", "found"),
    [
        ([0.010, 0.011, 0.012], "not inferior"),
        ([-0.001, 0.0, 0.001], "not inferior"),  # 0 +- 0.25 points
        ([-0.004, -0.003, -0.002], "not shown"),  # -0.3 +- 0.25: the mean is above the margin, the interval is not
        ([-0.020, -0.021, -0.022], "inferior"),
        ([-0.009, -0.006, -0.003], "not shown"),
        ([-0.01, 0.06, 0.04], "not shown"),
        ([0.02, 0.02], "not shown"),  # two seeds
        ([0.02], "not shown"),
        ([0.0, 0.0, 0.0], "not shown"),  # no spread is no interval, be it for good or for bad
        ([-0.1, -0.1, -0.1], "not shown"),
    ],
)
def test_known_differences_show_what_they_show(differences: list[float], found: str) -> None:
    assert inferiority(differences)[1] == found


accuracy = st.floats(0, 1)


@given(st.lists(st.tuples(accuracy, accuracy), min_size=1, max_size=12), st.floats(0.0005, 0.2))
def test_a_claim_needs_the_whole_interval_on_one_side_of_the_margin(
    pairs: list[tuple[float, float]], margin: float
) -> None:
    differences = [a - b for a, b in pairs]
    mean, found, why = inferiority(differences, margin)
    assert mean.value == pytest.approx(math.fsum(differences) / len(pairs), abs=1e-12)
    assert why
    if found == "not shown":
        return
    assert len(pairs) >= 3
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low > -margin if found == "not inferior" else mean.high < -margin
    assert len(set(differences)) > 1


def test_draws_that_harm_by_the_margin_are_rarely_called_not_inferior() -> None:
    """At a true difference of exactly the margin each claim is false, and may come in 2.5% of audits."""
    rng = np.random.default_rng(0)
    found = [inferiority(list(rng.normal(-0.005, 0.01, 3)))[1] for _ in range(2000)]
    false = {claim: found.count(claim) / len(found) for claim in ("not inferior", "inferior")}
    assert max(false.values()) <= 0.035, f"of audits of 3 seeds claim: {false}"
