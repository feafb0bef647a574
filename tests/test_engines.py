"""Builds on other runners: workers in other processes, and runners that fail. `scripts/test_cluster.py` tests Flink and Prism."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import psutil
import pytest
from caches import names_in
from processes import environment

from joulecache.pipelines import precompute
from joulecache.pipelines.building import beam_graph, shard_builder
from joulecache.pipelines.building.config import EngineError, ShardConfig
from joulecache.pipelines.building.metering import this_process
from joulecache.pipelines.building.results import Built
from joulecache.pipelines.building.shard import TransformedShard, build_shard, transform_shard
from joulecache.pipelines.building.specs import ShardSpec, read_result
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.cache.cache import verify
from joulecache.pipelines.energy import available_cpus
from joulecache.pipelines.energy.model import coefficients
from joulecache.pipelines.source import open_source
from joulecache.transforms import parse

CHAIN = "decode|resize(32)|random_crop(28) || flip_lr"


@pytest.fixture(scope="module")
def worker_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Beam process that starts each worker as another process, in another folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    folder = tmp_path_factory.mktemp("elsewhere")
    # The shell leaves its child to init: what descends from this process is metered by this process.
    orphan = ["sh", "-c", 'exec >log 2>&1; "$@" & echo $! >pid', "sh", *command]
    subprocess.run(orphan, env=environment(PATH=path), cwd=folder, check=True)
    pool = psutil.Process(int((folder / "pid").read_text()))
    try:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        yield f"localhost:{port}"
    finally:
        pool.terminate()
        psutil.wait_procs([pool])


def elsewhere(worker_pool: str) -> list[str]:
    return [
        "--runner=PortableRunner",
        "--job_endpoint=embed",
        "--environment_type=EXTERNAL",
        f"--environment_config={worker_pool}",
    ]


def names(built: Built) -> list[str]:
    return [file.name for file in built.manifest.files()]


def test_another_process_builds_the_same_files_and_meters_itself(
    tmp_path: Path,
    photo_folder: Path,
    worker_pool: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    here = precompute(photo_folder, tmp_path / "here", CHAIN, shards=4)
    assert here.workers == (this_process(),)
    monkeypatch.chdir(photo_folder.parent)
    relative = os.path.relpath(tmp_path / "there")
    there = precompute(photo_folder.name, relative, CHAIN, shards=4, beam_options=elsewhere(worker_pool))
    assert names(there) == names(here)
    assert verify(tmp_path / "there") == []
    assert there.workers
    assert this_process() not in there.workers
    spent, energy = there.manifest.energy, there.manifest.build_energy
    assert spent is not None
    assert spent.unmetered_shards == ()
    [host] = spent.parts  # workers and launcher are on one host, whose idle share counts once
    assert host.launcher is not None
    assert host.workers is not None
    assert host.worker_processes == len(there.workers)
    assert host.workers.cpu_s > 0
    assert host.launcher.cpu_s + host.workers.cpu_s == pytest.approx(energy.cpu_s)
    idle = energy.components["idle"]
    if idle is not None:  # no counters
        published = coefficients().providers["generic"]["idle_w_per_vcpu"].central
        assert idle.value_j == pytest.approx(published * available_cpus() * energy.duration_s)
        assert "each instant of a host once" in idle.scope
    assert "The processes that built shards used" in run("inspect", tmp_path / "there")[1]
    more = precompute(photo_folder, tmp_path / "there", CHAIN, variants=2)
    assert more.workers == (this_process(),)
    assert more.manifest.build_energy.cpu_s > energy.cpu_s


@pytest.mark.parametrize(
    "options",
    [
        ["--runner=PortableRunner", "--job_endpoint=localhost:1", "--job_server_timeout=1"],
        ["--runner=FlinkRunner", "--flink_master=localhost:1", "--flink_job_server_jar=/nowhere.jar"],
        ["--runner=SparkRunner", "--spark_job_server_jar=/nowhere.jar"],
        ["--runner=PrismRunner", "--prism_location=/nowhere"],
    ],
)
def test_an_engine_that_cannot_be_reached_is_one_line(
    tmp_path: Path, photo_folder: Path, run: Callable[..., tuple[int, str, str]], options: list[str]
) -> None:
    code, _, err = run("precompute", photo_folder, tmp_path / "cache", "--chain", CHAIN, "--", *options)
    assert code == 1
    [line] = [line for line in err.splitlines() if line.startswith("joulecache: ")]
    assert options[0].removeprefix("--runner=") in line
    assert "Traceback" not in err
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_long_address_in_the_error_of_an_engine_stays_whole(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # Beam's cache of downloads
    with HTTPServer(("localhost", 0), BaseHTTPRequestHandler) as server:  # which answers nothing but 501
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            jar = f"http://localhost:{server.server_port}/{'a-long-path/' * 50}job-server.jar"
            options = ["--runner=FlinkRunner", "--flink_master=localhost:1", f"--flink_job_server_jar={jar}"]
            with pytest.raises(EngineError) as caught:
                precompute(photo_folder, tmp_path / "cache", CHAIN, beam_options=options)
        finally:
            server.shutdown()
            thread.join()
    assert f" {jar}: HTTP Error 501" in str(caught.value)


@pytest.mark.slow
def test_the_answer_of_an_engine_is_shown_without_its_dump(tmp_path: Path, photo_folder: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(2))  # serves no job
    port = server.add_insecure_port("localhost:0")
    server.start()
    options = ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK"]
    try:
        with pytest.raises(
            EngineError, match=r"^the Beam pipeline failed on PortableRunner: UNIMPLEMENTED: Method not found!$"
        ):
            precompute(photo_folder, tmp_path / "cache", CHAIN, beam_options=options)
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError("Traceback (most recent call last):\n  File x\nOSError: the disk is full\n"),
            "OSError: the disk is full",
        ),
        (RuntimeError("java.io.IOException: lost\n\tat org.apache.A(A.java:3)\nCaused by: x"), "lost Caused by: x"),
        (RuntimeError("first\nsecond"), "RuntimeError: first second"),
        (RuntimeError(""), "RuntimeError: no reason given"),
    ],
)
def test_errors_of_several_lines_are_one(error: Exception, cause: str) -> None:
    assert str(beam_graph._engine_error(error, None)).endswith(cause)


def test_a_run_that_fails_keeps_its_shards_and_the_next_builds_the_rest(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = precompute(photo_folder, tmp_path / "whole", CHAIN, shards=6)
    built: list[int] = []

    def lost_after_three(spec: ShardSpec) -> TransformedShard:
        if len(built) == 3:
            raise RuntimeError("the engine is gone")
        built.append(spec.shard)
        return transform_shard(spec)

    with monkeypatch.context() as patch:
        patch.setattr(shard_builder, "transform_shard", lost_after_three)
        with pytest.raises(EngineError, match=r"the Beam pipeline failed: .*the engine is gone"):
            precompute(photo_folder, tmp_path / "cache", CHAIN, shards=6)
    assert not (tmp_path / "cache" / "manifest.json").exists()
    rest = precompute(photo_folder, tmp_path / "cache", CHAIN, shards=6)
    assert rest.resumed_shards in (2, 3)  # the third may still have been written when the run failed
    assert names(rest) == names(whole)
    assert verify(tmp_path / "cache") == []


def test_a_shard_that_two_workers_build_at_once_is_whole(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / WORK).mkdir()
    chain = parse(CHAIN)
    listed = open_source(photo_folder)
    spec = ShardSpec(str(tmp_path), 0, 1, tuple(listed.units), listed.features, ShardConfig(chain, chain))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(build_shard, [spec] * 32))
    assert len({str(result.files) for result in results}) == 1
    assert read_result(tmp_path / WORK, 0).files == results[0].files
    assert names_in(tmp_path / WORK) == {"00000.json", "index-00000.arrow"}
