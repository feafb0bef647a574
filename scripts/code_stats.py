#!/usr/bin/env python3
"""Print the size of the code at one or more revisions, as Markdown.

    scripts/code_stats.py [REVISION ...]

Without a revision it measures the working tree. For each it counts lines of the product, tests and scripts, the longest function and
module, uses of `Any`, string subscripts in reports, and pairs of places that share six or more lines.
"""

from __future__ import annotations

import argparse
import ast
import collections
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("joulecache", "pipelines", "transforms")
SHARED_LINES = 6


@dataclass(frozen=True)
class Module:
    """A source file: its path from the root, its lines and, for Python, its syntax tree."""

    path: str
    lines: list[str]
    tree: ast.Module | None

    @property
    def folder(self) -> str:
        """The top-level folder."""
        return self.path.partition("/")[0]


def read(root: Path) -> list[Module]:
    """Read the source files of a checkout: Python, shell, schemas and templates, but no golden data."""
    found = []
    for folder in (*PRODUCT, "tests", "scripts"):
        for path in sorted((root / folder).rglob("*")):
            relative = path.relative_to(root)
            if not path.is_file() or "golden" in relative.parts or "__pycache__" in relative.parts:
                continue
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            python = path.suffix == ".py" or (not path.suffix and text.startswith("#!/usr/bin/env python3"))
            if python or path.suffix in ("", ".sh", ".j2", ".json"):
                found.append(Module(relative.as_posix(), text.splitlines(), ast.parse(text) if python else None))
    return found


def code_lines(modules: Sequence[Module]) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    count = 0
    for module in modules:
        docstrings: set[int] = set()
        for node in ast.walk(module.tree or ast.Module([], [])):
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        numbered = enumerate(module.lines, 1)
        count += sum(bool(text.strip()) and text.lstrip()[0] != "#" and n not in docstrings for n, text in numbered)
    return count


def functions(modules: Sequence[Module]) -> Iterator[tuple[int, str]]:
    """Yield the length of every function, without its docstring, and its place."""
    for module in modules:
        for node in ast.walk(module.tree) if module.tree else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = length(node.body[0]) if ast.get_docstring(node, clean=False) is not None else 0
                yield length(node) - docstring, f"{module.path}:{node.name}"


def length(node: ast.stmt) -> int:
    """Return the lines of a statement."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def count_any(modules: Sequence[Module]) -> int:
    """Count the uses of `Any`."""
    nodes = (node for module in modules for node in ast.walk(module.tree or ast.Module([], [])))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)


def count_string_keys(modules: Sequence[Module]) -> int:
    """Count subscripts by a literal string."""
    nodes = (node for module in modules for node in ast.walk(module.tree or ast.Module([], [])))
    return sum(
        isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
        for node in nodes
    )


def duplicate_pairs(modules: Sequence[Module]) -> int:
    """Count pairs of places that share a run of at least `SHARED_LINES` lines of code, imports and punctuation aside."""
    places: dict[tuple[str, ...], list[tuple[int, int]]] = collections.defaultdict(list)
    for number, module in enumerate(modules):
        code = [line.strip() for line in module.lines]
        code = [line for line in code if len(line) > 3 and not line.startswith(("#", "import ", "from ", '"""'))]
        for start in range(len(code) - SHARED_LINES + 1):
            places[tuple(code[start : start + SHARED_LINES])].append((number, start))
    windows = {
        (first, second)
        for found in places.values()
        for index, first in enumerate(found)
        for second in found[index + 1 :]
    }
    # A longer run shares several windows: only its first counts.
    return sum(((a, x - 1), (b, y - 1)) not in windows for (a, x), (b, y) in windows)


def measure(root: Path) -> dict[str, str]:
    """Return the figures of a checkout as text, by what they are."""
    modules = read(root)
    product = [module for module in modules if module.folder in PRODUCT]
    python = [module for module in product if module.tree]

    def lines(chosen: Sequence[Module]) -> str:
        return f"{sum(len(module.lines) for module in chosen):,}"

    def in_folder(name: str) -> list[Module]:
        return [module for module in modules if module.folder == name]

    longest = max(functions(python))
    largest = max((len(module.lines), module.path) for module in python)
    return {
        "lines of Python in the product": lines(python),
        "of them code: no blank lines, comments, docstrings": f"{code_lines(python):,}",
        "lines of templates, schemas and data in the product": lines([m for m in product if not m.tree]),
        "lines of tests": lines(in_folder("tests")),
        "of them code ": f"{code_lines(in_folder('tests')):,}",
        "lines of scripts": lines(in_folder("scripts")),
        "modules": f"{len(python)}",
        "longest function": f"{longest[0]} ({longest[1]})",
        "functions over 60 lines": f"{sum(length > 60 for length, _ in functions(python))}",
        "longest module": f"{largest[0]} ({largest[1]})",
        "uses of `Any`": f"{count_any(python)}",
        "string keys in pipelines/report": f"{count_string_keys([m for m in python if '/report/' in m.path])}",
        "duplicate pairs in the product": f"{duplicate_pairs(python)}",
        "duplicate pairs in the tests": f"{duplicate_pairs(in_folder('tests'))}",
    }


def at_revision(revision: str, use: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """Call a function on the files of a revision."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
        return use(Path(folder))


def main(revisions: Sequence[str]) -> None:
    """Print the table."""
    columns = {name: at_revision(name, measure) for name in revisions} or {"working tree": measure(ROOT)}
    print(f"| | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for what in next(iter(columns.values())):
        print(f"| {what} | {' | '.join(column[what] for column in columns.values())} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", metavar="REVISION")
    main(parser.parse_args().revisions)
