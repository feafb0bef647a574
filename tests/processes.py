"""Child processes of tests: Python that imports the same packages as the test does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CLI = "from joulecache.pipelines.cli import main; main()"


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with its import path, and with changes."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **changes}


def python(code: str, *arguments: object) -> list[str]:
    """Return the command that runs Python code, with warnings as errors."""
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def run_python(
    code: str, *arguments: object, cwd: Path | None = None, stdin: str | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end, for at most 120 s; `changes` are to its environment."""
    return subprocess.run(
        python(code, *arguments),
        cwd=cwd,
        input=stdin,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
