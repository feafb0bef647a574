#!/usr/bin/env python3
"""Audit photos at two sizes and CIFAR-10 with three models, and print what paid and what did not, as Markdown.

    scripts/audit_results.py DATA OUT > docs/results.md

DATA is a folder with dogs_cats.tar, photos, and cifar10/train.parquet. OUT keeps the audits, each with its report; those that are there
are not run again, and one that was stopped goes on. Takes about an hour on two cores; nothing else should run.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from environment import ROOT, enter

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.results import Audit, Stages
    from joulecache.pipelines.experiment.results import WorkloadResult


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
    for name, of in audits.items():
        print(section(SOURCES[name], of, data))


def audited(name: str, model: str, data: Path, out: Path) -> Audit:
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
    from joulecache.pipelines.report.files import read_report

    return read_report(file)


def head(audits: Mapping[str, list[Audit]]) -> str:
    """Return what holds for all audits, and what did not pay in any."""
    from joulecache.pipelines.report.describe.verdict import sentences

    everything = [audit for of in audits.values() for audit in of]
    run = everything[0].provenance
    named = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version)
    arms = [arm for audit in everything for result in audit.workloads for arm in result.arms]
    flagged = sum(arm.flagged_runs for arm in arms)
    lines = [
        "# Results",
        "",
        f"Audits of one machine: {run.meter.cpu}, {run.meter.vcpus:g} vCPUs, {run.platform.partition('-')[0]}, Python {run.python}, "
        f"{named}. Joules: {run.meter.method}. Hot page cache. Made by `scripts/audit_results.py` from the reports of the audits; "
        f"batches of {run.batch_size}, a training run is {TRAINED_EPOCHS} epoch, the horizon of the verdicts {HORIZON} epochs.",
        "",
        f"The machine is shared: the meter flagged {flagged:,} of {sum(arm.runs for arm in arms):,} runs, since other processes or the "
        "hypervisor used part of the processors' time. All of them are counted.",
        "",
        "## What did not pay",
        "",
    ]
    for name, of in audits.items():
        for audit in of:
            for result in audit.workloads:
                for compared, said in zip(result.comparisons, sentences(result, audit), strict=True):
                    if compared.finding != "saves" or compared.horizon_ratio >= 1:
                        about = f"{SOURCES[name].title}, {job(result, audit)}, against `{compared.other}`"
                        lines.append(f"- {about}: {said.claim} {said.detail}")
    return "\n".join([*lines, ""])


def section(case: Case, audits: list[Audit], data: Path) -> str:
    """Return what the audits of one source found."""
    first = audits[0]
    lines = [f"## {case.title}", "", f"{first.records.train:,} training images, chain `{first.chain}`.", ""]
    lines += ["```bash", *(command(audit, data) for audit in audits), "```", ""]
    lines += [*table(audits), "", *stage_table(audits)]
    return "\n".join([*lines, ""])


def command(audit: Audit, data: Path) -> str:
    """Return the command of an audit, without this machine's folders."""
    words = ["joulecache", *audit.provenance.command[1:]]
    words[words.index("--out") + 1] = "audit/"
    words[2] = words[2].removeprefix(f"{data}/")
    return shlex.join(words)


def table(audits: list[Audit]) -> Iterator[str]:
    """Yield the rows of the comparisons."""
    from joulecache.pipelines.core import quantities
    from joulecache.pipelines.report.describe.values import epochs_to, ratio

    names = " | ".join(arm.name for arm in audits[0].workloads[0].arms)
    against = "against | ratio of the cache (95%) | finding | paid back after | over the horizon, build included"
    yield f"| what is measured | active J per 1,000 images: {names} | {against} |"
    arms = len(audits[0].workloads[0].arms)
    yield f"|---|{'---:|' * arms}---|---:|---|---:|---:|"
    for audit in audits:
        for result in audit.workloads:
            spent = [quantities.number(arm.active_j_per_1000.value) for arm in result.arms]
            for place, compared in enumerate(result.comparisons):
                cells = [job(result, audit), *spent] if place == 0 else [""] * (1 + arms)
                cells += [
                    f"`{compared.other}`",
                    str(ratio(compared.ratio)),
                    compared.finding,
                    str(epochs_to(compared.break_even, compared.ratio)),
                    quantities.plain_ratio(compared.horizon_ratio),
                ]
                yield f"| {' | '.join(cells)} |"


def stage_table(audits: list[Audit]) -> Iterator[str]:
    """Yield the rows of where the joules of a training go in the naive arm, for each model."""
    from joulecache.pipelines.core import quantities

    found = [audit.stages for audit in audits]
    yield "Where the active joules of a training go in `naive`, per 1,000 images, by cutting it off after each step:"
    yield ""
    yield "| stage | " + " | ".join(f"`{audit.provenance.model}` | share" for audit in audits) + " |"
    yield f"|---|{'---:|---:|' * len(audits)}"
    rows = {stage.name: [] for stages in found for stage in stages.stages}
    for stages in found:
        for stage in stages.stages:
            value_j, most = stage.active_j_per_1000, quantities.joules(stage.high)
            rows[stage.name] += (
                [f"below resolution (at most {most})", ""] if value_j is None else both_of(value_j, stages)
            )
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"
    rest = [each for stages in found for each in both_of(stages.unattributed_j_per_1000, stages)]
    yield f"| unattributed | {' | '.join(rest)} |"
    yield f"| the whole | {' | '.join(each for s in found for each in both_of(s.whole_j_per_1000, s))} |"


def both_of(value_j: float, stages: Stages) -> tuple[str, str]:
    """Return joules and their share of the whole, as two cells."""
    from joulecache.pipelines.core import quantities

    return quantities.joules(value_j), quantities.share(value_j / stages.whole_j_per_1000)


def job(result: WorkloadResult, audit: Audit) -> str:
    """Say what was measured."""
    return "input only" if result.workload == "input" else f"training `{audit.provenance.model}`"


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    main(given.data, given.out)
