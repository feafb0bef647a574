"""Files appear whole or not at all, locks hold across processes, and folders of others are not written to."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from caches import names_in
from processes import environment, python

from joulecache.pipelines.core.files import (
    LockHeldError,
    atomic_write,
    check_folder,
    hold_lock,
    is_temporary,
    lock_path,
    made_folder,
    refuse_overlap,
    sha256_of,
    staged_folder,
    temporary_path,
    write_bytes,
    write_named,
    write_text,
)

FILES = "from contextlib import suppress; from pathlib import Path; import sys, time, os; from joulecache.pipelines.core.files import *"


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another Python process, which has printed its first line when the block begins, and is killed at its end."""
    command = python(f"{FILES}\n{code}", *arguments)
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


# ------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    write_text(path, "old", durable=durable)
    write_bytes(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == {"file"}


def test_a_file_has_the_mode_that_open_gives(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == {"file"}


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    code = "with atomic_write(Path(sys.argv[1])) as file: file.write(b'x' * 10**6); print('ready', flush=True); time.sleep(60)"
    with process(code, path) as writer:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert path.read_text() == "old"
    (left,) = names_in(tmp_path) - {"file"}
    assert is_temporary(left)


def test_temporary_names_are_told_from_others() -> None:
    assert is_temporary("." + "0f" * 16 + ".tmp")
    assert not any(map(is_temporary, ["x.tmp", ".hidden.tmp", "." + "0F" * 16 + ".tmp", "." + "0f" * 16 + ".tmp\n"]))


def test_a_temporary_path_is_gone_unless_it_was_renamed(tmp_path: Path) -> None:
    with temporary_path(tmp_path) as path:
        path.write_text("x")
    with temporary_path(tmp_path) as path:
        path.write_text("kept")
        path.rename(tmp_path / "kept")
    assert names_in(tmp_path) == {"kept"}


# ------------------------------------------------------------------------------------------ names from content


@pytest.mark.parametrize("sizes", [(), (0,), (5, 7), (1 << 20, 3), (3_000_001,)])
def test_a_file_is_named_by_its_content(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    content = b"".join(os.urandom(size) for size in sizes)

    def write(file: BinaryIO) -> None:
        place = 0
        for size in sizes:
            file.write(content[place : place + size])
            place += size

    size, sha256, name = write_named(tmp_path, write, lambda digest: f"data-{digest}.bin")
    expected = hashlib.sha256(content).hexdigest()
    assert (size, sha256, name) == (len(content), expected, f"data-{expected[:8]}.bin")
    assert (tmp_path / name).read_bytes() == content
    assert sha256_of(tmp_path / name) == expected
    assert names_in(tmp_path) == {name}


def test_a_named_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_named(tmp_path, write, str)
    assert names_in(tmp_path) == set()


# ------------------------------------------------------------------------------------------ locks

HOLD = "with hold_lock(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)"


def test_a_held_lock_is_refused_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    with process(HOLD, path) as holder, pytest.raises(LockHeldError, match="locked by process") as caught:
        hold_lock(path, wait=False).__enter__()
    assert (caught.value.path, caught.value.holder) == (path, str(holder.pid))


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with process(HOLD, path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with hold_lock(path, wait=False):
            assert path.read_text() == str(os.getpid())


def test_a_lock_that_its_holder_deletes_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    code = """
with hold_lock(Path(sys.argv[1])) as held:
    print('ready', flush=True)
    time.sleep(0.5)
    os.unlink(sys.argv[1])
    os.rmdir(os.path.dirname(sys.argv[1]))
"""
    with process(code, path) as holder, hold_lock(path):
        assert path.read_text() == str(os.getpid())
        holder.wait()
        with process("print('ready', flush=True)"), pytest.raises(LockHeldError):
            hold_lock(path, wait=False).__enter__()


def test_of_many_processes_one_holds_the_lock(tmp_path: Path) -> None:
    """Each adds 1 to a number several times, deleting the lock now and then; no addition is lost."""
    code = """
print('ready', flush=True)
lock, number = Path(sys.argv[1], 'work', 'lock'), Path(sys.argv[1], 'number')
for turn in range(50):
    with hold_lock(lock):
        number.write_text(str(int(number.read_text()) + 1))
        if turn % 5 == 0:
            lock.unlink()
            with suppress(OSError):  # the next one is in it already
                lock.parent.rmdir()
"""
    (tmp_path / "number").write_text("0")
    with process(code, tmp_path) as one, process(code, tmp_path) as two, process(code, tmp_path) as three:
        assert [each.wait(120) for each in (one, two, three)] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "150"


def test_errors_of_the_block_are_not_those_of_the_lock(tmp_path: Path) -> None:
    for error in (BlockingIOError, FileNotFoundError):
        with pytest.raises(error), hold_lock(tmp_path / "lock", wait=False):
            raise error
    with hold_lock(tmp_path / "lock", wait=False):
        pass


def test_a_link_is_no_lock_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"):
        hold_lock(tmp_path / "lock").__enter__()
    assert (tmp_path / "mine").read_text() == "mine"


def test_files_with_content_and_folders_are_locked(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with lock_path(path) as descriptor, lock_path(tmp_path):
        os.write(descriptor, b"{")
        os.write(descriptor, b"}")
        for locked in (path, tmp_path):
            with pytest.raises(LockHeldError) as caught:
                lock_path(locked, wait=False).__enter__()
            assert caught.value.holder == "unknown"
    assert path.read_text() == "{}"
    with pytest.raises(FileNotFoundError):
        lock_path(tmp_path / "missing" / "file").__enter__()


# ------------------------------------------------------------------------------------------ folders


def is_ours(folder: Path) -> bool:
    return (folder / "record").exists()


def test_folders_that_may_be_written_to(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", "a cache", is_ours)
    check_folder(tmp_path, "a cache", is_ours)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match="is not empty and not a cache: choose a folder"):
        check_folder(tmp_path, "a cache", is_ours)
    with pytest.raises(LookupError, match="is not a folder"):
        check_folder(tmp_path / "photo.jpg", "a cache", is_ours, LookupError)
    (tmp_path / "record").touch()
    check_folder(tmp_path, "a cache", is_ours)


def test_a_home_that_no_shell_expanded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named ``~`` is easily deleted together with the home: tensorflow/datasets#3903 and #4117."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(
        ValueError, match=r"no folder '~/c': only shells expand '~', and not after '=': write '/home/me/c'"
    ):
        check_folder(Path("~/c"), "a cache", is_ours)
    check_folder(Path("a/~/c"), "a cache", is_ours)
    check_folder(Path("~nobody-here/c"), "a cache", is_ours)
    (tmp_path / "~" / "c").mkdir(parents=True)
    check_folder(Path("~/c"), "a cache", is_ours)


@pytest.mark.parametrize(("source", "folder"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "link/b")])
def test_a_source_and_an_output_folder_are_apart(tmp_path: Path, source: str, folder: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="overlap: choose another cache folder"):
        refuse_overlap([tmp_path / "c", tmp_path / source], tmp_path / folder, "cache")
    refuse_overlap([tmp_path / "a"], tmp_path / "ab", "cache")


def test_a_folder_that_was_made_for_nothing_is_deleted(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError), made_folder(deep):
        raise RuntimeError
    assert names_in(tmp_path) == set()
    with pytest.raises(RuntimeError), made_folder(deep):  # noqa: PT012
        (tmp_path / "a" / "file").touch()
        raise RuntimeError
    assert names_in(tmp_path / "a") == {"file"}
    with made_folder(deep):
        pass
    assert deep.is_dir()


def fill(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).write_text("new")


def test_a_staged_folder_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "a" / "out", Path("other")):
        with staged_folder(out) as staging:
            fill(staging, "x", "y")
            assert not out.exists()
        assert names_in(out) == {"x", "y"}
        assert names_in(out.parent) in ({"out"}, {"a", "other"})


def test_a_staged_folder_that_fails_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out") as staging:  # noqa: PT012
        fill(staging, "x")
        raise RuntimeError
    assert names_in(tmp_path) == set()


def test_a_staged_folder_is_merged_into_one_that_exists(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("record", "x", "stale", "mine"):
        (out / name).write_text("old")
    with staged_folder(out, last="record", stale={"record", "x", "stale"}) as staging:
        fill(staging, "record", "x", "y")
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        **dict.fromkeys(("record", "x", "y"), "new"),
        "mine": "old",
    }
    assert names_in(tmp_path) == {"out"}


def test_the_last_file_of_a_staged_folder_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace: Callable[[Path, Path], Path] = Path.replace

    def note(path: Path, to: Path) -> Path:
        moved.append(path.name)
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", note)
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out", last="a") as staging:
        fill(staging, "a", "b", "c")
    assert sorted(moved) == ["a", "b", "c"]
    assert moved[-1] == "a"
