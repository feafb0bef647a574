"""Progress is shown on stderr alone, and output of native code stays off the terminal."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import pytest
from processes import run_python
from rich.console import Console

from joulecache.pipelines.core.progress import Progress, progress_bar, silenced_output, silent


def shown_on(terminal: bool, **options: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress_bar(console=console, **options) as bar:
        bar("reading [bold]", 1, 2000)
        bar("reading [bold]", 2, 2000, "3 J")
        bar("writing: a", 1, None)
        bar("writing: b", 2, None)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_where_there_is_no_terminal_each_new_step_is_a_line() -> None:
    assert shown_on(False, line_delay_s=0) == "reading [bold]: 1 of 2,000\nwriting: a: 1\n"
    assert shown_on(False, line_delay_s=0, line_every_s=0).count("\n") == 4
    assert "(3 J)" in shown_on(False, line_delay_s=0, line_every_s=0)


def test_short_jobs_and_quiet_ones_print_no_line() -> None:
    assert shown_on(False) == ""
    assert shown_on(False, line_delay_s=math.inf) == ""


def test_a_terminal_shows_a_bar() -> None:
    drawn = shown_on(True)
    assert "writing: b" in drawn
    assert "\x1b[2K" in drawn  # and it is erased
    assert shown_on(True, delay_s=60) == ""


def test_a_terminal_shows_at_once_that_something_begins() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_bar(console=console):
        assert "preparing" in console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(line_delay_s=0) as bar:
        progress: Progress = bar
        progress("reading", 1, 2)
    silent("reading", 1, 2)
    assert capsys.readouterr() == ("", "reading: 1 of 2\n")


def test_nobody_needs_to_read_it() -> None:
    code = "import os; from joulecache.pipelines.core.progress import *\nos.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    done = run_python(f"{code}\nwith progress_bar(line_delay_s=0) as bar: bar('reading', 1, 2)\nprint('done')")
    assert done.stdout == "done\n"


NATIVE = "import ctypes, os, sys; from joulecache.pipelines.core.progress import *; native = ctypes.CDLL(None)"


def run(code: str) -> tuple[str, str]:
    """Run code, with pipes for stdout and stderr: then C and Python hold back what they print."""
    done = run_python(f"{NATIVE}\n{code}")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


PRINT = "print('Python', flush=True); native.puts(b'C'); os.write(1, b'out\\n'); os.write(2, b'err\\n')"


def test_native_output_is_silenced() -> None:
    out, err = run(f"print('before', end=' ')\nwith silenced_output(): {PRINT}\nprint('after')")
    assert (out, err) == ("before after\n", "")


def test_stderr_alone_is_silenced() -> None:
    out, err = run(f"with silenced_output(stdout=False): {PRINT}\nprint('after', file=sys.stderr)")
    assert sorted(out.split()) == ["C", "Python", "out"]
    assert err == "after\n"


def test_stdout_is_sent_to_stderr() -> None:
    out, err = run(f"print('before')\nwith stdout_to_stderr(): {PRINT}\nprint('after')")
    assert out == "before\nafter\n"
    assert sorted(err.split()) == ["C", "Python", "err", "out"]


def test_what_was_silenced_explains_an_exception() -> None:
    with pytest.raises(RuntimeError) as caught, silenced_output():  # noqa: PT012
        os.write(2, b"x" * 10_000 + b"the reason\n")
        raise RuntimeError
    (note,) = caught.value.__notes__
    assert len(note) == 4000
    assert note.endswith("the reason\n")
