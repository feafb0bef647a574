"""The energy counters of the processor (RAPL), as Linux shows them in its powercap folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from joulecache.pipelines.energy.measurement import Component
from joulecache.pipelines.energy.model import coefficients


def counter_gain(before: int, after: int, span: int) -> int:
    """Return what a counter gained between two readings, if it wrapped at `span` at most once."""
    return after - before if after >= before else after - before + span


class Rapl:
    """Read the package and DRAM energy counters in a Linux powercap folder; they are of the whole machine.

    `domains` maps the folder of a counter to its component (cpu or dram) and its span in microjoules. It is
    empty unless every package and DRAM counter there can be read. `problem` says what is missing and what to do.
    """

    def __init__(self, root: Path) -> None:
        self.update_s: float = coefficients()["rapl_update_s"]["central"]
        self.domains: dict[Path, tuple[str, int]] = {}
        self.problem = f"no RAPL package counter in {root}: virtual machines and containers often have none"
        domains = {}
        try:
            # intel-rapl-mmio:* would be the same counters a second time
            for folder in sorted(root.glob("intel-rapl:*")):
                name = (folder / "name").read_text("utf-8").strip()
                # core and uncore are inside the package, psys is around it: they would count joules twice
                if name == "dram" or name.startswith("package-"):
                    int((folder / "energy_uj").read_text("utf-8"))
                    span_uj = int((folder / "max_energy_range_uj").read_text("utf-8"))
                    domains[folder] = ("dram" if name == "dram" else "cpu", span_uj)
        except (OSError, ValueError) as error:
            self.problem = f"RAPL is there but cannot be read: {error}"
            if isinstance(error, PermissionError):
                self.problem += f"; run `sudo chmod a+r {root}/intel-rapl:*/energy_uj` (until the next boot)"
        else:
            found = {component for component, _ in domains.values()}
            if "cpu" in found:
                self.domains = domains
                self.problem = "" if "dram" in found else "RAPL has no DRAM counter: memory is not in the total"

    def read_uj(self) -> dict[Path, int] | None:
        """Return the microjoules of each counter; None where there is none, or one cannot be read now."""
        try:
            return {folder: int((folder / "energy_uj").read_text("utf-8")) for folder in self.domains} or None
        except (OSError, ValueError):
            return None

    def mirrors(self, before_uj: Mapping[Path, int], after_uj: Mapping[Path, int]) -> dict[Path, Path]:
        """Return the counters that show another one's energy again, as the dies of some processors do, and that other.

        They hold the same joules at both edges, but for what is used between two reads; two counters of their own
        never do (in a span of 262 kJ, one in 100,000).
        """
        slack_uj = 2 * self.update_s * coefficients()["rapl_domain_limit_w"]["central"] * 1e6
        found: dict[Path, Path] = {}
        for place, folder in enumerate(self.domains):
            for other in list(self.domains)[:place]:
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
        """Return the components between two readings, times `pue`; None where a counter went backwards.

        The bounds hold one update of the counter at the edges, and high also turns of the counter that a long
        window may hide. The counter's own calibration is in neither: its error is not published.
        """
        update_s, limit_w = self.update_s, coefficients()["rapl_domain_limit_w"]["central"]
        method, source = ("measured:rapl", "powercap") if pue == 1 else ("modelled:rapl-pue@1", "powercap times PUE")
        most_j = limit_w * (duration_s + update_s)
        repeated = self.mirrors(before_uj, after_uj)
        parts: dict[str, Component] = {}
        for folder, (name, span_uj) in self.domains.items():
            if folder in repeated:
                continue
            before, after = before_uj[folder], after_uj[folder]
            gain_j = counter_gain(before, after, span_uj) / 1e6
            if gain_j < 0 or (after < before and gain_j > most_j):
                return None
            lag_j = gain_j * update_s / max(duration_s, update_s)
            hidden_j = max(0, (most_j - gain_j) * 1e6 // span_uj) * span_uj / 1e6
            low_j, high_j = gain_j - lag_j, gain_j + lag_j + hidden_j
            part = Component(gain_j, low_j, high_j, method, source, "machine", f"1 uJ, {update_s:g} s") * pue
            parts[name] = parts[name] + part if name in parts else part
        return parts
