"""The files of a report: they are read as they were written, and what is none is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from audits import AUDIT, COMPRESSION, GOLDEN, OWN, Page, audit_of
from processes import run_python

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.report.files import ReportFiles, read_report, report_schema, write_report

Write = Callable[[Audit], ReportFiles]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda audit: write_report(audit, tmp_path / "audit")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report(AUDIT, tmp_path_factory.mktemp("report"))


def test_a_report_is_read_as_it_was_written(report: ReportFiles, tmp_path: Path) -> None:
    audit = read_report(report.json)
    assert audit == AUDIT
    again = write_report(audit, tmp_path)
    assert json.loads(again.json.read_bytes()) == json.loads(report.json.read_bytes())
    assert again.html.read_bytes() == report.html.read_bytes()
    assert again.markdown.read_bytes() == report.markdown.read_bytes()


@pytest.mark.parametrize("name", ["report-1-chain.json", "report-1-own.json"])
def test_reports_of_the_first_version_are_read(name: str) -> None:
    body = json.loads((GOLDEN / name).read_text("utf-8"))
    for part in ("records", "compression"):  # fields of later versions
        body[part] = body[part] and {**body[part], "chance": None}
    assert read_report(GOLDEN / name).to_json() == body


def test_reports_from_before_there_were_examples_are_read(tmp_path: Path) -> None:
    body = json.loads((GOLDEN / "report-1-chain.json").read_text("utf-8"))
    for name in ("samples", "stages", "reuse"):
        del body[name]
    (tmp_path / "report.json").write_text(json.dumps(body))
    audit = read_report(tmp_path / "report.json")
    assert (audit.examples, audit.stages, audit.reuse) == ((), None, None)


@pytest.mark.parametrize("audit", [AUDIT, OWN], ids=["chain", "own"])
def test_reports_follow_the_schema(audit: Audit) -> None:
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    body = json.loads(json.dumps(audit.to_json()))
    validator.validate(body)
    body["workloads"][0]["arms"][0]["cpu_us_per_image"] = "1103"
    assert not validator.is_valid(body)


SCRIPT = {"step": "decode", "cached": True, "jpeg": 'x" onerror="'}
PICTURES = [{"key": "a.jpg", "class_name": "cat", "pictures": [SCRIPT]}]


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("report_version",), 2, "version 1"),
        (("workloads", 0, "arms", 1, "cpu_us_per_image"), "1103", "workloads/0/arms/1/cpu_us_per_image"),
        (("workloads", 0, "comparisons", 0, "finding"), "wins", "workloads/0/comparisons/0/finding"),
        (("provenance", "meter", "rapl"), None, "provenance/meter/rapl"),
        (("workloads", 0, "control", "low"), -1, "workloads/0/control/low"),
        (("compression", "recipe", "sparsity"), 1.5, "compression/recipe/sparsity"),
        (("compression", "accuracies", "baseline"), [], "compression/accuracies/baseline"),
        (("samples",), PICTURES, "samples/0/pictures/0/jpeg"),
        ((), [], ""),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(
    report: ReportFiles, tmp_path: Path, path: tuple[Any, ...], value: object, place: str
) -> None:
    body: Any = {"": json.loads(report.json.read_text("utf-8"))}
    inner, path = body, ("", *path)
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (tmp_path / "report.json").write_text(json.dumps(body[""]))
    with pytest.raises(ValueError, match=f"is not the report of an audit .*{re.escape(place)}") as raised:
        read_report(tmp_path / "report.json")
    assert "\n" not in str(raised.value)


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b'{"report_version": 1, "source": "\xff"')
    with pytest.raises(ValueError, match="is not the report of an audit"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="pixel_difference/naive: must be a finite number"):
        write_report(audit_of(pixel_difference={"naive": value}), tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("blocked", "written"), [("report.html", []), ("report.json", ["report.html", "report.md"])], ids=str
)
def test_json_comes_last_and_nothing_half_written_stays(tmp_path: Path, blocked: str, written: list[str]) -> None:
    (tmp_path / blocked).mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(audit_of(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == written


def test_reports_need_no_tensorflow(report: ReportFiles, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from joulecache.pipelines.cli.terminal import show\n"
        "from joulecache.pipelines.report.describe.audit import describe_audit\n"
        "from joulecache.pipelines.report.files import read_report, write_report\n"
        "audit = read_report(sys.argv[1])\n"
        "show(describe_audit(audit))\n"
        "assert 'matplotlib' not in sys.modules, 'matplotlib is slow to import'\n"
        "write_report(audit, 'out')\n"
        "print('heavy:', *{'tensorflow', 'keras', 'apache_beam'} & {*sys.modules})"
    )
    done = run_python(code, report.json, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"


# Charts ---------------------------------------------------------------------------------------------------------------


def charts_of(files: ReportFiles) -> list[str]:
    return re.findall(r"<svg.*?</svg>", files.html.read_text("utf-8"), re.DOTALL)


def test_html_loads_nothing(report: ReportFiles) -> None:
    page = Page(report.html.read_text("utf-8"))
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                assert value.startswith(("#", "data:")), f"{tag} {name}={value}"
            if name in {"style", "clip-path"}:
                assert re.findall(r"url\((?!#)", value) == []
    style = report.html.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = [each for _, each in page.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_chart_is_told_in_words(report: ReportFiles) -> None:
    text = report.html.read_text("utf-8")
    charts = [attributes for tag, attributes in Page(text).elements if tag == "svg"]
    assert len(charts) == 1 + 1 + 2 * 4 + 1 + 1
    for chart in charts:
        assert chart["role"] == "img"
        for reference in chart["aria-labelledby"].split():
            (words,) = re.findall(rf'<(?:title|desc) id="{reference}">([^<]+)<', text)
            assert len(words) > 10


def test_ids_are_unique_and_references_hit(report: ReportFiles) -> None:
    page = Page(report.html.read_text("utf-8"))
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
    assert re.findall(r"(?:fill|stroke)(?:: |=\")#[0-9a-f]+", "".join(charts_of(report))) == []


def test_every_model_file_has_its_own_mark(write: Write) -> None:
    names = [f"pruned-sparse-clustered-int8-aware-{place}" for place in range(9)]
    files = tuple(dataclasses.replace(COMPRESSION.model_files[0], name=name) for name in names)
    accuracies = dict.fromkeys(names, (0.5,))
    compression = dataclasses.replace(COMPRESSION, model_files=files, accuracies=accuracies)
    drawn = charts_of(write(audit_of(compression=compression)))[-1]
    entry = r'<use [^>]*style="([^"]+)" href="([^"]+)" />\s*</g>\s*</g>\s*<g [^>]+>\s*<text [^>]+>(pruned[^<]+)<'
    marks = {name: mark for *mark, name in re.findall(entry, drawn)}
    assert list(marks) == names
    assert len(set(map(tuple, marks.values()))) == len(names)
