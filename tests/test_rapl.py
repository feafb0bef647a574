"""RAPL counters in fake powercap folders, alone and behind a meter."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meters import burn

from joulecache.pipelines.energy import Component, Meter, available_cpus
from joulecache.pipelines.energy.model import coefficients
from joulecache.pipelines.energy.rapl import Rapl, counter_gain

MODEL = "modelled:cpu-seconds@1"


SPAN_UJ = 262_143_328_850


class Tree:
    """A powercap folder with the shape of a two-socket machine."""

    def __init__(self, root: Path, *, dram: bool = True) -> None:
        self.root = root
        names = {"0": "package-0", "0:0": "core", "1": "package-1", "1:0": "uncore", "2": "psys"}
        if dram:
            names |= {"0:1": "dram", "1:1": "dram"}
        for number, name in names.items():
            folder = root / f"intel-rapl:{number}"
            folder.mkdir()
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{SPAN_UJ}\n")
        (root / "intel-rapl").mkdir()
        for place, number in enumerate(names):  # all counters start differently
            self.set(number, 1_000_000_000 + 100_000_000 * place)

    def set(self, number: str, uj: int | str) -> None:
        self.file(number).write_text(f"{uj}\n")

    def file(self, number: str) -> Path:
        return self.root / f"intel-rapl:{number}" / "energy_uj"

    def add(self, **joules: float) -> None:
        for key, gain_j in joules.items():
            number = key.removeprefix("d").replace("_", ":")
            self.set(number, int(self.file(number).read_text()) + round(gain_j * 1e6))


def read(rapl: Rapl) -> dict[Path, int]:
    found = rapl.read_uj()
    assert found is not None
    return found


def gain(rapl: Rapl, before: dict[Path, int], after: dict[Path, int], duration_s: float) -> dict[str, Component]:
    found = rapl.gained(before, after, duration_s)
    assert found is not None
    return found


def test_counter_gain_of_a_whole_span_is_not_lost() -> None:
    assert counter_gain(0, 100, 100) == 100


def test_rapl_sums_packages_and_dram_without_the_counters_inside_them(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    rapl = Rapl(tmp_path)
    assert rapl.problem == ""
    before = read(rapl)
    tree.add(d0=10, d1=20, d0_1=3, d1_1=4, d0_0=100, d1_0=100, d2=1000)
    after = read(rapl)
    parts = gain(rapl, before, after, 2.0)
    assert {name: part.value_j for name, part in parts.items()} == {"cpu": 30.0, "dram": 7.0}
    assert parts["cpu"].low_j == pytest.approx(30 * (1 - 0.001 / 2))
    assert parts["cpu"].high_j == pytest.approx(30 * (1 + 0.001 / 2))
    assert {part.method for part in parts.values()} == {"measured:rapl"}
    assert {part.scope for part in parts.values()} == {"machine"}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Rapl:
    """Return the counters of three packages."""
    root = tmp_path_factory.mktemp("three")
    Tree(root, dram=False)
    (root / "intel-rapl:2" / "name").write_text("package-2\n")
    return Rapl(root)


@given(gain_uj=st.integers(0, 9_000_000), before_uj=st.integers(SPAN_UJ - 5_000_000, SPAN_UJ - 1))
def test_rapl_survives_wraparound(three: Rapl, gain_uj: int, before_uj: int) -> None:
    before = {folder: 1_000_000_000 * (1 + place) for place, folder in enumerate(three.domains)}
    wrapping = next(iter(three.domains))
    after = {**before, wrapping: (before_uj + gain_uj) % SPAN_UJ}
    parts = gain(three, {**before, wrapping: before_uj}, after, 1.0)
    assert parts["cpu"].value_j == pytest.approx(gain_uj / 1e6, abs=1e-9)


def test_rapl_detects_a_backward_counter_and_bounds_a_long_window(tmp_path: Path) -> None:
    tree = Tree(tmp_path, dram=False)
    rapl = Rapl(tmp_path)
    before = read(rapl)
    tree.add(d0=-0.5)
    after = read(rapl)
    # as a wrap it would be 262 kJ in one second
    assert rapl.gained(before, after, 1.0) is None
    # in an hour at up to 500 W each counter may wrap 6 times unseen
    parts = gain(rapl, before, before, 3600.0)
    assert parts["cpu"].high_j == pytest.approx(2 * 6 * SPAN_UJ / 1e6)
    assert parts["cpu"].value_j == 0


def test_meter_measures_with_rapl_and_models_only_the_split(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    meter = Meter(powercap=tmp_path)
    with meter.window("work") as window:
        tree.add(d0=10, d1=20, d0_1=3, d1_1=4)
        burn(0.05)
    seen = window.energy
    cpu, dram = seen.components["cpu"], seen.components["dram"]
    assert cpu is not None
    assert dram is not None
    assert (cpu.value_j, dram.value_j, seen.total_j) == (30.0, 7.0, 37.0)
    assert (cpu.scope, seen.method) == ("machine", "measured:rapl")
    assert seen.components["idle"] is None
    assert seen.active.method == "modelled:rapl-share@1"
    rows = coefficients().providers["generic"]

    def share(active: str, idle: str) -> float:
        active_j = getattr(rows["active_j_per_cpu_s"], active) * seen.cpu_s
        return float(
            active_j / (active_j + getattr(rows["idle_w_per_vcpu"], idle) * (os.cpu_count() or 1) * seen.duration_s)
        )

    assert seen.active_j == pytest.approx(37 * share("central", "central"))
    assert seen.active_low_j == pytest.approx(seen.low_j * share("low", "high"))
    assert seen.active_high_j == pytest.approx(seen.high_j * share("high", "low"))
    assert 0 < seen.active_low_j < seen.active_j < seen.active_high_j < seen.high_j
    assert meter.provenance().method == "measured:rapl"
    assert meter.notes == ()


def test_measured_joules_times_pue_are_modelled(tmp_path: Path) -> None:
    tree = Tree(tmp_path, dram=False)
    meter = Meter(powercap=tmp_path, pue=1.5)
    with meter.window("work") as window:
        tree.add(d0=10)
    assert window.energy.total_j == pytest.approx(15)
    assert window.energy.method == "modelled:rapl-pue@1"
    assert window.energy.components["dram"] is None
    assert meter.notes == ("RAPL has no DRAM counter: memory is not in the total",)


@pytest.mark.parametrize(
    "fail", [lambda tree: tree.file("0").unlink(), lambda tree: tree.add(d0=-0.5), lambda tree: tree.set("0", "none")]
)
def test_windows_whose_counter_fails_are_modelled_and_noted(tmp_path: Path, fail: Callable[[Tree], None]) -> None:
    tree = Tree(tmp_path)
    meter = Meter(powercap=tmp_path)
    with meter.window("work") as window:
        fail(tree)
    assert window.energy.method == MODEL
    assert "these are modelled" in meter.notes[0]
    with meter.window("again") as window:
        pass
    assert len(meter.notes) == 1


def test_unreadable_counters_are_not_used_and_the_remedy_is_noted() -> None:
    # root may read everything: as another user where root runs the tests
    with tempfile.TemporaryDirectory() as root:
        tree = Tree(Path(root))
        Path(root).chmod(0o755)
        for path in Path(root).glob("*/energy_uj"):
            path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            meter = Meter(powercap=tree.root)
        finally:
            os.seteuid(user)
    with meter.window("work") as window:
        pass
    assert window.energy.method == MODEL
    assert "Permission denied" in meter.notes[0]
    assert f"sudo chmod a+r {root}/intel-rapl:*/energy_uj" in meter.notes[0]


def test_a_tree_without_a_package_or_with_a_broken_counter_is_not_used(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.file("1:1").write_text("")
    assert Rapl(tmp_path).domains == {}
    assert "cannot be read" in Rapl(tmp_path).problem
    for number in ("0", "1"):
        (tmp_path / f"intel-rapl:{number}" / "name").write_text("psys\n")
    tree.set("1:1", 5)
    assert Rapl(tmp_path).domains == {}
    assert "no RAPL package counter" in Rapl(tmp_path).problem
    assert Rapl(tmp_path / "nowhere").read_uj() is None


@pytest.mark.parametrize("span", ["0", None], ids=["zero", "missing"])
def test_counters_without_a_span_are_not_used(tmp_path: Path, span: str | None) -> None:
    """A wrap would add negative joules (mlco2/codecarbon#1309), and the bounds divide by the span."""
    Tree(tmp_path)
    file = tmp_path / "intel-rapl:0" / "max_energy_range_uj"
    file.unlink() if span is None else file.write_text(span)
    meter = Meter(powercap=tmp_path)
    with meter.window("work") as window:
        pass
    assert window.energy.method == MODEL
    assert "RAPL counters cannot be read" in meter.notes[0]
    assert str(file) in meter.notes[0]


def test_dies_that_repeat_the_counter_of_their_socket_count_once(tmp_path: Path) -> None:
    tree = Tree(tmp_path, dram=False)
    for number, die in (("1", 0), ("2", 1)):
        (tmp_path / f"intel-rapl:{number}" / "name").write_text(f"package-1-die-{die}\n")
    tree.set("2", int(tree.file("1").read_text()))
    meter = Meter(powercap=tmp_path)
    with meter.window("work") as window:
        tree.add(d0=10, d1=20, d2=20.1)  # energy used between the two reads
    assert window.energy.total_j == pytest.approx(30)
    assert meter.notes[-1] == "RAPL: intel-rapl:2 repeats intel-rapl:1, and is not counted"
    # the same gain alone is no mirror: two sockets may use the same energy
    tree.add(d2=5)
    with meter.window("work") as window:
        tree.add(d0=10, d1=20, d2=20)
    assert window.energy.total_j == pytest.approx(50)


@given(
    starts=st.lists(st.integers(2_000_000, SPAN_UJ - 20_000_000), min_size=3, max_size=3),
    gains=st.lists(st.integers(0, 9_000_000), min_size=3, max_size=3),
)
def test_independent_counters_are_never_taken_for_mirrors(three: Rapl, starts: list[int], gains: list[int]) -> None:
    before = dict(zip(three.domains, starts, strict=True))
    after = {folder: start + gain for (folder, start), gain in zip(before.items(), gains, strict=True)}
    parts = gain(three, before, after, 1.0)
    near = any(
        abs(a - b) <= 1_000_000 and abs(a + x - b - y) <= 1_000_000
        for (a, x), (b, y) in itertools.combinations(zip(starts, gains, strict=True), 2)
    )
    assert near or parts["cpu"].value_j == pytest.approx(sum(gains) / 1e6)


def test_given_watts_replace_counters_and_coefficients(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    meter = Meter(powercap=tmp_path, idle_w=12, full_w=65, pue=1.5)
    with meter.window("work") as window:
        tree.add(d0=1000)
        burn(0.05)
    seen, processors = window.energy, os.cpu_count() or 1
    assert seen.components["dram"] is None  # part of the machine's watts
    assert seen.active_j == pytest.approx(1.5 * (65 - 12) / processors * seen.cpu_s)
    assert seen.total_j == pytest.approx(seen.active_j + 1.5 * 12 / processors * available_cpus() * seen.duration_s)
    assert (seen.low_j, seen.high_j) == (seen.total_j, seen.total_j)
    assert seen.method == seen.active.method == "user"
    assert "12 idle and 65" in seen.active.source
    assert meter.provenance().rapl == ()


def test_windows_of_fewer_than_ten_updates_are_flagged(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    meter = Meter(powercap=tmp_path)
    with meter.window("long") as long:
        tree.add(d0=10)
        time.sleep(0.011)
    assert not [flag for flag in long.energy.flags if "too short" in flag]
    assert long.energy.update_s == 0.001
    with meter.window("short") as short:
        pass
    if short.energy.duration_s < 0.01:  # unless the machine paused
        assert "too short" in short.energy.flags[0]
    # a sum of short windows is as short as each
    assert "too short" in (short.energy + short.energy).flags[0]
    assert not [flag for flag in (long.energy / 3).flags if "too short" in flag]
