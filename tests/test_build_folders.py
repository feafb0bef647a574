"""The user's files are safe: which folders a build writes to, what it deletes, and disks that fail."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from caches import CHAIN, OPTIONS, build, contents
from conftest import MakeSource
from PIL import Image
from processes import run_python

from joulecache.pipelines import verify
from joulecache.pipelines.building import shard_memory
from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.local_destination import LocalDestination
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.building.work_folder import WORK, hold_work_folder
from joulecache.pipelines.cache import arrow_shards
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest

STRANGERS = [
    "notes.txt",
    "manifest.json.bak",
    ".hidden",
    "index.arrow",
    "train-v0-1-of-1-1a2b3c4d.arrow",
    "train-v0-00000-of-00001-1a2b3c4d.arrow.bak",
    "my-train-v0-00000-of-00001-1a2b3c4d.arrow",
    "index-1A2B3C4D.arrow",
    "rejected-1a2b3c4d.json",
    ".0123456789abcdef.tmp",
    "x.tmp",
    "folder/train-v0-00000-of-00001-1a2b3c4d.arrow",
    f"{WORK}/mine.txt",
]


def test_only_files_with_names_that_a_build_gives_are_deleted(
    tmp_path: Path, photo_folder: Path, photo_cache: Path
) -> None:
    cache = Path(shutil.copytree(photo_cache, tmp_path / "cache"))
    for name in STRANGERS:
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_bytes(b"precious")
    leftovers = ["train-v0-00000-of-00001-1a2b3c4d.arrow", "index-1a2b3c4d.arrow", f".{'0f' * 16}.tmp"]
    for name in leftovers:
        (cache / name).write_bytes(b"left by a build that was killed")
    build(photo_folder, cache, **{**OPTIONS, "variants": 1})
    assert [name for name in STRANGERS if (cache / name).read_bytes() != b"precious"] == []
    assert [name for name in leftovers if (cache / name).exists()] == []


# Folders that are refused ---------------------------------------------------------------------------------------------


def test_source_and_cache_may_not_overlap(
    tmp_path: Path, make_folder: MakeSource, make_tar: MakeSource, photos: dict[str, bytes]
) -> None:
    source, tar = make_folder(photos), make_tar(photos)
    (tmp_path / "link").symlink_to(source)
    before = contents(source)
    inside = (source, source / "cache", source / "cat", tmp_path / "link" / "cache", source / ".." / source.name)
    for one, cache in [*((source, cache) for cache in (*inside, tmp_path)), (tar, tar.parent)]:
        with pytest.raises(CacheError, match="overlap: choose another cache folder"):
            build(one, cache)
    assert contents(source) == before


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        ".git/config",
        "train-v0-00000-of-00001-1a2b3c4d.arrow",
        f"{WORK}/plan.txt",
        ".0123456789abcdef0123456789abcdef.tmp",
        "manifest.json",
    ],
)
def test_a_full_folder_that_is_no_cache_is_refused_and_untouched(
    tmp_path: Path, photo_folder: Path, name: str, replace: bool
) -> None:
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text('{"name": "my web app"}')
    before = contents(tmp_path)
    with pytest.raises(CacheError):
        build(photo_folder, tmp_path / "mine", replace=replace)
    assert contents(tmp_path) == before


def test_a_file_is_no_folder_for_a_cache(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="is not a folder: choose a folder"):
        build(photo_folder, tmp_path / "file")
    with pytest.raises(BuildError, match="Not a directory"):
        build(photo_folder, tmp_path / "file" / "cache")
    assert contents(tmp_path) == {"file": b"mine"}


def test_an_empty_folder_may_be_filled(tmp_path: Path, photo_folder: Path) -> None:
    assert build(photo_folder, tmp_path, limit=3) == open_manifest(tmp_path)


def test_a_file_that_appears_during_a_failing_build_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"

    def fail() -> None:
        with hold_work_folder(cache):
            (cache / "mine.txt").write_text("precious")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(cache) == {"mine.txt": b"precious"}


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "diary").write_text("precious")
    (tmp_path / "cache" / WORK).mkdir(parents=True)
    (tmp_path / "cache" / WORK / "lock").symlink_to(tmp_path / "diary")
    with pytest.raises(BuildError, match="cannot write to"):
        build(photo_folder, tmp_path / "cache")
    assert (tmp_path / "diary").read_text() == "precious"


# Builds at the same time ----------------------------------------------------------------------------------------------


def test_the_manifest_is_not_rewritten_during_a_build(tmp_path: Path, photo_folder: Path, photo_cache: Path) -> None:
    cache = Path(shutil.copytree(photo_cache, tmp_path / "cache"))
    with hold_work_folder(cache), pytest.raises(CacheError, match=f"being built by process {os.getpid()}"):
        build(photo_folder, cache, **{**OPTIONS, "chain": CHAIN + "|brightness(0.1)"})


def test_a_cache_that_another_build_has_changed_is_not_built_on(
    tmp_path: Path, photo_folder: Path, photo_cache: Path
) -> None:
    cache = Path(shutil.copytree(photo_cache, tmp_path / "cache"))
    destination = LocalDestination(cache)
    assert destination.existing_manifest() == open_manifest(photo_cache)
    build(photo_folder, cache, **{**OPTIONS, "variants": 1})
    with pytest.raises(CacheError, match="modified concurrently: run the command again"), destination.hold(()):
        pass


def test_concurrent_builds_hold_the_folder_one_at_a_time(tmp_path: Path) -> None:
    cache, inside, most = tmp_path / "cache", [], []

    def work() -> None:
        for _ in range(200):
            try:
                with hold_work_folder(cache):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except (CacheError, BuildError):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


# Disks that fail ------------------------------------------------------------------------------------------------------


def test_more_than_the_disk_holds_is_refused_before_the_work(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(BuildError, match="MB free: choose another disk"):
        build(photo_folder, tmp_path / "cache", "decode|resize(4096)", variants=999_999, shards=4)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Callable[[], None]]:
    """Mount a small disk, or skip the test if that is not allowed; yield a function that makes it read-only."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")

    def freeze() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

    try:
        yield freeze
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def noise(count: int) -> dict[str, bytes]:
    """Return images that PNG does not compress."""
    made = {}
    for number in range(count):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (60, 60, 3), np.uint8)).save(stream, "PNG")
        made[f"{number}.png"] = stream.getvalue()
    return made


@pytest.mark.parametrize(
    ("kind", "encoding", "workers"), [("arrow", "raw", 1), ("tfrecord", "png", 1), ("arrow", "raw", 2)]
)
def test_a_full_disk_fails_in_one_line_and_leaves_nothing(
    tmp_path: Path, make_folder: MakeSource, kind: str, encoding: str, workers: int
) -> None:
    source = make_folder(noise(20))
    options = {"format": kind, "encoding": encoding, "shards": 8, "workers": workers}
    with tmpfs(tmp_path / "disk", "240k"):
        with pytest.raises(BuildError, match="No space left on device") as caught:
            build(source, tmp_path / "disk" / "cache", "decode|resize(60)", **options)
        assert "\n" not in str(caught.value)
        assert "None" not in str(caught.value)
        assert contents(tmp_path / "disk") == {}


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_disk_without_room_for_a_large_shard_fails_in_one_line_and_leaves_nothing(
    tmp_path: Path, make_folder: MakeSource, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Its space is reserved, since a full disk would kill a process that writes to a mapped file."""
    monkeypatch.setattr(shard_memory, "PROCESS_BYTES", 0)
    monkeypatch.setattr(LocalDestination, "refuse_full", lambda *_: None)  # something else fills the disk later
    source = make_folder(noise(20))
    with tmpfs(tmp_path / "disk", "120k"):
        cache = tmp_path / "disk" / "cache"
        with pytest.raises(
            BuildError, match=r"^shard 0 has no room on the disk of '.*cache': No space left on device$"
        ):
            build(source, cache, "decode|resize(60)", encoding=encoding, shards=1)
        assert contents(tmp_path / "disk") == {}


LIMITED = """
import resource, sys
import numpy as np
import joulecache as jc
from joulecache.pipelines.building import shard_memory

cache, spare, process_bytes = sys.argv[1], *map(int, sys.argv[2:])
shard_memory.PROCESS_BYTES = process_bytes
options = {"shards": 1, "val_fraction": 0.02}
jc.precompute("synthetic:150", cache + "-first", "decode|resize(1024)", limit=2, **options)  # imports all, starts all threads
used = next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]
limit = 1024 * int(used) + spare
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.empty(2 * spare, np.uint8)
except MemoryError:
    print(jc.precompute("synthetic:150", cache, "decode|resize(1024)", **options).manifest.records)
else:
    sys.exit("this kernel has no limit on memory that is not of files")
"""


@pytest.mark.slow
def test_a_shard_larger_than_the_memory_of_a_process_is_built(tmp_path: Path) -> None:
    """Of 441 MB, 128 are in memory, which may grow by 256; without the files on disk the same build fails."""
    limited = run_python(LIMITED, tmp_path / "in memory", 256 << 20, 1 << 40, strict=False)
    if "this kernel has no limit" in limited.stderr:
        pytest.skip(limited.stderr)
    assert "Unable to allocate 441. MiB" in limited.stderr
    assert not (tmp_path / "in memory").exists()
    built = run_python(LIMITED, tmp_path / "cache", 256 << 20, shard_memory.PROCESS_BYTES, strict=False)
    assert built.stdout == "150\n", built.stderr
    assert verify(tmp_path / "cache") == []


def test_encoded_images_beyond_the_offsets_of_arrow_fail_in_one_line(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_shards, "MOST_BYTES", 1000)
    with pytest.raises(BuildError, match="more than 2 GiB: build the cache with more --shards"):
        build(photo_folder, tmp_path / "cache", encoding="png")
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_up_leaves_the_old_cache(tmp_path: Path, make_folder: MakeSource) -> None:
    source = make_folder(noise(20))
    with tmpfs(tmp_path / "disk", "320k"):
        cache = tmp_path / "disk" / "cache"
        build(source, cache, "decode|resize(30)", shards=2)
        before = contents(cache)
        with pytest.raises(BuildError, match="No space left on device"):
            build(source, cache, "decode|resize(60)", shards=8, replace=True, encoding="png")
        assert contents(cache) == before


def test_a_read_only_disk_fails_in_one_line(tmp_path: Path, photo_folder: Path) -> None:
    with tmpfs(tmp_path / "disk", "2m") as freeze:
        cache = tmp_path / "disk" / "cache"
        build(photo_folder, cache)
        before = contents(tmp_path / "disk")
        freeze()
        for chain in ("decode|resize(16)", CHAIN + "|brightness(0.1)"):
            with pytest.raises(BuildError, match=r"^cannot write to '.*cache': Read-only file system$"):
                build(photo_folder, cache, chain, replace="resize(16)" in chain)
        with pytest.raises(BuildError, match=r"^cannot write to '.*new': Read-only file system$"):
            build(photo_folder, tmp_path / "disk" / "new")
        assert precompute(photo_folder, cache, CHAIN).unchanged
        assert contents(tmp_path / "disk") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_fails_in_one_line(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(BuildError, match="Permission denied"):
        build(photo_folder, tmp_path / "closed" / "cache")
    (tmp_path / "hidden").mkdir(mode=0)
    with pytest.raises(CacheError, match="Permission denied"):
        build(photo_folder, tmp_path / "hidden")
