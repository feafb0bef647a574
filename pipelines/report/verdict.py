"""What an audit found, in sentences that claim no more than its findings do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from joulecache.pipelines.report import figures

Body = Mapping[str, Any]

PARTS = {"input": "the input", "training": "the training"}
"""How people call the parts of a training that are measured by themselves."""

_TITLES = {"input": "The input alone", "train": "Training", "finetune": "Fine-tuning", "infer": "Inference"}
_SUBJECTS = {
    "input": "Feeding images",
    "train": "Training",
    "finetune": "Fine-tuning",
    "infer": "Inference",
}
_STRONGEST = "Against the strongest alternative."
_REDUCED = ("pruned", "sparse", "clustered")  # in the names of variants that are to pay back their fine-tuning
_WHOLE_JOBS = (
    "train",
    "finetune",
    "infer",
    "input",
)  # what the headline is about: rather a whole job than a part of one


@dataclass(frozen=True)
class Statement:
    """A sentence that claims, the sentences that qualify it, the finding (None where nothing was compared), how its joules were obtained.

    `lead` goes before the claim where it is not the first one of a headline.
    """

    claim: str
    detail: str
    finding: str | None
    tag: str
    lead: str = ""


def title_of(workload: str) -> str:
    """Return how people call a workload."""
    return _TITLES.get(workload, workload)


def active_tag(body: Body) -> str:
    """Return how active joules were obtained."""
    return figures.kind(body["energy"]["active"]["method"])


def headline(body: Body) -> tuple[Statement, ...]:
    """Return what the audit found on the most complete job.

    Of a cache: against the reference, and against what costs least otherwise. Of own pipelines: against the first one, the one that
    costs least first; or what the only one costs.
    """
    result = main_workload(body)
    if result is None:
        return ()
    if body["cached"] is None:
        return own_statements(result, body)
    said = [statement(result, compared, body) for compared in main_comparisons(result, body)]
    return tuple(replace(each, lead=_STRONGEST) if place else each for place, each in enumerate(said))


def main_comparisons(result: Body, body: Body) -> tuple[Body, ...]:
    """Return the cache's comparison with the reference, and with the arm that costs least over the horizon where that is another."""
    by_other = {compared["other"]: compared for compared in result["comparisons"]}
    others = [arm for arm in result["arms"] if arm["name"] in by_other]
    strongest = min(others, key=lambda arm: _over_horizon(arm, body), default=None)
    names = dict.fromkeys([body["reference"]] if body["reference"] in by_other else [])
    if strongest is not None:
        names[strongest["name"]] = None
    return tuple(by_other[name] for name in names)


def statements(result: Body, body: Body) -> tuple[Statement, ...]:
    """Return what one workload found: the cache against each other arm, or own pipelines against the first one."""
    if body["cached"] is None:
        return own_statements(result, body)
    return tuple(statement(result, comparison, body) for comparison in result["comparisons"])


def statement(result: Body, comparison: Body, body: Body) -> Statement:
    """Say what the cache does against one other arm, in words that claim no more than the finding does."""
    ratio, other, found = comparison["ratio"], comparison["other"], comparison["finding"]
    subject = _subject(result)
    changed, interval = figures.change(ratio["value"]), figures.change_range(ratio)
    if found in ("saves", "costs"):
        claim = f"{subject} from the cache takes {changed} active energy per epoch than {other} ({interval})."
        parts = []
    else:
        claim = f"{subject} from the cache: {found} against {other}."
        parts = [f"An epoch took {changed} active energy ({interval}); {comparison['why']}."]
    parts += [_paid_back(comparison), _over_runs(comparison)]
    parts.append(_horizon(comparison, body["horizon_epochs"]))
    parts.append(_accuracy_differs(result, body["cached"], other))
    return Statement(claim, " ".join(filter(None, parts)), found, active_tag(body))


def own_statements(result: Body, body: Body) -> tuple[Statement, ...]:
    """Say what own pipelines take beside the first one, the leanest first; of the only one, what it takes."""
    by_name = {arm["name"]: arm for arm in result["arms"]}
    reference = by_name.pop(body["reference"])
    if not by_name:
        return (_alone(result, reference, body),)
    leanest_first = sorted(by_name.values(), key=lambda arm: float(arm["ratio"]["value"]))
    return tuple(_beside(result, arm, reference, body) for arm in leanest_first)


def _alone(result: Body, arm: Body, body: Body) -> Statement:
    """Say what the only pipeline takes."""
    claim = (
        f"{_subject(result)} from {arm['name']} takes {figures.joules_range(arm['active_j_per_1000'])} of active energy per 1,000 "
        f"images, at {figures.number(arm['images_per_s'])} images/s."
    )
    detail = " ".join(filter(None, (_waits(arm), _parts(arm))))
    return Statement(claim, detail, None, active_tag(body))


def _beside(result: Body, arm: Body, reference: Body, body: Body) -> Statement:
    """Say what a pipeline takes beside the first one, in words that claim no more than the finding does."""
    ratio, found, name, other = arm["ratio"], arm["finding"], arm["name"], reference["name"]
    changed, interval = figures.change(ratio["value"]), figures.change_range(ratio)
    if found in ("saves", "costs"):
        claim = (
            f"{_subject(result)} from {name} takes {changed} active energy per image than from {other} ({interval})."
        )
        parts = []
    else:
        claim = f"{_subject(result)} from {name}: {found} against {other}."
        parts = [f"An image took {changed} active energy ({interval}); {arm['why']}."]
    like = figures.largest(each["active_j_per_1000"]["value"] for each in (arm, reference))
    spent, theirs = (figures.joules(each["active_j_per_1000"]["value"], like) for each in (arm, reference))
    rates = [figures.number(each["images_per_s"]) for each in (arm, reference)]
    parts.append(f"Per 1,000 images: {spent} against {theirs}. Images/s: {rates[0]} against {rates[1]}.")
    parts += [_waits(arm), _parts(arm)]
    return Statement(claim, " ".join(filter(None, parts)), found, active_tag(body))


def _subject(result: Body) -> str:
    return _SUBJECTS.get(result["workload"], str(result["workload"]))


def _parts(arm: Body) -> str:
    """Say what the parts of a training take by themselves."""
    said = [
        f"{PARTS.get(part['name'], part['name'])} {figures.share(part['ratio']['value'])} and "
        f"{figures.share(part['wall_us_per_image'] / arm['wall_us_per_image'])}"
        for part in arm["parts"]
    ]
    return f"Of the energy and the time of {arm['name']}, each by itself: {', '.join(said)}." if said else ""


def _waits(arm: Body) -> str:
    """Say for how much of its time a training waits for input, and what the machine takes meanwhile."""
    waiting = arm["waiting"]
    if waiting is None:
        return ""
    at_most = "at most " if waiting["at_most"] else ""
    said = (
        f"Of the time of a step from {arm['name']}, {at_most}{figures.share(waiting['share_of_time'])} waits for input"
    )
    if waiting["total_j_per_1000"] is None:
        return f"{said}."
    burnt = figures.joules_range(waiting["total_j_per_1000"])
    return f"{said}, in which the idle machine takes {burnt} per 1,000 images ({figures.kind(waiting['method'])})."


def doubts(body: Body) -> str:
    """Say in short which figures the meter flagged, empty for none; why it did stands in tables, by arm and by model file."""
    said = []
    for result in body["workloads"]:
        flagged, runs = (sum(arm[what] for arm in result["arms"]) for what in ("flagged_runs", "runs"))
        whole = [arm["name"] for arm in result["arms"] if arm["flags"]]
        of_all = "" if len(whole) == len(result["arms"]) else f" of {', '.join(whole)}"
        together = f", and all{of_all} together" if whole else ""
        if flagged or whole:  # short runs may pass where their sum does not
            of = f"{figures.count(flagged)} of {figures.count(runs)}"
            said.append(f"{title_of(result['workload'])}: {of} runs{together}.")
    if body["build"] is not None and body["build"]["energy"]["flags"]:
        said.append(f"The build of the cache: {', '.join(body['build']['energy']['flags'])}.")
    if body["compression"] is not None:
        for what, energies in model_energies(body["compression"]).items():
            if flagged := sum(bool(energy["flags"]) for energy in energies.values()):
                said.append(f"{what}: {figures.count(flagged)} of {figures.count(len(energies))}.")
    return " ".join(said)


def model_energies(compression: Body) -> dict[str, dict[str, Body]]:
    """Return the energies of the model files and of their fine-tunings, by variant."""
    variants = compression["variants"]
    tuned = [variant for variant in variants if variant["finetune_energy"] is not None]
    return {
        "Model files": {variant["name"]: variant["energy_per_image"] for variant in variants},
        "Fine-tunings": {variant["name"]: variant["finetune_energy"] for variant in tuned},
    }


def _paid_back(comparison: Body) -> str:
    text = f"the build is {paid_back(comparison)}."
    if comparison["finding"] in ("saves", "costs"):
        return f"T{text[1:]}"
    return f"If that ratio holds, {text}"


def _over_runs(comparison: Body) -> str:
    runs = comparison["runs"]
    if runs == 1:
        return ""
    over = paid_back({**comparison, "break_even": comparison["break_even_over_runs"]})
    each = " each" if over.startswith("paid back after") else ""
    return f"Over {runs} runs on the same cache it is {over}{each}."


def paid_back(comparison: Body) -> str:
    """Say after how many epochs the cache has cost less than another arm, in words that follow "the build is"."""
    paid = comparison["break_even"]
    when = figures.epochs_to(paid, comparison["ratio"])
    if paid["epochs"] == 0:
        return f"paid back at once: {comparison['other']} spends as much before its first epoch"
    if paid["epochs"] is None:
        return f"never paid back{when.removeprefix(figures.NEVER)}"
    return f"paid back after {when}"


def _horizon(comparison: Body, horizon: int) -> str:
    whole, other, found = comparison["horizon_ratio"], comparison["other"], comparison["finding"]
    text = f"Over {horizon} epochs, build included, it took {figures.change(whole)} energy"
    if found == "costs" and whole > 1:
        return f"{text}: here {other} is the better choice."
    if found == "saves" and whole > 1:
        return f"{text}: for so few epochs {other} is the better choice."
    if found == "no difference shown" and whole > 1:
        return f"{text}: nothing is gained over {other}."
    return f"{text}."


def _accuracy_differs(result: Body, cached: str, other: str) -> str:
    measured = {arm["name"]: arm["accuracy"] for arm in result["arms"] if arm["accuracy"] is not None}
    if cached not in measured or other not in measured:
        return ""
    ours, theirs = measured[cached], measured[other]
    if ours[1] <= theirs[2] and theirs[1] <= ours[2]:
        return ""
    return (
        f"The accuracies differ, {figures.share(ours[0])} against {figures.share(theirs[0])}, and no run of the one lies among "
        "those of the other: this is not the same result for less."
    )


def main_workload(body: Body) -> Body | None:
    """Return the result that a headline is about, None without any."""
    by_name = {result["workload"]: result for result in body["workloads"]}
    first = next((by_name[name] for name in _WHOLE_JOBS if name in by_name), None)
    return first or next(iter(body["workloads"]), None)


def _over_horizon(arm: Body, body: Body) -> float:
    epoch_j = arm["active_j_per_1000"]["value"] * body["records"]["train"] / 1000
    return float(arm["one_time"]["value"] + body["horizon_epochs"] * epoch_j)


def compression_sentences(compression: Body) -> tuple[str, ...]:
    """Say what the last model gained and lost, which other takes less energy where one does, and what was spent once."""
    first, last = compression["variants"][0], compression["variants"][-1]
    said = []
    if first is not last:
        gained = [
            f"{figures.change(last[name] / first[name])} {what}"
            for name, what in (("file_bytes", "storage"), ("cpu_ms_per_image", "CPU time per image"))
        ]
        energy = figures.change(last["energy_per_image"]["active_j"] / first["energy_per_image"]["active_j"])
        apart = last["accuracy_high"] < first["accuracy_low"] or first["accuracy_high"] < last["accuracy_low"]
        said.append(
            f"{last['name']} against {first['name']}: {', '.join(gained)}, {energy} active energy "
            f"({figures.kind(last['energy_per_image']['active']['method'])}); accuracy "
            f"{figures.share(last['accuracy'])} against {figures.share(first['accuracy'])}, and their intervals "
            f"{'do not overlap' if apart else 'overlap'}."
        )
        leanest = min(compression["variants"], key=lambda variant: float(variant["energy_per_image"]["active_j"]))
        if leanest is not last:
            said.append(f"{leanest['name']} takes less energy per image than {last['name']} on this machine.")
    said += [_seeds(compression, last["name"]), _spent_once(compression)]
    if compression["widths"]:
        widths = ", ".join(f"{name} {before} to {after}" for name, (before, after) in compression["widths"].items())
        said.append(f"Channels kept: {widths}.")
    return tuple(filter(None, said))


def _seeds(compression: Body, name: str) -> str:
    if name not in compression["lost"]:
        return ""
    points = [100 * share for share in compression["lost"][name]]
    changed = "lost"
    if points[0] < 0:
        changed, points = "gained", [-points[0], -points[2], -points[1]]
    mean, low, high = (f"{each:z.1f}" for each in points)
    seeds = len(compression["accuracies"][name])
    return f"Over {seeds} seeds, {name} {changed} {mean} points against the control (95%: {low} to {high})."


def _spent_once(compression: Body) -> str:
    """Say what fine-tuning the last model and the control took, and when the former has paid that back."""
    last = compression["variants"][-1]
    spent = {
        "the control" if variant["name"] == "control" else variant["name"]: variant["finetune_energy"]
        for variant in compression["variants"]
        if variant["finetune_energy"] is not None and (variant is last or variant["name"] == "control")
    }
    if not spent:
        return ""
    costs = [
        f"fine-tuning {name} took {figures.joules(energy['active_j'])} ({figures.kind(energy['active']['method'])})"
        for name, energy in spent.items()
    ]
    text = f"Spent once: {', '.join(costs)}."
    after = last["inferences_to_pay_back"]
    if after is not None:
        return f"{text} {last['name']} pays that back against {last['dense']} after {figures.short_count(after)} inferences."
    if last["name"] in spent and any(word in last["name"] for word in _REDUCED):
        never = f"not every run took less energy than the one of {last['dense']} beside it"
        return f"{text} {last['name']} never pays that back: {never}."
    return text
