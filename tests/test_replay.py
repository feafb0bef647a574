"""Recorded windows, replayed without any hardware."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from joulecache.pipelines import ReplayMeter
from joulecache.pipelines.core.codec import to_json
from joulecache.pipelines.energy import Energy, Meter


def test_windows_are_replayed_to_the_last_bit(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    meter, energies = Meter(record=file, pue=1.25), []
    with meter.window("whole") as whole:
        for _ in range(3):
            with meter.window("part") as part:
                sum(range(10**5))
            energies.append(part.energy)
    replay = ReplayMeter(file)
    with replay.window("whole") as again:
        seen = []
        for _ in range(3):
            with replay.window("part") as part:
                pass
            seen.append(part.energy)
    assert seen == energies
    assert again.energy == whole.energy
    assert replay.provenance().pue == 1.25
    assert replay.provenance().method == meter.provenance().method
    assert to_json(replay.provenance()) == json.loads(file.read_text().splitlines()[0])["passport"]
    assert replay.notes == meter.notes
    with (
        pytest.raises(RuntimeError, match="has no more windows named 'part': those left are none"),
        replay.window("part"),
    ):
        pass


def test_recorded_windows_are_replayed_by_name(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    meter = Meter(record=file)
    for name in ("a", "b"):
        with meter.window(name):
            pass
    replay = ReplayMeter(file)
    with pytest.raises(RuntimeError, match="no more windows named 'c': those left are 'a', 'b'"), replay.window("c"):
        pass
    with replay.window("b") as second, replay.window("a") as first:
        with pytest.raises(ValueError, match="'a' is open already"), replay.window("a"):
            pass
        with pytest.raises(RuntimeError, match="is open"):
            _ = first.energy
    recorded = [json.loads(line)["energy"] for line in file.read_text().splitlines()[1:]]
    assert [first.energy, second.energy] == [Energy.from_json(energy) for energy in recorded]


def test_windows_of_many_threads_are_recorded_whole(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    meter = Meter(record=file)

    def work(name: str) -> None:
        for _ in range(25):
            with meter.window(name):
                pass

    threads = [threading.Thread(target=work, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replay = ReplayMeter(file)
    for number in range(8):
        for _ in range(25):
            with replay.window(f"thread {number}"):
                pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, is not from a recording"),
        ("{}", "line 1, is not from a recording of windows: 'recording' is missing"),
        ('{"recording": 2, "passport": {}}', "format 2 is unknown: this version reads 1"),
        ('{"recording": 1, "passport": {}}', "line 1, .* at method: field required"),
        ('HEADER\n{"window": "a"}', "line 2, .* 'energy' is missing"),
        ('HEADER\n{"window": "a", "energy": {}}', "line 2, .* at components: field required"),
        ('HEADER\n{"win', "line 2"),
        ("[]", "line 1"),
    ],
)
def test_a_file_that_is_not_a_recording_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "windows.jsonl"
    Meter(record=file)
    file.write_text(text.replace("HEADER", file.read_text().strip()))
    with pytest.raises(ValueError, match=message):
        ReplayMeter(file)
    with pytest.raises(FileNotFoundError):
        ReplayMeter(tmp_path / "none")
