"""Every command that people are told to run is accepted by the command line's own parser."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from audits import AUDIT, make_plan
from commands import group, options_of, parameters

from joulecache.pipelines.cli.commands import COMMANDS
from joulecache.pipelines.planning.config import PlanConfig
from joulecache.pipelines.planning.planner import build_options
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.document import Command

ROOT = Path(__file__).resolve().parents[1]
BEAM = {"--runner", "--direct-running-mode"}
"""Options of Beam that texts name."""


def parsed(command: str) -> dict[str, Any]:
    """Parse a joulecache command as a shell and the command line do, without calling it; return its parameters."""
    program, name, *arguments = shlex.split(command)
    assert program == "joulecache"
    return parameters(name, arguments)


@pytest.mark.parametrize(
    "source", ["photos/", "my photos/it's *.parquet", "-photos", "s3://bucket/$HOME/a&b", "tfds:x"]
)
def test_the_commands_of_a_plan(source: str) -> None:
    config = PlanConfig(
        epochs=3,
        limit=300,
        labels=Path("the classes.csv"),
        splits={"train": "training set", "test": "$x"},
        image="img",
        target=("fine label", "age:value"),
        seed=7,
    )
    plan = make_plan(source=source, options=build_options(config))
    for choice in plan.choices:
        command = plan.command(choice, "my cache/")
        assert (command is None) == (choice.layout is None)
        if command is None or choice.layout is None:
            continue
        given = parsed(command)
        assert str(Path(given["source"])) == str(Path(source))
        assert (given["cache"], given["chain"]) == ("my cache/", str(plan.chain_of(choice)))
        assert (given["format"].value, given["encoding"].value) == (choice.layout.format, choice.layout.encoding)
        assert (given["variants"], given["quality"]) == (choice.variants, choice.layout.quality)
        assert (given["limit"], given["seed"], str(given["labels"])) == (None, 7, "the classes.csv")
        assert given["splits"] == "train=training set,test=$x"
        assert (given["image"], given["target"]) == ("img", ["fine label", "age:value"])


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("/opt/bin/joulecache", "audit", "my photos", "--out", "a"), "joulecache audit 'my photos' --out a"),
        (("my audit.py", "--fast"), "python 'my audit.py' --fast"),
        (("/venv/ipykernel_launcher.py", "-f", "kernel.json"), None),
        (("-c",), None),
        (("",), None),
        ((), None),
    ],
)
def test_the_command_of_an_audit(command: Sequence[str], shown: str | None) -> None:
    audit = dataclasses.replace(AUDIT, provenance=dataclasses.replace(AUDIT.provenance, command=tuple(command)))
    blocks = [block for section in describe_audit(audit).sections for block in section.blocks]
    assert [block.text for block in blocks if isinstance(block, Command)] == ([shown] if shown else [])


def test_the_examples_of_the_help() -> None:
    for command, examples in COMMANDS.items():
        for example in examples:
            assert example.startswith(command.__name__)
            parsed(f"joulecache {example}")


# Texts ----------------------------------------------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    """Yield the string literals of the product, f-strings with their values left out, each with its place."""
    for package in ("pipelines", "transforms"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
                    yield place, "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield place, node.value


def test_commands_in_texts_exist() -> None:
    found = 0
    for place, text in texts():
        for command in re.findall(r"`joulecache ([a-z][^`]*)`", text):
            name, *words = command.split()
            assert name in group().commands, f"{place}: joulecache {command}"
            assert {word for word in words if word.startswith("--")} <= options_of(name), f"{place}: {command}"
            found += 1
    assert found > 10


def test_options_in_texts_exist() -> None:
    known = {flag for name in group().commands for flag in options_of(name)} | {"--help", "--version"} | BEAM
    found = {}
    for place, text in texts():
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text):
            found[flag] = place
    assert len(found) > 30
    assert {flag: place for flag, place in found.items() if flag not in known} == {}
