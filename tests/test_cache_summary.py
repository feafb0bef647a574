"""What `precompute` and `inspect` say about a cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from caches import build
from rich.cells import cell_len
from spatial_sources import drawn, spatial_source

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.manifest import BuildEnergy, HostEnergy
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.report.describe.cache import describe_manifest
from joulecache.pipelines.report.render.markdown import to_markdown
from joulecache.pipelines.source.spatial import Mask
from joulecache.transforms import parse

MakeSource = Callable[[Mapping[str, bytes]], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inspect(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Run `joulecache inspect` in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(cache: Path) -> str:
        code, out, err = run("inspect", cache)
        assert (code, err) == (0, "")
        assert max(map(cell_len, out.splitlines())) <= 80
        return out

    return call


def row(out: str, name: str) -> list[str]:
    """Return the cells of the table row that starts with a name."""
    [line] = [line for line in out.splitlines() if re.match(rf"{re.escape(name)}  ", line)]
    return line.split()[1:]


def test_classes_splits_and_what_is_missing_are_counted(
    make_folder: MakeSource, photos: Mapping[str, bytes], tmp_path: Path, inspect: Callable[[Path], str]
) -> None:
    others = {f"cat/{n}.HEIC": b"x" for n in range(20)} | {f"dog/{n}.txt": b"x" for n in range(3)}
    source = make_folder({**photos, **others, "dog/broken.jpg": b"no picture"})
    cache = tmp_path / "cache"
    manifest = build(source, cache, "decode|resize(8) || flip_lr", val_fraction=0.3)
    out = inspect(cache)
    train, val = (manifest.splits[name] for name in ("train", "val"))
    assert (row(out, "Split"), row(out, "Class")) == (["train", "val"], ["train", "val"])
    assert row(out, "Records") == [str(train.records), str(val.records)]
    counts = {name: list(map(int, row(out, name))) for name in ("cat", "dog", "été")}
    assert {name: sum(of) for name, of in counts.items()} == {"cat": 10, "dog": 10, "été": 10}
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [train.records, val.records]
    text = " ".join(out.split())
    assert "Skipped 23 (.heic: 20, .txt: 3)." in text
    assert f"Rejected1record,listedin{cache / manifest.rejected.name}." in text.replace(" ", "")
    assert re.search(r"Energy of the build: [\d.]+ .?J \([\d.]+ to [\d.]+\) active, (modelled|measured);", text)


def test_nothing_is_said_of_rejects_and_other_files_where_there_are_none(
    photo_cache: Path, inspect: Callable[[Path], str]
) -> None:
    out = inspect(photo_cache)
    assert "eject" not in out
    assert "kipped" not in out


@pytest.mark.parametrize(
    ("first", "counts"), [(1, "1 record each: class 00 (1)"), (2, "1 to 2 records each: class 00 (2)")]
)
def test_of_many_classes_the_first_twenty_are_shown(
    first: int, counts: str, make_folder: MakeSource, photo: bytes, tmp_path: Path, inspect: Callable[[Path], str]
) -> None:
    files = {f"class {n:02d}/{m}.jpg": photo for n in range(25) for m in range(first if n == 0 else 1)}
    build(make_folder(files), tmp_path / "cache", "decode|resize(8)")
    text = " ".join(inspect(tmp_path / "cache").split())
    assert f"25 classes, {counts}, class 01 (1)," in text
    assert "class 19 (1) and 5 more." in text
    assert "class 20" not in text


@pytest.mark.parametrize(
    ("chain", "variants", "fact"),
    [
        ("decode|resize(9)|random_crop(8)|flip_lr", 1, "random_crop and flip_lr are drawn once: every epoch repeats"),
        (
            "decode|resize(9)|random_crop(8) || flip_lr",
            3,
            "random_crop is drawn 3 times: epoch e reads variant e mod 3.",
        ),
        ("decode|resize(9) || random_crop(8)|flip_lr", 1, ""),
    ],
)
def test_cached_draws_are_counted(
    photo_folder: Path, tmp_path: Path, inspect: Callable[[Path], str], chain: str, variants: int, fact: str
) -> None:
    build(photo_folder, tmp_path / "cache", chain, variants=variants)
    text = " ".join(inspect(tmp_path / "cache").split())
    assert fact in text
    assert ("drawn" in text) == bool(fact)


def test_an_update_says_what_it_computed(
    make_folder: MakeSource, photos: Mapping[str, bytes], photo: bytes, tmp_path: Path, run: Run
) -> None:
    source = make_folder(photos)
    command = ("precompute", source, tmp_path / "cache", "--chain", "decode|resize(8)")
    for added, said in ((None, ""), ("cat/new.jpg", "Computed 1 of 31 images"), (None, "Up to date: nothing to build")):
        if added is not None:
            (source / added).write_bytes(photo)
        code, out, _ = run(*command)
        assert code == 0
        assert said in out
        assert ("Computed" in out, "Up to date" in out) == ("Computed" in said, "Up to date" in said)
    assert open_manifest(tmp_path / "cache").records == 31


def test_a_number_stays_with_its_unit(photo_cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in range(40, 100, 3):
        monkeypatch.setenv("COLUMNS", str(width))
        out = run("inspect", photo_cache)[1]
        assert not re.search(r"\d\n(?:.?J|.?B|.?s)\b", out)


# Draws that every epoch repeats ---------------------------------------------------------------------------------------


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the library logs; a command that ran before in this process may have raised the level."""
    caplog.set_level(logging.WARNING, "joulecache")
    return caplog


def test_draws_that_every_epoch_repeats_are_noted_before_the_build(
    photo_folder: Path, tmp_path: Path, run: Run, notes: pytest.LogCaptureFixture
) -> None:
    frozen, fixed = "decode|resize(9)|random_crop(8)|flip_lr", "decode|resize(9) || random_crop(8)|flip_lr"
    code, _, err = run("precompute", photo_folder, tmp_path / "cache", "--chain", frozen, "--json")
    assert code == 0
    note = (
        "random_crop and flip_lr are cached and drawn once, so every epoch repeats the same images: use the chain "
        f'"{fixed}" to draw in every epoch, or store K draws with --variants K (variants=K)'
    )
    assert err == f"joulecache: note: {note}\n"
    assert run("precompute", photo_folder, tmp_path / "cache", "--chain", frozen)[2] == ""  # up to date
    notes.clear()
    build(photo_folder, tmp_path / "python", frozen)
    assert notes.messages == [note]


@pytest.mark.parametrize(
    ("chain", "options"),
    [
        ("decode|resize(9) || random_crop(8)", {}),
        ("decode|resize(9)|random_crop(8) || flip_lr", {}),  # the user placed the cut: the summary says it
        ("decode|resize(9)|random_crop(8)", {"variants": 2}),
        ("decode|resize(9)", {}),
    ],
)
def test_nothing_is_noted_of_other_draws(
    photo_folder: Path, tmp_path: Path, notes: pytest.LogCaptureFixture, chain: str, options: dict[str, int]
) -> None:
    build(photo_folder, tmp_path / "cache", chain, **options)
    assert not notes.messages


def test_variants_that_hold_the_same_images_are_noted(
    photo_folder: Path, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    build(photo_folder, tmp_path / "cache", "decode|resize(9) || random_crop(8)", variants=2)
    assert notes.messages == [
        "no op before the cut is random, so the 2 variants hold the same images: build one, with --variants 1 (variants=1)"
    ]


def test_no_cut_is_proposed_where_images_have_no_size_before_it(
    photo_folder: Path, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    build(photo_folder, tmp_path / "cache", "decode|random_resized_crop(8)")
    [note] = notes.messages
    assert note.startswith(
        "random_resized_crop is cached and drawn once, so every epoch repeats the same images: store K"
    )


def test_masks_boxes_and_points_are_described(tmp_path: Path, inspect: Callable[[Path], str]) -> None:
    units = [drawn(number) for number in range(14)]
    config = BuildConfig(chain=parse("decode|resize(32)"), val_fraction=0.3, variants=2)
    manifest = build_cache(spatial_source(units=units), tmp_path / "cache", config, Meter()).manifest
    out = inspect(tmp_path / "cache")
    train = manifest.split("train")
    targets, images = train.targets or {}, train.records * 2
    area, objects, joints = (targets[name] for name in ("area", "objects", "joints"))
    for name in ("area (mask)", "objects (boxes)", "joints (points)", "age (value)"):
        assert f"Target {name}:" in out
    assert area.counts is not None
    assert objects.counts is not None
    assert joints.counts is not None
    assert joints.low is not None
    pixels = images * 32 * 32
    assert row(out, "Empty (only 0 and 255)")[-2] == f"{(area.empty or 0) / images:.1%}"
    assert row(out, "fur")[0] == f"{area.counts[1] / pixels:.1%}"
    assert row(out, "no class (255)")[-2] == f"{1 - sum(area.counts) / pixels:.1%}"
    assert float(row(out, "Boxes per image")[-2]) == pytest.approx(sum(objects.counts) / images, rel=0.01)
    assert row(out, "Most in an image")[-2] == str(objects.most)
    assert row(out, "paw")[0] == str(objects.counts[1])
    assert row(out, "3")[0] == str(joints.counts[3])
    assert f"{joints.low:.6g} to" in out
    assert "Masks, boxes and points are counted in all variants." in out


def test_masks_without_names_are_described_by_their_ids(tmp_path: Path, inspect: Callable[[Path], str]) -> None:
    features = {"ids": Mask()}
    units = [drawn(number, features) for number in range(6)]
    config = BuildConfig(chain=parse("decode|resize(32)"), val_fraction=0)
    manifest = build_cache(spatial_source(units=units, features=features), tmp_path / "cache", config, Meter()).manifest
    counts = (manifest.split("train").targets or {})["ids"].counts
    assert counts is not None
    assert [row(inspect(tmp_path / "cache"), str(number))[0] for number in range(2)] == [
        f"{count / (6 * 32 * 32):.1%}" for count in counts
    ]


def test_the_energy_of_a_build_on_several_hosts_is_shown_by_host(
    photo_cache: Path, inspect: Callable[[Path], str]
) -> None:
    manifest = open_manifest(photo_cache)
    assert manifest.energy is not None
    energy = manifest.build_energy
    assert "The processes that built shards used" in " ".join(inspect(photo_cache).split())
    hosts = (HostEnergy("head", energy, None, 0), HostEnergy("node-1", None, energy / 2, 2))
    spent = BuildEnergy(energy + energy / 2, manifest.energy.provenance, hosts, (1, 3))
    document = describe_manifest(replace(manifest, energy=spent))
    text = " ".join(to_markdown(document).split())
    assert "Energy of the build by host" in text
    assert "head" in text
    assert "node-1" in text
    assert "Energy of the build: at least" in text
    assert "Part of the work on 2 of 4 shards is not in it, since workers ended before they reported." in text
    old = describe_manifest(replace(manifest, energy=None))
    assert "Energy of the build: not measured" in to_markdown(old)
