#!/usr/bin/env python3
"""Print how sharp an audit is, on a quiet machine and beside a process that loads it in bursts, as Markdown.

    scripts/bench_audit.py [--images 512] [--blocks 12] [--duty 0.5] [--period 2]

Audits the input alone, of synthetic photos in all four arms, twice: with nothing beside it, and beside a process that keeps all processors
busy for the share `--duty` of every `--period` seconds, at times that it draws. Printed is half the width of the 95% interval of each arm's
ratio of active energy to naive, as a share of the ratio. Takes some minutes; nothing else should run.
"""

import argparse
import contextlib
import logging
import math
import os
import platform
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from environment import enter

CHAIN = "decode|resize(72) || random_crop(64)|flip_lr"
TARGET = 0.06  # of the ratio, beside the load
BURN = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"


def main(images: int, blocks: int, duty: float, period_s: float) -> None:
    """Print the table."""
    logging.getLogger().setLevel(logging.ERROR)
    from joulecache.pipelines import Meter
    from joulecache.pipelines.source import synthetic_photo

    meter = Meter()
    passport, cores = meter.passport(), len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("joulecache", "tensorflow", "pyarrow"))
    print(f"{passport['cpu']}, {cores} CPUs, Python {platform.python_version()}, {versions}; {passport['method']}")
    load = f"all CPUs busy for {duty:.0%} of every {period_s:g} s"
    print(f"{images} synthetic photos, {CHAIN}, {blocks} blocks; load: {load}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number in range(images):
            (photos / f"{number}.jpg").write_bytes(synthetic_photo(number))
        quiet = audited(photos, Path(folder) / "quiet", blocks, meter)
        with loaded(duty, period_s):
            busy = audited(photos, Path(folder) / "busy", blocks, meter)
    print("| arm | ratio, quiet | half-width | ratio, loaded | half-width |\n|---|---:|---:|---:|---:|")
    for name, ratio in quiet["ratios"].items():
        other = busy["ratios"][name]
        print(f"| {name} | {ratio.value:.4f} | {half_width(ratio):.1%} | {other.value:.4f} | {half_width(other):.1%} |")
    widest = max(half_width(ratio) for name, ratio in busy["ratios"].items() if name != "naive again")
    print(
        f"\nWidest beside the load: {widest:.1%}; wanted is at most {TARGET:.0%}: {'reached' if widest <= TARGET else 'missed'}."
    )
    for title, run in (("quiet", quiet), ("loaded", busy)):
        print(
            f"{title.capitalize()}: {run['duration_s']:.0f} s, other processes used {run['others']} of the processors."
        )


def audited(photos: Path, out: Path, blocks: int, meter: Any) -> dict[str, Any]:
    """Return the ratios of an audit of the input alone, how long it took and what else the machine did meanwhile."""
    from joulecache.pipelines import audit

    at = time.monotonic()
    (result,) = audit(photos, CHAIN, out, workloads=("input",), pairs=blocks, meter=meter).workloads
    ratios = {arm.name: arm.ratio for arm in result.arms if arm.name != "naive"}
    others = [share for arm in result.arms if (share := arm.contamination.others) is not None]
    return {
        "ratios": {**ratios, "naive again": result.control},
        "duration_s": time.monotonic() - at,
        "others": f"{sum(others) / len(others):.0%}" if others else "an unknown share",
    }


def half_width(ratio: Any) -> float:
    """Return half the width of a ratio's interval, on the scale of logarithms, where it is symmetric."""
    return math.log(ratio.high / ratio.low) / 2


@contextlib.contextmanager
def loaded(duty: float, period_s: float) -> Iterator[None]:
    """Keep all processors busy in bursts meanwhile.

    The process that does it is no child of this one, or the meter would charge its work to the arms. It ends when its input does.
    """
    code = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r})['burst']({duty}, {period_s})"
    starter = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    theirs, ours = os.pipe()
    subprocess.run([sys.executable, "-c", starter, code], stdin=theirs, check=True)
    os.close(theirs)
    try:
        yield
    finally:
        os.close(ours)


def burst(duty: float, period_s: float) -> None:
    """Burn all processors for that share of every period, at a time inside it that is drawn, until the input ends."""
    drawn, burn_s = random.Random(0), duty * period_s
    while True:
        before_s = drawn.uniform(0, period_s - burn_s)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--duty", type=float, default=0.5)
    parser.add_argument("--period", type=float, default=2.0)
    given = parser.parse_args()
    if given.images < 50 or given.blocks < 2 or not 0 < given.duty <= 1 or not given.period > 0:
        parser.error("give at least 50 images, at least 2 blocks, a duty above 0 up to 1, and a period above 0")
    main(given.images, given.blocks, given.duty, given.period)
