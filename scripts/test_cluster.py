#!/usr/bin/env python3
"""Build the same caches on other engines and compare them, byte for byte, and their energy, with those of a local build.

    scripts/test_cluster.py [PART ...] [--allow-missing] [--data DIR] [--keep DIR]

Parts: prism, flink (embedded in Beam's job server), session (a Flink cluster of a JobManager and two TaskManagers), spark,
dask, faults (on such a cluster) and scaling (two workers against one); by default all. Each engine also writes a cache of the
records in a Beam pipeline (jc.WriteCache). Each is a set of real processes on loopback. Go builds Prism and Beam's boot
program, Maven fetches Flink and Spark, pip fetches Dask. A part whose engine cannot be fetched fails, unless --allow-missing
is given. DIR of --data may hold dogs_cats.tar.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines import (
    ENGINES,
    FLINK,
    JAVA_OPTIONS,
    MAY_USE_ONE_WORKER,
    SPARK,
    MissingError,
    Process,
    WrongError,
    beam_version,
    embedded_flink,
    end,
    last_line,
    session_cluster,
    wait_until,
    worker_pool,
)
from environment import ROOT, argument_parser, enter
from tables import print_head, print_row

CHAIN = "decode|resize(72)|random_crop(64) || flip_lr"
BUILD = ("--chain", CHAIN, "--variants", "2", "--shards", "8", "--max-reject-rate", "0.2")
PIPED = f"""
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
import joulecache as jc

source, cache, *options = sys.argv[1:]
records = jc.ReadRecords(source)
sink = jc.WriteCache(cache, {CHAIN!r}, features=records.features, variants=2, shards=8, max_reject_rate=0.2)
with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
    pipeline | records | sink
"""
WORKER_MODULE = "apache_beam.runners.worker.sdk_worker_main"
BROKEN = 5
BUILD_LIMIT_S = 1200
MEASURED = "synthetic:2000"  # long enough for its energy to be that of the shards
TOLERANCE = 0.25  # between the active energy of workers here and on an engine: 10% where nothing else runs
RESUMED_SHARDS = 2  # finished before a worker is killed
FAULTS = ("worker", "TaskManager")
PARTS = (*ENGINES, "faults", "scaling")


@dataclass(frozen=True)
class Built:
    """A finished build.

    Attributes:
        files: SHA-256 of all files, by name.
        workers: Processes that built the shards.
        duration_s: Wall time of the command, in seconds.
        workers_j: Active joules of these processes while they built shards.
        launcher_j: Active joules of the launcher and what it started, such as a job server.
    """

    files: dict[str, str]
    workers: tuple[str, ...]
    duration_s: float
    workers_j: float
    launcher_j: float


# Builds ---------------------------------------------------------------------------------------------------------------


def make_sources(work: Path, data: Path | None) -> dict[str, str]:
    """Return the sources by name: synthetic photos, a folder with some broken ones and, if available, real photos."""
    from joulecache.pipelines.source import synthetic_photo

    folder = work / "broken"
    for number in range(60):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = synthetic_photo(number)
        path.write_bytes(photo[: len(photo) // 3] if number < BROKEN else photo)
    found = {MEASURED: MEASURED, f"60 photos, {BROKEN} broken": str(folder)}
    if data is not None and (data / "dogs_cats.tar").exists():
        found["dogs_cats"] = str((data / "dogs_cats.tar").absolute())
    return found


def build(source: str, cache: Path, beam: Sequence[str] = (), extra: Sequence[str] = ()) -> Built:
    """Build a cache by the command line."""
    started = time.monotonic()
    with start_build(source, cache, beam, extra) as process:
        out, err = process.communicate(timeout=BUILD_LIMIT_S)
    if process.returncode:
        raise WrongError(f"the build of {source} failed with exit code {process.returncode}: {last_line(err)}")
    return _finished(cache, json.loads(out)["workers"], started)


def _finished(cache: Path, workers: Sequence[str], started_s: float) -> Built:
    """Return a finished build; WrongError if part of its energy is not known."""
    duration_s = time.monotonic() - started_s
    energy = json.loads((cache / "manifest.json").read_text())["energy"]
    if energy["unmetered_shards"]:
        raise WrongError(f"shards {energy['unmetered_shards']} of {cache} are not metered")
    parts = [[host[part]["active_j"] for host in energy["hosts"] if host[part]] for part in ("workers", "launcher")]
    return Built(digests(cache), tuple(workers), duration_s, *map(sum, parts))


@contextmanager
def start_build(source: str, cache: Path, beam: Sequence[str] = (), extra: Sequence[str] = ()) -> Iterator[Process]:
    """Start a build; stop it when the block ends."""
    command = [str(ROOT / ".venv/bin/joulecache"), "precompute", source, str(cache), *BUILD, *extra, "--json"]
    with _started([*command, "--", *beam] if beam else command) as process:
        yield process


def pipe(source: str, cache: Path, beam: Sequence[str]) -> Built:
    """Read records and write them as a cache in one Beam pipeline."""
    started = time.monotonic()
    with start_pipe(source, cache, beam) as process:
        _, err = process.communicate(timeout=BUILD_LIMIT_S)
    if process.returncode:
        raise WrongError(f"a pipeline of {source} failed with exit code {process.returncode}: {last_line(err)}")
    return _finished(cache, (), started)


def start_pipe(source: str, cache: Path, beam: Sequence[str]) -> AbstractContextManager[Process]:
    """Start such a pipeline; stop it when the block ends."""
    return _started([sys.executable, "-c", PIPED, source, str(cache), *beam])


@contextmanager
def _started(command: Sequence[str]) -> Iterator[Process]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JDK_JAVA_OPTIONS": JAVA_OPTIONS},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def digests(cache: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that the manifest names, from their bytes on disk."""
    body = json.loads((cache / "manifest.json").read_text())
    names = [file["name"] for split in body["splits"].values() for file in split["files"]]
    names += [body["index"]["name"], body["rejected"]["name"]]
    return {name: hashlib.sha256((cache / name).read_bytes()).hexdigest() for name in names}


# Parts ----------------------------------------------------------------------------------------------------------------


def compare(engine: str, work: Path, sources: dict[str, str], local: dict[str, Built]) -> None:
    """Build every source on an engine and print a row for each; WrongError where its files differ from the local ones.

    Of engines that always start two workers, some build must use both, but not each: the first to start may build all shards of a
    short one.
    """
    most_workers = 0
    with ENGINES[engine](work) as options:
        overhead_s = f"{build('synthetic:8', work / f'{engine}-tiny', options).duration_s:.0f}"
        for number, (name, source) in enumerate(sources.items()):
            found = build(source, work / f"{engine}-{number}", options)
            same = found.files == local[name].files
            files = f"{len(found.files)} {'same' if same else 'OTHER'}"
            both = (found, local[name])
            durations = (f"{built.duration_s:.0f}" for built in both)
            joules = (*(f"{built.workers_j:.3g}" for built in both), f"{found.launcher_j:.3g}")
            print_row(engine, name, files, len(found.workers), *durations, overhead_s if number == 0 else "", *joules)
            if not same:
                raise WrongError(f"{engine} built other files of {name} than the local build")
            other = abs(found.workers_j / local[name].workers_j - 1) > TOLERANCE
            if name == MEASURED and other and len(found.workers) == len(local[name].workers):
                raise WrongError(
                    f"the workers of {engine} used {found.workers_j:.3g} J, not {local[name].workers_j:.3g} J"
                )
            most_workers = max(most_workers, len(found.workers))
        name = next(name for name in sources if "broken" in name)
        piped = pipe(sources[name], work / f"{engine}-piped", options)
        same = piped.files == local[name].files
        files = f"{len(piped.files)} {'same' if same else 'OTHER'}"
        print_row(
            engine,
            f"{name}, WriteCache",
            files,
            "",
            f"{piped.duration_s:.0f}",
            "",
            "",
            f"{piped.workers_j:.3g}",
            "",
            "",
        )
        if not same:
            raise WrongError(f"WriteCache on {engine} wrote other files of {name} than the local build")
        if most_workers < 2 and engine not in MAY_USE_ONE_WORKER:
            raise WrongError(f"{engine} built all shards of every source in one worker")


def check_faults(work: Path, source: str, local: Built) -> None:
    """Kill a worker and a TaskManager during builds: each must succeed, or fail with a one-line error and resume when rerun."""
    for victim in FAULTS:
        cache = work / f"fault-{victim}"
        if not survives(victim, source, cache, work):
            with start_build(source, cache) as process:
                out, _ = process.communicate(timeout=BUILD_LIMIT_S)
            resumed = json.loads(out)["resumed_shards"]
            print(f"  run again: {resumed} shards were reused")
            if resumed < RESUMED_SHARDS:
                raise WrongError(f"the next build after a killed {victim} started over")
        if digests(cache) != local.files:
            raise WrongError(f"the cache differs after a killed {victim}")
        check_piped_fault(victim, work, source, local)


def check_piped_fault(victim: str, work: Path, source: str, local: Built) -> None:
    """Kill a process while a pipeline writes a cache: it must recover, or leave no cache, and the next one must write it."""
    import psutil

    cache = work / f"piped-fault-{victim}"
    with session_cluster(work) as cluster:
        with start_pipe(source, cache, cluster.options) as process:
            wait_until(lambda: len(list(cache.glob("*.arrow"))) >= RESUMED_SHARDS, "files are written", process)
            if victim == "worker":
                started = psutil.Process().children(recursive=True)
                pids = [each.pid for each in started if WORKER_MODULE in each.cmdline()]
                os.kill(pids[0], signal.SIGKILL)
            else:
                cluster.task_managers[0].kill()
            process.communicate(timeout=BUILD_LIMIT_S)
        has_manifest = (cache / "manifest.json").exists()
        if has_manifest != (process.returncode == 0):
            raise WrongError(f"a killed {victim}: exit code {process.returncode}, manifest: {has_manifest}")
    print(f"- {victim} killed in a pipeline: {'the job recovered' if has_manifest else 'it failed, without a cache'}")
    if not has_manifest:
        with start_build(source, cache) as process:
            process.communicate(timeout=BUILD_LIMIT_S)
    if digests(cache) != local.files:
        raise WrongError(f"the cache of a pipeline differs after a killed {victim}")


def survives(victim: str, source: str, cache: Path, work: Path) -> bool:
    """Kill a process of a cluster when some shards are finished; return whether the build still succeeds."""
    results = cache / ".building"
    with session_cluster(work) as cluster, start_build(source, cache, cluster.options) as process:
        wait_until(functools.partial(have_finished, results), f"{RESUMED_SHARDS} shards are finished", process)
        if victim == "worker":
            result = json.loads(min(results.glob("*.json")).read_text())
            os.kill(int(result["worker"].rpartition(":")[2]), signal.SIGKILL)
        else:
            cluster.task_managers[0].kill()
        _, err = process.communicate(timeout=BUILD_LIMIT_S)
    if process.returncode == 0:
        print(f"- {victim} killed: the job recovered")
        return True
    lines = [line for line in err.splitlines() if line.startswith("joulecache: ") and ": note: " not in line]
    has_manifest = (cache / "manifest.json").exists()
    if len(lines) != 1 or has_manifest:
        raise WrongError(f"a killed {victim}: manifest: {has_manifest}, errors: {lines}")
    print(f"- {victim} killed: {lines[0]}")
    return False


def have_finished(results: Path) -> bool:
    """Return whether enough shards are finished to see a build resume."""
    return len(list(results.glob("*.json"))) >= RESUMED_SHARDS


def print_scaling(work: Path) -> None:
    """Print how much faster two workers are than one: local worker processes, and those of Flink."""
    source = "synthetic:4000"
    local = [build(source, work / f"workers-{n}", extra=("--workers", str(n))).duration_s for n in (1, 2)]
    with worker_pool(work) as workers:
        flink = [
            build(
                source, work / f"flink-scaling-{n}", [*embedded_flink(work, n), *workers], ("--workers", "1")
            ).duration_s
            for n in (1, 2)
        ]
    for what, (one_s, two_s) in {"local worker processes": local, "Flink workers": flink}.items():
        print(f"- {source}, {what}: 1: {one_s:.0f} s, 2: {two_s:.0f} s, {one_s / two_s:.2f} times as fast")


def main(parts: Sequence[str], allow_missing: bool, data: Path | None, work: Path) -> int:
    """Run some parts; return the exit code."""
    cpus = len(os.sched_getaffinity(0))
    print(f"Beam {beam_version()}, Flink {FLINK}, Spark {SPARK}, {cpus} CPUs, chain `{CHAIN}`\n")
    sources: dict[str, str] = {}
    if set(parts) != {"scaling"}:
        sources = make_sources(work, data)
    local = {name: build(source, work / f"local-{number}") for number, (name, source) in enumerate(sources.items())}
    if not ENGINES.keys().isdisjoint(parts):
        durations = ("s", "s locally", "s for 8 photos")
        titles = ("worker processes", *durations, "J of workers", "J locally", "J of launcher and engine")
        print_head("engine", "source", "files", *titles, text_columns=3)
    missing = wrong = 0
    for part in parts:
        try:
            if part in ENGINES:
                compare(part, work, sources, local)
            elif part == "faults":
                check_faults(work, MEASURED, local[MEASURED])
            else:
                print_scaling(work)
        except MissingError as error:
            missing += 1
            print(f"missing: {part}: {error}", file=sys.stderr, flush=True)
        except (WrongError, subprocess.TimeoutExpired) as error:
            wrong += 1
            print(f"wrong: {part}: {error}", file=sys.stderr, flush=True)
    return 1 if wrong or (missing and not allow_missing) else 0


if __name__ == "__main__":
    enter("dev")
    parser = argument_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []])
    parser.add_argument("--allow-missing", action="store_true", help="skip engines that cannot be fetched")
    parser.add_argument("--data", type=Path, help="a folder with real photos")
    parser.add_argument("--keep", type=Path, help="work in this folder, and keep it")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            folder = given.keep.absolute()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulecache-cluster-")))
        sys.exit(main(given.parts or PARTS, given.allow_missing, given.data, folder))
