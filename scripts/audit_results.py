#!/usr/bin/env python3
"""Audit photos at two sizes and CIFAR-10 with three models, and print what paid and what did not, as Markdown.

    scripts/audit_results.py DATA OUT > docs/results.md

DATA is a folder with dogs_cats.tar, photos, and cifar10/train.parquet. OUT keeps the audits, each with its report; those that are there
are not run again, and one that was stopped goes on. Takes about an hour on two cores; nothing else should run.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import ROOT, enter


@dataclass(frozen=True)
class Case:
    """A source and what is done to its images."""

    title: str
    source: str
    chain: str
    limit: int | None = None


MODELS = ("cnn", "resnet8", "mobilenet:0.25")
HORIZON = 30
SOURCES = {
    "photos-64": Case(
        "Photos of cats and dogs, 64x64", "dogs_cats.tar", "decode|resize(72) || random_crop(64)|flip_lr", 700
    ),
    "photos-224": Case(
        "Photos of cats and dogs, 224x224", "dogs_cats.tar", "decode|resize(256) || random_crop(224)|flip_lr", 140
    ),
    "cifar10": Case(
        "CIFAR-10, 32x32",
        "cifar10/train.parquet",
        "decode|central_crop(32)|pad(4, padding_mode='reflect') || random_crop(32)|flip_lr",
        2_000,
    ),
}
TRAINED_EPOCHS = 1
TRAININGS = 5  # blocks: the default of trainings; where nothing else is measured, of the stages too


def main(data: Path, out: Path) -> None:
    """Print the page."""
    audits = {name: [audited(name, model, data, out) for model in MODELS] for name in SOURCES}
    print(head(audits))
    for name, bodies in audits.items():
        print(section(SOURCES[name], bodies, data))


def audited(name: str, model: str, data: Path, out: Path) -> dict[str, Any]:
    """Audit in a process of its own, or read the audit that is there; the input alone is measured with the first model."""
    case, folder = SOURCES[name], out / f"{name}-{model.partition(':')[0]}"
    file = folder / "report.json"
    if not file.exists():
        workload = "input,train" if model == MODELS[0] else "train"
        arguments = ["audit", str(data / case.source), "--chain", case.chain, "--model", model, "--workload", workload]
        arguments += ["--train-epochs", str(TRAINED_EPOCHS), "--epochs", str(HORIZON), "--out", str(folder)]
        arguments += [] if case.limit is None else ["--limit", str(case.limit)]
        arguments += [] if model == MODELS[0] else ["--pairs", str(TRAININGS)]
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from joulecache.pipelines.cli import main; main()"
        print(f"joulecache {shlex.join(arguments)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, check=True)
    return json.loads(file.read_text("utf-8"))


def head(audits: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return what holds for all audits, and what did not pay in any."""
    from joulecache.pipelines.report import verdict

    bodies = [body for of in audits.values() for body in of]
    provenance = bodies[0]["provenance"]
    meter, versions = provenance["meter"], provenance["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    arms = [arm for body in bodies for result in body["workloads"] for arm in result["arms"]]
    flagged = sum(arm["flagged_runs"] for arm in arms)
    lines = [
        "# Results",
        "",
        f"Audits of one machine: {meter['cpu']}, {meter['vcpus']:g} vCPUs, {provenance['platform'].partition('-')[0]}, "
        f"Python {provenance['python']}, {named}. Joules: {meter['method']}. Hot page cache. Made by `scripts/audit_results.py` "
        f"from the reports of the audits; batches of {provenance['batch_size']}, "
        f"a training run is {TRAINED_EPOCHS} epoch, the horizon of the verdicts {HORIZON} epochs.",
        "",
        f"The machine is shared: the meter flagged {flagged:,} of {sum(arm['runs'] for arm in arms):,} runs, since other processes or the "
        "hypervisor took a part of the processors' time. All of them are counted.",
        "",
        "## What did not pay",
        "",
    ]
    for name, of in audits.items():
        for body in of:
            for result in body["workloads"]:
                for compared in result["comparisons"]:
                    if compared["finding"] != "saves" or compared["horizon_ratio"] >= 1:
                        said = verdict.statement(result, compared, body)
                        lines.append(
                            f"- {SOURCES[name].title}, {job(result, body)}, against `{compared['other']}`: {said.claim} {said.detail}"
                        )
    return "\n".join([*lines, ""])


def section(case: Case, bodies: list[dict[str, Any]], data: Path) -> str:
    """Return what the audits of one source found."""
    first = bodies[0]
    lines = [f"## {case.title}", "", f"{first['records']['train']:,} training images, chain `{first['chain']}`.", ""]
    lines += ["```bash", *(command(body, data) for body in bodies), "```", ""]
    lines += [*table(bodies), "", *stage_table(bodies)]
    return "\n".join([*lines, ""])


def command(body: dict[str, Any], data: Path) -> str:
    """Return the command of an audit, without this machine's folders."""
    words = ["joulecache", *body["provenance"]["command"][1:]]
    words[words.index("--out") + 1] = "audit/"
    words[2] = words[2].removeprefix(f"{data}/")
    return shlex.join(words)


def table(bodies: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of the comparisons."""
    from joulecache.pipelines.report import figures

    yield (
        "| what is measured | active J per 1,000 images: "
        + " | ".join(arm["name"] for arm in bodies[0]["workloads"][0]["arms"])
        + (
            " | against | ratio of the cache (95%) | finding | paid back after, epochs | over the horizon, build included |"
        )
    )
    arms = len(bodies[0]["workloads"][0]["arms"])
    yield f"|---|{'---:|' * arms}---|---:|---|---:|---:|"
    for body in bodies:
        for result in body["workloads"]:
            spent = [figures.number(arm["active_j_per_1000"]["value"]) for arm in result["arms"]]
            for place, compared in enumerate(result["comparisons"]):
                paid = compared["break_even"]
                cells = [job(result, body), *spent] if place == 0 else [""] * (1 + arms)
                cells += [
                    f"`{compared['other']}`",
                    figures.ratio_range(compared["ratio"]),
                    compared["finding"],
                    figures.epochs_to(paid, compared["ratio"]).replace(" epochs", ""),
                    figures.plain_ratio(compared["horizon_ratio"]),
                ]
                yield f"| {' | '.join(cells)} |"


def stage_table(bodies: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of where the joules of a training go in the naive arm, for each model."""
    from joulecache.pipelines.report import figures

    found = [body["stages"] for body in bodies]
    yield "Where the active joules of a training go in `naive`, per 1,000 images, by cutting it off behind each step:"
    yield ""
    yield "| stage | " + " | ".join(f"`{body['provenance']['model']}` | share" for body in bodies) + " |"
    yield f"|---|{'---:|---:|' * len(bodies)}"
    rows = {stage["name"]: [] for stages in found for stage in stages["stages"]}
    for stages in found:
        of = {stage["name"]: stage for stage in stages["stages"]}
        for name, cells in rows.items():
            value = of[name]["active_j_per_1000"]
            shown = f"below resolution (at most {figures.joules(of[name]['high'])})"
            cells += [shown, ""] if value is None else [figures.joules(value), share(value, stages)]
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"
    rest = [each for stages in found for each in both_of(stages["unattributed_j_per_1000"], stages)]
    yield f"| unattributed | {' | '.join(rest)} |"
    yield f"| the whole | {' | '.join(each for s in found for each in both_of(s['whole_j_per_1000'], s))} |"


def both_of(value_j: float, stages: dict[str, Any]) -> tuple[str, str]:
    """Return joules and their share of the whole, as two cells."""
    from joulecache.pipelines.report import figures

    return figures.joules(value_j), share(value_j, stages)


def share(value_j: float, stages: dict[str, Any]) -> str:
    """Return joules as a share of the whole."""
    return f"{value_j / stages['whole_j_per_1000']:.1%}"


def job(result: dict[str, Any], body: dict[str, Any]) -> str:
    """Say what was measured."""
    return "the input alone" if result["workload"] == "input" else f"training `{body['provenance']['model']}`"


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    main(given.data, given.out)
