"""Large folders are listed on several threads, in the order of one, and show how many files are found."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import MakeSource, write_files
from rich.console import Console

from joulecache.pipelines.core import progress
from joulecache.pipelines.core.concurrent_walk import until, walk
from joulecache.pipelines.core.progress import progress_bar
from joulecache.pipelines.source import SourceConfig, SourceError, open_source
from joulecache.pipelines.source.folder import list_folder

TREE: Mapping[str, Sequence[str]] = {"": "ab", "a": ["a1", "a2"], "b": ["b1"], "a1": [], "a2": [], "b1": []}


def test_a_walk_is_in_the_order_of_one_thread_whichever_visit_ends_first() -> None:
    others = threading.Event()

    def visit(node: str, ended: threading.Event) -> tuple[str, Sequence[str]]:
        if node == "a":
            assert others.wait(60)  # its sibling is visited at the same time
        if node == "b":
            others.set()
        return node.upper(), TREE[node]

    assert [*walk("", visit)] == ["", "A", "A1", "A2", "B", "B1"]


def test_a_walk_ends_with_the_first_error_in_its_order() -> None:
    failed = threading.Event()

    def visit(node: str, ended: threading.Event) -> tuple[str, Sequence[str]]:
        if node == "b":
            failed.set()
            raise ValueError("b, which failed first")
        if node == "a":
            assert failed.wait(60)
            raise ValueError("a")
        return node, TREE[node]

    found = walk("", visit)
    assert next(found) == ""
    with pytest.raises(ValueError, match=r"^a$"):
        next(found)


def test_a_walk_that_ends_early_waits_for_no_long_visit() -> None:
    endless = itertools.repeat("b")
    begun, stopped = threading.Event(), threading.Event()

    def visit(node: str, ended: threading.Event) -> tuple[str, Sequence[str]]:
        if node == "b":
            begun.set()
            for _ in until(ended, endless):
                time.sleep(0.001)
            stopped.set()
        return node, TREE[node]

    found = walk("", visit)
    assert [next(found), next(found)] == ["", "a"]
    assert begun.wait(60)
    found.close()  # type: ignore[attr-defined]
    assert stopped.is_set()


def test_a_folder_is_listed_in_the_order_of_its_entries(tmp_path: Path) -> None:
    files = {f"{outer}/{inner}/{number}.jpg": b"" for outer in "cab" for inner in "zyx" for number in range(3)}
    root = write_files(tmp_path / "photos", {**files, "top.jpg": b"", "c/notes.txt": b"", "c/z/notes.txt": b""})
    (root / "empty").mkdir()
    (root / "b" / "again").symlink_to(root / "a" / "x")
    (root / "b" / "loop").symlink_to(root)
    listing = list_folder(root)
    walked = [
        (os.path.relpath(folder, root), files)
        for folder, folders, files in os.walk(root, followlinks=True)
        if "loop" not in folder and ("loop" not in folders or not folders.remove("loop"))  # type: ignore[func-returns-value]
    ]
    expected = [os.path.normpath(f"{folder}/{file}") for folder, files in walked for file in files]
    assert [*listing.names] == [name for name in expected if name.endswith(".jpg")]
    assert [*listing.beside] == [name for name in expected if name.endswith(".txt")]
    assert listing.skipped["empty"] == {}
    assert len(listing.notes) == 2


def test_a_folder_inside_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "photos", {f"{name}/1.jpg": b"" for name in "abc"})
    monkeypatch.chdir(tmp_path)
    os_scandir = os.scandir

    def scandir(path: str) -> object:
        if path == "photos/b":  # the superuser may read every folder
            raise PermissionError(13, "Permission denied", path)
        return os_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        SourceError, match=r"^cannot list 'photos/b' \(Permission denied\): make it readable or move it$"
    ):
        list_folder(Path(root.name))


@pytest.mark.parametrize(("kind", "is_short"), [("folder", False), ("tar", False), ("tars", False), ("folder", True)])
def test_a_long_listing_shows_what_is_found(
    tmp_path: Path, make_tar: MakeSource, monkeypatch: pytest.MonkeyPatch, kind: str, is_short: bool
) -> None:
    monkeypatch.setattr(progress, "_TALLY_EVERY_S", 0.0)
    if not is_short:
        monkeypatch.setattr(progress, "LINE_DELAY_S", 0.0)
    monkeypatch.setattr("joulecache.pipelines.source.folder.FILES_AT_ONCE", 2)
    monkeypatch.setattr("joulecache.pipelines.source.tar.FILES_AT_ONCE", 2)
    files = {f"{name}/{number}.jpg": b"1" for name in ("cat", "dog") for number in range(3)}
    for number in range(3 if kind == "tars" else 1):
        make_tar(files).rename(tmp_path / f"{number}.tar")
    source = {"folder": "folder", "tar": "0.tar", "tars": "*.tar"}[kind]
    write_files(tmp_path / "folder", files)
    output = io.StringIO()
    with progress_bar(console=Console(file=output), line_delay_s=0, line_every_s=0):
        open_source(tmp_path / source)
    open_source(tmp_path / source)  # no bar is open
    lines = output.getvalue().splitlines()
    if is_short:
        assert lines == []
    elif kind == "tars":
        assert lines == [f"archives listed: {number} of 3" for number in (1, 2, 3)]
    else:
        assert lines[-1] == "files found: 6"
        assert len(lines) > 2


def test_a_limit_keeps_the_chosen_units_alone(make_tar: MakeSource) -> None:
    path = make_tar({f"{number % 2}/{'long' * 20}{number}.jpg": b"1" for number in range(1000)})
    before = pa.total_allocated_bytes()
    source = open_source(path, SourceConfig(limit=10))
    assert source.records == 10
    assert pa.total_allocated_bytes() - before < 20_000  # of 140,000 for all
