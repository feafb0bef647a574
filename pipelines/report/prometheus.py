"""Write the energy of a job for Prometheus: the text format that node exporter's textfile collector reads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.files import check_writable, write_bytes
from joulecache.pipelines.energy import Energy

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.results import Audit
    from joulecache.pipelines.training.results import TrainingRun

HELP = {
    "joulecache_energy_joules": "Energy by component; the sum over the components is the total.",
    "joulecache_energy_low_joules": "Lower bound of the total energy.",
    "joulecache_energy_high_joules": "Upper bound of the total energy.",
    "joulecache_active_joules": "Energy without the idle power of the machine.",
    "joulecache_duration_seconds": "Wall time.",
    "joulecache_cpu_seconds": "CPU time of the process and its descendants.",
    "joulecache_co2_grams": "CO2 equivalent of the energy, by the grid of the country.",
    "joulecache_flags": "Number of reasons to doubt the energy.",
    "joulecache_images": "Images that were processed.",
    "joulecache_active_joules_per_1000_images": "Active energy of one arm of an audit.",
    "joulecache_active_ratio": "Active energy of one arm of an audit over that of the reference.",
    "joulecache_exit_code": "Exit code of the measured command.",
    "joulecache_finished_timestamp_seconds": "When the job finished.",
}
"""Help texts of all metrics."""


@dataclass(frozen=True)
class Metric:
    """One value of the last run of a job.

    Attributes:
        name: A name that has a help text; it ends with the unit.
        value: The value.
        labels: Labels besides those of the job.
    """

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


class MetricsFile:
    """A file that node exporter reads from its folder for textfiles.

    All metrics are labelled with the stem of the file, since node exporter refuses a metric that two files have.

    Args:
        path: The file, which ends in `.prom`, in an existing folder.

    Raises:
        ValueError: The path ends in something else, or its folder does not exist or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".prom":
            raise ValueError(
                f"prometheus must be a file that ends in .prom, as node exporter wants, got {shown(str(path))}"
            )
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"prometheus must be a file in a folder that exists, got {shown(str(path))}")
        check_writable(path.absolute().parent, "prometheus")
        self.path = path

    def write(self, command: str, metrics: Iterable[Metric]) -> None:
        """Replace the content of the file, atomically, with the metrics of a finished command."""
        found = [*metrics, Metric("joulecache_finished_timestamp_seconds", time.time())]
        write_bytes(self.path, _text(found, {"task": self.path.stem, "command": command}))


def energy_metrics(part: str, energy: Energy | None, images: int | None = None) -> Iterator[Metric]:
    """Yield the metrics of one part of a job; none where nothing was measured.

    Args:
        part: Name of the part: the label ``part``.
        energy: Its energy.
        images: Images that it processed; None if unknown.
    """
    if images is not None:
        yield Metric("joulecache_images", images, {"part": part})
    if energy is None:
        return
    for name, component in energy.components.items():
        if component is not None:
            labels = {"part": part, "component": name, "method": component.method}
            yield Metric("joulecache_energy_joules", component.value_j, labels)
    values = {
        "energy_low_joules": energy.low_j,
        "energy_high_joules": energy.high_j,
        "active_joules": energy.active_j,
        "duration_seconds": energy.duration_s,
        "cpu_seconds": energy.cpu_s,
        "co2_grams": energy.carbon_g,
        "flags": len(energy.flags),
    }
    for name, value in values.items():
        if value is not None:
            yield Metric(f"joulecache_{name}", value, {"part": part})


def training_metrics(run: TrainingRun) -> Iterator[Metric]:
    """Yield the metrics of a training and its validation."""
    yield from energy_metrics("training", run.energy, run.images)
    yield from energy_metrics("validation", run.val_energy)


def audit_metrics(audit: Audit) -> Iterator[Metric]:
    """Yield the metrics of an audit: its energy, that of the build, and what each arm used."""
    yield from energy_metrics("audit", audit.energy)
    if audit.build is not None:
        yield from energy_metrics("build", audit.build.energy)
    for result in audit.workloads:
        for arm in result.arms:
            labels = {"workload": result.workload, "arm": arm.name}
            yield Metric("joulecache_active_joules_per_1000_images", arm.active_j_per_1000.value, labels)
            yield Metric("joulecache_active_ratio", arm.ratio.value, labels)


def _text(metrics: Iterable[Metric], job: dict[str, str]) -> bytes:
    """Return metrics in Prometheus' text format."""
    registry, gauges = CollectorRegistry(), dict[str, Gauge]()
    for metric in metrics:
        labels = {**job, **metric.labels}
        if metric.name not in gauges:
            gauges[metric.name] = Gauge(metric.name, HELP[metric.name], [*labels], registry=registry)
        gauges[metric.name].labels(**labels).set(metric.value)
    return generate_latest(registry)
