#!/usr/bin/env python3
"""Run the loops of docs/consumers.md, each in an environment of its packages, and check what the consumers kept.

    scripts/test_consumers.py [NAME ...]

Names are numpy, torch, jax, keras-jax, keras-torch and grain; by default all of them, one after the other. Each environment is made
in a temporary folder and deleted afterwards. None has TensorFlow or Beam: joulecache is imported from the checkout. Needs up to
2 GB of disk and the network; what cannot be installed is skipped by name.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environment import ROOT, argument_parser, enter

import joulecache as jc

LOADING = (
    *("annotated-types", "cykooz-resizer", "google-crc32c", "numpy", "opencv", "pillow", "psutil", "pyarrow"),
    *("pydantic", "simplejpeg"),
)
"""The requirements that loading imports."""
CPU_WHEELS = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
LIMIT_S = 600


@dataclass(frozen=True)
class Consumer:
    """A consumer of batches.

    Attributes:
        page: Which code blocks of the page it runs.
        packages: What to install besides the requirements of loading.
        keep: An expression that takes over a batch's array ``x`` without reading it; what is kept is compared at the end.
        backend: Keras' backend.
    """

    page: str
    packages: tuple[str, ...] = ()
    keep: str = "x"
    backend: str = ""


CONSUMERS = {
    "numpy": Consumer("numpy"),
    "torch": Consumer("torch", ("torch",), "__import__('torch').from_numpy(x)"),
    "jax": Consumer("jax", ("jax",), "__import__('jax').device_put(x)"),
    "keras-jax": Consumer("keras", ("keras", "jax"), "__import__('jax').device_put(x)", "jax"),
    "keras-torch": Consumer("keras", ("keras", "torch"), "__import__('torch').from_numpy(x)", "torch"),
    "grain": Consumer("grain", ("grain",)),
}

CHECK = """
import sys
import numpy as np
import joulecache as jc

kept, expected = [], []
for images, labels in jc.batches("cache/", "train", batch_size=64, epochs=3):
    expected.append((images.tobytes(), labels.tobytes()))
    kept.append([{keep} for x in (images, labels)])
    del images, labels
assert [images.shape[1:] for images, _ in kept] == [(16, 16, 3)] * len(kept)
for (images, labels), (pixels, numbers) in zip(kept, expected, strict=True):
    assert np.asarray(images).tobytes() == pixels
    assert np.array_equal(np.asarray(labels), np.frombuffer(numbers, np.int64))
found = {{"tensorflow", "apache_beam"}} & {{*sys.modules}}
assert not found, found
"""


class CannotInstallError(Exception):
    """A package cannot be installed."""


def loops(page: str) -> str:
    """Return the code blocks of docs/consumers.md for one consumer, as a script."""
    text = (ROOT / "docs" / "consumers.md").read_text("utf-8")
    found = re.findall(rf"<!-- run: {page} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found, page
    return "\n".join(found)


def requirements() -> list[str]:
    """Return the requirements of loading, with joulecache's bounds."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    return [line for line in lines if line.startswith(LOADING)]


def test(name: str, consumer: Consumer, cache_folder: Path) -> None:
    """Run a consumer's loops in an environment of its packages; raise CannotInstallError, or CalledProcessError if a loop fails."""
    with tempfile.TemporaryDirectory(prefix=f"consumer-{name}-") as folder:
        venv = Path(folder, "venv")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        python = venv / "bin" / "python"
        index = CPU_WHEELS if "torch" in consumer.packages else ()
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            *index,
            *requirements(),
            *consumer.packages,
        ]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            raise CannotInstallError(installed.stderr.strip().splitlines()[-1])
        script = Path(folder, "script.py")
        script.write_text(loops(consumer.page) + CHECK.format(keep=consumer.keep))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if consumer.backend:
            environment["KERAS_BACKEND"] = consumer.backend
        subprocess.run([python, script], cwd=cache_folder, env=environment, timeout=LIMIT_S, check=True)


def main(names: Sequence[str]) -> int:
    """Run the named consumers; return the exit code."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="consumers-") as folder:
        jc.precompute("synthetic:500", Path(folder, "cache"), "decode|resize(20) || random_crop(16)|flip_lr")
        for name in names:
            try:
                test(name, CONSUMERS[name], Path(folder))
                results[name] = "passed"
            except CannotInstallError as error:
                results[name] = f"skipped: {error}"
            except subprocess.SubprocessError as error:
                results[name] = f"FAILED: {error}"
            print(f"{name}: {results[name]}", flush=True)
    return int(any(result.startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args().names
    if unknown := {*chosen} - {*CONSUMERS}:
        parser.error(f"names must be of {', '.join(CONSUMERS)}, got {', '.join(sorted(unknown))}")
    sys.exit(main(chosen or [*CONSUMERS]))
