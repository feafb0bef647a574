"""The model of storage: the joules of the drive that keeps a file, by the bytes and the days."""

from __future__ import annotations

from joulecache.pipelines.energy.measurement import Component, check_number
from joulecache.pipelines.energy.model import coefficients

_TB_BYTES = 10**12  # drives are sold, and their watts published, in decimal terabytes
_S_PER_DAY = 86_400


def storage_energy(stored_bytes: float, days: float, pue: float = 1.0) -> Component:
    """Return what keeping bytes on a drive takes: ``pue * watts per terabyte * terabytes * seconds``, modelled.

    The value is for an SSD, low for a hard disk, high for an SSD of 2015: Cloud Carbon Footprint's coefficients, with their sources in
    coefficients.json. A drive takes its watts whatever it does, so reads and writes add nothing, and a file has the share of them
    that it has of the drive. One copy is counted: a cloud keeps several, and its replication factor is not applied. ValueError for
    numbers that are negative or not finite, and for a `pue` below 1.
    """
    check_number("stored_bytes", stored_bytes)
    check_number("days", days)
    check_number("pue", pue, at_least=1.0)
    table = coefficients()
    row = table["storage_w_per_tb"]
    watts = Component(
        row["central"],
        row["low"],
        row["high"],
        f"modelled:storage@{table['version']}",
        row["source"],
        "one copy on a local drive, replication not counted",
        "the drive's average watts, shared by bytes",
    )
    return watts * (pue * stored_bytes / _TB_BYTES * days * _S_PER_DAY)
