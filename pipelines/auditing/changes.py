"""What changed between two audits, from their reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from joulecache.pipelines.experiment.statistics import Ratio, unpaired_ratio

_SETTINGS = ("source", "chain", "reference", "records", "method")
_PROVENANCE = ("seed", "batch_size", "model", "train_epochs", "steps", "threads", "platform", "python")


@dataclass(frozen=True)
class ArmChange:
    """One arm on one workload, before and after.

    `ratio` is that of the active energies per image, after over before, with a 95% interval for the noise of the blocks;
    what else differed between the two audits is in it too. `before` and `after` hold `active_j_per_1000` (J), `cpu_us_per_image`,
    `images_per_s`, `ratio` (to the reference, in the same audit: what a slower machine does not change), `finding` and `accuracy`.
    """

    workload: str
    arm: str
    ratio: Ratio
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Changes:
    """What changed between two audits: `settings` (name to before and after) and the arms that both measured.

    `only_before` and `only_after` name what one of them measured alone, as "workload, arm".
    """

    settings: Mapping[str, tuple[Any, Any]]
    arms: tuple[ArmChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def above(self, ratio: float) -> tuple[ArmChange, ...]:
        """Return the arms that take more than `ratio` times what they took."""
        return tuple(arm for arm in self.arms if arm.ratio.value > ratio)

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return asdict(self)


def compare_audits(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Compare two audits, as `Audit.to_json` and report.json have them; ValueError where no arm is in both."""
    old, new = dict(_arms(before)), dict(_arms(after))
    both = [key for key in old if key in new]
    if not both:
        raise ValueError(
            f"the two audits have no arm of a workload in common: {_listed(old)} in the first, {_listed(new)} in the second"
        )
    return Changes(
        settings=dict(_settings(before, after)),
        arms=tuple(_change(*key, old[key], new[key]) for key in both),
        only_before=tuple(", ".join(key) for key in old if key not in new),
        only_after=tuple(", ".join(key) for key in new if key not in old),
    )


def _arms(body: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    for result in body["workloads"]:
        for arm in result["arms"]:
            yield (result["workload"], arm["name"]), arm


def _change(workload: str, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> ArmChange:
    ratio = unpaired_ratio(new["active_j_per_1000_by_block"], old["active_j_per_1000_by_block"])
    shown = [
        {
            "active_j_per_1000": arm["active_j_per_1000"]["value"],
            "ratio": arm["ratio"]["value"],
            **{key: arm[key] for key in ("cpu_us_per_image", "images_per_s", "finding", "accuracy")},
        }
        for arm in (old, new)
    ]
    return ArmChange(workload, name, ratio, *shown)


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    old, new = before["provenance"], after["provenance"]
    pairs = [(name, before[name], after[name]) for name in _SETTINGS]
    pairs += [(name, old[name], new[name]) for name in _PROVENANCE]
    variants_before, variants_after = ((body["build"] or {}).get("variants") for body in (before, after))
    pairs.append(("variants", variants_before, variants_after))
    own_before, own_after = ({each["name"]: each for each in body["pipelines"]} for body in (before, after))
    pairs += [
        (f"{name}: {fact}", value, own_after[name][fact])
        for name, facts in own_before.items()
        if name in own_after
        for fact, value in facts.items()
    ]
    pairs.append(("cpu", old["meter"].get("cpu"), new["meter"].get("cpu")))
    packages = sorted({*old["versions"], *new["versions"]})
    pairs += [(name, old["versions"].get(name), new["versions"].get(name)) for name in packages]
    yield from ((name, (one, other)) for name, one, other in pairs if one != other)


def _listed(arms: Mapping[tuple[str, str], Any]) -> str:
    return "; ".join(", ".join(key) for key in arms) or "none"
