#!/usr/bin/env python3
"""Build the same caches on other engines, real processes on loopback, and compare them with the local build, byte for byte.

    scripts/test_cluster.py [ENGINE ...] [--allow-missing] [--data DIR] [--keep DIR]

ENGINE: prism, flink (embedded), session (a Flink cluster of a JobManager and two TaskManagers), spark, dask, faults (on such a cluster),
scaling (2 workers against 1); without any, all of them. What an engine needs is fetched: Prism and Beam's boot program by Go, Flink and
Spark by Maven, Dask by pip. What cannot be had is said, and fails unless --allow-missing is given. DIR of --data may hold dogs_cats.tar.
Workers that an engine does not start itself are started by Beam's worker pool, without Docker, each in an environment that has
joulecache's dependencies but not joulecache: that is staged as a wheel, and the folder they run in is none of ours.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from environment import ROOT, enter

# The job servers speak one protocol from release to release: where their Java is not to be had at Python's version, this one does.
OLDER_JAVA = "2.62.0"
FLINK, FLINK_LINE = "1.19.2", "1.19"
SPARK = "3.5.5"
CHAIN = "decode|resize(72)|random_crop(64) || flip_lr"
BUILD = ("--chain", CHAIN, "--variants", "2", "--shards", "8")
BROKEN = 5
BUILD_LIMIT_S = 1200
OPENED = (
    *(
        "java.lang",
        "java.lang.invoke",
        "java.lang.reflect",
        "java.io",
        "java.net",
        "java.nio",
        "java.text",
        "java.time",
    ),
    *(
        "java.util",
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "sun.nio.ch",
        "sun.nio.cs",
        "sun.security.action",
    ),
)
JAVA_OPTIONS = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED)


class MissingError(Exception):
    """Something that an engine needs cannot be had here."""


class WrongError(Exception):
    """An engine did not do what it must."""


@dataclass(frozen=True)
class Built:
    """What a build gave: the SHA-256 of all files by name, the processes that made them, and how long it took."""

    files: dict[str, str]
    workers: tuple[str, ...]
    duration_s: float


# What is built ---------------------------------------------------------------------------------------------------------


def sources(work: Path, data: Path | None) -> dict[str, str]:
    """Return what is built, by name: drawn photos, a folder of which some are broken, and real photos where they are."""
    from joulecache.pipelines.source import synthetic_photo

    folder = work / "broken"
    for number in range(60):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = synthetic_photo(number)
        path.write_bytes(photo[: len(photo) // 3] if number < BROKEN else photo)
    found = {"synthetic:2000": "synthetic:2000", "60 photos, 5 broken": str(folder)}
    if data is not None and (data / "dogs_cats.tar").exists():
        found["dogs_cats"] = str((data / "dogs_cats.tar").absolute())
    return found


def build(source: str, cache: Path, beam: Sequence[str] = (), extra: Sequence[str] = ()) -> Built:
    """Build a cache in a process of its own, as people do, and read what it became."""
    started = time.monotonic()
    with start_build(source, cache, beam, extra) as process:
        out, err = process.communicate(timeout=BUILD_LIMIT_S)
    if process.returncode:
        raise WrongError(f"the build of {source} ended with {process.returncode}: {last_line(err)}")
    body = json.loads(out)
    return Built(digests(cache), tuple(body["workers"]), time.monotonic() - started)


@contextmanager
def start_build(
    source: str, cache: Path, beam: Sequence[str] = (), extra: Sequence[str] = ()
) -> Iterator[subprocess.Popen]:
    """Start a build; it is ended with the block."""
    words = [
        ROOT / ".venv/bin/joulecache",
        "precompute",
        source,
        cache,
        *BUILD,
        "--max-reject-rate",
        "0.2",
        *extra,
        "--json",
    ]
    words += ["--", *beam] if beam else []
    process = subprocess.Popen(
        words,
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
    """Return the SHA-256 of the files that the manifest names, as they lie there."""
    body = json.loads((cache / "manifest.json").read_text())
    names = [file["name"] for split in body["splits"].values() for file in split["files"]]
    names += [body["index"]["name"], body["rejected"]["name"]]
    return {name: hashlib.sha256((cache / name).read_bytes()).hexdigest() for name in names}


# Processes -------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    words: Sequence[object], folder: Path, port: int | None = None, **environment: str
) -> Iterator[subprocess.Popen]:
    """Run a process, with what it says in a file of `folder`, until the block ends; wait until it listens on `port`."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{Path(str(words[0])).name}-{free_port()}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=folder,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        wait_until(lambda: port is None or listens(port), f"{words[0]} listens on port {port}", process, log)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End a process with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def wait_until(
    true: Callable[[], bool], what: str, process: subprocess.Popen | None = None, log: Path | None = None
) -> None:
    """Wait, for two minutes at most; WrongError when it does not come true or the process ends."""
    deadline_s = time.monotonic() + 120
    while not true():
        gone = process is not None and process.poll() is not None
        if gone or time.monotonic() > deadline_s:
            said = last_line(log.read_text(errors="replace")) if log else ""
            raise WrongError(f"waited in vain until {what}: {said}")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Say whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def fetched(words: Sequence[object], what: str, **environment: str) -> str:
    """Run a command that fetches something; MissingError where it fails."""
    if shutil.which(str(words[0])) is None:
        raise MissingError(f"{what}: {words[0]} is not installed")
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "error" in line]
        raise MissingError(f"{what}: {(errors or [last_line(done.stdout + done.stderr)])[0][:300]}")
    return done.stdout


# Engines: each gives the options that a build on it takes ---------------------------------------------------------------


@functools.cache
def wheel(work: Path) -> Path:
    """Build the wheel that is staged."""
    out = work / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def beam_version() -> str:
    """Return the version of Beam that builds are made with."""
    return metadata.version("apache-beam")


def go_program(package: str, work: Path) -> Path:
    """Build one of Beam's programs by Go."""
    fetched(
        ["go", "install", f"github.com/apache/beam/sdks/v2/{package}@v{beam_version()}"],
        package,
        GOBIN=str(work / "bin"),
    )
    return work / "bin" / Path(package).name


@functools.cache
def jar(work: Path, name: str, main: str, artifacts: tuple[str, ...]) -> Path:
    """Fetch artifacts with all that they need; return a jar that starts `main` and has them all in its class path."""
    tried = []
    for version in dict.fromkeys((beam_version(), OLDER_JAVA)):
        folder = work / "jars" / f"{name}-{version}"
        folder.mkdir(parents=True)
        wanted = "".join(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
                *artifact.format(beam=version).split(":")
            )
            for artifact in artifacts
        )
        (folder / "pom.xml").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>cluster</artifactId>"
            f"<version>1</version><dependencies>{wanted}</dependencies></project>"
        )
        try:
            words = ["mvn", "-B", "-q", "-f", folder / "pom.xml", "dependency:copy-dependencies"]
            fetched([*words, f"-DoutputDirectory={folder}", "-DincludeScope=runtime"], f"{name} for Beam {version}")
        except MissingError as error:
            tried.append(str(error))
            continue
        path = folder / "start.jar"
        names = " ".join(sorted(each.name for each in folder.glob("*.jar")))
        text = f"Manifest-Version: 1.0\nMain-Class: {main}\nClass-Path: {names}\n"
        folded = "".join(
            line[:70] + "".join("\n " + line[at : at + 69] for at in range(70, len(line), 69)) + "\n"
            for line in text.splitlines()
        )
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("META-INF/MANIFEST.MF", folded)
        print(f"{name}: Beam's Java {version}", file=sys.stderr)
        return path
    raise MissingError("; ".join(tried))


def flink_jar(work: Path) -> Path:
    """Fetch Flink with Beam's runner on it."""
    flink = (f"org.apache.flink:{part}:{FLINK}" for part in ("flink-clients", "flink-streaming-java", "flink-runtime"))
    beam = (
        f"org.apache.beam:{part}:{{beam}}"
        for part in (f"beam-runners-flink-{FLINK_LINE}", "beam-runners-java-job-service")
    )
    return jar(
        work,
        "flink",
        "org.apache.beam.runners.flink.FlinkJobServerDriver",
        (*beam, *flink, "org.slf4j:slf4j-simple:1.7.36"),
    )


@contextmanager
def worker_pool(work: Path) -> Iterator[list[str]]:
    """Run Beam's worker pool; every worker gets an environment of its own, into which Beam's boot program installs the wheel."""
    boot, folder = go_program("python/container", work), work / "workers"
    folder.mkdir(exist_ok=True)
    start = folder / "start"
    site = next((ROOT / ".venv/lib").glob("python3*")) / "site-packages"
    start.write_text(
        "#!/bin/sh\nset -e\n"
        f'home=$(mktemp -d "{folder}/worker-XXXXXX")\n'
        f'"{sys.executable}" -m venv --without-pip "$home"\n'
        f'"$home/bin/python" -c "import site, pathlib; pathlib.Path(site.getsitepackages()[0], \'dependencies.pth\')'
        f".write_text('{folder}/dependencies')\"\n"
        'cd "$home"\nPATH="$home/bin:$PATH" RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 '
        f'exec "{boot}" "$@" --semi_persist_dir="$home"\n'
    )
    start.chmod(0o755)
    # all that joulecache needs, without joulecache
    dependencies = folder / "dependencies"
    if not dependencies.exists():
        dependencies.mkdir()
        for path in site.iterdir():
            if "joulecache" not in path.name.lower():
                (dependencies / path.name).symlink_to(path)
    port = free_port()
    words = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", port]
    with running([*words, "--container_executable", start], folder, port):
        yield [
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{port}",
            f"--extra_package={wheel(work)}",
            "--environment_cache_millis=60000",  # or Spark lets go of its workers after every stage, and starts others
        ]


@contextmanager
def prism(work: Path) -> Iterator[list[str]]:
    """Run builds on Prism."""
    program = go_program("go/cmd/prism", work)
    with worker_pool(work) as workers:
        yield ["--runner=PrismRunner", f"--prism_location={program}", *workers]


@contextmanager
def flink(work: Path) -> Iterator[list[str]]:
    """Run builds on a Flink inside Beam's job server."""
    with worker_pool(work) as workers:
        yield [
            *("--runner=FlinkRunner", "--flink_master=[local]", f"--flink_job_server_jar={flink_jar(work)}"),
            *("--parallelism=2", "--sdk_worker_parallelism=2", *workers),
        ]


@dataclass(frozen=True)
class Session:
    """A Flink cluster: what a build on it takes, and its TaskManagers."""

    options: list[str]
    task_managers: tuple[subprocess.Popen, ...]


@contextmanager
def session_cluster(work: Path) -> Iterator[Session]:
    """Run a Flink session cluster of one JobManager and two TaskManagers, with two slots each."""
    start = flink_jar(work)
    rest, rpc = free_port(), free_port()
    conf = Path(tempfile.mkdtemp(dir=work, prefix="session-"))
    settings = {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": rpc,
        "rest.address": "localhost",
        "rest.port": rest,
        "jobmanager.memory.process.size": "1g",
        "taskmanager.host": "localhost",
        "taskmanager.numberOfTaskSlots": 2,
        "taskmanager.cpu.cores": 1.0,
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.task.heap.size": "512m",
        "taskmanager.memory.task.off-heap.size": "64m",
        "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m",
        "taskmanager.memory.managed.size": "128m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "128m",
        "taskmanager.memory.jvm-overhead.max": "128m",
        "cluster.evenly-spread-out-slots": "true",
        "classloader.resolve-order": "parent-first",
        "classloader.check-leaked-classloader": "false",
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 3,
        "restart-strategy.fixed-delay.delay": "1 s",
        "heartbeat.interval": 1000,
        "heartbeat.timeout": 5000,
        "io.tmp.dirs": conf,
    }
    (conf / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    java = ["java", *JAVA_OPTIONS.split(), "-cp", f"{start.parent}/*"]
    manager = [*java, "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", conf]
    taker = [*java, "-Xmx1g", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", "--configDir", conf]
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(worker_pool(work))
        stack.enter_context(running(manager, conf, rest))
        takers = tuple(stack.enter_context(running(taker, conf)) for _ in range(2))
        wait_until(lambda: slots(rest) == 4, "both TaskManagers have joined")
        options = ["--runner=FlinkRunner", f"--flink_master=localhost:{rest}", f"--flink_job_server_jar={start}"]
        yield Session([*options, "--parallelism=2", *workers], takers)


def slots(port: int) -> int:
    """Return the slots of a Flink cluster."""
    import urllib.request

    overview = f"http://localhost:{port}/overview"
    with contextlib.suppress(OSError, ValueError, KeyError), urllib.request.urlopen(overview, timeout=5) as answer:
        return int(json.load(answer)["slots-total"])
    return 0


@contextmanager
def session(work: Path) -> Iterator[list[str]]:
    """Run builds on a session cluster."""
    with session_cluster(work) as cluster:
        yield cluster.options


@contextmanager
def spark(work: Path) -> Iterator[list[str]]:
    """Run builds on a local Spark."""
    beam = (f"org.apache.beam:{part}:{{beam}}" for part in ("beam-runners-spark-3", "beam-runners-java-job-service"))
    parts = (f"org.apache.spark:{part}_2.12:{SPARK}" for part in ("spark-core", "spark-streaming", "spark-sql"))
    start = jar(work, "spark", "org.apache.beam.runners.spark.SparkJobServerDriver", (*beam, *parts))
    with worker_pool(work) as workers:
        yield [
            *("--runner=SparkRunner", "--spark_master_url=local[2]", f"--spark_job_server_jar={start}"),
            *("--sdk_worker_parallelism=2", *workers),
        ]


@contextmanager
def dask(work: Path) -> Iterator[list[str]]:
    """Run builds on a Dask cluster of two worker processes, with twice as many partitions."""
    place = work / "dask"
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        place,
        "--constraint",
        ROOT / "constraints.txt",
    ]
    fetched([*words, "dask[distributed]"], "Dask")
    port = free_port()
    os.environ["PYTHONPATH"] = str(place)
    try:
        with running(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", port, "--no-dashboard"], place, port
        ):
            words = [sys.executable, "-m", "distributed.cli.dask_worker", f"localhost:{port}", "--no-dashboard"]
            with running([*words, "--nworkers", 2, "--nthreads", 1], work / "dask-workers"):
                runner = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
                yield [runner, f"--dask_client_address=localhost:{port}", "--dask_npartitions=8"]
    finally:
        del os.environ["PYTHONPATH"]


LONE_WORKER = {"prism"}  # it starts one worker for a pipeline's environment, whatever the options
ENGINES = {"prism": prism, "flink": flink, "session": session, "spark": spark, "dask": dask}


def compare(engine: str, work: Path, wanted: dict[str, str], local: dict[str, Built]) -> None:
    """Build every source on an engine, and print a row for each; WrongError where it is not what the local build gave."""
    with ENGINES[engine](work) as options:
        started = time.monotonic()
        build("synthetic:8", work / f"{engine}-tiny", options)
        overhead_s = time.monotonic() - started
        for number, (name, source) in enumerate(wanted.items()):
            found = build(source, work / f"{engine}-{number}", options)
            same = found.files == local[name].files
            cells = [engine, name, f"{len(found.files)} {'same' if same else 'OTHER'}", len(found.workers)]
            cells += [
                f"{found.duration_s:.0f}",
                f"{local[name].duration_s:.0f}",
                f"{overhead_s:.0f}" if number == 0 else "",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            if not same:
                raise WrongError(f"{engine} gave other files than the local build of {name}")
            if len(found.workers) < 2 and engine not in LONE_WORKER:
                raise WrongError(f"{engine} made all shards of {name} in one worker")


# Faults ----------------------------------------------------------------------------------------------------------------


def two_finished(results: Path) -> bool:
    """Return whether at least two shards are finished."""
    return len(list(results.glob("*.json"))) >= 2


def faults(work: Path, local: dict[str, Built]) -> None:
    """Kill a worker and a TaskManager in the midst of builds: a build ends whole, or in one line and goes on when it is run again."""
    source = "synthetic:2000"
    for what in ("worker", "TaskManager"):
        cache = work / f"fault-{what}"
        with session_cluster(work) as cluster, start_build(source, cache, cluster.options) as process:
            results = cache / ".building"
            wait_until(functools.partial(two_finished, results), "two shards are finished", process)
            if what == "worker":
                [first, *_] = sorted(results.glob("*.json"))
                os.kill(int(json.loads(first.read_text())["worker"].rpartition(":")[2]), signal.SIGKILL)
            else:
                cluster.task_managers[0].kill()
            out, err = process.communicate(timeout=BUILD_LIMIT_S)
        lines = [line for line in err.splitlines() if line.startswith("joulecache: ")]
        if process.returncode == 0:
            print(f"- {what} killed: the job recovered")
        else:
            if len(lines) != 1 or (cache / "manifest.json").exists():
                raise WrongError(f"a killed {what}: {len(lines)} lines, manifest: {(cache / 'manifest.json').exists()}")
            print(f"- {what} killed: {lines[0]}")
            with start_build(source, cache) as process:
                out, _ = process.communicate(timeout=BUILD_LIMIT_S)
            print(f"  run again: {json.loads(out)['resumed_shards']} shards were there")
            if json.loads(out)["resumed_shards"] < 2:
                raise WrongError(f"after a killed {what} the next build began anew")
        if digests(cache) != local[source].files:
            raise WrongError(f"after a killed {what} the cache is another one")


# Scaling ---------------------------------------------------------------------------------------------------------------


def scaling(work: Path) -> None:
    """Print how much faster two workers are than one: threads here, and worker processes of Flink."""
    source, times = "synthetic:4000", {}
    for count in (1, 2):
        times["threads here", count] = build(
            source, work / f"threads-{count}", extra=("--workers", str(count))
        ).duration_s
    with worker_pool(work) as workers:
        for count in (1, 2):
            options = ["--runner=FlinkRunner", "--flink_master=[local]", f"--flink_job_server_jar={flink_jar(work)}"]
            options += [f"--parallelism={count}", f"--sdk_worker_parallelism={count}", *workers]
            cache = work / f"flink-scaling-{count}"
            times["workers of Flink", count] = build(source, cache, options, extra=("--workers", "1")).duration_s
    for what in dict.fromkeys(name for name, _ in times):
        one_s, two_s = times[what, 1], times[what, 2]
        print(f"- {source}, {what}: 1 takes {one_s:.0f} s, 2 take {two_s:.0f} s: {one_s / two_s:.2f} times as fast")


def main(chosen: Sequence[str], allow_missing: bool, data: Path | None, work: Path) -> int:
    """Run what is chosen; return the exit code."""
    print(
        f"Beam {beam_version()}, Flink {FLINK}, Spark {SPARK}, {len(os.sched_getaffinity(0))} CPUs, chain `{CHAIN}`\n"
    )
    wanted, local = {}, {}
    if set(chosen) != {"scaling"}:
        wanted = sources(work, data)
        local = {name: build(source, work / f"local-{number}") for number, (name, source) in enumerate(wanted.items())}
    if not ENGINES.keys().isdisjoint(chosen):
        print(
            "| engine | source | files | worker processes | s | s here | s for 8 photos |\n|---|---|---|---:|---:|---:|---:|"
        )
    missing = wrong = 0
    for part in chosen:
        try:
            if part in ENGINES:
                compare(part, work, wanted, local)
            elif part == "faults":
                faults(work, local)
            else:
                scaling(work)
        except MissingError as error:
            missing += 1
            print(f"missing: {part}: {error}", file=sys.stderr, flush=True)
        except (WrongError, subprocess.TimeoutExpired) as error:
            wrong += 1
            print(f"wrong: {part}: {error}", file=sys.stderr, flush=True)
    return 1 if wrong or (missing and not allow_missing) else 0


PARTS = (*ENGINES, "faults", "scaling")

if __name__ == "__main__":
    enter("dev")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="ENGINE", choices=[*PARTS, []])
    parser.add_argument("--allow-missing", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            folder = given.keep.absolute()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulecache-cluster-")))
        sys.exit(main(given.parts or PARTS, given.allow_missing, given.data, folder))
