"""A simulated device: when it waits, what it uses, and what a report says of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from audits import AUDIT, INPUT, audit_of, printed
from numpy.typing import NDArray
from small_audits import NO_STAGES, audit, energy

from joulecache.pipelines.auditing.changes import compare_audits
from joulecache.pipelines.auditing.config import AuditConfig, PipelinesConfig
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.experiment import workloads
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.results import Device, DeviceUse, Joules
from joulecache.pipelines.experiment.runs import Run, Slot
from joulecache.pipelines.experiment.summary import CachedArm, Design, summarize
from joulecache.pipelines.experiment.workloads import Accelerator
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.describe.first_screen import picture

BATCHES, BATCH = 5, 4
DEVICE = Device(step_s=0.012, idle_w=80, busy_w=350)


@dataclasses.dataclass
class Clock:
    """A clock that only moves when somebody sleeps, or prepares a batch."""

    now_s: float = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now_s += seconds


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches that are prepared one by one, when they are requested."""

    clock: Clock
    seconds_each: float

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for _ in range(BATCHES):
            self.clock.sleep(self.seconds_each)
            yield np.zeros((BATCH, 2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("prepared_s", "waited_s", "duration_s"),
    [
        (0.0, 0.0, BATCHES * 0.012),
        (0.005, 0.005, 0.005 + BATCHES * 0.012),  # all but the first are prepared during a step
        (0.020, 0.020 + (BATCHES - 1) * 0.008, BATCHES * 0.020 + 0.012),
    ],
)
def test_a_device_waits_for_what_is_prepared_slower_than_it_computes(
    monkeypatch: pytest.MonkeyPatch, prepared_s: float, waited_s: float, duration_s: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(workloads, "time", clock)
    arm = Arm("naive", BATCHES * BATCH, Batches(clock, prepared_s))
    workload = Accelerator(DEVICE)
    for _ in range(2):  # a run does not remember the one before
        started_s = clock.now_s
        assert workload.run(arm, 0) == BATCHES * BATCH
        lasted_s = clock.now_s - started_s
        assert lasted_s == pytest.approx(duration_s)
        assert workload.waited_s(lasted_s) == pytest.approx(waited_s)


def runs(waited_s: dict[Slot, float]) -> list[Run]:
    """Return runs of 100 images whose device computes for 1 s, and whose input uses 20 J."""
    return [
        Run(
            attempt=1,
            workload="accelerator",
            block=block,
            place=0,
            arm=slot.arm,
            role=slot.role,
            images=100,
            energy=dataclasses.replace(energy(20.0, idle_j=5.0, duration_s=1.0 + seconds), carbon_g=2.5),
            score=None,
            waited_s=seconds,
        )
        for block in range(6)
        for slot, seconds in waited_s.items()
    ]


def test_the_joules_of_the_device_count() -> None:
    waited_s = {Slot("naive"): 3.0, Slot("naive", "control"): 3.0, Slot("optimized"): 0.5}
    design = Design(
        workload="accelerator",
        epochs_per_run=1,
        blocks=6,
        arms=("naive", "optimized"),
        reference="naive",
        cached=CachedArm("optimized", 100, 10, 1),
        device=dataclasses.replace(DEVICE, pue=1.5),
    )
    metered = runs(waited_s)
    found = summarize(design, metered)
    assert found.device == design.device
    naive, optimized = found.arms
    assert naive.device is not None
    assert optimized.device is not None
    assert naive.device.waiting_share == pytest.approx(0.75)
    assert naive.device.waiting_j_per_1000 == pytest.approx(1.5 * 80 * 3.0 * 10)
    assert naive.device.computing_j_per_1000 == pytest.approx(1.5 * 350 * 10)
    assert naive.device.input_j_per_1000.value == pytest.approx(200)
    assert optimized.device.waiting_share == pytest.approx(1 / 3)
    naive_j, optimized_j = (20 + 1.5 * (350 + 80 * seconds) for seconds in (3.0, 0.5))
    assert naive.active_j_per_1000.value == pytest.approx(10 * naive_j)
    assert naive.total_j_per_1000.value == pytest.approx(10 * (naive_j + 5))
    assert naive.carbon_g_per_1000 == pytest.approx(25 * (naive_j + 5) / 25)
    assert optimized.ratio.value == pytest.approx(optimized_j / naive_j)
    assert naive.waiting is None
    assert {run.energy.active_j for run in metered} == {20.0}  # the log has what was metered


def test_a_real_gpu_is_metered_besides_the_simulated_one() -> None:
    waited_s = {Slot("naive"): 1.0, Slot("naive", "control"): 1.0}
    design = Design(
        workload="accelerator", epochs_per_run=1, blocks=6, arms=("naive",), reference="naive", device=DEVICE
    )
    both = [dataclasses.replace(run, energy=energy(20.0, gpu_j=7.0, duration_s=2.0)) for run in runs(waited_s)]
    (arm,) = summarize(design, both).arms
    assert arm.active_j_per_1000.value == pytest.approx(10 * (27 + 80 + 350))


# Audits ---------------------------------------------------------------------------------------------------------------


def dataset(size: int) -> Callable[[], tf.data.Dataset]:
    return lambda: tf.data.Dataset.from_tensor_slices(tf.zeros((24, size, size, 3), tf.uint8)).batch(8)


def test_an_audit_feeds_a_simulated_device(tmp_path: Path) -> None:
    result = audit(
        datasets={"small": dataset(4), "large": dataset(8)},
        out=tmp_path / "out",
        workloads=("accelerator",),
        pairs=2,
        step_ms=2,
        device_watts=(80, 350),
        budget=NO_STAGES,
    )
    (found,) = result.workloads
    assert (found.workload, found.device) == ("accelerator", Device(0.002, 80, 350))
    for arm in found.arms:
        assert arm.device is not None
        assert 0 < arm.device.waiting_share < 1
        # three steps of 24 images, whatever the machine does meanwhile
        assert arm.device.computing_j_per_1000 == pytest.approx(350 * 3 * 0.002 / 24 * 1000, rel=0.5)
        parts = (arm.device.waiting_j_per_1000, arm.device.computing_j_per_1000, arm.device.input_j_per_1000.value)
        assert arm.active_j_per_1000.value == pytest.approx(sum(parts))
    assert Audit.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.slow
def test_a_chain_feeds_a_simulated_device(photo_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"workloads": ("accelerator",), "pairs": 2, "batch_size": 8, "budget": NO_STAGES}
    chain = "decode|resize(24) || random_crop(20)|to_float"
    result = audit(photo_folder, chain, tmp_path / "out", step_ms=1, device_watts=(80, 350), **options)
    uses = {arm.name: arm.device for arm in result.workloads[0].arms}
    assert uses["naive"] is not None
    assert uses["optimized"] is not None
    assert uses["optimized"].waiting_share < uses["naive"].waiting_share
    assert result.stages is None


@pytest.mark.parametrize("config", [AuditConfig, PipelinesConfig])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workloads": ("accelerator",)}, "the workload accelerator needs step_ms and device_watts"),
        ({"workloads": ("accelerator",), "step_ms": 12}, "the workload accelerator needs device_watts"),
        ({"step_ms": 12}, "step_ms is only for the workload accelerator"),
        ({"device_watts": (80, 350)}, "device_watts is only for the workload accelerator"),
        ({"step_ms": 0}, "step_ms must be a finite number above 0, got 0"),
        ({"device_watts": (80,)}, "device_watts must be two numbers, idle and busy, got"),
        ({"device_watts": (-1, 350)}, "device_watts must be a finite number of at least 0, got -1"),
        (
            {"device_watts": (350, 80)},
            "device_watts, of a busy device, must be a finite number of at least 350, got 80",
        ),
    ],
)
def test_a_device_that_is_not_declared_is_refused(config: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**arguments)


# Reports --------------------------------------------------------------------------------------------------------------


def test_a_comparison_says_that_the_device_is_another() -> None:
    before, after = (
        audit_of(dataclasses.replace(INPUT, workload="accelerator", device=dataclasses.replace(DEVICE, step_s=step_s)))
        for step_s in (0.012, 0.006)
    )
    assert compare_audits(before, after).settings == {"device: step_s": (0.012, 0.006)}


def test_a_report_says_how_long_the_device_waits() -> None:
    waits = {"naive": 0.6, "tuned": 0.4, "tf_cache": 0.02, "optimized": 0.01}
    arms = tuple(
        dataclasses.replace(arm, device=DeviceUse(waits[arm.name], 100 * waits[arm.name], 60.0, Joules(3.0, 2.0, 4.0)))
        for arm in INPUT.arms
    )
    result = dataclasses.replace(INPUT, workload="accelerator", arms=arms, device=DEVICE)
    document = describe_audit(audit_of(*AUDIT.workloads, result))
    first, _ = document.headline
    assert first.claim.startswith("Feeding the simulated accelerator from the cache uses")
    assert (
        "The device waits 1.0% of the time from optimized and 2.0% from tf_cache; meanwhile it uses 1.00 J and 2.00 J per 1,000 images."
        in first.detail
    )
    text = " ".join(printed(document, 200, brief=False).split())
    assert "a step computes for 12.0 ms" in text
    drawn = picture(result, audit_of(*AUDIT.workloads, result))
    assert drawn is not None
    assert "tuned 103 J: input 3.00 J, training 60.0 J, waiting 40.0 J" in drawn.description
    assert "those of the device follow from the watts that you gave" in text
    assert "350 W meanwhile, and 80 W while it waits (given)" in text
    assert "device waits" not in printed(describe_audit(AUDIT), 200, brief=False)
