"""Plan: measure a sample, and choose what is cached, in how many variants and in which form, by the energy of the whole training."""

from __future__ import annotations

import dataclasses
import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.notebook import printed_html
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.memory import memory_limit
from joulecache.pipelines.planning.pricing import Choice, Job, price
from joulecache.pipelines.planning.sampling import Request, StepCost, Tell, measure
from joulecache.transforms.chain import Chain, parse

__all__ = ["Choice", "Plan", "StepCost", "plan", "why_best"]

_BEST = 5
_MEMORY_SHARE = 0.5  # of the memory, for files that are read again and again: the rest is the training's


@dataclass(frozen=True)
class Plan:
    """What was measured on a sample, and every way to feed the training with its price, the cheapest first.

    `choices` are those that fit the disk budget; the first is the best. Energies are active joules with the ends of their coefficients,
    obtained by `method`, and predicted from `sampled` of the `records` in `duration_s`. `online_refused` says why feeding online was
    not measured; `unmeasured` are ways for which the time did not suffice, `too_large` counts those above the budget.
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
        """What takes the least energy."""
        return self.choices[0]

    @property
    def online(self) -> Choice | None:
        """Feeding online, where it was measured."""
        return next((choice for choice in self.choices if choice.way is None), None)

    @property
    def shown(self) -> tuple[Choice, ...]:
        """The best five, feeding online among them."""
        best = self.choices[:_BEST]
        if self.online is None or self.online in best:
            return best
        return (*best[:-1], self.online)

    def chain_of(self, choice: Choice) -> Chain:
        """Return the chain with the cut of a choice."""
        return self.chain if choice.way is None else dataclasses.replace(self.chain, cut=choice.way.cut)

    def command(self, choice: Choice, cache: str | os.PathLike[str] = "cache/") -> str | None:
        """Return the command that builds the cache of a choice; None for feeding online."""
        if choice.way is None:
            return None
        words = ["joulecache", "precompute", self.source, os.fspath(cache), "--chain", str(self.chain_of(choice))]
        for name, value in self.arguments(choice).items():
            words += [f"--{name}", str(value)]
        return shlex.join([*words, *self.options])

    def arguments(self, choice: Choice) -> dict[str, Any]:
        """Return the arguments of `precompute` that a choice stands for, those left out that have their defaults."""
        assert choice.way is not None
        given = {
            "variants": (choice.variants, 1),
            "format": (choice.way.format, "arrow"),
            "encoding": (choice.way.encoding, "raw"),
            "quality": (choice.way.quality, None),
        }
        return {name: value for name, (value, default) in given.items() if value != default}

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values; a break-even that is never is null."""
        body = dataclasses.asdict(self)
        body["chain"] = str(self.chain)
        for row, choice in zip(body["choices"], self.choices, strict=True):
            row |= {"chain": str(self.chain_of(choice)), "command": self.command(choice)}
        return body | {"why": why_best(self), "command": self.command(self.best)}

    def _repr_html_(self) -> str:
        from joulecache.pipelines.report.plans import print_plan

        return printed_html(lambda console: print_plan(self, "cache/", console))


def plan(
    source: str | os.PathLike[str],
    chain: Chain | str,
    *,
    epochs: int,
    runs: int = 1,
    disk_budget_bytes: float | None = None,
    fresh: Sequence[str] | None = None,
    seconds: float = 60.0,
    days: float = 1.0,
    batch_size: int = 64,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Tell | None = None,
) -> Plan:
    """Choose by measured energy what of a chain to cache for `runs` trainings of `epochs` epochs, or that nothing is worth it.

    Every cut, format and encoding is built and iterated on a sample, in about `seconds`; a cut in the chain is ignored. `fresh` names
    ops that draw anew in every epoch; None: random ops that take less than a tenth of the chain's CPU time. Others may be cached, in as
    many variants as keep each draw from being used more than four times. The cache is kept for `days`, on a disk with
    `disk_budget_bytes`. The sample lies in a folder inside `folder` (default: the system's for temporary files), whose disk is the
    one that is measured; it is gone at the end.

    Raises ValueError for arguments, for a chain whose images cannot be batched and a budget that no cache fits, SourceError and
    BuildError as `precompute` does.
    """
    parsed = parse(chain) if isinstance(chain, str) else chain
    for name, value in (("epochs", epochs), ("runs", runs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    for name, number in (("seconds", seconds), ("days", days), ("disk_budget_bytes", disk_budget_bytes)):
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(f"{name} must be a number above 0, got {number!r}")
    meter = meter or Meter()
    request = Request(
        source=os.fspath(source),
        chain=parsed,
        fresh=None if fresh is None else tuple(fresh),
        batch_size=batch_size,
        limit=limit,
        labels=labels,
        seed=seed,
        seconds=seconds,
    )
    with tempfile.TemporaryDirectory(prefix="joulecache-plan-", dir=folder) as work:
        sample = measure(request, Path(work), meter, progress or (lambda what, done, total: None))
    train = round(sample.records * sample.train_share)
    job = Job(
        train_records=train,
        val_records=sample.records - train,
        source_bytes=sample.source_bytes,
        epochs=epochs,
        runs=runs,
        days=days,
        memory_bytes=_MEMORY_SHARE * memory_limit(),
        disk_bytes_per_s=sample.disk_bytes_per_s,
        idle_w=sample.idle_w,
        ends=sample.ends,
        pue=float(str(meter.passport()["pue"])),
    )
    choices = price(sample.caches, sample.online, job)
    fitting = _within(choices, disk_budget_bytes)
    options = [*(() if limit is None else ("--limit", str(limit))), *(() if seed == 0 else ("--seed", str(seed)))]
    options += [] if labels is None else ["--labels", os.fspath(labels)]
    return Plan(
        source=request.source,
        chain=parsed,
        epochs=epochs,
        runs=runs,
        days=days,
        disk_budget_bytes=disk_budget_bytes,
        records=sample.records,
        sampled=sample.images,
        duration_s=sample.duration_s,
        steps=sample.steps,
        choices=fitting,
        too_large=len(choices) - len(fitting),
        online_refused=sample.refused,
        unmeasured=sample.unmeasured,
        disk_bytes_per_s=sample.disk_bytes_per_s,
        method=sample.method,
        options=tuple(options),
    )


def _within(choices: Sequence[Choice], budget_bytes: float | None) -> tuple[Choice, ...]:
    """Return the choices that fit a budget; ValueError where no cache does."""
    if budget_bytes is None:
        return tuple(choices)
    fitting = tuple(choice for choice in choices if choice.cache_bytes <= budget_bytes)
    if not any(choice.way for choice in fitting):
        least = min((choice for choice in choices if choice.way), key=lambda choice: choice.cache_bytes)
        raise ValueError(
            f"a disk budget of {budget_bytes / 1e6:,.1f} MB holds no cache of this source: the smallest ({least.way}) takes "
            f"{least.cache_bytes / 1e6:,.1f} MB"
        )
    return fitting


def why_best(plan: Plan) -> str:
    """Say why the best choice is the best, or that nothing is worth caching."""
    best, online = plan.best, plan.online
    epochs = plan.epochs * plan.runs
    if online is None:
        return (
            f"Feeding online could not be measured ({plan.online_refused}): caches are compared with each other only."
        )
    if best is online:
        cached = next((choice for choice in plan.choices if choice.way), None)
        assert cached is not None
        if cached.break_even_epochs is None:
            return "No cache pays: an epoch from the best one takes no less than an epoch online."
        return (
            f"No cache pays over {epochs:,} epochs: the best one is paid back after {cached.break_even_epochs:,.1f}, and its storage "
            f"takes {cached.storage_j.value:,.1f} J."
        )
    kept = online.epoch_j.value - best.epoch_j.value
    text = (
        f"An epoch from the cache takes {best.epoch_j.value:,.3g} J where online takes {online.epoch_j.value:,.3g} J "
        f"({kept / online.epoch_j.value:.0%} less), and the build of {best.build_j.value:,.3g} J is paid back after "
        f"{best.break_even_epochs:,.1f} epochs."
    )
    second = next((choice for choice in plan.choices[1:] if choice.way), None)
    if second is None:
        return text
    return f"{text} {_against(plan, best, second, epochs)}"


def _against(plan: Plan, best: Choice, second: Choice, epochs: int) -> str:
    """Say by which part of the price the best cache is cheaper than the next."""
    parts = {
        "its build": second.build_j.value - best.build_j.value,
        "its epochs": epochs * (second.epoch_j.value - best.epoch_j.value),
        "waiting for the disk": epochs * (second.waiting_j.value - best.waiting_j.value),
        "its storage": second.storage_j.value - best.storage_j.value,
    }
    part = max(parts, key=lambda name: parts[name])
    whole = second.total_j.value - best.total_j.value
    return (
        f"The next cache ({plan.chain_of(second)}; {second.way}; variants {second.variants}) takes {whole:,.3g} J more in all, mostly "
        f"for {part}."
    )
