"""`batches` and the sequences of records: what `load` yields, as NumPy arrays, without TensorFlow."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from caches import build
from processes import run_python
from spatial_sources import spatial_source

import joulecache as jc
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.config import Budget, LoadConfig
from joulecache.pipelines.loading.numpy_batches import NumPyBatches
from joulecache.pipelines.loading.reader import open_reader
from joulecache.transforms.ops.decode import DecodeError

CHAIN = "decode|resize(20)|random_crop(16) || random_crop(14)|flip_lr"
KINDS: dict[str, dict[str, Any]] = {
    "raw": {"variants": 3},
    "jpeg": {"encoding": "jpeg"},
    "tfrecord": {"format": "tfrecord"},
    "plain": {"chain": "decode|resize(12)"},
    "float": {"chain": "decode|resize(12) || flip_lr|to_float"},
    "mixed": {"chain": "decode|resize(12) || flip_lr|mixup(0.4)|cutmix"},
}
BATCH = 4
Record = tuple[Any, ...]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("batches")
    for kind, options in KINDS.items():
        build(photo_folder, root / kind, **{"chain": CHAIN, "val_fraction": 0.3, "shards": 2, "seed": 5, **options})
    chain = jc.parse("decode|resize(28) || random_crop(24)|flip_lr")
    config = BuildConfig(chain=chain, val_fraction=0.3, variants=2, shards=2, seed=5)
    build_cache(spatial_source(20), root / "spatial", config, Meter())
    return {kind: root / kind for kind in (*KINDS, "spatial")}


def flat(batch: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Return the arrays of a batch, or of a record, with types and shapes."""
    arrays = map(np.asarray, tf.nest.flatten(batch))
    return [(array.dtype.str, array.shape, array.tobytes()) for array in arrays]


def listed(iterable: Iterable[Any]) -> list[Any]:
    return [flat(batch) for batch in iterable]


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "in order": {"shuffle": False},
    "blocks": {"shuffle": "blocks", "seed": 2**40},
    "a host": {"hosts": (1, 3), "drop_remainder": True},
    "epochs": {"epochs": 3, "start": (1, 2)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [*KINDS, "spatial"])
def test_batches_are_those_of_load(caches: dict[str, Path], kind: str, options: str) -> None:
    given = OPTIONS[options]
    found, expected = jc.batches(caches[kind], "train", BATCH, **given), jc.load(caches[kind], "train", BATCH, **given)
    for _ in range(3):
        assert listed(found) == listed(expected.as_numpy_iterator())
    assert len(found) == len(expected) == len(list(found))
    assert found.class_names == expected.class_names


def test_targets_have_the_structure_of_load(caches: dict[str, Path]) -> None:
    for options in (
        {"targets": ()},
        {"targets": ["area", "label"]},
        {"targets": "objects"},
        {"targets": "label", "sample_weight": "age"},
        {"targets": ["area", "objects"], "sample_weight": "age"},
    ):
        found = next(iter(jc.batches(caches["spatial"], "val", BATCH, **options)))
        expected = next(jc.load(caches["spatial"], "val", BATCH, **options).as_numpy_iterator())
        tf.nest.assert_same_structure(found, expected)
        assert flat(found) == flat(expected)


def test_texts_are_strings(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        tf.io.write_file(str(tmp_path / f"photos/{number}.png"), tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)))
    lines = [json.dumps({"file_name": f"{number}.png", "caption": f"é {number}"}) for number in range(3)]
    (tmp_path / "photos/metadata.jsonl").write_text("\n".join(lines))
    jc.precompute(tmp_path / "photos", tmp_path / "cache", "decode|resize(8)", target="caption:text", val_fraction=0)
    [(_, texts)] = jc.batches(tmp_path / "cache", "train", 8, shuffle=False)
    assert sorted(texts) == ["é 0", "é 1", "é 2"]
    assert [text for _, text in jc.open_cache(tmp_path / "cache")["train"]] == list(texts)


def test_each_iteration_is_the_next_epoch_even_after_one_that_is_left_early(caches: dict[str, Path]) -> None:
    epochs = [
        listed(jc.batches(caches["raw"], "train", BATCH, start=(epoch, 0), epochs=epoch + 1)) for epoch in range(4)
    ]
    found = jc.batches(caches["raw"], "train", BATCH)
    next(iter(found))
    both = list(zip(found, found, strict=True))
    assert [listed(one) for one in zip(*both, strict=True)] == epochs[1:3]
    assert listed(found) == epochs[3]


def test_arguments_are_those_of_load(caches: dict[str, Path]) -> None:
    ours, theirs = (inspect.signature(function).parameters for function in (jc.batches, jc.load))
    assert {*theirs} - {*ours} == {"dtype", "prefetch_to_device"}
    assert {name for name in ours if ours[name].default != theirs[name].default} == {"hosts"}
    bad: list[dict[str, Any]] = [{"batch_size": 0}, {"verify": "never"}, {"stage_limit_bytes": 0}, {"start": (0, 99)}]
    for options in bad:
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be "):
            jc.batches(**{"cache": caches["raw"], "split": "train", "batch_size": 8, **options})


def test_a_damaged_image_stops_the_iteration(tmp_path: Path, photo_folder: Path) -> None:
    build(photo_folder, tmp_path / "cache", "decode|resize(8)", encoding="png", val_fraction=0, shards=1)
    [path] = (tmp_path / "cache").glob("train-*")
    found = jc.batches(tmp_path / "cache", "train", BATCH)
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDXX"))
    with pytest.raises(DecodeError):
        list(jc.batches(tmp_path / "cache", "train", BATCH))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CacheError, match="it changed while it was read"):
        list(found)


def test_mixtures_and_targets_that_move_have_no_views(caches: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="views must be 1 with mixup and cutmix, which mix the classes of each view"):
        jc.batches(caches["mixed"], "train", BATCH, views=2)
    expected = "views must be 1 with 'area', which moves with the pixels of each view, got 2: leave it out with targets"
    with pytest.raises(ValueError, match=expected):
        jc.batches(caches["spatial"], "train", BATCH, views=2)
    with pytest.raises(ValueError, match=expected):
        jc.open_cache(caches["spatial"]).records("train", views=2)
    (one, other), target = next(iter(jc.batches(caches["spatial"], "train", BATCH, views=2, targets=["label", "age"])))
    assert one.shape == other.shape == (BATCH, 24, 24, 3)
    assert {name: len(each) for name, each in target.items()} == {"label": BATCH, "age": BATCH}


# Memory


def test_arrays_stay_as_long_as_they_are_held_and_can_be_written(caches: dict[str, Path]) -> None:
    expected = listed(jc.batches(caches["plain"], "train", 2, epochs=3))
    kept = list(jc.batches(caches["plain"], "train", 2, epochs=3))
    assert listed(kept) == expected
    for batch in kept:
        for array in batch:
            array[:] = 0
    assert listed(jc.batches(caches["plain"], "train", 2, epochs=3)) == expected


def test_memory_is_used_again(caches: dict[str, Path]) -> None:
    found = opened(caches["raw"], 1, epochs=20)
    places = [images.ctypes.data for images, _ in found]
    assert len(set(places)) <= 4


# State


def opened(folder: Path, step_bytes: int, **options: Any) -> NumPyBatches:
    budget = Budget(step_bytes=step_bytes, encoded_step_bytes=step_bytes)
    config = LoadConfig("train", BATCH, budget=budget, **options)
    return NumPyBatches(lambda: open_reader(jc.open_cache(folder), config), config)


@pytest.mark.parametrize("step_bytes", [1, 2 * BATCH * 14 * 14 * 3, 1 << 30])
def test_a_restored_state_goes_on_with_the_same_bytes(caches: dict[str, Path], step_bytes: int) -> None:
    whole = listed(jc.batches(caches["raw"], "train", BATCH, epochs=3))
    running = opened(caches["raw"], step_bytes, epochs=3)
    batches = iter(running)
    for taken in range(len(whole) + 1):
        state = json.dumps(running.state())
        assert len(state) < 1024
        again = opened(caches["raw"], step_bytes, epochs=3)
        again.restore(json.loads(state))
        assert again.state() == running.state()
        assert listed(again) == whole[taken:]
        assert listed(again) == whole
        next(batches, None)


def test_without_epochs_a_restored_epoch_goes_on_and_then_the_next(caches: dict[str, Path]) -> None:
    running = jc.batches(caches["raw"], "train", BATCH)
    list(running)
    batches = iter(running)
    next(batches)
    again = jc.batches(caches["raw"], "train", BATCH)
    again.restore(running.state())
    assert listed(again) == listed(batches)
    assert again.state() == running.state()
    assert listed(again) == listed(running)


def test_a_state_of_other_images_or_arguments_is_refused(caches: dict[str, Path]) -> None:
    state = jc.batches(caches["raw"], "train", BATCH, epochs=2, start=(1, 1)).state()
    jc.batches(caches["raw"], "train", BATCH, epochs=5).restore(state)
    others: list[dict[str, Any]] = [
        {"cache": caches["tfrecord"]},
        {"split": "val"},
        {"batch_size": BATCH + 1},
        {"seed": 1},
        {"shuffle": False},
        {"hosts": (0, 2)},
        {"drop_remainder": True},
        {"targets": ()},
    ]
    for other in others:
        batches = jc.batches(**{"cache": caches["raw"], "split": "train", "batch_size": BATCH, **other})
        with pytest.raises(CacheError, match="this state was saved over other images or with other arguments"):
            batches.restore(state)
    with pytest.raises(ValueError, match="after the last of 1 epochs"):
        jc.batches(caches["raw"], "train", BATCH, epochs=1).restore(state)
    bad: list[Any] = [{}, {"epoch": 0, "batch": 0}, {**state, "batch": "1"}, None]
    for each in bad:
        with pytest.raises(ValueError, match=r"state must be a dict that state\(\) returned, got"):
            jc.batches(caches["raw"], "train", BATCH).restore(each)


def test_a_state_of_another_version_of_the_order_is_refused(
    caches: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = jc.batches(caches["raw"], "train", BATCH).state()
    monkeypatch.setattr("joulecache.pipelines.loading.reader.VERSION", 1)
    with pytest.raises(CacheError, match="this state was saved over other images"):
        jc.batches(caches["raw"], "train", BATCH).restore(state)


# Records


@pytest.mark.parametrize("kind", [*KINDS, "spatial"])
def test_records_are_those_of_the_batches(caches: dict[str, Path], kind: str) -> None:
    for split, epoch in itertools.product(("train", "val"), (0, 4)):
        if (kind, split) == ("mixed", "train"):
            continue
        [batch] = jc.batches(caches[kind], split, 100, shuffle=False, start=(epoch, 0), epochs=epoch + 1)
        records = jc.open_cache(caches[kind]).records(split, epoch=epoch)
        assert [flat(record) for record in records] == [
            [
                (kind, shape[1:], data[row * (size := len(data) // shape[0]) :][:size])
                for kind, shape, data in flat(batch)
            ]
            for row in range(len(records))
        ]


def test_records_are_indexed_as_a_sequence(caches: dict[str, Path]) -> None:
    records = jc.open_cache(caches["raw"])["train"]
    count = len(records)
    expected = listed(records)
    assert len(expected) == count
    for index in (-1, np.int64(3), -count):
        assert flat(records[index]) == expected[index]
    assert listed(records[2:9:3]) == expected[2:9:3]
    assert listed(records.__getitems__([4, 1, 4])) == [expected[place] for place in (4, 1, 4)]
    assert listed(reversed(records)) == expected[::-1]
    for index in (count, -count - 1):
        with pytest.raises(IndexError):
            records[index]
    assert repr(records) == f"Records({str(caches['raw'])!r}, 'train', epoch=0)"


def test_records_take_the_arguments_of_load(caches: dict[str, Path]) -> None:
    cache = jc.open_cache(caches["spatial"])
    image, target, weight = cache.records("train", epoch=3, seed=8, targets="area", sample_weight="age")[5]
    [batch] = jc.batches(
        cache, "train", 99, shuffle=False, start=(3, 0), epochs=4, seed=8, targets="area", sample_weight="age"
    )
    assert flat((image, target, weight)) == [flat(array[5])[0] for array in batch]
    with pytest.raises(ValueError, match="epoch must be an integer of at least 0, got -1"):
        cache.records("train", epoch=-1)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        cache["dev"]
    with pytest.raises(ValueError, match="mixes the images of batches, not single records: use batches"):
        jc.open_cache(caches["mixed"])["train"]


# Processes


def test_batches_and_records_need_no_tensorflow(caches: dict[str, Path]) -> None:
    script = """
import sys
import joulecache as jc
found = jc.batches(sys.argv[1], "train", 4)
list(found)
jc.open_cache(sys.argv[1])["train"][0]
print(*{"tensorflow", "apache_beam", "pandas", "keras", "matplotlib"} & {*sys.modules})
"""
    done = run_python(script, caches["jpeg"])
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_records_go_to_processes(caches: dict[str, Path]) -> None:
    """Forked ones too, after this process has decoded in threads."""
    script = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import joulecache as jc

def check(came, expected):
    for (image, label), (other, number) in zip(came, expected, strict=True):
        assert (image.tobytes(), label) == (other.tobytes(), number)

if __name__ == "__main__":
    for folder in sys.argv[1:]:
        records = jc.open_cache(folder).records("train", epoch=2)
        expected = records[:6]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            check(pool.submit(records.__getitems__, range(6)).result(60), expected)
        forked = multiprocessing.get_context("fork").Process(target=lambda: check(records[:6], expected), daemon=True)
        forked.start()
        forked.join(20)
        assert forked.exitcode == 0, forked.exitcode
"""
    done = run_python(script, caches["jpeg"], caches["raw"])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["raw", "jpeg", "spatial"])
def test_pickled_batches_go_on_with_the_same_epoch(caches: dict[str, Path], kind: str) -> None:
    batches = jc.batches(caches[kind], "train", BATCH)
    next(iter(batches))
    came = pickle.loads(pickle.dumps(batches))  # noqa: S301
    assert came.state() == batches.state()
    for images, expected in zip(came, batches, strict=True):
        assert images[0].tobytes() == expected[0].tobytes()


def test_pickled_batches_of_a_cache_that_was_rebuilt_are_refused(tmp_path: Path, photo_folder: Path) -> None:
    build(photo_folder, tmp_path / "cache", "decode|resize(8)")
    batches = pickle.dumps(jc.batches(tmp_path / "cache", "train", BATCH))
    build(photo_folder, tmp_path / "cache", "decode|resize(9)", replace=True)
    with pytest.raises(CacheError, match="the cache was rebuilt after its batches were pickled: call batches again"):
        pickle.loads(batches)  # noqa: S301


def test_a_process_ends_while_batches_are_read(caches: dict[str, Path]) -> None:
    script = """
import sys, threading
import joulecache as jc

def go_on():
    batches = iter(jc.batches(sys.argv[1], "train", 4, epochs=50))
    next(batches)
    threading.main_thread().join()
    for _ in range(100):
        next(batches)
    print("went on")

threading.Thread(target=go_on).start()
kept = iter(jc.batches(sys.argv[1], "train", 4, epochs=50))
next(kept)
cycle = [kept]
cycle.append(cycle)
"""
    done = run_python(script, caches["jpeg"], limit_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_a_cache_in_another_process_is_the_same(caches: dict[str, Path]) -> None:
    cache = jc.open_cache(caches["raw"])
    assert cache.index.num_rows
    kind, arguments = cache.__reduce__()
    assert dataclasses.asdict(kind(*arguments)) == dataclasses.asdict(cache)  # type: ignore[operator,misc]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda jc, cache: jc.load(3, "train", BATCH), "cache must be a path, got 3"),
        (lambda jc, cache: jc.batches(None, "train", BATCH), "cache must be a path, got None"),
        (lambda jc, cache: jc.open_cache(b"cache"), "cache must be a path, got b'cache'"),
        (lambda jc, cache: jc.open_manifest(3), "cache must be a path, got 3"),
        (lambda jc, cache: jc.verify(None), "cache must be a path, got None"),
        (lambda jc, cache: jc.precompute(3, cache, "decode"), "source must be a path, got 3"),
        (lambda jc, cache: jc.precompute("photos", None, "decode"), "cache must be a path, got None"),
        (lambda jc, cache: jc.precompute("photos", cache, 3), r"a chain must be text such as .*, or a Chain, got int"),
        (lambda jc, cache: jc.plan(3, "decode", epochs=1), "source must be a path, got 3"),
        (lambda jc, cache: jc.audit(3, "decode", out="out"), "source must be a path, got 3"),
        (lambda jc, cache: jc.audit("photos", "decode", out="out", arms="naive"), "arms must be a list, got 'naive'"),
        (lambda jc, cache: jc.audit("photos", "decode", out="out", workloads="input"), "workloads must be a list, got"),
        (lambda jc, cache: jc.audit("photos", "decode", out="out", variants=2), "variants must be a list, got 2"),
        (lambda jc, cache: jc.plan("photos", "decode", epochs=1, fresh="crop"), "fresh must be a list, got 'crop'"),
        (lambda jc, cache: jc.precompute("photos", cache, "decode", target=3), "target must be a name or a sequence"),
        (lambda jc, cache: jc.precompute("photos", cache, "decode", splits=3), "splits must be a dict of names by"),
        (lambda jc, cache: jc.cached(3), "directory must be a path, got 3"),
        (lambda jc, cache: jc.mix({cache: 1, 3: 1}), "each cache in shares must be a path, got 3"),
        (
            lambda jc, cache: jc.image_dataset_from_directory("photos", cache_dir=None),
            "cache_dir must be a path, got None",
        ),
        (
            lambda jc, cache: jc.image_dataset_from_directory("photos", cache_dir=cache, batch_size=0),
            "batch_size must be",
        ),
        (
            lambda jc, cache: jc.batches(cache, "train", BATCH, drop_remainder="no"),
            "drop_remainder must be True or False",
        ),
        (
            lambda jc, cache: jc.batches(cache, "train", BATCH, targets=3),
            "targets must be a name or a sequence of names",
        ),
        (
            lambda jc, cache: jc.batches(cache, "train", BATCH, sample_weight=3),
            "sample_weight must be a non-empty string",
        ),
        (
            lambda jc, cache: jc.batches(cache, "train", BATCH, ops=3),
            "ops must be a dict of op classes by name, got int",
        ),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_by_name(
    caches: dict[str, Path], call: Callable[[Any, Path], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(jc, caches["raw"])
