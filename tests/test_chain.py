"""Chains: text to ops and back, the cut, the fingerprint, and what a chain does when it is called."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulecache.transforms import (
    Brightness,
    CentralCrop,
    Chain,
    Contrast,
    Decode,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    parse,
)
from joulecache.transforms.chain import fixed_size, output_size
from joulecache.transforms.ops import LARGEST_PIXELS, LARGEST_SIDE, OPS
from joulecache.transforms.randomness import key_hash, random_words
from joulecache.transforms.reference_kernels import apply

relaxed = settings(deadline=None)

sides = st.integers(1, LARGEST_SIDE)
sizes = sides | st.tuples(sides, sides)
shares = st.floats(0, 1) | st.integers(0, 1)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    end = st.floats(low, high)
    return st.tuples(end, end).map(lambda pair: (min(pair), max(pair)))


decodes = st.builds(
    Decode,
    channels=st.sampled_from([1, 3]),
    shorter=st.none() | sides,
    truncated=st.booleans(),
    max_pixels=st.integers(1, LARGEST_PIXELS),
)
others: st.SearchStrategy[Op] = st.one_of(
    st.builds(Resize, sizes),
    st.builds(ResizeShorter, sides),
    st.builds(CentralCrop, sizes),
    st.builds(RandomCrop, sizes),
    st.builds(RandomResizedCrop, sizes, ranges(1e-6, 1), ranges(1e-3, 1e3)),
    st.builds(RandomResizedCrop, sizes, ratio=ranges(1e-3, 1e3)),
    st.builds(FlipLr, shares),
    st.builds(Brightness, shares),
    st.builds(Contrast, shares),
)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    ops = (draw(decodes), *draw(st.lists(others, max_size=6)))
    return Chain(ops, draw(st.integers(1, len(ops))))


@relaxed
@given(chain=chains())
def test_a_chain_survives_the_way_through_text(chain: Chain) -> None:
    assert parse(str(chain)) == chain
    assert parse(str(chain)).fingerprint == chain.fingerprint


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("decode", "decode"),
        ("decode()", "decode"),
        ("decode(3)", "decode"),
        (" decode |\tresize( size = 72 )", "decode|resize(72)"),
        ("decode|resize((72, 72))", "decode|resize(72)"),
        ("decode|resize((72, 96))", "decode|resize((72, 96))"),
        ("decode||resize(72)", "decode || resize(72)"),
        ("decode(shorter=72)", "decode(shorter=72)"),
        ("decode(1, 72)", "decode(1, 72)"),
        ("decode|flip_lr(0.5)", "decode|flip_lr"),
        ("decode|flip_lr(1)", "decode|flip_lr(1.0)"),
        ("decode|random_resized_crop(8, ratio=(1, 2))", "decode|random_resized_crop(8, ratio=(1.0, 2.0))"),
        ("decode|random_resized_crop(8, (0.08, 1), (1, 1))", "decode|random_resized_crop(8, ratio=(1.0, 1.0))"),
    ],
)
def test_text_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


def test_the_cut_divides_prefix_from_suffix() -> None:
    chain = parse("decode|resize(72) || random_crop(64)|flip_lr")
    assert chain.prefix == (Decode(), Resize(72))
    assert chain.suffix == (RandomCrop(64), FlipLr())
    assert chain.decode is chain.ops[0]


def test_without_a_cut_the_whole_chain_is_the_prefix() -> None:
    chain = parse("decode|resize(72)")
    assert chain.suffix == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode|flip_rl", """unknown op 'flip_rl' in 'decode|flip_rl': did you mean flip_lr?"""),
        ("decode|Resize(72)", """unknown op 'Resize' in 'decode|Resize(72)': did you mean resize?"""),
        ("decode|zzz", f"unknown op 'zzz' in 'decode|zzz': there are {', '.join(OPS)}"),
        ("", "an op is missing in '': write ops between '|', like decode|resize(72)"),
        ("decode|", "an op is missing in 'decode|': write ops between '|', like decode|resize(72)"),
        ("decode||", "an op is missing in 'decode||': write ops between '|', like decode|resize(72)"),
        ("||decode", "an op is missing in '||decode': write ops between '|', like decode|resize(72)"),
        ("decode|||flip_lr", "an op is missing in 'decode|||flip_lr': write ops between '|', like decode|resize(72)"),
        ("decode || flip_lr || flip_lr", "a chain has one cut '||' at most, got 2 in 'decode || flip_lr || flip_lr'"),
        ("decode|resize(", "cannot read 'resize(' in 'decode|resize(': an op is name or name(arguments)"),
        ("decode|7", "cannot read '7' in 'decode|7': an op is name or name(arguments)"),
        ("decode|os.exit(1)", "cannot read 'os.exit(1)' in 'decode|os.exit(1)': an op is name or name(arguments)"),
        (
            "decode|resize(n)",
            "cannot read the arguments of 'resize(n)': each is given once, and is a number, a pair, True, False or None",
        ),
        (
            "decode|resize(size=72, size=72)",
            "cannot read the arguments of 'resize(size=72, size=72)': "
            "each is given once, and is a number, a pair, True, False or None",
        ),
        (
            "decode|resize(**{'size': 72})",
            "cannot read the arguments of \"resize(**{'size': 72})\": "
            "each is given once, and is a number, a pair, True, False or None",
        ),
        ("decode|resize", "'resize' does not fit resize(size)"),
        ("decode|resize(1, 2)", "'resize(1, 2)' does not fit resize(size)"),
        ("decode|resize(side=72)", "'resize(side=72)' does not fit resize(size)"),
        ("decode|resize(72, size=72)", "'resize(72, size=72)' does not fit resize(size)"),
        ("decode|resize('72')", "resize: size must be a whole number from 1 to 65535, got '72'"),
        ("decode|resize(0)", "resize: size must be a whole number from 1 to 65535, got 0"),
        ("resize(72)|decode", "a chain starts with decode, got 'resize(72)|decode'"),
        ("decode|decode", "decode stands once, at the start, got 'decode|decode'"),
        ("decode|flip_lr|decode", "decode stands once, at the start, got 'decode|flip_lr|decode'"),
    ],
)
def test_a_wrong_chain_is_refused_with_what_was_got_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize("cut", [0, 3])
def test_a_cut_outside_the_chain_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=f"^the cut stands after decode, at 1 to 2, got {cut}$"):
        Chain((Decode(), FlipLr()), cut)


def test_a_chain_of_no_ops_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a chain starts with decode, got 'no op'$"):
        Chain((), 1)


def test_random_strings_give_a_chain_or_a_value_error() -> None:
    rng = random.Random(0)
    pieces = [
        *OPS,
        *"()|,=.'\"#:[]{}+-*/\\\n\t\0 0123456789",
        "||",
        "size",
        "None",
        "True",
        "1e999",
        "é",
        "\ud800",
        "72",
    ]
    parsed = 0
    for _ in range(10_000):
        text = "decode" * rng.randint(0, 1) + "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        try:
            chain = parse(text)
        except ValueError:
            continue
        assert parse(str(chain)) == chain
        parsed += 1
    assert parsed > 50


@relaxed
@given(text=st.text())
def test_any_text_gives_a_chain_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse(f"decode|{text}").decode == Decode()


@pytest.mark.parametrize(
    "text", ["(" * 300, "-" * 100_000 + "1", "resize(" + "1+" * 50_000 + "1)", "decode(" + "9" * 5000]
)
def test_text_that_would_exhaust_the_reader_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse(text)


VARIED = [
    "decode",
    "decode(1)",
    "decode(shorter=72)",
    "decode(truncated=True)",
    "decode(max_pixels=1000)",
    "decode|resize(72)",
    "decode|resize(73)",
    "decode|resize((72, 73))",
    "decode|resize((73, 72))",
    "decode|resize_shorter(72)",
    "decode|central_crop(72)",
    "decode|random_crop(72)",
    "decode|random_resized_crop(72)",
    "decode|random_resized_crop(72, scale=(0.5, 1))",
    "decode|random_resized_crop(72, ratio=(0.5, 1))",
    "decode|flip_lr",
    "decode|flip_lr(0.4)",
    "decode|brightness(0.4)",
    "decode|brightness(0.5)",
    "decode|contrast(0.4)",
    "decode|contrast(0.5)",
    "decode|brightness(0.4)|contrast(0.4)",
    "decode|contrast(0.4)|brightness(0.4)",
    "decode|flip_lr|flip_lr",
]


def test_the_fingerprint_changes_with_every_argument_and_with_the_order() -> None:
    assert len({parse(text).fingerprint for text in VARIED}) == len(VARIED)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("decode|resize(72)", "decode(3)|resize(size=(72,72))"),
        ("decode|flip_lr", "decode|flip_lr(probability=0.5)"),
        ("decode|brightness(1)", "decode|brightness(1.0)"),
        ("decode|random_resized_crop(8)", "decode|random_resized_crop(8, (0.08, 1), (0.75, 1.3333333333333333))"),
        ("decode|resize(72)", "decode|resize(72) || flip_lr"),
        ("decode|resize(72) || brightness(0.1)", "decode|resize(72) || random_crop(64)|flip_lr"),
    ],
)
def test_the_fingerprint_ignores_the_spelling_and_the_suffix(one: str, other: str) -> None:
    assert parse(one).fingerprint == parse(other).fingerprint


def test_the_fingerprint_changes_with_the_version_of_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    before = parse("decode|resize(72)").fingerprint
    monkeypatch.setattr(Resize, "version", 2)
    assert parse("decode|resize(72)").fingerprint != before


def test_the_fingerprint_is_that_of_caches_built_before() -> None:
    # Where this fails, every cache in the world is rebuilt: change an op's version instead, if only that op changed.
    chain = parse("decode(shorter=72)|resize(72)|random_resized_crop(64)|flip_lr || contrast(0.2)")
    assert chain.fingerprint == "4199e162b6ad8e59aab298228f4f269d46d39c4b61cb149152a0ce48b90b09b7"


@pytest.mark.parametrize(
    ("text", "validation"),
    [
        ("decode || random_crop(64)", "decode|central_crop(64)"),
        ("decode|random_crop((64, 32))|flip_lr", "decode|central_crop((64, 32))"),
        ("decode|random_resized_crop(64)", "decode|resize_shorter(64)|central_crop(64)"),
        ("decode|random_resized_crop((64, 96))", "decode|resize_shorter(96)|central_crop((64, 96))"),
        ("decode(1)|resize(72)|brightness(0.1) || contrast(0.1)|flip_lr", "decode(1)|resize(72)"),
        ("decode|resize_shorter(80)|central_crop(72)", "decode|resize_shorter(80)|central_crop(72)"),
    ],
)
def test_validation_is_central_and_not_augmented(text: str, validation: str) -> None:
    assert str(parse(text).for_validation()) == validation


@relaxed
@given(chain=chains())
def test_the_validation_chain_draws_nothing(chain: Chain) -> None:
    assert all(op.words == 0 for op in chain.for_validation().ops)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("decode", None),
        ("decode|resize_shorter(72)|flip_lr", None),
        ("decode|resize((72, 96))", (72, 96)),
        ("decode|resize_shorter(72)|central_crop(64)", (64, 64)),
        ("decode|random_crop(64)|brightness(0.1)", (64, 64)),
        ("decode|random_resized_crop(64)|resize_shorter(32)", (32, 32)),
        ("decode|resize((50, 100))|resize_shorter(25)", (25, 50)),
    ],
)
def test_a_size_is_fixed_from_the_first_op_that_gives_every_image_the_same(
    text: str, size: tuple[int, int] | None
) -> None:
    assert fixed_size(parse(text).ops) == size


def test_a_crop_that_no_image_can_satisfy_is_refused_before_any_image() -> None:
    with pytest.raises(ValueError, match="random_crop: the crop 73x73 is larger than the image 72x72"):
        fixed_size(parse("decode|resize(72)|random_crop(73)").ops)


def test_the_output_size_follows_the_ops() -> None:
    assert output_size(parse("decode|resize_shorter(100)|central_crop((90, 80))").ops, 200, 300) == (90, 80)
    assert output_size(parse("decode|resize_shorter(100)").ops, 200, 300) == (100, 150)


def test_a_chain_runs_on_bytes_and_on_a_path(tmp_path: Path, photo: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    chain = parse("decode|random_crop(20)|flip_lr")
    pixels = chain(photo, key="a", seed=3, n=5)
    assert pixels.shape == (20, 20, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, chain(path, key="a", seed=3, n=5))
    np.testing.assert_array_equal(pixels, chain(str(path), key="a", seed=3, n=5))


def test_a_chain_runs_its_suffix_too(photo: bytes) -> None:
    assert parse("decode || resize(9)")(photo).shape == (9, 9, 3)


@pytest.mark.parametrize("change", [{"key": "b"}, {"seed": 1}, {"n": 1}])
def test_another_key_seed_or_epoch_draws_another_window(photo: bytes, change: dict[str, int | str]) -> None:
    chain = parse("decode|random_crop(20)")
    draw: dict[str, int | str] = {"key": "a", "seed": 0, "n": 0}
    assert not np.array_equal(chain(photo, **draw), chain(photo, **(draw | change)))  # type: ignore[arg-type]


def test_a_chain_draws_for_its_ops_from_position_0(photo: bytes) -> None:
    chain = parse("decode|random_crop(40) || random_resized_crop(20)")
    [words] = random_words(chain.ops, 0, 3, [key_hash("a")], 5)
    np.testing.assert_array_equal(chain(photo, key="a", seed=3, n=5), apply(chain.ops, photo, words))


def test_where_the_cut_stands_does_not_change_the_pixels(photo: bytes) -> None:
    chain = parse("decode|random_crop(40)|flip_lr|random_resized_crop(20)|contrast(0.5)")
    whole = chain(photo, key="a", seed=1, n=2)
    for cut in range(1, len(chain.ops)):
        np.testing.assert_array_equal(replace(chain, cut=cut)(photo, key="a", seed=1, n=2), whole)


@dataclass(frozen=True)
class Posterize(Op):
    """An op of somebody else's."""

    words: ClassVar[int] = 1
    bits: int = 4


def test_ops_of_ones_own_are_read_from_the_table_that_is_passed_in() -> None:
    chain = parse("decode|posterize(3)", {**OPS, "posterize": Posterize})
    assert chain.ops[1] == Posterize(3)
    assert str(chain) == "decode|posterize(3)"
    assert str(chain.for_validation()) == "decode"
    with pytest.raises(ValueError, match="unknown op 'posterize'"):
        parse("decode|posterize(3)")
