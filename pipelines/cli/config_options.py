"""Derive the options of a command from the fields of a dataclass, so that each argument is declared once.

A parameter marked with `OptionsOf` becomes one option per field; the command receives the given options by field.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from joulecache.pipelines.core.codec import documented

Given = dict[str, Any]
"""Values of the given options by field."""

_CHOICE: Any = StrEnum  # mypy knows only enums with literal members
_REFERENCE = re.compile(r"`(\w+)`")  # a reference in help text to a field or a value
_METAVARS: dict[type, str] = {int: "N", float: "X", Path: "FILE"}
_PLURALS: dict[type, str] = {int: "integers", float: "numbers"}


@dataclass(frozen=True)
class OptionsOf:
    """Marks the parameter of a command that stands for the fields of a dataclass.

    A field's help is its entry under `Attributes:` in the docstring of the dataclass or of a base.

    Attributes:
        config: The dataclass.
        only: Fields that become options; None for all but `leave_out`.
        leave_out: Fields that the command fills in itself.
        names: Names of options that differ from those of their fields, by field.
        repeated: Tuple fields whose option is repeated for each value. Other tuples are one text: with commas, or with colons if their
            length is fixed.
        metavars: What help shows for a value, by field.
        panel: Title of the options' box in the help; None for the default box.
    """

    config: type
    only: Collection[str] | None = None
    leave_out: Collection[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    repeated: Collection[str] = ()
    metavars: Mapping[str, str] = field(default_factory=dict)
    panel: str | None = None

    def options(self) -> dict[str, _Option]:
        """Return the options by the names of their fields."""
        hints = typing.get_type_hints(self.config, include_extras=False)
        _, texts = documented(self.config)
        return {
            each.name: self._option(
                each, _value_type(hints[each.name], each.name in self.repeated), texts.get(each.name, "")
            )
            for each in dataclasses.fields(self.config)
            if (each.name in self.only if self.only is not None else each.name not in self.leave_out)
        }

    def _option(self, each: dataclasses.Field[Any], kind: _ValueType, text: str) -> _Option:
        default = None if each.default is dataclasses.MISSING else each.default
        flag = self._flag(each.name)
        info = typer.Option(
            flag,
            help=_REFERENCE.sub(lambda found: self._flag(found[1]), text),
            metavar=self.metavars.get(each.name, kind.metavar),
            rich_help_panel=self.panel,
            show_default=bool(default),
        )
        annotation = kind.parsed if default is not None or _is_required(each) else kind.parsed | None
        parameter = inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[annotation, info],
            default=inspect.Parameter.empty if _is_required(each) else kind.show(default),
        )
        return _Option(flag, kind.convert, parameter)

    def _flag(self, name: str) -> str:
        """Return the flag of a field, or the name itself if it is not a field."""
        if name not in {each.name for each in dataclasses.fields(self.config)}:
            return name
        return self.names.get(name, "--" + name.replace("_", "-"))


@dataclass(frozen=True)
class _ValueType:
    """How typer parses a value, and how to convert it to a field's value and a field's default to typer's."""

    parsed: Any
    metavar: str | None = None
    convert: Callable[[str, Any], object] = lambda flag, value: value
    show: Callable[[Any], object] = lambda value: value


@dataclass(frozen=True)
class _Option:
    flag: str
    convert: Callable[[str, Any], object]
    parameter: inspect.Parameter


def _is_required(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _value_type(hint: Any, repeated: bool) -> _ValueType:
    """Return how the command line parses values of a type; raises TypeError if it cannot."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [part for part in typing.get_args(hint) if part is not type(None)]
        return _value_type(
            Path if any(typing.get_origin(kind) is os.PathLike for kind in kinds) else kinds[0], repeated
        )
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        choice = _CHOICE("Choice", {word: word for word in parts})
        return _ValueType(choice, None, lambda flag, value: value.value, lambda value: value and choice(value))
    if origin is tuple and repeated:
        return _ValueType(list[parts[0]], None, lambda flag, value: tuple(value), lambda value: None)  # type: ignore[valid-type]
    if origin is tuple and parts[-1] is not Ellipsis:
        return _ValueType(str, ":".join(_METAVARS[part] for part in parts), _joined(parts))
    if origin is tuple:
        metavar = f"{_METAVARS.get(parts[0], 'NAME')},..."
        return _ValueType(str, metavar, _splitter(parts[0]), lambda value: value and ",".join(map(str, value)))
    if origin is collections.abc.Mapping:
        return _ValueType(str, "KEY=VALUE,...", _mapping, lambda value: None)
    if hint in (str, bool, *_METAVARS):
        return _ValueType(hint, _METAVARS.get(hint))
    raise TypeError(f"a field of type {hint} cannot be an option: leave it out")


def _splitter(kind: type) -> Callable[[str, str], tuple[Any, ...]]:
    """Return a function that parses comma-separated values."""

    def split(flag: str, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word.strip()) for word in text.split(",") if word.strip())
        except ValueError:
            raise ValueError(f"{flag} must be {_PLURALS[kind]} separated by commas, got {text!r}") from None

    return split


def _joined(kinds: Sequence[type]) -> Callable[[str, str], tuple[Any, ...]]:
    """Return a function that parses a number of values separated by colons."""

    def split(flag: str, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word) for kind, word in zip(kinds, text.split(":"), strict=True))
        except ValueError:
            raise ValueError(f"{flag} must be {len(kinds)} numbers separated by a colon, got {text!r}") from None

    return split


def _mapping(flag: str, text: str) -> dict[str, str]:
    """Parse key=value pairs separated by commas."""
    pairs = [word.strip().partition("=") for word in text.split(",") if word.strip()]
    if not all(key and value for key, _, value in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise ValueError(f"{flag} must be KEY=VALUE pairs separated by commas, each key once, got {text!r}")
    return {key: value for key, _, value in pairs}


@dataclass(frozen=True)
class Job:
    """A command whose arguments are parsed.

    Attributes:
        command: Its name, as in "joulecache audit".
        run: Runs it.
    """

    command: str
    run: Callable[[], None]


def expanded(command: Callable[..., None], **flags: Any) -> Callable[..., Job]:
    """Return a command for typer that only parses. Each marked parameter is replaced by one parameter per field.

    Args:
        command: The command; it takes keyword arguments.
        flags: Annotations of flags that typer handles itself: `command` does not receive them.
    """
    groups: dict[str, dict[str, _Option]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        marks = getattr(parameter.annotation, "__metadata__", ())
        mark = next((each for each in marks if isinstance(each, OptionsOf)), None)
        if mark is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = mark.options()
        parameters += [option.parameter for option in groups[parameter.name].values()]
    for name, annotation in flags.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=False))
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def parse(context: typer.Context, **values: Any) -> Job:
        for group, options in groups.items():
            parsed = {name: values.pop(name) for name in options}
            values[group] = {
                name: options[name].convert(options[name].flag, value)
                for name, value in parsed.items()
                if (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
            }
        for name in flags:
            del values[name]
        return Job(context.command_path, functools.partial(command, **values))

    parse.__name__, parse.__doc__ = command.__name__, command.__doc__
    parse.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parse.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return parse
