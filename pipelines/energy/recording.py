"""A file of recorded windows: one JSON line of what shaped the figures, then one for each window that was closed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joulecache.pipelines.energy.measurement import Energy

_FORMAT = 1


def begin_recording(path: str | os.PathLike[str], passport: Mapping[str, Any]) -> Path:
    """Write the first line of a recording; ValueError where its folder is missing or the file holds something."""
    file = Path(path)
    if not file.parent.is_dir():
        raise ValueError(
            f"record is {os.fspath(path)!r}: give a file in a folder that exists, {str(file.parent)!r} does not"
        )
    if file.exists() and (not file.is_file() or file.stat().st_size):
        raise ValueError(f"record is {os.fspath(path)!r}: give a new file, this one holds something already")
    file.write_text(json.dumps({"recording": _FORMAT, "passport": dict(passport)}) + "\n", "utf-8")
    return file


def append_window(file: Path, name: str, energy: Energy) -> None:
    """Add a closed window to a recording, in one write: those of several threads do not mix."""
    line = json.dumps({"window": name, "energy": energy.to_json()}) + "\n"
    with open(file, "ab", buffering=0) as out:
        out.write(line.encode())


def read_recording(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[tuple[str, Energy]]]:
    """Return the passport and the windows of a recording, in the order in which they were closed.

    Raises OSError for a file that cannot be read, ValueError, with the line, for one that is no recording.
    """
    lines = Path(path).read_text("utf-8").splitlines()
    passport: dict[str, Any] = {}
    windows: list[tuple[str, Energy]] = []
    for number, line in enumerate(lines or [""], start=1):
        try:
            body = json.loads(line)
            if number == 1:
                if body["recording"] != _FORMAT:
                    raise ValueError(f"format {body['recording']!r} is unknown: this version reads {_FORMAT}")
                passport = dict(body["passport"])
            else:
                windows.append((body["window"], Energy.from_json(body["energy"])))
        except (ValueError, KeyError, TypeError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{os.fspath(path)}, line {number}, is not of a recording of windows: {said}") from error
    return passport, windows
