"""What an audit ran on, and with: it goes into the settings that a stopped one is found again by, and into the report."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

from joulecache.pipelines.core.codec import to_json
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.arms import thread_counts
from joulecache.pipelines.experiment.results import RunProvenance, Threads

_PACKAGES = (
    "joulecache",
    "tensorflow",
    "keras",
    "apache-beam",
    "pyarrow",
    "pillow",
    "numpy",
    "ai-edge-litert",
    "codecarbon",
)


def conditions(meter: Meter) -> dict[str, Any]:
    """Return what must be the same for runs to make one series: threads, meter and versions."""
    return {
        "threads": thread_counts(),
        # joules of two methods are not one series; what the meter notes may change while it works
        "meter": {name: value for name, value in to_json(meter.provenance()).items() if name != "notes"},
        "versions": _versions(),
    }


def run_provenance(
    meter: Meter,
    *,
    seed: int,
    batch_size: int | None = None,
    model: str | None = None,
    train_epochs: int | None = None,
    steps: int | None = None,
) -> RunProvenance:
    """Return what is needed to repeat an audit: the command, its arguments, the machine, the versions and the meter."""
    return RunProvenance(
        command=tuple(sys.argv),
        seed=seed,
        batch_size=batch_size,
        model=model,
        train_epochs=train_epochs,
        steps=steps,
        threads=Threads(**thread_counts()),
        platform=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
        meter=meter.provenance(),
    )


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
