"""An audit of a chain and one of custom pipelines with known values, a plan, and readers of what reports show."""

from __future__ import annotations

import dataclasses
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from rich.console import Console

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.energy import Contamination
from joulecache.pipelines.experiment.results import Joules, WorkloadResult
from joulecache.pipelines.planning.results import CacheLayout, Choice, Plan, StepCost
from joulecache.pipelines.report.document import Document
from joulecache.pipelines.report.files import read_report
from joulecache.pipelines.report.render.terminal import print_document
from joulecache.transforms.chain import parse

GOLDEN = Path(__file__).parent / "golden"
AUDIT = read_report(GOLDEN / "report-1-chain.json")
"""An audit with everything that an audit of a chain can have, from a report of the first version."""
OWN = read_report(GOLDEN / "report-1-own.json")
"""An audit of three custom pipelines, each of which uses half the energy of the one before; the last waits for its input."""
INPUT, TRAIN = AUDIT.workloads
assert AUDIT.build
assert AUDIT.compression
BUILD, COMPRESSION = AUDIT.build, AUDIT.compression
ENERGY = BUILD.energy
SHAKEN = dataclasses.replace(ENERGY, contamination=Contamination(
    capacity_s=4.34, resolution_s=0.02, machine_cpu_s=2.1, steal_s=0.4, cpu_stall_s=None, memory_stall_s=None, io_stall_s=None
))  # fmt: skip
"""An energy that the meter flags."""
STOLEN = "the hypervisor took 9% of the processors' time"
"""Its flag."""


def audit_of(*workloads: WorkloadResult, **changes: Any) -> Audit:
    """Return the audit of the chain with changes."""
    return dataclasses.replace(AUDIT, workloads=workloads or AUDIT.workloads, **changes)


def with_arm(result: WorkloadResult, name: str, **changes: Any) -> WorkloadResult:
    """Return a result with changes in one arm."""
    arms = tuple(dataclasses.replace(arm, **changes) if arm.name == name else arm for arm in result.arms)
    return dataclasses.replace(result, arms=arms)


def own_audit(*names: str, **changes: Any) -> Audit:
    """Return an audit of custom pipelines with these names, with changes in each arm."""

    def kept(result: WorkloadResult) -> WorkloadResult:
        arms = [dataclasses.replace(arm, name=name, **changes) for arm, name in zip(result.arms, names, strict=False)]
        arms[-1] = dataclasses.replace(arms[-1], waiting=result.arms[-1].waiting)
        return dataclasses.replace(result, arms=tuple(arms))

    pipelines = tuple(dataclasses.replace(each, name=name) for each, name in zip(OWN.pipelines, names, strict=False))
    return dataclasses.replace(OWN, reference=names[0], pipelines=pipelines, workloads=tuple(map(kept, OWN.workloads)))


def extreme_audit() -> Audit:
    """Return an audit whose values are as wide as possible when printed."""
    wide: dict[str, Any] = {
        "cpu_us_per_image": 1.234e6,
        "images_per_s": 0.8123,
        "active_j_per_1000": Joules(12345.0, 4567.0, 98765.0),
        "one_time": Joules(123456.0, 1.0, 999999.0),
        "finding": "no difference shown",
    }
    result = TRAIN
    for arm in TRAIN.arms:
        result = with_arm(result, arm.name, **wide)
    return audit_of(result)


def make_plan(**changes: Any) -> Plan:
    prices_j = {"build_j": 24.0, "epoch_j": 3.21, "waiting_j": 0.0, "storage_j": 2.2, "total_j": 56.0}

    def choice(layout: CacheLayout | None, scale: float, **more: Any) -> Choice:
        priced: dict[str, Any] = {"variants": 1, "reuse": None, "cache_bytes": 1.2e9 * scale, "break_even_epochs": None}
        priced["error_j"] = 0.5 * scale
        spent = {
            name: Joules(scale * value, scale * value * 0.4, scale * value * 2) for name, value in prices_j.items()
        }
        return Choice(layout=layout, **{**priced, **spent, **more})

    plan = Plan(
        source="photos/",
        chain=parse("decode|resize(72)|random_crop(64)|flip_lr"),
        epochs=30,
        runs=2,
        days=30,
        disk_budget_bytes=2e9,
        records=1399,
        sampled=352,
        duration_s=61.3,
        steps=(
            StepCost("read", False, False, 12.3, 31_234),
            StepCost("decode", False, False, 737.1, 499_000),
            StepCost("resize(72)", False, False, 402.9, 15_552),
            StepCost("random_crop(64)", True, True, 9.8, 12_288),
            StepCost("flip_lr", True, True, 12.1, 12_288),
        ),
        choices=(
            choice(CacheLayout(3, "arrow", "jpeg", 95), 1, variants=8, reuse=3.75, break_even_epochs=1.234),
            choice(CacheLayout(2, "tfrecord", "raw", None), 1.3, break_even_epochs=12.34),
            choice(None, 9.88),
        ),
        too_large=3,
        online_refused=None,
        unmeasured=("arrow, png", "tfrecord, raw"),
        disk_bytes_per_s=1.2e9,
        method="modelled:cpu-seconds@1",
        options=("--seed", "7"),
    )
    return dataclasses.replace(plan, **changes)


# What renderers show


class Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, texts, and tables as rows of cells."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input", "base"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("th", "td") and self._cell is not None:
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def markdown_page(text: str) -> Page:
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def printed(document: Document, width: int = 80, *, brief: bool = True) -> str:
    out = io.StringIO()
    print_document(document, Console(file=out, width=width), brief=brief)
    return out.getvalue()
