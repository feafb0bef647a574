"""Typed results of planning; `joulecache plan --json` prints the same figures."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass, field
from typing import Any

from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.quantities import change, joules, number
from joulecache.pipelines.experiment.results import Joules
from joulecache.transforms.chain import Chain

_SHOWN = 5


@dataclass(frozen=True)
class StepCost:
    """The cost of one run of a step of a chain.

    Attributes:
        name: "read", or the name of an op.
        random: Whether the op draws random parameters.
        fresh: Whether it is a random op that stays after the cut.
        cpu_us_per_image: Microseconds of CPU time per image.
        bytes_per_image: Bytes per image of its output.
    """

    name: str
    random: bool
    fresh: bool
    cpu_us_per_image: float
    bytes_per_image: float


@dataclass(frozen=True)
class CacheLayout:
    """The content of a cache, and its form.

    Attributes:
        cut: Number of cached ops, from the first.
        format: Format of the shards.
        encoding: Encoding of the images.
        quality: Quality of a JPEG encoding, else None.
    """

    cut: int
    format: Format
    encoding: Encoding
    quality: int | None

    def __str__(self) -> str:
        return f"{self.format}, {self.encoding}" + (f" {self.quality}" if self.quality else "")


@dataclass(frozen=True)
class Choice:
    """One way to feed the training, and its price. Energies are active joules.

    Attributes:
        layout: The cache; None to feed online. "way" in JSON.
        variants: Draws of the cached ops that the cache holds.
        reuse: Epochs of one training that see the same draw; None if no cached op is random.
        cache_bytes: Size of the cache.
        build_j: Energy of the build.
        epoch_j: Energy of one epoch.
        waiting_j: Energy per epoch of the idle machine while it waits for the disk.
        storage_j: Energy of the drive that stores the cache.
        total_j: Energy of all epochs, with waiting, the build and storage.
        break_even_epochs: Epochs after which the build is paid back against feeding online; None: never, or unknown.
    """

    layout: CacheLayout | None = field(metadata={"alias": "way"})
    variants: int
    reuse: float | None
    cache_bytes: float
    build_j: Joules
    epoch_j: Joules
    waiting_j: Joules
    storage_j: Joules
    total_j: Joules
    break_even_epochs: float | None


@dataclass(frozen=True)
class Plan(Displayed):
    """What was measured on a sample, and every choice with its price, the cheapest first.

    Attributes:
        source: The source, as it was given.
        chain: The chain; its cut is ignored.
        epochs: Epochs of one training.
        runs: Trainings that share the cache.
        days: Days for which the cache is stored.
        disk_budget_bytes: Upper limit of the cache's size; None: no limit.
        records: Records of the source.
        sampled: Records that were measured.
        duration_s: Seconds that the measurement took.
        steps: What each step of the chain costs.
        choices: The choices within the disk budget, the cheapest first.
        too_large: How many choices exceed the disk budget.
        online_refused: Why feeding online was not measured; None if it was.
        unmeasured: Layouts that were not measured for lack of time.
        disk_bytes_per_s: Read throughput of the disk.
        method: How the joules were obtained.
        options: Further words of the command that builds a cache.
    """

    source: str
    chain: Chain
    epochs: int
    runs: int
    days: float
    disk_budget_bytes: float | None
    records: int
    sampled: int
    duration_s: float
    steps: tuple[StepCost, ...]
    choices: tuple[Choice, ...]
    too_large: int
    online_refused: str | None
    unmeasured: tuple[str, ...]
    disk_bytes_per_s: float
    method: str
    options: tuple[str, ...]

    @property
    def best(self) -> Choice:
        """The choice that uses the least energy."""
        return self.choices[0]

    @property
    def online(self) -> Choice | None:
        """Feeding online; None if it was not measured."""
        return next((choice for choice in self.choices if choice.layout is None), None)

    @property
    def shown(self) -> tuple[Choice, ...]:
        """The best five choices, with feeding online among them."""
        best = self.choices[:_SHOWN]
        if self.online is None or self.online in best:
            return best
        return (*best[:-1], self.online)

    @property
    def why(self) -> str:
        """Why the best choice is the best, or that no cache pays."""
        return _why(self)

    def chain_of(self, choice: Choice) -> Chain:
        """Return the chain with the cut of a choice."""
        return self.chain if choice.layout is None else dataclasses.replace(self.chain, cut=choice.layout.cut)

    def command(self, choice: Choice, cache: str | os.PathLike[str] = "cache/") -> str | None:
        """Return the command that builds the cache of a choice; None for feeding online."""
        if choice.layout is None:
            return None
        words = ["joulecache", "precompute", self.source, os.fspath(cache), "--chain", str(self.chain_of(choice))]
        for name, value in self.arguments(choice).items():
            words += [f"--{name}", str(value)]
        return shlex.join([*words, *self.options])

    def arguments(self, choice: Choice) -> dict[str, Any]:
        """Return the arguments of `precompute` that build the cache of a choice, without those at their default."""
        assert choice.layout is not None
        given = {
            "variants": (choice.variants, 1),
            "format": (choice.layout.format, "arrow"),
            "encoding": (choice.layout.encoding, "raw"),
            "quality": (choice.layout.quality, None),
        }
        return {name: value for name, (value, default) in given.items() if value != default}

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; a break-even that is never reached is null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        choices = [
            {**codec.to_json(choice), "chain": str(self.chain_of(choice)), "command": self.command(choice)}
            for choice in self.choices
        ]
        return {
            **{name: codec.to_json(value) for name, value in fields.items() if name not in ("chain", "choices")},
            "chain": str(self.chain),
            "choices": choices,
            "why": self.why,
            "command": self.command(self.best),
        }


def _why(plan: Plan) -> str:
    best, online = plan.best, plan.online
    epochs = plan.epochs * plan.runs
    if online is None:
        return (
            f"Feeding online could not be measured ({plan.online_refused}): caches are only compared with each other."
        )
    if best is online:
        cached = next((choice for choice in plan.choices if choice.layout), None)
        assert cached is not None
        if cached.break_even_epochs is None:
            return "No cache pays: an epoch from the best one uses no less energy than an epoch online."
        return (
            f"No cache pays over {epochs:,} epochs: the best one is paid back after {number(cached.break_even_epochs)}, and its storage "
            f"uses {joules(cached.storage_j.value)}."
        )
    assert best.break_even_epochs is not None
    text = (
        f"An epoch from the cache uses {joules(best.epoch_j.value)}, an epoch online {joules(online.epoch_j.value)} "
        f"({change(best.epoch_j.value / online.epoch_j.value)}), and the build of {joules(best.build_j.value)} is paid back after "
        f"{number(best.break_even_epochs)} epochs."
    )
    second = next((choice for choice in plan.choices[1:] if choice.layout), None)
    return text if second is None else f"{text} {_against(plan, best, second, epochs)}"


def _against(plan: Plan, best: Choice, second: Choice, epochs: int) -> str:
    """Say which part of the price makes the best cache cheaper than the second best."""
    parts_j = {
        "its build": second.build_j.value - best.build_j.value,
        "its epochs": epochs * (second.epoch_j.value - best.epoch_j.value),
        "waiting for the disk": epochs * (second.waiting_j.value - best.waiting_j.value),
        "its storage": second.storage_j.value - best.storage_j.value,
    }
    part = max(parts_j, key=lambda name: parts_j[name])
    more_j = second.total_j.value - best.total_j.value
    return (
        f"The next best cache ({plan.chain_of(second)}; {second.layout}; variants {second.variants}) uses {joules(more_j)} more in total, "
        f"mostly for {part}."
    )
