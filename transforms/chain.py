"""Chains of ops: text to ops and back, the cut, the canonical form and its fingerprint."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulecache.transforms.ops import (
    OPS,
    BatchOp,
    CentralCrop,
    Decode,
    Mixture,
    Normalize,
    Op,
    RandomCrop,
    RandomResizedCrop,
    ResizeShorter,
    ToFloat,
    op_name,
)
from joulecache.transforms.ops.base import check_own_op, check_own_ops

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


class UnknownOpError(ValueError):
    """A chain names an op that is neither built in nor given."""


@dataclass(frozen=True)
class Chain:
    """An ordered list of ops, the first `cut` of which are cached and the rest run at load time.

    >>> str(Chain((Decode(), RandomCrop(64)), cut=1))
    'decode || random_crop(64)'
    """

    ops: tuple[Op, ...]
    cut: int

    def __post_init__(self) -> None:
        if not self.ops or not isinstance(self.ops[0], Decode):
            raise ValueError(f"a chain starts with decode, got {_text(self.ops) or 'no op'!r}")
        if any(isinstance(op, Decode) for op in self.ops[1:]):
            raise ValueError(f"decode stands once, at the start, got {_text(self.ops)!r}")
        if not 1 <= self.cut <= len(self.ops):
            raise ValueError(f"the cut stands after decode, at 1 to {len(self.ops)}, got {self.cut}")
        for op in self.ops:
            if type(op) not in _BUILT_IN:
                check_own_op(type(op))
                if isinstance(op, BatchOp):
                    raise ValueError(f"{op_name(type(op))} runs on batches: an op of your own runs on single images")
                op_text(op)  # refuses arguments that no text holds
        self._check_batch_ops()
        output_channels(self.ops)

    def _check_batch_ops(self) -> None:
        first = next((place for place, op in enumerate(self.ops) if isinstance(op, BatchOp)), len(self.ops))
        late = self.ops[first:]
        if first < self.cut:
            raise ValueError(
                f"{op_name(type(late[0]))} stands only after the cut, since caches hold uint8 images one by one: write '||' "
                f"before it, got {str(self)!r}"
            )
        for op in late:
            if not isinstance(op, BatchOp):
                raise ValueError(
                    f"{op_name(type(op))} cannot stand behind {op_name(type(late[0]))}: ops on uint8 images come before "
                    f"those on batches, got {str(self)!r}"
                )
        kinds = [type(op) for op in late]
        if kinds.count(ToFloat) > 1:
            raise ValueError(f"to_float stands once, got {str(self)!r}")
        if Normalize in kinds and ToFloat not in kinds[: kinds.index(Normalize)]:
            raise ValueError(
                f"normalize stands only after to_float, whose units its mean and std are in, got {str(self)!r}"
            )

    @property
    def decode(self) -> Decode:
        """The first op."""
        first = self.ops[0]
        assert isinstance(first, Decode)
        return first

    @property
    def prefix(self) -> tuple[Op, ...]:
        """The ops that are computed once and cached."""
        return self.ops[: self.cut]

    @property
    def suffix(self) -> tuple[Op, ...]:
        """The ops that run at load time."""
        return self.ops[self.cut :]

    @property
    def on_images(self) -> tuple[Op, ...]:
        """The ops of the suffix that run on single images."""
        return tuple(op for op in self.suffix if not isinstance(op, BatchOp))

    @property
    def on_batches(self) -> tuple[Op, ...]:
        """The ops of the suffix that run on whole batches, after the others."""
        return tuple(op for op in self.suffix if isinstance(op, BatchOp))

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed, and so are their labels."""
        return any(isinstance(op, Mixture) for op in self.ops)

    @property
    def is_float(self) -> bool:
        """Whether images come out as float32 rather than as uint8."""
        return any(isinstance(op, ToFloat) for op in self.ops)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the prefix in its canonical text with every op's version: two caches with one fingerprint hold the same pixels.

        Arguments at their defaults are not spelled, so that a new argument leaves old caches valid; a changed default is a new version.
        """
        spelled = "|".join(f"{op_text(op)}@{op.version}" for op in self.prefix)
        return hashlib.sha256(spelled.encode()).hexdigest()

    def __str__(self) -> str:
        head, tail = _text(self.prefix), _text(self.suffix)
        return f"{head} || {tail}" if tail else head

    def for_validation(self) -> Chain:
        """Return the chain for held-out records: crops become central, other random ops go, all that caches can hold is cached."""
        ops: list[Op] = []
        for op in self.ops:
            if type(op) is RandomCrop:
                ops.append(CentralCrop(op.size))
            elif type(op) is RandomResizedCrop:
                ops += [ResizeShorter(max(op.target)), CentralCrop(op.size)]
            elif not op.random:
                ops.append(op)
        return Chain(tuple(ops), sum(not isinstance(op, BatchOp) for op in ops))

    def __call__(
        self,
        image: bytes | str | Path | NDArray[np.uint8] | Image.Image,
        *,
        key: str = "",
        seed: int = 0,
        n: int = 0,
        variants: int | None = None,
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Run the whole chain on one image; ``[H, W, C]`` uint8, or float32 behind to_float.

        The image is encoded bytes, a path, a Pillow image or a decoded array ``[H, W, C]`` uint8. With a record's key, the cache's seed,
        its number of variants and the epoch n this gives the pixels that the loader gives; without, those of one more draw.
        For a trained model, take the chain of the held-out records: ``open_manifest(cache).parsed_chain("val")``.

        Raises DecodeError, ValueError for an image that an op cannot take, and for a chain that mixes the images of a batch.
        """
        from joulecache.transforms import randomness, reference_kernels

        if self.mixes:
            raise ValueError(
                f"{str(self)!r} mixes the images of a batch, and cannot run on one: call its for_validation(), or leave the mixture out"
            )
        if n < 0 or (variants is not None and variants < 1):
            raise ValueError(f"n must be at least 0 and variants at least 1, got n={n}, variants={variants}")
        pixels = reference_kernels.decode_any(self.decode, image)
        hashes = [randomness.key_hash(key)]
        variant = n if variants is None else n % variants
        for first, ops, draw in ((1, self.prefix[1:], variant), (self.cut, self.on_images, n)):
            pixels = reference_kernels.run(ops, pixels, randomness.random_words(ops, first, seed, hashes, draw)[0])
        return reference_kernels.apply_to_batch(self.on_batches, reference_kernels.as_array(pixels), ())


_BUILT_IN = frozenset(OPS.values())


def output_size(ops: tuple[Op, ...], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) that the ops after decode make of an image of that size."""
    for op in ops:
        height, width = op.output_size(height, width)
    return height, width


def output_channels(ops: tuple[Op, ...]) -> int:
    """Return the channels that ops from decode on give; ValueError when an op cannot take what the ones before it give."""
    channels = 0
    for op in ops:
        channels = op.output_channels(channels)
    return channels


def fixed_size(ops: tuple[Op, ...]) -> tuple[int, int] | None:
    """Return the (height, width) that the ops give to every image, or None when it varies with the image.

    Raises ValueError when an op cannot take what the ones before it give, like a crop larger than its image.
    """
    size: tuple[int, int] | None = None
    for op in ops:
        size = op.target if size is None else op.output_size(*size)
    return size


def parse(text: str, ops: Mapping[str, type[Op]] | None = None) -> Chain:
    """Read a chain such as ``decode|resize(72) || random_crop(64)|flip_lr``.

    Arguments are Python literals, or fractions of two numbers. `ops` are ops of your own beside the built-in ones, by their names (see `Op`
    and `ops_of`). ValueError says which op or argument is wrong and what is allowed.
    """
    halves = text.split("||")
    if len(halves) > 2:
        raise ValueError(f"a chain has one cut '||' at most, got {len(halves) - 1} in {text!r}")
    table = _table(ops or {})
    parsed = [[_parse_op(piece, text, table) for piece in half.split("|")] for half in halves]
    return Chain(tuple(op for half in parsed for op in half), len(parsed[0]))


def _table(own: Mapping[str, type[Op]]) -> Mapping[str, type[Op]]:
    taken = [name for name, kind in own.items() if OPS.get(name, kind) is not kind]
    if taken:
        raise ValueError(f"op {taken[0]!r} is built in: give yours another name")
    check_own_ops({name: kind for name, kind in own.items() if name not in OPS})
    return {**OPS, **own}


def _parse_op(piece: str, text: str, ops: Mapping[str, type[Op]]) -> Op:
    source = piece.strip()
    if not source:
        raise ValueError(f"an op is missing in {text!r}: write ops between '|', like decode|resize(72)")
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"cannot read {source!r} in {text!r}: an op is name or name(arguments)") from error
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read {source!r} in {text!r}: an op is name or name(arguments)")
    kind = ops.get(call.func.id)
    if kind is None:
        near = difflib.get_close_matches(call.func.id, ops, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ops)}"
        raise UnknownOpError(f"unknown op {call.func.id!r} in {text!r}: {hint}")
    try:
        args = [_value(arg) for arg in call.args]
        kwargs: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in kwargs:
                raise ValueError("not a name, or one given twice")
            kwargs[keyword.arg] = _value(keyword.value)
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"cannot read the arguments of {source!r}: each is given once, and is a number, a text, a tuple of them, True, False or None"
        ) from error
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    try:
        return kind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{source!r} does not fit {call.func.id}({', '.join(fields)})") from error


class _Fractions(ast.NodeTransformer):
    """Divides where a number is divided by another."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.Div):
            above, below = ast.literal_eval(node.left), ast.literal_eval(node.right)
            if isinstance(above, int | float) and isinstance(below, int | float) and below:
                return ast.Constant(above / below)
        return node


def _value(node: ast.expr) -> Any:
    return ast.literal_eval(_Fractions().visit(node))


def _is_plain(part: object) -> bool:
    """Return whether Python reads back what it writes for `part`: not so for infinity, and NumPy's floats."""
    return part is None or type(part) in (bool, int, str) or (type(part) is float and math.isfinite(part))


def _literal(op: Op, name: str, value: object) -> str:
    parts = value if type(value) is tuple else (value,)
    if not all(map(_is_plain, parts)):
        raise ValueError(
            f"{op_name(type(op))}: {name} must be a number, a text, a tuple of them, True, False or None to be written down, got {value!r}"
        )
    if name == "size" and type(op) in _BUILT_IN and len(parts) == 2 and parts[0] == parts[1]:
        return repr(parts[0])
    return repr(value).replace("|", r"\x7c")  # in a text: a bar ends an op


def op_text(op: Op) -> str:
    """Spell an op with the arguments that differ from their defaults."""
    given, leading = [], True
    for field in dataclasses.fields(op):  # type: ignore[arg-type]
        if not field.init:
            continue
        leading = leading and not field.kw_only
        value = getattr(op, field.name)
        literal = _literal(op, field.name, value)
        if value == field.default:
            leading = False
            continue
        given.append(literal if leading else f"{field.name}={literal}")
    return op_name(type(op)) + (f"({', '.join(given)})" if given else "")


def _text(ops: tuple[Op, ...]) -> str:
    return "|".join(op_text(op) for op in ops)
