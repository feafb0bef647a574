#!/usr/bin/env python3
"""Run Keras' own tests of `image_dataset_from_directory`, and TensorFlow's of `Dataset.cache`, on joulecache's drop-ins.

    scripts/check_keras.py [--tensorflow FILE]

Keras' tests come with the installed Keras. They find joulecache's function in the place of Keras', with a cache folder for each
directory and kind of images. TensorFlow's wheels do not hold theirs: FILE is tensorflow/python/data/kernel_tests/cache_test.py of a
checkout of the installed version. In them, `cache()` is `apply(cached(...))`; what `cached` does not promise is left out, with the
reason. Exit code 1 if a test fails.
"""

from __future__ import annotations

import sys
import tempfile
import unittest
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest import mock

from environment import argument_parser, enter

LEFT_OUT: Mapping[str, str] = {
    "*.test_session": "not a test",
    "*_tfapiversion_1*": "TensorFlow 1",
    "*_mode_graph_*": "cached() fills its folder when it is applied, which needs eager execution",
    "*.testCacheRepeatEpochs_*": "cached() fills at once, not while the first epoch is read",
    "*.testCacheIterationEpochs_*": "cached() fills at once, not while the first epoch is read",
    "*.testConcurrentWriters_*": "cached() has no lock file: a second writer is no error",
    "*.testUnusedCheckpointError_*_ismemory_False": "cached() leaves no half-written files that a second run trips over",
    "*.testCheckpointLargeCache_*": "writes 2.5 GB, to test that elements fit a checkpoint: those of cached() hold only the position",
}
"""Patterns of TensorFlow's tests that cannot apply to `cached`, and why."""


def main(tensorflow_tests: Path | None) -> int:
    """Run the tests; return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        passed = run_keras(Path(folder, "keras"))
        if tensorflow_tests is not None:
            passed &= run_tensorflow(tensorflow_tests, Path(folder, "tensorflow"))
    return 0 if passed else 1


def run_keras(folder: Path) -> bool:
    """Run Keras' tests on joulecache's function, with caches in a folder; return whether all pass."""
    from keras.src.utils import image_dataset_utils, image_dataset_utils_test

    from joulecache.pipelines import image_dataset_from_directory

    caches: dict[tuple[object, ...], Path] = {}

    def with_cache(directory: str, *arguments: Any, **options: Any) -> Any:
        kind = ("image_size", "color_mode", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
        key = (directory, *(options.get(name) for name in kind))
        cache = caches.setdefault(key, folder / str(len(caches)))
        return image_dataset_from_directory(directory, *arguments, cache_dir=cache, **options)

    tests = unittest.defaultTestLoader.loadTestsFromModule(image_dataset_utils_test)
    with mock.patch.object(image_dataset_utils, "image_dataset_from_directory", with_cache):
        return run("Keras", tests)


def run_tensorflow(file: Path, folder: Path) -> bool:
    """Run TensorFlow's tests in a file on `cached`, with folders for what is cached in RAM; return whether all that apply pass."""
    from tensorflow.python.data.ops import dataset_ops

    from joulecache.pipelines import cached

    folder.mkdir()

    def cache(dataset: Any, filename: str = "", name: str | None = None) -> Any:
        return dataset.apply(cached(filename or tempfile.mkdtemp(dir=folder)))

    spec = spec_from_file_location("cache_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    reasons: Counter[str] = Counter()
    suite = unittest.TestSuite()
    for test in each_test(unittest.defaultTestLoader.loadTestsFromModule(module)):
        reason = next((reason for pattern, reason in LEFT_OUT.items() if fnmatch(test.id(), pattern)), None)
        if reason is None:
            suite.addTest(test)
        else:
            reasons[reason] += 1
    with mock.patch.object(dataset_ops.DatasetV2, "cache", cache):
        passed = run("TensorFlow", suite)
    for reason, left_out in reasons.items():
        print(f"TensorFlow: {left_out} left out: {reason}")
    return passed


def each_test(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite and of the suites in it."""
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from each_test(part)
        else:
            yield part


def run(name: str, suite: unittest.TestSuite) -> bool:
    """Run tests and print how many passed; return whether all did, and there are any."""
    result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    print(f"{name}: {result.testsRun - failed - len(result.skipped)} of {result.testsRun} tests passed")
    for test, reason in result.skipped:
        print(f"{name}: skipped {test.id()}: {reason}")
    return not failed and result.testsRun > 0


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--tensorflow", type=Path, metavar="FILE", help="TensorFlow's cache_test.py")
    given = parser.parse_args()
    enter()
    sys.exit(main(given.tensorflow))
