"""The first screen of a report after its verdict: a picture, how sure it is, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import change, plural
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.experiment.claims import Finding
from joulecache.pipelines.experiment.names import DESCRIPTIONS, INPUT
from joulecache.pipelines.experiment.results import ArmResult, Comparison, WorkloadResult
from joulecache.pipelines.report.describe.provenance import command_line
from joulecache.pipelines.report.describe.values import (
    active_tag,
    change_interval,
    epochs_to,
    ratio,
    score,
    title_of,
)
from joulecache.pipelines.report.describe.verdict import horizon_of, strongest_comparison
from joulecache.pipelines.report.document import Chart, Fact, Mark, NextStep, StackedBar, StackedBars, cell

_INPUT, _TRAINING, _WAITING, _BUILD = "input", "training", "waiting", "one-time"
_SERIES = {_INPUT: 1, _TRAINING: 0, _WAITING: 2, _BUILD: 3}
_SURE = {
    "modelled": "joules are modelled from CPU time, and the model's error shifts all arms alike",
    "measured": "joules are measured",
    "given": "joules are modelled with the watts that you gave",
}
_SHARED_OPTIONS = (
    "--ops",
    "--labels",
    "--masks",
    "--coco",
    "--splits",
    "--image",
    "--target",
    "--seed",
    "--val-fraction",
    "--ops",
)
"""Options with the same meaning in `audit`, `plan` and `precompute`."""


# The picture ----------------------------------------------------------------------------------------------------------


def picture(result: WorkloadResult, audit: Audit) -> Chart | None:
    """Draw where the joules of each arm go, with its one-time cost spread over the horizon; None for custom pipelines."""
    if audit.cached is None or audit.records is None or not audit.horizon_epochs:
        return None
    images = audit.records.train * audit.horizon_epochs
    inputs = next((each for each in audit.workloads if each.workload == INPUT and each is not result), None)
    input_j = {arm.name: arm.active_j_per_1000.value for arm in inputs.arms} if inputs else {}
    bars = tuple(_bar(result, arm, input_j.get(arm.name), images) for arm in result.arms)
    like_j = quantities.largest(sum(part.value for part in bar.parts) for bar in bars)
    bars = tuple(replace(bar, text=quantities.joules(sum(part.value for part in bar.parts), like_j)) for bar in bars)
    shown = [
        f"{bar.label} {bar.text}: {', '.join(f'{part.label} {quantities.joules(part.value, like_j)}' for part in bar.parts)}"
        for bar in bars
    ]
    legend = "; ".join(f"{arm.name}: {DESCRIPTIONS[arm.name]}" for arm in result.arms if arm.name in DESCRIPTIONS)
    waits = " Waiting: what the idle machine uses meanwhile, in no ratio." if any(map(_waiting, result.arms)) else ""
    if result.device is not None:
        waits = " Training and waiting: the simulated device, with the watts that you gave."
    return Chart(
        "Where the joules go",
        StackedBars(bars, f"J per 1,000 images over {plural(audit.horizon_epochs, 'epoch')}"),
        f"Bars: {'; '.join(shown)}.",
        f"{legend}. One-time: the build, or filling cache(), spread over {plural(audit.horizon_epochs, 'epoch')}.{waits} Whiskers: "
        "95% intervals over the blocks.",
        active_tag(audit, result),
    )


def _bar(result: WorkloadResult, arm: ArmResult, input_j: float | None, images: int) -> StackedBar:
    active_j = arm.active_j_per_1000.value
    if arm.device is not None:
        parts = {_INPUT: arm.device.input_j_per_1000.value, _TRAINING: arm.device.computing_j_per_1000}
    elif result.workload == INPUT:
        parts = {_INPUT: active_j}
    elif input_j is None:
        parts = {_TRAINING: active_j}
    else:
        parts = {_INPUT: min(input_j, active_j), _TRAINING: max(0.0, active_j - input_j)}
    parts |= {_WAITING: _waiting(arm), _BUILD: 1000 * arm.one_time.value / images}
    marks = tuple(Mark(label, value, series=_SERIES[label]) for label, value in parts.items() if value > 0)
    mean, whole_j = mean_of(arm.active_j_per_1000_by_block), sum(parts.values())
    ends = (
        None
        if mean.low is None or mean.high is None
        else (whole_j + mean.low - mean.value, whole_j + mean.high - mean.value)
    )
    return StackedBar(arm.name, marks, ends, "")


def _waiting(arm: ArmResult) -> float:
    if arm.device is not None:
        return arm.device.waiting_j_per_1000
    spent = arm.waiting.total_j_per_1000 if arm.waiting else None
    return spent.value if spent else 0.0


# How sure it is, and what to do -------------------------------------------------------------------------------------------


def certainty(result: WorkloadResult, audit: Audit) -> str:
    """Say how sure the verdict is."""
    failed = "" if result.control.contains(1.0) else ", so nothing is claimed"
    control = f"the control, {audit.reference} against itself, is {ratio(result.control)}{failed}"
    parts = [plural(result.blocks, "interleaved block"), control, _SURE[active_tag(audit)]]
    if result.device is not None:
        parts.append("those of the device follow from the watts that you gave")
    if audit.cached is None and len(audit.pipelines) > 1:
        parts.append("the pixels of the pipelines were not compared")
    return f"How sure: {'; '.join(parts)}."


def next_step(result: WorkloadResult, audit: Audit) -> NextStep | None:
    """Return what to do next: build the cache, price other cuts, or measure again."""
    if audit.cached is None:
        findings: list[Finding] = [arm.finding for arm in result.arms if arm.name != audit.reference]
    else:
        strongest = strongest_comparison(result, audit)
        findings = [] if strongest is None else [horizon_of(result, strongest, audit).finding]
    if "inconclusive" in findings:
        again = command_line(_with_option(audit.provenance.command, "--pairs", str(2 * result.blocks)))
        if again is None:
            return None
        return NextStep(
            "To decide, measure more blocks on a quiet machine; joulecache doctor says whether it is:", again
        )
    if audit.cached is None or audit.source is None or audit.chain is None or not findings:
        return None
    if findings == ["saves"]:
        words = ["joulecache", "precompute", *_source(audit, "cache/"), *_build_options(audit)]
        return NextStep("Build the cache:", shlex.join(words))
    plan = shlex.join(["joulecache", "plan", *_source(audit), "--epochs", str(audit.horizon_epochs)])
    return NextStep("Price other cuts, encodings and numbers of variants:", plan)


def _source(audit: Audit, *cache: str) -> list[str]:
    """Return the words of a command about the audited source and chain, with the options that it shares with the audit."""
    assert audit.source is not None
    assert audit.chain is not None
    return [audit.source, *cache, "--chain", audit.chain, *_shared(audit.provenance.command)]


def _shared(command: Sequence[str]) -> Iterator[str]:
    for index, word in enumerate(command):
        if word in _SHARED_OPTIONS:
            yield from command[index : index + 2]
        elif word.partition("=")[0] in _SHARED_OPTIONS:
            yield word


def _build_options(audit: Audit) -> Iterator[str]:
    """Yield the options of the build that are not at their default."""
    build = audit.build
    if build is None:
        return
    given = {"variants": (build.variants, 1), "format": (build.format, "arrow"), "encoding": (build.encoding, "raw")}
    for name, (value, default) in given.items():
        if value != default:
            yield from (f"--{name}", str(value))


def _with_option(command: Sequence[str], option: str, value: str) -> tuple[str, ...]:
    """Return a command with another value of an option."""
    words = list(command)
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            words[index + 1] = value
            return tuple(words)
        if word.startswith(f"{option}="):
            words[index] = f"{option}={value}"
            return tuple(words)
    return (*words, option, value)


# Key values -----------------------------------------------------------------------------------------------------------


def facts(result: WorkloadResult, audit: Audit) -> Iterator[Fact]:
    """Yield the key values of the audit of a chain, all against the strongest alternative."""
    compared = strongest_comparison(result, audit)
    if compared is None:
        return
    tag, whole = active_tag(audit, result), horizon_of(result, compared, audit)
    against = f"{title_of(result.workload)}, against {compared.other}"
    label = f"Over {plural(audit.horizon_epochs or 0, 'epoch')}, build included"
    yield Fact(label, cell(change(whole.ratio.value), tag), f"{against}; {change_interval(whole.ratio)}", whole.finding)
    yield Fact("Per epoch", cell(change(compared.ratio.value), tag), f"{against}; {change_interval(compared.ratio)}")
    after = epochs_to(compared.break_even, compared.ratio)
    yield Fact("Build paid back after", cell(after.value), f"{against}; {after.interval or 'at once'}")
    yield from _score_fact(result, audit, compared)


def _score_fact(result: WorkloadResult, audit: Audit, compared: Comparison) -> Iterator[Fact]:
    one, other = (
        next((arm.score for arm in result.arms if arm.name == name), None) for name in (audit.cached, compared.other)
    )
    if one is None or other is None:
        return
    metric, model = audit.metric, audit.provenance.model or "the model"
    detail = f"{model} trained from the cache; from {compared.other}: {score(metric, other.mean)}"
    yield Fact(metric.title, cell(score(metric, one.mean)), detail)
