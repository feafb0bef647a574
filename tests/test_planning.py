"""Plans: prices that are arithmetic, measured on real samples, and the command that builds what was chosen."""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from audits import Page, make_plan, printed
from hypothesis import given
from hypothesis import strategies as st
from small_audits import energy

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache, precompute
from joulecache.pipelines.building.results import Built
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cli import planning as planning_command
from joulecache.pipelines.core.progress import silent
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.energy.storage import storage_energy
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.planning import planner, sampling
from joulecache.pipelines.planning.config import Budget
from joulecache.pipelines.planning.epochs import EpochRounds
from joulecache.pipelines.planning.pricing import CacheCost, EpochCost, Job, Line, price, variants_for
from joulecache.pipelines.planning.results import CacheLayout, Choice, Plan, StepCost, difference, ranked
from joulecache.pipelines.planning.sampling import cache_layouts, sample_size
from joulecache.pipelines.planning.step_costs import mark_fresh, measure_steps, read_cost_us
from joulecache.pipelines.report.describe.plan import describe_plan
from joulecache.pipelines.report.render.html import to_html
from joulecache.pipelines.source import Record, Source, SourceError, open_source
from joulecache.transforms import parse

CHAIN = "decode|resize(40)|random_crop(32)|flip_lr"
RAW = CacheLayout(2, "arrow", "raw", None)
JOB = Job(
    train_records=900,
    val_records=100,
    source_bytes=1e7,
    epochs=10,
    runs=1,
    days=2.0,
    memory_bytes=1e9,
    disk_bytes_per_s=1e6,
    idle_w=Joules(3.0, 1.0, 5.0),
    ends=(0.5, 2.0),
    pue=1.0,
)
ONLINE = EpochCost(Line(0.0, 1.0), Line(0.0, 0.001))
CHEAP = CacheCost(RAW, False, Line(50.0, 1.0), 0.0, EpochCost(Line(1.0, 0.1), Line(0.0, 0.0001)), 3000.0)


# Prices ---------------------------------------------------------------------------------------------------------------

amount = st.floats(0.001, 1e6)


@given(st.integers(1, 50), st.integers(51, 5000), amount, amount)
def test_a_line_goes_through_both_measurements(few: int, many: int, fixed: float, slope: float) -> None:
    line = Line.through((few, fixed + slope * few), (many, fixed + slope * many))
    assert line.at(few) == pytest.approx(fixed + slope * few)
    assert line.at(many) == pytest.approx(fixed + slope * many)
    assert line.fixed >= 0


@given(st.integers(1, 50), st.integers(1, 5000), amount, amount)
def test_a_line_is_never_negative_and_keeps_the_larger_measurement(few: int, many: int, a: float, b: float) -> None:
    line = Line.through((few, a), (many, b))
    assert line.at(many) == pytest.approx(b)
    assert line.fixed >= 0
    assert line.per_image > 0


@given(
    st.lists(st.tuples(amount, amount, amount, amount, st.booleans()), min_size=1, max_size=6),
    amount,
    st.integers(1, 60),
    st.integers(1, 5),
)
def test_prices_are_what_a_training_adds_up_to(
    caches: Sequence[tuple[float, float, float, float, bool]], online_j: float, epochs: int, runs: int
) -> None:
    costs = [
        CacheCost(
            replace(RAW, cut=n + 1),
            draws,
            Line(fixed, built),
            built / 2,
            EpochCost(Line(fed, 0.0), Line(0.0, 0.0)),
            stored,
        )
        for n, (fixed, built, fed, stored, draws) in enumerate(caches)
    ]
    job = replace(JOB, epochs=epochs, runs=runs, memory_bytes=math.inf)
    choices = price(costs, EpochCost(Line(online_j, 0.0), Line(0.0, 0.0)), job)
    assert [choice.total_j.value for choice in choices] == sorted(choice.total_j.value for choice in choices)
    for choice in choices:
        if choice.layout is None:
            spent = [online_j] * (epochs * runs)
        else:
            fixed, built, fed, stored, _ = caches[choice.layout.cut - 1]
            kept_bytes = stored * (900 * choice.variants + 100)
            spent = [
                fixed,
                *([built] * 1000),
                *([built / 2] * (900 * (choice.variants - 1))),
                *([fed] * (epochs * runs)),
            ]
            spent.append(storage_energy(kept_bytes, 2.0).value_j)
            assert choice.cache_bytes == pytest.approx(kept_bytes)
            if fed >= online_j:
                assert choice.break_even_epochs is None
            else:
                built_j = choice.build_j.value
                assert choice.break_even_epochs is not None
                assert built_j + choice.break_even_epochs * fed == pytest.approx(choice.break_even_epochs * online_j)
        assert choice.total_j.value == pytest.approx(sum(spent))
    assert len(choices) == 1 + sum(len(variants_for(cost.random, epochs)) for cost in costs)


@pytest.mark.parametrize(
    ("draws", "epochs", "variants"),
    [(False, 30, [1]), (True, 30, [8, 15, 30]), (True, 4, [1, 2, 4]), (True, 1, [1]), (True, 3, [1, 2, 3])],
)
def test_no_draw_is_used_more_than_four_times(draws: bool, epochs: int, variants: Sequence[int]) -> None:
    assert list(variants_for(draws, epochs)) == variants


def test_what_memory_does_not_hold_is_waited_for() -> None:
    hot, cold = (
        {choice.layout: choice for choice in price([CHEAP], ONLINE, replace(JOB, memory_bytes=memory))}[RAW]
        for memory in (1e9, 1e3)
    )
    # 900 images of 3,000 bytes at 1 MB/s, less the 0.09 s that the work takes, at 3 W
    assert hot.waiting_j.value == 0
    assert cold.waiting_j.value == pytest.approx((2.7 - 0.09) * 3)
    assert cold.total_j.value - hot.total_j.value == pytest.approx(10 * cold.waiting_j.value)


def test_ends_of_the_coefficients_are_carried_through() -> None:
    for choice in price([CHEAP], ONLINE, JOB):
        for part in (choice.build_j, choice.epoch_j):
            assert [part.low, part.high] == pytest.approx([part.value / 2, 2 * part.value])
        assert choice.total_j.low <= choice.total_j.value <= choice.total_j.high


# Ties -----------------------------------------------------------------------------------------------------------------


def choice(form: str, total_j: float, cache_bytes: float, error_j: float = 1.0, variants: int = 1) -> Choice:
    """Return a choice by its form: "online", or like "arrow raw"."""
    words = form.split()
    layout = None if form == "online" else CacheLayout(2, words[0], words[1], 85 if "jpeg" in words else None)  # type: ignore[arg-type]
    spent = Joules(total_j, total_j / 4, total_j * 2)
    none = Joules(0, 0, 0)
    return Choice(layout, variants, None, cache_bytes, spent, spent, none, none, spent, error_j, None)


def test_a_difference_within_the_error_of_measuring_is_a_tie() -> None:
    # 0.4 J apart, in coefficient bounds of 6 to 37 J
    first, second = choice("arrow raw", 18.0, 1e6, 0.3), choice("tfrecord raw", 18.4, 1e6, 0.4)
    found = difference(second, first)
    assert found.is_tie
    assert (found.low_j, found.value_j, found.high_j) == pytest.approx((0.4 - 0.98, 0.4, 0.4 + 0.98))
    assert not difference(choice("tfrecord raw", 19.0, 1e6, 0.4), first).is_tie
    # bounds of the coefficients are common to all choices: they hide no difference
    assert not difference(choice("online", 36.0, 0.0, 1.0), first).is_tie


def test_more_variants_of_one_cache_never_tie_with_fewer() -> None:
    few, many = choice("arrow raw", 18.0, 1e6, variants=8), choice("arrow raw", 18.1, 2e6, variants=15)
    assert not difference(many, few).is_tie


@pytest.mark.parametrize(
    ("choices", "best"),
    [
        ([("arrow raw", 18.0, 1e6), ("tfrecord raw", 18.1, 1.2e6)], "arrow raw"),
        ([("tfrecord raw", 18.0, 1.2e6), ("arrow raw", 18.1, 1e6)], "arrow raw"),  # smaller
        ([("tfrecord raw", 18.0, 1e6), ("arrow raw", 18.1, 1.001e6)], "arrow raw"),  # simpler
        ([("arrow raw", 18.0, 1e6), ("arrow jpeg", 18.1, 1e5)], "arrow raw"),  # lossless
        ([("arrow jpeg", 18.0, 1e5), ("arrow png", 18.1, 5e5)], "arrow png"),
        ([("arrow raw", 18.0, 1e6), ("online", 18.1, 0.0)], "online"),
        ([("arrow raw", 18.0, 1e6), ("online", 28.0, 0.0)], "arrow raw"),
    ],
)
def test_what_decides_among_ties(choices: Sequence[tuple[str, float, float]], best: str) -> None:
    priced = [choice(*each) for each in choices]
    order = ranked(priced)
    assert order[0] == next(each for each, (form, *_) in zip(priced, choices, strict=True) if form == best)
    assert sorted(order, key=priced.index) == priced


def test_the_plan_says_which_choices_tie_and_what_decides() -> None:
    choices = ranked([choice("tfrecord raw", 18.0, 2e6), choice("arrow raw", 18.4, 1e6), choice("online", 40.0, 0.0)])
    made = make_plan(choices=tuple(replace(each, break_even_epochs=2.0) for each in choices))
    assert [str(each.layout) for each in (made.best, *made.ties)] == ["arrow, raw", "tfrecord, raw"]
    assert (
        "Arrow raw after resize(72) ties with tfrecord raw after resize(72) (400 mJ less), within ±2.77 J" in made.why
    )
    assert [each["ties"] for each in made.to_json()["choices"]] == [True, True, False]
    text = " ".join(printed(describe_plan(made)).split())
    assert "Best 3 of 3 choices by active energy; the first 2 tie" in text
    assert "ties with" in Page(to_html(describe_plan(made))).text


def test_a_plan_without_ties_does_not_mention_them() -> None:
    made = make_plan()
    assert made.ties == ()
    assert "tie" not in made.why


def test_the_error_of_few_rounds_is_pooled() -> None:
    rounds = EpochRounds({name: Arm(name, 8, None) for name in "abc"}, Meter(), 0, Budget())
    assert rounds.relative_error("a") == 0.1
    rounds.energies |= {
        "a": [energy(each) for each in (0.9, 1.0, 1.1)],
        "b": [energy(each) for each in (9.0, 10.0, 11.0)],
        "c": [energy(100.0)],
    }
    assert rounds.relative_error("a") == rounds.relative_error("b") == pytest.approx(1.25 * 0.1 / math.sqrt(3))
    assert rounds.relative_error("c") == pytest.approx(1.25 * 0.1)


# Measured on a sample -------------------------------------------------------------------------------------------------


QUICK = Budget(warm_builds=1, pass_cpu_s=0.01, rounds=3, disk_bytes=1 << 20)
plan = functools.partial(planner.plan, seconds=1, batch_size=8, budget=QUICK)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command plan with a small budget."""
    monkeypatch.setattr(planner, "plan", functools.partial(planner.plan, budget=QUICK))


@pytest.fixture(scope="module")
def made(photo_folder: Path) -> Plan:
    return plan(photo_folder, CHAIN, epochs=8, seconds=1e6, fresh=["flip_lr"])


@pytest.mark.slow
def test_every_cut_form_and_number_of_variants_is_priced(made: Plan) -> None:
    forms = {
        (c.layout.cut, c.layout.format, c.layout.encoding, c.layout.quality, c.variants)
        for c in made.choices
        if c.layout
    }
    kinds = {
        ("arrow", "raw", None),
        ("tfrecord", "raw", None),
        ("arrow", "jpeg", 95),
        ("arrow", "jpeg", 85),
        ("arrow", "png", None),
    }
    assert forms == {(2, *kind, 1) for kind in kinds} | {(3, *kind, k) for kind in kinds for k in (2, 4, 8)}
    assert made.online is not None
    assert made.unmeasured == ()
    assert (made.records, made.sampled) == (30, 30)


@pytest.mark.slow
def test_steps_say_what_they_hand_on(made: Plan, photos: Mapping[str, bytes]) -> None:
    assert [step.name for step in made.steps] == ["read", "decode", "resize", "random_crop", "flip_lr"]
    assert [step.fresh for step in made.steps] == [False, False, False, False, True]
    read, decode, resize, crop, flip = (step.bytes_per_image for step in made.steps)
    assert read == pytest.approx(sum(map(len, photos.values())) / len(photos))
    assert decode == pytest.approx(sum((100 + n % 7) * (80 + n % 5) * 3 for n in range(30)) / 30)
    assert (resize, crop, flip) == (40 * 40 * 3, 32 * 32 * 3, 32 * 32 * 3)
    assert all(step.cpu_us_per_image >= 0 for step in made.steps)


@pytest.mark.slow
def test_cache_bytes_are_those_of_the_built_cache(made: Plan, photo_folder: Path, tmp_path: Path) -> None:
    ways = {("raw", 1), ("raw", 4), ("png", 2)}
    chosen = [
        c for c in made.choices if c.layout and c.layout.format == "arrow" and (c.layout.encoding, c.variants) in ways
    ]
    assert len(chosen) == 3
    for number, choice in enumerate(chosen):
        built = precompute(
            photo_folder, tmp_path / str(number), made.chain_of(choice), **made.arguments(choice)
        ).manifest
        stored = sum(file.bytes for file in built.files())
        # a shard's head is the same for few records and for many
        assert choice.cache_bytes == pytest.approx(stored, rel=0.25), choice


@pytest.mark.slow
def test_the_best_five_are_shown_and_all_is_json(made: Plan) -> None:
    assert len(made.shown) == 5
    assert made.online in made.shown
    assert made.shown[0] is made.best
    body = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert (body["chain"], body["why"]) == (CHAIN, made.why)
    assert body["choices"][0]["command"] == made.command(made.best)
    assert body["method"].startswith(("modelled:", "measured:"))


@pytest.mark.slow
def test_the_command_builds_what_was_priced(made: Plan, photo_folder: Path, tmp_path: Path) -> None:
    choice = next(
        c
        for c in made.choices
        if c.layout and c.layout.encoding == "jpeg" and c.layout.quality == 85 and c.variants == 2
    )
    words = shlex.split(made.command(choice, tmp_path / "my cache") or "")
    assert words[:4] == ["joulecache", "precompute", str(photo_folder), str(tmp_path / "my cache")]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    chain = "decode|resize(40)|random_crop(32) || flip_lr"
    assert options == {"--chain": chain, "--variants": "2", "--encoding": "jpeg", "--quality": "85"}


def test_a_budget_that_holds_no_cache() -> None:
    choices = price(
        [CHEAP, replace(CHEAP, layout=replace(RAW, encoding="png"), stored_bytes_per_image=2000)], ONLINE, JOB
    )
    assert planner.within_budget(choices, 2.5e6) == tuple(choice for choice in choices if choice.cache_bytes != 3e6)
    with pytest.raises(ValueError, match=r"fits a disk budget of 1\.0 MB: the smallest \(arrow, png\) needs 2\.0 MB"):
        planner.within_budget(choices, 1e6)


@pytest.mark.parametrize(
    ("fresh", "cuts"),
    [((), {2, 3, 4}), (("random_crop",), {2}), (("flip_lr",), {2, 3}), (("flip_lr", "random_crop"), {2}), (None, {2})],
)
def test_what_stays_fresh_stands_behind_the_cut(fresh: tuple[str, ...] | None, cuts: set[int]) -> None:
    chain = parse(CHAIN)
    spent = {"read": 10.0, "decode": 900.0, "resize": 60.0, "random_crop": 20.0, "flip_lr": 10.0}
    steps = [StepCost(name, name in ("random_crop", "flip_lr"), False, us, 1.0) for name, us in spent.items()]
    assert {layout.cut for layout in cache_layouts(chain, mark_fresh(steps, chain, fresh))} == cuts


def test_a_dear_random_op_may_be_cached() -> None:
    chain = parse("decode|random_resized_crop(32)|flip_lr")
    for crop_us in (5.0, 500.0):  # cheap, too: without it the images have no one size
        spent = {"read": 10.0, "decode": 900.0, "random_resized_crop": crop_us, "flip_lr": 1.0}
        steps = [StepCost(name, name not in ("read", "decode"), False, us, 1.0) for name, us in spent.items()]
        assert {layout.cut for layout in cache_layouts(chain, mark_fresh(steps, chain, None))} == {2}


def test_batch_ops_are_measured_and_never_cached(photo_folder: Path) -> None:
    chain = parse("decode|resize(16)|flip_lr || mixup|to_float")
    source = open_source(photo_folder)
    steps = measure_steps(chain, source, source.units)
    assert [step.name for step in steps] == ["read", "decode", "resize", "flip_lr", "mixup", "to_float"]
    assert steps[-1].bytes_per_image == 16 * 16 * 3 * 4
    assert {layout.cut for layout in cache_layouts(chain, mark_fresh(steps, chain, ()))} == {2, 3}


def test_images_with_alpha_are_not_planned_as_jpeg() -> None:
    for channels, encodings in ((3, {"raw", "jpeg", "png"}), (4, {"raw", "png"})):
        chain = parse(f"decode({channels})|resize(16)")
        steps = [StepCost(name, False, False, 1.0, 1.0) for name in ("read", "decode", "resize")]
        assert {layout.encoding for layout in cache_layouts(chain, steps)} == encodings


def test_a_plan_survives_broken_images_and_leaves_nothing_behind(
    make_folder: Callable[[Mapping[str, bytes]], Path], photos: Mapping[str, bytes], tmp_path: Path
) -> None:
    source = make_folder({**photos, "cat/broken.jpg": b"no picture", "dog/cut.jpg": photos["cat/00.jpg"][:300]})
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    sample = tmp_path / "sample"
    sample.mkdir()
    made = plan(source, CHAIN, epochs=2, fresh=["random_crop", "flip_lr"], folder=sample)
    assert (made.records, made.online_refused) == (32, None)
    assert made.best is not None
    assert not list(sample.iterdir())
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


@pytest.mark.slow
def test_drawing_a_photo_is_no_reading() -> None:
    made = plan("synthetic:40", "decode|resize(8)|flip_lr", epochs=2)
    assert made.records == 40
    assert made.steps[0].cpu_us_per_image < 1000  # to draw one takes 10 ms


@pytest.mark.slow
def test_targets_are_measured_and_stored_with_their_images() -> None:
    made = plan("synthetic:40", "decode|resize(32)|flip_lr", epochs=2, target=["mask", "boxes"], fresh=["flip_lr"])
    assert made.online_refused is None
    assert made.options == ("--target", "mask", "--target", "boxes")
    assert made.steps[2].bytes_per_image == 32 * 32 * 4 + 4 * 4 + 8  # with a mask and a box
    raw = next(choice for choice in made.choices if choice.layout == CacheLayout(2, "arrow", "raw", None))
    assert raw.cache_bytes > 40 * (32 * 32 * 4 + 4 * 4 + 8)


@dataclass(frozen=True)
class RowGroup:
    """A unit that is read whole, whatever is wanted of it."""

    rows: int
    name: str = "group"
    reads: ClassVar[list[int]] = []

    def read(self) -> Iterator[Record]:
        self.reads.append(self.rows)
        for row in range(self.rows):
            yield Record(f"{row}", (0,), b"", 0)


def test_reading_is_timed_over_whole_units_for_a_moment() -> None:
    seconds = iter([0.0, 0.1, 0.25, 0.3])
    groups: Any = [RowGroup(1000), RowGroup(500), RowGroup(1000)]
    assert read_cost_us(groups, lambda: next(seconds)) == pytest.approx(0.3 / 1500 * 1e6)
    assert RowGroup.reads == [1000, 500]


class Clocked(EpochRounds):
    """Rounds of arms whose epochs take known seconds on a clock that nothing else moves."""

    lasts_s: ClassVar = {"short": 0.2, "long": 5.0}
    now_s = 0.0

    def __init__(self) -> None:
        arms = {name: Arm(name, 8, None) for name in self.lasts_s}
        super().__init__(arms, Meter(), 0, Budget(rounds=10), lambda: self.now_s)

    def measure_pass(self, arm: Arm, epochs: int) -> Energy:
        self.now_s += epochs * self.lasts_s[arm.name]
        return replace(energy(1.0, duration_s=self.lasts_s[arm.name]), cpu_s=self.lasts_s[arm.name])


def test_an_arm_with_a_long_epoch_takes_part_in_fewer_rounds() -> None:
    rounds = Clocked()
    rounds.measure(20.0, silent)
    assert len(rounds.energies["short"]) == 10
    assert 1 <= len(rounds.energies["long"]) <= 3
    assert rounds.now_s < 20.0
    late = Clocked()
    late.measure(0.0, silent)  # there is no time, and yet each is measured
    assert [len(late.energies[name]) for name in late.lasts_s] == [3, 1]


@pytest.mark.parametrize(
    ("cpu_us", "stored_bytes", "seconds", "images"),
    [
        (700.0, 12_000, 60, 5000),  # a twelfth of the time, below 128 MiB: 300 us a record are beside the ops
        (700.0, 12_000, 12, 1000),
        (100.0, 12_000, 60, 11_185),  # 128 MiB
        (700.0, 1_000_000, 60, 1500),  # 1.5 s
        (1e6, 1e7, 60, 64),
    ],
)
def test_a_sample_is_larger_than_caches_and_smaller_than_the_time(
    cpu_us: float, stored_bytes: float, seconds: float, images: int
) -> None:
    steps = [StepCost(name, False, False, cpu_us / 4, stored_bytes) for name in ("read", "decode", "resize", "flip_lr")]
    assert sample_size(steps, [RAW], seconds) == images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"runs": 0}, "runs must be"),
        ({"batch_size": True}, "batch_size must be"),
        ({"seconds": 0}, "seconds must be a finite number above 0, got 0"),
        ({"days": math.inf}, "days must be a finite number above 0"),
        ({"disk_budget_bytes": -1}, "disk_budget_bytes must be"),
        (
            {"fresh": ["resise"]},
            "fresh op 'resise' is not in the chain after decode: allowed are resize, random_crop, flip_lr",
        ),
        ({"fresh": ["resize"]}, "can be cached: before resize its images have no fixed size"),
        ({"chain": "decode|flip_lr"}, "vary in size and cannot be batched"),
        ({"chain": "decode|flip_rl"}, "did you mean 'flip_lr'"),
    ],
)
def test_bad_arguments(photo_folder: Path, arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(photo_folder, **{"chain": CHAIN, "epochs": 5, **arguments})


def test_a_source_without_a_usable_image(make_folder: Callable[[Mapping[str, bytes]], Path]) -> None:
    with pytest.raises(ValueError, match="no record of 2 in the sample runs through"):
        plan(make_folder({"a/1.jpg": b"no", "b/2.jpg": b"picture"}), CHAIN, epochs=5)
    with pytest.raises(SourceError):
        plan("nowhere", CHAIN, epochs=5)


# From the command line ------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


def test_a_plan_is_printed_and_applied(
    run: Run, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Its caches have the energy of builds on two hosts."""

    def build_on_two_hosts(source: Source, folder: Path, config: BuildConfig, meter: Meter) -> Built:
        built = build_cache(source, folder, config, meter)
        spent = built.manifest.energy
        assert spent is not None
        assert spent.hosts is not None
        there = replace(spent, hosts=tuple(replace(host, name="node-1") for host in spent.hosts))
        return replace(built, manifest=replace(built.manifest, energy=spent + there))

    monkeypatch.setattr(sampling, "build_cache", build_on_two_hosts)
    cache = tmp_path / "cache"
    fresh = ("--fresh", "random_crop,flip_lr")
    options = ("--chain", CHAIN, "--epochs", 2000, "--seconds", 1, "--batch-size", 8, *fresh, "--apply", cache)
    code, out, _ = run("plan", photo_folder, *options)
    assert code == 0
    text = " ".join(out.split())
    chain = str(open_manifest(cache).parsed_chain())
    assert f"joulecache precompute {photo_folder} {cache} --chain '{chain}'" in text
    assert "nothing:" in text
    assert "2,000" in text
    assert re.search(r"the build of [\d.]+ m?J is paid back after [\d.,]+ epochs\.", text)
    assert next(iter(load(cache, "train", 8)))[0].shape[1:] == (32, 32, 3)


def test_the_command_builds_the_whole_source_whatever_was_sampled(
    run: Run,
    tmp_path: Path,
    photos: Mapping[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> None:
    """The printed words are run as they are."""
    monkeypatch.chdir(tmp_path)
    names = {f"my photos/{name.replace('/', ' ')}": data for name, data in photos.items()}
    for name, data in names.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(data)
    rows = [f"{Path(name).name},{Path(name).name[:3]}" for name in names]
    Path("it's.csv").write_text("\n".join(["name,label", *rows]), "utf-8")
    options = ("--limit", 16, "--labels", "it's.csv", "--seed", 3, "--epochs", 2000, "--seconds", 1, "--batch-size", 8)
    code, out, err = run("plan", "my photos", "--chain", CHAIN, *options, "--fresh", "random_crop,flip_lr", "--json")
    assert code == 0, err
    body = json.loads(out)
    assert (body["records"], body["sampled"]) == (30, 16)
    command = next(choice["command"] for choice in body["choices"] if choice["command"])
    program, *words = shlex.split(command)
    assert program == "joulecache"
    assert run(*words)[0] == 0
    manifest = open_manifest("cache/")
    assert (manifest.records, manifest.seed, len(manifest.class_names)) == (30, 3, 3)


def test_where_nothing_pays_nothing_is_built(run: Run, photo_folder: Path, tmp_path: Path, quick: None) -> None:
    cache = tmp_path / "cache"
    options = ("--chain", "decode|resize(40)", "--epochs", 1, "--seconds", 1, "--batch-size", 8)
    code, out, _ = run("plan", photo_folder, *options, "--apply", cache, "--json")
    body = json.loads(out)
    assert (code, body["applied"], body["command"]) == (0, None, None)
    assert body["choices"][0]["way"] is None
    assert re.match("No cache (clearly )?pays", body["why"])
    assert not cache.exists()


def test_custom_ops_are_planned_online_too_and_named_in_the_command(
    run: Run,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> None:
    (tmp_path / "my_planned_ops.py").write_text(
        "from dataclasses import dataclass\n"
        "from joulecache.transforms import Op\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Turned(Op):\n"
        "    def pixels(self, image, draw):\n"
        "        return image[::-1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--ops", "my_planned_ops", "--epochs", 3000, "--seconds", 1, "--batch-size", 8, "--json")
    code, out, err = run("plan", photo_folder, "--chain", "decode|resize(40)|turned", *options)
    assert code == 0, err
    body = json.loads(out)
    commands = [choice["command"] for choice in body["choices"] if choice["way"]]
    assert commands
    assert all(command.endswith("--ops my_planned_ops") for command in commands)
    assert body["online_refused"] is None
    assert None in [choice["way"] for choice in body["choices"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs must be"),
        (["--epochs", "3", "--disk-budget", "much"], "--disk-budget must be a number and a unit"),
        (["--epochs", "3", "--fresh", "resise"], "fresh op 'resise' is not in the chain"),
        (["--epochs", "3", "--apply", "."], "--apply must be a folder that is empty"),
    ],
)
def test_bad_arguments_are_one_line(
    run: Run, photo_folder: Path, quick: None, options: Sequence[str], message: str
) -> None:
    code, out, err = run("plan", photo_folder, "--chain", CHAIN, *options)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20e9), ("1.5 TB", 1.5e12), ("512MiB", 512 * 1024**2), ("300", 300.0), ("7kb", 7000.0), ("2K", 2000.0)],
)
def test_sizes(text: str, size: float) -> None:
    assert planning_command._bytes(text) == size
