"""A simulated device: how long it waits for its batches in each arm, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core import quantities
from joulecache.pipelines.experiment.results import Device, WorkloadResult
from joulecache.pipelines.report.describe.values import active_tag, joules_column, share
from joulecache.pipelines.report.document import Column, Table, cell, table, words


def device_lead(device: Device) -> str:
    """Say what the device is."""
    return (
        f"The device is simulated: a step computes for {quantities.seconds(device.step_s)}, while the processor prepares the next batch. "
        f"It uses {device.busy_w:g} W meanwhile, and {device.idle_w:g} W while it waits ({quantities.kind(device.method)})."
    )


def device_waits(result: WorkloadResult, arm: str, other: str = "") -> str:
    """Say how long the device waits in an arm, and what it uses meanwhile, compared with another arm; "" without a device."""
    uses = {each.name: each.device for each in result.arms if each.device is not None}
    if arm not in uses:
        return ""
    names = [name for name in (arm, other) if name in uses]
    like_j = quantities.largest(uses[name].waiting_j_per_1000 for name in names)
    spent = " and ".join(quantities.joules(uses[name].waiting_j_per_1000, like_j) for name in names)
    times = [share(uses[name].waiting_share) for name in names]
    if len(names) == 1:
        return f"The device waits {times[0]} of the time; meanwhile it uses {spent} per 1,000 images."
    return f"The device waits {times[0]} of the time from {arm} and {times[1]} from {other}; meanwhile it uses {spent} per 1,000 images."


def device_tables(result: WorkloadResult, audit: Audit) -> Iterator[Table]:
    """Yield a table of what the device and its input used in each arm."""
    device = result.device
    if device is None:
        return
    rows = [(arm, arm.device) for arm in result.arms if arm.device is not None]
    given = quantities.kind(device.method)
    waiting_j = quantities.largest(use.waiting_j_per_1000 for _, use in rows)
    computing_j = quantities.largest(use.computing_j_per_1000 for _, use in rows)
    yield table(
        "Input and device",
        rows,
        {
            words("Arm"): lambda row: row[0].name,
            Column("Images/s"): lambda row: quantities.number(row[0].images_per_s),
            Column("Time that the device waits", "device waits"): lambda row: share(row[1].waiting_share),
            Column("Energy of the waiting device per 1,000 images", "waiting /1,000"): lambda row: cell(
                quantities.joules(row[1].waiting_j_per_1000, waiting_j), given
            ),
            Column("Energy of the computing device per 1,000 images", "computing /1,000", priority=1): lambda row: cell(
                quantities.joules(row[1].computing_j_per_1000, computing_j), given
            ),
            Column("Active energy of the input per 1,000 images (low to high)", "input /1,000"): joules_column(
                rows, lambda row: row[1].input_j_per_1000, active_tag(audit)
            ),
        },
        "The sum of the three is the active energy of the arm. The device computes as long in every arm.",
    )
