"""The joules of a simulated device, added to those of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from joulecache.pipelines.energy import Component
from joulecache.pipelines.experiment.results import Device, DeviceUse, Joules
from joulecache.pipelines.experiment.runs import Run


def with_device(run: Run, device: Device) -> Run:
    """Return a run whose energy includes that of the device: all of it is active, as that of a GPU is."""
    energy, gpu, used_j = run.energy, run.energy.components["gpu"], sum(_device_j(run, device))
    source = f"watts of the device as given: {device.idle_w:g} waiting and {device.busy_w:g} computing"
    part = Component(used_j, used_j, used_j, device.method, source, "simulated accelerator", "1 us")
    carbon_g = energy.carbon_g
    if carbon_g is not None and energy.total_j:  # on the same grid
        carbon_g *= 1 + used_j / energy.total_j
    components = {**energy.components, "gpu": part if gpu is None else gpu + part}
    whole = replace(energy, components=components, active=energy.active + part, carbon_g=carbon_g)
    return replace(run, energy=whole)


def device_use(runs: Sequence[Run], device: Device) -> DeviceUse:
    """Return what the device and its input used in runs whose energy does not include the device."""
    waiting_j, computing_j = map(sum, zip(*(_device_j(run, device) for run in runs), strict=True))
    per_1000 = 1000 / sum(run.images for run in runs)
    ends = [
        sum(getattr(run.energy, end) for run in runs) * per_1000
        for end in ("active_j", "active_low_j", "active_high_j")
    ]
    return DeviceUse(
        waiting_share=sum(map(_waited_s, runs)) / sum(run.energy.duration_s for run in runs),
        waiting_j_per_1000=waiting_j * per_1000,
        computing_j_per_1000=computing_j * per_1000,
        input_j_per_1000=Joules(*ends),
    )


def _device_j(run: Run, device: Device) -> tuple[float, float]:
    """Return the joules of the device while it waits, and while it computes: whenever it does not wait."""
    waited_s = _waited_s(run)
    computed_s = run.energy.duration_s - waited_s
    return device.pue * device.idle_w * waited_s, device.pue * device.busy_w * computed_s


def _waited_s(run: Run) -> float:
    return min(run.waited_s or 0.0, run.energy.duration_s)
