"""What changed between two audits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core.codec import JSON, to_json
from joulecache.pipelines.experiment.claims import Finding
from joulecache.pipelines.experiment.results import ArmResult, ScoreRange
from joulecache.pipelines.experiment.statistics import Ratio, unpaired_ratio

_SETTINGS = ("source", "chain", "targets", "reference", "records", "method")
_PROVENANCE = ("seed", "batch_size", "model", "train_epochs", "steps", "threads", "platform", "python")


@dataclass(frozen=True)
class ArmValues:
    """What one arm cost in one audit.

    Attributes:
        active_j_per_1000: Active joules per 1,000 images.
        ratio: Active energy over that of the reference in the same audit, which does not change on a slower machine.
        cpu_us_per_image: Microseconds of CPU time per image.
        images_per_s: Throughput.
        finding: What the ratio allows to claim.
        score: The model's first metric on the held-out records; None if not measured. "accuracy" in JSON.
    """

    active_j_per_1000: float
    ratio: float
    cpu_us_per_image: float
    images_per_s: float
    finding: Finding
    score: ScoreRange | None = field(metadata={"alias": "accuracy"})


@dataclass(frozen=True)
class ArmChange:
    """One arm on one workload, before and after.

    Attributes:
        workload: Name of the workload.
        arm: Name of the arm.
        ratio: Active energy per image, after over before. The 95% interval covers the noise of the blocks; whatever else differed
            between the two audits is in the ratio too.
        before: What it cost in the first audit.
        after: What it cost in the second audit.
    """

    workload: str
    arm: str
    ratio: Ratio
    before: ArmValues
    after: ArmValues


@dataclass(frozen=True)
class Changes:
    """What changed between two audits.

    Attributes:
        settings: Settings that differ, by name: before and after, as report.json has them.
        arms: The arms that both audits measured.
        only_before: What only the first audit measured, as "workload, arm".
        only_after: What only the second audit measured.
    """

    settings: Mapping[str, tuple[JSON, JSON]]
    arms: tuple[ArmChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def above(self, ratio: float) -> tuple[ArmChange, ...]:
        """Return the arms that use more than `ratio` times the energy they used before."""
        return tuple(arm for arm in self.arms if arm.ratio.value > ratio)

    def to_json(self) -> dict[str, JSON]:
        """Return the changes as JSON values."""
        return to_json(self)


def compare_audits(before: Audit, after: Audit) -> Changes:
    """Compare two audits; raise ValueError if no arm of a workload is in both."""
    old, new = _arms(before), _arms(after)
    both = [key for key in old if key in new]
    if not both:
        raise ValueError(
            f"the two audits have no arm of a workload in common: {_listed(old)} in the first, {_listed(new)} in the second"
        )
    return Changes(
        settings=_settings(before, after),
        arms=tuple(_change(*key, old[key], new[key]) for key in both),
        only_before=tuple(", ".join(key) for key in old if key not in new),
        only_after=tuple(", ".join(key) for key in new if key not in old),
    )


def _arms(audit: Audit) -> dict[tuple[str, str], ArmResult]:
    return {(result.workload, arm.name): arm for result in audit.workloads for arm in result.arms}


def _change(workload: str, name: str, old: ArmResult, new: ArmResult) -> ArmChange:
    ratio = unpaired_ratio(new.active_j_per_1000_by_block, old.active_j_per_1000_by_block)
    return ArmChange(workload, name, ratio, _values(old), _values(new))


def _values(arm: ArmResult) -> ArmValues:
    return ArmValues(
        active_j_per_1000=arm.active_j_per_1000.value,
        ratio=arm.ratio.value,
        cpu_us_per_image=arm.cpu_us_per_image,
        images_per_s=arm.images_per_s,
        finding=arm.finding,
        score=arm.score,
    )


def _settings(before: Audit, after: Audit) -> dict[str, tuple[JSON, JSON]]:
    """Return the settings that differ, as report.json has them."""
    in_both = {each.name for each in before.pipelines} & {each.name for each in after.pipelines}
    one, other = _facts(before, in_both), _facts(after, in_both)
    pairs = {name: (to_json(one.get(name)), to_json(other.get(name))) for name in {**one, **other}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _facts(audit: Audit, pipelines: Collection[str]) -> dict[str, object]:
    provenance = audit.provenance
    return {
        **{name: getattr(audit, name) for name in _SETTINGS},
        **{name: getattr(provenance, name) for name in _PROVENANCE},
        "variants": audit.build and audit.build.variants,
        **{
            f"{facts.name}: {name}": value
            for facts in audit.pipelines
            if facts.name in pipelines
            for name, value in vars(facts).items()
        },
        **{
            f"device: {name}": value
            for result in audit.workloads
            if result.device is not None
            for name, value in vars(result.device).items()
        },
        "cpu": provenance.meter.cpu,
        **dict(sorted(provenance.versions.items())),
    }


def _listed(arms: Iterable[tuple[str, str]]) -> str:
    return "; ".join(", ".join(key) for key in arms) or "none"
