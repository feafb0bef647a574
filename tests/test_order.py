"""The order of an epoch: a permutation, the same however it is asked for, and in blocks one that disks like."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulecache.pipelines.loading.order import Order
from joulecache.pipelines.loading.permutation import permute
from joulecache.pipelines.loading.subset import Subset

orders = (
    st.builds(
        Order,
        records=st.integers(1, 5000),
        seed=st.integers(0, 2**64 - 1),
        shuffle=st.sampled_from(["all", "blocks", None]),
        block=st.integers(1, 700),
        window=st.integers(30, 300),  # a window costs as much as one of 65,536 rows, however small
    )
    | st.lists(st.integers(1, 900), min_size=1, max_size=9).map(
        lambda files: Order(sum(files), 3, "blocks", 20, 30, (0, *files[1:], 0, files[0], 0))
    )
)


@pytest.mark.parametrize("count", [1, 2, 3, 30, 50_000, 65_536, 65_537, 100_003, 262_144, 262_145, 1_000_000])
def test_a_permutation_reaches_every_value(count: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(count), count, (1, 2, 3))), np.arange(count))


@pytest.mark.parametrize("count", [300_000_000, 6_000_000_000])
def test_values_of_a_large_permutation_are_in_range_and_differ(count: int) -> None:
    values = permute(np.arange(count - 100_000, count), count, (2**64 - 1, 2**32 + 5, 99))
    assert len(np.unique(values)) == 100_000
    assert 0 <= values.min() < count / 1000
    assert count - count / 1000 < values.max() < count


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


FLIPPED = [(7 ^ 1 << bit, 3) for bit in range(0, 64, 3)] + [(7, 3 ^ 1 << bit) for bit in range(0, 40, 3)]


@pytest.mark.parametrize("shuffle", ["all", "blocks"])
def test_every_bit_of_seeds_and_epochs_changes_the_whole_order(shuffle: Literal["all", "blocks"]) -> None:
    near = [(seed, epoch) for seed in (0, 1, 256, 2**32) for epoch in (0, 1, 256, 512, 2**32)]
    orders = [Order(5000, seed, shuffle, 10, 100).rows(epoch, 0, 5000) for seed, epoch in [*near, (7, 3), *FLIPPED]]
    for place, one in enumerate(orders):
        for other in orders[:place]:
            assert (one == other).sum() < 25
            assert abs(np.corrcoef(one, other)[0, 1]) * 5000**0.5 < 4.5 or shuffle == "blocks"


def test_windows_are_permuted_by_different_keys() -> None:
    order = Order(40_000, 7, "blocks", block=100, window=50)
    found = []
    for start in range(0, 40_000, 5000):
        blocks = order.read_ahead(3, start, start + 1, first=True)[:50]
        places = {row: place for place, row in enumerate(row for block in blocks for row in range(*block))}
        found.append([places[row] for row in order.rows(3, start, start + 5000).tolist()])
    assert (np.abs(np.corrcoef(found)) - np.eye(8)).max() * 5000**0.5 < 4.5


def test_all_permutations_of_a_few_are_equally_frequent() -> None:
    """24 permutations of 4 records in 480 epochs: chi-square of 23 degrees of freedom, 49.7 at one in a thousand."""
    found = Counter(tuple(permute(np.arange(4), 4, (7, epoch, 0)).tolist()) for epoch in range(480))
    assert len(found) == 24
    assert sum((count - 20) ** 2 / 20 for count in found.values()) < 49.7


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
    order = Order(10_150, 3, "blocks", block=7, window=50)  # 29 windows
    rows = order.rows(1, 0, 10_150)
    seen: set[int] = set()
    place = 0
    while place < len(rows):
        blocks = order.read_ahead(1, place, place + 1, first=True)[:50]  # all of the window that the place is in
        size = sum(stop - start for start, stop in blocks)
        assert sorted(rows[place : place + size]) == sorted(row for block in blocks for row in range(*block))
        assert not seen & {start for start, _ in blocks}
        seen |= {start for start, _ in blocks}
        place += size
    assert seen == set(range(0, 10_150, 7))


def test_files_come_whole_inside_their_group() -> None:
    files = (30, 10, 70, 5, 200, 30, 1, 54)
    ends = np.cumsum((0, *files))
    order = Order(400, 3, "blocks", block=7, window=10, files=files)
    orders = set()
    for epoch in range(3):
        rows, groups = order.rows(epoch, 0, 400), order.groups(epoch, 0, 400)
        orders.add(str(groups))
        place = 0
        for number, group in enumerate(groups):
            size = sum(files[file] for file in group)
            assert size >= 70 or number == len(groups) - 1
            held = [row for file in group for row in range(ends[file], ends[file + 1])]
            assert sorted(rows[place : place + size]) == sorted(held)
            assert order.groups(epoch, place, place + size) == [group]
            place += size
        assert place == 400
        assert order.groups(epoch, 69, 71) in (groups[:1], groups[:2])
    assert len(orders) == 3
    assert Order(400, 3, files=files).groups(0, 35, 45) == [[1], [2]]


@pytest.mark.parametrize("shuffle", ["blocks", None])
def test_files_without_rows_are_in_no_group(shuffle: Literal["blocks"] | None) -> None:
    order = Order(100, 3, shuffle, block=7, window=3, files=(0, 30, 0, 0, 60, 10, 0))
    for epoch in range(4):
        assert sorted(file for group in order.groups(epoch, 0, 100) for file in group) == [1, 4, 5]


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


@given(st.integers(0, 99), st.integers(1, 90), st.integers(1, 200), st.data())
@settings(max_examples=15, deadline=None)
def test_the_selected_rows_of_a_file_are_asked_for_before_they_are_fed(
    seed: int, block: int, step: int, data: st.DataObject
) -> None:
    mask = np.random.default_rng(seed).random(900) < data.draw(st.sampled_from([0.02, 0.5, 1]))
    chosen = np.flatnonzero(mask | (np.arange(900) == 450))
    files = tuple(np.diff(np.searchsorted(chosen, [0, 100, 130, 700, 900])).tolist())
    order = Subset(len(chosen), seed, "blocks", block, 3, files, "digest", chosen)
    assert sorted(order.rows(5, 0, len(chosen))) == chosen.tolist()
    asked: set[int] = set()
    for start in range(0, len(chosen), step):
        stop = min(start + step, len(chosen))
        for first, last in order.read_ahead(5, start, stop, first=start == 0):
            assert {first, last - 1} <= {*chosen.tolist()}
            asked.update(range(first, last))
        assert asked.issuperset(order.rows(5, start, stop).tolist())
