"""The folder of an audit, in which a stopped audit continues."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.compressing.output import discard_output
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD
from joulecache.pipelines.core import files
from joulecache.pipelines.experiment.runs import RunLog

_REPORT = "report.json"
_WORK = ".audit"  # the settings, the unpacked files and the cache; deleted when the report is written
_NOTES = logging.getLogger("joulecache")


@dataclass(frozen=True)
class AuditFolder:
    """The folder of an audit, which need not exist."""

    path: Path

    @property
    def runs(self) -> Path:
        """The log of all runs."""
        return self.path / "runs.jsonl"

    @property
    def models(self) -> Path:
        """The folder of the model files."""
        return self.path / "models"

    @property
    def compression(self) -> Path:
        """The record of the model files."""
        return self.models / COMPRESSION_RECORD

    def check(self, sources: Iterable[Path] = ()) -> None:
        """Raise ValueError if the folder holds anything but an audit, overlaps a source, or cannot be written to."""
        files.refuse_overlap(sources, self.path, "out")
        files.check_folder(self.path, "an audit", lambda folder: self._is_audit())
        files.check_writable(self.path, "out")

    @contextmanager
    def work(self, settings: Mapping[str, object]) -> Iterator[Path]:
        """Make the folder, and yield a folder inside it for intermediate files.

        The runs and the work of an audit with the same settings stay; those with other settings are deleted. At the end only the
        settings are left, until `finish`: the audit can still continue if its report cannot be written.
        """
        work = self.path / _WORK
        work.mkdir(parents=True, exist_ok=True)
        if replace_json(work / "settings.json", settings):
            shutil.rmtree(work)
            work.mkdir()
            replace_json(work / "settings.json", settings)
            self.forget()
        (self.path / _REPORT).unlink(missing_ok=True)
        try:
            yield work
        except BaseException:
            if not self.runs.exists():  # nothing to continue
                shutil.rmtree(work, ignore_errors=True)
            raise
        for folder in filter(Path.is_dir, work.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)

    def open_log(self) -> RunLog:
        """Open the log of all runs; say how many are there already."""
        log = RunLog(self.runs)
        if log.runs:
            _NOTES.warning("continuing the audit in %s, with %d runs measured before", self.path, len(log.runs))
        return log

    def finish(self) -> None:
        """Delete the settings: the report is written, and the next audit in this folder starts over."""
        shutil.rmtree(self.path / _WORK, ignore_errors=True)

    def forget(self) -> None:
        """Delete the runs and the models."""
        self.runs.unlink(missing_ok=True)
        discard_output(self.models, COMPRESSION_RECORD)

    def _is_audit(self) -> bool:
        return self.runs.is_file() or (self.path / _REPORT).is_file() or (self.path / _WORK).is_dir()


def replace_json(file: Path, body: object) -> bool:
    """Write a JSON value to a file; return whether that changed it."""
    text = json.dumps(body, indent=1)
    if file.exists() and file.read_text("utf-8") == text:
        return False
    files.write_text(file, text)
    return True
