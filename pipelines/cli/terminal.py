"""What the command line prints: progress and errors on stderr for people, results on stdout."""

from __future__ import annotations

import ctypes
import functools
import json
import operator
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.hardware import Throughput
    from joulecache.pipelines.cache.manifest import Manifest
    from joulecache.pipelines.cli.diagnosis import Finding
    from joulecache.pipelines.energy import Energy, Provenance


class Tell(Protocol):
    """What shows progress."""

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Show that `done` of `total` steps of something are done, with what else there is to say."""


_PROGRESS_EVERY_S = 60  # between lines where stderr is no terminal
_QUIET_S = 2  # before the first


def say(line: str) -> None:
    """Print one line for people, as it is."""
    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)


def fail(message: str, code: int) -> int:
    """Say why a command failed, in one line; return its exit code."""
    say("joulecache: " + " ".join(message.split()))
    return code


@contextmanager
def no_greetings() -> Iterator[None]:
    """Keep off stderr what TensorFlow's native code writes while it is imported, before it can be told not to."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what code of others prints on stdout, by Python or by file number: results alone go there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # what C has buffered for a pipe
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress() -> Iterator[Tell]:
    """Show progress on stderr: a bar on a terminal, a line a minute and one for every new step elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_progress()
        return
    detail = TextColumn("{task.fields[detail]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), detail)
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None, detail="")
        yield lambda what, done, total, detail="": bars.update(
            task, description=what, completed=done, total=total, detail=detail
        )


def _line_progress() -> Tell:
    told: dict[str, float] = {}
    started = time.monotonic()

    def tell(what: str, done: int, total: int, detail: str = "") -> None:
        step, now = what.partition(":")[0], time.monotonic()
        if now - started > _QUIET_S and now - told.get(step, -_PROGRESS_EVERY_S) >= _PROGRESS_EVERY_S:
            told[step] = now
            say(f"{what}: {done} of {total}" + f" ({detail})" * bool(detail))

    return tell


def print_json(body: object) -> None:
    """Print JSON for machines."""
    sys.stdout.write(json.dumps(body, indent=1, default=str) + "\n")


def print_manifest(cache: str, manifest: Manifest) -> None:
    """Print what is in a cache."""
    console = Console()
    console.print(f"{cache}: {manifest.chain}", markup=False, soft_wrap=True)
    table = Table("split", "records", "image", "variants", "files", "MB", "mean", "std")
    for name, split in manifest.splits.items():
        if not split.records:
            continue
        shape = "x".join("?" if side is None else str(side) for side in split.image_shape)
        size = sum(file.bytes for file in split.files) / 1e6
        mean, std = (" ".join(f"{level:.1f}" for level in levels) for levels in (split.mean, split.std))
        table.add_row(
            name, f"{split.records:,}", shape, str(split.variants), str(len(split.files)), f"{size:,.1f}", mean, std
        )
    console.print(table)
    skipped = sum(manifest.source.skipped.values())
    console.print(
        f"{len(manifest.class_names)} classes; {manifest.format}, {manifest.encoding}; source {manifest.source.bytes / 1e6:,.1f} MB, "
        f"{manifest.rejected.records} rejected (listed in {manifest.rejected.name}), {skipped} other files skipped",
        soft_wrap=True,
    )
    if manifest.energy:
        energy = manifest.energy.energy
        console.print(f"build: {energy}, {energy.cpu_s:.1f} CPU-seconds, {energy.duration_s:.1f} s", soft_wrap=True)
        print_flags("the build", energy.flags)
    else:
        console.print("build: energy not measured, since other processes made a part of it", soft_wrap=True)


def print_flags(what: str, flags: Sequence[str]) -> None:
    """Print what makes an energy doubtful."""
    for flag in flags:
        Console().print(f"{what} is flagged by the meter: {flag}", markup=False, soft_wrap=True)


def say_energy(energy: Energy, notes: Sequence[str]) -> None:
    """Say all that a meter saw of one window, one line for each kind of figure."""
    say(f"energy: {energy}")
    for name, part in {"active": energy.active, **energy.components}.items():
        bounds = "" if part is None else f" ({part.low_j:.3g} to {part.high_j:.3g}), {part.method}, {part.scope}"
        say(f"  {name}: {'not measured' if part is None else f'{part.value_j:.3g} J'}{bounds}")
    say(f"CO2: {'not measured: give --country' if energy.carbon_g is None else f'{energy.carbon_g:.3g} g'}")
    peak, read, written = (
        "not measured" if value is None else f"{value / 1e6:,.1f} MB"
        for value in (energy.peak_rss_bytes, energy.read_bytes, energy.written_bytes)
    )
    say(
        f"time: {energy.duration_s:.2f} s, {energy.cpu_s:.2f} CPU-seconds; memory: {peak}; read: {read}; written: {written}"
    )
    shares = ((name.replace("_", " "), share) for name, share in energy.contamination_shares.items())
    beside = ", ".join(f"{name} {'not measured' if share is None else f'{share:.1%}'}" for name, share in shares)
    say(f"beside it on the machine: {beside}")
    for line in (*(f"flagged: {flag}" for flag in energy.flags), *(f"note: {note}" for note in notes)):
        say(line)


def print_findings(found: Sequence[Finding]) -> None:
    """Print what a doctor found, each with what to do about it."""
    table = Table(Column("", no_wrap=True), Column("", no_wrap=True), "", box=None, show_header=False)
    for finding in found:
        table.add_row("ok" if finding.good else "-", finding.what, finding.found)
        if finding.remedy:
            table.add_row("", "", f"to do: {finding.remedy}")
    Console().print(table, markup=False)


def print_throughputs(found: Sequence[Throughput], provenance: Provenance) -> None:
    """Print what a machine achieves, with the provenance of its joules."""
    heads = ("operation", "precision", "on", "GFLOP/s", "GFLOP/s per W")
    table = Table(
        *(Column(head, justify="right" if place > 2 else "left") for place, head in enumerate(heads)), box=None
    )
    for one in found:
        ends = (one.energy.active_high_j, one.energy.active_low_j)
        per_joule = "-".join(_giga(one.flop / joules if joules else None) for joules in ends)
        rates = f"{_giga(one.flop_per_s_low)}-{_giga(one.flop_per_s_high)}"
        figures = (f"{_giga(one.flop_per_s)}\n{rates}", f"{_giga(one.flop_per_j)}\n{per_joule}")
        table.add_row(one.operation, one.precision, f"{one.device}, {one.engine}", *figures)
    console = Console()
    console.print(table, markup=False)
    whole = functools.reduce(operator.add, (one.energy for one in found))
    processors = f"{provenance.cpu}, {provenance.vcpus:g} processors"
    console.print(f"{processors}. Watts: active, {whole.active.method}.", soft_wrap=True)
    print_flags("all together", whole.flags)


def _giga(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e9:,.0f}"


def print_compression(compression: Mapping[str, Any] | None) -> None:
    """Print the models that a compression made, if there was one."""
    if compression is None:
        return
    from joulecache.pipelines import report

    report.print_compression(compression, Console())
    for variant in compression["variants"]:
        print_flags(variant["name"], variant["energy_per_image"]["flags"])
        if variant["finetune_energy"] is not None:
            print_flags(f"the fine-tuning of {variant['name']}", variant["finetune_energy"]["flags"])


def print_ops(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the ops with what they do and cost."""
    table = Table("op", "does", Column("us/image", justify="right"), box=None)
    for row in rows:
        cost = row["cpu_us_per_image"]
        table.add_row(row["usage"], row["does"], "not measured" if cost is None else f"{cost:,.0f}")
    console = Console()
    console.print(table, markup=False)
    console.print("CPU time on this machine, measured now: 224x224x3, from a photo of about 500x375 or 256x256.")
