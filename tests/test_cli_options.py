"""Options of commands that are made of the fields of a dataclass."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer

from joulecache.pipelines.cli.config_options import Given, Job, OptionsOf, expanded


@dataclass(frozen=True, kw_only=True)
class Base:
    """Inherited fields.

    Attributes:
        epochs: How many epochs; see `kind` and `l1`.
        names: Replaced by the subclass.
    """

    epochs: int


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """Every kind of field.

    Attributes:
        names: Some names.
    """

    share: float = 0.25
    kind: Literal["raw", "jpeg"] = "raw"
    names: tuple[str, ...] = ("a", "b")
    counts: tuple[int, ...] | None = None
    ends: tuple[float, float] | None = None
    layers: tuple[str, ...] = ()
    file: str | os.PathLike[str] | None = None
    force: bool = False
    internal: object = None


Options = Annotated[
    Given,
    OptionsOf(
        Config,
        leave_out=("internal",),
        names={"kind": "--type"},
        repeated=("layers",),
        metavars={"share": "SHARE"},
    ),
]
Parse = Callable[..., Given]


@pytest.fixture
def parse() -> Parse:
    """Parse arguments as a command with the options of `Config` does."""
    given: Given = {}

    def command(*, config: Options, verbose: bool = False) -> None:
        given.clear()
        given.update(config)

    app = typer.Typer()
    app.command()(expanded(command))
    click: Any = typer.main.get_command(app)

    def run(*arguments: str) -> Given:
        parsed = click.main(["--epochs", "3", *arguments], standalone_mode=False)
        if isinstance(parsed, Job):
            parsed.run()
        return dict(given)

    return run


def test_only_what_is_given_arrives_in_the_type_of_its_field(parse: Parse) -> None:
    assert parse() == {"epochs": 3}
    assert parse("--share", "0", "--type", "jpeg", "--names", "x, y", "--counts", "1,2", "--ends", "1:2.5") == {
        "epochs": 3,
        "ends": (1.0, 2.5),
        "share": 0.0,
        "kind": "jpeg",
        "names": ("x", "y"),
        "counts": (1, 2),
    }
    assert parse("--layers", "a", "--layers", "b", "--force", "--file", "f.csv") | {"file": "f.csv"} == {
        "epochs": 3,
        "layers": ("a", "b"),
        "force": True,
        "file": "f.csv",
    }


def test_a_list_of_something_else_names_the_option(parse: Parse) -> None:
    with pytest.raises(ValueError, match=r"--counts must be integers separated by commas, got '1,x'"):
        parse("--counts", "1,x")


@pytest.mark.parametrize("text", ["1", "1:2:3", "1:x", ""])
def test_a_pair_of_something_else_names_the_option(parse: Parse, text: str) -> None:
    with pytest.raises(ValueError, match="--ends must be 2 numbers separated by a colon, got"):
        parse("--ends", text)


def test_help_comes_from_the_docstrings_of_the_class_and_its_bases_with_the_default(
    parse: Parse, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    parse("--help")
    text = capsys.readouterr().out
    assert "How many epochs; see --type and l1." in text
    assert "Some names. [default: a,b]" in text
    assert "[default: 0.25]" in text
    assert "--share" in text
    assert "SHARE" in text
    assert "--internal" not in text


def test_a_field_that_is_no_option_must_be_left_out() -> None:
    with pytest.raises(TypeError, match="leave it out"):
        OptionsOf(Config).options()
