"""Any document in each of its forms: the same words, nothing that acts, and lines that fit a terminal."""

from __future__ import annotations

import dataclasses
import functools
import io
import operator
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from audits import (
    AUDIT,
    COMPRESSION,
    ENERGY,
    OWN,
    SHAKEN,
    Page,
    extreme_audit,
    make_plan,
    markdown_page,
    own_audit,
    printed,
)
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from joulecache.pipelines.auditing.changes import compare_audits
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.manifest import BuildEnergy, Manifest, SourceSummary, Split
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.describe.cache import describe_manifest
from joulecache.pipelines.report.describe.changes import describe_changes
from joulecache.pipelines.report.describe.compression import describe_compression
from joulecache.pipelines.report.describe.energy import describe_energy
from joulecache.pipelines.report.describe.machine import OpRow, describe_checks, describe_ops, describe_throughputs
from joulecache.pipelines.report.describe.plan import describe_plan
from joulecache.pipelines.report.document import (
    Cell,
    Chart,
    Claims,
    Code,
    Column,
    Command,
    Document,
    Fact,
    Image,
    Images,
    Mark,
    NextStep,
    Paragraph,
    Section,
    Sentence,
    Stack,
    Table,
    cell,
    finding_cell,
    table,
    words,
)
from joulecache.pipelines.report.render.charts import draw
from joulecache.pipelines.report.render.html import to_html, to_notebook
from joulecache.pipelines.report.render.layout import table_lines, wrap
from joulecache.pipelines.report.render.markdown import escape, to_markdown
from joulecache.pipelines.report.render.terminal import print_document

# What others write ----------------------------------------------------------------------------------------------------

HOSTILE = {
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
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
    "[bold]markup[/bold]": "[bold]markup[/bold]",
}
PLACES = 20  # in which `everywhere` puts its text, charts aside
OURS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "h1", "h2", "p"),
    *("ul", "ol", "li", "img", "dl", "dt", "dd", "div", "span", "strong", "small", "code", "pre"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "desc", "defs", "g", "path", "use", "text", "tspan", "clippath", "rect"),
}


def everywhere(text: str) -> Document:
    """Return a document that holds a text in every place that a document has for one."""
    sentence = Sentence(text, text, text, "modelled", lead=text)
    columns = {words(text): lambda each: each, Column(text): lambda each: Spread(each, note=each)}
    shown = table(text, [text], columns, text)
    images = Images((Code(text), text), (Image("/9j/2w==", text, text),))
    blocks = (Paragraph((text, Code(text))), Claims((sentence,)), shown, images, Command(text))
    section = Section(text, blocks)
    facts = (Fact(text, cell(text), text),)
    return Document(
        title=text,
        name=text,
        headline=(sentence,),
        certainty=text,
        next_step=NextStep(text, text),
        warning=text,
        facts=facts,
        about=(text, Code(text)),
        sections=(section,),
        footer=text,
    )


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_texts_of_others_show_as_they_are_in_every_form(name: str) -> None:
    document, shown = everywhere(name), " ".join(HOSTILE[name].split())
    html, notebook = Page(to_html(document)), Page(to_notebook(document))
    markdown, terminal = markdown_page(to_markdown(document)), printed(document, 500, brief=False)
    assert html.text.count(shown) >= PLACES
    assert notebook.text.count(shown) >= PLACES - 8
    assert markdown.text.count(shown) >= PLACES - 1
    assert terminal.count(HOSTILE[name]) >= PLACES - 4
    assert "\x1b" not in terminal
    assert "\x07" not in terminal
    assert html.tables == markdown.tables
    for page in (html, notebook):
        assert {tag for tag, _ in page.elements} <= OURS
        assert not [each for _, attributes in page.elements for each in attributes if each.startswith("on")]
        assert {attributes["src"] for tag, attributes in page.elements if tag == "img"} <= {
            "data:image/jpeg;base64,/9j/2w=="
        }
    assert {tag for tag, _ in markdown.elements} <= OURS | {"h3", "blockquote"}


def test_names_in_charts_are_text() -> None:
    everything = " ; ".join(HOSTILE)
    audit = own_audit(everything, f"{everything} 2")
    page = Page(to_html(describe_audit(audit)))
    assert {tag for tag, _ in page.elements} <= OURS
    drawn = " ".join(re.findall(r"<svg.*?</svg>", to_html(describe_audit(audit)), re.DOTALL))
    assert "&lt;img src=x onerror=alert(1)&gt;" in drawn


@given(st.text())
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    shown = quantities.visible(text)
    page = markdown_page(f"| a |\n| --- |\n| x {escape(shown)} x |\n")
    assert page.tables[0][1] == [" ".join(f"x {shown} x".split())]


def test_a_bar_tells_any_number_of_parts_apart_in_the_colours_of_the_page() -> None:
    parts = tuple(Mark(f"op_{place}", 1.0 + place, text=f"{place}%") for place in range(16))
    stack = Stack(parts, Mark("rest", 3.0), None, 139.0, ("active", "waiting"), "J")
    drawn = draw("chart", Chart("Stages", stack, "In words.", "How to read it."))
    entry = r'<path [^>]*style="([^"]+)" />\s*</g>\s*<g [^>]+>\s*<text [^>]+>([^<]+)<'
    looks = {label.partition(" ")[0]: style for style, label in re.findall(entry, drawn) if label.startswith("op_")}
    assert list(looks) == [part.label for part in parts]
    assert len(set(looks.values())) == len(parts)
    assert not re.findall(r'(?:fill|stroke)(?:: |=")#[0-9a-f]+', drawn)
    assert set(re.findall(r"url\(#([^)]+)\)", drawn)) <= set(re.findall(r'id="([^"]+)"', drawn))


# The terminal ---------------------------------------------------------------------------------------------------------


@functools.cache
def documents() -> dict[str, Document]:
    """Return a document of each kind of result."""
    slower = dataclasses.replace(AUDIT, provenance=dataclasses.replace(AUDIT.provenance, batch_size=128))
    first, *files = COMPRESSION.model_files
    long_name = dataclasses.replace(first, name="pruned-sparse-clustered-int8-aware", file_bytes=99_900_000)
    flagged = dataclasses.replace(first, energy_per_image=SHAKEN)
    operations: list[Any] = [
        SimpleNamespace(
            operation=operation,
            precision=precision,
            device="/physical_device:GPU:0",
            engine="TensorFlow",
            flop_per_s=1.234e12,
            flop_per_s_low=1.1e12,
            flop_per_s_high=1.3e12,
            flop=10**12,
            flop_per_j=9.87e10,
            energy=ENERGY,
        )
        for operation in ("matrix product", "convolution")
        for precision in ("float32", "bfloat16", "int8")
    ]
    advice: Any = SimpleNamespace(training="bfloat16", inference="int8", why="operations per joule against float32")
    crop = "random_resized_crop(size, scale=(0.08, 1.0), ratio=(0.75, 1.33))"
    ops: list[OpRow] = [
        {"op": "crop", "usage": crop, "does": "Crop at random, and resize.", "cpu_us_per_image": 663.2},
        {"op": "flip_lr", "usage": "flip_lr", "does": "Mirror every second image.", "cpu_us_per_image": None},
    ]
    modelled = "modelled: 2.8 J for a second of CPU time (1.1 to 5.6)"
    found: list[Any] = [
        SimpleNamespace(what="energy of the processor", good=False, found=modelled, remedy="give --watts 12:65"),
        SimpleNamespace(what="processors", good=True, found="2 of 2", remedy=None),
    ]
    return {
        "audit": describe_audit(AUDIT),
        "wide audit": describe_audit(extreme_audit()),
        "custom pipelines": describe_audit(OWN),
        "plan": describe_plan(make_plan()),
        "plan without online": describe_plan(
            make_plan(choices=make_plan().choices[:2], online_refused="no TensorFlow")
        ),
        "compression": describe_compression(dataclasses.replace(COMPRESSION, model_files=(flagged, *files, long_name))),
        "changes": describe_changes(compare_audits(AUDIT, slower)),
        "cache": describe_manifest(manifest(), "s3://bucket/a-cache/"),
        "energy": describe_energy(SHAKEN, ("RAPL: no counters",)),
        "hardware": describe_throughputs(operations, Meter().provenance(), advice),
        "doctor": describe_checks(found),
        "ops": describe_ops(ops),
    }


def manifest() -> Manifest:
    def file(records: int) -> DataFile:
        return DataFile("train-v0-00000-of-00012-1a2b3c4d.arrow", records, 123_456_789, "0" * 64, None, None, None)

    def split(records: int) -> Split:
        levels = (122.7, 116.1, 104.2)
        files = (file(records),) * 12
        counts = (records - records // 1000 * 999, *(records // 1000,) * 999)
        return Split("decode|resize(72)", "0" * 64, 3, records, (72, 72, 3), counts, levels, levels, files)

    return Manifest(
        chain="decode|resize(72) || random_crop(64)|flip_lr",
        seed=0,
        variants=3,
        format="arrow",
        encoding="raw",
        quality=None,
        val_fraction=0.1,
        shards=12,
        class_names=tuple(f"class {place}" for place in range(1000)),
        source=SourceSummary("photos/", 1_331_182, 150_000_000_000, {".txt": 12}),
        splits={"train": split(1_281_167), "val": split(50_000), "test": split(0)},
        index=file(1_331_167),
        rejected=file(15),
        versions={},
        energy=BuildEnergy(ENERGY, Meter().provenance()),
    )


def tables(document: Document) -> list[Table]:
    return [block for section in document.sections for block in section.blocks if isinstance(block, Table)]


def tokens(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("kind", list(documents()))
def test_no_table_breaks_a_number_or_a_word(kind: str, width: int) -> None:
    for shown in tables(documents()[kind]):
        lines = [line.plain for line in table_lines(shown, width)]
        assert max(map(cell_len, lines)) <= width, shown.title
        texts = [shown.title, shown.remark, "(energy modelled) measured Left out at this width:"]
        texts += [text for column in shown.columns for text in (column.title, column.short)]
        for row in shown.rows:
            for each in row:
                spread = each.value
                texts += [
                    each.text,
                    each.tag or "",
                    f"({spread.interval})",
                    spread.interval,
                    f"{spread.low}-{spread.high}",
                ]
        whole = tokens(texts)
        whole |= {part for word in whole for part in parts_of(word)}
        whole |= {f"{word}{mark}" for word in whole for mark in ",.:"}
        broken = {word for word in tokens(lines) if word not in whole and set(word) != {"─"}}
        assert not {word for word in broken if not part_of_a_long_word(word, whole, width)}, shown.title


def parts_of(name: str) -> set[str]:
    """Return what a name may be broken into: at its hyphens."""
    parts = re.split(r"(?<=[^\W\d]-)(?=[^\W_])", name)
    return {"".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}


def part_of_a_long_word(part: str, words: set[str], width: int) -> bool:
    return any(part in word for word in words if cell_len(word) > width - 4)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("kind", list(documents()))
def test_no_line_is_wider_than_the_terminal(kind: str, width: int) -> None:
    for brief in (True, False):
        lines = printed(documents()[kind], width, brief=brief).splitlines()
        wide = [line for line in lines if cell_len(line) > width and not line.startswith("joulecache ")]  # a command
        assert not wide
        assert not [line for line in lines if "\x1b" in line or line != line.rstrip()]


@pytest.mark.parametrize("kind", list(documents()))
def test_all_forms_say_the_same(kind: str) -> None:
    document = documents()[kind]
    html, markdown, notebook = (
        Page(to_html(document)),
        markdown_page(to_markdown(document)),
        Page(to_notebook(document)),
    )
    assert html.tables == markdown.tables
    assert len(notebook.tables) == len(tables(document.brief()))
    terminal = " ".join(printed(document).split())
    for sentence in document.headline:
        for form in (html.text, markdown.text, notebook.text, terminal):
            assert sentence.claim in form
            assert sentence.detail in form
    for form in (html.text, markdown.text, notebook.text, terminal):
        assert document.warning in form


def rows_table(
    title: str, columns: list[Column], rows: list[tuple[Cell | Spread | str, ...]], remark: str = ""
) -> Table:
    return table(title, rows, {column: operator.itemgetter(place) for place, column in enumerate(columns)}, remark)


EXAMPLE = rows_table(
    "Arms",
    [words("Arm"), Column("Energy per 1,000 images"), Column("Ratio", priority=1), words("Finding", priority=2)],
    [
        ("naive", cell(Spread("3.42 J", "1.32", "7.40"), "modelled"), "1", "reference"),
        (
            "tf_cache",
            cell(Spread("0.133 J", "0.0515", "0.288"), "modelled"),
            Spread("0.04", note="one block"),
            finding_cell("saves"),
        ),
    ],
    "How to read it.",
)


def lines_of(width: int) -> list[str]:
    return [line.plain for line in table_lines(EXAMPLE, width)]


def test_a_table_gives_up_columns_and_then_becomes_a_list() -> None:
    assert lines_of(80)[0] == "Arms (energy modelled)"
    assert any(line.split()[:2] == ["tf_cache", "0.133"] and "0.0515-0.288" in line for line in lines_of(80))
    narrow = lines_of(40)
    assert "Left out at this width: Finding." in narrow
    at = next(place for place, line in enumerate(narrow) if line.startswith("tf_cache"))
    assert (narrow[at].split(), narrow[at + 1].split()) == (
        ["tf_cache", "0.133", "J", "0.04"],
        ["0.0515-0.288", "one", "block"],
    )
    assert lines_of(18)[2:] == [
        "naive",
        "  Energy per",
        "    1,000 images:",
        "    3.42 J",
        "    (1.32 to 7.40)",
        "  Ratio: 1",
        "  Finding:",
        "    reference",
        "tf_cache",
        "  Energy per",
        "    1,000 images:",
        "    0.133 J",
        "    (0.0515 to",
        "    0.288)",
        "  Ratio: 0.04",
        "    (one block)",
        "  Finding: saves",
        "How to read it.",
    ]


def test_several_tags_stand_beside_their_values() -> None:
    rows: list[tuple[Any, ...]] = [("x", cell("1 J", "measured")), ("y", cell("2 J", "modelled"))]
    measured = rows_table("T", [words("A"), Column("B")], rows)
    lines = [line.plain for line in table_lines(measured, 80)]
    assert lines[0] == "T"
    assert [line.split() for line in lines[-2:]] == [["x", "1", "J", "measured"], ["y", "2", "J", "modelled"]]


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))), st.integers(1, 20))
def test_wrapped_text_loses_nothing(text: str, width: int) -> None:
    shown = quantities.visible(text)
    lines = wrap(shown, width)
    assert "".join(lines).replace(" ", "") == shown.replace(" ", "").replace("\u00a0", "")
    assert all(cell_len(line) <= max(width, 2) for line in lines)


def test_words_that_are_longer_than_a_line_break_between_their_parts() -> None:
    assert wrap("https://example.org/a_long/path", 20) == ["https://example.org/", "a_long/path"]
    assert wrap("pruned-int8 x", 11) == ["pruned-int8", "x"]
    assert wrap("is pruned-int8", 11) == ["is", "pruned-int8"]
    assert wrap("is pruned-int8", 11, at_hyphens=True) == ["is pruned-", "int8"]
    assert wrap("of -0.5 to 1.2-3.4", 7) == ["of -0.5", "to", "1.2-3.4"]


def test_a_terminal_gets_colours_and_a_pipe_gets_none() -> None:
    out = io.StringIO()
    print_document(documents()["audit"], Console(file=out, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[" in out.getvalue()
    assert "\x1b[" not in printed(documents()["audit"])


@pytest.mark.parametrize("width", [1, 5, 12])
def test_the_narrowest_terminals_get_lists(width: int) -> None:
    assert printed(documents()["audit"], width, brief=False)


def test_short_forms_leave_details_out() -> None:
    shown = printed(documents()["audit"])
    assert "Background load" not in shown
    assert "Background load" in printed(documents()["audit"], brief=False)
    assert "Coefficients" not in to_notebook(documents()["audit"])


def test_a_command_stays_on_one_line() -> None:
    command = f"joulecache precompute {'long/' * 30}"
    assert command in printed(Document("t", "n", sections=(Section("", (Command(command),)),)), 60).splitlines()


Render = Callable[[Document], str]


@pytest.mark.parametrize("render", [to_html, to_markdown, to_notebook, printed])
def test_an_empty_document_has_every_form(render: Render) -> None:
    render(Document("title", "name"))
