"""What comes from CodeCarbon: grams of CO2, what it knows of the processor, its file format.

Importing it brings pandas (0.5 s), so every function imports what it needs. Nothing here sends anything.
"""

from __future__ import annotations

import csv
import difflib
import fcntl
import functools
import importlib.util
import json
import logging
import os
import platform
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from joulecache.pipelines.energy.measurement import Component, Energy

J_PER_KWH = 3.6e6


@contextmanager
def quiet() -> Iterator[list[BaseException]]:
    """Keep CodeCarbon's log to itself, and leave it as it was; yield the errors that CodeCarbon swallows and only logs."""
    swallowed: list[BaseException] = []

    def refuse(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            swallowed.append(record.exc_info[1])
        return False

    # a filter of our own, not `disabled`: blocks of several threads may end in any order
    logger = logging.getLogger("codecarbon")
    logger.addFilter(refuse)
    try:
        yield swallowed
    finally:
        logger.removeFilter(refuse)


def grid_intensity(country: object) -> tuple[str | None, float | None]:
    """Return a country's ISO code and grams of CO2 per kWh, from CodeCarbon's offline table.

    None gives (None, None). Raises ValueError, naming close ones, for a country that the table does not have.
    """
    if country is None:
        return None, None
    if not isinstance(country, str):
        raise ValueError(f"country is {country!r}: give an ISO 3166 alpha-3 code such as 'FRA', or None")
    table = _countries()
    code = country.strip().upper()
    if code not in table:
        names = {row["country_name"].upper(): iso for iso, row in table.items()} | {iso: iso for iso in table}
        close = dict.fromkeys(names[name] for name in difflib.get_close_matches(code, names, n=3))
        listed = ", ".join(f"{iso} ({table[iso]['country_name']})" for iso in close) or "none"
        raise ValueError(f"unknown country {country!r}: give an ISO 3166 alpha-3 code; close to it: {listed}")
    return code, float(table[code]["carbon_intensity"])


@functools.cache
def _countries() -> dict[str, Any]:
    """Return CodeCarbon's table of countries; from its file, since asking CodeCarbon loads pandas: 0.3 s of each meter."""
    found = importlib.util.find_spec("codecarbon")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).with_name("data") / "private_infra" / "global_energy_mix.json"
    return dict(json.loads(path.read_text("utf-8")))


@dataclass(frozen=True)
class CpuHardware:
    """The processor's name and thermal design power in watts; None: not known."""

    name: str | None
    tdp_w: float | None


@functools.cache
def cpu_name() -> str | None:
    """Return the processor's name as Linux has it; None where it has none, as on ARM."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else None


@functools.cache
def cpu_hardware() -> CpuHardware:
    """Return the processor's name, and its power where CodeCarbon's table has it.

    CodeCarbon takes 4 W for each thread of a processor that it does not know; that is a guess, and not given on.
    """
    from codecarbon.core.cpu import TDP

    class Known(TDP):  # type: ignore[misc]
        """CodeCarbon's look into its table, without its guess and, where Linux knows the name, its search for that (1.5 s)."""

        def _main(self) -> tuple[str | None, float | None]:
            from codecarbon.core.util import detect_cpu_model

            name = cpu_name() or detect_cpu_model() or None
            return name, self._get_cpu_power_from_registry(name) if name else None

    with quiet():
        found = Known()
    return CpuHardware(found.model, None if found.tdp is None else float(found.tdp))


class EmissionsFile:
    """Append windows to the emissions.csv of a folder in CodeCarbon's format, so that its own dashboards read them.

    A row's project is its window's name, its run this object. What was not measured is an empty cell. Without a country that is
    the grams: CodeCarbon's board (carbonboard 3.3.2) then shows `nan kg` for the whole file and draws neither the bars nor
    the equivalents of that project. Raises ValueError where the folder is missing. A file of another format is set aside by
    CodeCarbon, as `emissions.csv.bak`.
    """

    def __init__(self, folder: str | os.PathLike[str], country: str | None, pue: float) -> None:
        if not isinstance(folder, str | os.PathLike) or not Path(folder).is_dir():
            raise ValueError(f"emissions is {str(folder)!r}: give a folder that exists")
        self._folder, self._country, self._pue = Path(folder).absolute(), country, pue
        self._run = str(uuid.uuid4())

    def append(self, name: str, energy: Energy) -> None:
        """Append a row, or nothing of it; OSError where it cannot be written, or what is there cannot be read."""
        from codecarbon.output_methods.file import FileOutput

        row = self._row(name, energy)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # header and rows of several processes
            path = self._folder / "emissions.csv"
            before = path.stat() if path.exists() else None
            try:
                with quiet():
                    FileOutput(path.name, str(self._folder), "append").out(row, None)
            except OSError:
                # part of a row, on a full disk: the next one would continue it
                if path.is_file():
                    same = before is not None and os.path.samestat(before, path.stat())
                    os.truncate(path, before.st_size if before is not None and same else 0)
                raise
            except (ValueError, csv.Error) as error:
                raise OSError(f"{path} is no CSV file: {error}") from error
        finally:
            os.close(folder)

    def _row(self, name: str, energy: Energy) -> Any:
        from codecarbon.output_methods.emissions_data import EmissionsData

        parts = energy.components

        def kwh(*components: Component | None) -> float | None:
            known = [part.value_j for part in components if part is not None]
            return sum(known) / J_PER_KWH if known else None

        def watts(kilowatt_hours: float | None) -> float | None:
            unknown = kilowatt_hours is None or not energy.duration_s
            return None if unknown else (kilowatt_hours or 0.0) * J_PER_KWH / energy.duration_s

        cpu, gpu, ram = kwh(parts["cpu"], parts["idle"]), kwh(parts["gpu"]), kwh(parts["dram"])
        emissions_kg = None if energy.carbon_g is None else energy.carbon_g / 1000
        unknown_rate = emissions_kg is None or not energy.duration_s
        # by scope: a counter times a PUE is a model by its method, and of the whole machine still
        whole = any(part is not None and "machine" in part.scope.split("; ") for part in parts.values())
        return EmissionsData(
            timestamp=datetime.now().astimezone().strftime("%Y-%m-%dT%H:%M:%S"),
            project_name=name,
            run_id=self._run,
            experiment_id="",
            duration=energy.duration_s,
            emissions=emissions_kg,
            emissions_rate=None if unknown_rate else (emissions_kg or 0.0) / energy.duration_s,
            cpu_power=watts(cpu),
            gpu_power=watts(gpu),
            ram_power=watts(ram),
            cpu_energy=cpu,
            gpu_energy=gpu,
            ram_energy=ram,
            energy_consumed=energy.total_j / J_PER_KWH,
            water_consumed=None,
            country_name=self._country and _countries()[self._country]["country_name"],
            country_iso_code=self._country,
            region=None,
            cloud_provider="",
            cloud_region="",
            os=platform.platform(),
            python_version=platform.python_version(),
            codecarbon_version=version("codecarbon"),
            cpu_count=os.cpu_count(),
            cpu_model=cpu_name() or cpu_hardware().name,  # without CodeCarbon's search where Linux knows it
            gpu_count=None,
            gpu_model=None,
            longitude=None,
            latitude=None,
            ram_total_size=psutil.virtual_memory().total / 2**30,
            tracking_mode="machine" if whole else "process",
            cpu_utilization_percent=None,
            gpu_utilization_percent=None,
            ram_utilization_percent=None,
            ram_used_gb=None,
            on_cloud="N",
            pue=self._pue,
            wue=None,
        )
