"""Chains of ops: text to ops and back, the cut, the fingerprint, and running a chain."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms import custom, randomness
from joulecache.transforms.images import Array, Pixels
from joulecache.transforms.ops import BUILT_IN, OPS, BatchOp, Decode, Mixture, Normalize, Op, ToFloat, op_name
from joulecache.transforms.ops.base import check_custom_op, check_custom_ops, word_columns
from joulecache.transforms.ops.batch import Batch, Empty
from joulecache.transforms.ops.decode import Header
from joulecache.transforms.targets import SpatialTarget, apply_with_targets, check_fit, check_moves


class UnknownOpError(ValueError):
    """A chain names an op that is neither built in nor custom."""


@dataclass(frozen=True)
class Chain:
    """An ordered list of ops: the first `cut` ops are computed once and cached, the others run at load time.

    >>> from joulecache.transforms import RandomCrop
    >>> str(Chain((Decode(), RandomCrop(64)), cut=1))
    'decode || random_crop(64)'

    Attributes:
        ops: `Decode`, then ops on single images, then ops on batches.
        cut: Number of cached ops, from 1 to ``len(ops)``.
    """

    ops: tuple[Op, ...]
    cut: int

    def __post_init__(self) -> None:
        if not self.ops or not isinstance(self.ops[0], Decode):
            raise ValueError(f"a chain must start with decode, got {_text(self.ops) or 'no op'!r}")
        if any(isinstance(op, Decode) for op in self.ops[1:]):
            raise ValueError(f"decode must be the first op only, got {_text(self.ops)!r}")
        if not 1 <= self.cut <= len(self.ops):
            raise ValueError(f"the cut must be after decode, from 1 to {len(self.ops)}, got {self.cut}")
        for op in self.ops:
            if type(op) not in BUILT_IN:
                check_custom_op(type(op))
                if isinstance(op, Decode | BatchOp):
                    raise ValueError(f"{op_name(type(op))}: a custom op must run on single decoded images")
                op_text(op)  # raises for arguments that cannot be written as text
        self._check_batch_ops()
        output_channels(self.ops)

    def _check_batch_ops(self) -> None:
        first = next((position for position, op in enumerate(self.ops) if isinstance(op, BatchOp)), len(self.ops))
        batch_ops = self.ops[first:]
        if first < self.cut:
            raise ValueError(
                f"{op_name(type(batch_ops[0]))} must come after the cut, since caches hold single uint8 images: write '||' before it, "
                f"got {str(self)!r}"
            )
        for op in batch_ops:
            if not isinstance(op, BatchOp):
                raise ValueError(
                    f"{op_name(type(op))} cannot follow {op_name(type(batch_ops[0]))}: ops on single uint8 images come before ops "
                    f"on batches, got {str(self)!r}"
                )
        kinds = [type(op) for op in batch_ops]
        if kinds.count(ToFloat) > 1:
            raise ValueError(f"to_float must appear only once, got {str(self)!r}")
        if Normalize in kinds and ToFloat not in kinds[: kinds.index(Normalize)]:
            raise ValueError(
                f"normalize must come after to_float, since its mean and std are for levels from 0 to 1, got {str(self)!r}"
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
    def cached_random(self) -> tuple[str, ...]:
        """The names of the random ops before the cut."""
        return tuple(op_name(type(op)) for op in self.prefix if op.random)

    @property
    def on_images(self) -> tuple[Op, ...]:
        """The ops of the suffix that run on single images."""
        return tuple(op for op in self.suffix if not isinstance(op, BatchOp))

    @property
    def on_batches(self) -> tuple[Op, ...]:
        """The ops of the suffix that run on whole batches."""
        return tuple(op for op in self.suffix if isinstance(op, BatchOp))

    @property
    def mixes(self) -> bool:
        """Whether the chain mixes images and labels within a batch."""
        return any(isinstance(op, Mixture) for op in self.ops)

    @property
    def is_float(self) -> bool:
        """Whether the result is float32 rather than uint8."""
        return any(isinstance(op, ToFloat) for op in self.ops)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the prefix's canonical text with every op's version. Caches with equal fingerprints hold the same pixels.

        Arguments at their defaults are omitted, so adding an argument keeps old caches valid; changing a default requires a new version.
        """
        text = "|".join(f"{op_text(op)}@{op.version}" for op in self.prefix)
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        head, tail = _text(self.prefix), _text(self.suffix)
        return f"{head} || {tail}" if tail else head

    def for_validation(self) -> Chain:
        """Return the chain for held-out records.

        Random crops become central crops, other random ops are dropped, and all ops on single images are cached.
        """
        ops = tuple(replacement for op in self.ops for replacement in op.for_validation())
        return Chain(ops, sum(not isinstance(op, BatchOp) for op in ops))

    def __call__(
        self,
        image: bytes | str | Path | Pixels,
        *,
        key: str = "",
        seed: int = 0,
        n: int = 0,
        variants: int | None = None,
        first_draw: int = 0,
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Run the whole chain on one image.

        With a record's key, the cache's seed and number of variants, and the epoch `n`, the result is what the loader yields.
        For inference with a trained model, use the validation chain: ``open_manifest(cache).parsed_chain("val")``.

        Args:
            image: Encoded bytes, a path, a Pillow image or a decoded array ``[H, W, C]`` uint8.
            key: The record's key.
            seed: The cache's seed.
            n: The epoch, at least 0.
            variants: Number of variants in the cache; None if every epoch has a new one.
            first_draw: The draw of the cache's first variant.

        Returns:
            ``[H, W, C]`` uint8, or float32 after to_float.

        Raises:
            DecodeError: The image cannot be decoded.
            ValueError: An op does not support the image, or the chain mixes the images of a batch.
        """
        draws, pixels = self._draws(key, seed, n, variants, first_draw), self.decode.load(image)
        for ops, words in draws:
            pixels = apply(ops, pixels, words)
        return apply_batch_ops(self.on_batches, pixels, ())

    def with_targets(
        self,
        image: bytes | str | Path | Pixels,
        targets: Sequence[SpatialTarget],
        *,
        key: str = "",
        seed: int = 0,
        n: int = 0,
        variants: int | None = None,
        first_draw: int = 0,
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], tuple[SpatialTarget, ...]]:
        """Run the whole chain on one image and on the masks, boxes and points that move with its pixels.

        >>> import numpy as np
        >>> from joulecache.transforms import BoxesTarget, parse
        >>> boxes = BoxesTarget(np.array([[10, 20, 30, 60]], np.float32), np.array([3]))
        >>> image, (moved,) = parse("decode|resize(50)").with_targets(np.zeros((100, 100, 3), np.uint8), [boxes])
        >>> moved.boxes.tolist()
        [[5.0, 10.0, 15.0, 30.0]]

        Args:
            image: As in a call of the chain.
            targets: `MaskTarget`, `BoxesTarget` or `PointsTarget`, in pixels of the image, upright as its EXIF orientation says.
            key: The record's key.
            seed: The cache's seed.
            n: The epoch, at least 0.
            variants: Number of variants in the cache; None if every epoch has a new one.
            first_draw: The draw of the cache's first variant.

        Returns:
            The image as a call of the chain returns it, and its targets in the same order.

        Raises:
            DecodeError: The image cannot be decoded.
            ValueError: An op does not support the image or does not say how targets move, a target does not fit the image, or the
                chain mixes the images of a batch.
        """
        draws, moved = self._draws(key, seed, n, variants, first_draw), tuple(targets)
        if moved:
            check_moves(self.ops)
        image = Path(image).read_bytes() if isinstance(image, str | Path) else image
        if isinstance(image, bytes):
            pixels, moved = apply_with_targets((self.decode,), image, (), moved)
        else:
            pixels = self.decode.load(image)
            check_fit(moved, *pixels.shape[:2])
        for ops, words in draws:
            pixels, moved = apply_with_targets(ops, pixels, words, moved)
        return apply_batch_ops(self.on_batches, pixels, ()), moved

    def _draws(
        self, key: str, seed: int, n: int, variants: int | None, first_draw: int
    ) -> list[tuple[Sequence[Op], list[int]]]:
        """Return the ops after decode and those after the cut, with their random words; ValueError if they cannot run on one image."""
        if self.mixes:
            raise ValueError(
                f"{str(self)!r} mixes the images of a batch and cannot run on one: call its for_validation(), or drop mixup and cutmix"
            )
        if n < 0 or (variants is not None and variants < 1):
            raise ValueError(f"n must be at least 0 and variants at least 1, got n={n}, variants={variants}")
        hashes, variant = [randomness.key_hash(key)], n
        if variants is not None:
            variant = first_draw + (n - first_draw) % variants
        parts = ((1, self.prefix[1:], variant), (self.cut, self.on_images, n))
        return [(ops, randomness.random_words(ops, first, seed, hashes, draw)[0]) for first, ops, draw in parts]


# Sizes ----------------------------------------------------------------------------------------------------------------


def output_size(ops: Sequence[Op], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of the result of the ops after decode, for an image of this size.

    Raises:
        ValueError: An op does not support its input size.
    """
    for op in ops:
        height, width = op.output_size(height, width)
    return height, width


def output_channels(ops: Sequence[Op]) -> int:
    """Return the number of channels of the result of ops that start with decode.

    Raises:
        ValueError: An op does not support its number of input channels.
    """
    channels = 0
    for op in ops:
        if channels == 4 and not op.accepts_alpha:
            raise ValueError(f"{op_name(type(op))} does not support an alpha channel: drop it, or decode 3 channels")
        channels = op.output_channels(channels)
    return channels


def fixed_size(ops: Sequence[Op]) -> tuple[int, int] | None:
    """Return the (height, width) that every image has after the ops, or None if it depends on the image.

    Raises:
        ValueError: An op does not support its input size, such as a crop larger than the image.
    """
    size: tuple[int, int] | None = None
    for op in ops:
        size = op.target if size is None else op.output_size(*size)
    return size


# Running --------------------------------------------------------------------------------------------------------------


def apply(ops: Sequence[Op], image: bytes | Header | Array, words: Sequence[int]) -> Array:
    """Run ops on one image.

    Args:
        ops: Ops on single images.
        image: The input of the first op: for decode, encoded bytes or the result of `Decode.read_header`.
        words: The random words of all `ops` (see `random_words`).

    Returns:
        ``[H, W, C]`` uint8, possibly a view of the input.

    Raises:
        DecodeError: The image cannot be decoded.
        ValueError: An op does not support the image, or a custom op failed.
    """
    array = cast("Array", image)  # decode alone accepts others
    for op, columns in word_columns(ops):
        if type(op) in BUILT_IN:
            array = op.pixels(array, op.draw(words[columns], *array.shape[:2]) if op.random_words else ())
        else:
            array = _run_custom(op, array, words[columns])
    return array


def apply_to_each(ops: Sequence[Op], images: Sequence[Array], words: NDArray[np.int64]) -> Sequence[Array]:
    """Run ops on images of one size: like `apply` on each, with one vectorized draw per op.

    Args:
        ops: Ops on single decoded images.
        images: Images of one size.
        words: Their `word_table`, int64 ``[B, W]``.

    Returns:
        Arrays ``[H, W, C]`` uint8, possibly views of the input.
    """
    for op, columns in word_columns(ops):
        op_words = words[:, columns]
        if type(op) not in BUILT_IN:
            images = [_run_custom(op, image, row) for image, row in zip(images, op_words.tolist(), strict=True)]
        elif op.random_words:
            pairs = zip(images, op.draw_batch(op_words, *images[0].shape[:2]), strict=True)
            images = [op.pixels(image, drawn) for image, drawn in pairs]
        else:
            images = [op.pixels(image, ()) for image in images]
    return images


def _run_custom(op: Op, image: Array, words: Sequence[int]) -> Array:
    """Run a custom op on one image."""
    return custom.pixels(op, image, custom.draw(op, words, *image.shape[:2]))


def apply_batch_ops(ops: Sequence[Op], images: Batch, words: Sequence[int], empty: Empty = np.empty) -> Batch:
    """Run ops on a batch.

    Args:
        ops: `BatchOp`s.
        images: uint8 ``[B, H, W, C]``, or ``[H, W, C]`` without mixup and cutmix.
        words: The batch's random words for all `ops`.
        empty: Allocates an array of a shape and dtype.

    Returns:
        uint8 or float32, in a new array from `empty` or in `images` itself.
    """
    for op, columns in word_columns(ops):
        assert isinstance(op, BatchOp)
        drawn = op.draw(words[columns], *images.shape[-3:-1])
        images = op.apply(images, drawn, empty)
    return images


# Text -----------------------------------------------------------------------------------------------------------------

_ARGUMENTS = "a number, a string, a tuple of them, True, False or None"

Literal = int | float | str | bool | tuple[object, ...] | None


def parse(text: str, ops: Mapping[str, type[Op]] | None = None) -> Chain:
    """Parse a chain such as ``decode|resize(72) || random_crop(64)|flip_lr``.

    Arguments are Python literals, or divisions of two numbers such as ``3/4``.

    Args:
        text: Ops separated by ``|``, and at most one cut ``||``.
        ops: Custom ops by name, in addition to the built-in ones (see `Op` and `ops_of`).

    Raises:
        UnknownOpError: The text names an unknown op.
        ValueError: The text is not a valid chain.
    """
    if not isinstance(text, str):
        raise ValueError(f'a chain must be text such as "decode|resize(72)", or a Chain, got {type(text).__name__}')
    halves = text.split("||")
    if len(halves) > 2:
        raise ValueError(f"a chain has at most one cut '||', got {len(halves) - 1} in {_quoted(text)}")
    table = _table(ops or {})
    parsed = [[_parse_op(piece, text, table) for piece in half.split("|")] for half in halves]
    return Chain(tuple(op for half in parsed for op in half), len(parsed[0]))


def as_chain(chain: Chain | str) -> Chain:
    """Return a chain, parsed if it is text; raises as `parse`."""
    return chain if isinstance(chain, Chain) else parse(chain)


def _quoted(text: str) -> str:
    return f'"{text}"' if text.isprintable() and '"' not in text else repr(text)


def _table(custom: Mapping[str, type[Op]]) -> Mapping[str, type[Op]]:
    if not isinstance(custom, Mapping):
        raise ValueError(f"ops must be a dict of op classes by name, got {type(custom).__name__}")
    taken = [name for name, kind in custom.items() if OPS.get(name, kind) is not kind]
    if taken:
        raise ValueError(f"op {taken[0]!r} is built in: rename the custom op")
    check_custom_ops({name: kind for name, kind in custom.items() if name not in OPS})
    return {**OPS, **custom}


def _parse_op(piece: str, text: str, ops: Mapping[str, type[Op]]) -> Op:
    source = piece.strip()
    if not source:
        raise ValueError(f"missing op in {_quoted(text)}: write ops between '|', like decode|resize(72)")
    unreadable = f"cannot parse {_quoted(source)} in {_quoted(text)}: an op is name or name(arguments)"
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(unreadable) from error
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(unreadable)
    kind = ops.get(call.func.id)
    if kind is None:
        near = difflib.get_close_matches(call.func.id, ops, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the ops are {', '.join(ops)}"
        raise UnknownOpError(f"unknown op {call.func.id!r} in {_quoted(text)}: {hint}")
    args, kwargs = _arguments(call, source)
    try:
        return kind(*args, **kwargs)
    except TypeError as error:
        fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        raise ValueError(f"{_quoted(source)} does not match {call.func.id}({', '.join(fields)})") from error
    except ValueError as error:
        if call.func.id in OPS:
            raise
        raise ValueError(f"{call.func.id}: {error}") from error


def _arguments(call: ast.Call, source: str) -> tuple[list[Literal], dict[str, Literal]]:
    try:
        args = [_value(arg) for arg in call.args]
        kwargs: dict[str, Literal] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in kwargs:
                raise ValueError("not a name, or given twice")
            kwargs[keyword.arg] = _value(keyword.value)
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"cannot parse the arguments of {_quoted(source)}: give each once, as {_ARGUMENTS}") from error
    return args, kwargs


class _Fractions(ast.NodeTransformer):
    """Evaluates divisions of two numbers."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.Div):
            numerator, denominator = ast.literal_eval(node.left), ast.literal_eval(node.right)
            if isinstance(numerator, int | float) and isinstance(denominator, int | float) and denominator:
                return ast.Constant(numerator / denominator)
        return node


def _value(node: ast.expr) -> Literal:
    value: Literal = ast.literal_eval(_Fractions().visit(node))
    return value


def op_text(op: Op) -> str:
    """Return an op as text, omitting arguments equal to their defaults."""
    arguments, positional = [], True
    for field in (field for field in dataclasses.fields(op) if field.init):  # type: ignore[arg-type]
        positional = positional and not field.kw_only
        value = getattr(op, field.name)
        literal = _literal(op, field.name, value)
        if value == field.default:
            positional = False
            continue
        arguments.append(literal if positional else f"{field.name}={literal}")
    return op_name(type(op)) + (f"({', '.join(arguments)})" if arguments else "")


def _literal(op: Op, name: str, value: object) -> str:
    parts = value if type(value) is tuple else (value,)
    if not all(map(_is_plain, parts)):
        raise ValueError(f"{op_name(type(op))}: {name} must be {_ARGUMENTS} to be written as text, got {value!r}")
    if name == "size" and type(op) in BUILT_IN and len(parts) == 2 and parts[0] == parts[1]:
        return repr(parts[0])
    return repr(value).replace("|", r"\x7c")  # only strings can contain a bar, which would end the op


def _is_plain(part: object) -> bool:
    """Return whether a value can be parsed back from its `repr`, unlike infinity and NumPy floats."""
    return part is None or type(part) in (bool, int, str) or (type(part) is float and math.isfinite(part))


def _text(ops: Sequence[Op]) -> str:
    return "|".join(op_text(op) for op in ops)
