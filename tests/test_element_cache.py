"""Elements in mapped files: what `cache()` gives, from files that nothing else, no crash and no edit can pass off as ours."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import environment, python, run_python

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.loading.element_cache import cached, progress_on_stderr
from joulecache.pipelines.loading.element_files import DTYPES, Component, map_elements

PAGE = 4096


class Pair(NamedTuple):
    image: Any
    label: Any


def numbers(count: int = 10, start: int = 0) -> Any:
    return tf.data.Dataset.range(start, start + count)


def images(count: int = 40) -> Any:
    """Give (uint8 ``[8, 8, 3]``, int64) that differ."""
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return tf.data.Dataset.from_tensor_slices((images, np.arange(count)))


def listed(dataset: Any) -> list[Any]:
    """Iterate once more; tensors become (dtype, shape, bytes), so that nothing but the same bits is equal."""

    def exact(tensor: Any) -> str:
        array = tensor.numpy()
        return f"{array.dtype}{list(array.shape)} {array.tobytes().hex()}"

    return [tf.nest.map_structure(exact, element) for element in dataset]


def values(dataset: Any) -> list[int]:
    return [int(number) for number in dataset.as_numpy_iterator()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def data_files(folder: Path) -> list[Path]:
    return sorted((folder / "elements").glob("*.npy"))


def never() -> Any:
    """Give what has the spec of `numbers`, but fails when it is run."""

    def fail(number: Any) -> Any:
        raise AssertionError("the dataset was run")

    return numbers().map(lambda number: tf.ensure_shape(tf.numpy_function(fail, [number], tf.int64), []))


# ------------------------------------------------------------------------------------------ the elements of cache()


STRUCTURES: dict[str, Callable[[], Any]] = {
    "scalars": numbers,
    "images": images,
    "nested": lambda: numbers().map(lambda n: ({"z": n, "a": (n + 1, Pair(n + 2, {"x": [n, n]}))}, (), n + 3)),
    "keys that are numbers": lambda: numbers().map(lambda n: {1: n, 0: n + 1}),
    "no room": lambda: numbers().map(lambda n: (tf.zeros([0, 3]), tf.zeros([2, 0], tf.int32), n)),
    "only without room": lambda: numbers().map(lambda n: tf.zeros([0, 3])),
    "batches": lambda: images().batch(8, drop_remainder=True),
    "empty": lambda: images().take(0),
    "filtered": lambda: images().filter(lambda _, label: label % 3 == 0),
    "filtered to nothing": lambda: images().filter(lambda _, label: label < 0),
    "generated": lambda: tf.data.Dataset.from_generator(
        lambda: iter(range(7)), output_signature=tf.TensorSpec((), tf.int32)
    ),
    "one element": lambda: images(1),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_elements_are_those_of_cache(tmp_path: Path, name: str) -> None:
    dataset = STRUCTURES[name]()
    expected = listed(dataset.cache())
    filled = dataset.apply(cached(tmp_path / "a" / "b"))
    reopened = dataset.apply(cached(tmp_path / "a" / "b"))
    for came in (filled, reopened):
        assert came.element_spec == dataset.element_spec
        assert int(came.cardinality()) == len(expected)
        assert listed(came) == expected
    assert listed(filled) == expected
    assert names(tmp_path / "a" / "b") == ["elements"]


FIXED = st.sampled_from(DTYPES)
SHAPE = st.lists(st.integers(0, 5), max_size=3)


@given(count=st.integers(0, 40), parts=st.lists(st.tuples(FIXED, SHAPE), min_size=1, max_size=4), data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_bits_of_any_dtype_and_shape_come_back(count: int, parts: list[tuple[str, list[int]]], data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tensors = []
    for dtype, shape in parts:
        stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        bits = rng.integers(0, 2 if dtype == "bool" else 256, (count, *shape, stored.itemsize), np.uint8)
        tensor = tf.constant(bits.view(stored)[..., 0])
        tensors.append(tf.bitcast(tensor, tf.bfloat16) if dtype == "bfloat16" else tensor)
    dataset = tf.data.Dataset.from_tensor_slices(tuple(tensors))
    with tempfile.TemporaryDirectory() as folder:
        came = dataset.apply(cached(folder))
        assert came.element_spec == dataset.element_spec
        assert listed(came) == listed(dataset)


def wide(count: int = 37) -> Any:
    """Return elements of 128 KiB, of which 16 are written at once."""
    return numbers(count).map(lambda n: tf.fill([1 << 14], n))


def test_a_shuffle_before_it_is_frozen_and_one_behind_it_is_not(tmp_path: Path) -> None:
    frozen = numbers(200).shuffle(200).apply(cached(tmp_path))
    order = values(frozen)
    assert order != sorted(order) == list(range(200))
    assert values(frozen) == order
    batches = frozen.shuffle(200).batch(64)
    one, other = ([int(n) for batch in batches for n in batch] for _ in range(2))
    assert one != other
    assert sorted(one) == sorted(other) == list(range(200))


def test_an_iterator_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    iterator = iter(numbers().apply(cached(tmp_path / "elements")).shuffle(4, seed=1))
    for _ in range(3):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "checkpoint"))
    rest = [int(number) for number in iterator]
    tf.train.Checkpoint(iterator=iterator).read(path)
    assert [int(number) for number in iterator] == rest
    assert len(rest) == 7


def test_options_are_kept(tmp_path: Path) -> None:
    options = tf.data.Options()
    options.deterministic = False
    options.threading.private_threadpool_size = 3
    came = numbers().with_options(options).apply(cached(tmp_path)).options()
    assert (came.deterministic, came.threading.private_threadpool_size) == (False, 3)


# ------------------------------------------------------------------------------------------ the folder


def test_a_filled_folder_does_not_run_the_dataset(tmp_path: Path) -> None:
    numbers().apply(cached(tmp_path))
    assert values(never().apply(cached(tmp_path))) == list(range(10))
    with pytest.raises(tf.errors.OpError, match="the dataset was run"):
        never().apply(cached(tmp_path / "other"))


@pytest.mark.parametrize("filter_too", [False, True])
def test_files_are_numpy_files_named_by_their_content(tmp_path: Path, filter_too: bool) -> None:
    dataset = images(30).filter(lambda _, label: label >= 0) if filter_too else images(30)
    dataset.apply(cached(tmp_path))
    columns = [np.stack(column) for column in zip(*images(30).as_numpy_iterator(), strict=True)]
    for number, (path, column) in enumerate(zip(data_files(tmp_path), columns, strict=True)):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        assert (mapped.dtype, mapped.shape, mapped.offset) == (column.dtype, column.shape, PAGE)
        np.testing.assert_array_equal(mapped, column)
        assert path.name == f"component-{number:03d}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.npy"
    manifest = json.loads((tmp_path / "elements" / "manifest.json").read_bytes())
    assert [file["name"] for file in manifest["files"]] == [path.name for path in data_files(tmp_path)]
    assert [file["bytes"] for file in manifest["files"]] == [path.stat().st_size for path in data_files(tmp_path)]
    assert manifest["elements"] == ["element[0]: uint8[8, 8, 3]", "element[1]: int64[]"]
    assert manifest["count"] == 30


OTHER_SPECS: dict[str, Callable[[Any, Any], Any]] = {
    "shape": lambda image, label: (image[:4], label),
    "dtype": lambda image, label: (tf.bitcast(image, tf.int8), label),
    "dtype of the same bytes on disk": lambda image, label: (image, tf.bitcast(label, tf.uint64)),
    "order": lambda image, label: (label, image),
    "names": lambda image, label: {"image": image, "label": label},
    "fewer": lambda image, label: image,
    "more": lambda image, label: (image, label, label),
}


@pytest.mark.parametrize("what", OTHER_SPECS)
def test_another_spec_is_refused(whole: Path, what: str) -> None:
    other = images().map(OTHER_SPECS[what])
    message = r"element\[0\]: uint8\[8, 8, 3\].*this dataset has.*use another folder, or delete"
    with pytest.raises(CacheError, match=message):
        other.apply(cached(whole))


def test_bfloat16_is_not_taken_for_uint16(tmp_path: Path) -> None:
    numbers().map(lambda n: tf.cast(n, tf.uint16)).apply(cached(tmp_path))
    with pytest.raises(CacheError, match=r"uint16\[\].*bfloat16\[\]"):
        numbers().map(lambda n: tf.cast(n, tf.bfloat16)).apply(cached(tmp_path))


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    numbers().apply(cached(tmp_path, fingerprint="v1"))
    for other in ("v2", ""):
        with pytest.raises(
            CacheError, match=f"fingerprint 'v1', but this dataset has '{other}': use another folder, or"
        ):
            numbers().apply(cached(tmp_path, fingerprint=other))
    assert values(never().apply(cached(tmp_path, fingerprint="v1"))) == list(range(10))


@pytest.mark.parametrize(
    "name", ["notes.txt", "manifest.json", ".hidden", ".fill-of-mine", "component-000-12345678.npy"]
)
def test_a_folder_of_someone_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CacheError, match=r"not empty and not filled by cached\(\): choose a folder that is empty"):
        numbers().apply(cached(tmp_path))
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_called_elements_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "elements").mkdir()
    (tmp_path / "elements" / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"manifest\.json is missing"):
        numbers().apply(cached(tmp_path))
    assert names(tmp_path / "elements") == ["notes.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="is not a folder"):
        numbers().apply(cached(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot read or write"):
        numbers().apply(cached(tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_read_outlives_the_folder(tmp_path: Path) -> None:
    dataset = numbers(3000).apply(cached(tmp_path / "a"))
    iterator = iter(dataset.batch(100))
    came = [int(number) for number in next(iterator)]
    shutil.rmtree(tmp_path / "a")
    other = numbers(3000, start=5000).apply(cached(tmp_path / "a"))
    del dataset
    came += [int(number) for batch in iterator for number in batch]
    assert came == list(range(3000))
    assert values(other) == list(range(5000, 8000))


# ------------------------------------------------------------------------------------------ what cannot be kept


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "text": (lambda: numbers().map(lambda n: (n, {"name": tf.as_string(n)})), r"element\[1\]\['name'\] has dtype string"),
    "a named text": (lambda: numbers().map(lambda n: Pair(n, tf.as_string(n))), r"element\.label has dtype string"),
    "ragged": (lambda: numbers().map(lambda n: tf.RaggedTensor.from_tensor([[n]])), "element is a RaggedTensorSpec"),
    "sparse": (lambda: numbers().map(lambda n: tf.sparse.from_dense([n])), "element is a SparseTensorSpec.*to_dense"),
    "windows": (lambda: numbers().window(2), "element is a DatasetSpec"),
    "variant": (lambda: numbers().map(lambda n: tf.raw_ops.EmptyTensorList(
        element_shape=np.zeros(0, np.int32), max_num_elements=1, element_dtype=tf.int32)), "element has dtype variant"),
    "quantized": (lambda: numbers().map(lambda n: tf.bitcast(tf.cast(n, tf.int8), tf.qint8)), "has dtype qint8"),
    "batches of two sizes": (lambda: numbers().batch(3), r"element has shape \(None,\).*drop_remainder=True"),
    "unknown rank": (lambda: numbers().map(lambda n: tf.numpy_function(lambda x: x, [n], tf.int64)), "shape <unknown>"),
    "endless": (lambda: numbers().repeat(), r"is infinite.*put its repeat\(\) after cached"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        make().apply(cached(tmp_path / "new"))
    assert names(tmp_path) == []


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fingerprint must be a string, got 3"):
        cached(tmp_path, fingerprint=3)  # type: ignore[arg-type]

    @tf.function  # type: ignore[untyped-decorator]
    def inside() -> Any:
        return numbers().apply(cached(tmp_path / "new")).reduce(np.int64(0), lambda a, b: a + b)

    with pytest.raises(ValueError, match=r"outside of tf\.function"):
        inside()
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------ fills that fail


def test_a_dataset_that_fails_leaves_nothing_and_raises_its_error(tmp_path: Path) -> None:
    failing = wide(200).map(lambda n: 1 // (150 - n))
    done: list[int] = []
    with pytest.raises(tf.errors.InvalidArgumentError, match="division by zero"):
        failing.apply(cached(tmp_path / "a" / "b", progress=lambda now, _: done.append(now)))
    assert done  # it had begun to write
    assert names(tmp_path) == []
    assert values(numbers().apply(cached(tmp_path / "a" / "b"))) == list(range(10))


def test_a_fill_that_is_interrupted_leaves_a_folder_that_was_there_as_it_was(tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        assert [name[:6] for name in names(tmp_path)] == [".fill-"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        numbers().apply(cached(tmp_path, progress=interrupt))
    assert names(tmp_path) == []


def test_a_disk_that_is_full_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match=r"cannot read or write.*No space left"):
        numbers().apply(cached(tmp_path / "new"))
    assert names(tmp_path) == []


FILLER = """
import sys, time
import tensorflow as tf
from joulecache.pipelines.loading.element_cache import cached

def wait(done, total):
    print("midst", flush=True)
    sys.stdin.readline()

numbers = tf.data.Dataset.range(int(sys.argv[2]), int(sys.argv[2]) + 10)
print(*(int(n) for n in numbers.apply(cached(sys.argv[1], progress=wait))), flush=True)
"""


def start_filler(folder: Path, start: int) -> subprocess.Popen[str]:
    """Start a process that fills a folder with ten numbers, and has written them when this returns; a line makes it go on."""
    pipe = subprocess.PIPE
    command = python(FILLER, folder, start, strict=False)
    process = subprocess.Popen(
        command, env=environment(), text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "midst\n"
    return process


@pytest.mark.slow
def test_a_fill_that_is_killed_leaves_nothing_visible_and_the_next_one_sweeps(tmp_path: Path) -> None:
    with start_filler(tmp_path, 500) as process:
        process.kill()
    (left,) = names(tmp_path)
    assert left.startswith(".fill-")
    assert names(tmp_path / left) == ["component-000.npy", "manifest.json"]
    (tmp_path / (".fill-" + "0" * 32)).mkdir()  # of a process that was killed before it had its manifest
    assert values(numbers().apply(cached(tmp_path))) == list(range(10))
    assert names(tmp_path) == ["elements"]


def test_a_sweep_takes_only_what_is_ours(tmp_path: Path) -> None:
    work = tmp_path / (".fill-" + "a" * 32)
    work.mkdir()
    for name in ("component-000.npy", "component-001-12345678.npy", "manifest.json", "mine.npy"):
        (work / name).write_bytes(b"")
    numbers().apply(cached(tmp_path))
    assert names(tmp_path) == [work.name, "elements"]
    assert names(work) == ["mine.npy"]


@pytest.mark.parametrize("still_there", [True, False])
def test_a_folder_that_another_sweep_takes_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still_there: bool
) -> None:
    lock = fcntl.flock
    taken: list[Path] = []

    def flock(file: Any, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            if still_there:
                raise BlockingIOError
            shutil.rmtree(taken[0])
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert values(numbers().apply(cached(tmp_path))) == list(range(10))
    assert names(tmp_path) == [path.name for path in taken if still_there] + ["elements"]


@pytest.mark.slow
def test_of_processes_that_fill_at_once_the_first_to_end_is_kept_and_the_other_reads_it(tmp_path: Path) -> None:
    with start_filler(tmp_path, 500) as process:
        (living,) = names(tmp_path)
        assert values(numbers().apply(cached(tmp_path))) == list(range(10))
        assert names(tmp_path) == [living, "elements"]  # not swept
        said, _ = process.communicate("\n")
    assert (process.returncode, said) == (0, "0 1 2 3 4 5 6 7 8 9\n")
    assert names(tmp_path) == ["elements"]


def test_many_that_fill_at_once_all_read_the_same(tmp_path: Path) -> None:
    together = threading.Barrier(6)
    came: list[list[int]] = []

    def wait(done: int, total: int | None) -> None:
        together.wait()

    def fill(start: int) -> None:
        dataset = numbers(start=start).apply(cached(tmp_path / "new", progress=wait))
        came.append(values(dataset))

    threads = [threading.Thread(target=fill, args=(100 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(came) == 6
    assert came.count(came[0]) == 6
    assert names(tmp_path / "new") == ["elements"]


def test_one_that_loses_to_another_fingerprint_is_refused(tmp_path: Path) -> None:
    def overtake(done: int, total: int | None) -> None:
        numbers().apply(cached(tmp_path, fingerprint="first"))

    with pytest.raises(CacheError, match="was filled with fingerprint 'first', but this dataset has 'second'"):
        numbers().apply(cached(tmp_path, fingerprint="second", progress=overtake))
    assert names(tmp_path) == ["elements"]


# ------------------------------------------------------------------------------------------ damage


def damage_shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def damage_kind(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(40, 8, 8, 3)", b"(40, 3, 8, 8)", 1))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shorter": (damage_shorter, "11775 bytes, not the 11776 of its manifest"),
    "longer": (damage_longer, "11777 bytes, not the 11776 of its manifest"),
    "header": (damage_header, r"does not hold 40 rows of element\[0\]: uint8\[8, 8, 3\]"),
    "missing": (Path.unlink, "is missing"),
    "a folder": (damage_kind, "bytes, not the 11776"),
}
IMAGES = [Component("element[0]", "uint8", (8, 8, 3)), Component("element[1]", "int64", ())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the elements of `images`; only to be read."""
    folder = tmp_path_factory.mktemp("whole")
    images().apply(cached(folder))
    return folder


@pytest.fixture
def filled(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`."""
    return shutil.copytree(whole, tmp_path / "filled")


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_refused(filled: Path, what: str) -> None:
    damage, message = DAMAGES[what]
    damage(data_files(filled)[0])
    with pytest.raises(CacheError, match=f"{message}.*use another folder, or delete"):
        map_elements(filled, IMAGES, "")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], sign: bool) -> None:
    """Edit a manifest as `change` does, which may return another object; `sign` it with the digest that belongs to it."""
    path = folder / "elements" / "manifest.json"
    body = json.loads(path.read_bytes())
    body = change(body) or body
    if sign:
        body.pop("digest", None)
        spelled = json.dumps(body, sort_keys=True, separators=(",", ":"))
        body["digest"] = hashlib.sha256(spelled.encode()).hexdigest()
    path.write_text(json.dumps(body))


def in_file(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["files"][0].update({key: value})


# What somebody can write who knows the digest, and what it is refused for.
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda body: body.update(format_version=2), "format version 2, this joulecache reads 1"),
    "no version": (lambda body: body.pop("format_version") and None, "format version None"),
    "elements": (lambda body: body.update(elements=["element: uint8[]"]), "was filled with elements"),
    "another fingerprint": (lambda body: body.update(fingerprint="b" * 9999), "was filled with fingerprint"),
    "count": (lambda body: body.update(count=41), "does not list the files"),
    "fewer": (lambda body: body.update(count=-1), "at count"),
    "a file of another kind": (lambda body: body.update(files=["a", "b"]), "at files/0"),
    "one file": (lambda body: body["files"].pop() and None, "does not list the files"),
    "more files": (lambda body: body["files"].append(body["files"][0]), "does not list the files"),
    "another place": (in_file("name", "../component-000-12345678.npy"), "does not list the files"),
    "a hash that is a place": (in_file("sha256", "../../.." + "a" * 56), "at files/0/sha256"),
    "another size": (in_file("bytes", 4096), "does not list the files"),
    "another hash": (in_file("sha256", "ab" * 32), "does not list the files"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_refused(filled: Path, what: str) -> None:
    change, message = HOSTILE[what]
    edit(filled, change, sign=True)
    with pytest.raises(CacheError, match=f"{message}.*use another folder, or delete") as caught:
        map_elements(filled, IMAGES, "")
    assert len(str(caught.value)) < 2000


def test_an_edited_manifest_is_refused_and_one_spelled_otherwise_is_not(filled: Path) -> None:
    edit(filled, lambda body: None, sign=True)
    count, arrays = map_elements(filled, IMAGES, "")
    assert (count, [array.shape for array in arrays]) == (40, [(40, 8, 8, 3), (40,)])
    edit(filled, lambda body: body.update(count=41), sign=False)
    with pytest.raises(CacheError, match="does not match its own digest"):
        map_elements(filled, IMAGES, "")


def test_a_hash_that_moves_all_files_of_the_manifest_finds_none(filled: Path) -> None:
    def move(body: dict[str, Any]) -> None:
        in_file("sha256", "ab" * 32)(body)
        in_file("name", "component-000-abababab.npy")(body)

    edit(filled, move, sign=True)
    with pytest.raises(CacheError, match=r"component-000-abababab\.npy is missing"):
        map_elements(filled, IMAGES, "")


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"format_version": 1}', "\0" * 100])
def test_what_is_no_manifest_is_refused(filled: Path, text: str) -> None:
    (filled / "elements" / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match="use another folder, or delete"):
        map_elements(filled, IMAGES, "")


def test_a_manifest_of_any_size_is_not_read(filled: Path) -> None:
    os.truncate(filled / "elements" / "manifest.json", 1 << 25)
    with pytest.raises(CacheError, match="33554432 bytes, but a manifest has at most"):
        map_elements(filled, IMAGES, "")


# ------------------------------------------------------------------------------------------ memory


READER = """
import sys
import tensorflow as tf
from joulecache.pipelines.loading.element_cache import cached

def anonymous():
    status = open("/proc/self/status").read().split()
    return int(status[status.index("RssAnon:") + 1]) >> 10

def check(name, dtype, count, seen):
    numbers = tf.data.Dataset.range(count).map(lambda n: (tf.cast(tf.fill([1 << 16], n % 256), dtype), n))
    filled = numbers.apply(cached(sys.argv[1] + name, progress=lambda *_: seen.append(anonymous())))
    for _ in range(2):
        rows = 0
        for images, numbers in filled.shuffle(64).batch(32).prefetch(2):
            assert bool(tf.reduce_all(images == tf.cast(numbers % 256, dtype)[:, None]))
            rows += len(numbers)
            seen.append(anonymous())
        assert rows == count

for dtype, count in (("uint8", 4096), ("bfloat16", 2048)):
    check("small" + dtype, dtype, 128, [])  # what TensorFlow needs once
    seen = [anonymous()]
    check(dtype, dtype, count, seen)
    print(max(seen) - seen[0])
"""


@pytest.mark.slow
def test_elements_stay_in_the_files(tmp_path: Path) -> None:
    """Filling and reading 256 MB takes no memory of that size; TensorFlow alone would make up an input as large."""
    # what is freed is given back: only what is held counts
    said = run_python(READER, f"{tmp_path}/", strict=False, MALLOC_MMAP_THRESHOLD_=str(1 << 16))
    assert said.returncode == 0, said.stderr
    grown_mb = [int(line) for line in said.stdout.split()]
    assert len(grown_mb) == 2
    assert max(grown_mb) < 64


@pytest.mark.skipif(
    Path("/proc/sys/vm/overcommit_memory").read_text() == "2\n", reason="this kernel promises no memory"
)
def test_elements_may_be_more_than_the_memory(tmp_path: Path) -> None:
    row_bytes = 1 << 20
    count = (psutil.virtual_memory().total + psutil.swap_memory().total) // row_bytes * 2
    dataset = numbers(1).map(lambda n: tf.cast(tf.fill([row_bytes], n + 7), tf.uint8))
    dataset.apply(cached(tmp_path))
    (path,) = data_files(tmp_path)
    with open(path, "r+b") as file:
        file.write(Component("element", "uint8", (row_bytes,)).header(count))
        file.truncate(PAGE + count * row_bytes)  # a hole: no disk is needed
    edit(tmp_path, lambda body: body.update(count=count) or in_file("bytes", path.stat().st_size)(body), sign=True)
    large = dataset.apply(cached(tmp_path))
    assert int(large.cardinality()) == count
    first, last = large.take(1), large.skip(count - 1)
    assert [int(tf.reduce_sum(tf.cast(row, tf.int64))) for rows in (first, last) for row in rows] == [7 * row_bytes, 0]


# ------------------------------------------------------------------------------------------ progress


@pytest.mark.parametrize("known", [True, False])
def test_progress_is_told(tmp_path: Path, known: bool) -> None:
    dataset = wide() if known else wide().filter(lambda n: n[0] >= 0)
    told: list[tuple[int, int | None]] = []
    filled = dataset.apply(cached(tmp_path, progress=lambda done, total: told.append((done, total))))
    assert told == [(done, 37 if known else None) for done in (16, 32, 37)]
    assert [int(element[-1]) for element in filled] == list(range(37))


def test_a_short_fill_is_quiet_and_a_long_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers().apply(cached(tmp_path))
    assert capsys.readouterr() == ("", "")
    with progress_on_stderr(tmp_path / "[red]", delay_s=0) as tell:
        tell(16, 37)
    assert capsys.readouterr() == ("", f"filling {tmp_path}/[red]: 16 of 37 (elements)\n")
