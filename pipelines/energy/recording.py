"""Recordings of windows: one JSON line with the meter's provenance, then one per closed window."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.codec import dumps, from_json, parse_json
from joulecache.pipelines.energy.measurement import Energy
from joulecache.pipelines.energy.provenance import Provenance

_FORMAT = 1


def begin_recording(path: str | os.PathLike[str], provenance: Provenance) -> Path:
    """Write the first line of a recording; raises ValueError if its folder is missing or the file is not empty."""
    file = Path(path)
    if not file.parent.is_dir():
        raise ValueError(f"record must be a file in a folder that exists, got {os.fspath(path)!r}")
    if file.exists() and (not file.is_file() or file.stat().st_size):
        raise ValueError(f"record must be a new or empty file, got {os.fspath(path)!r}, which exists")
    file.write_text(dumps({"recording": _FORMAT, "passport": provenance}) + "\n", "utf-8")
    return file


def append_window(file: Path, name: str, energy: Energy) -> None:
    """Append a closed window in one write, so that the lines of several threads do not mix."""
    line = dumps({"window": name, "energy": energy}) + "\n"
    with open(file, "ab", buffering=0) as out:
        out.write(line.encode())


def read_recording(path: str | os.PathLike[str]) -> tuple[Provenance, list[tuple[str, Energy]]]:
    """Return the provenance and the windows of a recording, in the order of closing; ValueError names an invalid line."""
    lines = Path(path).read_text("utf-8").splitlines()
    windows: list[tuple[str, Energy]] = []
    number = 1
    try:
        body: Any = parse_json((lines or [""])[0])
        if body["recording"] != _FORMAT:
            raise ValueError(f"format {body['recording']!r} is unknown: this version reads {_FORMAT}")
        provenance = from_json(Provenance, body["passport"], allow_unknown=True)
        for number, line in enumerate(lines[1:], start=2):  # noqa: B007 - named where it fails
            body = parse_json(line)
            windows.append((str(body["window"]), Energy.from_json(body["energy"])))
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{os.fspath(path)}, line {number}, is not from a recording of windows: {problem}") from error
    return provenance, windows
