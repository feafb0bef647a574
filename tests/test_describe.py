"""Documents hold the values of the result, and claims that are as strong as its findings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from audits import (
    AUDIT,
    BUILD,
    COMPRESSION,
    ENERGY,
    INPUT,
    OWN,
    SHAKEN,
    STOLEN,
    TRAIN,
    audit_of,
    make_plan,
    own_audit,
    printed,
    with_arm,
)

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.compressing.results import Compression, ModelFile
from joulecache.pipelines.core import quantities
from joulecache.pipelines.energy import Component, Meter
from joulecache.pipelines.energy.measurement import Contamination
from joulecache.pipelines.experiment.claims import Finding
from joulecache.pipelines.experiment.results import Joules, ScoreRange, Waiting
from joulecache.pipelines.experiment.statistics import BreakEven, Ratio
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.describe.compression import compression_sentences, describe_compression
from joulecache.pipelines.report.describe.energy import describe_energy
from joulecache.pipelines.report.describe.plan import describe_plan
from joulecache.pipelines.report.describe.reuse import reuse_sentences, times
from joulecache.pipelines.report.describe.stages import stage_sentences
from joulecache.pipelines.report.describe.training import describe_training
from joulecache.pipelines.report.describe.verdict import horizon_of
from joulecache.pipelines.report.document import (
    Bars,
    Cell,
    Chart,
    Document,
    Images,
    Lines,
    Stack,
    StackedBars,
    Table,
)
from joulecache.pipelines.report.render.terminal import plain
from joulecache.pipelines.training.results import TrainedModel, TrainingRun


def tables(document: Document, title: str) -> list[Table]:
    blocks = (block for section in document.sections for block in section.blocks)
    return [block for block in blocks if isinstance(block, Table) and block.title == title]


def rows(document: Document, title: str, number: int = 0) -> dict[str, dict[str, Cell]]:
    """Return the cells of a table by the first cell of their row and the title of their column."""
    shown = tables(document, title)[number]
    heads = [column.title for column in shown.columns]
    return {row[0].text: dict(zip(heads, row, strict=True)) for row in shown.rows}


def shown(cell: Cell) -> str:
    return " ".join(filter(None, (cell.value.value, cell.tag, cell.value.interval and f"({cell.value.interval})")))


def charts(document: Document) -> list[Chart]:
    return [block for section in document.sections for block in section.blocks if isinstance(block, Chart)]


def text_of(document: Document) -> str:
    """Return all sentences of a document."""
    return " ".join(printed(document, 10_000, brief=False).split())


# Values ---------------------------------------------------------------------------------------------------------------

_FIGURE = re.compile(r"(-?[\d,]+\.?\d*)\s*(µJ|mJ|kJ|J|µs|ms|s|kB|MB|GB|B|%)?")
_SIZES = {"µJ": 1e-6, "mJ": 1e-3, "kJ": 1e3, "µs": 1e-6, "ms": 1e-3, "kB": 1e3, "MB": 1e6, "GB": 1e9, "%": 1e-2}


def read(cell: Cell) -> list[float]:
    """Return the numbers of a cell in units without prefix; those of the interval have the unit of the value."""
    (first,) = _FIGURE.findall(cell.text)
    size = _SIZES.get(first[1], 1.0)
    found = [float(first[0].replace(",", "")) * size]
    for number, unit in _FIGURE.findall(cell.value.interval):
        found.append(float(number.replace(",", "")) * _SIZES.get(unit, size))
    return found


def close(*values: float | None, decimals: float = 0.0) -> Any:
    """Equal to three digits, or to the decimals that ratios and shares are shown with."""
    return pytest.approx(values, rel=0.00501, abs=decimals)


PER_1000 = "Active energy per 1,000 images (low to high)"


def bounds(energy: Joules) -> Any:
    return close(energy.value, energy.low, energy.high)


def interval(ratio: Ratio) -> Any:
    return close(ratio.value, ratio.low, ratio.high, decimals=5.01e-4)


def test_tables_of_workloads_have_the_values_of_the_audit() -> None:
    document = describe_audit(AUDIT)
    controls = rows(document, "A/A control")
    for number, (result, title) in enumerate(zip(AUDIT.workloads, ("Input only", "Training"), strict=True)):
        arms, more = rows(document, "Arms", number), rows(document, "Other metrics", number)
        assert list(arms) == [arm.name for arm in result.arms]
        for arm in result.arms:
            row, other = arms[arm.name], more[arm.name]
            assert read(row["CPU time per image"]) == close(arm.cpu_us_per_image * 1e-6)
            assert read(row[PER_1000]) == bounds(arm.active_j_per_1000)
            assert read(row["Images/s"]) == close(arm.images_per_s)
            once = row["One-time cost (low to high)"]
            assert read(once) == (bounds(arm.one_time) if arm.one_time.value else [0])
            if arm.name != "naive":
                assert read(row["Ratio to naive (95% interval)"]) == interval(arm.ratio)
            if arm.score:
                assert read(row["Accuracy (range of runs)"]) == close(*arm.score, decimals=5.01e-4)
            assert read(other["Total energy per 1,000 images, idle included (low to high)"]) == bounds(
                arm.total_j_per_1000
            )
            assert read(other["Peak memory"]) == close(arm.peak_rss_bytes)
        for each in result.comparisons:
            row, paid = rows(document, "The cache against each other arm", number)[each.other], each.break_even
            assert read(row["Ratio per epoch (95% interval)"]) == interval(each.ratio)
            whole = read(row["Ratio over 30 epochs, build included (95% interval)"])
            assert whole == interval(horizon_of(result, each, AUDIT).ratio)
            if paid.epochs is None:
                assert shown(row["Break-even (95% interval)"]) == "never (48.7 to never)"
            else:
                assert read(row["Break-even (95% interval)"]) == close(paid.epochs, paid.low, paid.high)
        assert read(controls[title]["Ratio (95% interval)"]) == interval(result.control)
        assert shown(controls[title]["Outcome"]) == "contains 1"


def test_tables_of_model_files_have_the_values_of_the_compression() -> None:
    found = rows(describe_compression(COMPRESSION), "Model files")
    for file in COMPRESSION.model_files:
        row, one = found[file.name], file.energy_per_image
        assert read(row["Parameters"]) == [file.parameters]
        assert read(row["Non-zero weights"]) == [file.nonzero_weights]
        assert read(row["MACs"]) == [file.macs]
        assert read(row["File"]) == close(file.file_bytes)
        assert read(row["gzip"]) == close(file.gzip_bytes)
        accuracy = (file.accuracy, file.accuracy_low, file.accuracy_high)
        assert read(row["Accuracy (95% interval)"]) == close(*accuracy, decimals=5.01e-4)
        assert read(row["Fastest CPU time per image"]) == close(file.cpu_ms_per_image * 1e-3)
        assert read(row["Median CPU time per image"]) == close(file.cpu_ms_per_image_median * 1e-3)
        spent = close(one.active_j, one.active_low_j, one.active_high_j)
        assert read(row["Active energy per image (low to high)"]) == spent
        assert shown(row["Compared with"]) == (file.dense or "-")
        assert shown(row["Faster"]) == {None: "-", True: "yes", False: "no"}[file.faster_than_dense]


def test_what_was_not_measured_is_said_and_never_zero() -> None:
    result = TRAIN
    document = describe_audit(audit_of(with_arm(result, "tuned", score=None)))
    more = rows(document, "Other metrics").values()
    assert {shown(row["Read per image"]) for row in more} == {"not measured"}
    assert {shown(row["CO2 per 1,000 images"]) for row in more} == {"no country given"}
    assert shown(rows(document, "Energy of the build, by component")["gpu"]["Energy (low to high)"]) == "not measured"
    assert shown(rows(document, "Background load")["naive"]["Waiting for memory"]) == "not measured"
    accuracies = [shown(row["Accuracy (range of runs)"]) for row in rows(document, "Arms").values()]
    assert [text == "not measured" for text in accuracies] == [False, True, False, False]


def test_grams_where_a_country_was_given() -> None:
    meter = dataclasses.replace(AUDIT.provenance.meter, country="DEU", carbon_g_per_kwh=381.2, carbon_source="a table")
    result = dataclasses.replace(INPUT, arms=(dataclasses.replace(INPUT.arms[0], carbon_g_per_1000=0.000528),))
    result = dataclasses.replace(result, comparisons=())
    document = describe_audit(
        audit_of(result, stages=None, provenance=dataclasses.replace(AUDIT.provenance, meter=meter))
    )
    assert {shown(row["CO2 per 1,000 images"]) for row in rows(document, "Other metrics").values()} == {"528 µg"}
    assert shown(rows(document, "Machine and versions")["Carbon"]["Value"]) == "DEU, 381 g per kWh (a table)"


def test_measured_and_modelled_joules_are_told_apart() -> None:
    parts = {
        name: part and dataclasses.replace(part, method="measured:rapl") for name, part in ENERGY.components.items()
    }
    active = dataclasses.replace(ENERGY.active, method="modelled:rapl-share@1")
    rapl = dataclasses.replace(ENERGY, components=parts, active=active)
    audit = audit_of(build=dataclasses.replace(BUILD, energy=rapl), energy=rapl, method=rapl.method)
    document = describe_audit(audit)
    assert {row[PER_1000].tag for row in rows(document, "Arms").values()} == {"modelled"}
    total = "Total energy per 1,000 images, idle included (low to high)"
    assert {row[total].tag for row in rows(document, "Other metrics").values()} == {"measured"}
    assert rows(document, "Energy of the build, by component")["cpu"]["Energy (low to high)"].tag == "measured"


def test_provenance_says_what_it_takes_to_repeat_the_audit() -> None:
    document = describe_audit(AUDIT)
    text = printed(document, brief=False)
    assert "joulecache audit photos.tar --out 'my audit'" in text
    assert "/opt/bin" not in text
    said = {
        what: shown(row["Value"])
        for title in ("Reproducing this audit", "Machine and versions", "Build of the cache")
        for what, row in rows(document, title).items()
    }
    assert said["Seed"] == "7"
    assert said["Every single run"].startswith("runs.jsonl")
    assert said["Threads"] == "2 CPUs; within an op as TensorFlow chooses; across ops 4"
    assert said["keras"] == "not installed"
    assert said["Active energy (low to high)"] == "5.80 J modelled (2.32 to 12.8)"
    coefficients = rows(document, "Coefficients")
    assert {name: (shown(row["Central"]), shown(row["Source"])) for name, row in coefficients.items()} == {
        name: (f"{row.central:g}", row.source) for name, row in AUDIT.provenance.meter.coefficients.items()
    }


def test_watts_of_the_user_are_named_as_such() -> None:
    provenance = dataclasses.replace(AUDIT.provenance, meter=Meter(idle_w=12, full_w=65).provenance())
    text = text_of(describe_audit(audit_of(provenance=provenance)))
    assert "watts given by the user" in text
    assert "provider None" not in text


# Claims ---------------------------------------------------------------------------------------------------------------

STRONGEST = "Training from the cache uses 32% more active energy over 30 epochs than tf_cache, the strongest alternative, build included "


def test_the_verdict_is_against_the_strongest_alternative_over_the_horizon() -> None:
    first, others = describe_audit(AUDIT).headline
    assert first.claim.startswith(STRONGEST)
    assert (first.finding, first.tag) == ("costs", "modelled")
    assert first.detail == (
        "An epoch uses 8.1% more (95% interval 5.9% to 10% more). The build is never paid back (48.7 to never). Here, tf_cache is the "
        "better choice. Accuracy 55.4% against 55.4%."
    )
    assert others.claim == "Also over 30 epochs, build included: 91.4% less than naive, 90.6% less than tuned."
    assert others.finding is None


def test_a_saving_per_epoch_that_does_not_pay_back_the_build_is_no_saving() -> None:
    last = INPUT.comparisons[-1]
    cheaper = dataclasses.replace(last, ratio=Ratio(0.9, 0.89, 0.91, 20), finding="saves", horizon_ratio=1.4)
    costly = with_arm(INPUT, "optimized", one_time=Joules(1e4, 0.9e4, 1.1e4))
    audit = audit_of(dataclasses.replace(costly, comparisons=(cheaper,)), stages=None)
    document = describe_audit(audit)
    assert document.headline[0].finding == "costs"
    assert "An epoch uses 10% less" in document.headline[0].detail
    assert f"For so few epochs, {last.other} is the better choice." in document.headline[0].detail
    assert "saves" not in [fact.finding for fact in document.facts]
    badges = [
        cell.text
        for row in rows(document, "The cache against each other arm").values()
        for cell in row.values()
        if cell.finding
    ]
    assert badges == ["costs"]


def test_all_key_values_have_the_same_baseline() -> None:
    facts = describe_audit(audit_of(compression=COMPRESSION)).facts
    assert [fact.label for fact in facts] == [
        "Over 30 epochs, build included",
        "Per epoch",
        "Build paid back after",
        "Accuracy",
    ]
    assert all("tf_cache" in fact.detail for fact in facts)
    assert not any(other in fact.detail for fact in facts for other in ("naive", "tuned"))


def test_the_picture_has_the_joules_of_every_arm() -> None:
    picture = describe_audit(AUDIT).picture
    assert picture is not None
    assert isinstance(picture.plot, StackedBars)
    assert AUDIT.records is not None
    images = AUDIT.records.train * 30
    for bar, arm, loaded in zip(picture.plot.bars, TRAIN.arms, INPUT.arms, strict=True):
        parts = {part.label: part.value for part in bar.parts}
        assert bar.label == arm.name
        active_j = arm.active_j_per_1000.value
        assert parts.get("input", 0) + parts.get("training", 0) == pytest.approx(active_j)
        assert parts["input"] == pytest.approx(min(active_j, loaded.active_j_per_1000.value))
        waited = arm.waiting.total_j_per_1000 if arm.waiting else None
        assert parts.get("waiting", 0) == pytest.approx(waited.value if waited else 0)
        assert parts.get("one-time", 0) == pytest.approx(1000 * arm.one_time.value / images)
        assert bar.ends is not None
        assert bar.ends[0] <= sum(parts.values()) * 1.000001
        assert bar.ends[1] >= sum(parts.values()) * 0.999999
    assert all(f"{arm.name}: " in picture.caption for arm in TRAIN.arms)


@pytest.mark.parametrize(
    ("found", "command"),
    [("costs", "joulecache plan "), ("saves", "joulecache precompute "), ("inconclusive", "--pairs 10")],
)
def test_the_next_step_follows_from_the_finding(found: Finding, command: str) -> None:
    ratio = Ratio(1.1, 1.05, 1.15, 5) if found == "costs" else Ratio(0.5, 0.45, 0.55, 5)
    one = dataclasses.replace(TRAIN.comparisons[0], ratio=ratio, finding=found, horizon_ratio=ratio.value)
    arms = [("optimized", ratio.value), (one.other, 1.0)]
    result = dataclasses.replace(TRAIN, comparisons=(one,))
    for name, joules in arms:
        result = with_arm(result, name, one_time=Joules(0, 0, 0), active_j_per_1000=Joules(joules, joules, joules))
        result = with_arm(result, name, active_j_per_1000_by_block=(joules,) * 5)
    provenance = dataclasses.replace(
        AUDIT.provenance, command=("/bin/joulecache", "audit", "photos/", "--labels", "labels.csv", "--pairs", "5")
    )
    step = describe_audit(audit_of(result, provenance=provenance)).next_step
    assert step is not None
    assert command in step.command
    assert "--labels labels.csv" in step.command


def test_how_sure_it_is_names_blocks_control_and_joules() -> None:
    said = describe_audit(AUDIT).certainty
    assert f"{TRAIN.blocks} interleaved blocks; the control, naive against itself, is " in said
    assert "joules are modelled from CPU time" in said
    assert "the pixels of the pipelines were not compared" in describe_audit(OWN).certainty


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("costs", "uses 32% more active energy over 30 epochs than tf_cache"),
        ("costs", "Here, tf_cache is the better choice"),
        (
            "inconclusive",
            "Training from the cache: inconclusive against tf_cache, the strongest alternative, over 30 epochs",
        ),
        ("inconclusive", "An epoch used 8.1% more"),
        ("inconclusive", "If that holds, the build is never paid back"),
    ],
)
def test_claims_are_as_strong_as_findings(found: Finding, words: str) -> None:
    *others, last = TRAIN.comparisons
    compared = (*others, dataclasses.replace(last, finding=found))
    document = describe_audit(audit_of(INPUT, dataclasses.replace(TRAIN, comparisons=compared)))
    first = document.headline[0]
    assert words in f"{first.claim} {first.detail}"
    assert ("than tf_cache" in first.claim) == (found in ("saves", "costs"))
    assert words in " ".join(printed(document).split())


def test_the_break_even_over_several_trainings_is_said() -> None:
    naive = TRAIN.comparisons[0]

    def said(epochs: float | None, runs: int = 4) -> str:
        over = BreakEven(epochs, epochs and 0.9 * epochs, epochs and 1.1 * epochs)
        compared = dataclasses.replace(naive, runs=runs, break_even_over_runs=over)
        audit = audit_of(dataclasses.replace(TRAIN, comparisons=(compared,)))
        return describe_audit(audit).headline[0].detail

    assert "With 4 trainings on the same cache, it is paid back after 0.380 epochs (0.342 to 0.418) of each." in said(
        0.38
    )
    assert "With 4 trainings on the same cache, it is never paid back" in said(None)
    assert "With 4 trainings on the same cache, it is paid back at once" in said(0.0)
    assert "trainings" not in said(0.38, runs=1)


def test_the_headline_is_about_the_whole_job() -> None:
    document = describe_audit(audit_of(INPUT, dataclasses.replace(TRAIN, workload="infer"), stages=None))
    assert document.headline[0].claim.startswith("Inference from the cache")


def test_nothing_to_compare_with_and_nothing_to_pay_back() -> None:
    alone = describe_audit(audit_of(dataclasses.replace(INPUT, comparisons=()), stages=None))
    assert alone.headline[0].claim == "Nothing was compared with the cache."
    free = dataclasses.replace(INPUT.comparisons[0], break_even=BreakEven(0.0, 0.0, 0.0))
    document = describe_audit(audit_of(dataclasses.replace(INPUT, comparisons=(free,)), stages=None))
    assert "The build is paid back at once: naive uses as much before its first epoch." in document.headline[0].detail


def without_intervals(value: Any) -> Any:
    """Return a result as a single block gives it."""
    if isinstance(value, tuple):
        return (
            type(value)(*map(without_intervals, value))
            if hasattr(value, "_fields")
            else tuple(map(without_intervals, value))
        )
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    parts = {name: without_intervals(each) for name, each in vars(value).items()}
    if isinstance(value, Ratio | BreakEven):
        parts |= {"low": None, "high": None}
    return dataclasses.replace(value, **parts)


def test_one_block_has_no_interval() -> None:
    document = describe_audit(audit_of(without_intervals(INPUT), stages=None, reuse=None))
    text = text_of(document)
    assert "1.53 epochs (one block, no interval)" in text
    for word in ("95% interval 9", "None", "nan"):
        assert word not in text
    assert shown(rows(document, "Arms")["tuned"]["Ratio to naive (95% interval)"]) == "0.917 (one block, no interval)"
    assert shown(rows(document, "A/A control")["Input only"]["Outcome"]) == "a single block shows nothing"


def test_accuracies_that_do_not_meet_are_said() -> None:
    worse = with_arm(TRAIN, "optimized", score=ScoreRange(0.41, 0.4, 0.42))
    assert (
        "The trained models differ: accuracy 41.0% against 55.4%"
        in describe_audit(audit_of(INPUT, worse)).headline[0].detail
    )
    assert "The trained models differ" not in text_of(describe_audit(AUDIT))


def test_a_training_at_chance_level_is_said() -> None:
    assert AUDIT.records is not None
    for chance, said in ((0.5, True), (0.4, False), (None, False)):
        records = dataclasses.replace(AUDIT.records, chance=chance)
        found = describe_audit(audit_of(records=records)).headline[0].detail
        assert ("Accuracy 55.4% against 55.4%, which is chance level: " in found) == said


def test_a_failed_control_is_said() -> None:
    result = dataclasses.replace(INPUT, control=Ratio(1.2, 1.1, 1.3, 5))
    found = rows(describe_audit(audit_of(result, TRAIN)), "A/A control")["Input only"]
    assert shown(found["Outcome"]) == "does not contain 1: nothing is claimed"


# Doubts ---------------------------------------------------------------------------------------------------------------

FLAG = "other processes used 31% of the processors"


def test_flags_of_the_meter_are_counted_first_and_listed_with_the_reason() -> None:
    result = with_arm(INPUT, "tuned", flags=(FLAG,), flagged_runs=4)
    built = dataclasses.replace(BUILD, energy=SHAKEN)
    document = describe_audit(audit_of(with_arm(result, "naive", flagged_runs=1), TRAIN, build=built))
    assert document.warning == (
        f"Flagged by the meter. Input only: 5 of 20 runs, and all runs of tuned together. Building the cache: {STOLEN}."
    )
    partly = describe_audit(audit_of(INPUT, TRAIN, build=dataclasses.replace(BUILD, unmetered_shards=3)))
    assert "Building the cache: part of the work on 3 shards was not measured" in partly.warning
    load = rows(document, "Background load")
    assert (shown(load["tuned"]["Flags of all runs together"]), shown(load["tuned"]["Flagged runs"])) == (
        FLAG,
        "4 of 5",
    )
    assert shown(load["tf_cache"]["Flags of all runs together"]) == "none"
    assert shown(load["naive"]["Other processes, of all CPU time"]) == "0.4%"


@pytest.mark.parametrize(
    ("flagged", "said"),
    [
        ({"tuned": 0}, "Input only: 0 of 20 runs, and all runs of tuned together."),
        (
            dict.fromkeys(("naive", "tuned", "tf_cache", "optimized"), 5),
            "Input only: 20 of 20 runs, and all runs together.",
        ),
        ({}, ""),
    ],
)
def test_runs_that_are_flagged_only_together_are_said(flagged: Mapping[str, int], said: str) -> None:
    result = INPUT
    for name, runs in flagged.items():
        result = with_arm(result, name, flags=(FLAG,), flagged_runs=runs)
    warning = describe_audit(audit_of(result, TRAIN)).warning
    assert warning == (f"Flagged by the meter. {said}" if said else "")


def model_file(name: str, dense: str | None = None, **changes: Any) -> ModelFile:
    return dataclasses.replace(COMPRESSION.model_files[0], name=name, dense=dense, **changes)


def compressed(*files: ModelFile, **changes: Any) -> Compression:
    accuracies = {file.name: (file.accuracy,) for file in files}
    return dataclasses.replace(COMPRESSION, **{"model_files": files, "accuracies": accuracies, **changes})


BASELINE = model_file("baseline")


def test_flagged_model_files_are_counted_first_and_listed_with_the_reason() -> None:
    names = ("a", "b", "c")
    made = compressed(
        BASELINE,
        model_file("control", finetune_energy=SHAKEN),
        *(model_file(name, "baseline", energy_per_image=SHAKEN) for name in names),
    )
    for document in (describe_compression(made), describe_audit(audit_of(compression=made))):
        assert document.warning == "Flagged by the meter. Model files: 3 of 5. Fine-tunings: 1 of 1."
        (flagged,) = tables(document, "Flagged measurements")
        assert [tuple(cell.text for cell in row) for row in flagged.rows] == [
            *(("Model files", name, STOLEN) for name in names),
            ("Fine-tunings", "control", STOLEN),
        ]


# The compressed model -------------------------------------------------------------------------------------------------


def said_of_models(made: Compression) -> str:
    (files,) = tables(describe_compression(made), "Model files")
    return " ".join((*compression_sentences(made), files.remark))


def test_what_compression_gained_and_lost() -> None:
    said = said_of_models(COMPRESSION)
    for sentence in (
        "pruned-int8 against control (baseline, fine-tuned without compression): 93.4% less storage, 58% less CPU time per image, "
        "58% less active energy (modelled); accuracy 59.3% against 62.1%, and their intervals overlap.",
        "pruned-float32 uses less energy per image than pruned-int8 on this machine, at an accuracy of 60.0%.",
        "Spent once: fine-tuning the control used 12.2 J (modelled), fine-tuning pruned-int8 used 7.55 J (modelled). pruned-int8 pays "
        "that back against control-int8 after 8.23 k inferences.",
        "Channels kept: conv_1 32 to 16.",
    ):
        assert sentence in said
    assert "seeds" not in said
    assert "Zeros" not in said
    assert "No model was compressed." in text_of(describe_audit(audit_of(compression=None)))


def test_the_widths_of_large_networks_are_added_up() -> None:
    made = dataclasses.replace(COMPRESSION, widths={f"conv_{number}": (100, 75) for number in range(20)})
    assert "Channels kept: 1,500 of 2,000, in 20 layers; the widths of all: compression.json." in said_of_models(made)


def test_compression_is_compared_with_the_model_that_was_trained_as_long() -> None:
    tuned = model_file("pruned-int8", "baseline", finetune_energy=ENERGY)
    assert "pruned-int8 against baseline (not fine-tuned): " in said_of_models(compressed(BASELINE, tuned))
    untouched = model_file("baseline-int8", "baseline")
    assert "baseline-int8 against baseline: " in said_of_models(compressed(BASELINE, untouched))


def test_models_at_chance_level_are_named() -> None:
    learned, lost = (dataclasses.replace(BASELINE, name=name, accuracy=share, accuracy_low=share - 0.05, accuracy_high=share + 0.05)
                     for name, share in (("learned", 0.7), ("lost", 0.54)))  # fmt: skip
    made = dataclasses.replace(compressed(learned, lost), chance=0.5)
    said = "At chance level: lost. Always answering the most frequent class is right for 50.0% of the held-out images."
    assert said in said_of_models(made)
    assert "At chance level" not in said_of_models(compressed(learned, lost))  # from before chance was recorded
    assert "At chance level: all model files. " in said_of_models(dataclasses.replace(made, chance=0.7))


def test_carbon_is_said_where_a_country_is_known() -> None:
    tuned = model_file("pruned-float32", "baseline", finetune_energy=dataclasses.replace(ENERGY, carbon_g=0.0123))
    said = "used 5.80 J (modelled), 12.3 mg of CO2 equivalent with the idle machine"
    assert said in said_of_models(compressed(BASELINE, tuned))
    assert "CO2" not in said_of_models(COMPRESSION)
    assert (
        "12.3 mg of CO2 equivalent" in trained(1, energy=dataclasses.replace(ENERGY, carbon_g=0.0123)).headline[0].claim
    )


def test_fine_tuning_that_is_never_paid_back() -> None:
    *files, last = COMPRESSION.model_files
    said = said_of_models(compressed(*files, dataclasses.replace(last, inferences_to_pay_back=None)))
    assert "used 7.55 J (modelled). pruned-int8 never pays that back: not every run used less energy" in said
    assert "inferences" not in said


def test_only_smaller_models_pay_back_their_fine_tuning() -> None:
    aware = model_file("baseline-int8-aware", "baseline", finetune_energy=ENERGY)
    said = said_of_models(compressed(BASELINE, model_file("control", finetune_energy=ENERGY), aware))
    assert "fine-tuning baseline-int8-aware used 5.80 J (modelled). " in said
    assert "pays" not in said
    assert "Spent once" not in said_of_models(compressed(BASELINE, model_file("pruned-float32", "baseline")))


def test_without_a_control_nothing_is_compared_with_one() -> None:
    pruned = model_file("pruned-float32", "baseline", finetune_energy=ENERGY, inferences_to_pay_back=41.2)
    accuracies = {"baseline": (0.614,) * 3, "pruned-float32": (0.6, 0.59, 0.61)}
    said = said_of_models(compressed(BASELINE, pruned, accuracies=accuracies))
    assert "control" not in said
    assert "Spent once: fine-tuning pruned-float32 used 5.80 J (modelled). pruned-float32 pays that back" in said
    assert "against baseline after 41.2 inferences." in said


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.613, 0.609, 0.617), "lost 0.8 points against the control (95%: -0.2 to 1.8)."),
        ((0.629, 0.625, 0.633), "gained 0.8 points against the control (95%: -0.2 to 1.8)."),
        ((0.611, 0.611, 0.611), "lost 1.0 points against the control (95%: 1.0 to 1.0)."),
        ((0.6209, 0.6208, 0.6210), "lost 0.0 points against the control (95%: 0.0 to 0.0)."),
    ],
)
def test_accuracy_over_several_seeds(accuracies: tuple[float, ...], words: str) -> None:
    names = [file.name for file in COMPRESSION.model_files]
    over_seeds = {**dict.fromkeys(names, (0.621,) * 3), "pruned-int8": accuracies}
    said = said_of_models(compressed(*COMPRESSION.model_files, accuracies=over_seeds))
    assert f"Over 3 seeds, pruned-int8 {words}" in said
    assert said.count("seeds") == 1


@pytest.mark.parametrize(
    ("sparse", "clustered", "macs", "words"),
    [
        (False, False, 25_898_440, ", not time: the kernels on this machine multiply zeros too."),
        (True, False, 25_898_440, "faster: sparse-float32, but not clustered-int8."),
        (True, True, 25_898_440, "faster: sparse-float32, clustered-int8."),
        (True, True, 6_520_520, "; their effect on time was not measured separately, since channels were removed too."),
    ],
)
def test_zeros_save_time_only_where_that_was_measured(sparse: bool, clustered: bool, macs: int, words: str) -> None:
    faster = {"sparse-float32": sparse, "clustered-int8": clustered}
    files = (model_file(name, "baseline", macs=macs, faster_than_dense=each) for name, each in faster.items())
    said = said_of_models(compressed(BASELINE, *files))
    assert "Zeros and shared values save bytes in a compressed file" in said
    assert said.endswith(words)


# Custom pipelines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "found", "claims"),
    [
        (("plain",), "saves", ["Training from plain uses 3.10 J (1.20 to 6.71) of active energy per 1,000 images, at 1,200 images/s."]),
        (
            ("plain", "tuned"),
            "saves",
            [
                "Training from tuned uses 50% less active energy per image than from plain (95% interval 48% to 52% less).",
                "Per 1,000 images: 1.55 J against 3.10 J. Images/s: 2,400 against 1,200.",
            ],
        ),
        (
            ("plain", "tuned", "best"),
            "inconclusive",
            [
                "Training from best: inconclusive against plain.",
                "An image used 75% less active energy (95% interval 74% to 76% less); the interval lies below 1",
                "Training from tuned: inconclusive against plain.",
            ],
        ),
    ],
    ids=["one", "two", "three"],
)  # fmt: skip
def test_custom_pipelines_are_compared_with_the_first(
    names: tuple[str, ...], found: Finding, claims: list[str]
) -> None:
    document = describe_audit(own_audit(*names, finding=found))
    last, text, terminal = names[-1], text_of(document), " ".join(printed(document).split())
    claims += [
        f"Training from {last} waits for input at most 12.5% of the time; meanwhile the idle machine uses 500 mJ (194 to 1,082) per "
        "1,000 images (modelled).",
        f"Running alone, as shares of {last}: the input 25.0% of the energy and 25.0% of the time, the training 80.0% of the energy and "
        "80.0% of the time.",
    ]
    for said in claims:
        assert said in text
        assert said in terminal
    for word in ("None", "naive", "optimized", "cache(", "the cache", "the build", "reak-even"):
        assert word not in text, word
    assert f"Loading images from {last}" in text


def test_the_parts_of_a_training_have_the_values_of_the_audit() -> None:
    document = describe_audit(own_audit("plain", "tuned"))
    (parts,) = tables(document, "Input and training measured separately")
    heads = [column.title for column in parts.columns]
    found = [dict(zip(heads, row, strict=True)) for row in parts.rows]
    assert [(shown(row["Pipeline"]), shown(row["What ran"])) for row in found] == [
        (name, ran) for name in ("plain", "tuned") for ran in ("the input alone", "the training alone", "both together")
    ]
    assert read(found[0]["Energy per step"]) == close(3.1 * 0.25 * 20 / 3 / 1000)
    assert read(found[2]["Time per step"]) == close(0.83e-3 * 20 / 3)
    assert read(found[2]["Time per 1,000 images"]) == close(0.83)
    ratio = found[4]["Energy, as a ratio to both together (95% interval)"]
    assert read(ratio) == close(0.8, 0.76, 0.84, decimals=5.01e-4)
    origins = rows(document, "Pipelines")
    assert {name: (shown(row["Images per epoch"]), shown(row["Batches"])) for name, row in origins.items()} == {
        "plain": ("20", "3"),
        "tuned": ("20", "3"),
    }
    repeat = rows(document, "Reproducing this audit")
    assert shown(repeat["Batches per epoch"]["Value"]) == "3"
    assert not {"Batch size", "Horizon of the verdict"} & set(repeat)


def test_one_pipeline_is_compared_with_nothing() -> None:
    document = describe_audit(own_audit("plain"))
    assert "how much energy does the pipeline use?" in document.title
    assert [each.finding for each in document.headline] == [None]
    assert "Finding" not in rows(document, "Arms")["plain"]
    assert len(charts(document)) == 4


# Where the joules go --------------------------------------------------------------------------------------------------

SPENT = "Active energy per 1,000 images (95% interval)"


def said_of_stages(audit: Audit) -> str:
    assert audit.stages is not None
    return " ".join(stage_sentences(audit, audit.stages))


def test_stages_have_the_values_of_the_audit() -> None:
    document = describe_audit(AUDIT)
    found = rows(document, "Stages")
    assert AUDIT.stages is not None
    assert list(found) == [*(stage.name for stage in AUDIT.stages.stages), "unattributed", "the whole"]
    assert shown(found["decode"][SPENT]) == "1.20 J modelled (1.08 to 1.32)"
    assert shown(found["decode"]["Share of the whole"]) == "24.0%"
    assert shown(found["flip_lr"]["Run once by a cache"]) == "no"
    assert shown(found["read"]["Run once by a cache"]) == "yes"
    assert shown(found["copy"][SPENT]) == "below resolution (at most 0.0700 J)"
    assert shown(found["unattributed"][SPENT]) == "0.500 J modelled"
    assert shown(found["the whole"][SPENT]) == "5.00 J modelled"
    waiting = rows(document, "Waiting for input")["naive"]
    assert [shown(cell) for cell in waiting.values()] == ["naive", "62.0%", "1.50 J modelled (1.20 to 1.90)", "31.0%"]
    for said in (
        "Of 5.00 J of active energy per 1,000 images (Training, naive, modelled), the largest part is training step: 40.0%. Within the "
        "input, it is decode: 48.0%.",
        "A cache saves 88.0% of the input's active energy: read, decode and resize(72), which it runs once.",
        "The stages add up to 90.0% of the whole; 10.0% is unattributed.",
        "Training waited for its next batch 62.0% of the time; meanwhile the idle machine used 1.50 J per 1,000 images (modelled): "
        "31.0% of the total energy, and not part of the active energy above.",
    ):
        assert said in said_of_stages(AUDIT)
        assert said in " ".join(printed(document).split())


def with_rest(rest_j: float) -> Audit:
    """Return the audit with so many joules in no stage."""
    assert AUDIT.stages is not None
    whole_j = AUDIT.stages.whole_j_per_1000 - AUDIT.stages.unattributed_j_per_1000 + rest_j
    stages = dataclasses.replace(AUDIT.stages, whole_j_per_1000=whole_j, unattributed_j_per_1000=rest_j)
    return audit_of(stages=stages)


ROUGH = "That is off by more than a tenth: the stages are approximate."


@pytest.mark.parametrize(
    ("unattributed", "said"),
    [
        (0.4, "The stages add up to 91.8% of the whole; 8.2% is unattributed."),
        (0.6, f"The stages add up to 88.2% of the whole; 11.8% is unattributed. {ROUGH}"),
        (-0.1, "The stages add up to 102.3% of the whole, which is more than all of it"),
        (-0.6, f"more than all of it: stages and whole were measured in separate runs. {ROUGH}"),
    ],
)
def test_what_the_stages_do_not_explain_is_said(unattributed: float, said: str) -> None:
    audit = with_rest(unattributed)
    assert said in said_of_stages(audit)
    assert (ROUGH in said_of_stages(audit)) == (abs(unattributed) > 0.5)
    assert shown(rows(describe_audit(audit), "Stages")["unattributed"][SPENT]).startswith("-") == (unattributed < 0)


def test_stages_of_the_input_alone_have_no_training_and_no_waiting() -> None:
    assert AUDIT.stages is not None
    kept = tuple(stage for stage in AUDIT.stages.stages if not stage.trains)
    stages = dataclasses.replace(
        AUDIT.stages, workload="input", stages=kept, whole_j_per_1000=2.5, unattributed_j_per_1000=0.0
    )
    audit = audit_of(stages=stages)
    document = describe_audit(audit)
    assert list(rows(document, "Stages")) == [*(stage.name for stage in kept), "unattributed", "the whole"]
    assert "(Input only, naive, modelled), the largest part is decode: 48.0%. A cache" in said_of_stages(audit)
    assert "waited" not in said_of_stages(audit)
    plot = charts(document)[0].plot
    assert isinstance(plot, Stack)
    assert plot.separate is None


def test_without_stages_nothing_is_said_of_them() -> None:
    assert not tables(describe_audit(audit_of(stages=None)), "Stages")
    assert AUDIT.stages is not None
    unresolved = tuple(dataclasses.replace(stage, active_j_per_1000=None) for stage in AUDIT.stages.stages)
    nothing = audit_of(stages=dataclasses.replace(AUDIT.stages, stages=unresolved))
    whole = "Of 5.00 J of active energy per 1,000 images (Training, naive, modelled)"
    assert f"{whole}, no stage is above its resolution." in said_of_stages(nothing)
    assert "A cache saves" not in said_of_stages(nothing)


def test_waiting_for_an_accelerator_is_an_upper_bound_and_in_the_active_energy_too() -> None:
    gpu = Component(3.0, 3.0, 3.0, "measured:nvml", "NVML", "1 GPU", "1 mJ")
    with_gpu = dataclasses.replace(ENERGY, components={**ENERGY.components, "gpu": gpu}, active=ENERGY.active + gpu)
    waited = TRAIN.arm("naive").waiting
    assert waited is not None
    waiting = dataclasses.replace(waited, at_most=True, method="modelled:cpu-seconds@1+measured:nvml")
    document = describe_audit(audit_of(INPUT, with_arm(TRAIN, "naive", waiting=waiting), energy=with_gpu))
    for said in (
        "at most 62.0% of the time; meanwhile the idle machine used at most 1.50 J per 1,000 images (modelled): at most 31.0% of the "
        "total energy. The active energy above counts all joules of the GPU: its part of the waiting is in both.",
        "All joules of a GPU count as active",
        "the accelerator may still have computed while the next batch was requested",
    ):
        assert said in text_of(document)
    assert "not part of the active energy" not in text_of(document)
    found = rows(document, "Waiting for input")["naive"].values()
    assert [shown(cell) for cell in found] == [
        "naive",
        "at most 62.0%",
        "at most 1.50 J modelled (1.20 to 1.90)",
        "at most 31.0%",
    ]


def test_waiting_whose_joules_are_not_known_keeps_its_time() -> None:
    unknown = Waiting(0.62, None, None, None, at_most=False)
    audit = audit_of(INPUT, with_arm(TRAIN, "naive", waiting=unknown))
    assert "62.0% of the time; how much energy the idle machine used meanwhile is not known." in said_of_stages(audit)
    found = rows(describe_audit(audit), "Waiting for input")["naive"].values()
    assert [shown(cell) for cell in found] == ["naive", "62.0%", "not measured", "not measured"]


# Augmentation reuse ---------------------------------------------------------------------------------------------------


assert AUDIT.reuse
REUSE = AUDIT.reuse


def test_what_reuse_does_to_accuracy_is_said_as_strong_as_the_findings() -> None:
    assert reuse_sentences(REUSE, 30) == (
        "The cache holds 1 variant of its random ops. Each is used 30 times over 30 epochs, and 8 times in a training of 8 epochs.",
        "1 variant, each used 8 times, is inferior to fresh draws: accuracy differs by -2.42 points (95%: -3.09 to -1.75; 5 seeds, "
        "margin 0.5); the interval lies below -0.5 points.",
        "2 variants, each used 4 times, are not shown to be as good as fresh draws: accuracy differs by -0.30 points (95%: -0.81 to "
        "+0.21; 5 seeds, margin 0.5); the interval holds -0.5 points.",
        "4 variants, each used 2 times, are not inferior to fresh draws: accuracy differs by +1.02 points (95%: +0.84 to +1.20; 5 "
        "seeds, margin 0.5); the interval lies above -0.5 points.",
        "The effect of using a draw 30 times was not measured.",
    )
    document = describe_audit(AUDIT)
    row = rows(document, "Accuracy and energy by number of variants")["4 variants"]
    assert shown(row["Active energy of training per 1,000 images (low to high)"]) == "4.20 J modelled (1.68 to 8.40)"
    assert shown(row["Accuracy (95% interval)"]) == "81.4% (80.1% to 82.8%)"
    assert shown(row["Points from fresh (95% interval)"]) == "+1.02 (+0.84 to +1.20)"
    assert (shown(row["Finding"]), row["Finding"].finding) == ("not inferior", True)
    assert "Augmentation reuse" not in [section.title for section in describe_audit(audit_of(reuse=None)).sections]


def test_reuse_that_was_not_measured_is_said() -> None:
    four = dataclasses.replace(
        REUSE,
        variants=4,
        horizon_reuse=7.5,
        train_reuse=0.5,
        train_epochs=1,
        points=(),
        not_measured="no records are held out",
    )
    assert reuse_sentences(four, 30) == (
        "The cache holds 4 variants of its random ops. Each is used 7.5 times over 30 epochs, and at most once in a training of 1 epoch.",
        "Its effect on accuracy was not measured: no records are held out.",
    )
    assert (times(1), times(1.5), times(10 / 3), times(30)) == ("once", "1.5 times", "3.33 times", "30 times")


# Storage, charts, images ----------------------------------------------------------------------------------------------


def test_storage_is_a_cost_of_its_own() -> None:
    document = describe_audit(AUDIT)
    assert "Storing the cache, 21.5 MB, uses 2.23 J (1.21 to 7.35) a day, modelled; no ratio includes this." in text_of(
        document
    )
    stored = {
        name: shown(row["Per day of storage (low to high)"]) for name, row in rows(document, "Costs by kind").items()
    }
    assert stored == {
        **dict.fromkeys(("naive", "tuned", "tf_cache"), "nothing"),
        "optimized": "2.23 J modelled (1.21 to 7.35)",
    }


@pytest.mark.parametrize(("epochs", "crossings"), [(7.4, [3, 3]), (7.6, [3]), (31.0, [0]), (None, [0])])
def test_an_early_crossing_gets_its_own_chart(epochs: float | None, crossings: list[int]) -> None:
    compared = tuple(dataclasses.replace(each, break_even=BreakEven(epochs, 7.0, None)) for each in INPUT.comparisons)
    document = describe_audit(audit_of(dataclasses.replace(INPUT, comparisons=compared), stages=None))
    drawn = [chart for chart in charts(document) if isinstance(chart.plot, Lines)]
    assert [len(chart.plot.crossings) for chart in drawn if isinstance(chart.plot, Lines)] == crossings
    when = "never" if epochs is None else f"{quantities.number(epochs)} epochs"
    assert f"naive: {when} (7.00 to never)" in drawn[0].description
    assert ("Rings and bands" in drawn[0].caption) == (crossings[0] > 0)


def test_charts_have_the_values_of_the_audit() -> None:
    document = describe_audit(AUDIT)
    bars = next(chart for chart in charts(document) if isinstance(chart.plot, Bars))
    assert isinstance(bars.plot, Bars)
    values = {mark.label: mark.value for mark in bars.plot.marks}
    assert values == {arm.name: arm.active_j_per_1000.value for arm in INPUT.arms}
    assert "naive 3.42 J (1.32 to 7.40); tuned 3.14 J" in bars.description
    stack = charts(document)[0]
    assert isinstance(stack.plot, Stack)
    assert AUDIT.stages is not None
    known = [stage.name for stage in AUDIT.stages.stages if stage.active_j_per_1000 is not None]
    assert [part.label for part in stack.plot.parts] == known
    assert stack.description.endswith(
        "unattributed 0.500 J; separately, waiting 1.50 J (1.20 to 1.90) of the total energy."
    )


def test_examples_are_shown_with_what_the_cache_holds() -> None:
    found = [block for section in describe_audit(AUDIT).sections for block in section.blocks]
    (images,) = (block for block in found if isinstance(block, Images))
    assert plain(images.caption) == "cat/1.jpg, cat"
    assert [(image.label, image.badge) for image in images.images] == [("decode", "cached"), ("flip_lr", "")]


# Plans ----------------------------------------------------------------------------------------------------------------


def test_a_plan_says_why_and_how_to_build_it() -> None:
    document = describe_plan(make_plan(), "cache/")
    assert document.headline[0].claim == make_plan().why
    text = printed(document)
    assert make_plan().command(make_plan().best, "cache/") in text.splitlines()
    assert "Each draw of the cached random ops is used 3.75 times." in " ".join(text.split())
    found = rows(document, "Best 3 of 3 choices by active energy")
    assert shown(found["resize(72)"]["Paid back after"]) == "12.3 epochs"
    assert shown(found["nothing: online"]["Paid back after"]) == "-"
    assert shown(found["random_crop(64)"]["Variants (uses of each)"]) == "8 (3.75 uses)"


# Background load ------------------------------------------------------------------------------------------------------


def test_the_background_load_is_a_share_of_the_machine() -> None:
    def said(**changes: float) -> str:
        seen = Contamination(
            **{
                "capacity_s": 4.0,
                "resolution_s": 0.02,
                "machine_cpu_s": 9.0,
                "steal_s": 0.1,
                **dict.fromkeys(("cpu_stall_s", "memory_stall_s", "io_stall_s"), 0.5),
                **changes,
            }
        )
        energy = dataclasses.replace(ENERGY, contamination=seen, duration_s=2.0)
        return text_of(describe_energy(energy))

    assert "Background load: other processes used 100.0% of the machine's CPU time (2 CPUs)" in said()
    assert "the hypervisor took 2.5% (steal); some task waited for a CPU 25.0% of the time" in said()
    assert "Background load: not known, the window is too short" in said(resolution_s=0.41)
    unknown = dataclasses.replace(ENERGY, contamination=None)
    assert "Background load: not known." in text_of(describe_energy(unknown))


# Training -------------------------------------------------------------------------------------------------------------


def trained(epochs: int, **changes: Any) -> Document:
    history: dict[str, list[float]] = {
        "loss": [2.0 / (1 + epoch) for epoch in range(epochs)],
        "accuracy": [0.5] * epochs,
        "val_loss": [1.0] * epochs,
        "val_accuracy": [0.52] * epochs,
        "energy_j": [3.0] * epochs,
    }
    values: dict[str, Any] = {"score": 0.5, "loss": history["loss"][-1], "val_score": 0.52, "val_loss": 1.0}
    values |= {"history": history, "energy": ENERGY, "val_energy": None, "images": 100, "val_images": 40, "chance": 0.5}
    run = TrainingRun(**{**values, **changes})
    return describe_training(
        TrainedModel(folder=Path("run"), path=Path("run/model.keras"), training=run, compression=None)
    )


def test_a_training_shows_loss_and_accuracy_by_epoch() -> None:
    (said,) = (document := trained(3)).headline
    assert (
        "accuracy 52.0% and loss 1.000 on the held-out images, at chance level; accuracy 50.0% and loss 0.6667 on"
        in said.claim
    )
    assert said.detail.endswith("is right for 50.0% of the held-out images.")
    assert [shown(row["Loss"]) for row in rows(document, "Epochs").values()] == ["2.000", "1.000", "0.6667"]
    assert list(rows(trained(45), "Epochs")) == ["1", *map(str, range(3, 45, 3)), "45"]
    alone = trained(1, val_score=None, val_loss=None)
    assert "on the training images, no images held out; training used" in alone.headline[0].claim
    assert "Held-out loss" not in next(iter(rows(alone, "Epochs").values()))
    assert "chance" not in text_of(trained(1, chance=0.3))
