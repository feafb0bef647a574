"""Run CodeCarbon's tracker alongside the meter, to compare the two."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from joulecache.pipelines.energy.carbon import J_PER_KWH, cpu_hardware, grid_intensity, quiet

_SOME_COUNTRY = "FRA"  # the tracker needs one, even where its grams are not wanted
_EVERY_S = 1.0


@dataclass(frozen=True)
class CrossCheck:
    """What CodeCarbon's tracker measured. `method` says how it obtained the processor's energy; without a country `carbon_g` is None."""

    energy_j: float
    cpu_j: float
    gpu_j: float
    ram_j: float
    duration_s: float
    carbon_g: float | None
    method: str


class CrossChecked:
    """A cross-checked block. Its result is None before the block ends, and if CodeCarbon failed."""

    result: CrossCheck | None = None


@contextmanager
def cross_checked(country: str | None, pue: float) -> Iterator[CrossChecked]:
    """Run CodeCarbon's offline tracker during a `with` block.

    The tracker measures the whole machine. Its other mode covers the process and its descendants, as the meter's model does, but misses
    processes that start and end between two of its measurements, one a second (of ten that lived 0.3 s, nearly all). It writes no file
    and sends nothing, whatever its configuration files say; it keeps the watts and GPUs that they set. CodeCarbon's log is silent in the
    block, also for other code.

    Raises:
        RuntimeError: The tracker cannot be started; the block does not run.
        ValueError: CodeCarbon does not know the country.
    """
    code, _ = grid_intensity(country)  # in upper case: the tracker does not find "fra"
    with quiet() as swallowed, _log_kept():
        import codecarbon

        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=code or _SOME_COUNTRY,
            measure_power_secs=_EVERY_S,
            tracking_mode="machine",
            output_methods=[],
            output_handlers=[],
            output_dir=".",  # it must exist, but nothing is written there
            emissions_endpoint=None,
            electricitymaps_api_token="",  # overrides the one that a configuration file may set
            force_carbon_intensity_g_co2e_kwh=None,
            region=None,
            cloud_provider=None,
            cloud_region=None,
            allow_multiple_runs=True,
            log_level="warning",
            pue=pue,
        )
        tracker.start()
        # constructor and start swallow errors; a successful start ends with a measurement
        if not getattr(tracker, "_measure_occurrence", 0):
            tracker.stop()
            why = f"{type(swallowed[0]).__name__}: {swallowed[0]}" if swallowed else "it gives no reason"
            raise RuntimeError(f"cannot start CodeCarbon's tracker: {why}")
        held = CrossChecked()
        try:
            yield held
        finally:
            tracker.stop()
    # stop swallows errors too, and then there is no result
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
    """Restore the level and handlers of CodeCarbon's log, which its tracker replaces."""
    from codecarbon.external.logger import logger  # importing it sets both

    level, handlers = logger.level, logger.handlers
    logger.setLevel(logging.WARNING)  # so that swallowed errors pass the filter
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers = handlers


def _method(tracker: Any) -> str:
    """Return how a tracker obtained its values, which only its private attributes tell."""
    words = [part.description() for part in tracker._hardware]
    watts = [part._tdp for part in tracker._hardware if getattr(part, "_tdp", None)]
    if watts:
        known = cpu_hardware().tdp_w is not None
        source = "configured" if tracker._force_cpu_power is not None else "from its table" if known else "guessed"
        words.append(f"{watts[0]:g} W at full load, {source}")
    return f"codecarbon {version('codecarbon')}: {', '.join(words)}"
