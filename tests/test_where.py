"""`where=`: the records that an expression or a function selects, and no others, with the bytes that they have without it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from spatial_sources import Drawn, png, spatial_source

import joulecache as jc
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.config import Budget, LoadConfig
from joulecache.pipelines.loading.numpy_batches import NumPyBatches
from joulecache.pipelines.loading.reader import open_reader
from joulecache.pipelines.source.features import ClassLabel, Features, MultiLabel, Text, Value

COUNT, BATCH = 60, 4
FEATURES: Features = {
    "label": ClassLabel(("cat", "dog", "owl")),
    "tags": MultiLabel(("wet", "dark")),
    "age": Value(),
    "number": Value("int64"),
    "place": Value("float32", (2,)),
    "caption": Text(),
}


class Described(NamedTuple):
    """What the source says of a record."""

    key: str
    label: str
    tags: set[str]
    age: float
    number: int
    place: tuple[float, float]
    caption: str


def described(number: int) -> Described:
    """Return the record of a number."""
    tags = {name for bit, name in enumerate(("wet", "dark")) if number >> bit & 1}
    key = f"{'left' if number % 7 else 'right'}/{number:03d}.png"
    label, age = ("cat", "dog", "owl")[number % 5 % 3], float(np.float32(number / 10))
    return Described(key, label, tags, age, number, (number, -1), f"the {number}th é")


def drawn(number: int) -> Drawn:
    """Return the image of a number, with its targets."""
    one = described(number)
    targets = (
        ("cat", "dog", "owl").index(one.label),
        bytes(name in one.tags for name in ("wet", "dark")),
        float(one.age),
        number,
        np.array(one.place, "<f4").tobytes(),
        one.caption,
    )
    pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), np.uint8)
    return Drawn(one.key, targets, tuple(FEATURES.values()), png(pixels))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of 60 records in 5 shards."""
    folder = tmp_path_factory.mktemp("where") / "cache"
    chain = jc.parse("decode|resize(12)|random_crop(10) || random_crop(8)|flip_lr")
    config = BuildConfig(chain=chain, variants=2, shards=5, val_fraction=0, seed=4)
    build_cache(spatial_source(0, FEATURES, [drawn(number) for number in range(COUNT)]), folder, config, Meter())
    return jc.open_cache(folder)


EXPRESSIONS: dict[str, Callable[[Described], bool]] = {
    "label in ('cat', 'dog')": lambda one: one.label in ("cat", "dog"),
    "label == 'owl' or label == 0": lambda one: one.label in ("owl", "cat"),
    "label not in ['cat'] and not label != 1": lambda one: one.label == "dog",
    "key.startswith('right/') or key.endswith('3.png')": lambda one: (
        one.key.startswith("right/") or one.key.endswith("3.png")
    ),
    "'right' not in key and '7th é' in caption": lambda one: "right" not in one.key and "7th é" in one.caption,
    "key in {'left/001.png', 'right/014.png', 'nowhere'}": lambda one: one.number in (1, 14),
    "key < 'left/010' and key != 'left/002.png'": lambda one: one.key < "left/010" and one.number != 2,
    "1.5 <= age < 3 and age != 2.1": lambda one: 1.5 <= one.age < 3 and one.number != 21,
    "number in (1, 2, -3) or 50 < number": lambda one: one.number in (1, 2) or one.number > 50,
    "'wet' in tags and 1 not in tags": lambda one: one.tags == {"wet"},
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_selects_what_python_does(cache: Cache, text: str) -> None:
    numbers = [number for _, number in jc.open_cache(cache).records("train", targets="number", where=text)]
    expected = [number for number in range(COUNT) if EXPRESSIONS[text](described(number))]
    assert 0 < len(expected) < COUNT
    assert sorted(numbers) == expected


def test_a_function_takes_the_columns_of_the_index(cache: Cache) -> None:
    expected = {number: described(number) for number in range(COUNT)}

    def where(columns: Any) -> Any:
        assert [*columns] == ["key", *FEATURES]
        for row, number in enumerate(columns["number"]):
            one = expected[number]
            assert [columns["key"][row], columns["caption"][row]] == [one.key, one.caption]
            assert [columns["label"][row], columns["age"][row]] == [("cat", "dog", "owl").index(one.label), one.age]
            assert columns["tags"][row].tolist() == ["wet" in one.tags, "dark" in one.tags]
            assert columns["place"][row].tolist() == [*one.place]
        return columns["place"][:, 0] > 50

    found = jc.batches(cache, "train", COUNT, targets="number", where=where)
    assert sorted(next(iter(found))[1]) == [*range(51, COUNT)]


BAD = {
    "": "where must be an expression such as \"label in ('cat', 'dog')\", got ''",
    "label ==": "where must be an expression such as",
    "(" * 300: "where must be an expression such as",
    "not " * 2000 + "label == 'cat'": "where must ",
    "label": "where must combine comparisons of columns with constants by and, or, not",
    "len(key) > 3": "where must compare a column with constants",
    "__import__('os').system('true') == 0": "where must compare a column with constants",
    "age > number": "where must compare a column with constants",
    "age in number": "'age' must be a string or a number",
    "lable == 'cat'": "the index has no column 'lable': did you mean 'label'?",
    "x == 1": "the index has no column 'x': it has key, label, tags, age, number, place, caption",
    "label == 'dgo'": "'label' has no class 'dgo': did you mean 'dog'?",
    "label == 3": "the classes of 'label' are names, or numbers from 0 to 2",
    "label == -1": "the classes of 'label' are names, or numbers from 0 to 2",
    "label > 'cat'": "classes such as 'label' have no order",
    "key == 3": "'key' is compared with a string, and 3 is none",
    "age == 'old'": "'age' is compared with a number, and 'old' is none",
    "age == None": "'None' must be a string or a number",
    "tags == 'wet'": "'tags' has several classes for each record: write 'wet' in tags",
    "place > 1": "'place' has several numbers for each record: use a function of the columns",
    "3 in key": "3 in key needs a multi-label, or a string in a key or text",
    "key.startswith(3)": "startswith needs a key or text, and one string",
    "age.startswith('a')": "startswith needs a key or text, and one string",
    "age > 100": "where must select at least one of the 60 records in 'train'",
}


@pytest.mark.parametrize("text", BAD)
def test_other_expressions_are_refused_in_one_line(cache: Cache, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(BAD[text])) as caught:
        jc.batches(cache, "train", BATCH, where=text)
    assert "\n" not in str(caught.value)
    assert ", got " in str(caught.value)


def test_other_functions_and_arguments_are_refused(cache: Cache) -> None:
    bad: dict[str, Any] = {
        "where must be an expression or a function of the columns, got 3": 3,
        "where must return bool [60], one for each record, got int64 [60]": lambda columns: columns["number"],
        "where must return bool [60], one for each record, got bool []": lambda _: True,
    }
    for expected, where in bad.items():
        with pytest.raises(ValueError, match=re.escape(expected)):
            jc.batches(cache, "train", BATCH, where=where)
    with pytest.raises(ValueError, match="30 hosts are more than the 12 records in 'train' that where selects"):
        jc.batches(cache, "train", BATCH, where="label == 'owl'", hosts=(0, 30))


SELECTED = "'wet' in tags and key.startswith('left/')"
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "in order": {"shuffle": False},
    "blocks": {"shuffle": "blocks", "budget": Budget(1 << 12, 1 << 12, block_bytes=1500, window_bytes=5000)},
}


def opened(cache: Cache, **options: Any) -> NumPyBatches:
    config = LoadConfig("train", BATCH, **{"where": SELECTED, "epochs": 3, **options})
    return NumPyBatches(lambda: open_reader(cache, config), config)


def by_number(images: Any, targets: Any) -> list[tuple[int, bytes, str]]:
    rows = zip(targets["number"].tolist(), images, targets["caption"], strict=True)
    return [(number, image.tobytes(), text) for number, image, text in rows]


@pytest.mark.parametrize("options", OPTIONS)
def test_each_epoch_has_the_selected_records_as_they_are_without_where(cache: Cache, options: str) -> None:
    given = OPTIONS[options]
    expected = {number for number in range(COUNT) if number & 1 and number % 7}
    orders = []
    for epoch in range(2):
        whole = [
            one for batch in opened(cache, where=None, start=(epoch, 0), epochs=epoch + 1) for one in by_number(*batch)
        ]
        of_hosts = [opened(cache, start=(epoch, 0), epochs=epoch + 1, hosts=(host, 3), **given) for host in range(3)]
        found = [one for batches in of_hosts for batch in batches for one in by_number(*batch)]
        assert sorted(found) == sorted(one for one in whole if one[0] in expected)
        orders.append([number for number, *_ in found])
    assert (orders[0] == orders[1]) == (options == "in order")


@pytest.mark.parametrize("options", OPTIONS)
def test_a_state_goes_on_with_the_same_bytes_and_only_over_the_same_records(cache: Cache, options: str) -> None:
    given = OPTIONS[options]
    whole = [by_number(*batch) for batch in opened(cache, **given)]
    assert len(whole) == 3 * 7
    running = opened(cache, **given)
    batches = iter(running)
    for _ in range(9):
        next(batches)
    state = json.loads(json.dumps(running.state()))
    again = opened(cache, **given)
    again.restore(state)
    assert [by_number(*batch) for batch in again] == whole[9:]
    same = opened(
        cache, **{**given, "where": lambda columns: (columns["number"] % 2 > 0) & (columns["number"] % 7 > 0)}
    )
    same.restore(state)
    for other in (None, "number in (1, 3, 5)", SELECTED.replace("wet", "dark")):
        with pytest.raises(CacheError, match="this state was saved over other images or with other arguments"):
            opened(cache, **{**given, "where": other}).restore(state)


def test_load_yields_the_batches_of_batches_and_resumes(cache: Cache, tmp_path: Any) -> None:
    targets = ["number", "caption"]
    options: dict[str, Any] = {"where": SELECTED, "targets": targets, "epochs": 2}
    expected = [by_number(*batch) for batch in jc.batches(cache, "train", BATCH, **options)]
    dataset = jc.load(cache, "train", BATCH, **options)
    assert len(dataset) == len(expected)

    def listed(iterator: Any) -> list[Any]:
        found = [(images.numpy(), {name: each.numpy() for name, each in target.items()}) for images, target in iterator]
        decoded = [(images, {**each, "caption": [text.decode() for text in each["caption"]]}) for images, each in found]
        return [by_number(*batch) for batch in decoded]

    assert listed(dataset) == expected
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "saved"))
    again = iter(jc.load(cache, "train", BATCH, **options))
    tf.train.Checkpoint(iterator=again).restore(path)
    assert listed(again) == expected[5:]
