#!/usr/bin/env python3
"""Print how precise an audit is, on a quiet machine and under load, as Markdown.

    scripts/bench_audit.py [--images 512] [--blocks 12] [--duty 0.5] [--period 2]

Audits the input alone, of synthetic photos in all four arms, twice: on the machine as it is, and next to a process that keeps
all processors busy for the share `--duty` of every `--period` seconds, at random times. Prints half the width of the 95% interval
of each arm's ratio of active energy to naive, as a share of the ratio. Takes some minutes; nothing else should run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from environment import argument_parser, describe, enter
from tables import print_head, print_row

import joulecache as jc

if TYPE_CHECKING:
    from joulecache.pipelines.experiment.statistics import Ratio

CHAIN = "decode|resize(72) || random_crop(64)|flip_lr"
GOAL = 0.06  # half-width under load, as a share of the ratio
CONTROL = "naive again"
BURN = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"


@dataclass(frozen=True)
class Audited:
    """One audit.

    Attributes:
        ratios: Active energy relative to naive, by arm.
        duration_s: How long it took, in seconds.
        others: Share of the processors' time that other processes used; None if unknown.
    """

    ratios: dict[str, Ratio]
    duration_s: float
    others: float | None


def main(images: int, blocks: int, duty: float, period_s: float) -> None:
    """Print the table."""
    logging.getLogger().setLevel(logging.ERROR)
    meter = jc.Meter()
    print(describe("tensorflow", "pyarrow", meter=meter))
    load = f"all CPUs busy for {duty:.0%} of every {period_s:g} s"
    print(f"{images} synthetic photos, {CHAIN}, {blocks} blocks; load: {load}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos", images)
        quiet = audit(photos, Path(folder) / "quiet", blocks, meter)
        with loaded(duty, period_s):
            busy = audit(photos, Path(folder) / "busy", blocks, meter)
    print_head("arm", "ratio, quiet", "half-width", "ratio, loaded", "half-width")
    for name, ratio in quiet.ratios.items():
        other = busy.ratios[name]
        print_row(name, f"{ratio.value:.4f}", f"{half(ratio):.1%}", f"{other.value:.4f}", f"{half(other):.1%}")
    widest = max(half(ratio) for name, ratio in busy.ratios.items() if name != CONTROL)
    print(f"\nWidest under load: {widest:.1%}; goal: at most {GOAL:.0%}: {'reached' if widest <= GOAL else 'missed'}.")
    for title, run in (("Quiet", quiet), ("Loaded", busy)):
        others = "an unknown share" if run.others is None else f"{run.others:.0%}"
        print(f"{title}: {run.duration_s:.0f} s, other processes used {others} of the processors.")


def make_photos(folder: Path, count: int) -> Path:
    """Write synthetic photos."""
    from joulecache.pipelines.source import synthetic_photo

    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(synthetic_photo(number))
    return folder


def audit(photos: Path, out: Path, blocks: int, meter: jc.Meter) -> Audited:
    """Audit the input alone."""
    started = time.monotonic()
    (result,) = jc.audit(photos, CHAIN, out, workloads=("input",), pairs=blocks, meter=meter).workloads
    ratios = {arm.name: arm.ratio for arm in result.arms if arm.name != "naive"}
    others = [share for arm in result.arms if (share := arm.contamination.others) is not None]
    mean = sum(others) / len(others) if others else None
    return Audited({**ratios, CONTROL: result.control}, time.monotonic() - started, mean)


def half(ratio: Ratio) -> float:
    """Return half the width of a ratio's interval on the logarithmic scale, where it is symmetric."""
    assert ratio.low is not None
    assert ratio.high is not None
    return math.log(ratio.high / ratio.low) / 2


@contextlib.contextmanager
def loaded(duty: float, period_s: float) -> Iterator[None]:
    """Keep all processors busy in bursts during the block.

    The process that does so is not a descendant of this one, or the meter would charge its work to the arms. It ends when its
    stdin is closed.
    """
    code = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r})['burst']({duty}, {period_s})"
    starter = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    read, write = os.pipe()
    path = os.pathsep.join(filter(None, sys.path))  # of the scripts, which the process imports
    subprocess.run(
        [sys.executable, "-c", starter, code], stdin=read, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    os.close(read)
    try:
        yield
    finally:
        os.close(write)


def burst(duty: float, period_s: float) -> None:
    """Keep all processors busy for a share of every period, at a random time within it, until stdin is closed."""
    draws, burn_s = random.Random(0), duty * period_s
    while True:
        before_s = draws.uniform(0, period_s - burn_s)
        for wait_s, burns in ((before_s, True), (period_s - burn_s - before_s, False)):
            if select.select([sys.stdin], [], [], wait_s)[0]:
                return
            if burns:
                command = [sys.executable, "-S", "-c", BURN.format(burn_s)]
                burners = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in os.sched_getaffinity(0)]
                for burner in burners:
                    burner.wait()


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--duty", type=float, default=0.5)
    parser.add_argument("--period", type=float, default=2.0)
    given = parser.parse_args()
    if given.images < 50 or given.blocks < 2 or not 0 < given.duty <= 1 or not given.period > 0:
        parser.error("expected at least 50 images, at least 2 blocks, a duty above 0 up to 1, and a period above 0")
    main(given.images, given.blocks, given.duty, given.period)
