"""Beam engines for scripts/test_cluster.py: downloaded, started as real processes on loopback, and stopped.

Each engine is a context manager that yields the Beam options of a build on it. Workers that an engine does not start itself
are started by Beam's worker pool, without Docker. Each gets an environment with joulecache's dependencies but without
joulecache, which is staged as a wheel.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from environment import ROOT

# Job servers speak one protocol in all releases: where Maven lacks Beam's Java at Python's version, this one is used.
OLDER_JAVA = "2.62.0"
FLINK, FLINK_LINE = "1.19.2", "1.19"
SPARK = "3.5.5"
START_LIMIT_S = 120
_OPENED = (
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
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic"),
    *("sun.nio.ch", "sun.nio.cs", "sun.security.action"),
)
JAVA_OPTIONS = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED)

Process = subprocess.Popen[str]


class MissingError(Exception):
    """A requirement of an engine is not available here."""


class WrongError(Exception):
    """An engine, or a build on it, failed."""


# Processes ------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(words: Sequence[object], folder: Path, port: int | None = None) -> Iterator[Process]:
    """Run a process until the block ends, with its output in a log in `folder`; wait until it listens on `port`."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{Path(str(words[0])).name}-{free_port()}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            list(map(str, words)), cwd=folder, stdout=out, stderr=out, text=True, start_new_session=True
        )
    try:
        wait_until(lambda: port is None or _listens(port), f"{words[0]} listens on port {port}", process, log)
        yield process
    finally:
        end(process)


def end(process: Process) -> None:
    """End a process and all its descendants."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def wait_until(true: Callable[[], bool], what: str, process: Process | None = None, log: Path | None = None) -> None:
    """Wait until a condition holds; WrongError after two minutes, or when the process ends."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while not true():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            output = last_line(log.read_text(errors="replace")) if log else ""
            raise WrongError(f"timed out waiting until {what}: {output}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def last_line(text: str) -> str:
    """Return the last line that is not blank, shortened."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "no output")


def _fetch(words: Sequence[object], what: str, **environment: str) -> None:
    """Run a command that downloads something; MissingError if it fails."""
    command = list(map(str, words))
    if shutil.which(command[0]) is None:
        raise MissingError(f"{what}: {command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        output = done.stdout + done.stderr
        errors = [line for line in output.splitlines() if "error" in line.lower()]
        raise MissingError(f"{what}: {(errors or [last_line(output)])[0][:300]}")


# Parts of engines -----------------------------------------------------------------------------------------------------


@functools.cache
def _wheel(work: Path) -> Path:
    """Build the wheel that is staged."""
    out = work / "dist"
    options = ("--no-isolation", "--wheel", "--outdir", str(out))
    subprocess.run([sys.executable, "-m", "build", *options, ROOT], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def beam_version() -> str:
    """Return the version of Beam that is installed."""
    return metadata.version("apache-beam")


def _go_program(package: str, work: Path) -> Path:
    """Build one of Beam's Go programs."""
    module = f"github.com/apache/beam/sdks/v2/{package}@v{beam_version()}"
    _fetch(["go", "install", module], package, GOBIN=str(work / "bin"))
    return work / "bin" / Path(package).name


@functools.cache
def _jar(work: Path, name: str, main: str, artifacts: tuple[str, ...]) -> Path:
    """Fetch Maven artifacts and their dependencies; return a jar that runs `main` with all of them on its class path."""
    problems = []
    for version in dict.fromkeys((beam_version(), OLDER_JAVA)):
        folder = work / "jars" / f"{name}-{version}"
        folder.mkdir(parents=True)
        project = folder / "pom.xml"
        project.write_text(_maven_project([artifact.format(beam=version) for artifact in artifacts]))
        command = ["mvn", "-B", "-q", "-f", project, "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
        try:
            _fetch([*command, "-DincludeScope=runtime"], f"{name} for Beam {version}")
        except MissingError as error:
            problems.append(str(error))
            continue
        path = folder / "start.jar"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("META-INF/MANIFEST.MF", _jar_manifest(main, folder))
        print(f"{name}: Beam's Java {version}", file=sys.stderr)
        return path
    raise MissingError("; ".join(problems))


def _maven_project(artifacts: Sequence[str]) -> str:
    parts = (artifact.split(":") for artifact in artifacts)
    wanted = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in parts
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>cluster</artifactId>"
        f"<version>1</version><dependencies>{wanted}</dependencies></project>"
    )


def _jar_manifest(main: str, folder: Path) -> str:
    """Return a manifest with all jars of a folder on the class path; lines over 72 bytes are continued after a space."""
    names = " ".join(sorted(path.name for path in folder.glob("*.jar")))
    lines = ("Manifest-Version: 1.0", f"Main-Class: {main}", f"Class-Path: {names}")
    folded = ((line[:70], *(line[at : at + 69] for at in range(70, len(line), 69))) for line in lines)
    return "".join("\n ".join(parts) + "\n" for parts in folded)


def flink_jar(work: Path) -> Path:
    """Fetch Flink and Beam's runner for it."""
    flink = (f"org.apache.flink:{part}:{FLINK}" for part in ("flink-clients", "flink-streaming-java", "flink-runtime"))
    runners = (f"beam-runners-flink-{FLINK_LINE}", "beam-runners-java-job-service")
    beam = (f"org.apache.beam:{part}:{{beam}}" for part in runners)
    artifacts = (*beam, *flink, "org.slf4j:slf4j-simple:1.7.36")
    return _jar(work, "flink", "org.apache.beam.runners.flink.FlinkJobServerDriver", artifacts)


# Starts a worker in a separate environment, into which Beam's boot program installs the wheel.
_START_WORKER = """#!/bin/sh
set -e
home=$(mktemp -d "{folder}/worker-XXXXXX")
"{python}" -m venv --without-pip "$home"
"$home/bin/python" -c "import site, pathlib
pathlib.Path(site.getsitepackages()[0], 'dependencies.pth').write_text('{folder}/dependencies')"
cd "$home"
PATH="$home/bin:$PATH" RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 exec "{boot}" "$@" --semi_persist_dir="$home"
"""


@contextmanager
def worker_pool(work: Path) -> Iterator[list[str]]:
    """Run Beam's worker pool; yield the options that make an engine use it."""
    boot, folder = _go_program("python/container", work), work / "workers"
    folder.mkdir(exist_ok=True)
    start, dependencies = folder / "start", folder / "dependencies"
    start.write_text(_START_WORKER.format(folder=folder, python=sys.executable, boot=boot))
    start.chmod(0o755)
    if not dependencies.exists():
        dependencies.mkdir()
        [site] = (ROOT / ".venv/lib").glob("python3*/site-packages")
        for path in site.iterdir():
            if "joulecache" not in path.name.lower():
                (dependencies / path.name).symlink_to(path)
    port = free_port()
    words = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", port]
    with running([*words, "--container_executable", start], folder, port):
        yield [
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{port}",
            f"--extra_package={_wheel(work)}",
            "--environment_cache_millis=60000",  # otherwise Spark ends its workers after every stage, and starts others
        ]


# Engines --------------------------------------------------------------------------------------------------------------


@contextmanager
def _prism(work: Path) -> Iterator[list[str]]:
    program = _go_program("go/cmd/prism", work)
    with worker_pool(work) as workers:
        yield ["--runner=PrismRunner", f"--prism_location={program}", *workers]


def embedded_flink(work: Path, parallelism: int = 2) -> list[str]:
    """Return the options of a build on a Flink inside Beam's job server, without those of its workers."""
    server = ["--runner=FlinkRunner", "--flink_master=[local]", f"--flink_job_server_jar={flink_jar(work)}"]
    return [*server, f"--parallelism={parallelism}", f"--sdk_worker_parallelism={parallelism}"]


@contextmanager
def _flink(work: Path) -> Iterator[list[str]]:
    with worker_pool(work) as workers:
        yield [*embedded_flink(work), *workers]


@dataclass(frozen=True)
class Session:
    """A Flink cluster.

    Attributes:
        options: Beam options of a build on it.
        task_managers: Processes of its TaskManagers.
    """

    options: list[str]
    task_managers: tuple[Process, ...]


_FLINK_SETTINGS: dict[str, object] = {
    "jobmanager.rpc.address": "localhost",
    "rest.address": "localhost",
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
}


@contextmanager
def session_cluster(work: Path) -> Iterator[Session]:
    """Run a Flink session cluster of one JobManager and two TaskManagers with two slots each."""
    start = flink_jar(work)
    rest, rpc = free_port(), free_port()
    conf = Path(tempfile.mkdtemp(dir=work, prefix="session-"))
    settings = {**_FLINK_SETTINGS, "jobmanager.rpc.port": rpc, "rest.port": rest, "io.tmp.dirs": conf}
    (conf / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    java = ["java", *JAVA_OPTIONS.split(), "-cp", f"{start.parent}/*"]
    manager = [*java, "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", conf]
    taker = [*java, "-Xmx1g", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", "--configDir", conf]
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(worker_pool(work))
        stack.enter_context(running(manager, conf, rest))
        takers = tuple(stack.enter_context(running(taker, conf)) for _ in range(2))
        wait_until(lambda: _slots(rest) == 4, "both TaskManagers have joined")
        options = ["--runner=FlinkRunner", f"--flink_master=localhost:{rest}", f"--flink_job_server_jar={start}"]
        yield Session([*options, "--parallelism=2", *workers], takers)


def _slots(port: int) -> int:
    """Return the number of slots of a Flink cluster."""
    overview = f"http://localhost:{port}/overview"
    with contextlib.suppress(OSError, ValueError, KeyError), urllib.request.urlopen(overview, timeout=5) as answer:
        return int(json.load(answer)["slots-total"])
    return 0


@contextmanager
def _session(work: Path) -> Iterator[list[str]]:
    with session_cluster(work) as cluster:
        yield cluster.options


@contextmanager
def _spark(work: Path) -> Iterator[list[str]]:
    beam = (f"org.apache.beam:{part}:{{beam}}" for part in ("beam-runners-spark-3", "beam-runners-java-job-service"))
    parts = (f"org.apache.spark:{part}_2.12:{SPARK}" for part in ("spark-core", "spark-streaming", "spark-sql"))
    start = _jar(work, "spark", "org.apache.beam.runners.spark.SparkJobServerDriver", (*beam, *parts))
    options = ["--runner=SparkRunner", "--spark_master_url=local[2]", f"--spark_job_server_jar={start}"]
    with worker_pool(work) as workers:
        yield [*options, "--sdk_worker_parallelism=2", *workers]


@contextmanager
def _dask(work: Path) -> Iterator[list[str]]:
    """Run a Dask cluster of two worker processes, and use twice as many partitions as it has threads."""
    packages = work / "dask"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", packages]
    _fetch([*pip, "--constraint", ROOT / "constraints.txt", "dask[distributed]"], "Dask")
    port = free_port()
    dask = [sys.executable, "-m"]
    scheduler = [*dask, "distributed.cli.dask_scheduler", "--port", port, "--no-dashboard"]
    worker = [*dask, "distributed.cli.dask_worker", f"localhost:{port}", "--no-dashboard"]
    os.environ["PYTHONPATH"] = str(packages)
    try:
        with (
            running(scheduler, packages, port),
            running([*worker, "--nworkers", 2, "--nthreads", 1], work / "dask-workers"),
        ):
            runner = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
            yield [runner, f"--dask_client_address=localhost:{port}", "--dask_npartitions=8"]
    finally:
        del os.environ["PYTHONPATH"]


ENGINES = {"prism": _prism, "flink": _flink, "session": _session, "spark": _spark, "dask": _dask}
MAY_USE_ONE_WORKER = {"prism", "flink"}
"""Engines that may build all shards in one worker.

Prism starts one for a pipeline, whatever the options. In an embedded Flink, the subtasks of all stages take turns in asking for a
worker, in the order in which they start: both subtasks of the stage that builds shards may get the same one.
"""
