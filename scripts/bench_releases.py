#!/usr/bin/env python3
"""Print how this checkout builds caches compared with an older revision, as Markdown: CPU time, clock, and break-even.

    scripts/bench_releases.py REVISION [--data DIR] [--rounds N]

Runs of both revisions are interleaved, each in a new process; medians and ranges are printed. DIR holds dogs_cats.tar and
cifar10/train.parquet; without it, synthetic photos are built instead. The older revision runs with the packages of .venv.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from environment import CLI, ROOT, argument_parser, describe, enter, run_python
from tables import code, median, print_head, print_row

RESIZED, SCALED, SMALL = "decode|resize(224)", "decode(shorter=72)|resize(72)", "decode|resize(32)"

TENSORFLOW_DECODE = """
import sys, time
import pyarrow.parquet as pq
import tensorflow as tf
data = pq.read_table(sys.argv[1], columns=["image"])["image"].combine_chunks().field("bytes").to_pylist()
dataset = tf.data.Dataset.from_tensor_slices(data).map(tf.io.decode_jpeg, 1).batch(256)
for _ in dataset.take(10): pass
started = time.process_time()
for _ in dataset: pass
print((time.process_time() - started) / len(data) * 1e6)
"""

BREAK_EVEN = """
import sys
import joulecache as jc
from joulecache.pipelines.experiment.arms import make_arms
from joulecache.pipelines.experiment.files import list_files, unpack
from joulecache.pipelines.source import open_source
from pathlib import Path
source, folder, chain = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
meter, files = jc.Meter(), unpack(open_source(source), folder, lambda *_: None)
jc.precompute(source, folder / "cache", chain)
cache = jc.open_cache(folder / "cache")
spent = {}
files = getattr(files, "folder", files)  # a Path in releases before targets
for arm in make_arms(["tuned", "optimized"], list_files(files, cache, 1), cache, 64):
    for epoch in range(2):
        arm.start_epoch(epoch)
        with meter.window(f"{arm.name} {epoch}") as window:
            for _ in arm.dataset: pass
        spent[arm.name] = window.energy.active_j
print(cache.manifest.build_energy.active_j / (spent["tuned"] - spent["optimized"]))
"""


BUILD_ALONE = """
import resource, sys
import joulecache as jc

def cpu_s():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)

source, cache, chain, records = sys.argv[1:]
jc.precompute("synthetic:4", cache, "decode|resize(32)", workers=1)  # imports everything
started = cpu_s()
jc.precompute(source, cache + "-all", chain, workers=1)
print((cpu_s() - started) / int(records) * 1e6)
"""


@dataclass(frozen=True)
class Run:
    """A build by the command line: CPU seconds of all its processes, and seconds by the clock."""

    cpu_s: float
    duration_s: float


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """Check a revision out in a folder."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def build(checkout: Path, source: str, cache: Path, chain: str, *options: object, cores: int = 0) -> Run:
    """Build a cache with the code of a checkout, on the first `cores` or on all."""
    shutil.rmtree(cache, ignore_errors=True)
    limited = ["taskset", "--cpu-list", f"0-{cores - 1}"] if cores else []
    command = [*limited, sys.executable, "-P", "-c", CLI, "precompute", source, str(cache), "--chain", chain]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(cpu_s, time.perf_counter() - started)


class Bench:
    """Both revisions, and where they build."""

    def __init__(self, old: Path, work: Path, rounds: int) -> None:
        self._old, self._cache, self._rounds = old, work / "cache", rounds

    def compare(self, what: str, source: str, chain: str, records: int, *options: object) -> None:
        """Print the CPU time of a record in both revisions."""
        runs = [
            [build(checkout, source, self._cache, chain, *options) for checkout in (self._old, ROOT)]
            for _ in range(self._rounds)
        ]
        costs = [[run.cpu_s / records * 1e6 for run in pair] for pair in runs]
        print_row(
            f"{what}, {code(chain)}, {' '.join(map(str, options))}: us of CPU per record, whole command",
            median([old for old, _ in costs]),
            median([new for _, new in costs]),
            median([old / new for old, new in costs]),
        )

    def compare_alone(self, what: str, source: str, chain: str, records: int) -> None:
        """Print the CPU time of a record in both revisions, without the start of the interpreter and imports."""
        costs = [
            [self._alone(checkout, source, chain, records) for checkout in (self._old, ROOT)]
            for _ in range(self._rounds)
        ]
        print_row(
            f"{what}, {code(chain)}, one worker: us of CPU per record, without start-up",
            median([old for old, _ in costs]),
            median([new for _, new in costs]),
            median([old / new for old, new in costs]),
        )

    def _alone(self, checkout: Path, source: str, chain: str, records: int) -> float:
        with tempfile.TemporaryDirectory(dir=self._cache.parent) as folder:
            command = [sys.executable, "-P", "-c", BUILD_ALONE, source, f"{folder}/cache", chain, str(records)]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            ended = subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True, text=True)
        return float(ended.stdout.split()[-1])

    def scaling(self, what: str, source: str, chain: str, *options: object) -> None:
        """Print the clock of one core and one worker against two, and the CPU time of four workers against two."""
        here = functools.partial(build, ROOT, source, self._cache, chain, *options, "--workers")
        runs = [[here(workers) for workers in (1, 2, 4)] for _ in range(self._rounds)]
        alone = [here(1, cores=1) for _ in range(self._rounds)]
        print_row(
            f"{what}, {code(chain)}: two cores against one, by the clock",
            median([run.duration_s for run in alone]),
            median([two.duration_s for _, two, _ in runs]),
            median([one.duration_s / two.duration_s for one, (_, two, _) in zip(alone, runs, strict=True)]),
        )
        print_row(
            f"{what}, {code(chain)}: two workers against one, by the clock",
            median([one.duration_s for one, _, _ in runs]),
            median([two.duration_s for _, two, _ in runs]),
            median([one.duration_s / two.duration_s for one, two, _ in runs]),
        )
        print_row(
            f"{what}, {code(chain)}: cores that one worker and two keep busy",
            median([one.cpu_s / one.duration_s for one, _, _ in runs]),
            median([two.cpu_s / two.duration_s for _, two, _ in runs]),
            "",
        )
        print_row(
            f"{what}, {code(chain)}: CPU of four workers against two",
            median([two.cpu_s for _, two, _ in runs]),
            median([four.cpu_s for *_, four in runs]),
            median([four.cpu_s / two.cpu_s for _, two, four in runs]),
        )

    def break_even(self, what: str, source: str, chain: str, work: Path) -> None:
        """Print the epochs of the tuned arm's input that use the energy of a build."""
        epochs = []
        for number in range(self._rounds):
            folder = work / f"even-{number}"
            folder.mkdir()
            epochs.append(float(run_python(BREAK_EVEN, source, folder, chain).split()[-1]))
            shutil.rmtree(folder)
        print_row(f"{what}, {code(chain)}: epochs until the build is paid off, against `tuned`", "", median(epochs), "")


def main(revision: str, data: Path | None, rounds: int, work: Path) -> None:
    """Print all rows."""
    print(f"{describe('apache-beam', 'pyarrow', 'pillow', 'simplejpeg', 'numpy', 'tensorflow')}; before: {revision}\n")
    photos, count = (str(data / "dogs_cats.tar"), 1399) if data else ("synthetic:1000", 1000)
    print_head("what", "before", "after", "times")
    with checked_out(revision, work / "old") as old:
        bench = Bench(old, work, rounds)
        for chain in (RESIZED, SCALED):
            bench.compare("photos", photos, chain, count, "--workers", 1)
            bench.compare_alone("photos", photos, chain, count)
        if data is None:
            return
        cifar = str(data / "cifar10" / "train.parquet")
        for workers in (1, 2):
            bench.compare("CIFAR-10", cifar, SMALL, 50_000, "--workers", workers, "--shards", 16)
    tensorflow = [float(run_python(TENSORFLOW_DECODE, cifar).split()[-1]) for _ in range(rounds)]
    print_row("CIFAR-10: us of CPU per record, decoded by tf.data", "", median(tensorflow), "")
    bench.scaling("photos, 8 variants", photos, f"{RESIZED}|random_resized_crop(224)", "--variants", 8)
    bench.scaling("CIFAR-10, 20 variants", cifar, f"{SMALL}|random_crop(28)|brightness(0.2)", "--variants", 20)
    bench.break_even("photos", photos, f"{RESIZED} || flip_lr", work)
    bench.break_even("CIFAR-10", cifar, f"{SMALL} || flip_lr", work)


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("revision", metavar="REVISION")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="joulecache-bench-") as temporary:
        main(arguments.revision, arguments.data and arguments.data.absolute(), arguments.rounds, Path(temporary))
