"""Where a dataset begins, goes on and ends: epochs, start, checkpoints of iterators, and the shares of several hosts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.shards import map_file
from joulecache.pipelines.loading.config import Budget, LoadConfig, Shuffle
from joulecache.pipelines.loading.dataset import make_dataset
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.order import Order
from joulecache.pipelines.loading.reader import note_slow_shuffle, open_reader
from joulecache.pipelines.loading.steps import Batches

CHAIN = "decode|resize(20)|random_crop(16) || random_crop(14)|flip_lr"
EPOCHS, BATCH = 4, 4
SAVED_BYTES = 1024
Load = Callable[..., Any]
Listed = list[tuple[bytes, bytes]]


@pytest.fixture(scope="module", params=["ops after the cut", "none"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Cache:
    folder = tmp_path_factory.mktemp("resume") / "cache"
    chain = CHAIN if request.param != "none" else "decode|resize(20)|random_crop(14)"
    precompute(photo_folder, folder, chain, variants=2, val_fraction=0.3, shards=3, seed=5)
    return open_cache(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Cache:
    """A cache with nothing after the cut, whose batches are read several at once."""
    folder = tmp_path_factory.mktemp("resume") / "plain"
    precompute(photo_folder, folder, "decode|resize(16)", val_fraction=0, shards=3, seed=5)
    return open_cache(folder)


def listed(dataset: Any) -> Listed:
    return [(images.tobytes(), labels.tobytes()) for images, labels in dataset.as_numpy_iterator()]


STEPS = {"one batch a step": 1, "two": 2 * BATCH * 14 * 14 * 3, "all": 1 << 30}


def loader_of(step_bytes: int) -> Load:
    """Return `load` with another number of batches read at once: these are the same."""

    def load_by_steps(cache: Cache, split: str, batch_size: int, **options: Any) -> Any:
        budget = Budget(step_bytes=step_bytes, encoded_step_bytes=step_bytes)
        config = LoadConfig(split, batch_size, budget=budget, **options)
        return make_dataset(open_reader(cache, config), config)

    return load_by_steps


@pytest.fixture(params=STEPS)
def load_by_steps(request: pytest.FixtureRequest) -> Load:
    return loader_of(STEPS[request.param])


@pytest.fixture(scope="module")
def expected(cache: Cache) -> list[Listed]:
    dataset = load(cache, "train", BATCH)
    return [listed(dataset) for _ in range(EPOCHS)]


def after(expected: list[Listed], epoch: int, batch: int) -> Listed:
    return [one for batches in expected[epoch:] for one in batches][batch:]


# ------------------------------------------------------------------------------------------ epochs and start


def test_a_dataset_over_epochs_is_them_in_a_row_each_time(
    load_by_steps: Load, cache: Cache, expected: list[Listed]
) -> None:
    dataset = load_by_steps(cache, "train", BATCH, epochs=EPOCHS)
    assert listed(dataset) == listed(dataset) == after(expected, 0, 0)
    assert len(dataset) == EPOCHS * len(expected[0])


def test_looking_at_a_batch_does_not_shift_the_epochs(cache: Cache, expected: list[Listed]) -> None:
    dataset = load(cache, "train", BATCH, epochs=EPOCHS)
    iterator = dataset.as_numpy_iterator()
    came = []
    for images, labels in iterator:
        next(iter(dataset.take(1)))
        came.append((images.tobytes(), labels.tobytes()))
    assert came == after(expected, 0, 0)


def test_it_begins_anywhere(load_by_steps: Load, cache: Cache, expected: list[Listed]) -> None:
    batches = len(expected[0])
    for epoch, batch in [(0, 0), (0, 1), (1, 0), (1, 2), (2, batches - 1), (2, batches), (3, batches - 1)]:
        dataset = load_by_steps(cache, "train", BATCH, epochs=EPOCHS, start=(epoch, batch))
        assert listed(dataset) == after(expected, epoch, batch)
        assert int(dataset.cardinality()) == len(after(expected, epoch, batch))


def test_without_epochs_the_first_iteration_is_the_rest_of_one(
    load_by_steps: Load, cache: Cache, expected: list[Listed]
) -> None:
    for batch in range(len(expected[0])):
        dataset = load_by_steps(cache, "train", BATCH, start=(1, batch))
        assert listed(dataset) == expected[1][batch:]
        assert listed(dataset) == expected[2]
        assert listed(dataset) == expected[3]
        assert int(dataset.cardinality()) == (len(expected[1]) if not batch else tf.data.UNKNOWN_CARDINALITY)


def test_the_end_of_all_epochs_leaves_nothing(cache: Cache, expected: list[Listed]) -> None:
    for start in [(EPOCHS, 0), (EPOCHS - 1, len(expected[0]))]:
        dataset = load(cache, "train", BATCH, epochs=EPOCHS, start=start)
        assert int(dataset.cardinality()) == 0
        assert listed(dataset) == []


@pytest.mark.parametrize("start", [(-1, 0), (0, -1), (0, 1000), 3, (1,), (0.5, 0), None, (0, 0, 0)])
def test_bad_starts_are_refused(cache: Cache, start: Any) -> None:
    with pytest.raises(
        ValueError, match=r"start must be \(epoch, batch\) with epoch >= 0 and batch from 0 to \d+, got"
    ):
        load(cache, "train", BATCH, start=start)


@pytest.mark.parametrize("start", [(3, 1), (4, 0), (9, 2)])
def test_a_start_behind_the_last_epoch_is_refused(cache: Cache, start: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is after the last of 3 epochs"):
        load(cache, "train", BATCH, epochs=3, start=start)


# ------------------------------------------------------------------------------------------ checkpoints


def save(iterator: Any, folder: Path) -> str:
    path: str = tf.train.Checkpoint(iterator=iterator).save(str(folder / "saved"))
    return path


def restored(dataset: Any, path: str) -> Any:
    iterator = iter(dataset)
    tf.train.Checkpoint(iterator=iterator).restore(path)
    return iterator


def rest(iterator: Any) -> Listed:
    return [(images.numpy().tobytes(), labels.numpy().tobytes()) for images, labels in iterator]


@pytest.mark.parametrize(("steps", "shuffle"), [("one batch a step", False), ("two", "blocks"), ("all", True)])
def test_a_restored_iterator_goes_on_with_the_same_bytes(
    cache: Cache, tmp_path: Path, steps: str, shuffle: Shuffle
) -> None:
    load_by_steps = loader_of(STEPS[steps])
    dataset = load_by_steps(cache, "train", BATCH, epochs=EPOCHS, shuffle=shuffle)
    whole = listed(dataset)
    iterator = iter(dataset)
    for taken in range(len(whole)):
        if taken in (0, 1, 8, len(whole) - 1):
            path = save(iterator, tmp_path / str(taken))
            again = restored(load_by_steps(cache, "train", BATCH, epochs=EPOCHS, shuffle=shuffle), path)
            assert rest(again) == whole[taken:]
        next(iterator)


def test_the_state_is_small(load_by_steps: Load, cache: Cache, plain: Cache, tmp_path: Path) -> None:
    for name, folder in (("suffix", cache), ("plain", plain)):
        iterator = iter(load_by_steps(folder, "train", BATCH, epochs=EPOCHS))
        for _ in range(9):
            next(iterator)
        path = save(iterator, tmp_path / name)
        [data] = Path(path).parent.glob("saved-1.data*")
        graph, counter = tf.train.load_variable(path, "_CHECKPOINTABLE_OBJECT_GRAPH"), 8  # what it says of itself
        assert 100 < data.stat().st_size - len(graph) - counter <= SAVED_BYTES


def test_a_state_of_another_dataset_is_refused(cache: Cache, plain: Cache, tmp_path: Path, photo_folder: Path) -> None:
    iterator = iter(load(cache, "train", BATCH, epochs=EPOCHS))
    next(iterator)
    path = save(iterator, tmp_path)
    precompute(photo_folder, tmp_path / "other", CHAIN, variants=2, val_fraction=0.3, shards=3, seed=6)
    others = [
        load(tmp_path / "other", "train", BATCH, epochs=EPOCHS),
        load(plain, "train", BATCH, epochs=EPOCHS),
        load(cache, "train", BATCH + 1, epochs=EPOCHS),
        load(cache, "train", BATCH, epochs=EPOCHS, seed=1),
        load(cache, "train", BATCH, epochs=EPOCHS, shuffle=False),
        load(cache, "train", BATCH, epochs=EPOCHS, hosts=(0, 2)),
        load(cache, "train", BATCH, epochs=EPOCHS, drop_remainder=True),
    ]
    for other in others:
        with pytest.raises(tf.errors.OpError, match="saved from a dataset over other images"):
            rest(restored(other, path))
    assert rest(restored(load(cache, "train", BATCH, epochs=EPOCHS), path)) == rest(iterator)


def test_what_saved_iterators_are_checked_by_is_spelled_as_ever() -> None:
    order, batches = Order(9, 1, "blocks", 2, 3), Batches(3, 6, 4, False, 2)
    assert repr(order) == "Order(records=9, seed=1, shuffle='blocks', block=2, window=3)"
    assert repr(batches) == "Batches(first=3, records=6, batch_size=4, drop_remainder=False, per_step=2)"


def test_a_checkpoint_of_more_epochs_goes_on(cache: Cache, tmp_path: Path) -> None:
    """Two epochs more than were planned: their end is no part of what a position means."""
    iterator = iter(load(cache, "train", BATCH, epochs=1))
    next(iterator)
    path = save(iterator, tmp_path)
    assert (
        rest(restored(load(cache, "train", BATCH, epochs=3), path)) == listed(load(cache, "train", BATCH, epochs=3))[1:]
    )


# ------------------------------------------------------------------------------------------ hosts


@pytest.mark.slow
@given(
    hosts=st.sampled_from([1, 2, 3, 4, 8]),
    batch_size=st.integers(1, 12),
    shuffle=st.sampled_from([True, False, "blocks"]),
)
@settings(max_examples=25, deadline=None)
def test_hosts_together_see_each_record_once(plain: Cache, hosts: int, batch_size: int, shuffle: Any) -> None:
    records = plain.manifest.splits["train"].records
    shares = [load(plain, "train", batch_size, shuffle=shuffle, hosts=(host, hosts)) for host in range(hosts)]
    alone = load(plain, "train", 1000, shuffle=shuffle)
    for _ in range(2):
        parts = [[image.tobytes() for images, _ in share.as_numpy_iterator() for image in images] for share in shares]
        assert {len(part) for part in parts} <= {records // hosts, records // hosts + 1}
        [(whole, _)] = alone.as_numpy_iterator()
        assert [image for part in parts for image in part] == [image.tobytes() for image in whole]
        assert len({image.tobytes() for image in whole}) == records


def test_hosts_that_drop_what_remains_make_the_same_number_of_steps(plain: Cache) -> None:
    for hosts in (2, 4, 7):
        shares = [load(plain, "train", 3, drop_remainder=True, hosts=(host, hosts)) for host in range(hosts)]
        assert {len(share) for share in shares} == {30 // hosts // 3}
        assert {len(listed(share)) for share in shares} == {30 // hosts // 3}


def test_hosts_mix_their_batches_by_draws_of_their_own(tmp_path: Path, photo_folder: Path) -> None:
    precompute(photo_folder, tmp_path / "cache", "decode|resize(8) || mixup(0.4)", val_fraction=0)
    shares = [[labels for _, labels in load(tmp_path / "cache", "train", 15, hosts=(host, 2))] for host in range(2)]
    one, other = (np.unique(np.round(labels[0], 4)) for labels in shares)
    assert set(one) - {0, 1} != set(other) - {0, 1}


def test_an_input_context_says_which_host(plain: Cache) -> None:
    context = tf.distribute.InputContext(num_input_pipelines=3, input_pipeline_id=1)
    assert listed(load(plain, "train", 4, hosts=context)) == listed(load(plain, "train", 4, hosts=(1, 3)))


def test_more_hosts_than_records_are_refused(plain: Cache) -> None:
    with pytest.raises(ValueError, match="31 hosts are more than the 30 records in 'train'"):
        load(plain, "train", 4, hosts=(3, 31))
    with pytest.raises(ValueError, match="leaves nothing of the 30 records, 15 for each of 2 hosts, in 'train'"):
        load(plain, "train", 16, hosts=(1, 2), drop_remainder=True)


_DISTRIBUTED = """
import sys, tensorflow as tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from joulecache.pipelines import load
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
sizes = lambda context: load(sys.argv[1], "train", context.get_per_replica_batch_size(8), shuffle=False, hosts=context)
options = tf.distribute.InputOptions(experimental_fetch_to_device=False)
for dataset in (
    strategy.distribute_datasets_from_function(sizes, options),
    strategy.experimental_distribute_dataset(load(sys.argv[1], "train", 8, shuffle=False), options),
):
    seen = []
    for images, labels in dataset:
        for part in strategy.experimental_local_results(images):
            seen += [image.numpy().tobytes() for image in part]
    [(whole, _)] = load(sys.argv[1], "train", 100, shuffle=False).as_numpy_iterator()
    assert sorted(seen) == sorted(image.tobytes() for image in whole), len(seen)
print("all of them")
"""


@pytest.mark.slow
def test_a_strategy_distributes_it(plain: Cache) -> None:
    done = run_python(_DISTRIBUTED, plain.folder, strict=False)
    assert done.stdout.strip() == "all of them", done.stdout + done.stderr


# ------------------------------------------------------------------------------------------ other arguments


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_are_the_same_levels(plain: Cache, dtype: str) -> None:
    levels, floats = (load(plain, "train", 7, dtype=kind) for kind in ("uint8", dtype))
    assert floats.element_spec[0] == tf.TensorSpec([None, 16, 16, 3], tf.as_dtype(dtype))
    for (one, _), (other, _) in zip(levels, floats, strict=True):
        assert other.dtype == tf.as_dtype(dtype)
        np.testing.assert_array_equal(one.numpy(), tf.cast(other, tf.float32).numpy())


def test_floats_of_the_chain_stay_as_they_are(tmp_path: Path, photo_folder: Path) -> None:
    precompute(photo_folder, tmp_path / "cache", "decode|resize(8) || to_float", val_fraction=0)
    floats, halves = (load(tmp_path / "cache", "train", 30, dtype=kind, shuffle=False) for kind in ("uint8", "float16"))
    [(one, _)], [(other, _)] = floats, halves
    assert one.dtype == tf.float32
    assert float(tf.reduce_max(one)) <= 1
    np.testing.assert_array_equal(one.numpy().astype(np.float16), other.numpy())


def test_full_verification_reads_every_byte(tmp_path: Path, photo_folder: Path) -> None:
    folder = tmp_path / "cache"
    precompute(photo_folder, folder, "decode|resize(16)", val_fraction=0)
    [file] = open_manifest(folder).splits["train"].files
    data = bytearray((folder / file.name).read_bytes())
    assert file.image_offset is not None
    data[file.image_offset + 5] ^= 1
    assert len(listed(load(folder, "train", 4, verify="full"))) == 8
    (folder / file.name).write_bytes(data)
    assert len(listed(load(folder, "train", 4, verify="open"))) == 8
    with pytest.raises(CacheError, match=r"is damaged \(.*its bytes changed.*build it again"):
        load(folder, "train", 4, verify="full")


@pytest.mark.parametrize(
    ("shuffle", "spare", "warned"),
    [
        (None, -1, True),
        (None, 0, False),
        ("blocks", -1, False),
        (False, -1, False),
    ],
)
def test_a_full_shuffle_of_more_than_the_memory_is_noted(
    plain: Cache, caplog: pytest.LogCaptureFixture, shuffle: Any, spare: int, warned: bool
) -> None:
    size = sum(file.bytes for file in plain.manifest.splits["train"].files)
    config = LoadConfig("train", 4, shuffle, budget=Budget(memory_bytes=size + spare))
    reader = open_reader(open_cache(plain), config)
    note_slow_shuffle(reader, config)
    assert ["GB of memory" in message for message in caplog.messages] == [True] * warned


# ------------------------------------------------------------------------------------------ files that change while they are read


@pytest.mark.parametrize("kind", ["arrow", "tfrecord"])
def test_a_file_that_is_cut_between_epochs_is_seen(tmp_path: Path, photo_folder: Path, kind: Any) -> None:
    """To read behind its end would kill the process."""
    folder = tmp_path / "cache"
    precompute(photo_folder, folder, "decode|resize(16)", val_fraction=0, format=kind)
    dataset = load(folder, "train", 4)
    listed(dataset)
    path = folder / open_manifest(folder).splits["train"].files[0].name
    size = path.stat().st_size
    os.truncate(path, 100)
    with pytest.raises(tf.errors.OpError, match=f"has 100 bytes, its manifest says {size}: it changed while"):
        listed(dataset)
    os.truncate(path, size)
    assert len(map_file(path, size)) == size


def test_files_that_are_gone_or_replaced_are_not_missed(tmp_path: Path, photo_folder: Path) -> None:
    folder = tmp_path / "cache"
    precompute(photo_folder, folder, "decode|resize(16)", val_fraction=0, shards=2)
    same = load(folder, "train", 4, epochs=2)
    before = listed(same)
    dataset = load(folder, "train", 4, epochs=2)
    one, other = (folder / file.name for file in open_manifest(folder).splits["train"].files)
    one.unlink()
    other.rename(tmp_path / "away")
    other.write_bytes(b"something else")
    assert listed(dataset) == before
