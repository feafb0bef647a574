"""Run scripts in the repository's Python environment, with the checkout on the path, and start child processes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulecache.pipelines import Meter

ROOT = Path(__file__).resolve().parent.parent
JSON = dict[str, Any]
"""A JSON object that a child process printed."""

sys.path.insert(0, str(ROOT))

CLI = "from joulecache.pipelines.cli import main; main()"


def enter(extra: str = "") -> None:
    """Run the script again in .venv, unless it runs there; create .venv if missing, with an extra of setup.cfg if given."""
    if Path(sys.prefix) != ROOT / ".venv":
        command = f'source "$0" && set_up {extra} && exec "$python" "$@"'
        os.execvp("bash", ["bash", "-c", command, str(ROOT / "scripts" / "_setup"), *sys.argv])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints a script's docstring unchanged."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def describe(*packages: str, meter: Meter | None = None) -> str:
    """Return the processor, CPUs in use, versions of Python, joulecache and more packages, and the method of a given meter."""
    from joulecache.pipelines import Meter

    provenance = (meter or Meter()).provenance()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("joulecache", *packages))
    cpus = len(os.sched_getaffinity(0))
    joules = f"; joules: {provenance.method}" if meter else ""
    return f"{provenance.cpu}, {cpus} CPUs, Python {platform.python_version()}, {versions}{joules}"


def run_python(code: str, *arguments: object) -> str:
    """Run Python code in a child process that imports from the checkout; return what it prints."""
    return _output([sys.executable, "-P", "-c", code, *arguments])  # -P: modules in the current folder are not imported


def run_joulecache(*arguments: object) -> str:
    """Run joulecache's command line in a child process; return what it prints."""
    return run_python(CLI, *arguments)


def run_script(script: str, *arguments: object) -> JSON:
    """Run a script in a child process; return the JSON object that it prints."""
    found: JSON = json.loads(_output([sys.executable, script, *arguments]))
    return found


def _output(command: Sequence[object]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
