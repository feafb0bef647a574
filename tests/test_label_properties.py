"""Labels come back as they were written, in every dialect, and damaged labels are refused or rejected."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import add

from joulecache.pipelines.source import SourceConfig, SourceError, open_source
from joulecache.pipelines.source.labels import read_labels, table_labels

CHARS = st.characters(exclude_categories=["C", "Z"], exclude_characters='\\/;|."')
WORDS = st.text(CHARS, min_size=1, max_size=6)
TEXTS = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
KEYS = st.lists(WORDS, min_size=1, max_size=3).map("/".join)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    """Draw the class of each key, and a labels file that says them."""
    stems = draw(st.lists(KEYS, min_size=1, max_size=12, unique=True))
    kind = draw(st.sampled_from([st.integers(0, 10**6 - 1).map(str), TEXTS.map("c {}".format)]))
    classes = {f"{stem}.{draw(st.sampled_from(['jpg', 'PNG']))}": draw(kind) for stem in stems}
    names = [key.rpartition(".")[0] for key in classes] if draw(st.booleans()) else list(classes)
    if draw(st.booleans()):
        names = [f"./{name}" for name in names]
    columns = {
        draw(st.sampled_from(["file", "File Name", "image-id", "path"])): names,
        draw(st.sampled_from(["label", "Class", "breed"])): list(classes.values()),
    }
    if draw(st.booleans()):
        columns |= {"width": ["7"] * len(names)}
    header = draw(st.permutations(list(columns)))
    rows = [header, *([columns[name][row] for name in header] for row in draw(st.permutations(range(len(names)))))]
    if draw(st.booleans()):
        index = [draw(st.sampled_from(["", "Unnamed: 0"])), *map(str, range(len(names)))]
        rows = [[cell, *row] for cell, row in zip(index, rows, strict=True)]
    text = io.StringIO()
    quoting: Literal[0, 1] = csv.QUOTE_ALL if draw(st.booleans()) else csv.QUOTE_MINIMAL
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    csv.writer(text, delimiter=draw(st.sampled_from(",;\t")), quoting=quoting, lineterminator=end).writerows(rows)
    return classes, text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig"])))


@given(tables())
def test_labels_come_back_in_every_dialect(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[dict[str, str], bytes]
) -> None:
    classes, data = table
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(data)
    found = table_labels(read_labels(path), list(classes))
    assert [None if label is None else found.names[label] for label in found.labels] == list(classes.values())
    assert not found.skipped


MUTATIONS = 2000


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip some bytes, and in a quarter of the cases cut, repeat or remove a part."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 3)):
        changed[rng.randrange(len(changed))] = rng.choice([rng.randrange(256), *b"\n\r,;\t\"'0 \\/"])
    start, stop = sorted(rng.randrange(len(changed)) for _ in range(2))
    match rng.randrange(12):
        case 0:
            del changed[start:]
        case 1:
            del changed[start:stop]
        case 2:
            changed[start:start] = changed[start:stop]
    return bytes(changed)


def overwrite(path: Path, data: bytes) -> None:
    """Replace the content of a file without emptying it first, which can take milliseconds."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def test_a_damaged_labels_file_is_refused_or_lists_what_it_lost(tmp_path: Path) -> None:
    keys = [f"{'ab'[number % 2]}/{number}.jpg" for number in range(12)]
    lines = [f"{key},{number},{['cat', 'dog'][number % 2]}" for number, key in enumerate(keys)]
    data = "\r\n".join(["file,size,label", *lines, ""]).encode()
    rng, path = random.Random(0), tmp_path / "labels.csv"
    path.touch()
    errors: list[str] = []
    for _ in range(MUTATIONS):
        overwrite(path, mutated(data, rng))
        try:
            found = table_labels(read_labels(path), keys)
        except SourceError as error:
            errors.append(str(error))
        else:
            assert len(found.labels) == len(keys)
            assert {row for row, label in enumerate(found.labels) if label is None} == found.reasons.keys()
    assert 0.2 < len(errors) / MUTATIONS < 0.9
    assert not [error for error in errors if len(error.splitlines()) > 1]


def test_a_damaged_tar_is_refused_or_lists_what_it_lost(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(["a.0", "ü", "d" * 120]):
            add(tar, f"{name}.jpg", data=b"photo")
            add(tar, f"{name}.json", data=json.dumps({"label": number % 2}).encode())
        add(tar, "c.txt", data=b"cat")
    data = stream.getvalue()[: tar.offset + 1024]
    rng, path = random.Random(0), tmp_path / "photos.tar"
    path.touch()
    errors: list[str] = []
    for number in range(MUTATIONS):
        overwrite(path, mutated(data, rng))
        try:
            source = open_source(path, SourceConfig(target="label" if number % 2 else None))
        except SourceError as error:
            errors.append(str(error))
        else:
            assert source.records == sum(1 for _ in source.units)
    assert 0.2 < len(errors) / MUTATIONS < 0.9
    assert not [error for error in errors if len(error.splitlines()) > 1]
