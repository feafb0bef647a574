"""The modules stand in an order, and imports only point back; what is heavy is imported where it is needed, or not at all."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import joulecache.pipelines
import joulecache.transforms

ROOT = Path(__file__).resolve().parents[1]

# A folder's parts come before the folder itself, whose name stands for its __init__.
IN_ORDER = """
transforms.ops.base  transforms.ops.decode  transforms.ops.geometry  transforms.ops.colour  transforms.ops.policies
transforms.ops.batch  transforms.ops
transforms.chain  transforms.randomness
transforms.reference_kernels.images  transforms.reference_kernels.decoding  transforms.reference_kernels.geometry
transforms.reference_kernels.colour  transforms.reference_kernels.policies  transforms.reference_kernels.batch
transforms.reference_kernels
transforms.graph_kernels
transforms
pipelines.own_code  pipelines.notebook  pipelines.tfrecord  pipelines.objects
pipelines.source.records  pipelines.source.naming  pipelines.source.labels
pipelines.source.images  pipelines.source.folder  pipelines.source.stored  pipelines.source.tar
pipelines.source.rows  pipelines.source.parquet  pipelines.source.tfrecord  pipelines.source.tfds
pipelines.source.synthetic  pipelines.source
pipelines.costs  pipelines.shards  pipelines.manifest.structure  pipelines.manifest  pipelines.staging
pipelines.meter.energy  pipelines.meter.windows  pipelines.meter.recording
pipelines.meter.process_tree  pipelines.meter.machine
pipelines.meter.model  pipelines.meter.storage  pipelines.meter.rapl  pipelines.meter.nvml  pipelines.meter.carbon
pipelines.meter.cross_check
pipelines.meter  pipelines.meter.replay
pipelines.build.recipe  pipelines.build.memory  pipelines.build.pictures
pipelines.build.previous  pipelines.build.shard  pipelines.build.journal
pipelines.build.beam_graph  pipelines.build.folder  pipelines.build.destination
pipelines.build.commit
pipelines.build
pipelines.loader.memory  pipelines.loader.order  pipelines.loader.stored  pipelines.loader.split  pipelines.loader.steps
pipelines.loader
pipelines.loader.element_cache  pipelines.loader.directory
pipelines.models.architectures  pipelines.models.macs  pipelines.models
pipelines.compression.staging  pipelines.compression.dependency_groups  pipelines.compression.batch_norm
pipelines.compression.pruning  pipelines.compression.sparsity  pipelines.compression.clustering
pipelines.compression.tflite  pipelines.compression.quantization_aware  pipelines.compression.recipe
pipelines.compression.variants  pipelines.compression.stages  pipelines.compression
pipelines.hardware  pipelines.doctor  pipelines.training
pipelines.auditing.claims  pipelines.auditing.results  pipelines.auditing.folder
pipelines.auditing.arms  pipelines.auditing.provenance  pipelines.auditing.workloads
pipelines.auditing.runs  pipelines.auditing.waiting  pipelines.auditing.summary  pipelines.auditing.bench
pipelines.auditing.stages  pipelines.auditing.variants  pipelines.auditing.changes  pipelines.auditing.samples
pipelines.auditing.chains  pipelines.auditing.own  pipelines.auditing
pipelines.planning.pricing  pipelines.planning.sampling  pipelines.planning
pipelines.report.figures  pipelines.report.verdict  pipelines.report.tables  pipelines.report.reuse  pipelines.report.stages
pipelines.report.page
pipelines.report.markdown  pipelines.report.terminal
pipelines.report.drawing  pipelines.report.charts  pipelines.report.contact_sheet
pipelines.report.plans  pipelines.report
pipelines.cli.options  pipelines.cli.terminal  pipelines.cli.running  pipelines.cli.machine  pipelines.cli.models
pipelines.cli.auditing  pipelines.cli.planning  pipelines.cli
pipelines
"""
ORDER = IN_ORDER.split()

# (importer, function): what it may import from further on, and why.
FORWARD = {
    # A chain is plain data and says so first; called on an image, it needs the kernels, which are written in terms of chains' ops.
    ("transforms.chain", "Chain.__call__"): {"transforms.randomness", "transforms.reference_kernels"},
    # So are results; looked at in a notebook they show the report that is made of them.
    ("pipelines.auditing.results", "Audit._repr_html_"): {"pipelines.report"},
    ("pipelines.planning", "Plan._repr_html_"): {"pipelines.report.plans"},
    ("pipelines.compression", "Compression._repr_html_"): {"pipelines.report"},
}

TENSORFLOW = {"tensorflow", "keras"}
# They cannot be used without TensorFlow, so they import it at their top.
WITH_TENSORFLOW = (
    "transforms.graph_kernels",
    "pipelines.loader",
    "pipelines.models",
    "pipelines.compression",
    "pipelines.hardware",
    "pipelines.training",
    "pipelines.auditing",
    "pipelines.planning",
)
WITH_BEAM = ("pipelines.build.beam_graph",)

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LONGEST = 500


@dataclass(frozen=True)
class Import:
    """One import statement's target: where it stands, and whether it runs at all."""

    module: str  # "joulecache." is left out, so that ours read as in ORDER
    line: int
    function: str  # "" at module level, else "Class.method"
    runs: bool  # False under `if TYPE_CHECKING:`


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path for folder in ("transforms", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))
}


def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix("joulecache.") for alias in node.names)
        return
    assert node.level == 0, f"a relative import on line {node.lineno}: write the full name"
    base = (node.module or "").removeprefix("joulecache").removeprefix(".") if ours(node.module) else node.module or ""
    for alias in node.names:
        deeper = f"{base}.{alias.name}".removeprefix(".")
        yield deeper if deeper in MODULES else base


def ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "joulecache"


def imports_of(module: str) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, scope: tuple[str, ...], function: str, runs: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(Import(target, node.lineno, function, runs) for target in targets(node))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            scope = (*scope, node.name)
            if not isinstance(node, ast.ClassDef):
                function = ".".join(scope)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.body:
                visit(statement, scope, function, False)
            for statement in node.orelse:
                visit(statement, scope, function, runs)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, scope, function, runs)

    visit(ast.parse(MODULES[module].read_text()), (), "", True)
    return found


def within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


every_module = pytest.mark.parametrize("module", list(MODULES))


def test_every_module_has_its_place_in_the_order() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert not set(MODULES) - set(ORDER), "a new module: put it into ORDER, and into the design"


@every_module
def test_imports_point_back(module: str) -> None:
    place = ORDER.index(module)
    for target in imports_of(module):
        if target.module.split(".")[0] not in ("transforms", "pipelines", "joulecache"):
            continue
        assert target.module in MODULES, f"{module}, line {target.line}: there is no module {target.module}"
        allowed = FORWARD.get((module, target.function), set())
        assert target.module in allowed or ORDER.index(target.module) < place, (
            f"{module}, line {target.line}: {target.module} stands further on"
        )


def test_transforms_know_nothing_of_pipelines() -> None:
    assert max(ORDER.index(name) for name in ORDER if within(name, ("transforms",))) < min(
        ORDER.index(name) for name in ORDER if within(name, ("pipelines",))
    )


@every_module
def test_heavy_libraries_are_imported_where_they_are_needed(module: str) -> None:
    for target in imports_of(module):
        library = target.module.split(".")[0]
        where = f"{module}, line {target.line}: {library}"
        if library == "apache_beam":
            assert within(module, WITH_BEAM), f"{where} is imported by {', '.join(WITH_BEAM)} alone"
        if library in TENSORFLOW and target.runs:
            assert within(module, WITH_TENSORFLOW), f"{where} takes seconds to import, and has its modules"


@every_module
def test_nothing_is_pickled(module: str) -> None:
    assert not [target for target in imports_of(module) if target.module.split(".")[0] in PICKLES]


@every_module
def test_no_module_is_too_long(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines, so it is two modules: make it a folder of that name"


@every_module
def test_no_public_name_is_a_module_too(module: str) -> None:
    """`from package import name` would return the module instead of the function."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    neighbours = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
    defined = {
        node.name
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not defined & neighbours


@pytest.mark.parametrize("package", [joulecache.transforms, joulecache.pipelines])
def test_public_names_exist(package: object) -> None:
    names = getattr(package, "__all__")  # noqa: B009
    assert not [name for name in names if not hasattr(package, name)]
    assert not [name for name in names if f"{package.__name__}.{name}" in sys.modules]  # type: ignore[attr-defined]


def test_types_know_every_public_name() -> None:
    """Names that are loaded on first use are Any to a type checker, unless they are imported for it alone."""
    tree = ast.parse(MODULES["pipelines"].read_text())
    typed = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(joulecache.pipelines.__all__)


@pytest.mark.parametrize(
    "module", [name for name in ("transforms", "pipelines", "pipelines.cli", "pipelines.build") if name in MODULES]
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, joulecache.{module}; print(*{{'tensorflow', 'apache_beam', 'pandas', 'matplotlib'}} & {{*sys.modules}})"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
