"""The checks of `joulecache doctor`: what can be measured on this machine, what cannot, and what to do about it."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Meter, available_cpus
from joulecache.pipelines.energy.nvml import Nvml
from joulecache.pipelines.energy.rapl import Rapl
from joulecache.pipelines.report.describe.energy import background_load
from joulecache.pipelines.report.describe.machine import Check
from joulecache.transforms.versions import kernel_versions

_POWERCAP = Path("/sys/class/powercap")
LISTEN_S = 2.0
EXTRAS = {
    "cloud": ("s3:// and gs://", "obstore"),
    "tfds": ("tfds:NAME", "tensorflow-datasets"),
    "grain": ('loading with format="grain"', "grain"),
}
"""What an extra is for, and its package."""
_LOW_DISK_BYTES = 10e9
_LOW_MEMORY_BYTES = 4e9


def import_tensorflow() -> str:
    """Import TensorFlow; return why that fails, or ""."""
    try:
        importlib.import_module("tensorflow")
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
        return f"{type(error).__name__}: {error}"
    return ""


def examine(
    broken: str = "",
    *,
    folder: Path = Path(),
    powercap: Path = _POWERCAP,
    nvml: Nvml | None = None,
    listen_s: float = LISTEN_S,
    progress: Progress = silent,
) -> tuple[Check, ...]:
    """Examine what measuring, loading and training need: counters, background load, libraries, memory and disks.

    Args:
        broken: What `import_tensorflow` returned.
        folder: The folder whose disk is examined.
        powercap: As for `Meter`.
        nvml: As for `Meter`.
        listen_s: How long the background load is measured, in seconds.
        progress: Called before each step.
    """
    gpus = nvml or Nvml()
    steps: tuple[Callable[[], Iterator[Check]], ...] = (
        lambda: _processor(powercap),
        lambda: _gpus(gpus),
        _carbon,
        lambda: _background_load(Meter(powercap=powercap, nvml=gpus), listen_s),
        _processors,
        _kernels,
        lambda: _tensorflow(broken),
        _extras,
        *(() if broken else (_memory,)),
        lambda: _disks(folder),
    )
    checks: list[Check] = []
    for number, step in enumerate(steps):
        progress("examining", number, len(steps))
        checks += step()
    return tuple(checks)


def _processor(powercap: Path) -> Iterator[Check]:
    rapl = Rapl(powercap)
    if rapl.domains:
        counters = ", ".join(folder.name for folder in rapl.domains)
        yield Check("energy of the processor", not rapl.problem, f"measured by RAPL: {counters}", rapl.problem or None)
        return
    coefficient = Meter(powercap=powercap).provenance().coefficients["active_j_per_cpu_s"]
    yield Check(
        "energy of the processor",
        False,
        f"modelled: {coefficient.central:g} J for a second of CPU time ({coefficient.low:g} to {coefficient.high:g}); {rapl.problem}",
        "ratios are still valid; for absolute joules give the watts of the machine, idle and busy (--watts 12:65), or use bare metal",
    )


def _gpus(nvml: Nvml) -> Iterator[Check]:
    if nvml.names:
        yield Check("energy of GPUs", True, f"measured by NVML: {', '.join(nvml.names)}")
    else:
        found, _, remedy = nvml.problem.partition("; ")
        yield Check("energy of GPUs", found.startswith("no NVIDIA GPU"), found, remedy or None)


def _carbon() -> Iterator[Check]:
    yield Check(
        "CO2", False, "not computed without a country", "give --country, as a code of three letters such as FRA"
    )


def _background_load(meter: Meter, listen_s: float) -> Iterator[Check]:
    with meter.window("listening") as window:
        time.sleep(listen_s)
    flags = [flag for flag in window.energy.flags if not flag.startswith("too short")]
    remedy = f"{'; '.join(flags)}: stop other work before an audit, or use more --pairs" if flags else None
    yield Check("background load", not flags, f"over {listen_s:g} s, {background_load(window.energy)}", remedy)


def _processors() -> Iterator[Check]:
    allowed, there = available_cpus(), os.cpu_count() or 1
    remedy = (
        None if allowed >= there else "a container or affinity limits this process: audits then apply to that share"
    )
    yield Check("processors", allowed >= there, f"{allowed:g} of {there}", remedy)


def _kernels() -> Iterator[Check]:
    found = kernel_versions()
    resizes_fast = found["resizer"] != "NumPy"
    libraries = (
        f"decoding: simplejpeg {found['simplejpeg']}, Pillow {found['pillow']} with libjpeg-turbo {found['libjpeg_turbo']}; "
        f"resizing: {found['resizer']}; other ops: OpenCV {found['opencv']}, NumPy {found['numpy']}"
    )
    remedy = "NumPy takes ten times as long to resize, for the same pixels: install cykooz-resizer (x86-64 only)"
    yield Check("kernels", resizes_fast, libraries, None if resizes_fast else remedy)


def _tensorflow(broken: str) -> Iterator[Check]:
    if broken:
        yield Check("TensorFlow", False, f"cannot be imported: {broken}", "reinstall joulecache in a new environment")
        return
    tf: Any = importlib.import_module("tensorflow")
    built = "for CUDA" if tf.sysconfig.get_build_info()["is_cuda_build"] else "for processors only"
    gpus = tf.config.list_physical_devices("GPU")
    driver = Path("/proc/driver/nvidia").exists()
    remedy = "run `pip install tensorflow[and-cuda]`, in the installed version" if driver and not gpus else None
    yield Check("TensorFlow", remedy is None, f"{tf.version.VERSION}, built {built}, sees {len(gpus)} GPUs", remedy)


def _extras() -> Iterator[Check]:
    for extra, (purpose, package) in EXTRAS.items():
        try:
            yield Check(purpose, True, f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield Check(purpose, False, f"{package} is not installed", f"run `pip install 'joulecache[{extra}]'`")


def _memory() -> Iterator[Check]:
    from joulecache.pipelines.core.memory import memory_limit

    limit = memory_limit()
    remedy = (
        None
        if limit >= _LOW_MEMORY_BYTES
        else "builds need about 1 GB, and the loader the size of its cache: add memory"
    )
    found = f'{limit / 1e9:,.1f} GB for this process; for a larger cache use load(..., shuffle="blocks")'
    yield Check("memory", remedy is None, found, remedy)


def _disks(folder: Path) -> Iterator[Check]:
    for what, path in (("disk", folder.absolute()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(path).free
        remedy = (
            None if free >= _LOW_DISK_BYTES else "a cache of 10,000 images of 224x224 needs 1.5 GB: free some space"
        )
        yield Check(what, remedy is None, f"{path}: {free / 1e9:,.1f} GB free", remedy)
