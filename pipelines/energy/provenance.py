"""Where the joules of a meter come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from joulecache.pipelines.core.codec import OMITTED, Number, Whole

_Amount = Annotated[float, Ge(0)] | Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A published number of the power model.

    Attributes:
        low: Lower bound; None if it has none.
        central: The value that is used.
        high: Upper bound; None if it has none.
        source: The publication.
    """

    low: Number | None = field(default=None, metadata=OMITTED)
    central: Number
    high: Number | None = field(default=None, metadata=OMITTED)
    source: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What determines the joules of a meter, apart from the work that it measures.

    Attributes:
        method: `measured:rapl`, `modelled:<id>` or `user`: how the energy of processors and memory is obtained.
        formula: Formula of the power model.
        coefficients_version: Version of the published coefficients.
        coefficients: The coefficients in use, by name.
        provider: Cloud provider whose coefficients are used; None if the user gave watts.
        pue: Power usage effectiveness of the building, at least 1.
        country: ISO 3166 alpha-3 code of the grid; None if carbon is not computed.
        carbon_g_per_kwh: Grams of CO2 equivalent per kWh; None without a country.
        carbon_source: Where that number comes from; None without a country.
        rapl: Folders of the RAPL counters that are read.
        gpus: Names of the GPUs that are read.
        cpu: Name of the processor; None if unknown.
        tdp_w: Its thermal design power in watts; None if unknown.
        vcpus: Processors that the process may use.
        memory_gb: Memory of the machine, in units of 2**30 bytes.
        notes: What could not be measured, and why.
    """

    method: str
    formula: str
    coefficients_version: Whole
    coefficients: Mapping[str, Coefficient]
    provider: str | None
    pue: Annotated[float, Ge(1)] | Annotated[int, Ge(1)]
    country: str | None
    carbon_g_per_kwh: _Amount | None
    carbon_source: str | None
    rapl: tuple[str, ...]
    gpus: tuple[str, ...]
    cpu: str | None
    tdp_w: _Amount | None
    vcpus: _Amount
    memory_gb: _Amount
    notes: tuple[str, ...]
