"""Throughput of a machine at each precision, and the precisions that it recommends."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from joulecache.pipelines.core import codec
from joulecache.pipelines.energy import Energy

Operation = Literal["matrix product", "convolution"]
Precision = Literal["float32", "bfloat16", "int8"]

_MIN_GAIN = 1.1  # factor in operations per joule that justifies the rounding of a narrower precision


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one operation achieved at one precision.

    A multiplication and an addition count as two operations, for integers too.

    Attributes:
        operation: The operation.
        precision: The precision.
        device: Where it ran.
        engine: What ran it.
        flop_per_s: Operations per second, median of the rounds.
        flop_per_s_low: The slowest round.
        flop_per_s_high: The fastest round.
        flop: Operations in all rounds.
        energy: Energy of all rounds.
    """

    operation: Operation
    precision: Precision
    device: str
    engine: str
    flop_per_s: float
    flop_per_s_low: float
    flop_per_s_high: float
    flop: int
    energy: Energy

    @property
    def flop_per_j(self) -> float | None:
        """Operations per active joule, which is FLOP/s per watt; None if no energy is active: the power does not rise with load."""
        return self.flop / self.energy.active_j if self.energy.active_j else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `flop_per_j` as JSON values."""
        return {**codec.to_json(self), "flop_per_j": self.flop_per_j}


@dataclass(frozen=True)
class Recommendation:
    """The precisions that do the most operations per joule.

    Attributes:
        training: "float32" or "bfloat16".
        inference: Any precision.
        why: Operations per joule at each precision, relative to float32.
    """

    training: Precision
    inference: Precision
    why: str


def recommend(found: Sequence[Throughput]) -> Recommendation | None:
    """Recommend precisions by operations per active joule: the geometric mean over both operations.

    A narrower precision must do 1.1 times as many operations as a wider one. Returns None if some energy is not active: the power does not
    rise with load. Raises ValueError if a precision lacks an operation.
    """
    if any(one.flop_per_j is None for one in found):
        return None
    per_joule = {precision: _per_joule(found, precision) for precision in get_args(Precision)}

    def best(allowed: Sequence[Precision]) -> Precision:
        chosen = allowed[0]
        for precision in allowed[1:]:  # from wide to narrow
            if per_joule[precision] > _MIN_GAIN * per_joule[chosen]:
                chosen = precision
        return chosen

    shares = ", ".join(f"{name} {value / per_joule['float32']:.2f}" for name, value in per_joule.items())
    return Recommendation(
        training=best(("float32", "bfloat16")),
        inference=best(("float32", "bfloat16", "int8")),
        why=f"operations per joule against float32: {shares}",
    )


def _per_joule(found: Sequence[Throughput], precision: Precision) -> float:
    values = [one.flop_per_j for one in found if one.precision == precision and one.flop_per_j is not None]
    if len(values) != len(get_args(Operation)):
        raise ValueError(f"operations are missing at {precision}: measure every operation at every precision")
    return statistics.geometric_mean(values)
