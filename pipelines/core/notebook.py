"""Results in notebooks: `report` registers how each type is shown, and `Displayed` types look that up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Render = Callable[[T], str]

_renders: dict[type, Render[Any]] = {}
_loaders: list[Callable[[], object]] = []


class Displayed:
    """A result that notebooks show as the function registered for its type renders it."""

    def _repr_html_(self) -> str | None:
        return to_html(self)


def register(kind: type[T], render: Render[T]) -> None:
    """Render a type, and its subclasses, as HTML by a function."""
    _renders[kind] = render


def register_on_first_use(load: Callable[[], object]) -> None:
    """Call `load`, which registers functions, when something is first shown: until then nothing that renders is imported."""
    _loaders.append(load)


def to_html(value: object) -> str | None:
    """Return a value as HTML, or None where no function is registered for its type."""
    while _loaders:
        _loaders.pop()()
    found = (_renders[kind] for kind in type(value).__mro__ if kind in _renders)
    render = next(found, None)
    return None if render is None else render(value)
