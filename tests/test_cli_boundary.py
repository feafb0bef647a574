"""The edge of the command line: whatever is raised, logged, signalled or closed, people see one line and an exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from processes import environment, on_a_terminal, python, run_python

from joulecache.pipelines.cli.commands import COMMANDS
from joulecache.pipelines.cli.errors import summary

Run = Callable[..., tuple[int, str, str]]

ENTRY = "from joulecache.__main__ import main; main()"
# Ctrl-C is ignored where the tests run in the background: the handler is set again.
HANDLED = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{ENTRY}"

# Errors ---------------------------------------------------------------------------------------------------------------

OPS = """
import signal, sys, threading
from dataclasses import dataclass

from joulecache.transforms import Op

class Interrupting:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def recurse():
    recurse()


def fail_in_a_thread():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    raise ValueError("and so did its thread")


@dataclass(frozen=True)
class Do(Op):
    '''Run code.'''

    code: str

    def __post_init__(self):
        eval(self.code)

    def pixels(self, image, drawn):
        return image


def fail(error):
    raise error
"""
FAILURES: dict[str, tuple[str, int, Sequence[str]]] = {
    "a bug": ("{}['key']", 1, ["joulecache: KeyError: 'key'; add --verbose for more"]),
    "nothing to say": ("fail(KeyError())", 1, ["joulecache: KeyError; add --verbose for more"]),
    "many lines": (
        r"fail(LookupError('\n\x1b[1mno such thing\x1b[0m\nand much more'))",
        1,
        ["joulecache: LookupError: no such thing; add --verbose for more"],
    ),
    "invalid argument": ("fail(ValueError('too large'))", 2, ["joulecache: do: too large"]),
    "end of a file, which typer takes for Ctrl-C": (
        "fail(EOFError('cut'))",
        1,
        ["joulecache: EOFError: cut; add --verbose for more"],
    ),
    "broken pipe to elsewhere": ("fail(BrokenPipeError(32, 'Broken pipe', 'a'))", 1, ["joulecache: a: Broken pipe"]),
    "missing file": ("open('none')", 1, ["joulecache: none: No such file or directory"]),
    "no memory": ("fail(MemoryError())", 1, ["joulecache: out of memory"]),
    "recursion": (
        "recurse()",
        1,
        ["joulecache: RecursionError: maximum recursion depth exceeded; add --verbose for more"],
    ),
    "exit": ("sys.exit(0)", 1, ["joulecache: the command ended early: SystemExit: 0 ({file}:30)"]),
    "thread": (
        "fail_in_a_thread()",
        2,
        [
            "joulecache: note: a thread failed: ZeroDivisionError: division by zero",
            "joulecache: do: and so did its thread",
        ],
    ),
}


@pytest.fixture
def chain_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Sequence[str]]]:
    """Return options with which a command runs code when it makes the ops of its chain."""
    (tmp_path / "boundary_ops.py").write_text(OPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda code: ("--chain", f"decode|do({code!r})", "--ops", "boundary_ops")
    sys.modules.pop("boundary_ops", None)


@pytest.mark.parametrize(("code", "exit_code", "lines"), FAILURES.values(), ids=FAILURES)
def test_whatever_is_raised_is_one_line(
    run: Run,
    chain_of: Callable[[str], Sequence[str]],
    tmp_path: Path,
    code: str,
    exit_code: int,
    lines: Sequence[str],
) -> None:
    expected = "".join(f"{line}\n" for line in lines).replace("{file}", str(tmp_path / "boundary_ops.py"))
    assert run("precompute", "synthetic:4", "cache", *chain_of(code)) == (exit_code, "", expected)


def test_a_broken_installation_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('libblas is missing')")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    done = run_python(ENTRY, "--version", PYTHONPATH=path)
    problem = "joulecache: cannot start (ImportError: libblas is missing): reinstall joulecache in a new environment\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", problem)
    assert "Traceback" in run_python(ENTRY, "--verbose", PYTHONPATH=path).stderr


def test_verbose_shows_logs_and_the_traceback_before_and_after_the_command(run: Run, photo_folder: Path) -> None:
    plain = run("inspect", photo_folder)
    for arguments in (("--verbose", "inspect", photo_folder), ("inspect", photo_folder, "--verbose")):
        code, out, err = run(*arguments)
        assert (code, out) == plain[:2]
        first, *_, last = err.splitlines()
        assert first == "Traceback (most recent call last):"
        assert f"{last}\n" == plain[2]
    assert run("inspect", photo_folder) == plain
    for command in COMMANDS:
        assert "--verbose" in run(command.__name__, "--help")[1]


def test_the_version_is_one_line(run: Run) -> None:
    assert run("--version") == (0, f"joulecache {metadata.version('joulecache')}\n", "")


MESSAGES = {
    "Graph execution error:\n\nDetected at node loss/Loss defined at (most recent call last):\n"
    '  File "a.py", line 1, in f\n\nReceived a label value of 7\n\t [[{{node x}}]]': "Received a label value of 7",
    "{{function_node __wrapped__Fill}} OOM when allocating tensor": "OOM when allocating tensor",
    "Exception encountered when calling Sequential.call().\n\n\x1b[1mInput 0 is incompatible\x1b[0m\n": "Input 0 is incompatible",
    'Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(callsite("a"("b"))): \'tf.X\' op is no op\n<unknown>:0: note': (
        "Could not translate MLIR to FlatBuffer. 'tf.X' op is no op"
    ),
    "word " * 100: "word " * 60 + " ...",
    "": "",
}


@pytest.mark.parametrize(("message", "expected"), MESSAGES.items())
def test_messages_of_libraries_are_shortened_to_what_matters(message: str, expected: str) -> None:
    assert summary(Exception(message)) == expected


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("stdout", "code", "err"),
    [
        (">/dev/full", 1, "joulecache: stdout: No space left on device\n"),
        (">&-", 1, "joulecache: stdout: Bad file descriptor\n"),
        ("| true", 141, ""),
    ],
)
def test_a_result_that_cannot_be_printed(
    photo_cache: Path, options: Sequence[str], stdout: str, code: int, err: str
) -> None:
    command = [*python(ENTRY), "inspect", str(photo_cache), *options]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {stdout}; exit "${{PIPESTATUS[0]}}"', "bash", *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, err)


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_a_job_survives_the_loss_of_stderr(stderr: str) -> None:
    command = [*python(ENTRY), "run", "--", "true"]
    done = subprocess.run(["bash", "-c", f'"$@" {stderr}', "bash", *command], env=environment(), check=False)
    assert done.returncode == 0


def test_a_terminal_without_unicode_shows_the_rest(photo_cache: Path) -> None:
    done = run_python(ENTRY, "inspect", photo_cache, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "32x32x3" in done.stdout
    assert "?t?" in done.stdout  # the class été


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


# Tell the test when Ctrl-C is handled, which Python takes some milliseconds to come to.
STARTED = "import os, joulecache.__main__ as it; run = it._run; it._run = lambda: (os.write(1, b'.'), run())"


@pytest.mark.parametrize("delay_s", [0, 0.05, 0.2, 0.5, 1, 2, 3])
def test_ctrl_c_is_one_line_from_the_first_moment(photo_cache: Path, tmp_path: Path, delay_s: float) -> None:
    """While Python imports joulecache, while it imports TensorFlow, and in the job."""
    code = HANDLED.replace("main()", f"{STARTED}; main()")
    options = ("--epochs", 1000, "--model", "mlp", "--out", tmp_path / "run")
    command = python(code, "train", photo_cache, *options)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.read(1) == b"."
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    *trained, last = err.decode().splitlines()
    assert all(line.startswith(("epoch ", "training: ")) for line in trained)
    assert last.startswith("joulecache: stopped")
    assert not any(tmp_path.iterdir())


SWALLOWING = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    pass
"""


def test_ctrl_c_counts_where_exceptions_are_swallowed(chain_of: Callable[[str], Sequence[str]], tmp_path: Path) -> None:
    for code in ("__import__('swallowing')", "Interrupting()"):
        (tmp_path / "swallowing.py").write_text(SWALLOWING)
        done = run_python(HANDLED, "precompute", "synthetic:4", "cache", *chain_of(code), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (130, "joulecache: stopped\n")


def test_a_terminal_says_what_is_loaded_and_ctrl_c_leaves_it_clean(tmp_path: Path) -> None:
    code, shown = on_a_terminal(*python(ENTRY, "doctor"))
    assert code == 0
    assert shown.startswith("loading TensorFlow ...\r\x1b[2K")
