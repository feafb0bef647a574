"""The machine, versions and arguments of an experiment, for its report and for the settings that identify a stopped one."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

import tensorflow as tf

from joulecache.pipelines.core import codec
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.results import RunProvenance, Threads
from joulecache.transforms.versions import kernel_versions

_PACKAGES = (
    "joulecache",
    "tensorflow",
    "keras",
    "apache-beam",
    "pyarrow",
    "ai-edge-litert",
    "codecarbon",
)


def conditions(meter: Meter) -> dict[str, Any]:
    """Return what must be the same for runs to form one series: threads, meter and versions."""
    return {
        "threads": codec.to_json(_threads()),
        # joules of different methods do not form one series; notes are left out, as the meter may add some while it runs
        "meter": {name: value for name, value in codec.to_json(meter.provenance()).items() if name != "notes"},
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
        threads=_threads(),
        platform=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
        meter=meter.provenance(),
    )


def _threads() -> Threads:
    return Threads(
        cpus=len(os.sched_getaffinity(0)),
        intra_op=tf.config.threading.get_intra_op_parallelism_threads(),
        inter_op=tf.config.threading.get_inter_op_parallelism_threads(),
    )


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _PACKAGES} | kernel_versions()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
