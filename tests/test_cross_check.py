"""CodeCarbon's tracker alongside the meter: real, silent, and sending nothing."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from pathlib import Path

import pytest
from codecarbon import OfflineEmissionsTracker
from processes import run_python

from joulecache.pipelines.energy.carbon import grid_intensity
from joulecache.pipelines.energy.cross_check import cross_checked

CHECKED = """
import dataclasses, json, sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg"):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(refuse)
from joulecache.pipelines.energy.cross_check import cross_checked
import time
with cross_checked(COUNTRY, 1.0) as theirs:
    assert theirs.result is None
    while time.process_time() < SECONDS:
        pass
print(json.dumps(dataclasses.asdict(theirs.result)))
"""


@pytest.mark.slow
def test_a_cross_check_measures_and_sends_nothing_whatever_is_configured(tmp_path: Path) -> None:
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\nemissions_endpoint = http://127.0.0.1:9/\noutput_methods = csv,api,logger\nco2_signal_api_token = x\n"
        "output_dir = .\nlog_level = debug\nsave_to_file = true\n"
    )
    code = f"import os; os.chdir({str(tmp_path)!r})\n" + CHECKED.replace("COUNTRY", "'FRA'").replace("SECONDS", "4.0")
    done = run_python(code, CODECARBON_API_ENDPOINT="http://127.0.0.1:9/")
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    assert seen["energy_j"] == pytest.approx(seen["cpu_j"] + seen["gpu_j"] + seen["ram_j"])
    assert seen["cpu_j"] > 0
    assert seen["carbon_g"] > 0
    assert seen["duration_s"] > 0.5
    assert "codecarbon 3" in seen["method"]
    assert "CPU(" in seen["method"]
    assert [path.name for path in tmp_path.iterdir()] == [".codecarbon.config"]


def test_a_country_is_normalized_or_refused() -> None:
    with cross_checked(" fra", 1.0) as theirs:
        math.factorial(1000)
    assert theirs.result is not None
    assert theirs.result.carbon_g is not None
    with pytest.raises(ValueError, match="unknown country 'XXX'"), cross_checked("XXX", 1.0):
        pass


def test_a_cross_check_without_a_country_has_no_grams() -> None:
    logging.getLogger("codecarbon").disabled = False
    with cross_checked(None, 1.0) as theirs:
        math.factorial(1000)
    assert theirs.result is not None
    assert theirs.result.energy_j >= 0
    assert theirs.result.carbon_g is None
    assert not logging.getLogger("codecarbon").disabled


def test_a_cross_check_covers_the_machine_with_pue_and_carbon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODECARBON_FORCE_CPU_POWER", "1000")
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "10")
    monkeypatch.setenv("CODECARBON_FORCE_CARBON_INTENSITY_G_CO2E_KWH", "9999")
    monkeypatch.setenv("CODECARBON_OUTPUT_DIR", "/no/such/folder")
    with cross_checked("FRA", 2.0) as theirs:
        time.sleep(0.5)
    assert theirs.result is not None
    # it models an idle machine at a tenth of its full load, an idle process at nothing
    assert theirs.result.cpu_j >= 0.9 * (2.0 * 1000 * 0.1 * theirs.result.duration_s)
    assert theirs.result.ram_j == pytest.approx(2.0 * 10 * theirs.result.duration_s, rel=0.1)
    intensity = grid_intensity("FRA")[1]
    assert intensity is not None
    assert theirs.result.carbon_g == pytest.approx(theirs.result.energy_j / 3.6e6 * intensity, rel=1e-6)
    assert "1000 W at full load, configured" in theirs.result.method


def test_a_cross_check_leaves_the_log_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("codecarbon")
    before, mine = (logger.level, logger.handlers), logging.StreamHandler(sys.stderr)
    logger.setLevel(logging.DEBUG)
    logger.handlers = [mine]
    try:
        with cross_checked(None, 1.0):
            math.factorial(1000)
        assert (logger.level, logger.handlers, logger.filters) == (logging.DEBUG, [mine], [])
    finally:
        logger.setLevel(before[0])
        logger.handlers = before[1]
    assert capfd.readouterr() == ("", "")


def test_an_unreadable_configuration_fails_before_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".codecarbon.config").write_text("no section\n")
    monkeypatch.chdir(tmp_path)
    ran = False
    with pytest.raises(RuntimeError, match=r"cannot start .*: MissingSectionHeaderError: "), cross_checked(None, 1.0):
        ran = True
    assert not ran


def test_a_failed_first_measurement_fails_before_the_block_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(OfflineEmissionsTracker, "_do_measurements", fail)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match=r"cannot start .*: OSError: no such thing"), cross_checked(None, 1.0):
        pass
    for thread in set(threading.enumerate()) - before:
        thread.join(0.5)  # a stopped timer ends at once, a running one within a second
        assert not thread.is_alive()


def test_a_tracker_that_cannot_stop_only_loses_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    import codecarbon

    def fail(self: object, *args: object, **more: object) -> None:
        raise OSError("no such thing")

    with cross_checked(None, 1.0) as theirs:
        monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "_prepare_emissions_data", fail)
    assert theirs.result is None


def test_a_cross_check_opens_no_socket_but_a_probe_of_urllib3() -> None:
    code = """
import sys, time
def refuse(event, args):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        if (event, args[1:]) != ("socket.bind", (("::1", 0),)):  # whether there is IPv6, when it is imported
            raise SystemExit(f"{event} {args}")
sys.addaudithook(refuse)
from joulecache.pipelines.energy.carbon import cpu_hardware
from joulecache.pipelines.energy.cross_check import cross_checked
cpu_hardware()
with cross_checked("FRA", 1.0):
    time.sleep(0.1)
assert not [name for name in sys.modules if "telemetry" in name]
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
