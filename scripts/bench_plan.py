#!/usr/bin/env python3
"""Compare predictions of a plan with later measurements, as Markdown.

    scripts/bench_plan.py DATA OUT [--pairs 12] [--repeats 3] [--only NAME]

DATA is a folder with dogs_cats.tar, photos, and cifar10/train.parquet; sources that are missing are skipped. OUT keeps the plans and
the audits. For each source and size, it makes a plan and, right after it, since shared machines drift, an audit of the best chain as a raw
Arrow cache, without stages. Both are repeated, since audits on such machines vary: the geometric
mean of the ratios is printed, with the lowest and the highest. Then, for one source, every choice of the plan is built from the whole
source and iterated, and the plan's choice is compared with the best of them. Takes about an hour; nothing else should run.
"""

from __future__ import annotations

import json
import random
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from environment import JSON, argument_parser, describe, enter, run_joulecache, run_python
from tables import code, print_head, print_row

import joulecache as jc

if TYPE_CHECKING:
    from joulecache.pipelines.experiment.arms import Arm


@dataclass(frozen=True)
class Case:
    """A source, the chain to plan, and how many rows of a Parquet file to use at most."""

    source: str
    chain: str
    limit: int | None = None


EPOCHS = 30
FRESH = "random_crop,flip_lr"  # even where caching them is cheaper: an audit measures caches of one variant
ROUNDS = 7
PASS_S = 0.3  # the minimum CPU time of a measured pass
CASES = {
    "dogs_cats 64": Case("dogs_cats.tar", "decode|resize(72)|random_crop(64)|flip_lr"),
    "dogs_cats 224": Case("dogs_cats.tar", "decode|resize(256)|random_crop(224)|flip_lr"),
    "cifar10 32": Case("cifar10/train.parquet", "decode|central_crop(32)|pad(4)|random_crop(32)|flip_lr", 25_000),
    "cifar10 64": Case("cifar10/train.parquet", "decode|resize(64)|random_crop(56)|flip_lr", 15_000),
    "synthetic 64": Case("synthetic:2000", "decode|resize(72)|random_crop(64)|flip_lr"),
    "synthetic 160": Case("synthetic:2000", "decode|resize(176)|random_crop(160)|flip_lr"),
}
EXHAUSTIVE = "dogs_cats 64"

Pair = tuple[float | None, float | None]
"""A predicted and a measured value."""


def main(data: Path, out: Path, pairs: int, repeats: int, only: str | None) -> None:
    """Print both tables."""
    packages = ("tensorflow", "apache-beam", "pyarrow", "pillow")
    print(
        f"{describe(*packages, meter=jc.Meter())}. {repeats} times a plan, and an audit of {pairs} blocks. "
        "Predicted / measured: geometric mean (lowest to highest).\n"
    )
    titles = ("sampled", "J per epoch, cached", "J per epoch, online (tuned)", "build, J", "break-even, epochs")
    print_head("source, size", *titles)
    chosen = {name: case for name, case in CASES.items() if only in (None, name) and exists(case, data)}
    for name, case in chosen.items():
        found = []
        for number in range(repeats):
            folder = out / f"{name.replace(' ', '-')}-{number}"
            source = location(case, data, out)
            plan = make_plan(case, source, folder)
            found.append(compare(plan, run_audit(plan, source, folder, pairs)))
        sampled = f"{plan['sampled']:,} of {plan['records']:,}"
        print_row(name, sampled, *(ratios([pairs[column] for pairs in found]) for column in range(4)))
    if EXHAUSTIVE in chosen:
        case = CASES[EXHAUSTIVE]
        source = location(case, data, out)
        print_exhaustive(source, make_plan(case, source, out / f"{EXHAUSTIVE.replace(' ', '-')}-0"), out)


def exists(case: Case, data: Path) -> bool:
    """Return whether a source is there."""
    return case.source.startswith("synthetic:") or (data / case.source).exists()


def location(case: Case, data: Path, out: Path) -> str:
    """Return where a source is: of a Parquet file with a limit, a copy of its first rows."""
    import pyarrow.parquet as pq

    if case.source.startswith("synthetic:"):
        return case.source
    if case.limit is None:
        return str(data / case.source)
    part = out / f"{case.limit}-{Path(case.source).name}"
    if not part.exists():
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(data / case.source).slice(0, case.limit), part, row_group_size=1000)
    return str(part)


# Plans and audits -----------------------------------------------------------------------------------------------------


def make_plan(case: Case, source: str, folder: Path) -> JSON:
    """Plan in a child process, unless the plan exists."""
    file = folder / "plan.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ("--fresh", FRESH, "--epochs", EPOCHS)
        file.write_text(run_joulecache("plan", source, "--chain", case.chain, *options, "--json"))
    plan: JSON = json.loads(file.read_text())
    return plan


AUDIT = """
import json, sys
from joulecache.pipelines import audit
from joulecache.pipelines.auditing.config import Budget
from joulecache.pipelines.core.progress import stdout_to_stderr
with stdout_to_stderr():
    result = audit(**json.loads(sys.argv[1]), budget=Budget(stage_run_s=None))
print(json.dumps(result.to_json()))
"""


def run_audit(plan: JSON, source: str, folder: Path, pairs: int) -> JSON:
    """Audit the chain of the best raw Arrow cache in a child process, unless the report exists."""
    file = folder / "audit.json"
    if not file.exists():
        arguments = {
            "source": source,
            "chain": raw_choice(plan)["chain"],
            "out": str(folder / "audit"),
            "arms": ["naive", "tuned", "optimized"],
            "workloads": ["input"],
            "pairs": pairs,
            "epochs": EPOCHS,
        }
        file.write_text(run_python(AUDIT, json.dumps(arguments)))
    audit: JSON = json.loads(file.read_text())
    return audit


def raw_choice(plan: JSON) -> JSON:
    """Return the best choice that an audit can measure: a raw Arrow cache of one variant."""
    wanted = ("arrow", "raw", 1)
    choices: Sequence[JSON] = [choice for choice in plan["choices"] if choice["way"]]
    return next(
        choice
        for choice in choices
        if (choice["way"]["format"], choice["way"]["encoding"], choice["variants"]) == wanted
    )


def compare(plan: JSON, audit: JSON) -> list[Pair]:
    """Return the energies of an epoch from the cache, of one online, and of the build, and the break-even."""
    [result] = audit["workloads"]
    images = audit["records"]["train"]
    epoch_j = {arm["name"]: arm["active_j_per_1000"]["value"] * images / 1000 for arm in result["arms"]}
    against = next(each for each in result["comparisons"] if each["other"] == "tuned")
    cached, online = raw_choice(plan), next(choice for choice in plan["choices"] if choice["way"] is None)
    return [
        (cached["epoch_j"]["value"], epoch_j["optimized"]),
        (online["epoch_j"]["value"], epoch_j["tuned"]),
        (cached["build_j"]["value"], audit["build"]["active_j"]),
        (cached["break_even_epochs"], against["break_even"]["epochs"]),
    ]


def ratios(pairs: Sequence[Pair]) -> str:
    """Return a cell: the first pair, and the ratios of predicted and measured values."""
    known = [(predicted, measured) for predicted, measured in pairs if predicted is not None and measured is not None]
    if len(known) < len(pairs):
        return "; ".join(f"{predicted} / {measured}" for predicted, measured in pairs)
    found = [predicted / measured for predicted, measured in known]
    first = f"{known[0][0]:.3g} / {known[0][1]:.3g}"
    return f"{first}: {statistics.geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


# Every choice ---------------------------------------------------------------------------------------------------------


def print_exhaustive(source: str, plan: JSON, out: Path) -> None:
    """Build and iterate every choice in full, and print how far the plan's choice is from the best of them."""
    built_j, arms = build_choices(source, plan, out)
    epoch_j = measure_epochs(arms)
    measured_j = {
        number: built_j[number] + EPOCHS * epoch_j[number] + plan["choices"][number]["storage_j"]["value"]
        for number in arms
    }
    print(
        f"\nEvery choice for {EXHAUSTIVE}, built and iterated in full: joules over {EPOCHS} epochs, storage as planned.\n"
    )
    print_head("choice", "predicted / measured (ratio)", "of the best measured")
    for number, total_j in sorted(measured_j.items(), key=lambda item: item[1]):
        choice = plan["choices"][number]
        predicted_j = choice["total_j"]["value"]
        name = title(choice) + (" (the plan's choice)" if number == 0 else "")
        cell = f"{predicted_j:.3g} / {total_j:.3g} ({predicted_j / total_j:.2f})"
        print_row(name, cell, f"{total_j / min(measured_j.values()):.3f}")


def title(choice: JSON) -> str:
    """Return the title of a choice."""
    layout = choice["way"]
    if layout is None:
        return "online"
    encoding = f"{layout['encoding']} {layout['quality'] or ''}".strip()
    return f"{code(choice['chain'])}, {layout['format']}, {encoding}, {choice['variants']} variants"


def build_choices(source: str, plan: JSON, out: Path) -> tuple[dict[int, float], dict[int, Arm]]:
    """Build all caches by the plan's commands; return the active joules of each build, and arms that load them."""
    from joulecache.pipelines.core.progress import silent
    from joulecache.pipelines.experiment.arms import Arm, make_arms
    from joulecache.pipelines.experiment.files import list_files, unpack
    from joulecache.pipelines.source import open_source

    built_j: dict[int, float] = {}
    arms: dict[int, Arm] = {}
    caches: list[Path] = []
    for number, choice in enumerate(plan["choices"]):
        if choice["way"] is not None:
            caches.append(out / f"choice-{number}")
            words = shlex.split(choice["command"])
            words[words.index("cache/")] = str(caches[-1])
            manifest = json.loads(run_joulecache(*words[1:], "--json"))["manifest"]
            built_j[number] = jc.Energy.from_json(manifest["energy"]["energy"]).active_j
            images = manifest["splits"]["train"]["records"]
            arms[number] = Arm("optimized", images, jc.load(caches[-1], "train", 64))
    online = next(number for number, choice in enumerate(plan["choices"]) if choice["way"] is None)
    cache = jc.open_cache(caches[0])
    files = list_files(unpack(open_source(source), out, silent).folder, cache, 1)
    built_j[online], [arms[online]] = 0.0, make_arms(["tuned"], files, cache, 64)
    return built_j, arms


def measure_epochs(arms: Mapping[int, Arm]) -> dict[int, float]:
    """Return the active joules of an epoch of each arm: the median of interleaved rounds."""
    from joulecache.pipelines.experiment.workloads import InputOnly

    epochs: dict[int, int] = {}
    for number, arm in arms.items():
        InputOnly().run(arm, 0)
        begun_s = time.process_time()
        InputOnly().run(arm, 0)
        epochs[number] = max(1, round(PASS_S / (time.process_time() - begun_s)))
    meter = jc.Meter()
    spent_j: dict[int, list[float]] = {number: [] for number in arms}
    for turn in range(ROUNDS):
        for number in random.Random(turn).sample(list(arms), len(arms)):
            with meter.window("epochs") as window:
                InputOnly(epochs=epochs[number]).run(arms[number], 0)
            spent_j[number].append(window.energy.active_j / epochs[number])
    return {number: statistics.median(values) for number, values in spent_j.items()}


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES)
    given = parser.parse_args()
    main(given.data, given.out, given.pairs, given.repeats, given.only)
