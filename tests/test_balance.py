"""`balance=`: classes are drawn evenly, each record with the bytes of the online stream at its draw."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from spatial_sources import FEATURES, Drawn, drawn, spatial_source

import joulecache as jc
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.balancing import Balanced
from joulecache.pipelines.loading.order import Rows
from joulecache.pipelines.source.features import ClassLabel, Features

BATCH = 5
CLASSES: Features = {
    "label": ClassLabel(("cat", "dog", "owl", "emu")),
    **{k: v for k, v in FEATURES.items() if k != "label"},
}
OF_CLASS = {0: 3, 1: 7, 2: 16}  # and no emu
COUNT = sum(OF_CLASS.values())
KINDS: dict[str, dict[str, Any]] = {
    "raw": {"chain": "decode|resize(14)|random_crop(12) || random_crop(9)|flip_lr", "variants": 3},
    "png": {"chain": "decode|resize(14)|random_crop(9)", "variants": 2, "encoding": "png"},
    "one variant": {"chain": "decode|resize(9)"},
}


def units() -> list[Drawn]:
    """Return records of three classes, whose age is their number."""
    labels = [label for label, count in OF_CLASS.items() for _ in range(count)]
    found = []
    for number, label in enumerate(labels):
        one = drawn(number, CLASSES)
        found.append(Drawn(one.name, (label, *one.contents[1:]), one.features, one.data))
    return found


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("balance")
    for kind, options in KINDS.items():
        config = BuildConfig(
            **{**options, "chain": jc.parse(options["chain"]), "shards": 2, "val_fraction": 0, "seed": 6}
        )
        build_cache(spatial_source(0, CLASSES, units()), folder / kind, config, Meter())
    return {kind: folder / kind for kind in KINDS}


def flat(batch: Any) -> list[bytes]:
    return [np.asarray(each).tobytes() for each in tf.nest.flatten(batch)]


def records(batches: Any) -> list[tuple[int, int, list[bytes]]]:
    """Return the label, the number and all arrays of each record."""
    found = []
    for images, target in batches:
        for place in range(len(images)):
            one = tf.nest.map_structure(lambda each, place=place: each[place], (images, target))
            found.append((int(target["label"][place]), round(float(target["age"][place])), flat(one)))
    return found


# The order


def balanced(sizes: list[int], seed: int = 3) -> Balanced:
    members: Rows = np.random.default_rng(1).permutation(sum(sizes))
    return Balanced(sum(sizes), seed, "all", label="label", digest="0", members=members, sizes=np.array(sizes))


def test_every_group_of_positions_has_each_class_and_every_pass_each_of_its_rows() -> None:
    order, sizes = balanced([2, 5, 1, 30]), [2, 5, 1, 30]
    class_of = dict(zip(order.members.tolist(), np.repeat(np.arange(4), sizes).tolist(), strict=True))
    rows, draws = (
        np.concatenate(each) for each in zip(*(order.picks(epoch, 0, 38) for epoch in range(8)), strict=True)
    )
    groups = [[class_of[row] for row in rows[start : start + 4].tolist()] for start in range(0, len(rows), 4)]
    assert all(sorted(group) == [0, 1, 2, 3] for group in groups)
    assert len({*map(tuple, groups)}) > 15
    for number, size in enumerate(sizes):
        of_class = np.array([class_of[row] == number for row in rows.tolist()])
        mine, passes = rows[of_class].tolist(), draws[of_class].tolist()
        assert passes == [place // size for place in range(len(mine))]
        whole = [mine[start : start + size] for start in range(0, len(mine) - size + 1, size)]
        assert all(sorted(one) == sorted(whole[0]) for one in whole)
        assert size < 5 or len({*map(tuple, whole)}) > 1


def test_a_part_is_that_part_of_the_whole() -> None:
    order = balanced([2, 5, 1, 300])
    rows, draws = order.picks(3, 0, 308)
    for start, stop in ((100, 170), (0, 1), (307, 308), (5, 5), (1, 308)):
        found = order.picks(3, start, stop)
        assert [each.tolist() for each in found] == [rows[start:stop].tolist(), draws[start:stop].tolist()]
        assert order.rows(3, start, stop).tolist() == rows[start:stop].tolist()


@pytest.mark.parametrize("seed", [2, 3 + 2**40])
def test_every_bit_of_the_seed_changes_the_order(seed: int) -> None:
    first, other = balanced([40, 50]), balanced([40, 50], seed)
    assert (first.rows(0, 0, 90) == other.rows(0, 0, 90)).sum() < 20


# The stream


@pytest.mark.parametrize("kind", KINDS)
def test_each_record_has_the_bytes_of_the_epoch_of_its_draw(caches: Mapping[str, Path], kind: str) -> None:
    cache = jc.open_cache(caches[kind])
    online: dict[tuple[int, int], list[bytes]] = {}
    for epoch in range(10):
        whole = jc.batches(cache, "train", BATCH, shuffle=False, start=(epoch, 0), epochs=epoch + 1)
        online |= {(number, epoch): arrays for _, number, arrays in records(whole)}
    found = records(jc.batches(cache, "train", BATCH, balance="label", epochs=3))
    assert len(found) == 3 * COUNT
    seen: Counter[int] = Counter()
    for place, (_, number, arrays) in enumerate(found):
        assert arrays == online[number, seen[number]]
        seen[number] += 1
        if place % 3 == 2:
            assert sorted(one[0] for one in found[place - 2 : place + 1]) == [0, 1, 2]
    assert sorted(seen[number] for number in range(3)) == [8, 9, 9]


def test_hosts_share_the_balanced_epoch(caches: Mapping[str, Path]) -> None:
    whole = records(jc.batches(caches["raw"], "train", BATCH, balance="label", epochs=1))
    shares = [
        jc.batches(caches["raw"], "train", BATCH, balance="label", epochs=1, hosts=(host, 3)) for host in range(3)
    ]
    assert [one for share in shares for one in records(share)] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_load_is_batches_and_both_resume(caches: Mapping[str, Path], kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"balance": "label", "epochs": 3}
    running = jc.batches(caches[kind], "train", BATCH, **options)
    iterator = iter(running)
    expected = [flat(next(iterator)) for _ in range(7)]
    state = json.dumps(running.state())
    expected += [flat(batch) for batch in iterator]
    again = jc.batches(caches[kind], "train", BATCH, **options)
    again.restore(json.loads(state))
    assert [flat(batch) for batch in again] == expected[7:]

    dataset = jc.load(caches[kind], "train", BATCH, **options)
    assert [flat(batch) for batch in dataset.as_numpy_iterator()] == expected
    loaded = iter(dataset)
    for _ in range(7):
        next(loaded)
    path = tf.train.Checkpoint(iterator=loaded).save(str(tmp_path / "saved"))
    loaded = iter(jc.load(caches[kind], "train", BATCH, **options))
    tf.train.Checkpoint(iterator=loaded).restore(path)
    assert [flat(tf.nest.map_structure(lambda each: each.numpy(), batch)) for batch in loaded] == expected[7:]
    for other in ({}, {"balance": "label", "where": "label == 'dog'"}, {"balance": "label", "seed": 9}):
        with pytest.raises(CacheError, match="this state was saved over other images"):
            jc.batches(caches[kind], "train", BATCH, **other).restore(json.loads(state))


def test_a_balanced_subset_has_its_classes_alone(caches: Mapping[str, Path]) -> None:
    options: dict[str, Any] = {"balance": "label", "where": "label in ('cat', 'owl')"}
    found = records(jc.batches(caches["raw"], "train", BATCH, **options))
    assert Counter(label for label, *_ in found) in ({0: 10, 2: 9}, {0: 9, 2: 10})


def test_a_mix_takes_balanced_caches(caches: Mapping[str, Path]) -> None:
    mixed = jc.mix({caches["raw"]: 1, jc.open_cache(caches["raw"]): 1})
    found = records(jc.batches(mixed, "train", BATCH, balance="label", targets=["label", "age"]))
    alone = records(jc.batches(caches["raw"], "train", BATCH, balance="label", targets=["label", "age"]))
    assert [one for pair in zip(alone, alone, strict=True) for one in pair] == found


def test_what_cannot_be_balanced_is_refused(caches: Mapping[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"balance": "age"}, "balance must name a target that is a class (label), got 'age'"),
        ({"balance": "lable"}, "balance must name a target that is a class (label), got 'lable'"),
        ({"balance": ""}, "balance must be a non-empty string, got ''"),
        ({"balance": True}, "balance must be a non-empty string, got True"),
        ({"balance": "label", "shuffle": False}, "balance draws from the whole split: shuffle must be True, got False"),
        ({"balance": "label", "shuffle": "blocks"}, "shuffle must be True, got 'blocks'"),
    ]
    for options, expected in bad:
        with pytest.raises(ValueError, match=re.escape(expected)):
            jc.batches(caches["raw"], "train", BATCH, **options)
    with caplog.at_level(logging.WARNING, "joulecache"):
        jc.batches(caches["raw"], "train", BATCH, balance="label")
    assert "1 of 4 classes have no records in 'train': balance draws the others" in caplog.text
