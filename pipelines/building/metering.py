"""How the processes of a build meter themselves, and what they write down."""

from __future__ import annotations

import functools
import operator
import os
import socket
import uuid
from dataclasses import dataclass

import psutil

from joulecache.pipelines.core.codec import Whole
from joulecache.pipelines.energy import Energy, Meter, Provenance
from joulecache.pipelines.energy.hosts import Span
from joulecache.pipelines.energy.machine import machine_id


@dataclass(frozen=True)
class Metering:
    """How a worker meters itself: as the launcher does.

    Attributes:
        build: Unique name of the build, which a process that outlives it must not continue.
        launcher: `this_process` of the launcher; "" without one.
        machine: `machine_id` of the launcher, whose watts may have been given.
        provider: Cloud provider whose coefficients are used.
        pue: Power usage effectiveness of the data center.
        country: ISO 3166 alpha-3 code of the grid; None if carbon is not computed.
        watts: Watts of the launcher's machine, idle and with all processors busy; None if they were not given.
    """

    build: str = ""
    launcher: str = ""
    machine: str = ""
    provider: str = "generic"
    pue: float = 1.0
    country: str | None = None
    watts: tuple[float, float] | None = None

    @classmethod
    def like(cls, provenance: Provenance) -> Metering:
        """Return how to meter like this process, the launcher, given the provenance of its meter."""
        rows = provenance.coefficients
        watts = None if provenance.provider else (rows["idle_w"].central, rows["full_w"].central)
        provider = provenance.provider or "generic"
        return cls(uuid.uuid4().hex, this_process(), machine_id(), provider, provenance.pue, provenance.country, watts)

    def meter(self) -> Meter:
        """Return a meter for this process. Watts that were given are those of the launcher's machine only."""
        if self.watts and self.machine == machine_id():
            idle_w, full_w = self.watts
            return Meter(country=self.country, pue=self.pue, idle_w=idle_w, full_w=full_w)
        return Meter(country=self.country, pue=self.pue, provider=self.provider)

    def metered_by(self) -> str:
        """Return the launcher if it meters this process, because it is this process or an ancestor; else ""."""
        ancestors = (os.getpid(), *(parent.pid for parent in psutil.Process().parents()))
        is_metered = self.machine == machine_id() and self.launcher in map(process_name, ancestors)
        return self.launcher if is_metered else ""


@dataclass(frozen=True, kw_only=True)
class ProcessLog:
    """What a process used for a build, or a part of it. Logs add up: they never include what another process logged.

    Attributes:
        process: The process, as ``host:pid``.
        build: Unique name of the build; "" in logs of earlier versions.
        machine: `machine_id` of its machine.
        metered_by: The launcher, if the log of the launcher includes this one; else "".
        is_launcher: Whether the process launched the build.
        is_complete: Whether nothing that it used is missing, because it does nothing now.
        shards: The shards that it is building, or the one that it has built.
        spans: What it used.
    """

    process: str
    build: str = ""
    machine: str
    metered_by: str = ""
    is_launcher: bool = False
    is_complete: bool
    shards: tuple[Whole, ...] = ()
    spans: tuple[Span, ...]

    @property
    def host(self) -> str:
        """Name of the process's host."""
        return self.process.rpartition(":")[0]

    @property
    def energy(self) -> Energy:
        """Energy of all spans."""
        return functools.reduce(operator.add, (span.energy for span in self.spans))


def this_process() -> str:
    """Return a name of this process that is unique in a cluster."""
    return process_name(os.getpid())


def process_name(pid: int) -> str:
    """Return the name of a process of this host."""
    return f"{socket.gethostname()}:{pid}"
