"""The user's code: import it from the working directory, and describe its exceptions in one line."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from joulecache.pipelines.core.files import sha256_of
from joulecache.pipelines.core.quantities import clipped

_LONGEST = 1000  # characters of an error's text
_LIBRARIES = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        f"{Path(__file__).parents[2]}{os.sep}",  # joulecache itself
    }
)
_QUOTED = re.compile(r'File "([^"]+)", line (\d+)')  # in TensorFlow's messages with a Python traceback
_NODE = re.compile(r"\{\{function_node [^}]*\}\} ")


@dataclass(frozen=True)
class Origin:
    """Where a function comes from: module:name, its source file and the file's SHA-256; both None if there is no file."""

    function: str
    file: str | None = None
    sha256: str | None = None


def origin_of(function: Callable[..., object]) -> Origin:
    """Return where a function comes from."""
    inner: object = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    if not hasattr(inner, "__qualname__"):  # a callable object
        inner = type(inner)
    name = f"{inner.__module__}:{getattr(inner, '__qualname__')}"  # noqa: B009 - checked above
    try:
        file = inspect.getsourcefile(inner)  # type: ignore[arg-type]
        return Origin(name, file, sha256_of(Path(file or "")))
    except (OSError, TypeError):
        return Origin(name)


def source_sha256(function: Callable[..., object]) -> str:
    """Return the SHA-256 of a function's source file; a different text each time if there is none, which hides changes."""
    return origin_of(function).sha256 or uuid.uuid4().hex


def import_user_module(option: str, module: str) -> ModuleType:
    """Import a module from the working directory or Python's path; raise a ValueError that names `option` if that fails."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as python -m does
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"cannot import {option} {module!r}: {describe_failure(error)}") from error


def describe_failure(error: BaseException) -> str:
    """Describe an exception of the user's code in one line: its type, its text and where in that code it was raised.

    TensorFlow's message about Python code that it ran is reduced to the exception of that code.
    """
    text = _NODE.sub("", str(error)).partition("\n\t [[")[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback (most recent call last):" in text or text.startswith("in user code:"):
        summary = lines[-1]
    else:
        summary = ": ".join(filter(None, (type(error).__name__, " ".join(lines))))
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    frames += [(file, int(line)) for file, line in _QUOTED.findall(text)]
    places = [f" ({file}:{line})" for file, line in frames if _is_user_code(file)]
    return clipped(summary, _LONGEST) + (places[-1] if places else "")


def _is_user_code(file: str) -> bool:
    return not file.startswith(("<", *_LIBRARIES)) and "__autograph_generated_file" not in file
