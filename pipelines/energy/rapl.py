"""The energy counters of the processor (RAPL) in Linux' powercap folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from joulecache.pipelines.energy.measurement import Component
from joulecache.pipelines.energy.model import coefficients

_UJ_PER_J = 1e6


def counter_gain(before: int, after: int, span: int) -> int:
    """Return the difference of two readings of a counter that wrapped at `span` at most once."""
    return after - before if after >= before else after - before + span


class Rapl:
    """Reads the package and DRAM energy counters of a Linux powercap folder, which cover the whole machine.

    Attributes:
        domains: The component (``cpu`` or ``dram``) and span, in microjoules, of each counter by its folder. Empty unless every package
            and DRAM counter can be read.
        problem: What is missing and what to do about it; "" if nothing is.
        update_s: Update period of the counters.
    """

    def __init__(self, root: Path) -> None:
        self.update_s = coefficients().rapl_update_s.central
        self._limit_w = coefficients().rapl_domain_limit_w.central
        self.domains: dict[Path, tuple[str, int]] = {}
        self.problem = f"no RAPL package counter in {root}: virtual machines and containers often have none"
        domains = {}
        try:
            # intel-rapl-mmio:* are the same counters again
            for folder in sorted(root.glob("intel-rapl:*")):
                name = (folder / "name").read_text("utf-8").strip()
                # a package includes core and uncore, psys includes the packages: they would count joules twice
                if name == "dram" or name.startswith("package-"):
                    int((folder / "energy_uj").read_text("utf-8"))
                    span_uj = int((folder / "max_energy_range_uj").read_text("utf-8"))
                    if span_uj < 1:
                        raise ValueError(f"{folder / 'max_energy_range_uj'} is {span_uj}, so wraps would go unnoticed")
                    domains[folder] = ("dram" if name == "dram" else "cpu", span_uj)
        except (OSError, ValueError) as error:
            self.problem = f"RAPL counters cannot be read: {error}"
            if isinstance(error, PermissionError):
                self.problem += f"; run `sudo chmod a+r {root}/intel-rapl:*/energy_uj` (until the next boot)"
        else:
            found = {component for component, _ in domains.values()}
            if "cpu" in found:
                self.domains = domains
                self.problem = "" if "dram" in found else "RAPL has no DRAM counter: memory is not in the total"

    def read_uj(self) -> dict[Path, int] | None:
        """Return the microjoules of each counter; None if there is none, or one cannot be read."""
        try:
            return {folder: int((folder / "energy_uj").read_text("utf-8")) for folder in self.domains} or None
        except (OSError, ValueError):
            return None

    def mirrors(self, before_uj: Mapping[Path, int], after_uj: Mapping[Path, int]) -> dict[Path, Path]:
        """Return the counters that mirror another one, as on the dies of some processors, with that other one.

        Mirrors agree at both edges, except for what is used between the two reads; independent counters with a span of 262 kJ do so by
        chance once in 100,000 times.
        """
        slack_uj = 2 * self.update_s * self._limit_w * _UJ_PER_J
        found: dict[Path, Path] = {}
        for index, folder in enumerate(self.domains):
            for other in list(self.domains)[:index]:
                alike = self.domains[folder] == self.domains[other] and other not in found
                if alike and all(
                    edge[folder] > 0 and abs(edge[folder] - edge[other]) <= slack_uj for edge in (before_uj, after_uj)
                ):
                    found[folder] = other
                    break
        return found

    def gained(
        self, before_uj: Mapping[Path, int], after_uj: Mapping[Path, int], duration_s: float, pue: float = 1.0
    ) -> dict[str, Component] | None:
        """Return the components between two readings, times `pue`; None if a counter went backwards.

        The bounds include one counter update at the edges; the upper bound also includes wraps that a long window may hide. The calibration
        error of the counters is not published, so neither bound includes it.
        """
        method, source = ("measured:rapl", "powercap") if pue == 1 else ("modelled:rapl-pue@1", "powercap times PUE")
        most_j = self._limit_w * (duration_s + self.update_s)
        repeated = self.mirrors(before_uj, after_uj)
        parts: dict[str, Component] = {}
        for folder, (name, span_uj) in self.domains.items():
            if folder in repeated:
                continue
            before, after = before_uj[folder], after_uj[folder]
            gain_j = counter_gain(before, after, span_uj) / _UJ_PER_J
            if gain_j < 0 or (after < before and gain_j > most_j):
                return None
            lag_j = gain_j * self.update_s / max(duration_s, self.update_s)
            hidden_j = max(0, (most_j - gain_j) * _UJ_PER_J // span_uj) * span_uj / _UJ_PER_J
            low_j, high_j = gain_j - lag_j, gain_j + lag_j + hidden_j
            part = Component(gain_j, low_j, high_j, method, source, "machine", f"1 uJ, {self.update_s:g} s") * pue
            parts[name] = parts[name] + part if name in parts else part
        return parts
