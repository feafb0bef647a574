"""Folders of results that appear whole or not at all, and never over files of someone else."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path


def check_output_folder(out: Path, record: str) -> None:
    """Raise ValueError unless `out` is absent, empty, or a folder whose file `record` says that we wrote it."""
    if out.is_dir() and (not any(out.iterdir()) or _recorded_files(out / record) is not None):
        return
    if out.is_dir():
        raise ValueError(f"folder {str(out)!r} has files, and no {record} of ours: give a new or an empty folder")
    if out.exists():
        raise ValueError(f"{str(out)!r} is a file: give a folder")


@contextlib.contextmanager
def staged_folder(out: Path, record: str) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` on success and vanishes on an exception.

    Its file `record`, from `write_record`, is moved last. Where `out` is ours already, files of the same name are replaced, those that
    only its old record names are deleted, and others stay. Raises as `check_output_folder`.
    """
    check_output_folder(out, record)
    out = out.absolute()  # the parent of "." is not "."
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir()
    try:
        yield staging
        if not out.exists():
            staging.rename(out)
            return
        stale = _recorded_files(out / record) or set()
        names = {path.name for path in staging.iterdir()}
        for name in sorted(names, key=lambda name: name == record):
            (staging / name).replace(out / name)
        for name in stale - names:
            (out / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def discard_folder(out: Path, record: str) -> None:
    """Delete the files that `out`, where it is ours, says it holds, and the folder when nothing else is in it."""
    names = _recorded_files(out / record)
    if names is None:
        return
    for name in names:
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def write_record(path: Path, body: Mapping[str, object]) -> None:
    """Write the JSON file that says what is in a folder of ours, with the names of all files in it now, and versions."""
    record = {
        "format": f"joulecache.{path.stem}/1",
        **body,
        "versions": {name: version(name) for name in ("tensorflow", "keras", "ai-edge-litert")},
        "files": sorted({path.name, *(file.name for file in path.parent.iterdir())}),
    }
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _recorded_files(record: Path) -> set[str] | None:
    try:
        body = json.loads(record.read_text("utf-8"))
        if body["format"] != f"joulecache.{record.stem}/1":
            return None
        return {name for name in body["files"] if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return None
