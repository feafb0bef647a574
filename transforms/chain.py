"""Chains of ops: text to ops and back, the cut, the canonical form and its fingerprint."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulecache.transforms.ops import (
    OPS,
    CentralCrop,
    Decode,
    Op,
    RandomCrop,
    RandomResizedCrop,
    ResizeShorter,
    op_name,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    def fingerprint(self) -> str:
        """SHA-256 of the prefix with every argument and op version: two caches with one fingerprint hold the same pixels."""
        spelled = "|".join(f"{_op_text(op, defaults=True)}@{op.version}" for op in self.prefix)
        return hashlib.sha256(spelled.encode()).hexdigest()

    def __str__(self) -> str:
        head, tail = _text(self.prefix), _text(self.suffix)
        return f"{head} || {tail}" if tail else head

    def uncut(self) -> Chain:
        """Return the same ops with all of them cached."""
        return Chain(self.ops, len(self.ops))

    def for_validation(self) -> Chain:
        """Return the chain for held-out records: crops become central, other random ops go, all of it is cached."""
        ops: list[Op] = []
        for op in self.ops:
            if isinstance(op, RandomCrop):
                ops.append(CentralCrop(op.size))
            elif isinstance(op, RandomResizedCrop):
                ops += [ResizeShorter(max(op.target)), CentralCrop(op.size)]
            elif not op.words:
                ops.append(op)
        return Chain(tuple(ops), len(ops))

    def __call__(self, image: bytes | str | Path, *, key: str = "", seed: int = 0, n: int = 0) -> NDArray[np.uint8]:
        """Run the whole chain on one encoded image, given as bytes or as a path; `[H, W, C]` uint8.

        With a record's key, the cache's seed and the epoch n this gives the pixels that the loader gives.
        """
        from joulecache.transforms import randomness, reference_kernels

        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        words = randomness.random_words(self.ops, 0, seed, [randomness.key_hash(key)], n)
        return reference_kernels.apply(self.ops, data, words[0])


def output_size(ops: tuple[Op, ...], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) that the ops after decode make of an image of that size."""
    for op in ops:
        height, width = op.output_size(height, width)
    return height, width


def fixed_size(ops: tuple[Op, ...]) -> tuple[int, int] | None:
    """Return the (height, width) that the ops give to every image, or None when it varies with the image.

    Raises ValueError when an op cannot take what the ones before it give, like a crop larger than its image.
    """
    size: tuple[int, int] | None = None
    for op in ops:
        if size is not None:
            size = op.output_size(*size)
        elif getattr(op, "target", None) is not None:
            size = op.target  # type: ignore[attr-defined]
    return size


def parse(text: str, ops: Mapping[str, type[Op]] = OPS) -> Chain:
    """Read a chain such as ``decode|resize(72) || random_crop(64)|flip_lr``.

    Arguments are Python literals. ValueError says which op or argument is wrong and what is allowed.
    """
    halves = text.split("||")
    if len(halves) > 2:
        raise ValueError(f"a chain has one cut '||' at most, got {len(halves) - 1} in {text!r}")
    parsed = [[_parse_op(piece, text, ops) for piece in half.split("|")] for half in halves]
    return Chain(tuple(op for half in parsed for op in half), len(parsed[0]))


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
        raise ValueError(f"unknown op {call.func.id!r} in {text!r}: {hint}")
    try:
        args = [ast.literal_eval(arg) for arg in call.args]
        kwargs: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in kwargs:
                raise ValueError("not a name, or one given twice")
            kwargs[keyword.arg] = ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"cannot read the arguments of {source!r}: each is given once, and is a number, a pair, True, False or None"
        ) from error
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    try:
        return kind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{source!r} does not fit {call.func.id}({', '.join(fields)})") from error


def _literal(value: object) -> str:
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1] and isinstance(value[0], int):
        return repr(value[0])
    return repr(value)


def _op_text(op: Op, *, defaults: bool = False) -> str:
    """Spell an op with the arguments that differ from their defaults, or with all of them."""
    given, leading = [], True
    for field in dataclasses.fields(op):  # type: ignore[arg-type]
        value = getattr(op, field.name)
        if not defaults and value == field.default:
            leading = False
            continue
        given.append(_literal(value) if leading and not defaults else f"{field.name}={_literal(value)}")
    return op_name(type(op)) + (f"({', '.join(given)})" if given else "")


def _text(ops: tuple[Op, ...]) -> str:
    return "|".join(_op_text(op) for op in ops)
