"""Builds that are killed: nothing half-built is visible, finished shards are kept, and the result has the same bytes."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from caches import OPTIONS, build, contents, hashes, is_clean, times
from conftest import MakeSource
from processes import Child, python
from sources import classes

from joulecache.pipelines.building import beam_graph, precomputing
from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.metering import ProcessLog
from joulecache.pipelines.building.precomputing import BuildProgress, precompute
from joulecache.pipelines.building.resume import finished_result
from joulecache.pipelines.building.shard import build_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.work_folder import WORK, energy_log_name
from joulecache.pipelines.cache.cache import open_cache, verify
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import MANIFEST
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.core.codec import dumps
from joulecache.pipelines.core.files import sha256_of
from joulecache.pipelines.energy.hosts import Span
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source import open_source
from joulecache.transforms import parse

RESULTS = f"{WORK}/*.json"

_SERVER = """
import json, os, sys
from joulecache.pipelines.building import beam_graph
from joulecache.pipelines.building.precomputing import precompute
from apache_beam.runners.portability import fn_api_runner
for line in sys.stdin:
    child = os.fork()
    if not child:
        precompute(**json.loads(line))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Builder:
    """A process that forks a build for each request, so that Beam is imported once."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def start(self, source: Path, cache: Path, **options: Any) -> int:
        """Start a build and return its process id."""
        return int(self._child.ask(json.dumps({"source": str(source), "cache": str(cache), **OPTIONS, **options})))

    def wait(self) -> None:
        """Return when the build has ended."""
        assert self._child.receive() == "ended\n"

    def kill(self, moment: Callable[[], bool], source: Path, cache: Path, **options: Any) -> None:
        """Start a build and kill it as soon as the moment has come, or let it end before."""
        child = self.start(source, cache, **options)
        while not moment() and not has_ended(child):
            time.sleep(0.001)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, signal.SIGKILL)
        self.wait()


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def is_stopped(process: int) -> bool:
    """Return whether all threads of a process have stopped after SIGSTOP, which takes a moment."""
    threads = Path(f"/proc/{process}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    with Child(*python(_SERVER, strict=False)) as child:  # importing Beam warns
        yield Builder(child)


@pytest.fixture(scope="module")
def expected(photo_cache: Path) -> dict[str, str]:
    """The files of an undisturbed build."""
    return hashes(open_manifest(photo_cache))


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> tuple[Path, Path]:
    """The photos without one, and their cache; only to be copied."""
    root = tmp_path_factory.mktemp("smaller")
    shutil.copytree(photo_folder, root / "photos")
    (root / "photos" / "cat" / "00.jpg").unlink()
    build(root / "photos", root / "cache", **OPTIONS)
    return root / "photos", root / "cache"


def count_of(cache: Path, pattern: str) -> int:
    return len(list(cache.glob(pattern)))


def check_resumed(source: Path, cache: Path, expected: dict[str, str]) -> None:
    """Build again, and check for the bytes of an undisturbed build, and that nothing else is left."""
    finished = count_of(cache, RESULTS) if not (cache / MANIFEST).exists() else None
    built = precompute(source, cache, **OPTIONS)
    assert hashes(open_manifest(cache)) == expected
    assert is_clean(cache)
    assert verify(cache) == []
    if finished is not None:
        assert built.resumed_shards == finished


# Killed builds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [f"{WORK}/lock", "train-*", f"{WORK}/00002.json", "index-*"])
def test_a_killed_build_can_be_built_again(
    tmp_path: Path, photo_folder: Path, builder: Builder, expected: dict[str, str], pattern: str
) -> None:
    cache = tmp_path / "cache"
    builder.kill(lambda: count_of(cache, pattern) > 0, photo_folder, cache)
    if (cache / MANIFEST).exists():
        assert hashes(open_manifest(cache)) == expected
    check_resumed(photo_folder, cache, expected)


def test_a_killed_build_of_masks_boxes_and_points_is_resumed(tmp_path: Path, builder: Builder) -> None:
    source, cache = Path("synthetic:16"), tmp_path / "cache"
    targets: dict[str, Any] = {"target": ["mask", "boxes", "points"]}
    builder.kill(lambda: count_of(cache, RESULTS) > 1, source, cache, **targets)
    finished = 4 if (cache / MANIFEST).exists() else count_of(cache, RESULTS)
    built = precompute(source, cache, **OPTIONS, **targets)
    assert built.unchanged or built.resumed_shards == finished
    whole = precompute(source, tmp_path / "whole", **OPTIONS, **targets)
    assert hashes(built.manifest) == hashes(whole.manifest)
    assert verify(cache) == []
    assert is_clean(cache)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path, builder: Builder) -> Path:
    """A cache folder of a build that was killed after some of its shards; only to be copied."""
    for _ in range(20):  # on a busy machine the moment may be missed
        cache = tmp_path_factory.mktemp("stopped") / "cache"
        builder.kill(lambda: count_of(cache, RESULTS) > 1, photo_folder, cache)  # noqa: B023 - called at once
        if 1 < count_of(cache, RESULTS) < 4:
            return cache
    raise AssertionError("no build could be killed midway")


@pytest.fixture
def interrupted(tmp_path: Path, stopped: Path) -> Path:
    """A cache folder of a build that was killed after some of its shards."""
    return Path(shutil.copytree(stopped, tmp_path / "cache"))


def test_a_killed_build_resumes_with_the_missing_shards(
    interrupted: Path, photo_folder: Path, photo_cache: Path, expected: dict[str, str]
) -> None:
    results = "".join(
        path.read_text() for path in interrupted.glob(RESULTS)
    )  # a file may be written, but not its result
    finished = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("*.arrow") if path.name in results}
    earlier = open_manifest(photo_cache).build_energy
    for path in (interrupted / WORK).glob("*.log"):
        path.unlink()
    log = ProcessLog(
        process="earlier:1", machine="off", is_launcher=True, is_complete=False, spans=(Span(0.0, 9.0, earlier),)
    )
    (interrupted / WORK / energy_log_name()).write_text(dumps(log))
    reports: list[BuildProgress] = []
    built = precompute(photo_folder, interrupted, **OPTIONS, progress=reports.append)
    assert 1 < built.resumed_shards < 4
    assert hashes(built.manifest) == expected
    kept = {name: time for name, time in finished.items() if name in expected}
    assert kept.items() <= times(interrupted).items()
    assert reports[-1].done == 30
    assert reports[-1].resumed_records > 0
    spent = built.manifest.build_energy
    assert spent.cpu_s > earlier.cpu_s  # what was used before it was killed counts


@pytest.mark.parametrize("text", ['{"cut short', "[]"])
def test_a_damaged_energy_log_is_not_counted(interrupted: Path, photo_folder: Path, text: str) -> None:
    (interrupted / WORK / energy_log_name()).write_text(text)
    built = precompute(photo_folder, interrupted, **OPTIONS)
    assert built.manifest.build_energy.cpu_s > 0


@pytest.mark.parametrize(
    "damage", ["none", "flip", "cut", "missing", "index", "result", "other index", "other file", "files", "spec"]
)
def test_a_damaged_shard_is_not_taken_for_finished(tmp_path: Path, photo_folder: Path, damage: str) -> None:
    (work := tmp_path / WORK).mkdir()
    chain = parse("decode|resize(8)")
    spec = ShardSpec(str(tmp_path), 0, 1, open_source(photo_folder).units[:3], classes(3), ShardConfig(chain, chain))
    result = build_shard(spec)
    shard, kept = tmp_path / result.data_files[0].name, work / "00000.json"
    body = json.loads(kept.read_text())
    match damage:
        case "flip":
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(data)
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "missing":
            shard.unlink()
        case "index":
            (work / result.index).write_bytes(b"")
        case "result":
            kept.write_text(kept.read_text()[:-3])
        case "other file":
            kept.write_text(kept.read_text().replace(shard.name, "../secret"))
        case "other index":
            kept.write_text(json.dumps({**body, "index": "../../secret"}))
        case "files":
            kept.write_text(json.dumps({**body, "files": {"train": 3}}))
        case "spec":
            kept.write_text(json.dumps({**body, "spec": "0" * 64}))
    found = finished_result(work, spec, lambda file: sha256_of(tmp_path / file.name) == file.sha256)
    assert found == (result if damage == "none" else None)


def test_an_interrupted_build_resumes_too(tmp_path: Path, photo_folder: Path, expected: dict[str, str]) -> None:
    cache = tmp_path / "cache"
    # A shell that runs tests in the background makes them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            precompute(photo_folder, cache, **OPTIONS, progress=lambda now: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert count_of(cache, RESULTS)
    check_resumed(photo_folder, cache, expected)


# Killed updates -------------------------------------------------------------------------------------------------------


def check_killed_update(
    builder: Builder, source: Path, cache: Path, expected: dict[str, str], moment: Callable[[], bool]
) -> None:
    """Kill an update, and check that the old cache is whole, readers keep their pixels, and the next build finishes it."""
    old = open_manifest(cache)
    reader = CachedSplit(open_cache(cache), "train")
    pixels = reader.images(np.arange(len(reader)), 0).copy()
    builder.kill(moment, source, cache)
    found = open_manifest(cache)
    assert found == old or hashes(found) == expected
    assert verify(cache) == []
    np.testing.assert_array_equal(reader.images(np.arange(len(reader)), 0), pixels)
    check_resumed(source, cache, expected)


@pytest.mark.parametrize("pattern", ["train-*", "index-*"])
def test_a_killed_update_leaves_the_old_cache(
    tmp_path: Path,
    photo_folder: Path,
    smaller: tuple[Path, Path],
    builder: Builder,
    expected: dict[str, str],
    pattern: str,
) -> None:
    cache = Path(shutil.copytree(smaller[1], tmp_path / "cache"))
    before = count_of(cache, pattern)
    check_killed_update(builder, photo_folder, cache, expected, lambda: count_of(cache, pattern) > before)


def test_a_killed_update_resumes(
    tmp_path: Path, photo_folder: Path, photo_cache: Path, builder: Builder, expected: dict[str, str]
) -> None:
    one_variant = tmp_path / "one"
    build(photo_folder, one_variant, **{**OPTIONS, "variants": 1})
    for turn in range(20):
        cache = Path(shutil.copytree(one_variant, tmp_path / f"cache{turn}"))
        builder.kill(lambda: count_of(cache, RESULTS) > 1, photo_folder, cache)  # noqa: B023 - called at once
        finished = count_of(cache, RESULTS)
        if 1 < finished < 4 and open_manifest(cache).variants == 1:
            break
    built = precompute(photo_folder, cache, **OPTIONS)
    assert built.resumed_shards == finished
    assert hashes(built.manifest) == expected
    assert is_clean(cache)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(20))
def test_builds_killed_at_random_moments_lose_nothing(
    tmp_path: Path,
    photo_folder: Path,
    smaller: tuple[Path, Path],
    builder: Builder,
    expected: dict[str, str],
    turn: int,
) -> None:
    cache, rng = tmp_path / "cache", random.Random(turn)
    workers, longest_s = (2, 2.0) if turn % 2 else (None, 0.6)

    def after(seconds: float) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    builder.kill(after(rng.uniform(0, longest_s)), photo_folder, cache, workers=workers)
    check_resumed(photo_folder, cache, expected)
    precompute(smaller[0], cache, **OPTIONS)
    check_killed_update(builder, photo_folder, cache, expected, after(rng.uniform(0, 0.6)))


# Moments that are too short to be hit from outside: the folder is made as a build leaves it that is killed there.


@pytest.mark.parametrize("left", [[], [f"{WORK}/lock"], [f"{WORK}/lock", f"{WORK}/00000.tmp", f".{'0f' * 16}.tmp"]])
def test_a_build_killed_before_its_manifest_can_be_built_again(
    tmp_path: Path, photo_folder: Path, expected: dict[str, str], left: list[str]
) -> None:
    (tmp_path / "cache" / WORK).mkdir(parents=True)
    for name in left:
        (tmp_path / "cache" / name).write_text("1234")
    check_resumed(photo_folder, tmp_path / "cache", expected)


@pytest.mark.parametrize("lock", [True, False])
def test_the_leftovers_of_a_build_killed_after_its_manifest_are_deleted(
    tmp_path: Path, photo_folder: Path, photo_cache: Path, expected: dict[str, str], lock: bool
) -> None:
    cache = Path(shutil.copytree(photo_cache, tmp_path / "cache"))
    (cache / WORK).mkdir()
    for name in [f"{WORK}/lock"] * lock + [f"{WORK}/00001.json", "index-1a2b3c4d.arrow"]:
        (cache / name).write_text("1234")
    check_resumed(photo_folder, cache, expected)


def test_a_second_build_is_refused_naming_the_process_of_the_first(
    tmp_path: Path, photo_folder: Path, builder: Builder
) -> None:
    cache = tmp_path / "cache"
    first = builder.start(photo_folder, cache)
    while not count_of(cache, RESULTS):
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)
    try:
        while not is_stopped(first):
            time.sleep(0.001)
        before = contents(cache)
        with pytest.raises(CacheError, match=f"is being built by process {first}: wait for it or stop it"):
            build(photo_folder, cache, **OPTIONS)
        assert contents(cache) == before
    finally:
        os.kill(first, signal.SIGCONT)
    builder.wait()
    assert verify(cache) == []


def test_what_is_sent_to_workers_does_not_grow_with_classes_and_images(
    tmp_path: Path, make_folder: MakeSource, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder({f"{'class' * 20}-{number}/{number}.jpg": photo for number in range(60)})
    sent = Mock(wraps=beam_graph.run_specs)
    monkeypatch.setattr(precomputing, "run_specs", sent)
    build(source, tmp_path / "cache", shards=2)
    assert max(len(pickle.dumps(spec)) for spec in sent.call_args.args[0]) < 3000  # the names alone have 6,000 bytes
    assert is_clean(tmp_path / "cache")
