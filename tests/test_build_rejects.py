"""Nothing is lost: every record is cached, or rejected with its key and reason, and too many rejects fail the build."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caches import CHAIN, build, cached_images, contents, hashes, index_of, is_clean, keys_of, rejects_of
from conftest import MakeSource
from PIL import Image
from sources import classes

from joulecache.pipelines.building.config import BuildConfig, BuildError
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.building.shard import build_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.cache.cache import verify
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.source import ImageFile, Unit, open_source
from joulecache.transforms import Chain, parse


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_broken_images_are_listed_and_the_others_keep_their_pixels(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    broken = {"cat/zero.jpg": b"", "dog/text.png": b"not an image", "été/cut.jpg": photos["cat/00.jpg"][:500]}
    sidecars = {"README.md": b"", "cat/Thumbs.db": b"", "cat/.DS_Store": b"", "dog/notes.md": b""}
    cache = tmp_path / "cache"
    manifest = build(
        make_folder({**photos, **broken, **sidecars}),
        cache,
        variants=2,
        shards=3,
        max_reject_rate=0.2,
        val_fraction=0.2,
    )
    rejects = rejects_of(cache)
    assert [reject["key"] for reject in rejects] == sorted(broken)
    assert all(reject["reason"] for reject in rejects)
    assert [reject["source_bytes"] for reject in rejects] == [0, 12, 500]
    assert manifest.rejected.records == 3
    assert manifest.source.records == 33
    assert manifest.source.skipped == {".DS_Store": 1, ".db": 1, ".md": 2}
    for split in manifest.splits.values():
        for variant in range(split.variants):
            assert sum(file.records for file in split.variant_files(variant)) == split.records
    assert {row["key"] for row in index_of(cache)} == set(photos)
    assert verify(cache) == []
    chain = parse(CHAIN)
    for variant in range(2):
        for key, image in zip(keys_of(cache, "train"), cached_images(cache, "train", variant), strict=True):
            np.testing.assert_array_equal(image, Chain(chain.prefix, chain.cut)(photos[key], key=key, n=variant))


def test_the_advised_reject_rate_is_enough_and_nothing_is_built_twice(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    source, cache = make_folder({**photos, "cat/a.jpg": b"", "cat/b.jpg": b""}), tmp_path / "deep" / "cache"
    with pytest.raises(
        BuildError, match=r"2 of 32 .* 0\.05 allows: cat/a\.jpg: .* pass --max-reject-rate 0\.063"
    ) as caught:
        build(source, cache, shards=4)
    with pytest.raises(CacheError, match="no cache at"):
        open_manifest(cache)
    advised = float(str(caught.value).split("--max-reject-rate ")[1])
    built = precompute(source, cache, CHAIN, shards=4, max_reject_rate=advised)
    assert built.manifest.rejected.records == 2
    assert built.resumed_shards == 4
    assert is_clean(cache)
    again = precompute(source, tmp_path / "other", CHAIN, shards=4, max_reject_rate=advised)
    assert hashes(again.manifest) == hashes(built.manifest)


def test_an_update_that_fails_leaves_the_cache_as_it_was(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    source = make_folder(photos)
    build(source, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    for number in range(20):
        (source / "cat" / f"x{number}.jpg").write_bytes(photos["dog/01.jpg"] if number % 2 else b"")
    with pytest.raises(BuildError, match="max_reject_rate"):
        build(source, tmp_path / "cache")
    after = contents(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    assert verify(tmp_path / "cache") == []


def test_a_source_of_broken_images_is_never_built(tmp_path: Path, make_folder: MakeSource) -> None:
    source = make_folder({"a.jpg": b"", "b.jpg": b""})
    (tmp_path / "empty").mkdir()
    for cache in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(BuildError, match=r"2 of 2 records rejected") as caught:
            build(source, cache, max_reject_rate=1)
        assert "pass --max-reject-rate" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert contents(tmp_path / "empty") == {}  # it was there, and stays


def parquet(path: Path, photos: Sequence[bytes | None], labels: Sequence[int | None], names: Sequence[str]) -> Path:
    images = pa.array(
        [{"bytes": photo, "path": None} for photo in photos], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    features = {"info": {"features": {"label": {"names": list(names)}}}}
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=4)
    return path


def test_a_label_that_is_no_class_is_a_reject(tmp_path: Path, photos: dict[str, bytes]) -> None:
    labels = [0, 1, 2, 3, -1, None, 10**12, 1, 0, 1]
    images = [None if row == 8 else photo for row, photo in enumerate(photos.values()) if row < 10]
    source = parquet(tmp_path / "photos.parquet", images, labels, ["a", "b", "c"])
    manifest = build(source, tmp_path / "cache", max_reject_rate=0.9, val_fraction=0)
    rejects = {reject["key"]: reject["reason"] for reject in rejects_of(tmp_path / "cache")}
    assert list(rejects) == [f"photos.parquet#{row}" for row in (3, 4, 5, 6, 8)]
    assert rejects["photos.parquet#3"] == "label 3 is not one of the 3 classes"
    assert manifest.splits["train"].class_counts == (1, 3, 1)
    assert manifest.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [
        ((31, 90), {"chain": "decode|random_crop(32)"}, "crop 32x32 is larger than the image 90x31"),
        (
            (31, 90),
            {"chain": "decode || random_crop(32)", "val_chain": "decode|resize(32)", "encoding": "png"},
            "crop 32x32 is larger",
        ),
        ((65_520, 1), {"chain": "decode", "encoding": "jpeg"}, "1x65520 pixels cannot be saved as jpeg"),
    ],
    ids=["prefix", "suffix", "encoder"],
)
def test_an_image_that_a_step_cannot_take_is_a_reject(
    tmp_path: Path, photo_folder: Path, size: tuple[int, int], options: dict[str, str], reason: str
) -> None:
    (tmp_path / "odd.png").write_bytes(png(*size))
    units = (*open_source(photo_folder).units[:3], ImageFile("odd.png", str(tmp_path), (0,), "train", 5, 0))
    result = build_shard(spec_of(tmp_path, units, **options))
    [reject] = result.rejects
    assert reject.key == "odd.png"
    assert reason in reject.reason
    assert result.cached_records == 3


def spec_of(folder: Path, units: Sequence[Unit], chain: str, val_chain: str | None = None, **options: Any) -> ShardSpec:
    (folder / WORK).mkdir()
    config = BuildConfig(
        chain=parse(chain), val_chain=parse(val_chain) if val_chain else None, val_fraction=0, **options
    )
    return ShardSpec(str(folder), 0, 1, units, classes(3), config.shard_config(holds_out=False))


def test_a_file_that_is_gone_when_it_is_read_is_a_reject(tmp_path: Path, photo_folder: Path) -> None:
    units = (*open_source(photo_folder).units[:3], ImageFile("gone.jpg", str(tmp_path), (0,), None, 5, 0))
    result = build_shard(spec_of(tmp_path, units, chain="decode|resize(8)"))
    (reject,) = result.rejects
    assert (reject.key, reject.mtime_ns) == ("gone.jpg", None)
    assert reject.reason.startswith("cannot be read: ")
    assert result.cached_records == 3
