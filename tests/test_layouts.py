"""Folders as people have them: which are splits and classes, what is left out with a note, and what is refused with the way out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import MakeSource
from sources import labels, splits, write_parquet

from joulecache.pipelines import precompute
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.source import Source, SourceConfig, SourceError, open_source

Splits = Mapping[str, str]


def images(*folders: str, count: int = 3, suffix: str = "jpg") -> list[str]:
    """Name images in folders."""
    return [f"{folder}/{number}.{suffix}" for folder in folders for number in range(count)]


def crossed(*folders: str, inside: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    """Name images in folders that have the same folders."""
    return images(*(f"{folder}/{name}" for folder in folders for name in inside))


def summary(source: Source) -> dict[str | None, set[str]]:
    """Return the classes of each split; None where a hash decides."""
    split_of = splits(source)
    found: dict[str | None, set[str]] = {}
    for key, name in labels(source).items():
        found.setdefault(split_of[key], set()).add(name)
    return found


BOTH = {"cat", "dog"}
FOUND = [
    # splits under the names that people give them
    pytest.param(crossed("training_set", "test_set"), None, {None: BOTH, "test": BOTH}, id="training_set, test_set"),
    pytest.param(
        crossed("trainset", "testset", "valset"), None, dict.fromkeys(("train", "val", "test"), BOTH), id="trainset"
    ),
    pytest.param(
        crossed("seg_train/seg_train", "seg_test/seg_test"), None, {None: BOTH, "test": BOTH}, id="Kaggle: twice"
    ),
    pytest.param(crossed("train2017", "val2017"), None, {"train": BOTH, "val": BOTH}, id="COCO: years"),
    pytest.param(crossed("dataTrain", "dataHoldOut"), None, {None: BOTH, "test": BOTH}, id="capitals"),
    pytest.param(crossed("train", "validate"), None, {"train": BOTH, "val": BOTH}, id="validate"),
    pytest.param(crossed("train", "test1"), None, {None: BOTH, "test": BOTH}, id="test1"),
    pytest.param(
        [*images("train"), *images("test1")], None, {None: {"all"}, "test": {"all"}}, id="Kaggle: dogs vs cats"
    ),
    pytest.param(crossed("Train_Data", "hold-out"), None, {None: BOTH, "test": BOTH}, id="hold-out"),
    pytest.param(crossed("train", "eval"), None, {None: BOTH, "test": BOTH}, id="eval is test"),
    pytest.param(
        crossed("train", "dev", "evaluation"), None, dict.fromkeys(("train", "val", "test"), BOTH), id="dev is val"
    ),
    pytest.param(
        crossed("train", "eval", "test"), None, dict.fromkeys(("train", "val", "test"), BOTH), id="eval is val"
    ),
    pytest.param(
        crossed("cat", "dog", inside=("train", "test")), None, {None: BOTH, "test": BOTH}, id="splits in classes"
    ),
    # named by the user
    pytest.param(
        crossed("siteA", "siteB"), {"train": "siteA", "test": "siteB"}, {None: BOTH, "test": BOTH}, id="given"
    ),
    pytest.param(
        crossed("a/b/one", "a/b/two"),
        {"train": "a/b/one", "val": "two"},
        {"train": BOTH, "val": BOTH},
        id="given paths",
    ),
    pytest.param(crossed("cat", "dog", inside=("left", "right")), {"train": "."}, {None: BOTH}, id="given classes"),
    pytest.param(
        images("cat", "dog", "late/cat"),
        {"train": ".", "test": "late"},
        {None: BOTH, "test": {"cat"}},
        id="the rest is train",
    ),
    # no splits
    pytest.param(images("train", "bus", "car"), None, {None: {"train", "bus", "car"}}, id="vehicles"),
    pytest.param(images("test_tube", "beaker"), None, {None: {"test_tube", "beaker"}}, id="no split"),
    pytest.param(images("mask", "no_mask"), None, {None: {"mask", "no_mask"}}, id="masks of people"),
    pytest.param(images("face", "face_mask"), None, {None: {"face", "face_mask"}}, id="masks on faces"),
    pytest.param(images("test1", "test2"), None, {None: {"test1", "test2"}}, id="numbered tests"),
    pytest.param(images("0", "1", "2"), None, {None: {"0", "1", "2"}}, id="digits"),
    pytest.param(images("patient1", "patient2"), None, {None: {"patient1", "patient2"}}, id="numbered classes"),
    pytest.param(images("train/cat", "train/dog"), None, {None: BOTH}, id="train alone"),
    pytest.param(images("cat/siamese", "cat/tabby", "dog/pug"), None, {None: BOTH}, id="folders in classes"),
    pytest.param(images("a/cat/x/1", "a/cat/y/2", "a/dog/x/3"), None, {None: BOTH}, id="deep"),
]


@pytest.mark.parametrize(("files", "given", "expected"), FOUND)
def test_known_layouts_are_read(
    files: list[str],
    given: Splits | None,
    expected: dict[str | None, set[str]],
    make_folder: MakeSource,
    make_tar: MakeSource,
) -> None:
    for make in (make_folder, make_tar):
        assert summary(open_source(make(dict.fromkeys(files, b"")), SourceConfig(splits=given))) == expected


REFUSED = [
    pytest.param(
        crossed("siteA", "siteB"), "same folders ('cat', 'dog')", {"train": "siteA", "test": "siteB"}, id="unknown"
    ),
    pytest.param(crossed("cat", "dog", inside=("left", "right")), "same folders", {"train": "."}, id="two sides"),
    pytest.param(
        crossed(*(f"fold{n}" for n in range(5))), "same folders", {"train": "fold0", "test": "fold1"}, id="folds"
    ),
    pytest.param(
        crossed("train", "test", "other"), "'other' is not", {"train": "train", "test": "test"}, id="one unknown"
    ),
    pytest.param(
        crossed("train", "pred"), "but not 'pred'", {"train": "train", "test": "pred"}, id="train and another"
    ),
    pytest.param(
        images("cat", "dog", "test"),
        "'test' looks like a split, but not 'cat', 'dog'",
        {"train": ".", "test": "test"},
        id="only test",
    ),
    pytest.param(
        crossed("Train", "valid", "val", "test"),
        "both val",
        {"train": "Train", "val": "val", "test": "test"},
        id="val twice",
    ),
    pytest.param(crossed("val", "test"), "there is no train", {"train": "."}, id="no train"),
    pytest.param(
        images("train", "train_labels", "val", "val_labels"),
        "'train_labels' and 'val_labels' are not",
        {"train": "train", "val": "val"},
        id="CamVid",
    ),
    pytest.param(
        crossed("fold1", "fold2", "holdout"),
        "'holdout' looks like a split, but not 'fold1', 'fold2'",
        {"train": "fold1", "test": "holdout"},
        id="folds and holdout",
    ),
    pytest.param(
        crossed("learn", "eval"),
        "'eval' looks like a split, but not 'learn'",
        {"train": "learn", "test": "eval"},
        id="eval and another",
    ),
    pytest.param(
        crossed("train", "test1", "test2"), "are both test", {"train": "train", "test": "test1"}, id="test1 and test2"
    ),
    pytest.param(
        images("trainA", "trainB", "testA", "testB"),
        "'testA' and 'trainA' are splits, but 'testB' and 'trainB' are not",
        {"train": "trainA", "test": "testA"},
        id="CycleGAN",
    ),
    pytest.param(
        crossed("photos_train", "new_test"),
        "'new_test' and 'photos_train' look like splits with different names",
        {"train": "photos_train", "test": "new_test"},
        id="different names",
    ),
    pytest.param(images("images", "masks"), "'masks' looks like masks", {"train": "."}, id="masks"),
    pytest.param(images("imgs", "imgs_masks"), "'imgs_masks' looks like masks", {"train": "."}, id="imgs_masks"),
    pytest.param(images("train", "train_masks"), "'train_masks' looks like masks", {"train": "."}, id="Carvana"),
    pytest.param(images("TR-Image", "TR-Ground_Truth"), "'TR-Ground_Truth' looks", {"train": "."}, id="ground truth"),
    pytest.param(
        images("HAM10000_images_part_1", "HAM10000_images_part_2"),
        "look like parts of one set, not like classes: give the classes of all images in a table, --labels FILE",
        {"train": "."},
        id="HAM10000: parts",
    ),
    pytest.param(
        images("images_001/images", "images_002/images"),
        "'images_001', 'images_002' look like parts",
        {"train": "."},
        id="ChestX-ray14: parts",
    ),
    pytest.param(
        crossed("train", "test", inside=("images", "masks")),
        "pass --splits",
        {"train": "train/images", "test": "test/images"},
        id="masks in splits",
    ),
    pytest.param(
        images("JPEGImages", "SegmentationClass"),
        "give its folder 'JPEGImages' as the source",
        {"train": "."},
        id="VOC",
    ),
    pytest.param(
        images("cat", "dog") + [f"{n}.jpg" for n in range(6)], "6 of 12 images are not in class", None, id="loose"
    ),
    pytest.param(
        images("train", "test/cat", "test/dog"),
        "3 of 3 images of split train are not",
        None,
        id="train without classes",
    ),
]


@pytest.mark.parametrize(("files", "problem", "way_out"), REFUSED)
def test_ambiguous_layouts_are_refused_with_a_way_out(
    files: list[str], problem: str, way_out: Splits | None, make_folder: MakeSource, make_tar: MakeSource
) -> None:
    for make in (make_folder, make_tar):
        path = make(dict.fromkeys(files, b""))
        with pytest.raises(SourceError, match=re.escape(problem)) as refused:
            open_source(path)
        if way_out is None:
            assert "--labels" in str(refused.value)
            continue
        option = ",".join(f"{split}={name}" for split, name in way_out.items())
        assert f"--splits {option}" in str(refused.value)
        assert open_source(path, SourceConfig(splits=way_out)).records > 0


LEFT_OUT = [
    pytest.param(
        [*images("cat", "dog"), "cover.jpg"],
        {None: BOTH},
        {"(next to class folders)": 1},
        ["1 image next to the class folders is left out, such as 'cover.jpg'"],
        id="stray",
    ),
    pytest.param(
        [*crossed("train", "test"), "cover.jpg", "train/a.jpg", "train/b.jpg"],
        {None: BOTH, "test": BOTH},
        {"(next to class folders)": 2, "(outside the splits)": 1},
        [
            "2 images next to the class folders are left out, such as 'train/a.jpg'",
            "1 image outside the splits is left out, such as 'cover.jpg'",
        ],
        id="strays in splits",
    ),
    pytest.param(
        images("train/ok", "train/nok", "test"),
        {None: {"ok", "nok"}},
        {"(split test)": 3},
        ["split test has no labels: its 3 images are left out"],
        id="test without labels",
    ),
    pytest.param(
        images("train/ok", "train/nok", "test/images", "val/ok"),
        {"train": {"ok", "nok"}, "val": {"ok"}},
        {"(split test)": 3},
        ["split test has no labels: its 3 images are left out", "split val has no images of class 'nok'"],
        id="test/images",
    ),
    pytest.param(
        images("train/ok", "train/nok", "val"),
        {None: {"ok", "nok"}},  # a hash holds out records of train
        {"(split val)": 3},
        ["split val has no labels: its 3 images are left out"],
        id="val without labels",
    ),
    pytest.param(
        [*images("Covid/images", "Normal/images"), *images("Covid/masks", "Normal/masks")],
        {None: {"Covid", "Normal"}},
        {"(mask)": 6},
        ["6 images in folders of masks are left out, such as 'Covid/masks/0.jpg': pass --masks FOLDER to read masks"],
        id="masks in classes",
    ),
    pytest.param(
        [*images("cat", "dog"), "cat/0_mask.png", "cat/1-seg.png", "dog/2.mask_1.png", "dog/other_mask.png"],
        {None: BOTH},
        {"(mask)": 3},
        ["3 images named like masks are left out, such as 'cat/0_mask.png': pass --target mask:mask to read masks"],
        id="masks next to images",
    ),
    pytest.param(
        [*images("cat", "dog"), "cat/9_image.jpg", "cat/9_mask.png"],
        {None: BOTH},
        {"(mask)": 1},
        ["1 image named like masks is left out, such as 'cat/9_mask.png': pass --target mask:mask to read masks"],
        id="image and mask",
    ),
    pytest.param(
        [
            *images("cat", "dog"),
            *images("dog", suffix="HEIC"),
            *images("dog", suffix="txt", count=5),
            "README",
            "a.svg",
            "Thumbs.db",
        ],
        {None: BOTH},
        {".heic": 3, ".txt": 5, "README": 1, ".svg": 1, ".db": 1},
        [
            "skipped images in formats that are not read (3 .heic, 1 .svg): convert them to JPEG or PNG",
            "skipped files that are not images (5 .txt, 1 README)",
        ],
        id="files of other kinds",
    ),
    pytest.param(
        [*images("cat/a", "cat/b"), *images("dog", suffix="heic"), "docs/a.md"],
        {None: {"cat"}},
        {".heic": 3, ".md": 1},
        ["no images in folders 'docs' (1 .md), 'dog' (3 .heic)", "all images have one class, 'cat'"],
        id="a class without images",
    ),
    pytest.param(
        crossed("train", "test")[:-3] + images("test/emu"),
        {None: BOTH, "test": {"cat", "emu"}},
        {},
        ["split test has no images of class 'dog'", "split test has images of class 'emu', but train has none"],
        id="other classes in test",
    ),
    pytest.param(
        images("Cat", "cat"),
        {None: {"Cat", "cat"}},
        {},
        ["classes 'Cat' and 'cat' differ only in case or spaces"],
        id="case",
    ),
    pytest.param(images("cat"), {None: {"cat"}}, {}, ["all images have one class, 'cat'"], id="one class"),
    pytest.param(
        ["1.jpg"],
        {None: {"all"}},
        {},
        [
            "there are no class folders: all images have one class, 'all', unless a table gives their classes, --labels FILE"
        ],
        id="flat",
    ),
    pytest.param(
        [*images("cat", "dog", "__MACOSX/cat", "@eaDir/dog", "cat/.ipynb_checkpoints"), "cat/._1.jpg", "cat/.DS_Store"],
        {None: BOTH},
        {".DS_Store": 1},
        [],
        id="system folders",
    ),
]


@pytest.mark.parametrize(("files", "expected", "skipped", "notes"), LEFT_OUT)
def test_what_is_left_out_is_counted_and_noted(
    files: list[str],
    expected: dict[str | None, set[str]],
    skipped: dict[str, int],
    notes: list[str],
    make_folder: MakeSource,
    make_tar: MakeSource,
) -> None:
    for make in (make_folder, make_tar):
        source = open_source(make(dict.fromkeys(files, b"")))
        assert summary(source) == expected
        counted = {kind: number for kind, number in source.skipped.items() if kind != "(hidden)"}
        assert counted == skipped
        assert set(notes) <= set(source.notes), source.notes
        assert bool(source.notes) == bool(notes)


def test_one_name_in_two_unicode_forms_is_one_class(make_folder: MakeSource) -> None:
    composed, decomposed = "K\u00e4tzchen", "Ka\u0308tzchen"
    source = open_source(
        make_folder(dict.fromkeys(images(f"train/{composed}", f"test/{decomposed}", "train/dog"), b""))
    )
    assert source.class_names == (composed, "dog")
    alone = open_source(make_folder(dict.fromkeys(images(f"train/{decomposed}"), b"")))
    assert set(alone.class_names) == {composed, "dog"}


def test_an_empty_folder_is_no_class(make_folder: MakeSource) -> None:
    root = make_folder(dict.fromkeys(images("cat", "dog"), b""))
    (root / "emu").mkdir()
    source = open_source(root)
    assert source.class_names == ("cat", "dog")
    assert source.notes == ("no images in folder 'emu' (empty)",)


def test_a_source_without_images_to_train_on_is_refused(make_folder: MakeSource, make_tar: MakeSource) -> None:
    files = [*crossed("train", inside=("cat", "dog")), *crossed("test")]
    for make in (make_folder, make_tar):
        path = make(
            dict.fromkeys([file.replace("jpg", "heic") if file.startswith("train") else file for file in files], b"")
        )
        with pytest.raises(
            SourceError,
            match=r"^no images with a class in split train of '.*': skipped images .* \(6 \.heic\): convert",
        ):
            open_source(path)


# What is no folder of images


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (images("a", suffix="parquet"), r'pattern, "{}/a/\*\.parquet"$'),
        (images("a", "b", suffix="parquet"), r'pattern, "{}/\*\*/\*\.parquet"$'),
        (["x.tfrecord-00000-of-00001"], r'pattern, "{}/\*\.tfrecord\*"$'),
        (["train-00000-of-00002", "train-00001-of-00002"], r'pattern, "{}/\*-of-\*"$'),
        (["photos.zip", "b.zip"], r"unpack its \.zip files$"),
        (["1.heic", "2.CR2"], r"\.cr2 and \.heic files are not read, convert them to JPEG or PNG$"),
    ],
)
def test_a_folder_without_images_is_refused_with_what_to_do(
    files: list[str], advice: str, make_folder: MakeSource
) -> None:
    root = make_folder(dict.fromkeys(files, b""))
    with pytest.raises(
        SourceError, match=rf"^no images in '.*' \({len(files)} other files\): .*" + advice.format(root)
    ):
        open_source(root)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("cats.zip", "unpack it, and give its folder"),
        ("1.heic", "this is one image"),
        ("labels.csv", "give the folder of its images, and a table of their classes as --labels"),
    ],
)
def test_a_file_that_is_no_source_is_refused_with_what_to_do(name: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(SourceError, match=rf"^unsupported source '.*{name}': .*{advice}"):
        open_source(tmp_path / name)


# Splits of files


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_files_of_splits_are_named(kind: str, tmp_path: Path, make_tar: MakeSource) -> None:
    for name in ("one-0", "one-1", "two_0", "rest"):
        if kind == "parquet":
            write_parquet(tmp_path / f"{name}.parquet", [b"", b""], [0, 1])
        else:
            make_tar({"cat/1.jpg": b"", "dog/1.jpg": b""}).rename(tmp_path / f"{name}.tar")
    pattern = f"{tmp_path}/*.{kind}"
    assert summary(open_source(pattern)).keys() == {None}
    source = open_source(pattern, SourceConfig(splits={"train": "one", "val": "two"}))
    assert Counter(splits(source).values()) == Counter(train=4, val=2)
    assert f"1 file outside the splits left out, such as 'rest.{kind}'" in source.notes
    with pytest.raises(
        SourceError, match=r"^no file is in split test=three: --splits must name the first folder or .* 'one-0\."
    ):
        open_source(pattern, SourceConfig(splits={"train": "one", "test": "three"}))
    with pytest.raises(
        SourceError, match=r"^--splits must name the first folders|^no images in the folder 'three' of split train"
    ):
        open_source(pattern, SourceConfig(splits={"train": "three"}))


def test_files_named_like_splits_in_the_middle_are_splits(tmp_path: Path) -> None:
    for name in ("cifar10-train.parquet-0", "cifar10-train.parquet-1", "cifar10-test.parquet-0"):
        write_parquet(tmp_path / f"{name}.parquet", [b"", b""], [0, 1])
    assert Counter(splits(open_source(f"{tmp_path}/*.parquet")).values()) == Counter({None: 4, "test": 2})


def test_a_test_file_next_to_files_of_other_names_is_refused(tmp_path: Path) -> None:
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        write_parquet(tmp_path / f"{name}.parquet", [b"", b""], [0, 1])
    with pytest.raises(
        SourceError, match=r"^'test' looks like a split, but others do not: .* --splits train=data,test=test$"
    ):
        open_source(f"{tmp_path}/*.parquet")
    source = open_source(f"{tmp_path}/*.parquet", SourceConfig(splits={"train": "data", "test": "test"}))
    assert Counter(splits(source).values()) == Counter({None: 4, "test": 2})


def test_files_of_splits_with_different_names_are_refused(tmp_path: Path) -> None:
    for name in ("photos_train", "new_test"):
        write_parquet(tmp_path / f"{name}.parquet", [b"", b""], [0, 1])
    with pytest.raises(
        SourceError, match=r"different names: .* --splits train=photos_train,test=new_test; if .* train=\.$"
    ):
        open_source(f"{tmp_path}/*.parquet")
    given = SourceConfig(splits={"train": "photos_train", "test": "new_test"})
    assert Counter(splits(open_source(f"{tmp_path}/*.parquet", given)).values()) == Counter({None: 2, "test": 2})
    assert open_source(f"{tmp_path}/*.parquet", SourceConfig(splits={"train": "."})).records == 4


def test_splits_below_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in ("default", "small"):
        for split in ("train", "test"):
            write_parquet(tmp_path / folder / split / "0.parquet", [b""] * 4, range(4))
    with pytest.raises(
        SourceError, match=r"^'default' and 'small' have splits inside, 'test' and 'train': use .* 'default' in"
    ):
        open_source(f"{tmp_path}/**/*.parquet")
    assert summary(open_source(f"{tmp_path}/default/**/*.parquet")).keys() == {None, "test"}


def test_a_split_of_which_a_table_labels_nothing_is_left_out(
    make_folder: MakeSource, make_tar: MakeSource, tmp_path: Path
) -> None:
    (tmp_path / "train.csv").write_text("id,breed\n0,pug\n1,boxer\n2,pug\n")
    files = [*images("train"), "test/3.jpg", "test/4.jpg"]
    for make in (make_folder, make_tar):
        source = open_source(make(dict.fromkeys(files, b"")), SourceConfig(labels=tmp_path / "train.csv"))
        assert summary(source) == {None: {"pug", "boxer"}}
        assert source.refused == ()
        assert "split test has no labels: its 2 images are left out" in source.notes


def test_synthetic_photos_have_no_splits() -> None:
    with pytest.raises(SourceError, match=r"^'synthetic:4' has no splits: drop --splits$"):
        open_source("synthetic:4", SourceConfig(splits={"train": "."}))


# Links


def test_a_linked_class_folder_is_followed(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"cat/1.jpg": b"one", "dog/1.jpg": b"two"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"three")
    (root / "emu").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "link").symlink_to(root)
    for location in (root, tmp_path / "link"):
        source = open_source(location)
        assert labels(source) == {"cat/1.jpg": "cat", "dog/1.jpg": "dog", "dog/2.jpg": "dog", "emu/1.jpg": "emu"}
        assert source.linked == (tmp_path / "elsewhere",)
        assert source.notes == (
            f"followed 1 link to a folder outside the source, such as 'emu' to '{tmp_path}/elsewhere'",
            "followed 1 link to an image outside the source, such as 'dog/2.jpg'",
        )


def test_links_in_circles_end(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"cat/1.jpg": b"", "dog/1.jpg": b""})
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "deep" / "2.jpg").write_bytes(b"")
    (tmp_path / "there" / "deep" / "back").symlink_to(root / "cat")
    (root / "cat" / "on").symlink_to(tmp_path / "there")
    (root / "cat" / "self").symlink_to(".")
    (root / "dog" / "up").symlink_to("..")
    (root / "dog" / "cats").symlink_to("../cat")
    (root / "gone").symlink_to("/nowhere/gone")
    source = open_source(root)
    assert Counter(labels(source).values()) == Counter(cat=2, dog=3)
    assert source.skipped == Counter({"(link to a folder above)": 5, "(broken link)": 1})
    assert [note for note in source.notes if "gone" in note] == [
        "skipped 1 file (links that lead nowhere), such as 'gone'"
    ]
    assert [note for note in source.notes if "twice" in note] == [
        "followed 1 link to a folder of the source, whose images are used twice, such as 'dog/cats' to 'cat'"
    ]


def test_a_cache_may_not_be_in_a_linked_folder_of_its_source(
    make_folder: MakeSource, photos: Mapping[str, bytes], tmp_path: Path
) -> None:
    root = make_folder(photos)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "emu").mkdir(parents=True)
    (elsewhere / "emu" / "1.jpg").write_bytes(next(iter(photos.values())))
    (root / "emu").symlink_to(elsewhere / "emu")
    for cache in (elsewhere, elsewhere / "emu" / "cache"):
        with pytest.raises(CacheError, match=r"elsewhere/emu' and cache '.*elsewhere.*' overlap|is not empty"):
            precompute(root, cache, "decode|resize(8)")
    manifest = precompute(root, elsewhere / "cache", "decode|resize(8)").manifest
    assert manifest.class_names == ("cat", "dog", "emu", "été")


# On the command line


def test_notes_are_said_once(tmp_path: Path, make_folder: MakeSource, photos: Mapping[str, bytes], run: object) -> None:
    root = make_folder({**photos, "cover.jpg": b"", "emu/1.heic": b""})
    assert callable(run)
    code, _, error = run("precompute", root, tmp_path / "cache", "--chain", "decode|resize(8)")
    assert code == 0
    assert [line for line in error.splitlines() if "note" in line] == [
        "joulecache: note: skipped images in formats that are not read (1 .heic): convert them to JPEG or PNG",
        "joulecache: note: 1 image next to the class folders is left out, such as 'cover.jpg'",
        "joulecache: note: no images in folder 'emu' (1 .heic)",
    ]
