"""Elements of any tf.data pipeline in mapped files: computed once, then shared by every run and process that reads them.

A folder of ours holds ``elements/``: one ``.npy`` file for each tensor of an element, and ``manifest.json``, which says whose
they are. It is filled as ``.fill-<random>/`` beside it and renamed when it is whole, so that it is there or not, never half.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import mmap
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from numpy.lib import format as npy
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from joulecache.pipelines.cache.arrow_shards import PAGE
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.files import sync_folder

_FORMAT_VERSION = 1
_ELEMENTS = "elements"
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 24
_LONGEST_MESSAGE = 500  # of what a hostile manifest can make long
_FILL = re.compile(r"\.fill-[0-9a-f]{32}")
_FILL_FILE = re.compile(r"component-\d{3,}(-[0-9a-f]{8})?\.npy|manifest\.json")
_SHA256 = re.compile("[0-9a-f]{64}")

_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
_BATCH_BYTES = 1 << 21  # written at once
_BATCH_ELEMENTS = 1 << 14  # the most of them, however small
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has its name from 3.13
_QUIET_S = 2  # before the first word about progress
_PROGRESS_EVERY_S = 60  # between lines where stderr is no terminal

_Tell = Callable[[int, int | None], None]


def cached(
    directory: str | os.PathLike[str],
    *,
    fingerprint: str = "",
    progress: Callable[[int, int | None], None] | None = None,
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Return what `tf.data.Dataset.apply` takes to keep a dataset's elements in a folder: ``ds.apply(cached("dir/"))``.

    In place of ``ds.cache()``, for elements (tuples, dicts, NamedTuples, nested) of tensors that have a fixed shape and a dtype of fixed
    width. The folder is filled at once, when it is applied, in little memory; `progress` is called with how many elements are
    done, of how many (None: unknown), by default people are told on stderr. From then on the files are mapped, by any number of
    processes, and the dataset itself is not run. The elements come in the order that they had when the folder was filled, at
    every iteration: draws and shuffles before it are frozen, as by ``cache()``, so shuffle after it.

    A folder holds one dataset. Another spec of its elements, or another `fingerprint` (any text of yours that says what they
    are: ``"v2 of my augmentation"``), is refused; other changes of the pipeline cannot be seen. A fill that fails, or is killed,
    leaves nothing that is read. Of processes that fill a folder at once the first to end is kept, and all read its elements.
    Opening checks headers and sizes, not every byte: the files carry the first 8 digits of their SHA-256 in their names.

    Raises ValueError for a dataset that cannot be kept, CacheError for a folder that is someone else's, differs or is damaged.
    """
    if not isinstance(fingerprint, str):
        raise ValueError(f"fingerprint must be a text, got {fingerprint!r}")
    folder = Path(directory)

    def apply(dataset: tf.data.Dataset) -> tf.data.Dataset:
        if not tf.executing_eagerly():
            raise ValueError("cached() fills its folder when it is applied: apply it outside of tf.function")
        components = _components(dataset)
        try:
            if not _is_filled(folder):
                _fill(folder, dataset, components, fingerprint, progress)
            count, arrays = _open(folder, components, fingerprint)
        except OSError as error:
            raise CacheError(f"cannot read or write {str(folder)!r}: {error.strerror or error}") from error
        return _mapped_dataset(arrays, components, count, dataset)

    return apply


@dataclass(frozen=True)
class _Component:
    """One tensor of every element: where it stands in them (``element[0]['image']``), its dtype and its shape."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path}: {self.dtype}{list(self.shape)}"

    @property
    def stored(self) -> np.dtype[Any]:
        # NumPy has no bfloat16 that others can load.
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.stored.itemsize

    def header(self, count: int) -> bytes:
        """Return what stands before the data of so many elements: one page, for misaligned data aborts in TensorFlow."""
        fields = {"descr": npy.dtype_to_descr(self.stored), "fortran_order": False, "shape": (count, *self.shape)}
        start = npy.magic(1, 0) + (PAGE - npy.MAGIC_LEN - 2).to_bytes(2, "little")
        return start + repr(fields).encode().ljust(PAGE - len(start) - 1) + b"\n"


def _components(dataset: Any) -> list[_Component]:
    """Return the tensors of a dataset's elements in the order of `tf.nest.flatten`; ValueError for what cannot be kept."""
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("the dataset has no end and cannot be kept: put its repeat() after cached(...)")
    components = []
    for path, spec in _leaves(dataset.element_spec, "element"):
        if not isinstance(spec, tf.TensorSpec):
            raise ValueError(
                f"{path} is a {type(spec).__name__}, cached() keeps tensors of one shape: make it one (to_tensor with a shape, "
                f"tf.sparse.to_dense), or leave it out"
            )
        if spec.dtype.name not in _DTYPES:
            raise ValueError(
                f"{path} is of dtype {spec.dtype.name}, cached() keeps {', '.join(_DTYPES)}: decode or parse it before, "
                f"cast it, or leave it out"
            )
        if not spec.shape.is_fully_defined():
            raise ValueError(
                f"{path} has the shape {spec.shape}, cached() keeps tensors of one known shape: resize or pad it, set_shape where it "
                f"is known, batch(..., drop_remainder=True), or batch after cached(...)"
            )
        components.append(_Component(path, spec.dtype.name, tuple(spec.shape)))
    return components


def _leaves(spec: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(spec, Mapping):
        for key in sorted(spec):
            yield from _leaves(spec[key], f"{path}[{key!r}]")
    elif isinstance(spec, tuple):
        names = getattr(spec, "_fields", None)
        for place, part in enumerate(spec):
            yield from _leaves(part, f"{path}.{names[place]}" if names else f"{path}[{place}]")
    else:
        yield path, spec


def _files(components: list[_Component], count: int, hashes: list[str]) -> list[dict[str, Any]]:
    """Return the files of so many elements as the manifest lists them."""
    names = [f"component-{number:03d}-{sha256[:8]}.npy" for number, sha256 in enumerate(hashes)]
    sizes = [PAGE + count * component.row_bytes for component in components]
    parts = zip(names, sizes, hashes, strict=True)
    return [{"name": name, "bytes": size, "sha256": sha256} for name, size, sha256 in parts]


def _is_filled(folder: Path) -> bool:
    """Say whether there are elements, False for a folder that may be filled; CacheError for any other."""
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{str(folder)!r} is a file: choose a folder that is empty or does not exist")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if _ELEMENTS in names:
        return True
    if any(not _FILL.fullmatch(name) for name in names):
        raise CacheError(
            f"{str(folder)!r} is not empty and not filled by cached(): choose a folder that is empty or does not exist"
        )
    return False


# Filling --------------------------------------------------------------------------------------------------------------


def _fill(folder: Path, dataset: Any, components: list[_Component], fingerprint: str, progress: _Tell | None) -> None:
    """Run the dataset once into the folder; what others have filled in the meantime stays. A failure leaves nothing behind."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with ExitStack() as stack:
            work, manifest = stack.enter_context(_work_folder(folder))
            tell = progress or stack.enter_context(_told_on_stderr(folder))
            count, files = _write_components(work, dataset, components, tell)
            body = {
                "format_version": _FORMAT_VERSION,
                "elements": [str(component) for component in components],
                "fingerprint": fingerprint,
                "count": count,
                "files": files,
            }
            manifest.write(json.dumps({**body, "digest": _digest(body)}, indent=1).encode())
            manifest.flush()
            os.fsync(manifest.fileno())
            sync_folder(work)
            try:
                work.rename(folder / _ELEMENTS)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was first
                    raise
            sync_folder(folder)
    except BaseException:
        with suppress(OSError):  # someone else's file is in it by now
            for path in made:
                path.rmdir()
        raise


@contextmanager
def _work_folder(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Give a new folder to fill, and its manifest to write last; delete what is left of it in the end."""
    manifest = None
    while manifest is None:  # only a sweep between the two steps makes it fail
        work = folder / f".fill-{uuid.uuid4().hex}"
        work.mkdir()
        manifest = _hold(work)
    with manifest:
        try:
            yield work, manifest
        finally:
            _delete(work)


def _hold(work: Path) -> BinaryIO | None:
    """Return the manifest of a folder that is being filled, locked while it is open; None if another process has it, or it is gone.

    The lock says that the process lives: it ends with it, however that ends.
    """
    try:
        file = open(work / _MANIFEST, "ab")  # noqa: SIM115 - held while the folder is filled
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat((work / _MANIFEST).stat(), os.fstat(file.fileno())):
            return file
    file.close()
    return None


def _sweep(folder: Path) -> None:
    """Delete what fills have left whose process was killed."""
    for work in folder.iterdir():
        manifest = _hold(work) if _FILL.fullmatch(work.name) else None
        if manifest:
            with manifest:
                _delete(work)


def _delete(work: Path) -> None:
    with suppress(OSError):  # it was renamed, or the next fill deletes what is left
        for path in work.iterdir():
            if _FILL_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        work.rmdir()


def _write_components(
    work: Path, dataset: Any, components: list[_Component], tell: _Tell
) -> tuple[int, list[dict[str, Any]]]:
    """Write the elements batch by batch; return how many they are, and the files."""
    known = int(dataset.cardinality())
    total = known if known >= 0 else None
    element_bytes = sum(component.row_bytes for component in components)
    batch_size = max(1, min(_BATCH_BYTES // max(1, element_bytes), _BATCH_ELEMENTS))
    count = 0
    with ExitStack() as stack:
        columns = [
            stack.enter_context(_Column(work / f"component-{number:03d}.npy", component, total or 0))
            for number, component in enumerate(components)
        ]
        for batch in dataset.batch(batch_size).prefetch(2):
            tensors = tf.nest.flatten(batch)
            for column, tensor in zip(columns, tensors, strict=True):
                column.append(tensor.numpy())
            count += len(tensors[0])
            tell(count, total)
        files = _files(components, count, [column.finish(count) for column in columns])
    for column, file in zip(columns, files, strict=True):
        column.path.rename(work / file["name"])
    return count, files


class _Column:
    """A component's file while it is written; `announced` is the number of elements that is expected."""

    def __init__(self, path: Path, component: _Component, announced: int) -> None:
        self.path, self._component, self._announced = path, component, announced
        self._file = open(path, "xb")  # noqa: SIM115 - closed by __exit__
        self._hash = hashlib.sha256()
        self._write(component.header(announced))

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, data: Any) -> None:
        self._file.write(data)
        self._hash.update(data)

    def append(self, rows: NDArray[Any]) -> None:
        self._write(rows.reshape(-1).view(np.uint8))

    def finish(self, count: int) -> str:
        """Make the file durable and return its SHA-256; it is read again for that where the number was not known before."""
        if count != self._announced:
            self._file.seek(0)
            self._file.write(self._component.header(count))
        self._file.flush()
        os.fsync(self._file.fileno())
        if count == self._announced:
            return self._hash.hexdigest()
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _told_on_stderr(folder: Path) -> Iterator[_Tell]:
    """Give what shows how far a fill is once it takes long: in place on a terminal, a line a minute elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("filling {task.description}", markup=False), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(str(folder), total=None)
    started, told = time.monotonic(), -math.inf

    def tell(done: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - started < _QUIET_S:
            return
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done, total=total)
        elif now - told >= _PROGRESS_EVERY_S:
            told = now
            line = f"filling {folder}: {done:,}" + f" of {total:,}" * (total is not None) + " elements"
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()


# Reading --------------------------------------------------------------------------------------------------------------


def _open(folder: Path, components: list[_Component], fingerprint: str) -> tuple[int, list[NDArray[Any]]]:
    """Map the elements of a folder: (how many, an array ``[count, ...]`` for each component). Raises CacheError.

    Nothing in it is trusted: the manifest has to say exactly what follows from the dataset, the number of elements and the hashes.
    """
    path = folder / _ELEMENTS / _MANIFEST
    again = f"use another folder, or delete {str(folder)!r} to fill it again"
    body = _read_manifest(path, again)
    for key, ours in (("elements", [str(component) for component in components]), ("fingerprint", fingerprint)):
        if body.get(key) != ours:
            theirs = repr(body.get(key))[:_LONGEST_MESSAGE]
            raise CacheError(f"{str(folder)!r} was filled with {key} {theirs}, this dataset has {ours!r}: {again}")
    count, files = body.get("count"), body.get("files")
    listed = files if isinstance(files, list) else []
    hashes: list[Any] = [file.get("sha256") if isinstance(file, dict) else None for file in listed]
    if (
        type(count) is not int
        or not 0 <= count < 2**53
        or len(hashes) != len(components)
        or not all(isinstance(sha256, str) and _SHA256.fullmatch(sha256) for sha256 in hashes)
        or files != _files(components, count, hashes)
    ):
        raise CacheError(f"{path} does not list the files of such elements: {again}")
    places = [path.parent / file["name"] for file in listed]
    return count, [_map(*of, count, again) for of in zip(places, components, strict=True)]


def _read_manifest(path: Path, again: str) -> dict[str, Any]:
    """Return a manifest of ours that nobody has changed; CacheError for any other."""
    if not path.is_file():
        raise CacheError(f"{path} is missing: {again}")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise CacheError(f"{path} has {path.stat().st_size} bytes, more than any of ours: {again}")
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        version = body.get("format_version")
        whole = body.pop("digest", None) == _digest(body)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CacheError(f"{path} is not readable as a JSON object ({error}): {again}") from error
    if version != _FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {version!r}, this joulecache reads {_FORMAT_VERSION}: upgrade it, or {again}"
        )
    if not whole:
        raise CacheError(f"{path} does not match its own digest, it was edited or damaged: {again}")
    return body


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _map(path: Path, component: _Component, count: int, again: str) -> NDArray[Any]:
    """Map the rows of a file ``[count, ...]``; CacheError when it is not exactly such a file."""
    size = PAGE + count * component.row_bytes
    try:
        actual = path.stat().st_size
        if actual != size:
            raise CacheError(
                f"{path} has {actual} bytes, not the {size} of its manifest, it was cut or changed: {again}"
            )
        with open(path, "rb") as file:
            if file.read(PAGE) != component.header(count):
                raise CacheError(f"{path} does not hold {count} rows of {component}, it was changed: {again}")
            # TensorFlow takes over only memory that can be written to. It would count against the machine's memory, and a
            # file that is larger be refused, without NORESERVE. What someone wrote to it would never reach the file.
            access = mmap.PROT_READ | mmap.PROT_WRITE
            mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=access)
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing: {again}") from error
    return np.ndarray((count, *component.shape), component.stored, mapped, PAGE)


def _mapped_dataset(arrays: list[NDArray[Any]], components: list[_Component], count: int, like: Any) -> Any:
    """Return the rows of the arrays as a dataset with the structure and the options of another, without a copy."""
    spec = like.element_spec
    with tf.device("CPU:0"):
        tensors = []
        for array, component in zip(arrays, components, strict=True):
            assert array.ctypes.data % PAGE == 0
            tensor = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
            tensors.append(tf.bitcast(tensor, tf.bfloat16) if component.dtype == "bfloat16" else tensor)
        # When a pipeline is optimized, TensorFlow makes up (and fills) an input as large as each tensor that a dataset holds: twice
        # the cache in memory. What an Optional holds it does not see.
        rows = tf.experimental.Optional.from_value(tuple(tensors))

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def slices(_: Any) -> Any:
        return tf.data.Dataset.from_tensor_slices(tf.nest.pack_sequence_as(spec, rows.get_value()))

    dataset = tf.data.Dataset.range(1).flat_map(slices).apply(tf.data.experimental.assert_cardinality(count))
    return dataset.with_options(like.options())
