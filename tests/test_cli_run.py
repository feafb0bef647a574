"""`joulecache run`: the energy of a command with all its processes, its streams, exit code and signals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import CLI, environment, python, run_python

from joulecache.pipelines.energy import Energy


def burning(cpu_s: float) -> str:
    return f"import time\nwhile time.process_time() < {cpu_s}: pass"


def test_a_command_is_measured_and_keeps_its_streams_and_exit_code(tmp_path: Path) -> None:
    code = burning(0.3) + "\nimport sys\nprint(sys.stdin.read()[::-1])\nsys.exit(3)"
    options = ("--country", "FRA", "--emissions", tmp_path)
    done = run_python(CLI, "run", *options, "--", sys.executable, "-c", code, stdin="abc")
    assert (done.returncode, done.stdout) == (3, "cba\n")
    assert "Energy: " in done.stderr
    assert "modelled:cpu-seconds@1" in done.stderr
    assert "CO2 " in done.stderr
    with open(tmp_path / "emissions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["project_name"] == Path(sys.executable).name
    assert row["country_iso_code"] == "FRA"


def test_json_alone_is_on_stdout() -> None:
    done = run_python(CLI, "run", "--json", "--watts", "10:50", sys.executable, "-c", "print('out')")  # without --
    body = json.loads(done.stdout)
    energy = Energy.from_json(body["energy"])
    assert (body["exit_code"], body["command"][1:], body["cross_check"]) == (0, ["-c", "print('out')"], None)
    assert (energy.method, energy.carbon_g, body["passport"]["provider"]) == ("user", None, None)
    assert done.stderr == "out\n"


def test_processes_that_outlive_their_parents_count() -> None:
    orphan = f'("$0" -c "{burning(0.5)}" &) ; sleep 2'
    done = run_python(CLI, "run", "--json", "sh", "-c", orphan, sys.executable)
    assert Energy.from_json(json.loads(done.stdout)["energy"]).cpu_s >= 0.5 - 0.03


def test_orphans_are_adopted_only_while_the_command_runs() -> None:
    code = """
import ctypes
from joulecache.pipelines.cli.running import run_metered
from joulecache.pipelines.energy import Meter
adopts = ctypes.c_int()
run_metered(["true"], Meter())
ctypes.CDLL(None).prctl(37, ctypes.byref(adopts), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
print(adopts.value)
"""
    assert run_python(code).stdout == "0\n"


@pytest.mark.slow
def test_codecarbon_is_shown_for_comparison() -> None:
    done = run_python(CLI, "run", "--json", "--cross-check", sys.executable, "-c", burning(1.0))
    assert json.loads(done.stdout)["cross_check"]["energy_j"] > 0
    assert done.stderr == ""
    done = run_python(CLI, "run", "--cross-check", sys.executable, "-c", burning(1.0))
    assert "CodeCarbon: " in done.stderr
    assert "times that" in done.stderr


def test_a_command_that_cannot_be_started() -> None:
    done = run_python(CLI, "run", "--", "no-such-command")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "joulecache: cannot run 'no-such-command': No such file or directory\n"


def interrupted(number: signal.Signals, code: str, *command: object, ready: Path, group: bool) -> tuple[int, str]:
    """Run a command, send a signal once it has made the file `ready`; return the exit code and stdout."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = python(code, "run", "--json", "--", *command)
    with subprocess.Popen(words, env=environment(), start_new_session=True, **pipes) as process:
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.01)
            (os.killpg if group else os.kill)(process.pid, number)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_and_the_energy_is_still_printed(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    command = ("sh", "-c", 'touch "$0"; exec sleep 60', ready)
    code, out = interrupted(number, CLI, *command, ready=ready, group=False)
    assert json.loads(out)["exit_code"] == code == 128 + number


def test_ctrl_c_ends_the_command_and_the_energy_is_still_printed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    handled = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{CLI}"
    child = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    command = (sys.executable, "-c", child)
    code, out = interrupted(signal.SIGINT, handled, *command, ready=ready, group=True)  # as a terminal does
    assert json.loads(out)["exit_code"] == code == 128 + signal.SIGINT
