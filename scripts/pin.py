#!/usr/bin/env python3
"""Write constraints.txt: one version of every package, within the ranges of setup.cfg, for every supported Python.

    scripts/pin.py [--upgrade | --upgrade-package NAME ...]

Existing pins stay if they fit, unless --upgrade moves all of them, or --upgrade-package some. Runs on any Python; uv is
installed into a temporary environment.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from environment import ROOT, argument_parser

CONSTRAINTS = ROOT / "constraints.txt"
PYTHON = "Programming Language :: Python :: "


def main(upgrades: Sequence[str]) -> None:
    """Resolve and write the pins."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    classifiers = config["metadata"]["classifiers"].splitlines()
    versions = [line.removeprefix(PYTHON) for line in classifiers if line.startswith(PYTHON)]
    extras = config["options.extras_require"]
    requirements = (config["options"]["install_requires"], extras["dev"], extras["docs"], "pip")
    with tempfile.TemporaryDirectory() as folder:
        pins = resolve("\n".join(requirements), versions, upgrades, Path(folder))
    head = (
        f"# Made by scripts/pin.py: what the tests run with, on Python {versions[0]} to {versions[-1]}, Linux x86-64."
    )
    CONSTRAINTS.write_text("\n".join([head, *merged(pins)]) + "\n")


def resolve(requirements: str, versions: Sequence[str], upgrades: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Return the pins for each Python, from the oldest to the newest; each keeps the pins of the one before that fit."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], check=True)
    wanted, before = folder / "requirements.in", CONSTRAINTS
    wanted.write_text(requirements)
    pins = {}
    for version in versions:
        output = folder / version
        if before.exists():
            output.write_text(before.read_text())
        options = ["--quiet", "--no-header", "--no-annotate", *(upgrades if version == versions[0] else [])]
        target = ["--python-version", version, "--python-platform", "x86_64-manylinux_2_28"]
        uv = [python, "-m", "uv", "pip", "compile", str(wanted), *options, "--python", sys.executable, *target]
        subprocess.run([*uv, "--output-file", output], stdout=subprocess.DEVNULL, check=True)
        pins[version] = output.read_text().splitlines()
        before = output
    return pins


def merged(pins: Mapping[str, Sequence[str]]) -> list[str]:
    """Return all pins in order; those of some Pythons only have a marker."""
    lines = []
    for pin in sorted({pin for found in pins.values() for pin in found}, key=lambda pin: pin.split("==")):
        having = [version for version, found in pins.items() if pin in found]
        if len(having) == len(pins):
            lines.append(pin)
        else:
            lines += [f'{pin} ; python_version == "{version}"' for version in having]
    return lines


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--upgrade", action="store_true", help="move all pins to the newest versions")
    parser.add_argument("--upgrade-package", action="append", default=[], metavar="NAME", help="move one pin")
    given = parser.parse_args()
    main(
        [
            *["--upgrade"] * given.upgrade,
            *(word for name in given.upgrade_package for word in ("--upgrade-package", name)),
        ]
    )
