"""TensorFlow Datasets as a source: a small dataset, prepared here."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sources import records

import joulecache as jc
from joulecache.pipelines import load, precompute
from joulecache.pipelines.source import SourceConfig, SourceError, open_source

pytestmark = [
    # of the package itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow_datasets"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]

SIZES = {"train": 70, "validation": 4, "test": 3, "odd": 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare `tiny_photos` and others: each image has one pixel value, its number; classes alternate."""
    root = tmp_path_factory.mktemp("tfds")
    store(root, "tiny_photos", {"image": IMAGE, **CLASSES}, SIZES)
    store(root, "plain_numbers", {"image": IMAGE, "label": np.int64}, {"train": 3})
    store(root, "only_test", {"image": IMAGE, **CLASSES}, {"test": 3})
    store(root, "regression", {"image": IMAGE, "label": np.float32}, {"train": 3})
    store(root, "hidden", {"image": IMAGE, **CLASSES}, {"train": 3, "test": 2}, label=lambda split: -(split == "test"))
    pets = {"photo": IMAGE, "mask": tfds.features.LabeledImage(labels=2, shape=(None, None, 1))}
    store(
        root, "pets", {**pets, "species": KINDS, "head": {"kind": KINDS}}, {"train": 4}, supervised=("photo", "species")
    )
    boxes = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": KINDS, "is_crowd": np.bool_})
    store(root, "detection", {"image": IMAGE, "objects": boxes, "tags": tfds.features.Sequence(KINDS)}, {"train": 3})
    store(root, "segmentation", {"photo": IMAGE, "mask": tfds.features.Image(shape=(None, None, 1))}, {"train": 3})
    store(root, "two", {"image": IMAGE, "species": KINDS, "kind": KINDS}, {"train": 4})
    return root


IMAGE = tfds.features.Image(shape=(None, None, 3))
KINDS = tfds.features.ClassLabel(names=["cat", "dog"])
CLASSES = {"label": KINDS}
OBJECTS = [
    {"bbox": tfds.features.BBox(ymin=0.0, xmin=0.5, ymax=1.0, xmax=1.0), "label": 1, "is_crowd": False},
    {"bbox": tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=1.0, xmax=1.0), "label": 0, "is_crowd": True},
]


def store(
    root: Path,
    name: str,
    features: dict[str, Any],
    sizes: dict[str, int],
    supervised: tuple[str, str] | None = None,
    label: Callable[[str], int] | None = None,
) -> None:
    class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised,
                disable_shuffling=True,
            )

        def _split_generators(self, _: Any) -> Any:
            return {split: self._generate_examples(split, count) for split, count in sizes.items()}

        def _generate_examples(self, split: str, count: int) -> Any:
            for number in range(count):
                values: dict[str, Any] = {key: number % 2 if label is None else label(split) for key in features}
                values |= {key: np.full((9, 8, 3), number, np.uint8) for key in ("image", "photo") if key in features}
                values |= {"mask": np.zeros((9, 8, 1), np.uint8)} if "mask" in features else {}
                values |= {"head": {"kind": 1}} if "head" in features else {}
                values |= {"objects": OBJECTS[:number], "tags": [1] * number} if "objects" in features else {}
                yield number, values

    Photos.name = name
    Photos(data_dir=root).download_and_prepare()


@pytest.fixture(autouse=True)
def prepared(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(data_dir))


def test_a_prepared_dataset_is_a_source() -> None:
    source = open_source("tfds:tiny_photos")
    assert source.class_names == ("cat", "dog")
    assert Counter(unit.split for unit in source.units for _ in unit.record_keys()) == Counter(train=70, val=4, test=3)
    assert source.skipped == Counter({"(split odd)": 2})
    train = [record for unit in source.units if unit.split == "train" for record in unit.read()]
    assert [record.key for record in train] == [f"tiny_photos-train.tfrecord-00000-of-00001#{row}" for row in range(70)]
    assert [np.asarray(Image.open(io.BytesIO(record.data)))[0, 0, 0] for record in train] == list(range(70))
    assert [record.targets[0] for record in train] == [row % 2 for row in range(70)]


def test_its_splits_may_be_named() -> None:
    source = open_source("tfds:tiny_photos", SourceConfig(splits={"train": "odd", "test": "train"}))
    assert Counter(unit.split for unit in source.units for _ in unit.record_keys()) == Counter({None: 2, "test": 70})
    assert source.notes == ("left out split 'validation', 4 images", "left out split 'test', 3 images")
    with pytest.raises(
        SourceError, match=r"^there is no split 'even': --splits must name some of train, validation, test, odd$"
    ):
        open_source("tfds:tiny_photos", SourceConfig(splits={"train": "even"}))


def test_its_splits_reach_the_loader(tmp_path: Path) -> None:
    manifest = precompute("tfds:tiny_photos:1.0.0", tmp_path / "cache", "decode|resize(4)").manifest
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 70, "val": 4, "test": 3}
    [(images, labels)] = load(tmp_path / "cache", "test", 3)
    assert sorted(zip(images[:, 0, 0, 0].numpy().tolist(), labels.numpy().tolist(), strict=True)) == [
        (0, 0),
        (1, 1),
        (2, 0),
    ]


def test_features_are_those_that_the_dataset_declares_for_supervised_learning() -> None:
    source = open_source("tfds:pets")
    assert source.class_names == ("cat", "dog")
    assert [record.targets[0] for record in records(source)] == [0, 1, 0, 1]
    assert source.notes == ("images from column photo, classes from species (2 names), not from head/kind or mask",)
    nested = open_source("tfds:pets", SourceConfig(image="photo", target="head/kind"))
    assert [record.targets[0] for record in records(nested)] == [1, 1, 1, 1]


def test_integers_without_names_are_numbers() -> None:
    assert open_source("tfds:plain_numbers").class_names == ("0", "1")


def test_a_split_with_hidden_labels_is_left_out() -> None:
    source = open_source("tfds:hidden")
    assert [unit.split for unit in source.units] == [None]
    assert source.skipped == Counter({"(split test)": 2})
    assert source.notes == ("split test has no labels: its 2 images are left out",)


def test_a_dataset_without_train_is_split_by_hash() -> None:
    assert [unit.split for unit in open_source("tfds:only_test").units] == [None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_photoss", "cannot open 'tfds:tiny_photoss': Dataset tiny_photoss not found"),
        ("../photos", "cannot open 'tfds:../photos': Parsing builder name string"),
        ("", "cannot open 'tfds:': Parsing builder name string"),
        ("two", "'tfds:two' has 2 columns of classes: choose one with --target kind or --target species"),
        ("mnist", "'tfds:mnist' is not prepared in .*mnist/3.0.1: run `python -c .*download_and_prepare"),
    ],
)
def test_other_datasets_are_refused(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"tfds:{name}")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(SourceError, match=r"needs tensorflow-datasets: run `pip install 'joulecache\[tfds\]'`$"):
        open_source("tfds:mnist")


def test_boxes_and_multilabels_of_a_dataset() -> None:
    source = open_source("tfds:detection", SourceConfig(target=("boxes", "tags")))
    boxes = jc.features.Boxes(("cat", "dog"))
    assert source.features == {"boxes": boxes, "tags": jc.features.MultiLabel(("cat", "dog"))}
    found = [boxes.decode(record.targets[0]) for record in records(source)]
    assert [each.boxes.tolist() for each in found] == [[], [[4, 0, 8, 9]], [[4, 0, 8, 9]]]
    assert [record.targets[1] for record in records(source)] == [b"\0\0", b"\0\1", b"\0\1"]
    assert source.notes[1:] == (
        "2 boxes of 2 classes from column objects: 'cat', 'dog'",
        "dropped 1 box of crowds in column objects",
    )
    assert open_source("tfds:detection").features == {"tags": jc.features.MultiLabel(("cat", "dog"))}


def test_masks_and_values_of_a_dataset() -> None:
    assert open_source("tfds:segmentation").features == {"mask": jc.features.Mask()}
    assert open_source("tfds:pets", SourceConfig(target="mask")).features == {"mask": jc.features.Mask(("0", "1"))}
    assert open_source("tfds:regression").features == {"label": jc.features.Value()}
    assert open_source("tfds:segmentation", SourceConfig(target="none")).features == {}
