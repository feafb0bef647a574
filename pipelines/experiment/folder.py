"""The folder of an audit: whose it is, and whether an audit that was stopped goes on in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joulecache.pipelines.compressing.output import discard_output
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD

REPORT_JSON = "report.json"
RUNS = "runs.jsonl"
MODELS = "models"
_WORK = ".audit"  # the settings, the unpacked files and the cache; gone when the audit is done


def check_folder(folder: Path, sources: Iterable[Path] = ()) -> None:
    """Raise ValueError for a folder that holds other things than an audit, or lies inside a source or around one."""
    outer = folder.resolve()
    for path in sources:
        inner = path.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ValueError(
                f"source {str(path)!r} and out {str(folder)!r} lie inside each other: choose another --out"
            )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder)):
        raise ValueError(
            f"{str(folder)!r} is not empty and no audit of ours: choose a folder that is empty or does not exist"
        )


@contextmanager
def work_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Make the folder of an audit, which was checked; yield its work folder, which is gone at the end.

    Where an audit of the same settings was stopped, its runs and its work are still there, and stay; else they are deleted.
    """
    work = folder / _WORK
    work.mkdir(parents=True, exist_ok=True)
    if changed(work / "settings.json", settings):
        shutil.rmtree(work)
        work.mkdir()
        changed(work / "settings.json", settings)
        forget(folder)
    (folder / REPORT_JSON).unlink(missing_ok=True)
    try:
        yield work
    except BaseException:
        if not (folder / RUNS).exists():  # nothing to go on with
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def changed(file: Path, body: object) -> bool:
    """Say whether a file holds another JSON value than `body`, or none, and put it there."""
    text = json.dumps(body, indent=1)
    if file.exists() and file.read_text("utf-8") == text:
        return False
    file.write_text(text, encoding="utf-8")
    return True


def forget(folder: Path) -> None:
    """Delete what an audit of other settings left: its runs and its models."""
    (folder / RUNS).unlink(missing_ok=True)
    discard_output(folder / MODELS, COMPRESSION_RECORD)


def _is_ours(folder: Path) -> bool:
    return (folder / RUNS).is_file() or (folder / REPORT_JSON).is_file() or (folder / _WORK).is_dir()
