"""Commands as text, parsed by the command line's own parser."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import typer

from joulecache.pipelines.cli.commands import app


@functools.cache
def group() -> Any:
    """Return the command line."""
    return typer.main.get_command(app)


def parameters(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command, without calling it; return its parameters. Files that must exist do."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        while True:
            try:
                found: dict[str, Any] = group().commands[name].make_context(name, list(arguments)).params
            except Exception as error:
                missing = re.search(
                    r"(?:path|file) '([^'/][^']*)' does not exist", str(getattr(error, "message", error))
                )
                if missing is None:
                    raise
                Path(missing[1]).parent.mkdir(parents=True, exist_ok=True)
                Path(missing[1]).touch(exist_ok=False)
            else:
                return found


def options_of(name: str) -> set[str]:
    """Return the options of a command."""
    return {flag for each in group().commands[name].params for flag in (*each.opts, *each.secondary_opts)}
