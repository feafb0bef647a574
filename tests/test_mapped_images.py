"""Images as they lie: any rows of any number of files, as one array where that is possible."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processes import run_python

from joulecache.pipelines.cache.data_file import DataFile, PixelStats
from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.mapped_images import MappedImages, map_variant
from joulecache.pipelines.cache.names import FORMATS, Format, ShardName
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.shards import write_shard
from joulecache.pipelines.source.features import LABEL, ClassLabel

SIZES = [(32, 32, 3), (7, 5, 1), (1, 1, 3), (64, 64, 1)]


def write(
    folder: Path, counts: list[int], shape: tuple[int, int, int], kind: Format
) -> tuple[list[DataFile], NDArray[np.uint8]]:
    """Write shards of noise; return their entries, and all images."""
    images = np.random.default_rng(sum(counts)).integers(0, 256, (sum(counts), *shape), np.uint8)
    files, start = [], 0
    for shard, count in enumerate(counts):
        levels = PixelStats(1, (0,) * shape[2], (0,) * shape[2])
        keys = [f"{'k' * (shard + 1)}{row}" for row in range(count)]  # records of TFRecord shards differ in size
        numbers = np.arange(count)
        rows = Rows(
            images[start : start + count],
            {LABEL: ClassLabel(())},
            {LABEL: pa.array(numbers)},
            keys,
            numbers.astype(np.uint64),
            levels,
        )
        files.append(write_shard(folder, ShardName("train", 0, shard, len(counts), "0" * 8, kind), rows))
        start += count
    return files, images


def taken(images: MappedImages, rows: list[int], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    out = np.empty((len(rows), *shape), np.uint8)
    images.take(np.array(rows, np.int64), out)
    return out


FULL = """
import pickle, resource, sys
from pathlib import Path
from joulecache.pipelines.cache.mapped_images import map_variant

files, size_pages = pickle.loads(bytes.fromhex(sys.argv[2])), int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size_pages * resource.getpagesize() + 2**24, -1))
map_variant(Path(sys.argv[1]), files, (2000, 1000, 3))
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_more_than_a_process_may_map_is_refused_with_what_to_do(tmp_path: Path, kind: Format) -> None:
    files, _ = write(tmp_path, [3, 1], (2000, 1000, 3), kind)
    done = run_python(FULL, tmp_path, pickle.dumps(files).hex())
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert "CacheError: cannot map 2 files of " in done.stderr
    assert f"may map {most:,} areas (sysctl vm.max_map_count)" in done.stderr
    assert "with fewer --shards" in done.stderr


@given(counts=st.lists(st.integers(1, 90), min_size=1, max_size=6), data=st.data())
@settings(max_examples=30)
def test_any_rows_of_any_files_are_found(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], data: st.DataObject
) -> None:
    shape, folder = data.draw(st.sampled_from(SIZES)), tmp_path_factory.mktemp("any")
    files, images = write(folder, counts, shape, data.draw(st.sampled_from(FORMATS)))
    rows = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=50))
    opened = map_variant(folder, files, shape)
    np.testing.assert_array_equal(taken(opened, rows, shape), images[rows])
    for view, row in zip(opened.views(np.array(rows, np.int64)), rows, strict=True):
        np.testing.assert_array_equal(view, images[row])


def test_arrow_files_are_one_array_and_the_others_are_not(tmp_path: Path) -> None:
    shape = (32, 32, 3)
    files, _ = write(tmp_path, [3, 4], shape, "arrow")
    one = map_variant(tmp_path, files, shape)
    first, last = one.views(np.array([0, 6]))
    assert first.base is last.base
    assert last.ctypes.data - first.ctypes.data == (4 + 3) * 3072  # the second file begins at a row that begins a page
    assert first.ctypes.data % 4096 == 0
    assert not first.flags.writeable
    files, _ = write(tmp_path, [3, 4], shape, "tfrecord")
    first, last = map_variant(tmp_path, files, shape).views(np.array([0, 6]))
    assert first.base is not last.base


def test_images_that_begin_on_no_page_are_read_all_the_same(tmp_path: Path) -> None:
    """Of a manifest that says so: nothing is wrong with such a file, only that it cannot be mapped as a part of one array."""
    shape = (32, 32, 3)
    [file], images = write(tmp_path, [5], shape, "arrow")
    assert file.image_offset is not None
    later = dataclasses.replace(file, image_offset=file.image_offset + 3072, records=4)
    np.testing.assert_array_equal(taken(map_variant(tmp_path, [later], shape), [0, 3], shape), images[[1, 4]])


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    shape = (32, 32, 3)
    files, _ = write(tmp_path, [3, 4], shape, "arrow")
    path = tmp_path / files[1].name
    os.truncate(path, files[1].bytes - 1)
    with pytest.raises(CacheError, match=re.escape(f"{path} has {files[1].bytes - 1} bytes, its manifest says")):
        map_variant(tmp_path, files, shape)


def test_a_map_outlives_its_files_and_goes_with_its_last_view(tmp_path: Path) -> None:
    shape = (64, 64, 1)
    files, images = write(tmp_path, [3, 4], shape, "arrow")
    opened = map_variant(tmp_path, files, shape)
    for file in files:
        (tmp_path / file.name).unlink()
    view = opened.views(np.array([6]))[0]
    del opened
    np.testing.assert_array_equal(view, images[6])
    assert mapped(tmp_path) == 2
    del view
    assert mapped(tmp_path) == 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("encoded", [False, True])
def test_maps_need_no_file_descriptors(tmp_path: Path, kind: Format, encoded: bool) -> None:
    """Where a process may have 1,024 of them, caches have more files."""
    files, images = write(tmp_path, [3, 4], (32, 32, 3), kind)
    if encoded:
        numbers = np.arange(7)
        texts = Rows(
            EncodedColumn.of([image.tobytes() for image in images]),
            {LABEL: ClassLabel(())},
            {LABEL: pa.array(numbers)},
            list("abcdefg"),
            numbers.astype(np.uint64),
            PixelStats(1, (0,), (0,)),
        )
        files = [write_shard(tmp_path, ShardName("val", 0, 0, 1, "0" * 8, kind), texts)]
    before = descriptors()
    opened = map_variant(tmp_path, files, None if encoded else (32, 32, 3))
    assert descriptors() == before
    assert bytes(opened.views(np.array([5]))[0]) == images[5].tobytes()


def descriptors() -> int:
    """How many file descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mapped(folder: Path) -> int:
    """How many parts of files of a folder this process has mapped."""
    return sum(f"{folder}/train" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("kind", ["arrow", "tfrecord"])
@pytest.mark.parametrize(("start", "stop"), [(0, 12), (2, 3), (4, 9), (11, 12)])
def test_reading_ahead_asks_for_the_rows_and_no_others(tmp_path: Path, kind: Format, start: int, stop: int) -> None:
    shape = (64, 64, 1)
    files, images = write(tmp_path, [3, 4, 5], shape, kind)
    opened = map_variant(tmp_path, files, shape)
    opened.disable_readahead()
    opened.read_ahead(start, stop)
    places = [range(first, last) for first, last in opened.addresses(start, stop)]
    for row, view in enumerate(opened.views(np.arange(len(images)))):
        inside = [place for place in places if view.ctypes.data in place]
        assert len(inside) == (start <= row < stop)
        assert all(view.ctypes.data + view.size <= place.stop for place in inside)


@pytest.mark.parametrize("kind", FORMATS)
def test_encoded_images_are_read_ahead_where_they_are_mapped(tmp_path: Path, kind: Format) -> None:
    """Reading ahead from the address of one copy to that of another would take forever."""
    texts = [bytes([row]) * (1000 + row) for row in range(12)]
    numbers, columns = np.arange(12), {LABEL: pa.array(np.arange(12))}
    levels = PixelStats(1, (0,), (0,))
    rows = Rows(
        EncodedColumn.of(texts),
        {LABEL: ClassLabel(())},
        columns,
        list("abcdefghijkl"),
        numbers.astype(np.uint64),
        levels,
    )
    files = [write_shard(tmp_path, ShardName("val", 0, 0, 1, "0" * 8, kind), rows)]
    opened = map_variant(tmp_path, files, None)
    [mapped_part] = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    low, high = (int(address, 16) for address in mapped_part.split()[0].split("-"))
    [(first, last)] = opened.addresses(2, 9)
    assert low <= first < last <= high
    assert last - first < 9 * 1100
    opened.disable_readahead()
    opened.read_ahead(0, 12)
    assert [bytes(view) for view in opened.views(numbers)] == texts


def test_reading_ahead_reads(tmp_path: Path) -> None:
    """What was asked for lies in the page cache, and what was not does not."""
    shape = (64, 64, 3)
    files, images = write(tmp_path, [400], shape, "arrow")
    path = tmp_path / files[0].name
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    opened = map_variant(tmp_path, files, shape)
    opened.disable_readahead()
    before = read_bytes()
    opened.read_ahead(100, 200)
    asked = read_bytes() - before
    if asked == 0:
        pytest.skip("this file system does not count what is read, or keeps it in memory")
    assert 100 * 12288 <= asked <= 100 * 12288 + 2 * 4096
    np.testing.assert_array_equal(taken(opened, [150], shape), images[[150]])
    assert read_bytes() - before == asked


def read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes"):
            return int(line.split()[1])
    raise AssertionError("no read_bytes")
