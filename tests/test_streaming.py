"""Caches in object stores that are read while their shards arrive, with a limit to what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from processes import environment, python, run_python, wait_until
from store_proxy import StoreProxy, store_proxy

import joulecache as jc
from joulecache.pipelines.cache import fetching, local_shards
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.local_shards import LocalShards
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.core import object_store
from joulecache.pipelines.core.object_store import ObjectFolder
from joulecache.pipelines.loading.config import Budget, LoadConfig
from joulecache.pipelines.loading.dataset import make_dataset
from joulecache.pipelines.loading.numpy_batches import NumPyBatches
from joulecache.pipelines.loading.opening import open_steps

CHAIN = "decode|resize(20)|random_crop(16) || flip_lr"
BUDGET = Budget(step_bytes=5_000, encoded_step_bytes=5_000, block_bytes=2_000, window_bytes=20_000)
SMALL: dict[str, Any] = {"shuffle": "blocks", "epochs": 2, "budget": BUDGET}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a cache of many small shards, with masks, boxes and points."""
    folder = tmp_path_factory.mktemp("streamed")
    targets = ["label", "mask", "boxes", "points"]
    jc.precompute("synthetic:200", folder / "cache", CHAIN, shards=40, variants=2, target=targets, val_fraction=0.1)
    return folder / "cache"


@pytest.fixture
def proxy(bucket: str, here: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProxy]:
    """Upload the cache; return the proxy before its store."""
    with store_proxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(fetching, "_PAUSE_S", 0.01)
        for path in here.iterdir():
            ObjectFolder(f"{bucket}/cache").write(path.name, path.read_bytes())
        yield proxy


@pytest.fixture
def there(proxy: StoreProxy, bucket: str) -> str:
    """Return the URL of the cache."""
    return f"{bucket}/cache"


def manifest_of(cache: Path) -> Manifest:
    return jc.open_cache(cache).manifest


def limit_of(cache: Path, split: str = "train") -> int:
    """Return a tenth of the cache and the index."""
    manifest = manifest_of(cache)
    return sum(file.bytes for file in manifest.splits[split].files) // 10 + manifest.index.bytes


def opened(cache: str | Path, limit: int = 10**9, split: str = "train", **options: Any) -> NumPyBatches:
    config = LoadConfig(split, 8, **{**SMALL, **options})
    return NumPyBatches(lambda: open_steps(cache, config, verify="open", ops=None, stage_limit_bytes=limit), config)


def flat(tree: Any) -> list[NDArray[Any]]:
    if isinstance(tree, dict):
        return [each for key in sorted(tree) for each in flat(tree[key])]
    return [each for part in tree for each in flat(part)] if isinstance(tree, tuple) else [np.asarray(tree)]


def content(batches: Any) -> list[list[bytes]]:
    return [[array.tobytes() for array in flat(batch)] for batch in batches]


def local_folder(tmp_path: Path) -> Path:
    [folder] = (tmp_path / "staged").iterdir()
    return folder


def used(folder: Path) -> int:
    """Return the bytes of all shards and parts of shards; files may come and go."""
    total = 0
    for entry in os.scandir(folder):
        if entry.name.endswith((".arrow", ".part", ".tmp")):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
    return total


def test_the_stream_is_that_of_a_local_cache_within_the_limit(
    there: str, here: Path, proxy: StoreProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, seen = limit_of(here), []
    reserve = LocalShards._reserve

    def watched(self: LocalShards, file: Any) -> Any:
        found = reserve(self, file)
        seen.append(used(self.folder))
        return found

    monkeypatch.setattr(LocalShards, "_reserve", watched)
    streamed = opened(there, limit)
    assert content(streamed) == content(opened(here))
    assert max(seen) <= limit
    assert used(local_folder(tmp_path)) <= limit
    shards = manifest_of(here).splits["train"].files
    # once per epoch, and perhaps the first ones of a third epoch
    assert {proxy.reads[file.name] for file in shards} <= {1, 2}
    assert sum(proxy.reads[file.name] for file in shards) < 1.3 * len(shards)


@pytest.mark.parametrize("shuffle", ["blocks", False])
def test_a_cache_that_fits_is_fetched_once(there: str, here: Path, proxy: StoreProxy, shuffle: Any) -> None:
    streamed = opened(there, shuffle=shuffle)
    assert content(streamed) == content(opened(here, shuffle=shuffle))
    reads = proxy.reads.copy()
    assert content(opened(there, shuffle=shuffle)) == content(opened(here, shuffle=shuffle))
    assert proxy.reads - reads == {"manifest.json": 1}
    assert max(reads.values()) == 1
    assert all("val-" not in name for name in reads)


def test_only_shards_with_selected_records_are_fetched(there: str, here: Path, proxy: StoreProxy) -> None:
    keys = jc.open_cache(here).rows("train")["key"].to_pylist()
    split, place = manifest_of(here).splits["train"], 2
    first = sum(file.records for file in split.variant_files(0)[:place])
    where = f"key in {tuple(keys[first : first + 2])}"
    assert content(opened(there, where=where)) == content(opened(here, where=where))
    expected = {split.variant_files(variant)[place].name for variant in range(split.variants)}
    assert {name for name in proxy.reads if name.startswith("train")} == expected


def test_all_views_of_a_step_are_there(there: str, here: Path) -> None:
    options: dict[str, Any] = {"views": 2, "targets": (), "start": (1, 0)}
    assert content(opened(there, 4 * limit_of(here), **options)) == content(opened(here, **options))


def test_reading_begins_before_all_has_arrived(there: str, here: Path, proxy: StoreProxy) -> None:
    arrived, go_on = [], threading.Event()

    def before(name: str) -> None:
        if name.startswith("train"):
            arrived.append(name)
            if len(arrived) > 20:
                go_on.wait(60)

    proxy.before = before
    iterator = iter(opened(there, limit_of(here) * 4))
    next(iterator)
    go_on.set()
    assert len(content(iterator)) == len(opened(here)) - 1


@pytest.mark.slow
def test_hosts_and_resumed_iterators_read_the_same(there: str, here: Path) -> None:
    limit = 2 * limit_of(here)  # for several readers at once
    shares = [opened(there, limit, hosts=(host, 3), drop_remainder=True) for host in range(3)]
    assert [content(share) for share in shares] == [
        content(opened(here, hosts=(host, 3), drop_remainder=True)) for host in range(3)
    ]
    first = opened(there, limit)
    iterator = iter(first)
    begun = [content([next(iterator)])[0] for _ in range(41)]
    rest = opened(there, limit)
    rest.restore(first.state())
    assert begun + content(rest) == content(opened(here))


def test_tf_data_reads_the_same_and_chooses_blocks(there: str, here: Path) -> None:
    config = LoadConfig("train", 8, epochs=2, budget=BUDGET)
    reader = open_steps(there, config, verify="open", ops=None, stage_limit_bytes=limit_of(here))
    assert reader.order.shuffle == "blocks"
    found = make_dataset(reader, config).as_numpy_iterator()
    assert content(found) == content(opened(here))
    whole = jc.batches(there, "train", 8)
    assert content(whole) == content(jc.batches(here, "train", 8))
    with pytest.raises(
        CacheError, match='a full shuffle needs all of it: use shuffle="blocks", or raise stage_limit_bytes'
    ):
        jc.load(there, "train", 8, shuffle=True, stage_limit_bytes=limit_of(here))
    with pytest.raises(CacheError, match="and balance needs all of it: raise stage_limit_bytes"):
        jc.load(there, "train", 8, balance="label", stage_limit_bytes=limit_of(here))
    with pytest.raises(CacheError, match=r"of which two need .* GB on this machine, got .*: raise stage_limit_bytes"):
        jc.load(there, "train", 8, stage_limit_bytes=10_000)


def test_a_broken_connection_goes_on_and_damage_is_an_error(there: str, here: Path, proxy: StoreProxy) -> None:
    shard = manifest_of(here).splits["train"].files[3].name
    proxy.change = lambda name, data: data[:3000] if name == shard and len(data) > 6000 else data
    assert content(opened(there, epochs=1)) == content(opened(here, epochs=1))
    assert proxy.reads[shard] > 1
    proxy.change = lambda name, data: data[:-1] + b"x" if name.startswith("train-v1") else data
    with pytest.raises(
        CacheError, match=r"^s3://\S+/train-v1-\S+ arrived with SHA-256 \w{8}, its manifest says \w{8}: it is damaged"
    ) as caught:
        content(opened(there, start=(1, 0)))
    assert "\n" not in str(caught.value)
    damaged = str(caught.value).partition(" ")[0].rpartition("/")[2]
    assert proxy.reads[damaged] % 3 == 0  # the first reader may fetch ahead for another epoch


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_an_error(
    there: str, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "1s")
    object_store._open_store.cache_clear()
    monkeypatch.setattr(local_shards, "_PATIENCE_S", 1)
    streamed = opened(there)
    go_on = threading.Event()
    proxy.before = lambda name: go_on.wait(60)
    with pytest.raises(CacheError, match=r"^s3://\S+ does not answer: nothing of train-\S+ arrived in 2 s$"):
        content(streamed)
    go_on.set()


@pytest.mark.slow
def test_a_folder_without_room_is_an_error(
    there: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_shards, "_PATIENCE_S", 1)
    limit = limit_of(here)
    reader = opened(there, limit)
    files = manifest_of(here).splits["train"].files
    other = LocalShards(ObjectFolder(there), local_folder(tmp_path), limit)
    with (
        other.holding(files[:7]),
        pytest.raises(CacheError, match=r"^no room for train-\S+ in .* raise stage_limit_bytes$"),
    ):
        content(reader)
    other.close()
    assert content(reader) == content(opened(here))


READ = """
import sys
import numpy as np
import joulecache as jc
from joulecache.pipelines.loading.config import Budget, LoadConfig
from joulecache.pipelines.loading.numpy_batches import NumPyBatches
from joulecache.pipelines.loading.opening import open_steps
budget = Budget(step_bytes=5_000, encoded_step_bytes=5_000, block_bytes=2_000, window_bytes=20_000)
config = LoadConfig("train", 8, "blocks", epochs=2, budget=budget)
url, limit = sys.argv[1], int(sys.argv[2])
batches = NumPyBatches(lambda: open_steps(url, config, verify="open", ops=None, stage_limit_bytes=limit), config)
print(sum(int(images.sum()) for images, _ in batches), flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_a_folder(there: str, here: Path, tmp_path: Path) -> None:
    limit = 2 * limit_of(here)
    children = [
        subprocess.Popen(python(READ, there, limit), stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    expected = sum(int(images.sum()) for images, _ in opened(here))
    assert [int(child.communicate(timeout=120)[0]) for child in children] == [expected, expected]
    assert used(local_folder(tmp_path)) <= limit


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_removed(there: str, here: Path, proxy: StoreProxy, tmp_path: Path) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def before(name: str) -> None:
        if proxy.reads.total() > 9:
            begun.set()
            go_on.wait(60)

    proxy.before = before
    with subprocess.Popen(python(READ, there, 10**9), env=environment()) as child:
        wait_until(begun.is_set, child)
        child.send_signal(signal.SIGKILL)
    go_on.set()
    proxy.before = lambda name: None
    folder = local_folder(tmp_path)
    files = {file.name: file for file in manifest_of(here).files()}
    left = {path.name for path in folder.iterdir()}
    assert any(name.endswith(".part") for name in left)
    for name in left & files.keys():
        assert (folder / name).stat().st_size == files[name].bytes
    assert content(opened(there)) == content(opened(here))
    left = {path.name for path in folder.iterdir()} - files.keys()
    assert {name.rpartition(".")[2] for name in left} <= {"lock", "lease"}


@pytest.mark.slow
def test_the_interpreter_ends_while_the_store_does_not_answer(there: str, proxy: StoreProxy) -> None:
    go_on = threading.Event()
    proxy.before = lambda name: name.startswith("train") and go_on.wait(60)
    ended = run_python(
        READ.rpartition("print(")[0]
        + "import threading, time\nthreading.Thread(target=lambda: next(iter(batches)), daemon=True).start()\ntime.sleep(0.5)\n",
        there,
        10**9,
        limit_s=60,
        strict=False,
    )
    go_on.set()
    assert ended.returncode == 0, ended.stderr
