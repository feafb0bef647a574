"""People's own code: imported from where they stand; where it fails, one line says how, and in which of their lines."""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

_LONGEST = 300  # characters of an error's text
_LIBRARIES = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        f"{Path(__file__).parents[2]}{os.sep}",  # joulecache itself
    }
)
_QUOTED = re.compile(r'File "([^"]+)", line (\d+)')  # in texts of TensorFlow that hold a traceback of Python
_NODE = re.compile(r"\{\{function_node [^}]*\}\} ")


def import_own(option: str, module: str) -> ModuleType:
    """Import the module that an option names, from where the user stands or from Python's path; ValueError when that fails."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as python -m has it
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # of any kind: it is not ours
        raise ValueError(f"cannot import {option} {module!r}: {describe_failure(error)}") from error


def describe_failure(error: BaseException) -> str:
    """Return an exception of people's own code in one line: its type, its text and where in their code it was raised.

    What TensorFlow tells of Python code that it ran is cut down to the exception of that code.
    """
    text = _NODE.sub("", str(error)).partition("\n\t [[")[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback (most recent call last):" in text or text.startswith("in user code:"):
        said = lines[-1]
    else:
        said = ": ".join(filter(None, (type(error).__name__, " ".join(lines))))
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    frames += [(file, int(line)) for file, line in _QUOTED.findall(text)]
    places = [f" ({file}:{line})" for file, line in frames if _is_own(file)]
    return said[:_LONGEST] + (places[-1] if places else "")


def _is_own(file: str) -> bool:
    return not file.startswith(("<", *_LIBRARIES)) and "__autograph_generated_file" not in file
