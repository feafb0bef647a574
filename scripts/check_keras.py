#!/usr/bin/env python3
"""Run Keras' own tests of `image_dataset_from_directory` on joulecache's.

    scripts/check_keras.py

The tests come with the installed Keras. They find joulecache's function in the place of Keras', with a cache folder for each directory and
kind of images. Exit code 1 if a test fails.
"""

from __future__ import annotations

import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from environment import argument_parser, enter


def main() -> int:
    """Run the tests; return the exit code."""
    return 1 if run("Keras", keras_suite()) else 0


def run(name: str, suite: unittest.TestSuite) -> int:
    """Run tests and print how many passed; return how many did not."""
    result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    for test, reason in result.skipped:
        print(f"{name}: skipped {test.id().rpartition('.')[2]}: {reason}")
    passed = result.testsRun - failed - len(result.skipped)
    print(f"{name}: {passed} of {result.testsRun - len(result.skipped)} tests passed, {len(result.skipped)} skipped")
    return failed


def keras_suite() -> unittest.TestSuite:
    """Return Keras' tests, which find joulecache's function in the place of Keras' own."""
    from keras.src.utils import image_dataset_utils, image_dataset_utils_test

    from joulecache.pipelines import image_dataset_from_directory

    folder = Path(tempfile.mkdtemp())
    caches: dict[tuple[object, ...], Path] = {}

    def with_cache(directory: str, *arguments: Any, **options: Any) -> Any:
        kind = ("image_size", "color_mode", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
        key = (directory, *(options.get(name) for name in kind))
        cache = caches.setdefault(key, folder / str(len(caches)))
        return image_dataset_from_directory(directory, *arguments, cache_dir=cache, **options)

    image_dataset_utils.image_dataset_from_directory = with_cache
    return unittest.defaultTestLoader.loadTestsFromModule(image_dataset_utils_test)


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.parse_args()
    enter()
    sys.exit(main())
