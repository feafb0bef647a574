"""Typed results of planning; `joulecache plan --json` prints the same figures."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.quantities import change, joules, number, shortened
from joulecache.pipelines.experiment.results import Joules
from joulecache.transforms.chain import Chain, op_text

_SHOWN = 5
_TIES_NAMED = 3
_NORMAL_95 = 1.96


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
        error_j: Standard error of `total_j`: how much it varies from one measurement to the next. Its bounds, which are those of the
            coefficients, are the same for all choices.
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
    error_j: float
    break_even_epochs: float | None


@dataclass(frozen=True)
class Difference:
    """Joules that a choice uses more than another in total.

    Attributes:
        value_j: The difference; negative if it uses less.
        low_j: Lower end of the 95% interval of measuring both again.
        high_j: Upper end.
    """

    value_j: float
    low_j: float
    high_j: float

    @property
    def is_tie(self) -> bool:
        """Whether the measurement does not show which of the two uses less."""
        return self.low_j <= 0 <= self.high_j


def difference(one: Choice, other: Choice) -> Difference:
    """Return the joules that one choice uses more than another. More variants of a layout always use more: they share its measurements."""
    value_j = one.total_j.value - other.total_j.value
    half_j = 0.0 if one.layout == other.layout else _NORMAL_95 * math.hypot(one.error_j, other.error_j)
    return Difference(value_j, value_j - half_j, value_j + half_j)


def ranked(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return choices that are sorted by energy with those first that tie with the cheapest, ordered by what else they cost.

    Of two that tie, the lossless one comes first, then the smaller one on disk (to two digits), then the simpler one.
    """

    def cost(choice: Choice) -> tuple[object, ...]:
        layout = choice.layout
        if layout is None:
            return (False, 0.0, False, False)
        size = float(f"{choice.cache_bytes:.1e}")
        return (layout.encoding == "jpeg", size, layout.encoding != "raw", layout.format != "arrow")

    tied = [choice for choice in choices if difference(choice, choices[0]).is_tie]
    return (*sorted(tied, key=cost), *(choice for choice in choices if choice not in tied))


@dataclass(frozen=True)
class Plan(Displayed):
    """What was measured on a sample, and every choice with its price, in the order of `ranked`.

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
        choices: The choices within the disk budget: those that tie with the cheapest, the best of them first, then the others by energy.
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
        """The choice that uses the least energy or, of those that tie, the one that costs least otherwise."""
        return self.choices[0]

    @property
    def ties(self) -> tuple[Choice, ...]:
        """The other choices that tie with the best: their energies differ by less than they vary when measured again."""
        cheapest = min(self.choices, key=lambda choice: choice.total_j.value)
        return tuple(choice for choice in self.choices[1:] if difference(choice, cheapest).is_tie)

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
        paths = [f"./{path}" if path.startswith("-") else path for path in (self.source, os.fspath(cache))]
        words = ["joulecache", "precompute", *paths, "--chain", str(self.chain_of(choice))]
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
            {
                **codec.to_json(choice),
                "ties": choice in (self.best, *self.ties),
                "chain": str(self.chain_of(choice)),
                "command": self.command(choice),
            }
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
    text = _reason(plan)
    return f"{text} {_tie(plan)}" if plan.ties else text


def _reason(plan: Plan) -> str:
    best, online = plan.best, plan.online
    epochs = plan.epochs * plan.runs
    if online is None:
        return (
            f"Feeding online could not be measured ({plan.online_refused}): caches are only compared with each other."
        )
    if best is online:
        return _against_caching(plan, online, epochs)
    assert best.break_even_epochs is not None
    text = (
        f"An epoch from the cache uses {joules(best.epoch_j.value)}, an epoch online {joules(online.epoch_j.value)} "
        f"({change(best.epoch_j.value / online.epoch_j.value)}), and the build of {joules(best.build_j.value)} is paid back after "
        f"{number(best.break_even_epochs)} epochs."
    )
    rest = (choice for choice in plan.choices if choice.layout and choice not in plan.ties)
    second = next((choice for choice in rest if choice.total_j.value > best.total_j.value), None)
    return text if second is None else f"{text} {_against(plan, best, second, epochs)}"


def _against_caching(plan: Plan, online: Choice, epochs: int) -> str:
    cached = min((choice for choice in plan.choices if choice.layout), key=lambda choice: choice.total_j.value)
    if cached.break_even_epochs is None:
        return "No cache pays: an epoch from the best one uses no less energy than an epoch online."
    after = f"the best one is paid back after {number(cached.break_even_epochs)}"
    if cached in plan.ties:
        return f"No cache clearly pays over {epochs:,} epochs: {after}."
    return f"No cache pays over {epochs:,} epochs: {after}, and its storage uses {joules(cached.storage_j.value)}."


def _tie(plan: Plan) -> str:
    """Say which choices tie with the best, and what decides."""
    apart = [difference(choice, plan.best) for choice in plan.ties]
    named = [
        f"{_named(plan, choice)} ({joules(abs(each.value_j))} {'more' if each.value_j > 0 else 'less'})"
        for choice, each in zip(plan.ties, apart, strict=True)
    ]
    half_j = max(each.high_j - each.value_j for each in apart)
    name = _named(plan, plan.best)
    return (
        f"{name[0].upper()}{name[1:]} ties with {shortened(named, _TIES_NAMED)}, within ±{joules(half_j)} of measuring again: of choices "
        "that tie, lossless ones come first, then the smaller on disk, then the simpler."
    )


def _named(plan: Plan, choice: Choice) -> str:
    if choice.layout is None:
        return "feeding online"
    form = str(choice.layout).replace(",", "")
    variants = f", {choice.variants} variants" if choice.reuse is not None else ""
    return f"{form} after {op_text(plan.chain.ops[choice.layout.cut - 1])}{variants}"


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
