"""What an audit found, in sentences that claim no more than the findings support."""

from __future__ import annotations

from collections.abc import Sequence

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NEVER
from joulecache.pipelines.core.statistics import is_at_chance
from joulecache.pipelines.experiment.horizon import Horizon, over_horizon
from joulecache.pipelines.experiment.results import ArmResult, Comparison, WorkloadResult
from joulecache.pipelines.report.describe.compression import flagged_energies
from joulecache.pipelines.report.describe.devices import device_waits
from joulecache.pipelines.report.describe.values import (
    PARTS,
    active_tag,
    change_interval,
    epochs_to,
    joules,
    score,
    title_of,
)
from joulecache.pipelines.report.document import Sentence

_SUBJECTS = {
    "input": "Loading images",
    "train": "Training",
    "finetune": "Fine-tuning",
    "infer": "Inference",
    "accelerator": "Feeding the simulated accelerator",
}
# The headline is about the first that was measured.
_BY_RELEVANCE = ("accelerator", "train", "finetune", "infer", "input")


def main_workload(audit: Audit) -> WorkloadResult | None:
    """Return the result that the headline is about; None if there is none."""
    by_name = {result.workload: result for result in audit.workloads}
    first = next((by_name[name] for name in _BY_RELEVANCE if name in by_name), None)
    return first or next(iter(audit.workloads), None)


def headline(audit: Audit) -> tuple[Sentence, ...]:
    """Return the findings of the main workload: the cache against the strongest alternative, then the others, or custom pipelines."""
    result = main_workload(audit)
    if result is None:
        return ()
    if audit.cached is None:
        return _custom_sentences(result, audit)
    strongest = strongest_comparison(result, audit)
    if strongest is None:
        return ()
    others = tuple(each for each in result.comparisons if each is not strongest)
    first = _cache_sentence(result, strongest, audit, ", the strongest alternative" if others else "")
    return (first, *((_others(result, others, audit),) if others else ()))


def strongest_comparison(result: WorkloadResult, audit: Audit) -> Comparison | None:
    """Return the cache's comparison with the arm that uses the least over the horizon; None if there is no other arm."""
    arms = {arm.name: arm for arm in result.arms}
    return min(result.comparisons, key=lambda each: _over_horizon(arms[each.other], audit), default=None)


def horizon_of(result: WorkloadResult, comparison: Comparison, audit: Audit) -> Horizon:
    """Return the comparison of the cache with another arm over the horizon of an audit."""
    assert audit.cached is not None
    assert audit.records is not None
    assert audit.horizon_epochs is not None
    return over_horizon(result, comparison, audit.cached, audit.records.train, audit.horizon_epochs)


def _over_horizon(arm: ArmResult, audit: Audit) -> float:
    assert audit.records is not None
    assert audit.horizon_epochs is not None
    return arm.one_time.value + audit.horizon_epochs * arm.active_j_per_1000.value * audit.records.train / 1000


def _others(result: WorkloadResult, comparisons: Sequence[Comparison], audit: Audit) -> Sentence:
    """Return what was found against the weaker alternatives, in one sentence."""
    found = []
    for each in comparisons:
        whole = horizon_of(result, each, audit)
        weak = "" if whole.finding in ("saves", "costs") else f" ({whole.finding})"
        found.append(f"{quantities.change(whole.ratio.value)} than {each.other}{weak}")
    return Sentence(
        f"Also over {quantities.plural(audit.horizon_epochs or 0, 'epoch')}, build included: {', '.join(found)}."
    )


def sentences(result: WorkloadResult, audit: Audit) -> tuple[Sentence, ...]:
    """Return the findings of one workload: the cache against each other arm, or custom pipelines against the first one."""
    if audit.cached is None:
        return _custom_sentences(result, audit)
    return tuple(_cache_sentence(result, comparison, audit) for comparison in result.comparisons)


def _subject(result: WorkloadResult, arm: str) -> str:
    return f"{_SUBJECTS.get(result.workload, result.workload)} from {arm}"


def _claim(subject: str, compared: ArmResult, other: str, unit: str, than: str) -> tuple[str, str]:
    """Return a claim about a ratio; where the finding is neither saves nor costs, the ratio becomes a detail."""
    changed, interval = quantities.change(compared.ratio.value), change_interval(compared.ratio)
    if compared.finding in ("saves", "costs"):
        return f"{subject} uses {changed} active energy per {unit} than {than} ({interval}).", ""
    claim = f"{subject}: {compared.finding} against {other}."
    return claim, f"An {unit} used {changed} active energy ({interval}); {compared.why}."


# The cache against another arm ----------------------------------------------------------------------------------------


def _cache_sentence(result: WorkloadResult, comparison: Comparison, audit: Audit, apposition: str = "") -> Sentence:
    """Return what was found over the horizon, then per epoch: a saving that does not pay back the build is none."""
    other, whole = comparison.other, horizon_of(result, comparison, audit)
    subject, epochs = _subject(result, "the cache"), quantities.plural(audit.horizon_epochs or 0, "epoch")
    changed, interval = quantities.change(whole.ratio.value), change_interval(whole.ratio)
    why = ""
    if whole.finding in ("saves", "costs"):
        claim = f"{subject} uses {changed} active energy over {epochs} than {other}{apposition}, build included ({interval})."
    else:
        claim = f"{subject}: {whole.finding} against {other}{apposition}, over {epochs}, build included."
        why = f"It used {changed} active energy ({interval}); {whole.why}."
    held = "The" if comparison.finding in ("saves", "costs") else "If that holds, the"
    details = (
        why,
        _per_epoch(comparison, whole),
        f"{held} build is {_paid_back(comparison)}.",
        _over_runs(comparison),
        _better_choice(comparison, whole),
        _scores(result, audit, other),
        device_waits(result, audit.cached or "", other),
    )
    return Sentence(claim, " ".join(filter(None, details)), whole.finding, active_tag(audit, result))


def _per_epoch(comparison: Comparison, whole: Horizon) -> str:
    changed, interval = quantities.change(comparison.ratio.value), change_interval(comparison.ratio)
    if comparison.finding in ("saves", "costs"):
        return f"An epoch uses {changed} ({interval})."
    why = "" if comparison.why == whole.why else f"; {comparison.why}"
    return f"An epoch used {changed} ({interval}{why}): {comparison.finding}."


def _better_choice(comparison: Comparison, whole: Horizon) -> str:
    if whole.finding != "costs":
        return ""
    return (
        f"{'For so few epochs' if comparison.finding == 'saves' else 'Here'}, {comparison.other} is the better choice."
    )


def _paid_back(comparison: Comparison, *, over_runs: bool = False) -> str:
    paid = comparison.break_even_over_runs if over_runs else comparison.break_even
    when = epochs_to(paid, comparison.ratio)
    if paid.epochs == 0:
        return f"paid back at once: {comparison.other} uses as much before its first epoch"
    if paid.epochs is None:
        return f"never paid back{str(when).removeprefix(NEVER)}"
    return f"paid back after {when}"


def _over_runs(comparison: Comparison) -> str:
    if comparison.runs == 1:
        return ""
    paid = comparison.break_even_over_runs.epochs
    each = " of each" if paid else ""
    return f"With {comparison.runs} trainings on the same cache, it is {_paid_back(comparison, over_runs=True)}{each}."


def _scores(result: WorkloadResult, audit: Audit, other: str) -> str:
    scores = {arm.name: arm.score for arm in result.arms}
    cached, compared = scores.get(audit.cached or ""), scores.get(other)
    if cached is None or compared is None:
        return ""
    metric, records = audit.metric, audit.records
    both = f"{score(metric, cached.mean)} against {score(metric, compared.mean)}"
    better = "" if metric.is_accuracy else f" ({metric.better})"
    if cached.lowest > compared.highest or compared.lowest > cached.highest:
        return (
            f"The trained models differ: {metric.name} {both}{better}, and the runs of one do not overlap with those of the other. "
            "This is not the same result for less energy."
        )
    chance = None if records is None or not metric.is_accuracy else records.chance
    if records is None or chance is None or not is_at_chance(cached.mean, records.val, chance):
        return f"{metric.title if metric.is_accuracy else f'Held-out {metric.name}'} {both}{better}."
    return (
        f"{metric.title} {both}, which is chance level: {quantities.share(chance)} of the held-out images are in the most frequent "
        "class. Train longer."
    )


# Custom pipelines -----------------------------------------------------------------------------------------------------


def _custom_sentences(result: WorkloadResult, audit: Audit) -> tuple[Sentence, ...]:
    """Return how custom pipelines compare with the first one, in order of energy, or what a single one uses."""
    reference = result.arm(audit.reference)
    others = [arm for arm in result.arms if arm is not reference]
    if not others:
        claim = (
            f"{_subject(result, reference.name)} uses {joules(reference.active_j_per_1000)} of active energy per 1,000 images, at "
            f"{quantities.number(reference.images_per_s)} images/s."
        )
        detail = " ".join(filter(None, (_waiting_and_parts(reference), device_waits(result, reference.name))))
        return (Sentence(claim, detail, None, active_tag(audit, result)),)
    return tuple(_custom(result, arm, reference, audit) for arm in sorted(others, key=lambda arm: arm.ratio.value))


def _custom(result: WorkloadResult, arm: ArmResult, reference: ArmResult, audit: Audit) -> Sentence:
    claim, ratio = _claim(_subject(result, arm.name), arm, reference.name, "image", f"from {reference.name}")
    values_j = [each.active_j_per_1000.value for each in (arm, reference)]
    energy, reference_energy = (quantities.joules(value_j, max(values_j)) for value_j in values_j)
    rate, reference_rate = (quantities.number(each.images_per_s) for each in (arm, reference))
    values = f"Per 1,000 images: {energy} against {reference_energy}. Images/s: {rate} against {reference_rate}."
    waits = device_waits(result, arm.name, reference.name)
    detail = " ".join(filter(None, (ratio, values, _waiting_and_parts(arm), waits)))
    return Sentence(claim, detail, arm.finding, active_tag(audit, result))


def _waiting_and_parts(arm: ArmResult) -> str:
    return " ".join(filter(None, (_waits(arm), _parts(arm))))


def _parts(arm: ArmResult) -> str:
    found = [
        f"{PARTS.get(part.name, part.name)} {quantities.share(part.ratio.value)} of the energy and "
        f"{quantities.share(part.wall_us_per_image / arm.wall_us_per_image)} of the time"
        for part in arm.parts
    ]
    return f"Running alone, as shares of {arm.name}: {', '.join(found)}." if found else ""


def _waits(arm: ArmResult) -> str:
    waiting = arm.waiting
    if waiting is None:
        return ""
    at_most = "at most " if waiting.at_most else ""
    text = f"Training from {arm.name} waits for input {at_most}{quantities.share(waiting.share_of_time)} of the time"
    if waiting.total_j_per_1000 is None or waiting.method is None:
        return f"{text}."
    used = f"{joules(waiting.total_j_per_1000)} per 1,000 images ({quantities.kind(waiting.method)})"
    return f"{text}; meanwhile the idle machine uses {used}."


# Doubts ---------------------------------------------------------------------------------------------------------------


def doubts(audit: Audit) -> str:
    """Say which measurements the meter flagged, "" for none. Tables list the reasons by arm and by model file."""
    parts = []
    for result in audit.workloads:
        flagged, runs = sum(arm.flagged_runs for arm in result.arms), sum(arm.runs for arm in result.arms)
        whole = [arm.name for arm in result.arms if arm.flags]  # the sum of the runs can be flagged where no run is
        if flagged or whole:
            names = "" if len(whole) == len(result.arms) else f" of {', '.join(whole)}"
            together = f", and all runs{names} together" if whole else ""
            parts.append(
                f"{title_of(result.workload)}: {quantities.count(flagged)} of {quantities.count(runs)} runs{together}."
            )
    if audit.build is not None and audit.build.energy.flags:
        parts.append(f"Building the cache: {', '.join(audit.build.energy.flags)}.")
    if audit.build is not None and audit.build.unmetered_shards is not None:
        shards = quantities.plural(audit.build.unmetered_shards, "shard")
        parts.append(
            f"Building the cache: part of the work on {shards} was not measured, so it is paid back later than said."
        )
    if audit.compression is not None:
        parts += flagged_energies(audit.compression)
    return " ".join(("Flagged by the meter.", *parts)) if parts else ""
