"""CodeCarbon's data and file format: grams of CO2, processors, emissions.csv. Nothing is sent anywhere.

CodeCarbon imports pandas (0.5 s), so each function imports what it needs.
"""

from __future__ import annotations

import csv
import difflib
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

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.files import check_writable, lock_path
from joulecache.pipelines.energy.measurement import Component, Energy

J_PER_KWH = 3.6e6


@contextmanager
def quiet() -> Iterator[list[BaseException]]:
    """Silence CodeCarbon's log; yield the errors that it logs instead of raising."""
    swallowed: list[BaseException] = []

    def refuse(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            swallowed.append(record.exc_info[1])
        return False

    # a filter, not `disabled`: the blocks of several threads may end in any order
    logger = logging.getLogger("codecarbon")
    logger.addFilter(refuse)
    try:
        yield swallowed
    finally:
        logger.removeFilter(refuse)


def grid_intensity(country: object) -> tuple[str | None, float | None]:
    """Return a country's ISO code and its grams of CO2 per kWh, from CodeCarbon's offline table; (None, None) for None.

    Raises:
        ValueError: The table does not list the country; the message suggests similar ones.
    """
    if country is None:
        return None, None
    if not isinstance(country, str):
        raise ValueError(f"country must be an ISO 3166 alpha-3 code such as 'FRA' or None, got {shown(country)}")
    table = countries()
    code = country.strip().upper()
    if code not in table:
        names = {row["country_name"].upper(): iso for iso, row in table.items()} | {iso: iso for iso in table}
        close = dict.fromkeys(names[name] for name in difflib.get_close_matches(code, names, n=3))
        listed = ", ".join(f"{iso} ({table[iso]['country_name']})" for iso in close)
        hint = f"did you mean {listed}?" if listed else "expected an ISO 3166 alpha-3 code such as 'FRA'"
        raise ValueError(f"unknown country {shown(country)}: {hint}")
    return code, float(table[code]["carbon_intensity"])


@functools.cache
def countries() -> dict[str, Any]:
    """Return CodeCarbon's table of countries, read directly: CodeCarbon's function imports pandas (0.3 s)."""
    found = importlib.util.find_spec("codecarbon")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).with_name("data") / "private_infra" / "global_energy_mix.json"
    return dict(json.loads(path.read_text("utf-8")))


@dataclass(frozen=True)
class CpuHardware:
    """The processor's name and thermal design power, None if unknown."""

    name: str | None
    tdp_w: float | None


@functools.cache
def cpu_name() -> str | None:
    """Return the processor's name as Linux reports it; None if it does not, as on ARM."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else None


def cpu_hardware() -> CpuHardware:
    """Return this machine's processor."""
    return hardware_of(cpu_name())


@functools.cache
def hardware_of(name: str | None) -> CpuHardware:
    """Look up a processor in CodeCarbon's table, which detects the name if it is None.

    CodeCarbon assumes 4 W per thread for an unknown processor; here its power is None.
    """
    from codecarbon.core.cpu import TDP

    class Known(TDP):  # type: ignore[misc]
        """CodeCarbon's table without its default and, if the name is known, without detecting it (1.5 s)."""

        def _main(self) -> tuple[str | None, float | None]:
            from codecarbon.core.util import detect_cpu_model

            model = name or detect_cpu_model() or None
            return model, self._get_cpu_power_from_registry(model) if model else None

    with quiet():
        found = Known()
    return CpuHardware(found.model, None if found.tdp is None else float(found.tdp))


def _separate_row(path: Path, before: os.stat_result) -> None:
    """Put the row that CodeCarbon appended to a file on its own line: editors leave the last line without an end."""
    with open(path, "rb+") as file:
        if not before.st_size or not os.path.samestat(before, os.fstat(file.fileno())):
            return
        file.seek(before.st_size - 1)
        end, row = file.read(1), file.read()
        if end != b"\n":
            file.seek(before.st_size)
            file.write(b"\n" + row)


class EmissionsFile:
    """Appends windows to the emissions.csv of an existing folder, in the format that CodeCarbon's dashboards read.

    The project of a row is the window's name; its run ID is that of this object. Values that were not measured are empty cells. Without a
    country, so are the grams, and CodeCarbon's board (carbonboard 3.3.2) then shows `nan kg` for the whole file and no bars for that
    project. CodeCarbon renames a file of another format to `emissions.csv.bak`.

    Attributes:
        path: The file.
        rows: Number of rows appended so far.

    Raises:
        ValueError: The folder does not exist or cannot be written to, or its emissions.csv is not a file.
    """

    def __init__(self, folder: str | os.PathLike[str], country: str | None, pue: float) -> None:
        if not isinstance(folder, str | os.PathLike) or not Path(folder).is_dir():
            raise ValueError(f"emissions must be a folder that exists, got {str(folder)!r}")
        self.path, self.rows = Path(folder).absolute() / "emissions.csv", 0
        check_writable(self.path.parent, "emissions")
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"emissions needs a folder in which emissions.csv is a file, got {shown(str(folder))}")
        self._country, self._pue = country, pue
        self._run = str(uuid.uuid4())

    def append(self, name: str, energy: Energy) -> None:
        """Append a row atomically; raises OSError if that fails, or the file cannot be read."""
        from codecarbon.output_methods.file import FileOutput

        row = self._row(name, energy)
        path = self.path
        with lock_path(path.parent):  # several processes may write the header and rows
            before = path.stat() if path.exists() else None
            try:
                with quiet():
                    FileOutput(path.name, str(path.parent), "append").out(row, None)
                if before is not None:
                    _separate_row(path, before)
            except OSError:
                # a full disk may leave part of a row, which the next one would continue
                if path.is_file():
                    same = before is not None and os.path.samestat(before, path.stat())
                    os.truncate(path, before.st_size if before is not None and same else 0)
                raise
            except (ValueError, csv.Error) as error:
                raise OSError(f"{path} is not a CSV file: {error}") from error
            self.rows += 1

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
        # decide by scope: the method of a counter times a PUE is modelled, but it still covers the machine
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
            country_name=self._country and countries()[self._country]["country_name"],
            country_iso_code=self._country,
            region=None,
            cloud_provider="",
            cloud_region="",
            os=platform.platform(),
            python_version=platform.python_version(),
            codecarbon_version=version("codecarbon"),
            cpu_count=os.cpu_count(),
            cpu_model=cpu_name() or cpu_hardware().name,  # detected only if Linux has no name
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
