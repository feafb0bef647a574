"""The storage model: joules of a drive by bytes and days."""

from __future__ import annotations

from joulecache.pipelines.core.checks import check_number
from joulecache.pipelines.energy.measurement import Component
from joulecache.pipelines.energy.model import coefficients, component

_TB_BYTES = 10**12  # drives are sold, and their watts published, in decimal terabytes
_S_PER_DAY = 86_400


def storage_energy(stored_bytes: float, days: float, pue: float = 1.0) -> Component:
    """Return the modelled energy of storing bytes on a drive: ``pue * watts per terabyte * terabytes * seconds``.

    The value is for an SSD, the lower bound for a hard disk, the upper bound for an SSD of 2015: coefficients of Cloud Carbon Footprint,
    with their sources in coefficients.json. A drive draws about the same power under any load, so reads and writes add nothing, and a
    file accounts for its share of the drive's bytes. One copy is counted, without the replication of a cloud.

    Raises:
        ValueError: A number is negative or not finite, or `pue` is below 1.
    """
    check_number("stored_bytes", stored_bytes, 0)
    check_number("days", days, 0)
    check_number("pue", pue, 1)
    watts = component(
        coefficients().storage_w_per_tb,
        f"modelled:storage@{coefficients().version}",
        "one copy on a local drive, replication not counted",
        "the drive's average watts, shared by bytes",
    )
    return watts * (pue * stored_bytes / _TB_BYTES * days * _S_PER_DAY)
