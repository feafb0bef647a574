"""`where=`: choose the records of a split by keys and targets, from the index alone. Imports no TensorFlow."""

from __future__ import annotations

import ast
import difflib
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.feature import as_numbers
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, MultiLabel, Text, Value
from joulecache.pipelines.source.spatial import SpatialFeature

Where: TypeAlias = str | Callable[[Mapping[str, NDArray[Any]]], NDArray[np.bool_]]
"""An expression such as ``"label in ('cat', 'dog')"``, or a function of the columns of the index that returns bool ``[N]``."""

_Mask: TypeAlias = NDArray[np.bool_]
_Constant: TypeAlias = str | int | float

KEY = "key"
_EXAMPLE = "\"label in ('cat', 'dog')\""
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
_TEXT_COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_TEXT_TESTS = {"startswith": "starts_with", "endswith": "ends_with"}


class Columns(Mapping[str, NDArray[Any]]):
    """The columns of a split's index, by name, read on first use: ``key``, and every target that does not move with the pixels.

    Classes are int64 ``[N]``, multi-labels uint8 ``[N, K]``, values ``[N, *shape]``, keys and texts `str` objects ``[N]``.
    """

    def __init__(self, cache: Cache, split: str) -> None:
        self._rows, self._location = cache.rows(split), cache.location
        self._texts: dict[str, pa.Array] = {}
        still = {name: each for name, each in cache.manifest.features.items() if not isinstance(each, SpatialFeature)}
        self.features: Mapping[str, AnyFeature] = {KEY: Text(), **still}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.features:
            raise KeyError(f"the index has no column {name!r}, but {', '.join(self.features)}")
        if isinstance(self.features[name], Text):
            return np.array(self.texts(name).to_pylist(), object)
        return self.features[name].array(self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def records(self) -> int:
        """N."""
        return int(self._rows.num_rows)

    def texts(self, name: str) -> pa.Array:
        """Return a column of texts; raises CacheError if the index is damaged."""
        if name not in self._texts:
            try:
                self._rows[name].validate(full=True)  # offsets outside the file would crash the interpreter
            except pa.ArrowException as error:
                raise CacheError(f"the index of {self._location!r} is damaged: {error}") from error
            self._texts[name] = self._rows[name]
        return self._texts[name]


def choose(cache: Cache, split: str, where: Where) -> NDArray[np.int64]:
    """Return the rows of a split that `where` selects, in ascending order.

    Raises:
        CacheError: The index is damaged.
        ValueError: The expression does not fit the columns, the function returns something else, or nothing is selected.
    """
    columns = Columns(cache, split)
    mask = _Expression(where, columns).mask if isinstance(where, str) else np.asarray(where(columns))
    if mask.dtype != np.bool_ or mask.shape != (columns.records,):
        raise ValueError(
            f"where must return bool [{columns.records}], one for each record, got {mask.dtype} {[*mask.shape]}"
        )
    rows = np.flatnonzero(mask)
    if not len(rows):
        raise ValueError(
            f"where must select at least one of the {columns.records} records in {split!r}, got {shown(where)}"
        )
    return rows


def parse_where(text: str) -> ast.expr:
    """Return the syntax tree of an expression; raise ValueError if it has none."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"where must be an expression such as {_EXAMPLE}, got {shown(text)}") from None


class _Expression:
    """The records that an expression selects.

    Attributes:
        mask: bool ``[N]``.
    """

    def __init__(self, text: str, columns: Columns) -> None:
        self._text, self._columns = text, columns
        try:
            self.mask = self._test(parse_where(text))
        except RecursionError:
            raise self._error("where must not be nested deeper than Python's recursion limit") from None

    def _error(self, expected: str) -> ValueError:
        return ValueError(f"{expected}, got where={shown(self._text)}")

    def _test(self, node: ast.expr) -> _Mask:
        """Return what `node`, which is true or false for each record, is."""
        match node:
            case ast.BoolOp(op, values):
                combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return functools.reduce(combine, map(self._test, values))
            case ast.UnaryOp(ast.Not(), operand):
                return ~self._test(operand)
            case ast.Compare(left, ops, comparators):
                pairs = zip([left, *comparators], ops, comparators, strict=False)
                return functools.reduce(np.logical_and, (self._compare(*pair) for pair in pairs))
            case ast.Call(ast.Attribute(ast.Name(name), method), arguments, []) if method in _TEXT_TESTS:
                return self._text_test(name, method, arguments)
        raise self._error(
            f"where must combine comparisons of columns with constants by and, or, not, such as {_EXAMPLE}, and {ast.unparse(node)!r} "
            "is none"
        )

    def _text_test(self, name: str, method: str, arguments: Sequence[ast.expr]) -> _Mask:
        constants = [self._constant(each) for each in arguments]
        if not isinstance(self._feature(name), Text) or len(constants) != 1 or not isinstance(constants[0], str):
            raise self._error(f"{method} needs a key or text, and one string")
        return _as_mask(_TEXT_TESTS[method], self._columns.texts(name), constants[0])

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Mask:
        kind = type(op)
        match left, right:
            case ast.Name(name), ast.Tuple(values) | ast.List(values) | ast.Set(values) if kind in (ast.In, ast.NotIn):
                found = self._is_in(name, [self._constant(value) for value in values])
                return found if kind is ast.In else ~found
            case _, ast.Name(name) if kind in (ast.In, ast.NotIn):
                found = self._contains(name, self._constant(left))
                return found if kind is ast.In else ~found
            case ast.Name(name), ast.Constant() | ast.UnaryOp() if kind in _COMPARISONS:
                return self._against(name, kind, self._constant(right))
            case ast.Constant() | ast.UnaryOp(), ast.Name(name) if kind in _COMPARISONS:
                return self._against(name, _MIRRORED.get(kind, kind), self._constant(left))
        comparison = ast.unparse(ast.Compare(left, [op], [right]))
        raise self._error(
            f"where must compare a column with constants, such as {_EXAMPLE}, and {comparison!r} does not"
        )

    def _against(self, name: str, kind: type[ast.cmpop], constant: _Constant) -> _Mask:
        """Return for which records a comparison of a column with a constant holds."""
        feature = self._feature(name)
        if isinstance(feature, ClassLabel) and kind not in (ast.Eq, ast.NotEq):
            raise self._error(f"classes such as {name!r} have no order: compare them with ==, != or in")
        value = self._value(name, feature, constant)
        if isinstance(feature, Text):
            return _as_mask(_TEXT_COMPARISONS[kind], self._columns.texts(name), value)
        mask: _Mask = _COMPARISONS[kind](self._columns[name], value)
        return mask

    def _is_in(self, name: str, constants: Sequence[_Constant]) -> _Mask:
        feature = self._feature(name)
        values = [self._value(name, feature, constant) for constant in constants]
        if isinstance(feature, Text):
            return _as_mask("is_in", self._columns.texts(name), pa.array(values, pa.string()))
        column, none = self._columns[name], np.zeros(self._columns.records, np.bool_)
        return functools.reduce(np.logical_or, (column == value for value in values), none)

    def _contains(self, name: str, constant: _Constant) -> _Mask:
        """Return which texts contain a string, or which multi-labels a class."""
        feature = self._feature(name)
        if isinstance(feature, Text) and isinstance(constant, str):
            return _as_mask("match_substring", self._columns.texts(name), constant)
        if isinstance(feature, MultiLabel):
            mask: _Mask = self._columns[name][:, self._class(name, feature, constant)] > 0
            return mask
        raise self._error(f"{constant!r} in {name} needs a multi-label, or a string in a key or text")

    def _value(self, name: str, feature: AnyFeature, constant: _Constant) -> _Constant:
        """Return what the column has for a constant."""
        match feature:
            case ClassLabel():
                return self._class(name, feature, constant)
            case Text() if isinstance(constant, str):
                return constant
            case Value(shape=()) if not isinstance(constant, str):
                return constant
            case MultiLabel():
                raise self._error(f"{name!r} has several classes for each record: write {constant!r} in {name}")
            case Value(shape=(_, *_)):
                raise self._error(f"{name!r} has several numbers for each record: use a function of the columns")
        expected = "a string" if isinstance(feature, Text) else "a number"
        raise self._error(f"{name!r} is compared with {expected}, and {constant!r} is none")

    def _class(self, name: str, feature: ClassLabel | MultiLabel, constant: _Constant) -> int:
        """Return the number of a class, which may be its name or number."""
        if isinstance(constant, str):
            if constant in feature.numbers:
                return feature.numbers[constant]
            raise self._error(f"{name!r} has no class {constant!r}{_hint(constant, feature.names)}")
        if not isinstance(constant, int) or not 0 <= constant < len(feature.names):
            raise self._error(f"the classes of {name!r} are names, or numbers from 0 to {len(feature.names) - 1}")
        return constant

    def _feature(self, name: str) -> AnyFeature:
        if name in self._columns.features:
            return self._columns.features[name]
        hint = _hint(name, [*self._columns]) or f": it has {', '.join(self._columns)}"
        raise self._error(f"the index has no column {name!r}{hint}")

    def _constant(self, node: ast.expr) -> _Constant:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError):
            value = None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._error(f"{ast.unparse(node)!r} must be a string or a number")
        return value


def _as_mask(function: str, texts: pa.Array, argument: object) -> _Mask:
    """Return what a function of `pyarrow.compute` says of each text."""
    import pyarrow.compute as pc  # 0.1 s

    found = pc.cast(getattr(pc, function)(texts, argument), pa.uint8())
    return as_numbers(found).astype(np.bool_)


def _hint(wrong: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, known, 1)
    return f": did you mean {near[0]!r}?" if near else ""
