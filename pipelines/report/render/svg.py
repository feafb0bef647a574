"""Draw inline SVG with Matplotlib, in the colours and fonts of the page, with a text alternative."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

# Defaults: the style sheet of a page overrides them for light and dark mode.
COLOURS = {
    "ink": "#1b1f24",
    "muted": "#5d6670",
    "grid": "#dfe3e8",
    "paper": "#fefefe",
    "series-0": "#7a828c",
    "series-1": "#2f6fb7",
    "series-2": "#c96a12",
    "series-3": "#0b8a6b",
    "series-4": "#8a4fb5",
    "series-5": "#b5385f",
    "series-6": "#7a7a12",
    "series-7": "#2a8fa8",
}
DASHES = (
    (0, (1, 1.4)),
    (0, (5, 2)),
    (0, (7, 2, 1.5, 2)),
    "solid",
    (0, (3, 1)),
    (0, (1, 3)),
    (0, (9, 3)),
    (0, (4, 1, 1, 1)),
)
MARKERS = "osD^vPX*"
SERIES = len(DASHES)
WIDTH = 340  # about the width of a phone, so that text is not scaled down there

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollar signs
    "font.size": 11,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["grid"],
    "legend.frameon": False,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "lines.linewidth": 2,
}
_XLINK = "{http://www.w3.org/1999/xlink}href"
_SPACE = "{http://www.w3.org/2000/svg}"


@contextmanager
def _own_style(salt: str) -> Iterator[None]:
    import matplotlib.style

    # independent of the user's matplotlibrc, and without effect on the user's plots
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": salt}]), warnings.catch_warnings():
        # the font used here only measures text; the browser has the missing glyphs
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def draw(name: str, height: int, title: str, description: str, paint: Callable[[Any], None]) -> str:
    """Return what `paint` draws on Matplotlib axes as a reproducible SVG element, whose ids start with `name`."""
    from matplotlib.figure import Figure

    with _own_style(name):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.set_axisbelow(True)
        paint(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _inline(name, file.getvalue(), title, description)


def _inline(name: str, text: str, title: str, description: str) -> str:
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SPACE)
        if _XLINK in element.attrib:
            element.set("href", element.attrib.pop(_XLINK))
        if element.get("fill") in COLOURS.values():  # a hatched area: only a style can use the page's colours
            element.set("style", f"fill: {element.attrib.pop('fill')}")
        for attribute, value in element.attrib.items():
            element.set(attribute, _adapted(name, attribute, value))
    for tag in ("metadata", "defs"):  # the latter has style rules for the whole page
        for child in root.findall(tag):
            if tag == "metadata" or child.find("style") is not None:
                root.remove(child)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"})
    for index, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = words
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")


def _adapted(name: str, attribute: str, value: str) -> str:
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "href":
        return f"#{name}-{value.removeprefix('#')}"
    value = value.replace("url(#", f"url(#{name}-")
    if attribute == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        for colour, code in COLOURS.items():
            value = value.replace(code, f"var(--{colour}, {code})")
    return value
