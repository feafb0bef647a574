"""Notes: warnings that the library logs are printed by the command line, and by logging for Python users."""

from __future__ import annotations

import json
from pathlib import Path

from processes import CLI, environment, on_a_terminal, python, run_python

MODULE = '''
import logging

log = logging.getLogger("joulecache")
log.warning("20 .heic files\\nskipped")
log.warning("%d .heic files skipped", 20)
log.info("too much to say")
logging.getLogger("joulecache.source").warning("3 labels unused")
logging.getLogger("other").warning("not for people")

from dataclasses import dataclass

from joulecache.transforms import Op


@dataclass(frozen=True)
class Same(Op):
    """Do nothing."""

    def pixels(self, image, drawn):
        return image
'''
NOTES = ["joulecache: note: 20 .heic files skipped", "joulecache: note: 3 labels unused"]


def test_each_note_is_one_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "my_ops.py").write_text(MODULE)
    options = ("--limit", 4, "--chain", "decode|resize(8)", "--ops", "my_ops", "--json")
    done = run_python(CLI, "precompute", "synthetic:8", "cache", *options, cwd=tmp_path)
    assert done.returncode == 0
    shown = [line for line in done.stderr.splitlines() if not line.startswith("records: ")]  # on a busy machine
    assert shown == NOTES
    assert json.loads(done.stdout)["manifest"]


def test_python_users_see_notes_by_default(tmp_path: Path) -> None:
    (tmp_path / "my_ops.py").write_text(MODULE)
    done = run_python("import my_ops", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{environment()['PYTHONPATH']}")
    assert "20 .heic files skipped\n" in done.stderr


BAR = """
import logging, sys
from joulecache.pipelines.cli.logs import printed_notes
from joulecache.pipelines.core.progress import progress_bar

with printed_notes(), progress_bar() as bar:
    bar("reading", 1, 2)
    logging.getLogger("joulecache").warning("a note")
    bar("reading", 2, 2)
"""


def test_a_note_does_not_tear_the_bar() -> None:
    code, shown = on_a_terminal(*python(BAR))
    assert code == 0
    # the bar's line is erased, the note takes its place, and the bar follows below
    assert "\x1b[2Kjoulecache: note: a note" in shown, shown
    assert "reading" in shown.partition("a note")[2]
