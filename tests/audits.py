"""Audits, compressions and plans with known values, and readers of what reports show, for tests that measure nothing."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any, Literal

from markdown_it import MarkdownIt
from rich.console import Console

from joulecache.pipelines.auditing.results import (
    Audit,
    BuildFacts,
    DrawReuse,
    Example,
    ExampleImage,
    PipelineFacts,
    RecordCounts,
    Stage,
    Stages,
    VariantPoint,
)
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import Compression, ModelFile
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.energy import COMPONENTS, Component, Contamination, Energy, Meter
from joulecache.pipelines.energy.storage import storage_energy
from joulecache.pipelines.experiment.claims import Finding, inferiority
from joulecache.pipelines.experiment.results import (
    AccuracyRange,
    ArmResult,
    BackgroundLoad,
    Comparison,
    Joules,
    PartResult,
    RunProvenance,
    Threads,
    Waiting,
    WorkloadResult,
)
from joulecache.pipelines.experiment.statistics import BreakEven, Ratio
from joulecache.pipelines.planning.results import CacheLayout, Choice, Plan, StepCost
from joulecache.pipelines.report.document import Document
from joulecache.pipelines.report.render.terminal import print_document
from joulecache.transforms.chain import parse

ARMS = ("naive", "tuned", "tf_cache", "optimized")
MODELLED = "modelled:cpu-seconds@1"
CPU_US = {"naive": 1103.2, "tuned": 1011.8, "tf_cache": 42.92, "optimized": 40.23}


def energy(scale: float = 1.0, method: str = MODELLED, active: str = MODELLED) -> Energy:
    def part(value: float, method: str) -> Component:
        ends = (scale * value, scale * value * 0.4, scale * value * 2.2)
        return Component(*ends, method, "a <published> table", "process tree", "1 us")

    parts: dict[str, Component | None] = dict.fromkeys(COMPONENTS)
    return Energy(
        components={**parts, "cpu": part(5.804, method), "idle": part(3.211, method)},
        active=part(5.804, active),
        duration_s=2.17,
        cpu_s=2.073,
        read_bytes=65_362_550,
        written_bytes=21_592_099,
        peak_rss_bytes=784_982_016,
        carbon_g=None,
    )


def joules(value: float) -> Joules:
    return Joules(value, value * 0.387, value * 2.164)


def ratio(value: float, blocks: int = 5, spread: float = 0.05) -> Ratio:
    if blocks == 1:
        return Ratio(value, None, None, 1)
    return Ratio(value, value * (1 - spread), value * (1 + spread), blocks)


def arm(name: str, cpu_us: float, *, blocks: int, learned: bool, found: Finding = "saves") -> ArmResult:
    once = {"tf_cache": 3.915, "optimized": 6.383}.get(name, 0.0)
    return ArmResult(
        name=name,
        runs=blocks,
        images_per_run=1259,
        active_j_per_1000=joules(cpu_us * 0.0031),
        active_j_per_1000_by_block=(cpu_us * 0.0031,) * blocks,
        total_j_per_1000=joules(cpu_us * 0.0047),
        cpu_us_per_image=cpu_us,
        wall_us_per_image=cpu_us * 0.83,
        images_per_s=1.2e6 / cpu_us,
        read_bytes_per_image=None,
        peak_rss_bytes=871_546_880,
        carbon_g_per_1000=None,
        one_time=joules(once),
        ratio=ratio(cpu_us / CPU_US["naive"], blocks, 0.0 if name == "naive" else 0.05),
        finding=found,
        why="the interval lies below 1, for every value of the coefficients",
        accuracy=AccuracyRange(0.5535, 0.4928, 0.6142) if learned else None,
        contamination=BackgroundLoad(others=0.004, steal=0.0, cpu_stall=0.31, memory_stall=None, io_stall=0.0),
        flags=(),
        flagged_runs=0,
        parts=(),
    )


def workload(name: str = "input", blocks: int = 5, against_cache: Finding = "costs") -> WorkloadResult:
    def compared(other: str) -> Comparison:
        if other == "tf_cache":
            paid = BreakEven(None, None if blocks == 1 else 48.7, None)
            return Comparison(other, ratio(1.081, blocks, 0.02), against_cache, "as measured", paid, 1, paid, 1.123)
        paid = BreakEven(1.535, *((None, None) if blocks == 1 else (1.487, 2.169)))
        value = CPU_US["optimized"] / CPU_US[other]
        return Comparison(other, ratio(value, blocks), "saves", "the interval lies below 1", paid, 1, paid, 0.085)

    arms = tuple(arm(each, CPU_US[each], blocks=blocks, learned=name == "train") for each in ARMS)
    others = tuple(compared(other) for other in ARMS[:-1])
    return WorkloadResult(name, blocks, 1, ratio(1.003, blocks, 0.02), arms, others)


def model_file(
    name: str, size: int, accuracy: float, cpu_ms: float, dense: str | None = None, **changes: Any
) -> ModelFile:
    return dataclasses.replace(
        ModelFile(
            name=name,
            file_name=f"{name}.tflite",
            parameters=size // 4,
            nonzero_weights=size // 5,
            macs=size * 10,
            file_bytes=size,
            gzip_bytes=size * 9 // 10,
            accuracy=accuracy,
            accuracy_low=accuracy - 0.08,
            accuracy_high=accuracy + 0.07,
            images=140,
            cpu_ms_per_image=cpu_ms,
            cpu_ms_per_image_median=cpu_ms * 1.02,
            runs=5,
            batch_size=32,
            energy_per_image=energy(cpu_ms * 5e-4),
            dense=dense,
            faster_than_dense=None if dense is None else True,
            finetune_energy=None,
            inferences_to_pay_back=None,
        ),
        **changes,
    )


BASELINE = model_file("baseline", 2_589_844, 0.614, 0.4448)


def compression(*files: ModelFile, **changes: Any) -> Compression:
    spent: dict[str, Any] = {"finetune_energy": energy(2.1)}
    less: dict[str, Any] = {"finetune_energy": energy(1.3)}
    measured = files or (
        BASELINE,
        model_file("control", 2_589_844, 0.621, 0.4451, **spent),
        model_file("pruned-float32", 652_052, 0.6, 0.1521, "control", **less, inferences_to_pay_back=9876.5),
        model_file("control-int8", 662_208, 0.607, 0.5012, "control", **spent, faster_than_dense=False),
        model_file("pruned-int8", 170_208, 0.593, 0.1856, "control-int8", **less, inferences_to_pay_back=8234.5),
    )
    made = Compression(
        model_files=measured,
        recipe=Recipe(prune=0.5, protected=("conv_2",), quantize="int8"),
        seed=0,
        widths={"conv_1": (32, 16)},
        calibration_images=200,
        accuracies={each.name: (each.accuracy,) for each in measured},
    )
    return dataclasses.replace(made, **changes)


def make_audit(*workloads: WorkloadResult, **changes: Any) -> Audit:
    build = energy()
    audit = Audit(
        source="photos.tar",
        chain="decode|resize(72) || random_crop(64)|flip_lr",
        pipelines=(),
        reference="naive",
        cached="optimized",
        records=RecordCounts(train=1259, val=140, rejected=3, skipped=1),
        class_names=("cat", "dog"),
        horizon_epochs=30,
        pixel_difference={"naive": 0.0851, "optimized": 0.0},
        build=BuildFacts(
            energy=build,
            source_bytes=32_253_194,
            cache_bytes=21_473_478,
            storage_per_day=storage_energy(21_473_478, 1),
            format="arrow",
            encoding="raw",
            variants=1,
        ),
        workloads=workloads or (workload(), workload("train")),
        left_out={},
        compression=compression(),
        energy=build,
        method=build.method,
        provenance=RunProvenance(
            command=("/opt/bin/joulecache", "audit", "photos.tar", "--out", "my audit"),
            seed=7,
            batch_size=64,
            model="cnn",
            train_epochs=3,
            steps=None,
            threads=Threads(cpus=2, intra_op=0, inter_op=4),
            platform="Linux",
            python="3.11.7",
            versions={"joulecache": "0.1.0", "keras": None},
            meter=Meter().provenance(),
        ),
    )
    return dataclasses.replace(audit, **changes)


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


def part(name: str, whole: ArmResult, share: float) -> PartResult:
    spent = joules(whole.active_j_per_1000.value * share)
    return PartResult(name, spent, whole.wall_us_per_image * share, ratio(share))


def own_audit(*names: str, found: Finding = "saves") -> Audit:
    """An audit of custom pipelines, each of which takes half as much as the one before it; the last waits for its input."""

    def measured(learns: str) -> WorkloadResult:
        arms = []
        for place, name in enumerate(names):
            made = arm(name, 1000 / 2**place, blocks=5, learned=False, found=found)
            made = dataclasses.replace(
                made, one_time=Joules(0, 0, 0), ratio=ratio(1 / 2**place, spread=0.05 * (place > 0))
            )
            if learns == "train":
                parts = (part("input", made, 0.25), part("training", made, 0.8))
                made = dataclasses.replace(made, parts=parts)
            if learns == "train" and name == names[-1]:
                made = dataclasses.replace(made, waiting=Waiting(0.125, joules(0.5), 0.1, MODELLED, at_most=True))
            arms.append(made)
        return WorkloadResult(learns, 5, 1, ratio(1.003, spread=0.02), tuple(arms), ())

    facts = tuple(
        PipelineFacts(name, f"code:{name}", "code.py", "0123456789abcdef" * 4, "uint8 [8, 20, 20, 3]", 20, 3, ())
        for name in names
    )
    provenance = make_audit().provenance
    return make_audit(
        measured("input"),
        measured("train"),
        source=None,
        chain=None,
        pipelines=facts,
        reference=names[0],
        cached=None,
        records=None,
        class_names=(),
        horizon_epochs=None,
        pixel_difference={},
        build=None,
        compression=None,
        provenance=dataclasses.replace(provenance, batch_size=None, steps=3),
    )


STAGES: dict[str, float | None] = {
    "tf.data": 0.15,
    "read": 0.1,
    "decode": 1.2,
    "resize(72)": 0.9,
    "random_crop(64)": None,
    "flip_lr": 0.05,
    "batch": 0.1,
    "copy": None,
    "training step": 2.0,
}


def stages(
    unattributed: float = 0.5, of: Literal["input", "train"] = "train", known: Mapping[str, float | None] = STAGES
) -> Stages:
    """Return stages that add up to all but so many joules of the whole."""
    made = []
    for name, value in known.items():
        if of == "train" or name not in ("copy", "training step"):
            ends = (0.0, 0.07) if value is None else (0.9 * value, 1.1 * value)
            made.append(Stage(name, value, *ends, name in ("read", "decode", "resize(72)")))
    whole = sum(stage.active_j_per_1000 or 0.0 for stage in made) + unattributed
    return Stages("train" if of == "train" else "input", 10, 640, tuple(made), whole, unattributed)


WAITED = Waiting(0.62, Joules(1.5, 1.2, 1.9), 0.31, MODELLED, at_most=False)


def staged(found: Stages, waiting: Waiting | None = WAITED, **changes: Any) -> Audit:
    """Return an audit with stages, in which naive waited while it was trained on."""
    trained = workload("train")
    arms = [dataclasses.replace(each, waiting=waiting if each.name == "naive" else None) for each in trained.arms]
    return make_audit(workload(), dataclasses.replace(trained, arms=tuple(arms)), stages=found, **changes)


SHAKEN = Contamination(
    capacity_s=4.34,
    resolution_s=0.02,
    machine_cpu_s=2.1,
    steal_s=0.4,
    cpu_stall_s=None,
    memory_stall_s=None,
    io_stall_s=None,
)
"""The machine in a window that the meter flags."""
STOLEN = "the hypervisor took 9% of the processors' time"
"""Its flag."""

FRESH = (0.80, 0.81, 0.79, 0.80, 0.82)


def point(name: str, variants: int, accuracies: Sequence[float], joules: float) -> VariantPoint:
    against = [a - b for a, b in zip(accuracies, FRESH, strict=True)]
    difference, found, why = (None, None, None) if name == "fresh" else inferiority(against)
    return VariantPoint(
        name=name,
        variants=variants,
        build=energy(),
        build_epochs=8 if name == "fresh" else 30,
        cache_bytes=21_000_000 * variants,
        train_reuse=8 / variants,
        active_j_per_1000=Joules(joules, joules * 0.4, joules * 2),
        with_build_j_per_1000=mean_of([joules * 1.1, joules * 1.2, joules * 1.3]),
        accuracies=tuple(accuracies),
        accuracy=mean_of(accuracies),
        difference=difference,
        finding=found,
        why=why,
    )


REUSE = DrawReuse(
    variants=1,
    horizon_reuse=30,
    train_epochs=8,
    train_reuse=8,
    margin=0.005,
    points=(
        point("1 variant", 1, (0.77, 0.79, 0.768, 0.781, 0.79), 4),
        point("2 variants", 2, (0.80, 0.807, 0.788, 0.80, 0.81), 4.1),
        point("4 variants", 4, (0.81, 0.822, 0.80, 0.811, 0.828), 4.2),
        point("fresh", 8, FRESH, 5),
    ),
    not_measured=None,
)


def full_audit() -> Audit:
    """An audit with everything that an audit of a chain can have."""
    images = (ExampleImage("decode", True, "/9j/2w=="), ExampleImage("flip_lr", False, "/9j/2w=="))
    examples = (Example("cat/1.jpg", "cat", images),)
    return staged(stages(), reuse=REUSE, examples=examples)


def extreme_audit() -> Audit:
    """An audit whose values are as wide as they come."""
    result = workload("train")
    arms = tuple(
        dataclasses.replace(
            each,
            cpu_us_per_image=1.234e6,
            images_per_s=0.8123,
            active_j_per_1000=Joules(12345.0, 4567.0, 98765.0),
            one_time=Joules(123456.0, 1.0, 999999.0),
            finding="no difference shown",
        )
        for each in result.arms
    )
    return make_audit(dataclasses.replace(result, arms=arms))


def make_plan(**changes: Any) -> Plan:
    def choice(layout: CacheLayout | None, scale: float, **more: Any) -> Choice:
        priced: dict[str, Any] = {"variants": 1, "reuse": None, "cache_bytes": 1.2e9 * scale, "break_even_epochs": None}
        spent = {name: joules(scale * value) for name, value in PRICES_J.items()}
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
        method=MODELLED,
        options=("--seed", "7"),
    )
    return dataclasses.replace(plan, **changes)


PRICES_J = {"build_j": 24.0, "epoch_j": 3.21, "waiting_j": 0.0, "storage_j": 2.2, "total_j": 56.0}
