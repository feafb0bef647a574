"""Packages are in an order, and imports only point back. Heavy libraries are imported where they are needed, or not at all."""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from processes import run_python

import joulecache
import joulecache.pipelines
import joulecache.transforms

ROOT = Path(__file__).resolve().parents[1]

# A module imports from its own package and from those before it.
PIPELINES = (
    *("core", "energy", "source", "cache", "building", "loading", "models", "compressing", "training", "experiment"),
    *("auditing", "planning", "report", "cli"),
)
ORDER = ["transforms", *(f"pipelines.{package}" for package in PIPELINES), "pipelines", "joulecache"]

TENSORFLOW = {"tensorflow", "keras"}
# Useless without TensorFlow, so they may import it at the top.
WITH_TENSORFLOW = (
    "transforms.tensorflow",
    "transforms.tensorflow_targets",
    *(
        f"pipelines.loading.{module}"
        for module in (
            "loader",
            "dataset",
            "device",
            "directory",
            "element_cache",
            "grain_images",
            "graph",
            "iterators",
            "kept_alive",
            "light_functions",
        )
    ),
    "pipelines.models",
    "pipelines.compressing",
    "pipelines.training",
    "pipelines.experiment",
    "pipelines.auditing",
    "pipelines.planning",
)
WITH_BEAM = (
    *(f"pipelines.building.{module}" for module in ("beam_graph", "beam_sink", "beam_sources")),
    "pipelines.compressing.beam_inference",
)

# Pickles run code when they are read; the last two switch `tf.keras` to Keras 2.
BANNED = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("tf_keras", "tensorflow_model_optimization"),
}
ALLOWED = {("pipelines.building.worker_pool", "cloudpickle")}  # to its own processes, never to a file
ONLY_THERE = {"cv2": "transforms.kernels", "cykooz_resizer": "transforms.resizing", "simplejpeg": "transforms.jpeg"}
LONGEST_MODULE, LONGEST_FUNCTION = 500, 60


@dataclass(frozen=True)
class Import:
    """What an import statement names.

    Attributes:
        module: The module, without "joulecache.".
        line: The line of the statement.
        runs: False inside `if TYPE_CHECKING:`.
    """

    module: str
    line: int
    runs: bool


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for folder in ("transforms", "pipelines", "joulecache")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the modules that a statement imports, or imports names from."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix("joulecache.") for alias in node.names)
        return
    assert node.level == 0, f"a relative import on line {node.lineno}: write the full name"
    base = node.module or ""
    if base.split(".")[0] == "joulecache":
        base = base.removeprefix("joulecache").removeprefix(".")
    for alias in node.names:
        deeper = f"{base}.{alias.name}".removeprefix(".")
        yield deeper if deeper in MODULES else base


@functools.cache
def imports_of(module: str) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, runs: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(Import(target, node.lineno, runs) for target in targets(node))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.body:
                visit(statement, False)
            for statement in node.orelse:
                visit(statement, runs)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, runs)

    visit(ast.parse(MODULES[module].read_text()), True)
    return found


def within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def package_of(module: str) -> str:
    return next(package for package in (*ORDER[:-2], "pipelines", "joulecache") if within(module, (package,)))


def test_every_package_has_its_place_in_the_order() -> None:
    on_disk = {f"pipelines.{path.parent.name}" for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert on_disk | {"transforms", "pipelines", "joulecache"} == set(ORDER)
    assert {module for module in MODULES if package_of(module) == "pipelines"} == {"pipelines"}, (
        "a module outside the packages"
    )


def test_imports_point_back() -> None:
    wrong = []
    for module in MODULES:
        place = ORDER.index(package_of(module))
        for target in imports_of(module):
            if target.module.split(".")[0] not in ("transforms", "pipelines", "joulecache"):
                continue
            if target.module not in MODULES:
                wrong.append(f"{module}, line {target.line}: there is no module {target.module}")
            elif ORDER.index(package_of(target.module)) > place:
                wrong.append(f"{module}, line {target.line}: {target.module} is in a later package")
    assert not wrong


def test_planning_does_not_import_auditing() -> None:
    planning = [module for module in MODULES if package_of(module) == "pipelines.planning"]
    imported = {
        package_of(target.module) for module in planning for target in imports_of(module) if target.module in MODULES
    }
    assert "pipelines.auditing" not in imported


def test_modules_do_not_import_in_a_circle() -> None:
    graph = {
        module: {target.module for target in imports_of(module) if target.module in MODULES and target.runs}
        for module in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_heavy_libraries_are_imported_where_they_are_needed() -> None:
    wrong = []
    for module in MODULES:
        for target in imports_of(module):
            library = target.module.split(".")[0]
            beam = library == "apache_beam" and not within(module, WITH_BEAM)
            tensorflow = library in TENSORFLOW and target.runs
            if beam or (tensorflow and not within(module, WITH_TENSORFLOW)):
                wrong.append(f"{module}, line {target.line}: {library}")
    assert not wrong


def test_banned_libraries_are_not_imported() -> None:
    found = {(module, each.module.split(".")[0]) for module in MODULES for each in imports_of(module)}
    assert {(module, library) for module, library in found if library in BANNED} == ALLOWED
    assert not [(module, library) for module, library in found if ONLY_THERE.get(library, module) != module]


def test_no_module_is_too_long() -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert not {module: count for module, count in lines.items() if count > LONGEST_MODULE}


def test_no_function_is_too_long() -> None:
    """Docstrings aside, which list arguments."""
    lines = {
        f"{module}.{node.name}": span(node) - (span(node.body[0]) if ast.get_docstring(node) else 0)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {function: count for function, count in lines.items() if count > LONGEST_FUNCTION}


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_public_name_is_a_module_too() -> None:
    """`from package import name` would return the module instead of the function."""
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        neighbours = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
        defined = {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert not defined & neighbours, module


@pytest.mark.parametrize("package", [joulecache, joulecache.transforms, joulecache.pipelines])
def test_public_names_exist(package: ModuleType) -> None:
    names = package.__all__
    assert not [name for name in names if not hasattr(package, name)]
    modules = {name for name in names if f"{package.__name__}.{name}" in sys.modules}
    assert modules <= {"ops"}


@pytest.mark.parametrize("package", [joulecache, joulecache.pipelines])
def test_types_know_every_public_name(package: ModuleType) -> None:
    """Names that load on first use are Any to a type checker, unless TYPE_CHECKING imports them."""
    tree = ast.parse(MODULES[package.__name__.removeprefix("joulecache.")].read_text())
    typed = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(package.__all__)


def test_the_command_line_starts_without_what_only_jobs_need() -> None:
    heavy = "{'pyarrow', 'scipy', 'tensorflow', 'apache_beam'}"
    done = run_python(f"import sys, joulecache.__main__, joulecache.pipelines.cli; print(*{heavy} & {{*sys.modules}})")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    ["", ".transforms", ".pipelines", ".pipelines.cli", ".pipelines.building.precomputing", ".pipelines.report"],
)
def test_importing_is_light(module: str) -> None:
    heavy = "{'tensorflow', 'apache_beam', 'pandas', 'matplotlib'}"
    done = run_python(f"import sys, joulecache{module}; print(*{heavy} & {{*sys.modules}})")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
