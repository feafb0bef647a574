"""The order of an epoch: a permutation, the same however it is asked for, and in blocks one that disks like."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from joulecache.pipelines.loading.order import Order
from joulecache.pipelines.loading.permutation import permute

orders = st.builds(
    Order,
    records=st.integers(1, 5000),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.sampled_from(["all", "blocks", None]),
    block=st.integers(1, 700),
    window=st.integers(30, 300),  # a window costs as much as one of 65,536 rows, however small
)


@pytest.mark.parametrize(
    "count", [1, 2, 30, 50_000, 65_536, 65_538, 100_003, 262_144, 1_000_000, 300_000_000, 6_000_000_000]
)
def test_permutations_are_those_of_tensorflow(count: int) -> None:
    places = np.unique(np.linspace(0, count - 1, 300).astype(np.int64))
    for key in [(0, 0, 0), (7, 3, 1), (2**64 - 1, 2**32 + 5, 99)]:
        words, last = np.array(key, np.uint64), np.int64(count - 1)
        expected = tf.raw_ops.RandomIndexShuffle(index=places, seed=words, max_index=last, rounds=16).numpy()
        assert permute(places, count, key).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [3, 65_537, 262_145])
def test_a_permutation_reaches_every_value(count: int) -> None:
    """TensorFlow's has two equal values where the largest is a power of 4 from 2**16 on."""
    assert np.array_equal(np.sort(permute(np.arange(count), count, (1, 2, 3))), np.arange(count))


@given(orders, st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_an_epoch_is_a_permutation(order: Order, epoch: int) -> None:
    assert sorted(order.rows(epoch, 0, order.records)) == list(range(order.records))


@given(orders, st.integers(0, 2**40), st.data())
@settings(max_examples=25, deadline=None)
def test_a_part_is_that_part_of_the_whole(order: Order, epoch: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, order.records))
    stop = data.draw(st.integers(start, order.records))
    assert order.rows(epoch, start, stop).tolist() == order.rows(epoch, 0, order.records)[start:stop].tolist()


def test_a_part_of_several_chunks_is_that_part_of_the_whole() -> None:
    order = Order(150_000, 7, "all")
    whole = permute(np.arange(150_000), 150_000, (7, 2, 0))
    for start, stop in ((65_530, 131_080), (0, 150_000), (149_999, 150_000)):
        assert np.array_equal(order.rows(2, start, stop), whole[start:stop])


@pytest.mark.parametrize("shuffle", ["all", "blocks"])
def test_epochs_and_seeds_differ(shuffle: Literal["all", "blocks"]) -> None:
    orders = [Order(5000, seed, shuffle, 10, 100).rows(epoch, 0, 5000) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for place, one in enumerate(orders):
        for other in orders[:place]:
            assert (one == other).sum() < 25


@pytest.mark.parametrize("records", [50_000, 65_536, 100_003, 1_000_000])
def test_a_shuffle_of_all_is_uniform(records: int) -> None:
    """Records move by a third of the set on average, come from everywhere at any place, and do not keep their neighbours."""
    for epoch in range(3):
        rows = Order(records, 7, "all").rows(epoch, 0, records)
        assert abs(np.abs(rows - np.arange(records)).mean() / (records / 3) - 1) < 0.02
        tenths = np.histogram2d(np.arange(records), rows, bins=10)[0] / (records / 100)
        assert np.abs(tenths - 1).max() < 0.2
        assert (np.abs(np.diff(rows)) == 1).sum() < 20
        for distance in (1, 2, 3, 64):
            assert abs(np.corrcoef(rows[:-distance], rows[distance:])[0, 1]) * records**0.5 < 4.5


def test_blocks_come_whole_inside_their_window() -> None:
    order = Order(10_000, 3, "blocks", block=7, window=50)
    rows = order.rows(1, 0, 10_000)
    seen: set[int] = set()
    place = 0
    while place < len(rows):
        blocks = order.read_ahead(1, place, place + 1, first=True)[:50]  # all of the window that the place is in
        size = sum(stop - start for start, stop in blocks)
        assert sorted(rows[place : place + size]) == sorted(row for block in blocks for row in range(*block))
        assert not seen & {start for start, _ in blocks}
        seen |= {start for start, _ in blocks}
        place += size
    assert seen == set(range(0, 10_000, 7))


def test_a_window_is_shuffled() -> None:
    order = Order(70_000, 3, "blocks", block=7, window=1000)
    rows = order.rows(0, 7000, 14_000)
    assert (np.diff(rows) == 1).sum() < 10
    ranks = np.argsort(np.argsort(rows))
    assert abs(np.corrcoef(ranks, np.arange(7000))[0, 1]) < 0.05
    places_of_a_block = np.flatnonzero(rows // 7 == rows[0] // 7)
    assert len(places_of_a_block) == 7
    assert places_of_a_block.max() - places_of_a_block.min() > 1000


@given(
    st.builds(
        Order, st.integers(1, 1500), st.integers(0, 99), st.just("blocks"), st.integers(1, 90), st.integers(5, 20)
    ),
    st.integers(1, 500),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_all_is_asked_for_before_it_is_fed_and_once(order: Order, step: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, order.records - 1))
    asked: set[int] = set()
    rows = 0
    for start in range(begin, order.records, step):
        stop = min(start + step, order.records)
        ranges = order.read_ahead(5, start, stop, first=start == begin)
        assert all(0 <= first < last <= order.records for first, last in ranges)
        for first, last in ranges:
            asked.update(range(first, last))
            rows += last - first
        assert asked.issuperset(order.rows(5, start, stop).tolist())
    # A block that lies in two steps is asked for in both.
    steps = -(-(order.records - begin) // step)
    assert rows <= len(asked) + (2 * steps + 1) * order.block


@pytest.mark.parametrize("shuffle", ["all", None])
def test_nothing_is_read_ahead_unless_in_blocks(shuffle: Literal["all"] | None) -> None:
    assert Order(100, 1, shuffle, 10, 2).read_ahead(0, 0, 10, first=True) == []
