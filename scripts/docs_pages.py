"""Pages of the documentation site that are generated: the reference. MkDocs calls these hooks; `scripts/docs` runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from environment import ROOT, run_joulecache

import joulecache
from joulecache.pipelines.cli.commands import COMMANDS
from joulecache.pipelines.source import features
from joulecache.transforms.ops import OPS

_GROUPS = {
    "Build a cache": ("precompute", "open_cache", "Cache", "open_manifest", "verify"),
    "Load it": ("load", "batches", "mix", "cached", "image_dataset_from_directory"),
    "Chains": ("parse", "Chain", "Op"),
    "Plan and audit": ("plan", "audit"),
    "Train and compress": ("train", "TrainingData", "compress", "Recipe"),
    "Energy": ("Meter", "Energy", "EnergyCallback", "ReplayMeter"),
    "Beam transforms": ("ReadRecords", "WriteCache", "ReadCache", "Record", "LiteRTModelHandler"),
}
_OUTSIDE = re.compile(r"\]\(\.\./(\.?)([^)#]+)\)")
"""A link from a page to a file of the repository that is not a page. MkDocs leaves out names that begin with a dot."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, and the files that pages link to."""
    pages = {
        "python": _python(),
        "ops": _ops(),
        "features": _features(),
        "commands": _commands(),
    }
    texts = [page.content_string for page in files.documentation_pages()]
    for dot, path in sorted({found for text in texts for found in _OUTSIDE.findall(text)}):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / f"{dot}{path}")))
    for name, lines in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link to a file outside docs/ where `on_files` put it."""
    return markdown if page.file.generated_by else _OUTSIDE.sub(r"](\2)", markdown)


def _python() -> Iterator[str]:
    """Yield the reference of the public names."""
    yield "# Python\n\n`import joulecache as jc` gives all of these names. It imports neither TensorFlow nor Beam until you use them."
    grouped = {name for names in _GROUPS.values() for name in names}
    rest = tuple(name for name in joulecache.__all__ if name not in grouped | {"ops", "features"})
    for title, names in [*_GROUPS.items(), *([("More", rest)] if rest else [])]:
        yield f"\n## {title}\n"
        for name in names:
            yield f"::: joulecache.{name}\n    options:\n      heading_level: 3\n"


def _ops() -> Iterator[str]:
    """Yield the reference of the ops, in the order of `OPS`."""
    yield "# Ops\n\n`jc.ops`: each op by its name in the text of a chain. [Transforms and the cut](../transforms.md) has an overview."
    for name, kind in OPS.items():
        yield _shown("joulecache.transforms.ops", kind, name)


def _features() -> Iterator[str]:
    """Yield the reference of the features."""
    yield "# Features of targets\n\n`jc.features`: the types of targets. [Targets](../targets.md) says how to read and train on them."
    for kind in get_args(features.AnyFeature):
        yield _shown("joulecache.pipelines.source.features", kind, kind.__name__)


def _shown(module: str, kind: type, heading: str) -> str:
    return f"\n::: {module}.{kind.__name__}\n    options: {{heading: {heading}, toc_label: {heading}, members: []}}\n"


def _commands() -> Iterator[str]:
    """Yield every command's help, as the command prints it."""
    os.environ |= {"COLUMNS": "90", "NO_COLOR": "1"}
    yield "# Commands\n\nWhat `joulecache COMMAND --help` prints."
    yield f"\n```text\n{run_joulecache('--help').strip()}\n```"
    for command in COMMANDS:
        yield f"\n## {command.__name__}\n\n```text\n{run_joulecache(command.__name__, '--help').strip()}\n```"
