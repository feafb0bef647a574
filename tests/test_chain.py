"""Chains: text to ops and back, the cut, the fingerprint, and what a chain does when it is called."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_strategies import ON_IMAGES, Own, every_op
from PIL import Image

from joulecache.transforms import (
    Chain,
    Cutmix,
    Decode,
    FlipLr,
    Mixup,
    Normalize,
    Op,
    Resize,
    ToFloat,
    parse,
)
from joulecache.transforms.chain import UnknownOpError, apply, fixed_size, op_text, output_size
from joulecache.transforms.ops import MAX_SIDE, OPS, BatchOp, DecodeError
from joulecache.transforms.randomness import key_hash, random_words

relaxed = settings(max_examples=60)

ANY = every_op(MAX_SIDE)
mixtures: st.SearchStrategy[Op] = ANY[Mixup] | ANY[Cutmix]


def fitting(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Leave out the ops that have a colour for an image that is grey by then."""
    kept, channels = [], 0
    for op in ops:
        with suppress(ValueError):
            channels = op.output_channels(channels)
            kept.append(op)
    return tuple(kept)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    on_images = st.one_of(*(ANY[kind] for kind in ON_IMAGES))
    ops = fitting([draw(ANY[Decode]), *draw(st.lists(on_images, max_size=6))])
    late = draw(st.lists(mixtures, max_size=2))
    if draw(st.booleans()):
        late += [ToFloat(), *draw(st.lists(ANY[Normalize] | mixtures, max_size=3))]
    return Chain(fitting((*ops, *late)), draw(st.integers(1, len(ops))))


# Text


@pytest.mark.parametrize("kind", [kind for kind in ANY if kind is not Decode])
@settings(max_examples=40)
@given(data=st.data())
def test_every_op_survives_the_way_through_text(kind: type[Op], data: st.DataObject) -> None:
    op = data.draw(ANY[kind])
    head = {Normalize: "decode || to_float|", ToFloat: "decode || mixup|"}.get(kind, "decode || ")
    chain = parse(head + op_text(op))
    assert chain.ops[-1] == op
    assert repr(chain.ops[-1]) == repr(op)
    assert str(chain) == head + op_text(op)


@given(chain=chains())
def test_a_chain_survives_the_way_through_text(chain: Chain) -> None:
    assert parse(str(chain)) == chain
    assert str(parse(str(chain))) == str(chain)
    assert parse(str(chain)).fingerprint == chain.fingerprint


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("decode()", "decode"),
        ("decode(3)", "decode"),
        (" decode |\tresize( size = 72 )", "decode|resize(72)"),
        ("decode|resize((72, 72))", "decode|resize(72)"),
        ("decode|resize((72, 96))", "decode|resize((72, 96))"),
        ("decode||resize(72)", "decode || resize(72)"),
        ("decode(1, 72)", "decode(1, 72)"),
        ("decode(3, None, False, 178_000_000, 0)", "decode(background=0)"),
        ("decode|flip_lr(1)", "decode|flip_lr(1.0)"),
        ("decode|random_resized_crop(8, ratio=(3/4, 4/3))", "decode|random_resized_crop(8)"),
        ("decode|random_resized_crop(8, ratio=(3/4, 8/5))", "decode|random_resized_crop(8, ratio=(0.75, 1.6))"),
        ("decode|color_jitter(hue=(-(1/8), 1/8))", "decode|color_jitter(hue=0.125)"),
        ("decode|brightness( 1.5 / 6 )", "decode|brightness(0.25)"),
        ("decode|brightness(22/7e1)", f"decode|brightness({22 / 70})"),
        ('decode|pad((2, 2, 2, 2), padding_mode="edge")', "decode|pad(2, padding_mode='edge')"),
        ("decode|rotate(15, 'nearest', (7, 7, 7))", "decode|rotate(15.0, fill=(7, 7, 7))"),
        (
            "decode||to_float|normalize((0, 1, 2), std=(1, 2, 3))",
            "decode || to_float|normalize((0.0, 1.0, 2.0), (1.0, 2.0, 3.0))",
        ),
    ],
)
def test_text_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert str(parse(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode|flip_rl", """unknown op 'flip_rl' in "decode|flip_rl": did you mean 'flip_lr'?"""),
        ("decode|zzz", f"""unknown op 'zzz' in "decode|zzz": the ops are {", ".join(OPS)}"""),
        ("", """missing op in "": write ops between '|', like decode|resize(72)"""),
        ("decode|||flip_lr", 'missing op in "decode|||flip_lr"'),
        ("decode || flip_lr || flip_lr", "a chain has at most one cut '||', got 2"),
        ("decode|resize(", 'cannot parse "resize(" in "decode|resize(": an op is name or name(arguments)'),
        ("decode|7", 'cannot parse "7" in '),
        ("decode|os.exit(1)", 'cannot parse "os.exit(1)" in '),
        ("decode|resize(n)", 'cannot parse the arguments of "resize(n)": give each once, as a number, '),
        ("decode|resize(size=72, size=72)", "cannot parse the arguments of "),
        ("decode|resize(**{'size': 72})", "cannot parse the arguments of "),
        ("decode|resize", '"resize" does not match resize(size, fit)'),
        ("decode|resize(1, 2)", "resize: fit must be one of 'stretch', 'crop', 'pad', got 2"),
        ("decode|resize(side=72)", '"resize(side=72)" does not match resize(size, fit)'),
        ("decode|resize('72')", "resize: size must be an integer from 1 to 65535, got '72'"),
        ("decode|brightness(1e999/1e999)", "brightness: delta must be a number from 0 to 1, got nan"),
        ("resize(72)|decode", "a chain must start with decode, got 'resize(72)|decode'"),
        ("decode|flip_lr|decode", "decode must be the first op only, got 'decode|flip_lr|decode'"),
    ],
)
def test_a_wrong_chain_is_refused_with_what_was_got_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse(text)


@pytest.mark.parametrize(
    "argument",
    [
        *("1/0", "0/0.0", "(1/2, 1/0)", "9" * 400 + "/3", "1/2/3", "1//2", "2**-1", "'a'/2", "(1, 2)/2", "None/2", "1/x"),
        *("f(1)", "[x]", "lambda: 1", "1 if 1 else 2", "f'{1}'", "*(1, 2)", "x := 1", "{**{}}"),
    ],
)  # fmt: skip
def test_what_is_neither_a_literal_nor_a_fraction_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot parse "):
        parse(f"decode|brightness({argument})")


def test_random_strings_give_a_chain_or_a_value_error() -> None:
    rng = random.Random(0)
    pieces = [
        *OPS,
        *"()|,=.'\"#:[]{}+-*/\\\n\t\0 0123456789",
        *("||", "size", "None", "True", "1e999", "é", "\ud800", "72", "||to_float", "|normalize(0.5, 1/4)"),
        *("||to_float|normalize((0, 1, 2), 1/4)", "||mixup", "(3/4, 4/3)", "ratio=", "|pad(1, 0, 'edge')", "|rotate(15"),
        *("|hue(", "1/8)", "(1, 2, 3)", "|own", "|own(", "'a'", "|own((3, 3), b'x')"),
    ]  # fmt: skip
    parsed, seen = 0, set[type[Op]]()
    for _ in range(10_000):
        text = "decode" * rng.randint(0, 1) + "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        try:
            chain = parse(text, OWN)
        except ValueError:
            continue
        assert parse(str(chain), OWN) == chain
        seen.update(type(op) for op in chain.ops)
        parsed += 1
    assert parsed > 50
    assert {Decode, Own, ToFloat, Normalize, Mixup} <= seen


@pytest.mark.parametrize(
    "text", ["(" * 300, "-" * 100_000 + "1", "resize(" + "1+" * 50_000 + "1)", "decode(" + "9" * 5000]
)
def test_text_that_would_exhaust_the_parser_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot parse"):
        parse(text)


# Order and cut


@given(chain=chains())
def test_a_suffix_is_ops_on_images_then_ops_on_batches(chain: Chain) -> None:
    assert chain.on_images + chain.on_batches == chain.suffix
    assert chain.prefix + chain.suffix == chain.ops
    assert not any(isinstance(op, BatchOp) for op in chain.prefix + chain.on_images)
    assert all(isinstance(op, BatchOp) for op in chain.on_batches)
    assert chain.mixes == any(type(op) in (Mixup, Cutmix) for op in chain.suffix)
    assert chain.is_float == ("to_float" in str(chain))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode|to_float", "to_float must come after the cut"),
        ("decode|cutmix(0.5) || flip_lr", "cutmix must come after the cut"),
        ("decode|resize(8)|to_float || normalize(0.5, 0.5)", "to_float must come after the cut"),
        ("decode || mixup|flip_lr", "flip_lr cannot follow mixup"),
        ("decode || to_float|normalize(0.5, 0.5)|grayscale", "grayscale cannot follow to_float"),
        ("decode || to_float|mixup|to_float", "to_float must appear only once"),
        ("decode || mixup|normalize(0.5, 0.5)", "normalize must come after to_float"),
        ("decode || normalize(0.5, 0.5)|to_float|normalize(0.5, 0.5)", "normalize must come after to_float"),
    ],
)
def test_ops_on_batches_stand_after_the_cut_and_last(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*, got {re.escape(repr(text))}$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("decode(1)|pad(1, (1, 2, 3))", "pad: fill"),
        ("decode|grayscale || rotate(9, fill=(1, 2, 3))", "rotate: fill"),
        ("decode|grayscale || to_float|normalize(1, (1, 2, 3))", "normalize: std"),
    ],
)
def test_a_colour_on_a_grey_image_is_refused_when_the_chain_is_made(text: str, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} \(.*\) has 3 numbers, the image 1 channel\(s\)$"):
        parse(text)


def test_a_chain_of_no_ops_and_a_cut_outside_it_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^a chain must start with decode, got 'no op'$"):
        Chain((), 1)
    for cut in (0, 3):
        with pytest.raises(ValueError, match=f"^the cut must be after decode, from 1 to 2, got {cut}$"):
            Chain((Decode(), FlipLr()), cut)


# The fingerprint


def test_the_fingerprint_is_that_of_caches_built_before() -> None:
    # Where this fails, every cache in the world is rebuilt: change an op's version instead, if only that op changed.
    chain = parse("decode(shorter=72)|resize(72)|random_resized_crop(64)|flip_lr || contrast(0.2)")
    assert chain.fingerprint == "da391b275b237f885bd886a20f4284493f228ef039615e9d6a17f654d116bd5a"
    every = "|".join(
        [
            "decode(1, 72, True, 1000, (1, 2, 3))|grayscale(3)|resize((72, 80))|resize_shorter(72)|central_crop(70)",
            "random_crop(68)|random_resized_crop(64, (0.5, 1), (1, 2))|pad((1, 2, 3, 4), 5, 'edge')|flip_lr(1/4)|flip_ud",
            "rotate(15, 'bilinear', (1, 2, 3), (4, 5))|affine(1, (0.1, 0.2), (0.5, 2), (1, 2, 3, 4), fill=7)|cutout(8, 9)",
            "brightness(0.1)|contrast(0.2)|saturation(0.3)|hue(0.4)|color_jitter(0.1, (0.2, 0.3), 0.4, (-0.1, 0.2))",
            "gaussian_blur((3, 5), 1)|gaussian_noise(0.1, 0.2)|autocontrast|equalize(0)|posterize(3)|solarize(100, 1)",
            "sharpness(2)|rand_augment(3, 8, 20, 'bilinear', 1)|trivial_augment(30)",
        ]
    )
    assert parse(every).fingerprint == "77171b5f60b0dbeac08100fde9232a24ee070ef399365e8e26d41415ac656263"
    assert {type(op) for op in parse(every).ops} == {Decode, *ON_IMAGES}


def test_the_fingerprint_hashes_the_canonical_prefix_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resize, "version", 7)
    spelled = "decode(shorter=72)@1|resize(72)@7|random_resized_crop(64)@2"
    chain = parse("decode(shorter = 72)|resize((72, 72))|random_resized_crop(64, (0.08, 1)) || contrast(0.2)|to_float")
    assert chain.fingerprint == hashlib.sha256(spelled.encode()).hexdigest()


@given(one=chains(), other=chains(), data=st.data())
def test_the_fingerprint_is_that_of_the_prefix_and_of_nothing_else(
    one: Chain, other: Chain, data: st.DataObject
) -> None:
    assert (one.fingerprint == other.fingerprint) == (one.prefix == other.prefix)
    longer = replace(one, cut=data.draw(st.integers(1, len(one.prefix))))
    assert (one.fingerprint == longer.fingerprint) == (one.cut == longer.cut)
    assert Chain(one.prefix, one.cut).fingerprint == one.fingerprint


def test_a_new_argument_with_a_default_leaves_old_caches_valid() -> None:
    @dataclass(frozen=True)
    class Longer(Own):
        new: int = 0

    Longer.__name__ = Own.__name__
    longer: dict[str, type[Op]] = {"own": Longer}
    for arguments in ("", "(3)"):
        now = parse(f"decode|own{arguments}", longer)
        assert now.fingerprint == parse(f"decode|own{arguments}", OWN).fingerprint
    assert parse("decode|own(new=1)", longer).fingerprint != now.fingerprint


# Validation and sizes


@pytest.mark.parametrize(
    ("text", "validation"),
    [
        ("decode|random_crop((64, 32))|flip_lr", "decode|central_crop((64, 32))"),
        ("decode|random_resized_crop((64, 96))", "decode|resize_shorter(96)|central_crop((64, 96))"),
        ("decode(1)|resize(72)|brightness(0.1) || contrast(0.1)|flip_lr", "decode(1)|resize(72)"),
        ("decode|resize_shorter(80)|central_crop(72)", "decode|resize_shorter(80)|central_crop(72)"),
        (
            "decode || random_crop(32)|to_float|normalize(0.5, 0.25)|mixup",
            "decode|central_crop(32) || to_float|normalize(0.5, 0.25)",
        ),
        ("decode|flip_lr(1.0) || flip_ud(1.0)|autocontrast", "decode|flip_lr(1.0)|flip_ud(1.0)"),
        ("decode|gaussian_blur(3) || gaussian_blur(3, 1)", "decode|gaussian_blur(3, 1.0)"),
        ("decode|grayscale || grayscale(3)|pad(4)", "decode|grayscale|grayscale(3)|pad(4)"),
    ],
)
def test_validation_is_central_and_not_augmented(text: str, validation: str) -> None:
    assert str(parse(text).for_validation()) == validation


@given(chain=chains())
def test_the_validation_chain_draws_nothing(chain: Chain) -> None:
    validation = chain.for_validation()
    assert not any(op.random for op in validation.ops)
    assert not validation.mixes
    assert validation.is_float == chain.is_float
    assert validation.on_images == ()  # all that a cache can hold is cached
    assert [op for op in validation.ops if isinstance(op, ToFloat | Normalize)] == [
        op for op in chain.ops if isinstance(op, ToFloat | Normalize)
    ]
    assert validation.for_validation() == validation


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("decode|pad(4)|flip_lr", None),
        ("decode|resize_shorter(72)|central_crop(64)", (64, 64)),
        ("decode|random_resized_crop(64)|resize_shorter(32)", (32, 32)),
        ("decode|resize((50, 100))|resize_shorter(25)|rotate(15)", (25, 50)),
        ("decode|resize(72)|pad((1, 2, 3, 4)) || mixup|to_float", (78, 76)),
    ],
)
def test_a_size_is_fixed_from_the_first_op_that_gives_every_image_the_same(
    text: str, size: tuple[int, int] | None
) -> None:
    assert fixed_size(parse(text).ops) == size


def test_the_output_size_follows_the_ops() -> None:
    with pytest.raises(ValueError, match=r"^random_crop: the crop 73x73 is larger than the image 72x72"):
        fixed_size(parse("decode|resize(72)|random_crop(73)").ops)
    assert output_size(parse("decode|resize_shorter(100)|central_crop((90, 80))").ops, 200, 300) == (90, 80)
    assert output_size(parse("decode|pad((1, 2, 3, 4))|flip_ud|pad(1)").ops, 200, 300) == (208, 306)


# Calling a chain


@pytest.fixture(scope="module")
def png() -> bytes:
    """The photo as a PNG, so that no decoder takes a short cut."""
    stream = io.BytesIO()
    Image.open(Path(__file__).parent / "golden" / "photo.jpg").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "decode|random_crop(20) || flip_lr(1)",
        "decode(1)|random_crop(20) || rotate(45)",
        "decode || rand_augment|to_float|normalize((0.4, 0.5, 0.6), 0.25)",
    ],
)
def test_a_chain_runs_alike_on_bytes_a_path_a_pillow_image_and_an_array(text: str, png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png)
    chain = parse(text)
    channels = chain.decode.channels
    decoded = np.array(Image.open(path).convert("L" if channels == 1 else "RGB")).reshape(48, 64, channels)
    read_only = decoded.copy()
    read_only.flags.writeable = False
    pixels = chain(png, key="a", seed=3, n=5)
    assert pixels.dtype == (np.float32 if chain.is_float else np.uint8)
    assert pixels.shape == (*output_size(chain.ops, 48, 64), channels)
    for image in (path, str(path), Image.open(path), Image.fromarray(decoded.squeeze()), decoded, read_only):
        np.testing.assert_array_equal(pixels, chain(image, key="a", seed=3, n=5))


def test_an_image_that_no_op_can_take_is_refused(png: bytes) -> None:
    with pytest.raises(DecodeError):
        parse("decode")(b"not an image")
    with pytest.raises(ValueError, match=r"^random_crop: the crop 49x64 is larger than the image 48x64: "):
        parse("decode|random_crop((49, 64))")(png)


def test_a_chain_that_mixes_a_batch_does_not_run_on_one_image(png: bytes) -> None:
    chain = parse("decode || to_float|mixup")
    with pytest.raises(ValueError, match=r"^'decode \|\| to_float\|mixup' mixes the images .* its for_validation\(\)"):
        chain(png)
    assert chain.for_validation()(png).shape == (48, 64, 3)


class Draws(NamedTuple):
    n: int
    variants: int | None
    variant: int


@pytest.mark.parametrize("draws", [Draws(5, 3, 2), Draws(5, 5, 0), Draws(5, 8, 5), Draws(5, None, 5)])
def test_an_epoch_reads_the_variant_that_is_its_remainder_and_draws_the_suffix_again(draws: Draws, png: bytes) -> None:
    chain = parse("decode|random_crop(30)|rotate(45) || random_crop(20)|affine(30, (0.2, 0.2))|to_float")
    hashes = [key_hash("a")]
    [before] = random_words(chain.ops[:3], 0, 7, hashes, draws.variant)  # of the key's hash, the seed and the variant
    [after] = random_words(chain.ops[3:5], 3, 7, hashes, draws.n)
    expected = apply(chain.ops[3:5], apply(chain.ops[:3], png, before), after) * np.float32(1 / 255)
    got = chain(png, key="a", seed=7, n=draws.n, variants=draws.variants)
    np.testing.assert_array_equal(got, expected)


def test_a_draw_that_cannot_be_is_refused(photo: bytes) -> None:
    for given_as in ({"n": -1}, {"variants": 0}):
        with pytest.raises(ValueError, match="n must be at least 0 and variants at least 1"):
            parse("decode|flip_lr")(photo, **given_as)  # type: ignore[arg-type]


def test_where_the_cut_stands_does_not_change_the_pixels(photo: bytes) -> None:
    chain = parse("decode|random_crop(40)|own|flip_lr|random_resized_crop(20)|contrast(0.5)", OWN)
    whole = chain(photo, key="a", seed=1, n=2)
    for cut in range(1, len(chain.ops)):
        np.testing.assert_array_equal(replace(chain, cut=cut)(photo, key="a", seed=1, n=2), whole)


# Custom ops


OWN: dict[str, type[Op]] = {"own": Own}


def test_custom_ops_are_read_from_the_table_that_is_passed_in() -> None:
    chain = parse("decode|own(3) || flip_lr", OWN)
    assert chain.ops[1] == Own(3)
    assert str(chain) == "decode|own(3) || flip_lr"
    assert str(chain.for_validation()) == "decode"
    assert parse("decode|own(3) || flip_lr", {**OPS, **OWN}) == chain
    with pytest.raises(UnknownOpError, match=r"^unknown op 'own' in "):
        parse("decode|own(3)")
    with pytest.raises(UnknownOpError, match=r"did you mean 'own'\?$"):
        parse("decode|owns", OWN)
    with pytest.raises(UnknownOpError, match=r"the ops are decode, .*, cutmix, own$"):
        parse("decode|zzzzzzzzz", OWN)


def test_a_built_in_name_is_taken() -> None:
    with pytest.raises(ValueError, match=r"^op 'flip_lr' is built in"):
        parse("decode", {**OWN, "flip_lr": Own})


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters() | st.sampled_from("|\\'\"()#\n\t"))
)
written = plain | st.lists(plain, max_size=3).map(tuple)


@given(size=written, more=written)
def test_any_argument_of_a_custom_op_survives_the_way_through_text(size: object, more: object) -> None:
    chain = Chain((Decode(), Own(size, more), FlipLr()), 2)
    again = parse(str(chain), OWN)
    assert again == chain
    assert str(again) == str(chain)
    assert again.fingerprint == chain.fingerprint


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Own((3, 3)), "own((3, 3))"),  # a pair of one number stays a pair: it need not mean what it means to resize
        (Own(4, (1, "a", None, True, 0.5)), "own(more=(1, 'a', None, True, 0.5))"),
        (Own(("|", "||")), r"own(('\x7c', '\x7c\x7c'))"),
        (Own("\\|"), r"own('\\\x7c')"),
    ],
)
def test_the_arguments_of_a_custom_op_are_spelled_as_they_are(op: Op, text: str) -> None:
    chain = Chain((Decode(), op), 2)
    assert str(chain) == f"decode|{text}"
    assert parse(str(chain), OWN).ops[1] == op


@pytest.mark.parametrize(
    "value",
    [
        *({"a": 1}, b"x", 1j, ..., float("inf"), float("nan")),
        *((1, float("inf")), ((1, 2), 3), Draws(1, 2, 3)),
    ],
    ids=repr,
)
def test_an_argument_that_no_text_holds_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^own: more must be a number, a string, .*, got " + re.escape(repr(value))):
        Chain((Decode(), Own(more=value)), 1)


@pytest.mark.parametrize("argument", ["-1e999", "1e999/1e999", "[[1]]", "b''"])
def test_an_argument_that_could_not_be_written_again_is_refused_when_it_is_read(argument: str) -> None:
    with pytest.raises(ValueError, match=r"^own: size must be a number, a string, "):
        parse(f"decode|own({argument})", OWN)


@dataclass(frozen=True, kw_only=True)
class Named(Op):
    """An op with keyword-only arguments, and an attribute that it computes."""

    level: int = 0
    twice: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.level)

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return image | np.uint8(self.twice)


def test_keyword_only_arguments_are_spelled_with_their_names() -> None:
    chain = parse("decode|named(level=3)", {"named": Named})
    assert str(chain) == "decode|named(level=3)"
    assert parse(str(chain), {"named": Named}) == chain
    assert chain(np.zeros((2, 2, 3), np.uint8)).tolist() == [[[6] * 3] * 2] * 2
    with pytest.raises(ValueError, match=r'^"named\(3\)" does not match named\('):
        parse("decode|named(3)", {"named": Named})


@pytest.mark.parametrize("base", [ToFloat, Decode])
def test_a_custom_op_that_does_not_run_on_single_decoded_images_is_refused(base: type[Op]) -> None:
    @dataclass(frozen=True)
    class Blend(base):  # type: ignore[misc, valid-type]
        def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
            return image

    ops = (Blend(),) if base is Decode else (Decode(), Blend())
    with pytest.raises(ValueError, match=r"^blend: a custom op must run on single decoded images$"):
        Chain(ops, 1)
