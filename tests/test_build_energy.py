"""The energy of builds by workers: metered where the work is done, added up once, and what nobody measured is said."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from meters import Diary, burn
from processes import environment

from joulecache.pipelines import precompute
from joulecache.pipelines.building import precomputing
from joulecache.pipelines.building.metering import Metering, ProcessLog, this_process
from joulecache.pipelines.building.specs import ShardResult, read_result
from joulecache.pipelines.building.work_folder import WORK, energy_logs
from joulecache.pipelines.building.work_log import WorkLog, begin_shard
from joulecache.pipelines.cache.manifest import BuildEnergy, HostEnergy
from joulecache.pipelines.core.codec import from_json, loads, to_json
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.energy.machine import machine_id
from joulecache.pipelines.energy.process_tree import TICK_S
from joulecache.transforms import ops_of, parse

CHAIN = "decode|resize(24)"
BURNER = """
from dataclasses import dataclass
import time
from joulecache.transforms import Op

@dataclass(frozen=True)
class Burn(Op):
    cpu_s: float = 1.0

    def pixels(self, image, drawn):
        end = time.thread_time() + self.cpu_s
        while time.thread_time() < end:
            pass
        return image
"""
ENDED_WORKER = """
import os, signal, sys
from pathlib import Path
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.job import shard_specs
from joulecache.pipelines.building.metering import Metering
from joulecache.pipelines.building.shard import build_shard
from joulecache.pipelines.building.workspace import Workspace
from joulecache.pipelines.source import open_source
from joulecache.transforms import parse
from dataclasses import replace

source, cache, chain = sys.argv[1:]
work = Path(cache, ".building")
work.mkdir(parents=True)
(work / "lock").touch()
config = BuildConfig(chain=parse(chain), shards=3)
listed = open_source(source, config)
metering = Metering(build="killed", launcher="elsewhere:1")
specs = shard_specs(listed, cache, 3, config.shard_config(holds_out=listed.holds_out))
first, second = (replace(spec, metering=metering) for spec in specs[:2])
build_shard(first)
with Workspace(second):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def parts_of(energy: BuildEnergy | None) -> tuple[float, float]:
    """Return the CPU time of the launcher and of the workers of a build on one host."""
    assert energy is not None
    [host] = energy.parts
    assert host.launcher is not None
    assert host.workers is not None
    assert host.launcher.cpu_s + host.workers.cpu_s == pytest.approx(energy.energy.cpu_s)
    assert host.launcher.total_j + host.workers.total_j == pytest.approx(energy.energy.total_j)
    return host.launcher.cpu_s, host.workers.cpu_s


def children_s() -> float:
    """Return the CPU time of the children that this process has waited for, as the kernel counts it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def logged(log: ProcessLog | None) -> float:
    assert log is not None
    return log.energy.cpu_s


def test_shards_that_overlap_in_a_process_are_not_counted_twice() -> None:
    log, saved = WorkLog(Metering(launcher=this_process(), machine=machine_id())), dict[str, str]()
    thread = threading.Thread(target=burn, args=(0.2,))
    before_s = time.process_time()
    log.begin(0, saved.__setitem__)
    burn(0.1)
    log.begin(1, saved.__setitem__)
    thread.start()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    first = log.finish(0, saved.__setitem__)
    thread.join()
    log.begin(2, saved.__setitem__)
    log.abandon(2, saved.__setitem__)
    second = log.finish(1, saved.__setitem__)
    used_s = time.process_time() - before_s
    assert logged(first) > 0.1
    child_s = logged(first) + logged(second) - used_s
    assert 0.02 <= child_s <= 5  # the child's work, and nothing twice
    [text] = saved.values()
    whole = loads(ProcessLog, text)
    assert whole.energy.cpu_s == pytest.approx(logged(first) + logged(second))
    assert (whole.metered_by, whole.is_complete, whole.shards) == (this_process(), True, ())
    assert (first.shards, second.shards) == ((0,), (1,))


def test_a_process_that_outlives_a_build_begins_again_with_the_next() -> None:
    saved: dict[str, str] = {}
    for build in ("one", "two"):
        log = begin_shard("/cache", WORK, 0, Metering(build=build), saved.__setitem__)
        burn(0.1)
        log.finish(0, saved.__setitem__)
    used_s = [loads(ProcessLog, text).energy.cpu_s for text in saved.values()]
    assert len(used_s) == 2
    assert all(0.1 <= seconds < 0.2 for seconds in used_s)


@pytest.mark.parametrize("workers", [1, 2])
def test_launcher_and_workers_are_parts_of_the_whole(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    results: dict[int, ShardResult] = {}

    def read(work: Path, shard: int) -> ShardResult:
        return results.setdefault(shard, original(work, shard))

    original = read_result
    monkeypatch.setattr(precomputing, "read_result", read)
    meter, before_s, children_before_s = Diary(), time.process_time(), children_s()
    built = precompute(photo_folder, tmp_path / "cache", CHAIN, shards=4, workers=workers, meter=meter)
    own_s, forked_s = time.process_time() - before_s, children_s() - children_before_s
    [whole] = meter.closed
    assert built.manifest.build_energy == whole.energy  # local workers are in it, and not added again
    launcher_s, workers_s = parts_of(built.manifest.energy)
    assert workers_s == pytest.approx(sum(logged(result.used) for result in results.values()))
    assert launcher_s + workers_s <= own_s + forked_s + workers * TICK_S
    assert 0 < workers_s <= (own_s if workers == 1 else forked_s) + workers * TICK_S
    assert built.manifest.energy is not None
    assert built.manifest.energy.unmetered_shards == ()


def test_what_a_killed_worker_reported_counts_once_and_the_rest_is_said(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", ENDED_WORKER, str(photo_folder), str(cache), CHAIN]
    subprocess.run(command, env=environment(), check=False)
    [path] = energy_logs(cache / WORK)
    log = loads(ProcessLog, path.read_bytes())
    assert (log.is_complete, log.shards, log.metered_by) == (False, (1,), "")
    assert log.energy.cpu_s > 0
    built = precompute(photo_folder, cache, CHAIN, shards=3)
    energy = built.manifest.energy
    assert energy is not None
    assert built.resumed_shards == 1
    assert energy.unmetered_shards == (1,)
    [host] = energy.parts
    assert host.worker_processes == 2
    assert host.workers is not None
    assert host.workers.cpu_s > log.energy.cpu_s
    assert host.energy.cpu_s == pytest.approx(energy.energy.cpu_s)
    again = precompute(photo_folder, cache, CHAIN, shards=3)
    assert again.unchanged
    assert again.manifest.energy == energy


def test_workers_meter_like_the_launcher_and_watts_are_those_of_its_machine() -> None:
    given = Metering.like(Meter(country="FRA", pue=1.2, idle_w=12, full_w=65).provenance())
    here, there = given.meter().provenance(), replace(given, machine="another").meter().provenance()
    assert (here.method, here.country, here.pue) == ("user", "FRA", 1.2)
    assert (there.provider, there.country, there.pue) == ("generic", "FRA", 1.2)
    assert Metering.like(Meter(provider="gcp").provenance()).meter().provenance().provider == "gcp"
    assert given.metered_by() == this_process()
    assert replace(given, machine="another").metered_by() == ""


def test_manifests_without_hosts_load_and_are_added_to() -> None:
    with Meter().window("build") as window:
        burn(0.01)
    old = BuildEnergy(window.energy, Meter().provenance())
    body = to_json(old)
    assert {*body} == {"energy", "passport"}
    assert from_json(BuildEnergy, body) == old
    with pytest.raises(ValueError, match="host 'node' has neither energy of launchers nor of workers"):
        from_json(HostEnergy, {"name": "node", "launcher": None, "workers": None, "worker_processes": 0})
    both = old + old
    [host] = both.parts
    assert (host.name, host.workers, both.unmetered_shards) == ("", None, ())
    assert host.energy.cpu_s == both.energy.cpu_s == 2 * old.energy.cpu_s


@pytest.mark.slow
def test_one_worker_and_two_use_the_same_cpu_time(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "burner.py").write_text(BURNER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import burner  # type: ignore[import-not-found]

    chain = parse("decode|burn(1.0)|resize(8)", ops_of(burner))
    used_s = []
    for workers in (1, 2):
        built = precompute(photo_folder, tmp_path / f"cache-{workers}", chain, shards=4, workers=workers, limit=8)
        assert len(built.workers) == workers
        used_s.append(parts_of(built.manifest.energy)[1])
    assert 8 <= used_s[0] <= 8.4
    assert used_s[1] == pytest.approx(used_s[0], rel=0.05)
