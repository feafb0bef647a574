"""Output folders of training and compression. Each has a JSON record that lists its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from joulecache.pipelines.core import codec, files

_ENVELOPE = ("format", "versions", "files")  # keys of every record besides its body


def check_output_folder(out: Path, record: str) -> None:
    """Raise ValueError if `out` is a file, cannot be written to, or holds files without a record that joulecache wrote."""
    files.check_folder(out, f"a folder with joulecache's {record}", lambda folder: _listed(folder / record) is not None)
    files.check_writable(out, "out")


@contextmanager
def staged_output(out: Path, record: str) -> Iterator[Path]:
    """Yield an empty folder whose files move to `out` together at the end, or not at all.

    `write_record` must have written the record into it by then. Files that only the old record lists are deleted; all
    others in `out` stay. Raises as `check_output_folder`.
    """
    check_output_folder(out, record)
    with files.staged_folder(out, last=record, stale=_listed(out / record) or ()) as staging:
        yield staging


def discard_output(out: Path, record: str) -> None:
    """Delete the files that the record of `out` lists, and then `out` if it is empty."""
    listed = _listed(out / record)
    if listed is None:
        return
    for name in listed:
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def write_record(path: Path, body: Mapping[str, object]) -> None:
    """Write a record: its body, library versions, and the names of all files in its folder."""
    record = {
        "format": _format(path),
        **body,
        "versions": {name: version(name) for name in ("tensorflow", "keras", "ai-edge-litert")},
        "files": sorted({path.name, *(file.name for file in path.parent.iterdir())}),
    }
    path.write_text(codec.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Return the body that `write_record` wrote; raise ValueError for any other JSON."""
    record = codec.parse_json(path.read_bytes())
    if not isinstance(record, dict) or record.get("format") != _format(path):
        raise ValueError(f"its format is not {_format(path)!r}")
    return {name: value for name, value in record.items() if name not in _ENVELOPE}


def _format(record: Path) -> str:
    return f"joulecache.{record.stem}/1"


def _listed(record: Path) -> set[str] | None:
    """Return the file names that a record lists; None if it is not a record of joulecache."""
    try:
        body = json.loads(record.read_text("utf-8"))
        if body["format"] != _format(record):
            return None
        return {name for name in body["files"] if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return None
