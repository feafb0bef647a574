#!/usr/bin/env python3
"""Import every module of the installed joulecache, and check that it is installed inside a folder.

    scripts/import_all.py FOLDER

For .ci/run: Python must run with -P, so that the checkout is not on its path.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import joulecache


def main(folder: Path) -> None:
    """Import all modules; AssertionError for an installation elsewhere."""
    place = Path(joulecache.__file__)
    assert place.is_relative_to(folder), f"joulecache was imported from {place}"
    for module in pkgutil.walk_packages(joulecache.__path__, "joulecache."):
        importlib.import_module(module.name)
    print(f"all modules import; joulecache is installed at {place.parent}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
