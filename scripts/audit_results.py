#!/usr/bin/env python3
"""Audit photos at two sizes, CIFAR-10, boxes and masks, with one or two models each, and print what paid off as Markdown.

    scripts/audit_results.py DATA OUT [SOURCE ...] > docs/results.md

DATA is a folder with dogs_cats.tar, photos, cifar10/train.parquet, bccd, with boxes, and membrane, with masks. OUT keeps the
audits with their reports: finished ones are not repeated, and an interrupted one resumes. Takes 25 minutes on two cores;
nothing else should run.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from environment import argument_parser, enter, run_joulecache
from tables import print_row, print_rule

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.results import Audit, Stage, Stages
    from joulecache.pipelines.experiment.results import WorkloadResult


@dataclass(frozen=True)
class Case:
    """A source, what is done to its images, and the models that train on them.

    Attributes:
        files: Options with a file or folder in DATA.
    """

    title: str
    source: str
    chain: str
    limit: int | None = None
    models: tuple[str, ...] = ("cnn",)
    files: Mapping[str, str] = field(default_factory=dict)


HORIZON = 30
SOURCES = {
    "photos-64": Case(
        "Photos of cats and dogs, 64x64",
        "dogs_cats.tar",
        "decode|resize(72) || random_crop(64)|flip_lr",
        700,
        ("cnn", "resnet8"),
    ),
    "photos-224": Case(
        "Photos of cats and dogs, 224x224",
        "dogs_cats.tar",
        "decode|resize(256) || random_crop(224)|flip_lr",
        140,
        ("resnet8",),
    ),
    "cifar10": Case(
        "CIFAR-10, 32x32",
        "cifar10/train.parquet",
        "decode|central_crop(32)|pad(4, padding_mode='reflect') || random_crop(32)|flip_lr",
        2_000,
        ("cnn",),
    ),
    "boxes": Case(
        "Blood cells with boxes, 224x224",
        "bccd",
        "decode|resize(256) || random_crop(224)|flip_lr",
        models=("scripts.target_models:first_box",),
        files={"--coco": "bccd/instances.json"},
    ),
    "masks": Case(
        "Cell membranes with masks, 224x224",
        "membrane/images",
        "decode|resize(256) || random_crop(224)|flip_lr",
        models=("scripts.target_models:unet",),
        files={"--masks": "membrane/masks"},
    ),
}
TRAINED_EPOCHS = 1
TRAININGS = 5  # blocks: the default for training, used here also for stages where an audit measures nothing else

Audits = Sequence["Audit"]
"""The audits of one source, one for each model."""


def main(data: Path, out: Path, sources: Sequence[str]) -> None:
    """Print the page, or the part of it about some sources."""
    audits = {name: [run_audit(name, model, data, out) for model in SOURCES[name].models] for name in sources}
    print_start(audits)
    for name, found in audits.items():
        print_section(SOURCES[name], found, data)


def run_audit(name: str, model: str, data: Path, out: Path) -> Audit:
    """Audit in a child process, unless the report exists. Input alone is measured with the first model only."""
    from joulecache.pipelines.report.files import read_report

    case, folder = SOURCES[name], out / f"{name}-{model.partition(':')[0]}"
    is_first = model == case.models[0]
    report = folder / "report.json"
    if not report.exists():
        workload = "input,train" if is_first else "train"
        arguments = ["audit", str(data / case.source), "--chain", case.chain, "--model", model, "--workload", workload]
        arguments += ["--train-epochs", str(TRAINED_EPOCHS), "--epochs", str(HORIZON), "--out", str(folder)]
        arguments += [] if case.limit is None else ["--limit", str(case.limit)]
        arguments += [] if is_first else ["--pairs", str(TRAININGS)]
        arguments += [word for option, name in case.files.items() for word in (option, str(data / name))]
        print(f"joulecache {shlex.join(arguments)}", file=sys.stderr, flush=True)
        run_joulecache(*arguments)
    return read_report(report)


def print_start(audits: Mapping[str, Audits]) -> None:
    """Print facts common to all audits, and the comparisons in which the cache did not pay."""
    everything = [audit for found in audits.values() for audit in found]
    run = everything[0].provenance
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version)
    arms = [arm for audit in everything for result in audit.workloads for arm in result.arms]
    flagged, runs = sum(arm.flagged_runs for arm in arms), sum(arm.runs for arm in arms)
    print(
        "# Results\n\n"
        f"Audits of one machine: {run.meter.cpu}, {run.meter.vcpus:g} vCPUs, {run.platform.partition('-')[0]}, Python {run.python}, "
        f"{versions}. Joules: {run.meter.method}. Hot page cache. Made by `scripts/audit_results.py` from the reports of the audits; "
        f"batches of {run.batch_size}, a training run is {TRAINED_EPOCHS} epoch, the horizon of the verdicts {HORIZON} epochs.\n\n"
        f"The machine is shared: the meter flagged {flagged:,} of {runs:,} runs, since other processes or the hypervisor used part of the "
        "processors' time. All of them are counted.\n\n"
        "## What did not pay\n"
    )
    for name, found in audits.items():
        for audit in found:
            print_losses(SOURCES[name].title, audit)
    print()


def print_losses(title: str, audit: Audit) -> None:
    """Print the comparisons in which the cache did not pay."""
    from joulecache.pipelines.report.describe.verdict import horizon_of, sentences

    for result in audit.workloads:
        for compared, sentence in zip(result.comparisons, sentences(result, audit), strict=True):
            if horizon_of(result, compared, audit).finding != "saves":
                about = f"{title}, {job(result, audit)}, against `{compared.other}`"
                print(f"- {about}: {sentence.claim} {sentence.detail}")


def print_section(case: Case, audits: Audits, data: Path) -> None:
    """Print the results of one source."""
    first = audits[0]
    assert first.records is not None
    print(f"## {case.title}\n\n{first.records.train:,} training images, chain `{first.chain}`.\n\n```bash")
    for audit in audits:
        print(command(audit, data))
    print("```\n")
    print_comparisons(audits)
    print()
    print_stages(audits)
    print()


def command(audit: Audit, data: Path) -> str:
    """Return the command of an audit, without folders of this machine."""
    words = ["joulecache", *audit.provenance.command[1:]]
    words[words.index("--out") + 1] = "audit/"
    return shlex.join(word.removeprefix(f"{data}/") for word in words)


def print_comparisons(audits: Audits) -> None:
    """Print the table of the comparisons."""
    from joulecache.pipelines.core import quantities
    from joulecache.pipelines.report.describe.values import epochs_to, ratio
    from joulecache.pipelines.report.describe.verdict import horizon_of

    arms = [arm.name for arm in audits[0].workloads[0].arms]
    titles = (
        "against",
        "ratio per epoch (95%)",
        "paid back after",
        f"ratio over {HORIZON} epochs, build included",
        "finding",
    )
    print_row("what is measured", "active J per 1,000 images: " + " | ".join(arms), *titles)
    print(f"|---|{'---:|' * len(arms)}---|---:|---:|---:|---|")
    for audit in audits:
        for result in audit.workloads:
            spent = [quantities.number(arm.active_j_per_1000.value) for arm in result.arms]
            for row, compared in enumerate(result.comparisons):
                whole = horizon_of(result, compared, audit)
                print_row(
                    *([job(result, audit), *spent] if row == 0 else [""] * (1 + len(arms))),
                    f"`{compared.other}`",
                    ratio(compared.ratio),
                    epochs_to(compared.break_even, compared.ratio),
                    ratio(whole.ratio),
                    whole.finding,
                )


def print_stages(audits: Audits) -> None:
    """Print where the energy of training in the naive arm goes, for each model."""
    found = [audit.stages for audit in audits if audit.stages is not None]
    print("Where the active joules of a training go in `naive`, per 1,000 images, by cutting it off after each step:\n")
    print_row("stage", *(f"`{audit.provenance.model}` | share" for audit in audits))
    print_rule(1, 2 * len(audits))
    for same in zip(*(stages.stages for stages in found), strict=True):
        cells = [stage_cells(stage, stages) for stage, stages in zip(same, found, strict=True)]
        print_row(same[0].name, *cells)
    print_row("unattributed", *(with_share(stages.unattributed_j_per_1000, stages) for stages in found))
    print_row("the whole", *(with_share(stages.whole_j_per_1000, stages) for stages in found))


def stage_cells(stage: Stage, stages: Stages) -> str:
    """Return the joules of a stage and their share of the whole, as two cells."""
    from joulecache.pipelines.core import quantities

    if stage.active_j_per_1000 is None:
        return f"below resolution (at most {quantities.joules(stage.high)}) | "
    return with_share(stage.active_j_per_1000, stages)


def with_share(value_j: float, stages: Stages) -> str:
    """Return joules and their share of the whole, as two cells."""
    from joulecache.pipelines.core import quantities

    return f"{quantities.joules(value_j)} | {quantities.share(value_j / stages.whole_j_per_1000)}"


def job(result: WorkloadResult, audit: Audit) -> str:
    """Return what was measured."""
    return "input only" if result.workload == "input" else f"training `{audit.provenance.model}`"


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", choices=[[], *SOURCES])
    given = parser.parse_args()
    main(given.data, given.out, given.sources or [*SOURCES])
