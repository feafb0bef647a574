#!/usr/bin/env python3
"""Compare what a plan predicts with what is then measured, as Markdown.

    scripts/bench_plan.py DATA OUT [--pairs 12] [--repeats 3] [--only NAME]

DATA is a folder with dogs_cats.tar, photos, and cifar10/train.parquet; where one is missing its rows are. OUT keeps the plans and
the audits. For each source and size: a plan, then an audit of the best chain as a raw Arrow cache, right after it, since machines that are
shared drift; without the audit's stages, which nothing is compared with. Both are done several times, since on such machines one audit
differs from the next: printed is the geometric mean of the ratios, with the lowest and the highest. Then, on one of them, every way
that the plan priced is built from the whole source and iterated, and the plan's choice is compared with the best of them. Takes about
an hour; nothing else should run.
"""

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from environment import ROOT, enter

EPOCHS = 30
FRESH = "random_crop,flip_lr"  # whatever the plan finds cheap: an audit measures caches of one variant
ROUNDS = 7
PASS_S = 0.3  # of CPU time, at least, in a measured pass
CASES = {
    "dogs_cats 64": ("dogs_cats.tar", "decode|resize(72)|random_crop(64)|flip_lr", None),
    "dogs_cats 224": ("dogs_cats.tar", "decode|resize(256)|random_crop(224)|flip_lr", None),
    "cifar10 32": ("cifar10/train.parquet", "decode|central_crop(32)|pad(4)|random_crop(32)|flip_lr", 25_000),
    "cifar10 64": ("cifar10/train.parquet", "decode|resize(64)|random_crop(56)|flip_lr", 15_000),
    "synthetic 64": ("synthetic:2000", "decode|resize(72)|random_crop(64)|flip_lr", None),
    "synthetic 160": ("synthetic:2000", "decode|resize(176)|random_crop(160)|flip_lr", None),
}
EXHAUSTIVE = "dogs_cats 64"
AUDIT = """
import json, sys
from joulecache.pipelines import audit
from joulecache.pipelines.auditing.config import Budget

print(json.dumps(audit(**json.loads(sys.argv[1]), budget=Budget(stage_run_s=None)).to_json()))
"""


def main(data: Path, out: Path, pairs: int, repeats: int, only: str | None) -> None:
    """Print both tables."""
    from joulecache.pipelines import Meter

    provenance = Meter().provenance()
    names = ("joulecache", "tensorflow", "apache-beam", "pyarrow", "pillow")
    print(
        f"{provenance.cpu}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {metadata.version(name)}' for name in names)}; joules: {provenance.method}. "
        f"{repeats} times a plan, and an audit of {pairs} blocks. Predicted / measured: geometric mean (lowest to highest).\n"
    )
    print(
        "| source, size | sampled | J per epoch, cached | J per epoch, online (tuned) | build, J | break-even, epochs |"
    )
    print(f"|---|{'---:|' * 5}")
    for name, (source, chain, limit) in CASES.items():
        location = source if source.startswith("synthetic:") else str(data / source)
        if (only and name != only) or not (location == source or Path(location).exists()):
            continue
        found = []
        for number in range(repeats):
            folder = out / f"{name.replace(' ', '-')}-{number}"
            plan = planned(location, chain, limit, folder)
            found.append((plan, compared(plan, audited(location, plan, limit, folder, pairs))))
        plan = found[0][0]
        cells = [ratios([one[place] for _, one in found]) for place in range(4)]
        print(f"| {name} | {plan['sampled']:,} of {plan['records']:,} | {' | '.join(cells)} |", flush=True)
    source, chain, limit = CASES[EXHAUSTIVE]
    if (data / source).exists() and only in (None, EXHAUSTIVE):
        plan = planned(str(data / source), chain, limit, out / f"{EXHAUSTIVE.replace(' ', '-')}-0")
        print_exhaustive(str(data / source), plan, out)


def compared(plan: dict[str, Any], audit: dict[str, Any]) -> list[tuple[float | None, float | None]]:
    """Return what a plan predicted and what its audit measured: an epoch from the cache, one online, the build, the break-even."""
    arms = {arm["name"]: arm for arm in audit["workloads"][0]["arms"]}
    epoch_j = {arm: of["active_j_per_1000"]["value"] * audit["records"]["train"] / 1000 for arm, of in arms.items()}
    against = next(one for one in audit["workloads"][0]["comparisons"] if one["other"] == "tuned")
    cached, online = raw_choice(plan), next(one for one in plan["choices"] if one["way"] is None)
    return [
        (cached["epoch_j"]["value"], epoch_j["optimized"]),
        (online["epoch_j"]["value"], epoch_j["tuned"]),
        (cached["build_j"]["value"], audit["build"]["active_j"]),
        (cached["break_even_epochs"], against["break_even"]["epochs"]),
    ]


def ratios(pairs: list[tuple[float | None, float | None]]) -> str:
    """Return a cell: what was predicted over what was measured, each time."""
    found = [predicted / measured for predicted, measured in pairs if predicted is not None and measured is not None]
    if len(found) < len(pairs):
        return "; ".join(f"{predicted} / {measured}" for predicted, measured in pairs)
    first = f"{pairs[0][0]:.3g} / {pairs[0][1]:.3g}: "
    return f"{first}{statistics.geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def both(predicted: float, measured: float) -> str:
    """Return a cell."""
    return f"{predicted:.3g} / {measured:.3g} ({predicted / measured:.2f})"


def planned(source: str, chain: str, limit: int | None, folder: Path) -> dict[str, Any]:
    """Make a plan in a process of its own, as people do, or read the one that is there."""
    file = folder / "plan.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            output(
                "plan", source, "--chain", chain, "--fresh", FRESH, "--epochs", str(EPOCHS), *limited(limit), "--json"
            )
        )
    return dict(json.loads(file.read_text()))


def limited(limit: int | None) -> list[str]:
    """Return the option that takes so many records."""
    return [] if limit is None else ["--limit", str(limit)]


def audited(source: str, plan: dict[str, Any], limit: int | None, folder: Path, pairs: int) -> dict[str, Any]:
    """Audit the chain of the best raw Arrow cache in a process of its own, or read the audit that is there."""
    file = folder / "audit" / "report.json"
    if not file.exists():
        arguments = {
            "source": source,
            "chain": raw_choice(plan)["chain"],
            "out": str(file.parent),
            "arms": ["naive", "tuned", "optimized"],
            "workloads": ["input"],
            "pairs": pairs,
            "epochs": EPOCHS,
            "limit": limit,
        }
        file.write_text(run_code(AUDIT, json.dumps(arguments)))
    return dict(json.loads(file.read_text()))


def raw_choice(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the best choice that an audit can measure: its cache is Arrow, raw, of one variant."""
    return next(
        one
        for one in plan["choices"]
        if one["way"] and (one["way"]["format"], one["way"]["encoding"], one["variants"]) == ("arrow", "raw", 1)
    )


def print_exhaustive(source: str, plan: dict[str, Any], out: Path) -> None:
    """Build and iterate every way in full, and print how far the plan's choice is from the best of them."""
    from joulecache.pipelines import Energy, Meter, load, open_cache
    from joulecache.pipelines.core.progress import silent
    from joulecache.pipelines.experiment.arms import Arm, make_arms
    from joulecache.pipelines.experiment.files import list_files, unpack
    from joulecache.pipelines.experiment.workloads import InputOnly
    from joulecache.pipelines.source import open_source

    arms: dict[int, Arm] = {}
    built_j: dict[int, float] = {}
    for number, choice in enumerate(plan["choices"]):
        if choice["way"] is None:
            continue
        cache = out / f"way-{number}"
        words = shlex.split(choice["command"])
        words[words.index("cache/")] = str(cache)
        body = json.loads(output(*words[1:], "--json"))["manifest"]
        built_j[number] = Energy.from_json(body["energy"]["energy"]).active_j
        arms[number] = Arm("optimized", body["splits"]["train"]["records"], load(cache, "train", 64))
    online = next(number for number, choice in enumerate(plan["choices"]) if choice["way"] is None)
    first = open_cache(out / f"way-{next(iter(arms))}")
    files = unpack(open_source(source), out, silent)
    built_j[online], [arms[online]] = 0.0, make_arms(["tuned"], list_files(files, first, 1), first, 64)
    meter = Meter()
    spent_j: dict[int, list[float]] = {number: [] for number in arms}
    epochs: dict[int, int] = {}
    for number, arm in arms.items():
        InputOnly().run(arm, 0)
        begun_s = time.process_time()
        InputOnly().run(arm, 0)
        epochs[number] = max(1, round(PASS_S / (time.process_time() - begun_s)))
    for round_number in range(ROUNDS):
        for number in random.Random(round_number).sample(list(arms), len(arms)):
            with meter.window("epochs") as window:
                InputOnly(epochs=epochs[number]).run(arms[number], 0)
            spent_j[number].append(window.energy.active_j / epochs[number])
    print(
        f"\nEvery way of {EXHAUSTIVE}, built and iterated in full: joules over {EPOCHS} epochs, storage as in the plan.\n"
    )
    print("| way | predicted / measured (ratio) | of the best measured |")
    print("|---|---:|---:|")
    measured = {
        number: built_j[number]
        + EPOCHS * statistics.median(spent_j[number])
        + plan["choices"][number]["storage_j"]["value"]
        for number in arms
    }
    for number, total_j in sorted(measured.items(), key=lambda pair: pair[1]):
        choice = plan["choices"][number]
        way = choice["way"]
        name = (
            f"`{choice['chain']}`, {way['format']}, {way['encoding']} {way['quality'] or ''}, {choice['variants']} variants"
            if way
            else "online"
        )
        chosen = " (the plan's choice)" if number == 0 else ""
        print(
            f"| {name}{chosen} | {both(choice['total_j']['value'], total_j)} | {total_j / min(measured.values()):.3f} |"
        )


def output(*arguments: str) -> str:
    """Run the command of this checkout; return what it printed."""
    return run_code("from joulecache.pipelines.cli import main; main()", *arguments)


def run_code(code: str, *arguments: str) -> str:
    """Run Python code with this checkout; return what it printed."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES)
    given = parser.parse_args()
    main(given.data, given.out, given.pairs, given.repeats, given.only)
