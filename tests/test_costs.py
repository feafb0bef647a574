"""What ops cost: every one is measured, on images that it can take, and the measurement sees what work is."""

from __future__ import annotations

import numpy as np
import pytest

from joulecache.pipelines.planning import transform_costs as costs
from joulecache.transforms.ops import OPS


@pytest.mark.slow
def test_every_op_is_measured_once() -> None:
    measured = list(costs.op_costs())
    assert [type(cost.op) for cost in measured] == list(OPS.values())
    assert all(cost.cpu_us_per_image > 0 for cost in measured)


def test_more_work_costs_more() -> None:
    image = np.zeros((64, 64, 3), np.uint8)

    def works(times: int) -> float:
        return costs.cpu_us(lambda: [image.sum() for _ in range(times)])

    assert works(100) > 10 * works(1)


def test_a_copy_costs_something() -> None:
    assert costs.copy_cost() > 0
