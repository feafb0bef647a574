from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from joulecache.pipelines.auditing import results
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
from joulecache.pipelines.energy import COMPONENTS, Component, Contamination, Energy, Meter, Provenance
from joulecache.pipelines.energy.storage import storage_energy
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
from joulecache.pipelines.experiment.statistics import BreakEven, Finding, Mean, Ratio
from joulecache.pipelines.report import ReportFiles, figures, print_compression, print_verdict, verdict, write_report
from joulecache.pipelines.report.markdown import escape

Body = dict[str, Any]

ARMS = ("naive", "tuned", "tf_cache", "optimized")
EVIL = "<img src=x onerror=alert(1)>"
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


def variant(
    name: str, size: int, accuracy: float, cpu_ms: float, dense: str | None = None, **changes: Any
) -> ModelFile:
    return dataclasses.replace(
        ModelFile(
            name=name,
            path=Path("models") / f"{name}.tflite",
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


BASELINE = variant("baseline", 2_589_844, 0.614, 0.4448)


def compression(*variants: ModelFile, **changes: Any) -> Compression:
    spent: Body = {"finetune_energy": energy(2.1)}
    less: Body = {"finetune_energy": energy(1.3)}
    measured = variants or (
        BASELINE,
        variant("control", 2_589_844, 0.621, 0.4451, **spent),
        variant("pruned-float32", 652_052, 0.6, 0.1521, "control", **less, inferences_to_pay_back=9876.5),
        variant("control-int8", 662_208, 0.607, 0.5012, "control", **spent, faster_than_dense=False),
        variant("pruned-int8", 170_208, 0.593, 0.1856, "control-int8", **less, inferences_to_pay_back=8234.5),
    )
    made = Compression(
        folder=Path("models"),
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
        compression=compression().to_json(),
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


def make_body(*workloads: WorkloadResult, **changes: Any) -> Body:
    return make_audit(*workloads, **changes).to_json()


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


def render_markdown(text: str) -> Page:
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def render_html(files: ReportFiles) -> Page:
    return Page(files.html.read_text("utf-8"))


def printed(body: Mapping[str, Any], width: int = 80) -> str:
    out = io.StringIO()
    print_verdict(body, Console(file=out, width=width))
    return out.getvalue()


Write = Callable[[Mapping[str, Any]], ReportFiles]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda body: write_report(body, tmp_path / "audit")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report(make_body(), tmp_path_factory.mktemp("report"))


# JSON and its schema --------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    text = resources.files("joulecache.pipelines.report").joinpath("report-1.schema.json").read_text("utf-8")
    return dict(json.loads(text))


def test_json_is_the_body(report: ReportFiles) -> None:
    assert json.loads(report.json.read_text("utf-8")) == json.loads(json.dumps(make_body()))


def name_in_json(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("joulecache.alias", field.name))


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("arm", ArmResult),
        ("part", PartResult),
        ("pipeline", PipelineFacts),
        ("picture", ExampleImage),
        ("sample", Example),
        ("mean", Mean),
        ("reuse", DrawReuse),
        ("stage", Stage),
        ("stages", Stages),
        ("waiting", Waiting),
        ("variant_point", VariantPoint),
        ("comparison", Comparison),
        ("workload", WorkloadResult),
        ("joules", Joules),
        ("ratio", Ratio),
        ("break_even", BreakEven),
        ("energy", Energy),
        ("component", Component),
        ("variant", ModelFile),
        ("recipe", Recipe),
    ],
)
def test_schema_describes_every_field(name: str, declared: Any) -> None:
    described = schema()["$defs"][name]
    assert set(described["properties"]) == {name_in_json(field) for field in dataclasses.fields(declared)}
    assert sorted(described["required"]) == sorted(described["properties"])


def test_schema_describes_the_whole() -> None:
    described = schema()
    assert set(described["properties"]) == {"report_version", *map(name_in_json, dataclasses.fields(Audit))}
    assert described["properties"]["report_version"]["const"] == results.REPORT_VERSION
    assert set(described["$defs"]["meter"]["properties"]) == {field.name for field in dataclasses.fields(Provenance)}
    for parts in (described["$defs"]["compression"]["properties"], described["$defs"]["compression"]["required"]):
        assert set(parts) == set(compression().to_json())


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("report_version",), 2, "report_version"),
        (("workloads", 0, "arms", 1, "cpu_us_per_image"), "1103", "workloads/0/arms/1/cpu_us_per_image"),
        (("workloads", 0, "arms", 1, "accuracy"), [0.5, 0.4], "workloads/0/arms/1/accuracy"),
        (("workloads", 0, "comparisons", 0, "finding"), "wins", "workloads/0/comparisons/0/finding"),
        (("workloads", 0, "control", "low"), -1, "workloads/0/control/low"),
        (("provenance", "meter", "rapl"), None, "provenance/meter/rapl"),
        (("compression", "recipe", "sparsity"), 1.5, "compression/recipe/sparsity"),
        (("compression", "recipe", "macs"), 0, "compression/recipe/macs"),
        (("compression", "recipe", "clusters"), 1, "compression/recipe/clusters"),
        (("compression", "accuracies", "baseline"), [], "compression/accuracies/baseline"),
        (("compression", "lost", "baseline"), [0.1, 0.0], "compression/lost/baseline"),
        (("compression", "variants", 2, "faster_than_dense"), "yes", "compression/variants/2/faster_than_dense"),
        (
            ("samples",),
            [
                {
                    "key": "a.jpg",
                    "class_name": "cat",
                    "pictures": [{"step": "decode", "cached": True, "jpeg": 'x" onerror="'}],
                }
            ],
            "samples/0/pictures/0/jpeg",
        ),
        (("compression", "variants", 2, "inferences_to_pay_back"), -1, "compression/variants/2/inferences_to_pay_back"),
    ],
)
def test_a_body_that_is_none_is_refused(tmp_path: Path, path: tuple[Any, ...], value: object, place: str) -> None:
    body = json.loads(json.dumps(make_body()))
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=f"at {re.escape(place)}: "):
        write_report(body, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_a_missing_part_is_refused(write: Write) -> None:
    body = make_body()
    del body["provenance"]["seed"]
    with pytest.raises(ValueError, match="at provenance: 'seed' is a required property"):
        write(body)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(write: Write, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write(make_body(pixel_difference={"naive": value}))


def test_a_report_is_made_again_from_its_json(report: ReportFiles, tmp_path: Path) -> None:
    again = write_report(json.loads(report.json.read_text("utf-8")), tmp_path)
    assert again.json.read_bytes() == report.json.read_bytes()
    assert again.markdown.read_bytes() == report.markdown.read_bytes()
    assert again.html.read_bytes() == report.html.read_bytes()


@pytest.mark.parametrize(
    ("blocked", "written"), [("report.html", []), ("report.json", ["report.html", "report.md"])], ids=str
)
def test_json_comes_last_and_nothing_half_written_stays(tmp_path: Path, blocked: str, written: list[str]) -> None:
    (tmp_path / blocked).mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(make_body(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == written


def test_reports_need_no_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text(json.dumps(make_body()))
    code = (
        "import json, pathlib, sys\n"
        "from rich.console import Console\n"
        "import joulecache.pipelines.report as report\n"
        "assert 'matplotlib' not in sys.modules, 'matplotlib is slow to import'\n"
        "body = json.loads(pathlib.Path('body.json').read_text())\n"
        "report.print_verdict(body, Console())\n"
        "report.write_report(body, 'out')\n"
        "print('heavy:', *{'tensorflow', 'keras', 'apache_beam'} & {*sys.modules})"
    )
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"


# The same figures everywhere ------------------------------------------------------------------------------------------

_FIGURE = re.compile(r"(-?[\d,]+\.?\d*)\s*(µJ|mJ|kJ|J|µs|ms|s|kB|MB|GB|B|%)?")
_SIZES = {"µJ": 1e-6, "mJ": 1e-3, "kJ": 1e3, "µs": 1e-6, "ms": 1e-3, "kB": 1e3, "MB": 1e6, "GB": 1e9, "%": 1e-2}


def read(cell: str) -> list[float]:
    """Return the figures of a cell in units without prefix; those in brackets have the unit of the one before them."""
    value, _, ends = cell.partition("(")
    (first,) = _FIGURE.findall(value)
    size = _SIZES.get(first[1], 1.0)
    found = [float(first[0].replace(",", "")) * size]
    for number, unit in _FIGURE.findall(ends):
        found.append(float(number.replace(",", "")) * _SIZES.get(unit, size))
    return found


def close(figures: list[float], decimals: float = 0.0) -> Any:
    """Equal to three digits, or to the decimals that ratios and shares are given with."""
    return pytest.approx(figures, rel=0.00501, abs=decimals)


def with_head(page: Page, *heads: str) -> Iterator[list[dict[str, str]]]:
    for table in page.tables:
        if set(heads) <= set(table[0]):
            yield [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def test_html_and_markdown_have_the_same_tables(report: ReportFiles) -> None:
    tables = render_html(report).tables
    assert tables == render_markdown(report.markdown.read_text("utf-8")).tables
    assert len(tables) == 2 * 5 + 1 + 7


def test_html_and_markdown_say_the_same(report: ReportFiles) -> None:
    html, markdown = render_html(report).text, render_markdown(report.markdown.read_text("utf-8")).text
    for said in (
        "Training from the cache takes 96.4% less active energy per epoch than naive (95% interval 96.2% to 96.5% less).",
        "Training from the cache takes 8.1% more active energy per epoch than tf_cache (95% interval 5.9% to 10% more).",
        "The build is paid back after 1.53 epochs (1.49 to 2.17).",
        "Over 30 epochs, build included, it took 12% more energy: here tf_cache is the better choice.",
    ):
        assert said in html
        assert said in markdown


def test_the_break_even_over_several_runs_is_said() -> None:
    result = workload("train")
    naive, *others = result.comparisons
    assert "runs on the same cache" not in verdict.statements(make_body(result)["workloads"][0], make_body())[0].detail

    def said(epochs: float | None) -> str:
        over = BreakEven(epochs, epochs and 0.9 * epochs, epochs and 1.1 * epochs)
        compared = dataclasses.replace(naive, runs=4, break_even_over_runs=over)
        body = make_body(dataclasses.replace(result, comparisons=(compared, *others)))
        return str(verdict.statements(body["workloads"][0], body)[0].detail)

    assert "Over 4 runs on the same cache it is paid back after 0.380 epochs (0.342 to 0.418) each." in said(0.38)
    assert "Over 4 runs on the same cache it is never paid back" in said(None)
    assert "Over 4 runs on the same cache it is paid back at once" in said(0.0)


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_tables_have_the_figures_of_the_json(report: ReportFiles, form: str) -> None:
    page = render_html(report) if form == "html" else render_markdown(report.markdown.read_text("utf-8"))
    body = json.loads(report.json.read_text("utf-8"))

    def ends(energy: Mapping[str, float]) -> list[float]:
        return [energy["value"], energy["low"], energy["high"]]

    found = list(with_head(page, "Arm", "CPU per image"))
    assert len(found) == len(body["workloads"])
    for rows, result in zip(found, body["workloads"], strict=True):
        assert [row["Arm"] for row in rows] == [each["name"] for each in result["arms"]]
        for row, each in zip(rows, result["arms"], strict=True):
            assert read(row["CPU per image"]) == close([each["cpu_us_per_image"] * 1e-6])
            assert read(row["Active energy per 1,000 images (low to high)"]) == close(ends(each["active_j_per_1000"]))
            assert read(row["Images/s"]) == close([each["images_per_s"]])
            once, spent = read(row["Spent once (low to high)"]), ends(each["one_time"])
            assert once == close(spent if spent[0] else [0])
            if each["name"] != "naive":
                assert read(row["Ratio to naive (95% interval)"]) == close(ends(each["ratio"]), 5.01e-4)
            if each["accuracy"]:
                assert read(row["Accuracy (range of runs)"]) == close(each["accuracy"], 5.01e-4)
    for rows, result in zip(with_head(page, "Optimized against"), body["workloads"], strict=True):
        for row, each in zip(rows, result["comparisons"], strict=True):
            assert read(row["Ratio (95% interval)"]) == close(ends(each["ratio"]), 5.01e-4)
            assert read(row["Ratio over 30 epochs, build included"]) == close([each["horizon_ratio"]], 5.01e-4)
            paid = each["break_even"]
            if paid["epochs"] is None:
                assert row["Break-even (95% interval)"] == "never (48.7 to never)"
            else:
                expected = [paid["epochs"], paid["low"], paid["high"]]
                assert read(row["Break-even (95% interval)"].replace("epochs", "")) == close(expected)
    for rows, result in zip(with_head(page, "Peak memory"), body["workloads"], strict=True):
        for row, each in zip(rows, result["arms"], strict=True):
            total = read(row["Total energy per 1,000 images, idle included"])
            assert total == close(ends(each["total_j_per_1000"]))
            assert read(row["Peak memory"]) == close([each["peak_rss_bytes"]])
    (rows,) = with_head(page, "Variant")
    for row, each in zip(rows, body["compression"]["variants"], strict=True):
        assert row["Variant"] == each["name"]
        assert read(row["Parameters"]) == [each["parameters"]]
        assert read(row["Non-zero weights"]) == [each["nonzero_weights"]]
        assert read(row["MACs"]) == [each["macs"]]
        assert read(row["File"]) == close([each["file_bytes"]])
        assert read(row["gzip"]) == close([each["gzip_bytes"]])
        accuracy = [each["accuracy"], each["accuracy_low"], each["accuracy_high"]]
        assert read(row["Accuracy (95% interval)"]) == close(accuracy, 5.01e-4)
        times_ms = (each["cpu_ms_per_image"], each["cpu_ms_per_image_median"])
        assert read(row["CPU per image, fastest (median)"]) == close([time_ms * 1e-3 for time_ms in times_ms])
        assert row["Compared with"] == (each["dense"] or "-")
        assert row["Faster"] == {None: "-", True: "yes", False: "no"}[each["faster_than_dense"]]
        one = each["energy_per_image"]
        spent = [one["active_j"], one["active_low_j"], one["active_high_j"]]
        assert read(row["Active energy per image (low to high)"]) == close(spent)
    (rows,) = with_head(page, "Workload")
    for row, result in zip(rows, body["workloads"], strict=True):
        assert read(row["Ratio (95% interval)"]) == close(ends(result["control"]), 5.01e-4)


@given(st.floats(1e-7, 1e10))
def test_joules_keep_three_digits(value_j: float) -> None:
    number, unit = figures.joules(value_j).split()
    size = {"µJ": 1e-6, "mJ": 1e-3, "J": 1, "kJ": 1e3, "MJ": 1e6, "GJ": 1e9}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(value_j, rel=0.00501)
    if 1e-6 <= value_j < 1e9:
        assert 1 <= float(number) < 1000


@pytest.mark.parametrize(
    ("value_j", "like_j", "text"),
    [
        (12.34, None, "12.3 J"),
        (4560, None, "4.56 kJ"),
        (0.12345, None, "123 mJ"),
        (0.12345, 9.0, "0.123 J"),
        (0.00012, 9.0, "120 µJ"),
        (999.6, None, "1.00 kJ"),
        (9.996, None, "10.0 J"),
        (0, None, "0 J"),
        (0, 5e3, "0 kJ"),
        (None, None, "not measured"),
    ],
)
def test_joules(value_j: float | None, like_j: float | None, text: str) -> None:
    assert figures.joules(value_j, like_j) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.578, "42% less"), (1.13, "13% more"), (0.998, "0.2% less"), (0.99996, "under 0.1% less"), (0.0036, "99.6% less"),
     (0.0002, "99.98% less"), (5.9, "490% more")],
)  # fmt: skip
def test_change(value: float, text: str) -> None:
    assert figures.change(value) == text


# Claims ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("saves", "takes 8.1% more active energy per epoch than tf_cache"),
        ("costs", "here tf_cache is the better choice"),
        ("no difference shown", "nothing is gained over tf_cache"),
        ("inconclusive", "Training from the cache: inconclusive against tf_cache."),
    ],
)
def test_findings_are_said_in_the_headline(write: Write, found: Finding, words: str) -> None:
    files = write(make_body(workload("train", against_cache=found), workload("input")))
    for form in (
        files.html.read_text("utf-8").partition("<main>")[0],
        files.markdown.read_text("utf-8").partition("## ")[0],
    ):
        shown = " ".join(re.sub("<[^>]+>", " ", form).split())
        assert "Training from the cache takes 96.4% less active energy per epoch than naive" in shown
        assert words in shown
    assert words in " ".join(printed(json.loads(files.json.read_text("utf-8"))).split())


def test_the_headline_is_about_the_whole_job(write: Write) -> None:
    body = make_body(workload("input"), workload("infer"))
    first = printed(body).splitlines()[0]
    assert first.startswith("Inference from the cache")


def test_nothing_to_compare_with(write: Write) -> None:
    alone = dataclasses.replace(workload(), comparisons=())
    page = render_html(write(make_body(alone)))
    assert "Nothing was compared with the cache." in page.text


def test_never(write: Write) -> None:
    files = write(make_body())
    assert "The build is never paid back (48.7 to never)." in render_html(files).text
    assert "The build is never paid back (48.7 to never)." in files.markdown.read_text("utf-8")
    assert "vs tf_cache: costs; never paid back (48.7 to never)" in printed(make_body())
    compared = json.loads(files.json.read_text("utf-8"))["workloads"][0]["comparisons"][2]
    assert compared["break_even"]["epochs"] is None


def test_nothing_to_pay_back(write: Write) -> None:
    result = workload()
    free = dataclasses.replace(result.comparisons[0], break_even=BreakEven(0.0, 0.0, 0.0))
    page = render_html(write(make_body(dataclasses.replace(result, comparisons=(free,)))))
    assert "The build is paid back at once: naive spends as much before its first epoch." in page.text


def test_one_block_has_no_interval(write: Write) -> None:
    body = make_body(workload(blocks=1))
    files = write(body)
    for text in (render_html(files).text, files.markdown.read_text("utf-8")):
        assert "(one block, no interval)" in text
        assert "1.53 epochs (one block, no interval)" in text
        assert "95% interval 9" not in text
        assert "None" not in text
        assert "nan" not in text
    assert "one block" in printed(body)
    assert json.loads(files.json.read_text("utf-8"))["workloads"][0]["arms"][1]["ratio"]["low"] is None


def test_what_was_not_measured_is_said_and_never_zero(write: Write) -> None:
    files = write(make_body())
    for page in (render_html(files), render_markdown(files.markdown.read_text("utf-8"))):
        for rows in with_head(page, "Read per image"):
            assert {row["Read per image"] for row in rows} == {"not measured"}
            assert {row["CO2 per 1,000 images"] for row in rows} == {"no country given"}
        (parts,) = with_head(page, "Part", "Energy (low to high)")
        assert {row["Part"]: row["Energy (low to high)"] for row in parts}["gpu"] == "not measured"
    body = json.loads(files.json.read_text("utf-8"))
    assert body["workloads"][0]["arms"][0]["read_bytes_per_image"] is None
    assert body["build"]["energy"]["components"]["gpu"] is None


def test_accuracy_that_was_not_measured(write: Write) -> None:
    result = workload("train")
    blind = dataclasses.replace(result.arms[1], accuracy=None)
    page = render_html(write(make_body(dataclasses.replace(result, arms=(result.arms[0], blind, *result.arms[2:])))))
    (rows,) = with_head(page, "Accuracy (range of runs)")
    assert [row["Accuracy (range of runs)"] == "not measured" for row in rows] == [False, True, False, False]


def test_grams_where_a_country_was_given(write: Write) -> None:
    result = workload()
    arms = tuple(dataclasses.replace(each, carbon_g_per_1000=0.000528) for each in result.arms)
    provenance = make_audit().provenance
    meter = dataclasses.replace(provenance.meter, country="DEU", carbon_g_per_kwh=381.2, carbon_source="a table")
    provenance = dataclasses.replace(provenance, meter=meter)
    files = write(make_body(dataclasses.replace(result, arms=arms), provenance=provenance))
    (rows,) = with_head(render_html(files), "CO2 per 1,000 images")
    assert {row["CO2 per 1,000 images"] for row in rows} == {"528 µg"}
    assert "DEU, 381 g per kWh (a table)" in render_html(files).text
    assert "no country given" not in render_html(files).text


FLAG = "other processes used 31% of the processors"
STOLEN = "the hypervisor took 9% of the processors' time"
SHAKEN = Contamination(
    capacity_s=4.34,
    resolution_s=0.02,
    machine_cpu_s=2.1,
    steal_s=0.4,
    cpu_stall_s=None,
    memory_stall_s=None,
    io_stall_s=None,
)


def test_flags_of_the_meter_stand_in_every_form_of_the_report(write: Write) -> None:
    result = workload()
    arms = tuple(
        dataclasses.replace(each, flags=(FLAG,), flagged_runs=4) if each.name == "tuned" else each
        for each in result.arms
    )
    few = tuple(dataclasses.replace(each, flagged_runs=1) if each.name == "naive" else each for each in arms)
    built = dataclasses.replace(energy(), contamination=SHAKEN)
    build = make_audit().build
    assert build is not None
    body = make_body(dataclasses.replace(result, arms=few), build=dataclasses.replace(build, energy=built))
    files = write(body)
    said = (
        "Flagged by the meter. The input alone: 5 of 20 runs, and all of tuned together. "
        f"The build of the cache: {STOLEN}."
    )
    html = render_html(files)
    for text in (html.text, render_markdown(files.markdown.read_text("utf-8")).text, " ".join(printed(body).split())):
        assert text.count("Flagged by the meter") == 1
        assert said in text
    (rows,) = with_head(html, "Other processes", "Flagged runs")
    by_arm = {row["Arm"]: row for row in rows}
    assert (by_arm["tuned"]["Flags of all together"], by_arm["tuned"]["Flagged runs"]) == (FLAG, "4 of 5")
    assert by_arm["tf_cache"]["Flags of all together"] == "none"
    assert (by_arm["naive"]["Other processes"], by_arm["naive"]["Waiting for memory"]) == ("0.4%", "not measured")


def test_flagged_model_files_are_counted_first_and_listed_with_why(write: Write) -> None:
    shaken = dataclasses.replace(energy(), contamination=SHAKEN)
    names = ("a", "b", "c")
    variants = (
        BASELINE,
        variant("control", 2_589_844, 0.621, 0.4451, finetune_energy=shaken),
        *(variant(name, 652_052, 0.6, 0.1521, "baseline", energy_per_image=shaken) for name in names),
    )
    body = make_body(compression=compression(*variants).to_json())
    files = write(body)
    said = "Flagged by the meter. Model files: 3 of 5. Fine-tunings: 1 of 1."
    html = render_html(files)
    assert said in html.text
    assert said in render_markdown(files.markdown.read_text("utf-8")).text
    assert said in " ".join(printed(body).split())
    (rows,) = with_head(html, "What", "Why")
    assert [(row["Variant"], row["What"]) for row in rows] == [
        *((name, "Model files") for name in names),
        ("control", "Fine-tunings"),
    ]
    assert {row["Why"] for row in rows} == {STOLEN}


def test_runs_that_are_flagged_only_together_are_said(write: Write) -> None:
    result = workload()
    arms = tuple(dataclasses.replace(each, flags=(FLAG,)) if each.name == "tuned" else each for each in result.arms)
    said = render_html(write(make_body(dataclasses.replace(result, arms=arms)))).text
    assert "The input alone: 0 of 20 runs, and all of tuned together. " in said


def test_where_all_arms_are_flagged_none_is_named(write: Write) -> None:
    result = workload()
    arms = tuple(dataclasses.replace(each, flags=(FLAG,), flagged_runs=5) for each in result.arms)
    said = render_html(write(make_body(dataclasses.replace(result, arms=arms)))).text
    assert "The input alone: 20 of 20 runs, and all together. " in said


def test_nothing_is_flagged_where_nothing_was(report: ReportFiles) -> None:
    assert "Flagged by the meter" not in render_html(report).text
    assert "Flagged by the meter" not in printed(json.loads(report.json.read_text("utf-8")))


def test_watts_of_the_user_are_named_as_such(write: Write) -> None:
    provenance = make_audit().provenance
    meter = Meter(idle_w=12, full_w=65).provenance()
    text = render_html(write(make_body(provenance=dataclasses.replace(provenance, meter=meter)))).text
    assert "watts given by the user" in text
    assert "provider None" not in text


def test_measured_and_modelled_are_told_apart_beside_the_figures(write: Write) -> None:
    rapl = energy(1.0, "measured:rapl", "modelled:rapl-share@1")
    audit = make_audit()
    assert audit.build is not None
    built = dataclasses.replace(audit.build, energy=rapl)
    files = write(make_body(build=built, energy=rapl, method=rapl.method))
    for page in (render_html(files), render_markdown(files.markdown.read_text("utf-8"))):
        for rows in with_head(page, "Arm", "CPU per image"):
            for row in rows:
                assert "J modelled" in row["Active energy per 1,000 images (low to high)"]
        for rows in with_head(page, "Total energy per 1,000 images, idle included"):
            for row in rows:
                assert "J measured" in row["Total energy per 1,000 images, idle included"]
        (parts,) = with_head(page, "Part", "Energy (low to high)")
        assert "J measured" in parts[0]["Energy (low to high)"]
    tags = {each["class"] for tag, each in render_html(files).elements if each.get("class", "").startswith("tag ")}
    assert {"tag measured", "tag modelled"} <= tags


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("measured:rapl", "measured"),
        ("measured:rapl+measured:nvml", "measured"),
        ("modelled:cpu-seconds@1", "modelled"),
        ("modelled:cpu-seconds@1+measured:nvml", "modelled"),
        ("user", "given"),
    ],
)
def test_kinds_of_methods(method: str, kind: str) -> None:
    assert figures.kind(method) == kind


def test_accuracies_that_do_not_meet_are_said(write: Write) -> None:
    result = workload("train")
    worse = dataclasses.replace(result.arms[3], accuracy=AccuracyRange(0.41, 0.4, 0.42))
    page = render_html(write(make_body(dataclasses.replace(result, arms=(*result.arms[:3], worse)))))
    assert "The accuracies differ, 41.0% against 55.4%" in page.text
    assert "The accuracies differ" not in render_html(write(make_body())).text


def test_a_failed_control_is_said(write: Write) -> None:
    result = dataclasses.replace(workload(), control=Ratio(1.2, 1.1, 1.3, 5))
    (rows,) = with_head(render_html(write(make_body(result))), "Workload")
    assert rows[0]["Outcome"] == "does not hold 1: nothing is claimed"


def test_an_audit_without_a_model(write: Write) -> None:
    files = write(make_body(compression=None))
    assert "No model was compressed." in render_html(files).text
    assert "No model was compressed." in files.markdown.read_text("utf-8")
    assert "Model files" not in printed(make_body(compression=None))


def test_provenance_says_what_it_takes_to_repeat(report: ReportFiles) -> None:
    for page in (render_html(report), render_markdown(report.markdown.read_text("utf-8"))):
        assert "joulecache audit photos.tar --out 'my audit'" in page.text
        assert "/opt/bin" not in page.text
        said = {row["What"]: row["Value"] for rows in with_head(page, "What", "Value") for row in rows}
        assert said["Seed"] == "7"
        assert said["Every single run"] == "runs.jsonl, beside this report"
        assert said["Threads"] == "2 CPUs; inside an op as TensorFlow chooses; between ops 4"
        assert said["keras"] == "not installed"
        assert said["Active energy (low to high)"] == "5.80 J modelled (2.32 to 12.8)"
        (rows,) = with_head(page, "Central", "Source")
        coefficients = json.loads(report.json.read_text("utf-8"))["provenance"]["meter"]["coefficients"]
        assert {row["Name"]: (row["Central"], row["Source"]) for row in rows} == {
            name: (f"{row['central']:g}", row["source"]) for name, row in coefficients.items()
        }


# The compressed model -------------------------------------------------------------------------------------------------


def said_of_models(write: Write, *variants: ModelFile, **changes: Any) -> str:
    """Return what a report says of model files, which must be the same in all its forms; the table's remark comes last."""
    body = make_body(compression=compression(*variants, **changes).to_json())
    files = write(body)
    html, markdown = render_html(files), render_markdown(files.markdown.read_text("utf-8"))
    parts = (html.text.partition("The compressed model ")[2], markdown.text.partition("The compressed model ")[2])
    said = [part.partition("Accuracy against energy")[0].partition("Model files")[0].strip() for part in parts]
    remarks = [re.findall(r"Accuracy on .*(?= Where the figures come from)", part) for part in parts]
    assert said[0] == said[1]
    assert remarks[0] == remarks[1]
    assert said[0] in " ".join(printed(body).split())
    return f"{said[0]} {remarks[0][0]}"


def changed(name: str, **changes: Any) -> tuple[ModelFile, ...]:
    return tuple(
        dataclasses.replace(each, **changes) if each.name == name else each for each in compression().model_files
    )


def test_what_compression_gained_and_took(write: Write) -> None:
    said = said_of_models(write)
    for sentence in (
        "pruned-int8 against baseline: 93.4% less storage, 58% less CPU time per image, 58% less active energy (modelled); accuracy "
        "59.3% against 61.4%, and their intervals overlap.",
        "pruned-float32 takes less energy per image than pruned-int8 on this machine.",
        "Spent once: fine-tuning the control took 12.2 J (modelled), fine-tuning pruned-int8 took 7.55 J (modelled). pruned-int8 pays "
        "that back against control-int8 after 8.23 k inferences.",
        "Channels kept: conv_1 32 to 16.",
        "Faster: each of the 5 runs took less CPU time than the run of the dense model beside it. Dense is the unpruned model at the "
        "same precision; an unpruned quantized one is compared with the float32 one.",
    ):
        assert sentence in said
    assert "seeds" not in said
    assert "Zeros" not in said


def test_fine_tuning_that_is_never_paid_back(write: Write) -> None:
    said = said_of_models(write, *changed("pruned-int8", inferences_to_pay_back=None))
    never = "pruned-int8 never pays that back: not every run took less energy than the one of control-int8 beside it."
    assert f"took 7.55 J (modelled). {never}" in said
    assert "inferences" not in said


def test_models_that_are_not_pruned_have_nothing_to_pay_back(write: Write) -> None:
    spent: Body = {"finetune_energy": energy(1.3)}
    said = said_of_models(
        write,
        BASELINE,
        variant("baseline-int8", 662_208, 0.593, 0.1856, "baseline"),
        variant("control", 2_589_844, 0.621, 0.4451, **spent),
        variant("baseline-int8-aware", 662_208, 0.607, 0.1856, "baseline", **spent),
    )
    assert "fine-tuning baseline-int8-aware took 7.55 J (modelled). " in said
    assert "pays" not in said


def test_without_a_control_nothing_is_compared_with_one(write: Write) -> None:
    spent: Body = {"finetune_energy": energy(), "inferences_to_pay_back": 41.2}
    pruned = variant("pruned-float32", 652_052, 0.6, 0.1521, "baseline", **spent)
    accuracies = {"baseline": (0.614,) * 3, "pruned-float32": (0.6, 0.59, 0.61)}
    said = said_of_models(write, BASELINE, pruned, accuracies=accuracies)
    assert "control" not in said
    assert "Spent once: fine-tuning pruned-float32 took 5.80 J (modelled). pruned-float32 pays that back" in said
    assert "against baseline after 41.2 inferences." in said


def test_nothing_is_spent_without_fine_tuning(write: Write) -> None:
    said = said_of_models(write, BASELINE, variant("pruned-float32", 652_052, 0.6, 0.1521, "baseline"))
    assert "Spent once" not in said
    assert "pays" not in said


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.613, 0.609, 0.617), "lost 0.8 points against the control (95%: -0.2 to 1.8)."),
        ((0.629, 0.625, 0.633), "gained 0.8 points against the control (95%: -0.2 to 1.8)."),
        ((0.611, 0.611, 0.611), "lost 1.0 points against the control (95%: 1.0 to 1.0)."),
        ((0.6209, 0.6208, 0.6210), "lost 0.0 points against the control (95%: 0.0 to 0.0)."),
    ],
)
def test_accuracy_over_several_seeds(write: Write, accuracies: tuple[float, ...], words: str) -> None:
    names = [each.name for each in compression().model_files]
    said = said_of_models(write, accuracies={**dict.fromkeys(names, (0.621,) * 3), "pruned-int8": accuracies})
    assert f"Over 3 seeds, pruned-int8 {words}" in said
    assert said.count("seeds") == 1


@pytest.mark.parametrize(
    ("sparse", "clustered", "macs", "words"),
    [
        (False, False, 25_898_440, ", not time: this machine's kernels multiply zeros too."),
        (True, False, 25_898_440, "; with as many MACs as its dense model, faster was sparse-float32, but not clustered-int8."),
        (True, True, 25_898_440, "; with as many MACs as its dense model, faster was sparse-float32, clustered-int8."),
        (True, True, 6_520_520, "; what they do to time was not measured alone, since channels are gone too."),
    ],
)  # fmt: skip
def test_zeros_save_time_only_where_that_was_measured(
    write: Write, sparse: bool, clustered: bool, macs: int, words: str
) -> None:
    said = said_of_models(
        write,
        BASELINE,
        variant("sparse-float32", 2_589_844, 0.6, 0.4, "baseline", macs=macs, faster_than_dense=sparse),
        variant("clustered-int8", 2_589_844, 0.6, 0.4, "baseline", macs=macs, faster_than_dense=clustered),
    )
    assert said.endswith(f"Zeros and shared values save bytes in a compressed file{words}")


# Names of others ------------------------------------------------------------------------------------------------------

HOSTILE = {
    EVIL: EVIL,
    "a|b": "a|b",
    "`ls` and ``": "`ls` and ``",
    "_under_ *star* **bold** ~~gone~~": "_under_ *star* **bold** ~~gone~~",
    "[x](http://example.org)": "[x](http://example.org)",
    "![x](http://example.org/x.png)": "![x](http://example.org/x.png)",
    "&lt;b&gt; &amp; </style></script>": "&lt;b&gt; &amp; </style></script>",
    "# head": "# head",
    "back\\slash": "back\\slash",
    "two\nlines\ttab": "two\\nlines\\ttab",
    "\x1b[31mred\x07": "\\x1b[31mred\\x07",
    "turned\u202egnp": "turned\\u202egnp",
    "half\udcff": "half\\udcff",
    "Größe 猫 \u200d🐱": "Größe 猫 \u200d🐱",
    "{{ 7 * 7 }} {% raw %}": "{{ 7 * 7 }} {% raw %}",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    """A report whose every text from outside holds every hostile name."""
    result = workload()
    everything = " ; ".join(HOSTILE)
    arms = (*result.arms, arm(everything, 700.0, blocks=5, learned=False))
    compared = (*result.comparisons, dataclasses.replace(result.comparisons[0], other=everything, why=everything))
    model = json.loads(json.dumps(compression().to_json()))
    model["variants"][1]["name"] = everything
    model["variants"][-1]["dense"] = everything
    model["widths"] = {everything: [4, 2]}
    provenance = make_audit().provenance
    meter = dataclasses.replace(provenance.meter, notes=(everything,), cpu=everything)
    body = make_body(
        dataclasses.replace(result, arms=arms, comparisons=compared),
        source=everything,
        chain=everything,
        class_names=tuple(HOSTILE),
        left_out={everything: everything},
        pixel_difference={everything: 0.0},
        compression=model,
        examples=(Example(everything, everything, (ExampleImage(everything, True, "/9j/2w=="),)),),
        provenance=dataclasses.replace(provenance, command=("joulecache", everything), model=everything, meter=meter),
    )
    return write_report(body, tmp_path_factory.mktemp("hostile"))


OURS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "h1", "h2", "p"),
    *("ul", "ol", "li", "img", "dl", "dt", "dd", "div", "span", "strong", "small", "code", "pre"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "desc", "defs", "g", "path", "use", "text", "tspan", "clippath", "rect"),
}


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_show_as_text(hostile: ReportFiles, name: str) -> None:
    shown = " ".join(HOSTILE[name].split())
    html, markdown = render_html(hostile), render_markdown(hostile.markdown.read_text("utf-8"))
    assert html.text.count(shown) >= 10
    assert markdown.text.count(shown) >= 10


def test_names_make_no_elements(hostile: ReportFiles) -> None:
    for tag, attributes in render_html(hostile).elements:
        assert tag in OURS
        assert not [name for name in attributes if name.startswith("on")]
    shown = [attributes for tag, attributes in render_html(hostile).elements if tag == "img"]
    assert [each["src"] for each in shown] == ["data:image/jpeg;base64,/9j/2w=="]
    made = {tag for tag, _ in render_markdown(hostile.markdown.read_text("utf-8")).elements}
    assert made <= OURS | {"h3"}


def test_names_leave_tables_whole(hostile: ReportFiles) -> None:
    tables = render_html(hostile).tables
    assert tables == render_markdown(hostile.markdown.read_text("utf-8")).tables
    assert all(len(row) == len(table[0]) for table in tables for row in table)


def test_names_do_nothing_to_a_terminal(hostile: ReportFiles) -> None:
    out = printed(json.loads(hostile.json.read_text("utf-8")))
    assert "\x1b" not in out
    assert "\x07" not in out


@given(st.text())
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    shown = figures.visible(text)
    page = render_markdown(f"| a |\n| --- |\n| x {escape(shown)} x |\n")
    assert page.tables[0][1] == [" ".join(f"x {shown} x".split())]


# People's own pipelines -----------------------------------------------------------------------------------------------


def part(name: str, whole: ArmResult, share: float) -> PartResult:
    spent = joules(whole.active_j_per_1000.value * share)
    return PartResult(name, spent, whole.wall_us_per_image * share, ratio(share))


def own_body(*names: str, found: Finding = "saves") -> Body:
    """A report of own pipelines, each of which takes half as much as the one before it; the last waits for its input."""

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
    return make_body(
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


@pytest.mark.parametrize(
    ("names", "found", "shown"),
    [
        (("plain",), "saves", ["Training from plain takes 3.10 J (1.20 to 6.71) of active energy per 1,000 images, at 1,200 images/s."]),
        (
            ("plain", "tuned"),
            "saves",
            [
                "Training from tuned takes 50% less active energy per image than from plain (95% interval 48% to 52% less).",
                "Per 1,000 images: 1.55 J against 3.10 J. Images/s: 2,400 against 1,200.",
            ],
        ),
        (
            ("plain", "tuned", "best"),
            "inconclusive",
            [
                "Training from best: inconclusive against plain.",
                "An image took 75% less active energy (95% interval 74% to 76% less); the interval lies below 1",
                "Training from tuned: inconclusive against plain.",
            ],
        ),
    ],
    ids=["one", "two", "three"],
)  # fmt: skip
def test_own_pipelines_are_compared_with_the_first_in_every_form(
    write: Write, names: tuple[str, ...], found: Finding, shown: list[str]
) -> None:
    body = own_body(*names, found=found)
    files = write(body)
    html, markdown = render_html(files), render_markdown(files.markdown.read_text("utf-8"))
    last = names[-1]
    shown += [
        f"Of the time of a step from {last}, at most 12.5% waits for input, in which the idle machine takes 500 mJ (194 to 1,082) per "
        "1,000 images (modelled).",
        f"Of the energy and the time of {last}, each by itself: the input 25.0% and 25.0%, the training 80.0% and 80.0%.",
    ]
    for form in (html.text, markdown.text, " ".join(printed(body).split())):
        for said in shown:
            assert said in form
        for word in ("None", "naive", "optimized", "cache(", "the cache", "the build", "reak-even"):
            assert word not in form, word
    assert f"Feeding images from {last}" in html.text
    assert max(map(len, printed(body).splitlines())) <= 80


def test_the_parts_of_a_training_have_the_figures_of_the_json(write: Write) -> None:
    files = write(own_body("plain", "tuned"))
    html, markdown = render_html(files), render_markdown(files.markdown.read_text("utf-8"))
    assert html.tables == markdown.tables
    (rows,) = with_head(html, "Pipeline", "What ran")
    assert [(row["Pipeline"], row["What ran"]) for row in rows] == [
        (name, ran) for name in ("plain", "tuned") for ran in ("the input alone", "the training alone", "both together")
    ]
    assert read(rows[0]["Energy per step"]) == close([3.1 * 0.25 * 20 / 3 / 1000])
    assert read(rows[2]["Time per step"]) == close([0.83e-3 * 20 / 3])
    assert read(rows[2]["Time per 1,000 images"]) == close([0.83])
    assert read(rows[4]["Energy, to both together (95% interval)"]) == close([0.8, 0.76, 0.84], 5.01e-4)
    (origins,) = with_head(html, "Its SHA-256")
    assert [(row["Pipeline"], row["Images an epoch"], row["Batches"]) for row in origins] == [
        ("plain", "20", "3"),
        ("tuned", "20", "3"),
    ]
    said = {row["What"]: row["Value"] for rows in with_head(html, "What", "Value") for row in rows}
    assert said["Batches of an epoch"] == "3"
    assert not {"Batch size", "Horizon of the verdict"} & set(said)


def test_one_pipeline_is_compared_with_nothing(write: Write) -> None:
    files = write(own_body("plain"))
    page = render_html(files)
    assert "what does the pipeline take?" in page.text
    assert not list(with_head(page, "Finding"))
    assert not [each for _, each in page.elements if each.get("class", "").startswith("finding")]
    assert "[modelled]" in files.markdown.read_text("utf-8").replace("\\", "")
    assert files.html.read_text("utf-8").count("<svg") == 4
    assert "finding" not in printed(own_body("plain"))


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_of_pipelines_show_as_text(write: Write, name: str) -> None:
    files = write(own_body(name, f"{name} {name}"))
    shown = " ".join(HOSTILE[name].split())
    html, markdown = render_html(files), render_markdown(files.markdown.read_text("utf-8"))
    assert html.text.count(shown) >= 10
    assert markdown.text.count(shown) >= 10
    assert html.tables == markdown.tables
    assert {tag for tag, _ in html.elements} <= OURS
    out = printed(own_body(name, f"{name} {name}"))
    assert "\x1b" not in out
    assert "\x07" not in out


# Where the joules go --------------------------------------------------------------------------------------------------

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
SPENT = "Active energy per 1,000 images (95% interval)"


def stages(unattributed: float = 0.5, of: str = "train", known: Mapping[str, float | None] = STAGES) -> Stages:
    """Return stages that add up to all but so many joules of the whole."""
    made = []
    for name, value in known.items():
        if of == "train" or name not in ("copy", "training step"):
            ends = (0.0, 0.07) if value is None else (0.9 * value, 1.1 * value)
            made.append(Stage(name, value, *ends, name in ("read", "decode", "resize(72)")))
    whole = sum(stage.active_j_per_1000 or 0.0 for stage in made) + unattributed
    return Stages(of, 10, 640, tuple(made), whole, unattributed)


WAITED = Waiting(0.62, Joules(1.5, 1.2, 1.9), 0.31, MODELLED, at_most=False)


def staged(found: Stages, waiting: Waiting | None = WAITED, **changes: Any) -> Body:
    """Return a body with stages, in which naive waited while it was trained on."""
    trained = workload("train")
    arms = [dataclasses.replace(each, waiting=waiting if each.name == "naive" else None) for each in trained.arms]
    return make_body(workload(), dataclasses.replace(trained, arms=tuple(arms)), stages=found, **changes)


def stage_figures(page: Page) -> dict[str, dict[str, str]]:
    (rows,) = with_head(page, "Stage", "Share of the whole")
    return {row["Stage"]: row for row in rows}


def stage_chart(files: ReportFiles) -> str:
    charts: list[str] = re.findall(r"<svg.*?</svg>", files.html.read_text("utf-8"), re.DOTALL)
    (drawn,) = (chart for chart in charts if "chart-stages" in chart)
    return drawn


def test_stages_stand_in_every_form_of_the_report(write: Write) -> None:
    files = write(staged(stages()))
    html, markdown = render_html(files), render_markdown(files.markdown.read_text("utf-8"))
    assert html.tables == markdown.tables
    rows = stage_figures(html)
    assert list(rows) == [*STAGES, "unattributed", "the whole", "waiting, apart"]
    assert rows["decode"][SPENT] == "1.20 J modelled (1.08 to 1.32)"
    assert rows["decode"]["Share of the whole"] == "24.0%"
    assert rows["flip_lr"]["Done once by a cache"] == "no"
    assert rows["read"]["Done once by a cache"] == "yes"
    assert rows["copy"][SPENT] == "below resolution (at most 0.0700 J)"
    assert rows["unattributed"][SPENT] == "0.500 J modelled"
    assert rows["the whole"][SPENT] == "5.00 J modelled"
    assert rows["waiting, apart"][SPENT] == "1.50 J modelled (coefficients 1.20 to 1.90)"
    assert rows["waiting, apart"]["Share of the whole"] == "31.0% of the total"
    out = printed(staged(stages()))
    assert max(map(len, out.splitlines())) <= 80
    for name, value in (("decode", "1.20 J"), ("copy", "below resolution"), ("unattributed", "0.500 J")):
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
        assert value in line
    for text in (html.text, markdown.text, " ".join(out.split())):
        for said in (
            "Of 5.00 J of active energy per 1,000 images (Training, naive, modelled), training step takes most: 40.0%. Of the input "
            "alone it is decode: 48.0%.",
            "A cache takes away 88.0% of the input's active energy: read, decode and resize(72), which it does once. What reading it "
            "takes instead is in the arm optimized.",
            "The stages add up to 90.0% of the whole; 10.0% is unattributed.",
            "Training waited for its next batch for 62.0% of its time, in which the idle machine burnt 1.50 J per 1,000 images "
            "(modelled): 31.0% of the total energy, and no part of the active energy above.",
        ):
            assert said in text


ROUGH = "That is more than a tenth: take the stages as a rough picture."


@pytest.mark.parametrize(
    ("unattributed", "said"),
    [
        (0.4, "The stages add up to 91.8% of the whole; 8.2% is unattributed."),
        (0.6, f"The stages add up to 88.2% of the whole; 11.8% is unattributed. {ROUGH}"),
        (-0.1, "The stages add up to 102.3% of the whole, which is more than there is"),
        (-0.6, f"which is more than there is: they and it were measured in runs of their own. {ROUGH}"),
    ],
)
def test_what_the_stages_do_not_explain_is_said(write: Write, unattributed: float, said: str) -> None:
    files = write(staged(stages(unattributed)))
    page = render_html(files)
    assert said in page.text
    assert (ROUGH in page.text) == (abs(unattributed) > 0.5)
    assert stage_figures(page)["unattributed"][SPENT].startswith("-") == (unattributed < 0)
    hatched = re.findall(r"<text [^>]*>(unattributed [^<]*)<", stage_chart(files))
    assert len(hatched) == (unattributed > 0)


def test_stages_of_the_input_alone_have_no_training_and_no_waiting(write: Write) -> None:
    files = write(staged(stages(0.0, "input")))
    page = render_html(files)
    names = [name for name in STAGES if name not in ("copy", "training step")]
    assert list(stage_figures(page)) == [*names, "unattributed", "the whole"]
    assert "(The input alone, naive, modelled), decode takes most: 48.0%. A cache" in page.text
    assert "Training waited" not in page.text
    assert "waiting" not in stage_chart(files)


def test_without_stages_nothing_is_said_of_them(write: Write) -> None:
    files = write(make_body())
    for text in (files.html.read_text("utf-8"), files.markdown.read_text("utf-8"), printed(make_body())):
        assert "Where the joules go" not in text


def test_that_no_stage_is_above_its_resolution_is_said(write: Write) -> None:
    page = render_html(write(staged(stages(3.0, known=dict.fromkeys(STAGES)), None)))
    whole = "Of 3.00 J of active energy per 1,000 images (Training, naive, modelled)"
    assert f"{whole} no stage is above its resolution." in page.text
    assert "A cache takes away" not in page.text


def with_gpu() -> Energy:
    whole = energy()
    gpu = Component(3.0, 3.0, 3.0, "measured:nvml", "NVML", "1 GPU", "1 mJ")
    return dataclasses.replace(whole, components={**whole.components, "gpu": gpu}, active=whole.active + gpu)


def test_waiting_for_an_accelerator_is_the_most_that_it_can_be_and_in_the_active_energy_too(write: Write) -> None:
    waiting = dataclasses.replace(WAITED, at_most=True, method=f"{MODELLED}+measured:nvml")
    files = write(staged(stages(), waiting, energy=with_gpu()))
    for page in (render_html(files), render_markdown(files.markdown.read_text("utf-8"))):
        for said in (
            "for at most 62.0% of its time, in which the idle machine burnt at most 1.50 J per 1,000 images (modelled): at most 31.0% of "
            "the total energy. The active energy above counts all joules of the GPU: its part of the waiting is in both.",
            "All joules of a GPU count as active",
            "the accelerator may still have computed while the next batch was asked for",
        ):
            assert said in page.text
        assert "in no share of the active energy" not in page.text
        assert "no part of the active energy" not in page.text
        ((row,),) = with_head(page, "Arm", "Waited, of the time")
        assert list(row.values()) == [
            "naive",
            "at most 62.0%",
            "at most 1.50 J modelled (1.20 to 1.90)",
            "at most 31.0%",
        ]


def test_waiting_whose_joules_are_not_known_keeps_its_time(write: Write) -> None:
    files = write(staged(stages(), Waiting(0.62, None, None, None, at_most=False)))
    page = render_html(files)
    assert "for 62.0% of its time; what the idle machine burnt meanwhile is not known." in page.text
    ((row,),) = with_head(page, "Arm", "Waited, of the time")
    assert list(row.values()) == ["naive", "62.0%", "not measured", "not measured"]
    assert "waiting" not in stage_chart(files)


def test_the_chart_tells_any_number_of_stages_apart_in_the_colours_of_the_page(write: Write) -> None:
    many: dict[str, float | None] = {f"op_{place}": 1.0 + place for place in range(16)}
    drawn = stage_chart(write(staged(stages(known=many))))
    (words,) = re.findall(r'<desc id="chart-stages-desc">([^<]+)<', drawn)
    for name, value in many.items():
        assert f"{name} {figures.joules(value, 136.5)} (" in words
    assert "unattributed 0.500 J; apart from that waiting 1.50 J (1.20 to 1.90) of the total energy." in words
    entry = r'<path [^>]*style="([^"]+)" />\s*</g>\s*<g [^>]+>\s*<text [^>]+>([^<]+)<'
    looks = {label.partition(" ")[0]: style for style, label in re.findall(entry, drawn) if label.startswith("op_")}
    assert list(looks) == list(many)
    assert len(set(looks.values())) == len(many)
    assert not re.findall(r'(?:fill|stroke)(?:: |=")#[0-9a-f]+', drawn)
    assert set(re.findall(r"url\(#([^)]+)\)", drawn)) <= set(re.findall(r'id="([^"]+)"', drawn))


# The page -------------------------------------------------------------------------------------------------------------


def test_samples_are_shown_with_what_the_cache_holds(write: Write) -> None:
    pictures = (
        ExampleImage("decode", True, "AAAA"),
        ExampleImage("flip_lr", False, "BBBB"),
        ExampleImage("epoch 1", False, "CCCC"),
    )
    page = render_html(write(make_body(examples=(Example("cat/1.jpg", "cat", pictures),))))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [each["src"][-4:] for each in images] == ["AAAA", "BBBB", "CCCC"]
    assert [each["alt"] for each in images] == ["cat/1.jpg: decode", "cat/1.jpg: flip_lr", "cat/1.jpg: epoch 1"]
    assert "What the model sees" in page.text
    assert "decode cached flip_lr epoch 1" in page.text


def test_reports_from_before_samples_are_read(write: Write) -> None:
    body = make_body()
    del body["samples"]
    assert "What the model sees" not in render_html(write(body)).text


def test_html_loads_nothing(hostile: ReportFiles, report: ReportFiles) -> None:
    for files in (hostile, report):
        for tag, attributes in render_html(files).elements:
            assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
            for name, value in attributes.items():
                if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                    assert value.startswith(("#", "data:")), f"{tag} {name}={value}"
                if name == "style" or name == "clip-path":
                    assert re.findall(r"url\((?!#)", value) == []
        style = files.html.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
        assert "url(" not in style
        assert "@import" not in style
    policy = [each for _, each in render_html(report).elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_chart_is_told_in_words(report: ReportFiles) -> None:
    text = report.html.read_text("utf-8")
    page = Page(text)
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 2 * 4 + 1
    for chart in charts:
        assert chart["role"] == "img"
        for reference in chart["aria-labelledby"].split():
            (words,) = re.findall(rf'<(?:title|desc) id="{reference}">([^<]+)<', text)
            assert len(words) > 10
    bars = re.findall(r"<desc [^>]*>(Bars: [^<]+)<", text)[0]
    for name, cpu_us in CPU_US.items():
        assert f"{name} {figures.joules_range(dataclasses.asdict(joules(cpu_us * 0.0031)), 3.4)}" in bars


def test_every_model_file_has_a_mark_of_its_own(write: Write) -> None:
    names = [f"pruned-sparse-clustered-int8-aware-{place}" for place in range(9)]
    files = write(make_body(compression=compression(*(variant(name, 9, 0.5, 1.0) for name in names)).to_json()))
    drawn = re.findall(r"<svg.*?</svg>", files.html.read_text("utf-8"), re.DOTALL)[-1]
    entry = r'<use [^>]*style="([^"]+)" href="([^"]+)" />\s*</g>\s*</g>\s*<g [^>]+>\s*<text [^>]+>(pruned[^<]+)<'
    marks = {name: mark for *mark, name in re.findall(entry, drawn)}
    assert list(marks) == names
    assert len(set(map(tuple, marks.values()))) == len(names)


def test_ids_are_unique_and_references_hit(report: ReportFiles) -> None:
    page = render_html(report)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [each["href"][1:] for tag, each in page.elements if tag == "use"]
    used += re.findall(r"url\(#([^)]+)\)", report.html.read_text("utf-8"))
    assert used
    assert set(used) <= set(ids)


def test_charts_take_the_colours_of_the_page(report: ReportFiles) -> None:
    text = report.html.read_text("utf-8")
    style = text.partition("<style>")[2].partition("</style>")[0]
    light, dark = style.partition("@media (prefers-color-scheme: dark)")[::2]
    for variable in set(re.findall(r"var\((--[\w-]+)", text)):
        assert f"{variable}: #" in light
        assert f"{variable}: #" in dark
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]+", drawn) == []


@pytest.mark.parametrize(("epochs", "charts"), [(7.4, 4), (7.6, 3), (31.0, 3), (None, 3)])
def test_the_crossing_gets_its_own_chart_where_it_is_small(write: Write, epochs: float | None, charts: int) -> None:
    result = workload()
    paid = BreakEven(epochs, 7.0, None)
    compared = tuple(dataclasses.replace(each, break_even=paid) for each in result.comparisons)
    text = write(make_body(dataclasses.replace(result, comparisons=compared), compression=None)).html.read_text("utf-8")
    assert text.count("<svg") == charts
    assert (">The first epochs" in text) == (charts == 4)
    lines = re.findall(r"<desc [^>]*>(Lines [^<]+)<", text)[0]
    assert f"naive: {'never' if epochs is None else f'{figures.number(epochs)} epochs'} (7.00 to never)" in lines
    # its crossings are marked: a ring for each, besides the four lines
    assert ("Rings and bands" in text) == (epochs in (7.4, 7.6))


# The terminal ---------------------------------------------------------------------------------------------------------


def extreme() -> Body:
    """A body whose figures are as wide as they come."""
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
    return make_body(dataclasses.replace(result, arms=arms))


@pytest.mark.parametrize("make", [make_body, extreme])
def test_a_piped_terminal_gets_everything_in_80_columns(make: Callable[[], Body]) -> None:
    out = printed(make())
    lines = out.splitlines()
    assert "\x1b" not in out
    assert "…" not in out
    assert max(map(len, lines)) <= 80
    for result in make()["workloads"]:
        table = out.partition(f"{'Training' if result['workload'] == 'train' else 'The input alone'}, 5 blocks")[2]
        for each in result["arms"]:
            (row,) = (
                line for line in table.partition("control, naive")[0].splitlines() if line.startswith(each["name"])
            )
            assert figures.number(each["cpu_us_per_image"]) in row
            assert figures.number(each["images_per_s"]) in row
    for each in compression().model_files:
        assert any(line.startswith(each.name) for line in lines)


def test_the_terminal_has_the_figures_of_the_json() -> None:
    out = printed(make_body())
    table = out.partition("The input alone, 5 blocks, energy modelled")[2].splitlines()
    at = next(place for place, line in enumerate(table) if line.startswith("tuned"))
    assert table[at].split() == ["tuned", "1,012", "3.14", "1,186", "0.917", "0", "J", "saves"]
    assert table[at + 1].split() == ["1.21-6.79", "0.871-0.963"]
    assert "vs naive: saves; paid back after 1.53 epochs (1.49 to 2.17)" in out
    assert "control, naive against itself: 1.003 (0.983 to 1.023)" in out


def test_a_terminal_gets_colours() -> None:
    out = io.StringIO()
    print_verdict(make_body(), Console(file=out, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[" in out.getvalue()


def printed_models(compressed: Compression, width: int = 80) -> str:
    out = io.StringIO()
    print_compression(compressed.to_json(), Console(file=out, width=width))
    return out.getvalue()


def test_model_files_stand_alone() -> None:
    out = printed_models(compression())
    table = [line.split() for line in out.partition("Faster: ")[0].splitlines() if line.strip()]
    at = next(place for place, row in enumerate(table) if row[0] == "pruned-int8")
    assert table[at] == ["pruned-int8", "42.6", "k", "170", "kB", "59.3%", "0.186", "0.539", "yes"]
    assert table[at + 1] == ["34.0", "k", "153", "kB", "51.3-66.3", "0.215-1.18"]
    assert [row[-1] for row in table if row[0] in ("baseline", "control-int8")] == ["-", "no"]
    assert "Faster: each of 5 runs took less CPU time" in out
    assert "pruned-int8 pays that back against control-int8 after 8.23 k inferences." in " ".join(out.split())


@pytest.mark.parametrize("width", [80, 100])
def test_long_names_break_between_their_words(width: int) -> None:
    small = variant("pruned-sparse-clustered-int8-aware", 99_900_000, 0.92, 19.04, "baseline", accuracy_high=1.0)
    large = variant("baseline", 102_400_000, 0.92, 1234.5)
    lines = printed_models(compression(large, small), width).splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("pruned"))
    assert [line.split()[0] for line in lines[at : at + 2]] == ["pruned-sparse-clustered-", "int8-aware"]
    assert lines[at].split()[1:] == ["25.0", "M", "99.9", "MB", "92.0%", "19.0", "0.0553", "yes"]
    assert lines[at + 1].split()[1:] == ["20.0", "M", "89.9", "MB", "84.0-100.0", "0.0221-0.122"]
    assert max(map(len, lines)) <= width


def test_names_of_models_are_made_visible_on_a_terminal() -> None:
    assert "\\x1b[31mred" in printed_models(compression(variant("\x1b[31mred", 2_589_844, 0.614, 0.4448)))
