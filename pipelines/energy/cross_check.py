"""CodeCarbon's own tracker beside our meter, to compare the two."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from joulecache.pipelines.energy.carbon import J_PER_KWH, cpu_hardware, grid_intensity, quiet

_SOME_COUNTRY = "FRA"  # the tracker needs one, even where its grams are not wanted
_EVERY_S = 1.0  # between two of its looks


@dataclass(frozen=True)
class CrossCheck:
    """What CodeCarbon's tracker says: joules, with those of each part, and how it came by those of the processor."""

    energy_j: float
    cpu_j: float
    gpu_j: float
    ram_j: float
    duration_s: float
    carbon_g: float | None
    method: str


class CrossChecked:
    """Hold the `result` of a cross-check after its block; None before, and where CodeCarbon could not tell one."""

    result: CrossCheck | None = None


@contextmanager
def cross_checked(country: str | None, pue: float) -> Iterator[CrossChecked]:
    """Run CodeCarbon's offline tracker during a `with` block, beside our own meter.

    It is told to look at the whole machine. Its other mode is of the process and its descendants, as our model is, but loses
    each that it does not see at two of its looks, one a second (of ten that lived 0.3 s, nearly all). It writes no file and sends
    nothing, whatever its configuration files say; watts and GPUs that they choose are kept, and `method` says so of the
    processor's. Its log is silent in the block, others' too. RuntimeError, before the block, where it cannot be started; ValueError
    for a country that CodeCarbon does not know.
    """
    code, _ = grid_intensity(country)  # as it is written in the table: the tracker does not find "fra"
    with quiet() as swallowed, _log_kept():
        import codecarbon

        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=code or _SOME_COUNTRY,
            measure_power_secs=_EVERY_S,
            tracking_mode="machine",
            output_methods=[],
            output_handlers=[],
            output_dir=".",  # it must exist, although nothing is written there
            emissions_endpoint=None,
            electricitymaps_api_token="",  # none, and no look into the configuration for its old name
            force_carbon_intensity_g_co2e_kwh=None,
            region=None,
            cloud_provider=None,
            cloud_region=None,
            allow_multiple_runs=True,
            log_level="warning",
            pue=pue,
        )
        tracker.start()
        # constructor and start swallow their errors; a first measurement is the last thing that start does
        if not getattr(tracker, "_measure_occurrence", 0):
            tracker.stop()
            why = f"{type(swallowed[0]).__name__}: {swallowed[0]}" if swallowed else "it does not say why"
            raise RuntimeError(f"CodeCarbon's tracker cannot be started: {why}")
        held = CrossChecked()
        try:
            yield held
        finally:
            tracker.stop()
    # stop swallows its errors too, and the block is worth more than they are
    seen = getattr(tracker, "final_emissions_data", None)
    if seen is not None:
        held.result = CrossCheck(
            energy_j=seen.energy_consumed * J_PER_KWH,
            cpu_j=seen.cpu_energy * J_PER_KWH,
            gpu_j=seen.gpu_energy * J_PER_KWH,
            ram_j=seen.ram_energy * J_PER_KWH,
            duration_s=seen.duration,
            carbon_g=None if country is None else seen.emissions * 1000,
            method=_method(tracker),
        )


@contextmanager
def _log_kept() -> Iterator[None]:
    """Put back the level and the handlers of CodeCarbon's log, which its tracker replaces."""
    from codecarbon.external.logger import logger  # its import sets both: that comes first

    level, handlers = logger.level, logger.handlers
    logger.setLevel(logging.WARNING)  # so that what is swallowed comes by
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers = handlers


def _method(tracker: Any) -> str:
    """Say how a tracker came by its figures: it says nowhere else what it read, and what it took for its watts."""
    words = [part.description() for part in tracker._hardware]
    watts = [part._tdp for part in tracker._hardware if getattr(part, "_tdp", None)]
    if watts:
        known = cpu_hardware().tdp_w is not None
        source = "configured" if tracker._force_cpu_power is not None else "from its table" if known else "guessed"
        words.append(f"{watts[0]:g} W at full load, {source}")
    return f"codecarbon {version('codecarbon')}: {', '.join(words)}"
