"""Packaging: packages, data files, pins, the command, the wheel."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"joulecache": "joulecache", "joulecache.pipelines": "pipelines", "joulecache.transforms": "transforms"}

CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg", encoding="utf-8")


def lines_of(section: str, option: str) -> list[str]:
    return [line for line in CONFIG[section][option].splitlines() if line]


REQUIREMENTS = [
    Requirement(line)
    for line in (
        *lines_of("options", "install_requires"),
        *lines_of("options.extras_require", "dev"),
        *lines_of("options.extras_require", "docs"),
    )
]


def product_files() -> set[str]:
    """Return the files of the packages, without bytecode caches, as paths from the root."""
    paths = (path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in paths if path.parent.name != "__pycache__"}


def pins() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{line} is no pin"
            if requirement.marker is None or requirement.marker.evaluate():
                found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def test_setup_lists_the_folders_that_hold_modules() -> None:
    folders = {Path(name).parent for name in product_files() if name.endswith(".py")}
    packages = {".".join(folder.parts) for folder in folders}
    prefixed = {name if name == "joulecache" else f"joulecache.{name}" for name in packages}
    assert lines_of("options", "packages") == sorted(prefixed)
    mapped = dict(re.split(r"\s*=\s*", line) for line in lines_of("options", "package_dir"))
    assert mapped == PACKAGES


@pytest.mark.parametrize("folder", PACKAGES.values())
def test_packages_say_that_they_are_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("folder", ["pipelines", "transforms"])
def test_the_package_links_to_the_folders(folder: str) -> None:
    assert (ROOT / "joulecache" / folder).readlink() == Path("..", folder)


def test_constraints_pin_a_version_inside_each_range() -> None:
    pinned = pins()
    for requirement in REQUIREMENTS:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_constraints_pin_all_that_requirements_require() -> None:
    pinned, seen = pins(), set[tuple[str, str]]()
    waiting = [(requirement, "") for requirement in REQUIREMENTS]
    while waiting:
        requirement, asked_by = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{asked_by} requires {name}: run scripts/pin.py"
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in metadata.requires(name) or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append((needed, name))


def test_supported_pythons_are_said_alike() -> None:
    classified = [
        line.rpartition(" ")[2] for line in lines_of("metadata", "classifiers") if re.search(r":: 3\.\d+$", line)
    ]
    searched = re.search(r"^versions=\((.*)\)$", (ROOT / "scripts/_setup").read_text(), re.MULTILINE)
    assert searched is not None
    assert sorted(searched[1].split()) == sorted(classified)
    allowed = SpecifierSet(CONFIG["options"]["python_requires"])
    minors = [f"3.{minor}" for minor in range(30)]
    assert [minor for minor in minors if f"{minor}.5" in allowed] == classified
    tested = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert tested is not None
    assert re.findall(r"3\.\d+", tested[1]) == classified


def test_version_stands_in_one_place() -> None:
    assert not [
        name for name in product_files() if name.endswith(".py") and "__version__ =" in (ROOT / name).read_text()
    ]
    try:
        installed = metadata.version("joulecache")
    except metadata.PackageNotFoundError:
        pytest.skip("joulecache is not installed, only on the path: scripts/test installs it")
    assert installed == CONFIG["metadata"]["version"]


def test_command_leads_to_a_function() -> None:
    (line,) = lines_of("options.entry_points", "console_scripts")
    name, module, function = re.split(r"\s*[=:]\s*", line)
    assert name == "joulecache"
    assert callable(getattr(import_module(module), function))


def test_scripts_can_be_run() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]:
        if not path.is_file() or not (text := path.read_text()).startswith("#!"):
            continue  # a module that scripts import
        assert os.access(path, os.X_OK), f"{path} is not executable"
        if path.suffix == ".py":
            assert text.startswith("#!/usr/bin/env python3\n")
        else:
            assert text.startswith("#!/usr/bin/env bash\n")
            assert "\nset -euo pipefail\n" in text


def test_scripts_start_under_a_python_without_packages() -> None:
    """They install .venv, and run there."""
    scripts = {path.stem: path for path in (ROOT / "scripts").glob("*.py")}
    for name, path in scripts.items():
        text = path.read_text()
        if not text.startswith("#!"):
            continue
        for statement in ast.parse(text).body:
            modules = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            modules += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            packages = {module.partition(".")[0] for module in modules}
            assert packages <= {*sys.stdlib_module_names, *scripts, "joulecache"}, f"{name} imports {packages}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the source archive, and the wheel from it, outside the repository."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("joulecache", "pipelines", "transforms", "tests", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", folder], check=True, capture_output=True)
    (built,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_wheel_holds_the_product_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    info = f"joulecache-{CONFIG['metadata']['version']}.dist-info"
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    product = {name if name.startswith("joulecache/") else f"joulecache/{name}" for name in product_files()}
    expected = product | {f"{info}/{name}" for name in about}
    assert set(wheel.namelist()) == expected
    said = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] is not None
    assert {Requirement(line).name for line in said.get_all("Requires-Dist", [])} == {r.name for r in REQUIREMENTS}
