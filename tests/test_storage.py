"""The energy of storage: the formula, its units, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.energy.model import coefficients
from joulecache.pipelines.energy.storage import storage_energy

J_PER_WH = 3600
ROW = coefficients().storage_w_per_tb


def test_a_terabyte_hour_is_the_coefficient_in_watt_hours() -> None:
    kept = storage_energy(1e12, 1 / 24)
    assert kept.value_j == pytest.approx(1.2 * J_PER_WH)
    assert kept.low_j == pytest.approx(0.65 * J_PER_WH)
    assert kept.high_j == pytest.approx(3.96 * J_PER_WH)


@given(stored=st.floats(0, 1e18), days=st.floats(0, 1e5), pue=st.floats(1, 3))
def test_energy_is_linear_in_bytes_days_and_pue(stored: float, days: float, pue: float) -> None:
    kept = storage_energy(stored, days, pue)
    for end, name in (("low", "low_j"), ("central", "value_j"), ("high", "high_j")):
        assert math.isclose(
            getattr(kept, name), getattr(ROW, end) * stored / 1e12 * days * 86_400 * pue, rel_tol=1e-9, abs_tol=1e-300
        )
    assert kept.low_j <= kept.value_j <= kept.high_j


def test_storage_energy_has_provenance() -> None:
    kept = storage_energy(5e9, 1)
    assert kept.method == f"modelled:storage@{coefficients().version}"
    assert kept.source == ROW.source
    assert "replication not counted" in kept.scope


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 1), "stored_bytes"),
        ((math.nan, 1), "stored_bytes"),
        ((1, -1), "days"),
        ((1, math.inf), "days"),
        ((1, 1, 0.9), "pue"),
        ((True, 1), "stored_bytes"),
    ],
)
def test_values_that_are_not_amounts_are_refused_by_name(arguments: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be a finite number"):
        storage_energy(*arguments)
