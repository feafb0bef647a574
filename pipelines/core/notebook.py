"""Results in notebooks: `report` registers a renderer for each type, and `Displayed` types look it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Render = Callable[[T], str]

_renders: dict[type, Render[Any]] = {}
_loaders: list[Callable[[], object]] = []


class Displayed:
    """A result that notebooks display by the renderer registered for its type."""

    def _repr_html_(self) -> str | None:
        return to_html(self)


def register(kind: type[T], render: Render[T]) -> None:
    """Register the HTML renderer of a type and its subclasses."""
    _renders[kind] = render


def register_on_first_use(load: Callable[[], object]) -> None:
    """Call `load`, which registers renderers, when a result is first displayed: rendering code is imported only then."""
    _loaders.append(load)


def to_html(value: object) -> str | None:
    """Return a value as HTML, or None if its type has no renderer."""
    while _loaders:
        _loaders.pop()()
    render = next((_renders[kind] for kind in type(value).__mro__ if kind in _renders), None)
    return None if render is None else render(value)
