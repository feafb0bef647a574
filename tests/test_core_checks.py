"""Arguments are refused in one line that says what must be what, and what it got."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulecache.pipelines.core.checks import (
    check_choice,
    check_choices,
    check_flag,
    check_integer,
    check_number,
    check_path,
    check_text,
    shown,
)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 10**5000, -(10**100), list(range(10**5)), deep(5000), b"y" * 10**5],
    ids=lambda value: type(value).__name__,
)
def test_values_are_shown_in_short(value: object) -> None:
    assert len(shown(value)) < 200


def test_short_values_are_shown_as_they_are() -> None:
    values: list[object] = [None, True, 3, -0.1, "it's", "\n", (1, "a"), {"a": [1.5]}, math.nan]
    assert [shown(value) for value in values] == list(map(repr, values))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_integer("batch_size", 0), "batch_size must be an integer of at least 1, got 0"),
        (lambda: check_integer("seed", -1, 0, 9), "seed must be an integer from 0 to 9, got -1"),
        (lambda: check_integer("seed", 10, 0, 9), "seed must be an integer from 0 to 9, got 10"),
        (lambda: check_integer("n", 2.0), "n must be an integer of at least 1, got 2.0"),
        (lambda: check_integer("n", True), "n must be an integer of at least 1, got True"),
        (lambda: check_number("x", math.nan), "x must be a finite number, got nan"),
        (lambda: check_number("x", math.inf, 0), "x must be a finite number of at least 0, got inf"),
        (lambda: check_number("x", -1, 0), "x must be a finite number of at least 0, got -1"),
        (lambda: check_number("x", 0, above=0), "x must be a finite number above 0, got 0"),
        (lambda: check_number("x", 1, 0, below=1), "x must be a finite number of at least 0 and below 1, got 1"),
        (lambda: check_number("x", 2, 0, 0.9), "x must be a number from 0 to 0.9, got 2"),
        (lambda: check_number("x", False), "x must be a finite number, got False"),
        (lambda: check_number("x", "3"), "x must be a finite number, got '3'"),
        (lambda: check_choice("format", "zip", ("arrow", "png")), "format must be one of arrow, png, got 'zip'"),
        (lambda: check_choice("format", ["png"], ("png",)), "format must be one of png, got ['png']"),
        (lambda: check_choices("arms", (), ("a", "b")), "arms must be some of a, b, each once, got none"),
        (lambda: check_choices("arms", ("a", "a"), ("a", "b")), "arms must be some of a, b, each once, got a, a"),
        (lambda: check_choices("arms", "a", ("a", "b")), "arms must be some of a, b, each once, got 'a'"),
        (lambda: check_choices("arms", ("a",), ("a", "b"), needed=["b"]), "arms must include b, got a"),
        (lambda: check_text("name", ""), "name must be a non-empty string, got ''"),
        (lambda: check_text("name", 3, allow_empty=True), "name must be a string, got 3"),
        (lambda: check_path("cache", None), "cache must be a path, got None"),
        (lambda: check_path("cache", b"a"), "cache must be a path, got b'a'"),
        (lambda: check_path("cache", ""), "cache must be a path, got ''"),
        (lambda: check_flag("drop", 1), "drop must be True or False, got 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(check: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        check()
    assert str(caught.value) == message


def test_numbers_of_numpy_become_python_numbers() -> None:
    values = [
        check_integer("n", np.int64(3)),
        check_integer("n", np.uint8(3), 0, 9),
        check_number("x", np.float32(0.5)),
    ]
    assert values == [3, 3, 0.5]
    assert [type(value) for value in values] == [int, int, float]
    wrong: list[object] = [np.float64(3.0), np.bool_(True), np.array([3]), "3"]
    for value in wrong:
        with pytest.raises(ValueError, match="n must be an integer of at least 1, got "):
            check_integer("n", value)
    with pytest.raises(ValueError, match="x must be a finite number, got "):
        check_number("x", np.float32("inf"))


def test_a_huge_integer_is_no_finite_number() -> None:
    with pytest.raises(ValueError, match="x must be a finite number") as caught:
        check_number("x", 10**5000)
    assert len(str(caught.value)) < 200


def test_what_is_right_passes() -> None:
    assert check_integer("n", 2**64 - 1, 0, 2**64 - 1) == 2**64 - 1
    assert type(check_number("x", 3, 0, 3)) is int
    assert check_number("x", 0.0, 0, below=1) == 0.0
    check_choice("format", "arrow", ("arrow", "png"))
    check_choices("arms", ["b", "a"], ("a", "b"), needed=("a",))
    check_text("name", "", allow_empty=True)
    assert check_path("cache", Path("a", "b")) == check_path("cache", "a/b") == "a/b"
    check_flag("drop", True)
