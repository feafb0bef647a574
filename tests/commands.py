"""Commands as text, parsed by the command line's own parser."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import typer

from joulecache.pipelines.cli.commands import app


@functools.cache
def group() -> Any:
    """Return the commands of a command line that does not ask whether files exist."""
    made: Any = typer.main.get_command(app)
    for command in made.commands.values():
        for parameter in command.params:
            for kind in (parameter.type, *getattr(parameter.type, "types", ())):
                if hasattr(kind, "exists"):
                    kind.exists = False
    return made


def parameters(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command, without calling it; return its parameters."""
    found: dict[str, Any] = group().commands[name].make_context(name, list(arguments)).params
    return found


def options_of(name: str) -> set[str]:
    """Return the options of a command."""
    return {flag for each in group().commands[name].params for flag in (*each.opts, *each.secondary_opts)}
