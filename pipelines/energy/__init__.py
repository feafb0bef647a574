"""Measure or model the energy of named windows, with bounds and provenance.

Where counters of the processor (RAPL) and of GPUs (NVML) can be read, they are read at both edges of a window. Elsewhere energy is
modelled as

    PUE * (a * CPU_s + w_idle * vCPU * T + m * GB * T)

with CPU_s the user and system seconds of the process and its descendants, vCPU the processors they may use, GB their resident memory
(2**30 bytes, mean of the window's edges; a page that two processes share counts twice) and T the window's seconds. a, w_idle and m are in
coefficients.json, each with a low, central and high value and its source. The bounds follow from those of the coefficients. This error is
common to all windows: it does not average out, so bounds add linearly, and it cancels in the ratio of two values of one component.
"""

from joulecache.pipelines.energy.measurement import (
    COMPONENTS,
    CONTAMINATION,
    Component,
    Contamination,
    Energy,
)
from joulecache.pipelines.energy.meter import Meter
from joulecache.pipelines.energy.process_tree import available_cpus
from joulecache.pipelines.energy.provenance import Coefficient, Provenance
from joulecache.pipelines.energy.windows import Window

__all__ = [
    "COMPONENTS",
    "CONTAMINATION",
    "Coefficient",
    "Component",
    "Contamination",
    "Energy",
    "Meter",
    "Provenance",
    "Window",
    "available_cpus",
]
