"""Quantities as text: three digits, one unit for a value and its bounds, nothing that acts or hides."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.core import quantities as q

positive = st.floats(1e-9, 1e12)


@given(st.floats(-1e15, 1e15), st.integers(1, 6))
def test_a_number_keeps_its_significant_digits(value: float, significant: int) -> None:
    text = q.number(value, significant)
    assert re.fullmatch(r"-?[\d,]+(\.\d+)?", text)
    assert math.isclose(float(text.replace(",", "")), value, rel_tol=0.5000001 * 10 ** (1 - significant), abs_tol=0)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9.996, "10.0"), (99.96, "100"), (1234567, "1,234,567"), (0.00123456, "0.00123")]
)
def test_numbers(value: float, text: str) -> None:
    assert q.number(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (q.joules(None), "not measured"),
        (q.joules(0), "0 J"),
        (q.joules(0.0123), "12.3 mJ"),
        (q.joules(999.6), "1.00 kJ"),
        (q.joules(12.3, 4567), "0.0123 kJ"),
        (q.joules(0.001, 4567), "1.00 mJ"),
        (q.joules(0, 4567), "0 kJ"),
        (q.grams(1500), "1.50 kg"),
        (q.data_size(25_300_000), "25.3 MB"),
        (q.seconds(0.0042), "4.20 ms"),
        (q.seconds(None), "not measured"),
        (q.count(1234567.0), "1,234,567"),
        (q.short_count(999), "999"),
        (q.short_count(1.2e9), "1.20 G"),
        (q.share(0.123), "12.3%"),
        (q.plain_ratio(0.5), "0.500"),
        (q.plain_ratio(0.00123), "0.0012"),
        (q.plain_ratio(123.4), "123"),
        (q.change(0.58), "42% less"),
        (q.change(1.131), "13% more"),
        (q.change(1.0001), "under 0.1% more"),
        (q.change(0.0004), "99.96% less"),
        (q.change_range(0.5, 0.9), "95% interval 10% to 50% less"),
        (q.change_range(1.1, 1.5), "95% interval 10% to 50% more"),
        (q.change_range(0.9, 1.5), "95% interval 10% less to 50% more"),
        (q.change_range(None, None), "one block, no interval"),
        (q.kind("measured:rapl+measured:nvml"), "measured"),
        (q.kind("modelled:x@1+measured:rapl"), "modelled"),
        (q.kind("user"), "given"),
        (q.answer(None), "-"),
        (q.answer(True), "yes"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (q.joules_range(12.3, 8.1, 20.2), "12.3 J (8.10 to 20.2)"),
        (q.joules_range(12.3, 8.1, 20.2, 4567), "0.0123 kJ (0.00810 to 0.0202)"),
        (q.share_range(0.9, 0.88, 0.92), "90.0% (88.0% to 92.0%)"),
        (q.ratio_range(0.9, 0.85, 0.95), "0.900 (0.850 to 0.950)"),
        (q.ratio_range(0.9, None, None), "0.900 (one block, no interval)"),
        (q.epochs_range(3.2, 2.1, None, has_interval=True), "3.20 epochs (2.10 to never)"),
        (q.epochs_range(None, None, None, has_interval=True), "never"),
        (q.epochs_range(3.2, None, None, has_interval=False), "3.20 epochs (one block, no interval)"),
        (q.epochs_range(0.0, 0.0, 0.0, has_interval=True), "0 epochs"),
    ],
)
def test_spreads(spread: q.Spread, expected: str) -> None:
    assert str(spread) == expected


@given(positive, positive, positive, st.none() | positive)
def test_the_bounds_are_in_the_unit_of_the_value(value: float, low: float, high: float, like: float | None) -> None:
    spread = q.joules_range(value, low, high, like)
    assert spread.value == q.joules(value, like)
    shown, unit = spread.value.split(" ")
    size = {"µJ": 1e-6, "mJ": 1e-3, "J": 1, "kJ": 1e3, "MJ": 1e6, "GJ": 1e9}[unit]
    for text, exact in ((shown, value), (spread.low, low), (spread.high, high)):
        assert math.isclose(float(text.replace(",", "")) * size, exact, rel_tol=0.006)


@given(st.text())
def test_visible_text_has_nothing_that_acts(text: str) -> None:
    escaped = q.visible(text)
    assert escaped.isprintable() or set(escaped) & {"\u00a0", "\u3000"} or all(q.visible(c) == c for c in escaped)
    assert q.visible(escaped) == escaped
    assert not set(escaped) & set("\x00\n\x1b\u202e\u2066")


def test_visible_text_shows_what_it_hides() -> None:
    assert q.visible("caf\u00e9 \x1b[31m \u202e \ud800") == "caf\u00e9 \\x1b[31m \\u202e \\ud800"


WORDS = st.lists(st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=40), max_size=30)


@given(WORDS, st.integers(50, 200))
def test_a_clipped_text_keeps_whole_words(words: list[str], most: int) -> None:
    text = " ".join(words)
    short = q.clipped(text, most)
    assert len(short) <= most
    if len(text) <= most:
        assert short == text
    else:
        kept = short.removesuffix(" ...").split(" ")
        assert kept == words[: len(kept)]
        assert short.endswith(" ...")


def test_an_endless_word_is_clipped() -> None:
    assert q.clipped("x" * 10**6, 20) == "x" * 16 + " ..."
    assert q.clipped("a\n b\tc", 20) == "a b c"
