"""Worker processes of a build: the same bytes, metered, and no fault of one of them loses anything."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from caches import build, hashes, is_clean
from processes import environment, run_python

from joulecache.pipelines import precompute, verify
from joulecache.pipelines.building import worker_pool
from joulecache.pipelines.building.config import EngineError
from joulecache.pipelines.building.metering import this_process
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.building.worker_pool import worker_count

CHAIN = "decode|resize(24)|random_crop(16) || flip_lr"
OPTIONS: dict[str, Any] = {"variants": 2, "shards": 6, "seed": 3}

KILLER = """
from dataclasses import dataclass
import os, pathlib, signal
from joulecache.transforms import Op

@dataclass(frozen=True)
class {name}(Op):
    def pixels(self, image, drawn):
        {body}
        return image
"""
ONCE = """
        try:
            pathlib.Path({flag!r}).touch(exist_ok=False)
        except FileExistsError:
            return image
        os.kill(os.getpid(), signal.SIGKILL)"""


def children(of: int | None = None) -> list[psutil.Process]:
    """Return the worker processes of a process, without what other tests started."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("building.worker" in word for word in child.cmdline()):
                found.append(child)
    return found


@pytest.fixture(scope="module")
def expected(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build in this process."""
    return hashes(build(photo_folder, tmp_path_factory.mktemp("here") / "cache", CHAIN, **OPTIONS, workers=1))


@pytest.fixture
def op_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path for modules with ops."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_builds_the_same_bytes_and_is_metered(
    tmp_path: Path, photo_folder: Path, expected: dict[str, str], workers: int
) -> None:
    built = precompute(photo_folder, tmp_path / "cache", CHAIN, **OPTIONS, workers=workers)
    assert hashes(built.manifest) == expected
    assert is_clean(tmp_path / "cache")
    assert verify(tmp_path / "cache") == []
    assert this_process() not in built.workers
    assert 1 <= len(built.workers) <= workers
    assert built.manifest.build_energy is not None
    assert built.manifest.build_energy.cpu_s > 0.3  # the imports of the workers alone
    assert children() == []


def test_a_few_images_are_built_in_this_process(tmp_path: Path, photo_folder: Path) -> None:
    assert precompute(photo_folder, tmp_path / "cache", CHAIN, **OPTIONS).workers == (this_process(),)


def test_workers_build_from_a_thread(tmp_path: Path, photo_folder: Path, expected: dict[str, str]) -> None:
    found: list[dict[str, str]] = []

    def work() -> None:
        found.append(hashes(build(photo_folder, tmp_path / "cache", CHAIN, **OPTIONS, workers=2)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [expected]


def test_a_script_without_a_main_guard_and_with_an_op_of_its_own(tmp_path: Path, photo_folder: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import tensorflow  # starts threads
from dataclasses import dataclass
import joulecache as jc

print("once")

@dataclass(frozen=True)
class Invert(jc.Op):
    def pixels(self, image, drawn):
        return 255 - image

built = jc.precompute({str(photo_folder)!r}, {str(tmp_path / "cache")!r},
    jc.parse("decode|resize(8)|invert", ops={{"invert": Invert}}), shards=4, workers=2)
print(len(built.workers))
"""
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["once", "2"]


def test_what_an_op_prints_does_not_mix_with_the_result(tmp_path: Path, photo_folder: Path, op_module: Path) -> None:
    (op_module / "loud.py").write_text(KILLER.format(name="Loud", body="print('inside')"))
    done = run_python(
        "from joulecache.pipelines.cli import main; main()",
        *("precompute", photo_folder, tmp_path / "cache", "--chain", "decode|resize(8)|loud"),
        *("--ops", "loud", "--workers", "2", "--shards", "2", "--json"),
        cwd=op_module,
    )
    assert json.loads(done.stdout)["workers"]
    assert "inside" in done.stderr


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_and_its_shard_is_built_again(
    tmp_path: Path, photo_folder: Path, op_module: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (op_module / "once_killed.py").write_text(
        KILLER.format(name="OnceKilled", body=ONCE.format(flag=str(tmp_path / "flag")))
    )
    import once_killed  # type: ignore[import-not-found]

    from joulecache.transforms import ops_of, parse

    chain = parse("decode|resize(8)|once_killed", ops_of(once_killed))
    with caplog.at_level(logging.WARNING, "joulecache"):
        built = precompute(photo_folder, tmp_path / "cache", chain, shards=4, workers=2)
    [note] = [record.getMessage() for record in caplog.records if "worker process" in record.getMessage()]
    assert "was stopped by SIGKILL, perhaps for lack of memory: building its shards again" in note
    assert built.manifest.rejected.records == 0
    assert is_clean(tmp_path / "cache")
    (tmp_path / "flag").touch()
    alone = build(photo_folder, tmp_path / "alone", chain, shards=4, workers=1)
    assert hashes(built.manifest) == hashes(alone)


def test_a_shard_that_ends_every_worker_fails_the_build_in_one_line(
    tmp_path: Path, photo_folder: Path, op_module: Path
) -> None:
    (op_module / "always_killed.py").write_text(
        KILLER.format(name="AlwaysKilled", body="os.kill(os.getpid(), signal.SIGSEGV)")
    )
    import always_killed  # type: ignore[import-not-found]

    from joulecache.transforms import ops_of, parse

    chain = parse("decode|resize(8)|always_killed", ops_of(always_killed))
    with pytest.raises(EngineError, match=r"^a worker process was stopped by SIGSEGV twice while it built shard \d"):
        precompute(photo_folder, tmp_path / "cache", chain, shards=4, workers=2)
    assert not (tmp_path / "cache" / "manifest.json").exists()
    assert children() == []


def test_an_op_that_cannot_be_imported_by_workers_is_one_line(
    tmp_path: Path, photo_folder: Path, op_module: Path
) -> None:
    (op_module / "launcher_only.py").write_text(
        "import os, sys\nif 'pytest' not in sys.modules:\n    raise RuntimeError('not here')\n"
        + KILLER.format(name="LauncherOnly", body="pass")
    )
    import launcher_only  # type: ignore[import-not-found]

    from joulecache.transforms import ops_of, parse

    chain = parse("decode|resize(8)|launcher_only", ops_of(launcher_only))
    with pytest.raises(EngineError, match="RuntimeError: not here"):
        precompute(photo_folder, tmp_path / "cache", chain, shards=2, workers=2)


def start(photo_folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start a build with two workers whose shards take a while, and wait until the first is finished."""
    code = (
        "import sys, joulecache as jc\n"
        f"jc.precompute({str(photo_folder)!r}, {str(cache)!r}, 'decode|resize(1500)|gaussian_blur(5)|resize(16)', shards=30, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((cache / WORK).glob("0*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_launcher_and_the_next_build_resumes(
    tmp_path: Path, photo_folder: Path, number: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    process = start(photo_folder, cache)
    workers = children(process.pid)
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    assert not (cache / "manifest.json").exists()
    chain = "decode|resize(1500)|gaussian_blur(5)|resize(16)"
    built = precompute(photo_folder, cache, chain, shards=30, workers=2)
    assert built.resumed_shards >= 1
    assert is_clean(cache)
    assert verify(cache) == []


def test_ctrl_c_does_not_reach_a_worker_that_is_starting() -> None:
    """It would print a traceback of its imports."""
    with worker_pool.WorkerPool(1):
        (worker,) = children(os.getpid())
        for _ in range(100):
            worker.send_signal(signal.SIGINT)
            time.sleep(0.005)
        assert worker.is_running()
        assert worker.status() != psutil.STATUS_ZOMBIE


# The number of workers ------------------------------------------------------------------------------------------------


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(worker_pool, "memory_limit", lambda: 16_000_000_000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert worker_count(None, 100, 64e6) == 8
    assert worker_count(None, 3, 64e6) == 3
    assert worker_count(20, 100, 64e6) == 20
    assert not caplog.records
    assert worker_count(None, 100, 2e9) == 2
    assert "building with 2 instead of 8 workers" in caplog.text
    assert worker_count(None, 100, 1e12) == 1


def test_workers_do_not_import_pandas_for_pyarrow() -> None:
    code = """
import sys
from joulecache.pipelines.building.worker import _hide_pandas_from_pyarrow
_hide_pandas_from_pyarrow()
import numpy, pyarrow
pyarrow.array(numpy.arange(3)), pyarrow.array(["a"]).to_pylist()
print("pandas" in sys.modules, "tensorflow" in sys.modules, "apache_beam" in sys.modules)
import pandas
"""
    done = run_python(code, strict=False)
    assert done.stdout.split() == ["False"] * 3, done.stderr
    assert done.returncode == 0
