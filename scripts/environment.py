"""What every script needs: the repository's own Python environment, and a line that names the machine and the versions."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter(extra: str = "") -> None:
    """Run the script again in .venv unless it is there already, and put the checkout on the path.

    Args:
        extra: The extra of setup.cfg that .venv must have, as for `set_up` in scripts/_setup.
    """
    if Path(sys.prefix) != ROOT / ".venv":
        command = f'source "$0" && set_up {extra} && exec "$python" "$@"'
        os.execvp("bash", ["bash", "-c", command, str(ROOT / "scripts" / "_setup"), *sys.argv])
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def describe(packages: Sequence[str]) -> str:
    """Return the processor, the CPUs in use, and the versions of Python, joulecache and other packages."""
    from joulecache.pipelines import Meter

    cpus = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("joulecache", *packages))
    return f"{Meter().passport()['cpu']}, {cpus} CPUs, Python {platform.python_version()}, {versions}"
