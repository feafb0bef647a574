"""Python ends, with the exit code of the script, while iterators are alive and tf.data reads the next batch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from processes import environment, run_python

LIMIT_S = 30

# While a thread of tf.data is in a function of `__main__`, everything in `__main__` stays alive, so nothing would hang.
_SLOW = """
import dataclasses, threading, time
import cv2
import joulecache as jc
import numpy as np
import tensorflow as tf

_BLACK = np.zeros((1000, 1000), np.uint8)

@dataclasses.dataclass(frozen=True)
class Wait(jc.Op):
    def pixels(self, image, drawn):
        cv2.GaussianBlur(_BLACK, (0, 0), 10)  # aborts the process if the interpreter has ended when it returns
        return image

def _wait(part):
    time.sleep(0.1)
    return part

def get_stuck(part):
    threading.Event().wait()

def slowly(dataset):
    first = lambda *parts: tf.numpy_function(_wait, [parts[0]], parts[0].dtype)
    return dataset.map(first, num_parallel_calls=2).prefetch(4)
"""

_PREAMBLE = """
import json, os, signal, sys, threading, time
import keras, tensorflow as tf
import joulecache as jc
from slow import Wait, get_stuck, slowly

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it

def load(**options):
    return jc.load("cache", "train", 4, ops={"wait": Wait}, **options)

def from_directory():
    return jc.image_dataset_from_directory(PHOTOS, cache_dir="directory", batch_size=4, verbose=False)

def cached():
    return tf.data.Dataset.range(1000).map(lambda n: tf.fill([8, 8], n)).apply(jc.cached("elements")).batch(8)

def model():
    network = keras.Sequential([keras.Input((224, 224, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    network.compile("sgd", "sparse_categorical_crossentropy")
    return network
"""

# The parent imports once and forks for each script, which runs in the namespace of `__main__`, as in a notebook, and then ends as
# Python does: threads, atexit, the interpreter.
_FORK_FOR_EACH = """
[jc.load, jc.cached, jc.image_dataset_from_directory]
codes = {}
for name, script in json.load(sys.stdin).items():
    child = os.fork()
    if not child:
        for number, suffix in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT), number)
        break
    end = time.monotonic() + LIMIT_S
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    codes[name] = os.waitstatus_to_exitcode(ended[1])
else:
    print(json.dumps(codes))
    script = ""
exec(script)
"""

_BUILD = """
jc.precompute(PHOTOS, "cache", jc.parse("decode|resize(224) || wait", {"wait": Wait}), val_fraction=0)
jc.precompute(PHOTOS, "jpeg", "decode|resize(64) || flip_lr", encoding="jpeg", val_fraction=0)
"""

SCRIPTS = {
    "load": (
        "iterators = [iter(load()), load().as_numpy_iterator(), iter(load(epochs=3))]; [next(it) for it in iterators]",
        0,
    ),
    "other loaders": (
        "iterators = [iter(slowly(from_directory())), iter(slowly(cached()))]; [next(it) for it in iterators]",
        0,
    ),
    "derived": (
        """
dataset = load()
shuffled = dataset.unbatch().shuffle(4).batch(2).repeat()
iterators = [iter(tf.data.Dataset.zip(shuffled, dataset).prefetch(100)), iter(dataset.repeat().ignore_errors().prefetch(100))]
[next(it) for it in iterators]
""",
        0,
    ),
    "captured by a tf.function, and on two devices": (
        """
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
it = iter(load())
@tf.function
def step():
    return tf.reduce_sum(next(it)[1])
step()
distributed = iter(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).experimental_distribute_dataset(load()))
next(distributed)
""",
        0,
    ),
    "fit": (
        """
network, dataset = model(), load(epochs=9)
network.fit(dataset, steps_per_epoch=2, validation_data=load().repeat(), validation_steps=1, verbose=0)
""",
        0,
    ),
    "a function that never returns": (
        """
it = iter(load().map(lambda images, _: tf.numpy_function(get_stuck, [images], images.dtype), num_parallel_calls=2))
time.sleep(1)
""",
        0,
    ),
    "an exception": ("it = iter(slowly(load())); next(it); raise ValueError('a mistake')", 1),
    "an exit code": ("it = iter(slowly(load())); next(it); sys.exit(3)", 3),
    "Ctrl-C": (
        """
class Press(keras.callbacks.Callback):
    def on_train_batch_end(self, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)
model().fit(load(epochs=9), steps_per_epoch=50, verbose=0, callbacks=[Press()])
""",
        -signal.SIGINT,
    ),
    "a daemon thread": (
        """
read = threading.Event()
def use():
    for batch in load().repeat():
        read.set()
threading.Thread(target=use, daemon=True).start()
read.wait()
""",
        0,
    ),
    "a thread that goes on": (
        """
def use():
    global it
    it = iter(jc.load("jpeg", "train", 4, epochs=50))
    threading.main_thread().join()
    for _ in range(100):
        next(it)
    print("went on")
threading.Thread(target=use).start()
""",
        0,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exit")
    (folder / "slow.py").write_text(_SLOW)
    return folder


@pytest.fixture(scope="module")
def run_scripts(folder: Path, photo_folder: Path) -> Callable[[Mapping[str, str]], dict[str, int]]:
    """Run scripts, each in a process that is killed after `LIMIT_S`; return their exit codes."""
    preamble = f"PHOTOS, LIMIT_S = {str(photo_folder)!r}, {LIMIT_S}{_PREAMBLE}"

    def run(scripts: Mapping[str, str]) -> dict[str, int]:
        ended = run_python(preamble + _FORK_FOR_EACH, cwd=folder, stdin=json.dumps(scripts), strict=False, limit_s=500)
        assert ended.returncode == 0, ended.stderr
        codes: dict[str, int] = json.loads(ended.stdout)
        return codes

    return run


@pytest.fixture(scope="module")
def codes(run_scripts: Callable[[Mapping[str, str]], dict[str, int]]) -> dict[str, int]:
    return run_scripts({"build": _BUILD} | {name: script for name, (script, _) in SCRIPTS.items()})


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends_with_its_exit_code(name: str, codes: dict[str, int], folder: Path) -> None:
    _, code = SCRIPTS[name]
    err = (folder / f"{name}.err").read_text()
    assert codes[name] == code, err
    assert err.count("Traceback") == (code not in (0, 3)), err
    assert "Exception ignored" not in err


def test_threads_read_on_after_the_main_thread(codes: dict[str, int], folder: Path) -> None:
    """Decoding, in a pool of threads that is shut down then, included."""
    assert (folder / "a thread that goes on.out").read_text() == "went on\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_always_end(
    name: str, codes: dict[str, int], run_scripts: Callable[[Mapping[str, str]], dict[str, int]]
) -> None:
    script, code = SCRIPTS[name]
    assert run_scripts({f"{name} {time}": script for time in range(20)}) == {
        f"{name} {time}": code for time in range(20)
    }


_TESTS = """
import joulecache as jc
import pytest
from slow import Wait

dataset = jc.load("cache", "train", 4, epochs=3, ops={"wait": Wait})
iterator = iter(dataset)

@pytest.fixture(scope="session")
def batches():
    kept = dataset.as_numpy_iterator()
    next(kept)
    return kept

def test_one(batches):
    next(batches), next(iterator)

def test_that_fails(batches):
    for batch in dataset:
        raise ValueError("a mistake")
"""


def test_pytest_ends(codes: dict[str, int], folder: Path) -> None:
    (folder / "test_users.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_users.py"]
    ended = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert "1 failed, 1 passed" in ended.stdout
    assert ended.returncode == 1
