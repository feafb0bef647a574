"""Child processes of tests: Python that imports the same packages as the test does."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CLI = "from joulecache.pipelines.cli import main; main()"


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with its import path, and with changes."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **changes}


def python(code: str, *arguments: object, strict: bool = True) -> list[str]:
    """Return the command that runs Python code; `strict` makes warnings errors."""
    return [sys.executable, *(["-W", "error"] if strict else []), "-c", code, *map(str, arguments)]


def run_python(
    code: str,
    *arguments: object,
    cwd: Path | None = None,
    stdin: str | None = None,
    strict: bool = True,
    limit_s: float = 120,
    **changes: str,
) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end, for at most `limit_s`; `changes` are to its environment."""
    return subprocess.run(
        python(code, *arguments, strict=strict),
        cwd=cwd,
        input=stdin,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def on_a_terminal(*command: str, **changes: str) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns; return its exit code and what it showed."""
    terminal, end = pty.openpty()
    env = environment(TERM="xterm", COLUMNS="80", **changes)
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=env, start_new_session=True) as process:
        os.close(end)
        shown = bytearray()
        with suppress(OSError):  # raised when the last process has closed its end
            while chunk := os.read(terminal, 4096):
                shown += chunk
    os.close(terminal)
    return process.returncode, shown.decode()


class Child:
    """A running command that answers each line of its input with a line."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def ask(self, line: object = "") -> str:
        """Send a line; return the answer."""
        self.send(line)
        return self.receive()

    def send(self, line: object) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def receive(self) -> str:
        """Return the next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> None:
        """Close its input, and wait until it and every process that writes to its output have ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.read()
        self.process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a condition holds, for at most 120 s; a given process must keep running."""
    end = time.monotonic() + 120
    while not true():
        assert process is None or process.poll() is None
        assert time.monotonic() < end, "waited 120 s in vain"
        time.sleep(0.005)
