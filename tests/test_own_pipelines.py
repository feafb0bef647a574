"""Audits of people's own pipelines: what they measure, what they refuse in one line, and that they go on where they were stopped."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import pytest
import tensorflow as tf
from audits import OWN
from small_audits import audit, energy, logged

from joulecache.pipelines.auditing.changes import compare_audits
from joulecache.pipelines.auditing.config import Budget, PipelinesConfig
from joulecache.pipelines.auditing.custom_pipelines import make_training
from joulecache.pipelines.auditing.inspection import InspectedPipeline, inspect_pipeline, one_epoch
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core.codec import dumps
from joulecache.pipelines.core.user_code import Origin
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.energy.replay import ReplayMeter
from joulecache.pipelines.experiment.failures import ArmError

pytestmark = pytest.mark.usefixtures("short_runs")  # of the command

GOOD = """
import numpy as np
import tensorflow as tf

calls = []


def pictures(count=20, size=20, dtype=tf.uint8):
    images = tf.cast(np.arange(count * size * size * 3).reshape(count, size, size, 3) % 256, dtype)
    return tf.data.Dataset.from_tensor_slices((images, tf.range(count) % 3))


def mine():
    calls.append("mine")
    return pictures().batch(8)


def theirs():
    calls.append("theirs")
    return pictures().batch(8, drop_remainder=True).prefetch(1)


def floats():
    return pictures(dtype=tf.float32).map(lambda image, label: (image / 255, label)).batch(10)


def endless():
    return pictures().repeat().batch(8)
"""

BAD = """
import sys

import tensorflow as tf

from good import pictures


def raises():
    raise KeyError("no such column")


def leaves():
    sys.exit("goodbye")


def not_a_dataset():
    return [1, 2, 3]


def fails():
    def rows():
        yield [1.0, 2.0]
        raise ValueError("row 2 is broken")
    return tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec([2], tf.float32))


def misses_a_file():
    return tf.data.Dataset.from_tensor_slices(["/no/such.jpg"]).map(tf.io.read_file).batch(1)


def nothing():
    return pictures().take(0).batch(8)


def filtered_away():
    return pictures().filter(lambda image, label: label > 5).batch(8)


def endless():
    return pictures().repeat().batch(8)


def shrinks():
    return pictures(8, 20).batch(8).concatenate(pictures(8, 24).batch(8))


def unequal():
    return pictures(4).batch(4).concatenate(pictures(8).batch(8))


def unbatched():
    return pictures()


def scalars():
    return tf.data.Dataset.range(5)


def without_labels():
    return pictures().map(lambda image, label: image).batch(8)


def one_hot():
    return pictures().map(lambda image, label: (image, tf.one_hot(label, 3))).batch(8)


def below_zero():
    return pictures().map(lambda image, label: (image, label - 1)).batch(8)


def flat():
    return pictures().map(lambda image, label: (tf.reshape(image, [-1]), label)).batch(8)


def words():
    return pictures().map(lambda image, label: (tf.fill([2, 2, 1], "word"), label)).batch(8)


def unknown_rank():
    return tf.data.Dataset.from_generator(pictures().batch(8).as_numpy_iterator, output_types=(tf.uint8, tf.int32))


def misnamed():
    dataset = pictures().batch(8)
    dataset.class_names = ["cat", "dog"]
    return dataset
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with people's modules, on Python's path."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("good", "bad"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def good(folder: Path) -> ModuleType:
    return importlib.import_module("good")


@pytest.fixture(scope="module")
def bad(good: ModuleType) -> ModuleType:
    return importlib.import_module("bad")


@pytest.fixture(scope="module")
def finished(good: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    out = tmp_path_factory.mktemp("audit")
    good.calls.clear()
    both = {"mine": good.mine, "theirs": good.theirs}
    return audit(datasets=both, out=out, pairs=2, train_epochs=2, model="mlp"), out


def inspected(function: Callable[[], Any], name: str = "mine") -> InspectedPipeline:
    return inspect_pipeline(name, function(), Origin("good:mine"), trains=True)


MLP = PipelinesConfig(model="mlp", train_epochs=1)


# What is measured -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_pipeline_is_the_reference_of_the_others(finished: tuple[Audit, Path]) -> None:
    result, _ = finished
    assert (result.reference, result.cached, result.source, result.chain, result.build) == ("mine", *[None] * 4)
    assert [each.workload for each in result.workloads] == ["input", "train"]
    for workload in result.workloads:
        mine, theirs = workload.arms
        assert (mine.name, mine.runs, mine.ratio.value) == ("mine", 4, 1.0)
        assert (theirs.name, theirs.runs, theirs.finding) == ("theirs", 2, "inconclusive")
        assert workload.control.blocks == 2
        assert workload.comparisons == ()
        assert {mine.score, theirs.score} == {None}


@pytest.mark.slow
def test_a_function_is_called_once_and_its_epochs_are_whole(finished: tuple[Audit, Path], good: ModuleType) -> None:
    result, out = finished
    assert good.calls == ["mine", "theirs"]
    assert [(each.name, each.images, each.batches) for each in result.pipelines] == [("mine", 20, 3), ("theirs", 16, 2)]
    assert {(run["workload"], run["arm"], run["images"]) for run in logged(out)} == {
        ("input", "mine", 20),
        ("input", "theirs", 16),
        ("train", "mine", 40),
        ("train", "theirs", 32),
    }


@pytest.mark.slow
def test_the_input_and_the_training_are_measured_alone_in_the_same_blocks(finished: tuple[Audit, Path]) -> None:
    result, out = finished
    train = result.workloads[1]
    for arm in train.arms:
        assert [part.name for part in arm.parts] == ["input", "training"]
        for part in arm.parts:
            assert part.ratio.blocks == 2
            assert part.active_j_per_1000.low < part.active_j_per_1000.value < part.active_j_per_1000.high
        of_input, of_training = arm.parts
        assert of_input.active_j_per_1000.value < of_training.active_j_per_1000.value
        assert 0 < of_input.wall_us_per_image < arm.wall_us_per_image
    blocks = [
        [
            (run["arm"], run["role"], run["part"])
            for run in logged(out)
            if (run["workload"], run["block"]) == ("train", block)
        ]
        for block in (0, 1)
    ]
    each: list[tuple[str, str, str | None]] = [
        ("mine", "arm", None),
        ("theirs", "arm", None),
        ("mine", "control", None),
    ]
    each += [(name, "part", part) for name in ("mine", "theirs") for part in ("input", "training")]
    assert all(sorted(block, key=str) == sorted(each, key=str) for block in blocks)
    assert all(arm.parts == () for arm in result.workloads[0].arms)


def test_the_training_alone_takes_as_many_steps_on_batches_of_the_same_shapes(good: ModuleType) -> None:
    for function, shapes in ((good.mine, [8, 8, 4]), (good.theirs, [8, 8]), (good.floats, [10, 10])):
        pipeline, made = inspected(function), function()
        kept = pipeline.kept_in_memory().dataset
        assert [images.shape[0] for images, _ in kept] == shapes
        assert kept.element_spec == made.element_spec  # else Keras would trace, and run, another graph
        assert int(kept.cardinality()) == pipeline.facts.batches


@pytest.mark.slow
def test_facts_say_where_a_pipeline_comes_from(finished: tuple[Audit, Path], folder: Path) -> None:
    result, _ = finished
    mine, theirs = result.pipelines
    assert (mine.function, mine.file) == ("good:mine", str(folder / "good.py"))
    assert mine.elements == "uint8 [8, 20, 20, 3], int32 [8]"
    assert mine.sha256 == theirs.sha256
    assert mine.sha256 is not None
    assert len(mine.sha256) == 64


def test_an_epoch_is_as_many_batches_as_steps(good: ModuleType, tmp_path: Path) -> None:
    result = audit(
        datasets={"endless": good.endless}, out=tmp_path, steps=4, workloads=("input",), pairs=1, model="no such model"
    )
    assert {run["images"] for run in logged(tmp_path)} == {32}
    assert (result.pipelines[0].batches, result.provenance.steps) == (4, 4)
    assert (result.provenance.model, result.provenance.train_epochs) == (None, None)


def test_any_elements_can_be_fed(tmp_path: Path, good: ModuleType) -> None:
    def texts() -> Any:
        return good.pictures().map(lambda image, label: {"length": label, "text": "a"}).batch(6)

    audit(datasets={"texts": texts}, out=tmp_path, workloads=("input",), pairs=1)
    assert {run["images"] for run in logged(tmp_path)} == {20}


def test_floats_are_trained_on_as_they_are(good: ModuleType) -> None:
    def scalings(function: Callable[[], Any]) -> list[Any]:
        network = make_training([inspected(function)], MLP).network
        return [layer for layer in network.layers if isinstance(layer, keras.layers.Rescaling)]

    assert len(scalings(good.mine)) == 1
    assert scalings(good.floats) == []


def test_classes_are_counted_by_labels_or_named_by_the_dataset(good: ModuleType) -> None:
    def named() -> Any:
        dataset = good.pictures().map(lambda image, label: (image, tf.cast(label, tf.uint8))).batch(8)
        dataset.class_names = ["a", "b", "c", "d"]
        return dataset

    first, second = inspected(good.mine), inspected(named, "named")
    assert (first.classes, second.classes) == (3, 4)
    assert second.facts.class_names == ("a", "b", "c", "d")
    assert make_training([first, second], MLP).network.output_shape == (None, 4)


def test_what_is_cut_reads_ahead_as_it_did(good: ModuleType) -> None:
    plain = good.mine()
    assert one_epoch(plain, None, 3) is plain
    for made in (good.theirs(), plain):  # one that reads ahead, and one in which TensorFlow would do so
        cut = one_epoch(made, 2, 2)
        assert cut.options().experimental_optimization.inject_prefetch is False
        names = [type(step).__name__ for step in _steps(cut)]
        assert names[:3] == ["_OptionsDataset", "_TakeDataset", "_PrefetchDataset"]
        assert names.count("_PrefetchDataset") == 1


def _steps(dataset: Any) -> Iterator[Any]:
    while True:
        yield dataset
        inputs = dataset._inputs()
        if len(inputs) != 1:
            return
        (dataset,) = inputs


# What is found, on joules that are known ------------------------------------------------------------------------------


def replayed(folder: Path, runs: list[dict[str, Any]], joules: Callable[[str, str | None], float]) -> ReplayMeter:
    """A meter that gives each run the joules of its arm and part, a little more and less in turns."""
    made = [dumps({"recording": 1, "passport": Meter().provenance()})]
    for run in runs:
        first = (run["arm"], run["role"]) == ("mine", "arm")
        noise = 1.0 if first else 1.02 if run["block"] % 2 else 1 / 1.02
        window_j = joules(run["arm"], run["part"]) * noise * run["images"]
        spent = energy(window_j, duration_s=2 * window_j)
        made.append(json.dumps({"window": run["workload"], "energy": spent.to_json()}))
    file = folder / "made.jsonl"
    file.write_text("\n".join(made) + "\n")
    return ReplayMeter(file)


@pytest.fixture(scope="module")
def order(good: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The arguments of an audit, and the order in which it runs."""
    out = tmp_path_factory.mktemp("order")
    arguments: dict[str, Any] = {
        "datasets": {"mine": good.mine, "theirs": good.theirs},
        "workloads": ("input",),
        "pairs": 6,
    }
    audit(out=out, **arguments)
    return arguments, logged(out)


@pytest.mark.parametrize(("of_mine", "finding"), [(0.5, "saves"), (1.5, "costs"), (1.0, "no difference shown")])
def test_the_verdict_on_recorded_joules(
    order: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path, of_mine: float, finding: str
) -> None:
    arguments, runs = order
    meter = replayed(tmp_path, runs, lambda arm, part: of_mine if arm == "theirs" else 1.0)
    result = audit(out=tmp_path / "out", meter=meter, **arguments)
    _, theirs = result.workloads[0].arms
    assert theirs.finding == finding
    assert theirs.ratio.value == pytest.approx(of_mine, rel=0.03)
    assert result.method == "measured:rapl"


@pytest.mark.slow
def test_the_parts_of_a_training_on_recorded_joules(good: ModuleType, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"datasets": {"mine": good.mine}, "workloads": ("train",), "pairs": 2}
    arguments |= {"train_epochs": 1, "model": "mlp"}
    audit(out=tmp_path / "first", **arguments)
    shares = {None: 1.0, "input": 0.25, "training": 0.8}
    meter = replayed(tmp_path, logged(tmp_path / "first"), lambda arm, part: shares[part])
    (mine,) = audit(out=tmp_path / "out", meter=meter, **arguments).workloads[0].arms
    assert mine.active_j_per_1000.value == pytest.approx(1000, rel=0.01)
    for part in mine.parts:
        assert part.active_j_per_1000.value == pytest.approx(1000 * shares[part.name], rel=0.01)
        assert part.ratio.value == pytest.approx(shares[part.name], rel=0.01)
        assert part.wall_us_per_image == pytest.approx(2e6 * shares[part.name], rel=0.01)


def test_audits_of_pipelines_are_compared_pipeline_by_pipeline() -> None:
    first, second, *others = OWN.pipelines
    changed = replace(second, sha256="f" * 64, batches=9)
    found = compare_audits(OWN, replace(OWN, pipelines=(first, changed, *others)))
    assert {arm.ratio.value for arm in found.arms} == {1.0}
    assert found.settings == {
        f"{second.name}: sha256": (second.sha256, "f" * 64),
        f"{second.name}: batches": (second.batches, 9),
    }


# What is refused ------------------------------------------------------------------------------------------------------

BOTH = ("input", "train")
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "raises": ("raises", {}, r"bad failed: KeyError: 'no such column' \(\S+bad\.py:10\)$"),
    "leaves": ("leaves", {}, r"bad failed: SystemExit: goodbye \(\S+bad\.py:14\)$"),
    "returns a list": ("not_a_dataset", {}, "bad returned a list: return a tf.data.Dataset"),
    "fails": ("fails", {"workloads": ("input",)}, r"bad failed: ValueError: row 2 is broken \(\S+bad\.py:24\)$"),
    "misses a file": ("misses_a_file", {}, r"bad failed: NotFoundError: .*/no/such\.jpg; No such file or directory$"),
    "is empty": ("nothing", {}, "bad yields nothing"),
    "is filtered away": ("filtered_away", {}, "bad yields nothing"),
    "never ends": ("endless", {}, "bad never ends: set the number of batches in an epoch with steps"),
    "ends early": ("one_hot", {"steps": 9, "workloads": ("input",)}, "bad ends after 3 batches, but steps is 9"),
    "changes shape": (
        "shrinks",
        {"workloads": ("input",)},
        r"bad changes the shape of its images: batch 1 is \[8, 20, 20, 3\], batch 2 \[8, 24, 24, 3\]",
    ),
    "grows": ("unequal", {}, r"bad changes the shape .* only the last batch smaller"),
    "is unbatched": ("unbatched", {"workloads": ("input",)}, r"bad yields uint8 \[20, 20, 3\], int32 \[\]: batch it"),
    "yields scalars": ("scalars", {"workloads": ("input",)}, r"bad yields int64 \[\]: batch it"),
    "has no labels": ("without_labels", {}, r"training needs pairs of .* or measure it with the workload input alone"),
    "has one-hot labels": ("one_hot", {}, r"bad yields .* float32 \[8, 3\]: training needs the class number of each image"),
    "has negative labels": ("below_zero", {}, "bad yields the label -1: number the classes from 0"),
    "has flat images": ("flat", {}, r"bad yields uint8 \[8, 1200\], .*: training needs images \[B, H, W, C\]"),
    "has words": ("words", {}, r"training needs images \[B, H, W, C\], uint8 or floats"),
    "has no rank": ("unknown_rank", {}, "bad does not declare how many dimensions its batches have"),
    "has too few names": ("misnamed", {}, "bad yields the label 2, but has 2 class_names"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_pipeline_that_cannot_be_audited_is_one_line_before_anything_is_written(
    bad: ModuleType, tmp_path: Path, function: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArmError, match=message) as caught:
        audit(datasets={"bad": getattr(bad, function)}, out=tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_epoch_of_unknown_length_may_not_go_on_for_ever(good: ModuleType, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"workloads": ("input",), "budget": Budget(shortest_run_s=0.0, longest_epoch_s=0.0)}

    def unknown() -> Any:
        return good.endless().filter(lambda images, labels: True)

    with pytest.raises(ArmError, match=r"unknown did not end within 0 s, in \d+ batches: set the number"):
        audit(datasets={"unknown": unknown}, out=tmp_path / "out", **arguments)
    audit(datasets={"mine": good.mine}, out=tmp_path / "out", pairs=1, **arguments)  # its length is known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datasets": {}}, "there is no pipeline to audit"),
        ({"datasets": {"": len}}, "a pipeline has an empty name"),
        ({"datasets": {"a": "good:mine"}}, "a is a str: pass a function"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        (
            {"workloads": ("input", "infer")},
            "workloads must be some of input, train, accelerator, each once, got input, infer",
        ),
        ({"source": "photos", "limit": 3}, "source, limit: only for the audit of a chain"),
        ({"arms": ("naive", "optimized")}, "arms: only for the audit of a chain"),
        ({"datasets": None}, "nothing to audit: set a source and a chain, or datasets"),
        ({"datasets": None, "source": "a", "chain": "decode", "steps": 3}, "steps requires datasets"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audit(**{"datasets": {"a": len}, "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_images_of_two_shapes_cannot_feed_one_model(good: ModuleType, tmp_path: Path) -> None:
    both = {"mine": good.mine, "floats": good.floats}
    with pytest.raises(ArmError, match="mine yields uint8 20x20x3, floats yields float 20x20x3; audit them with"):
        audit(datasets=both, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_refused_before_a_function_is_called(good: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    good.calls.clear()
    with pytest.raises(ValueError, match="not empty and not an audit"):
        audit(datasets={"mine": good.mine}, out=tmp_path)
    assert good.calls == []


# Going on -------------------------------------------------------------------------------------------------------------


def stopping_at(block: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith(f"input: block {block} "):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("changed", [{"steps": 2}, {"name": "ours"}, {"seed": 1}, {"edited": True}], ids=str)
def test_an_audit_of_something_else_begins_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    file = tmp_path / "changing.py"
    file.write_text(GOOD)

    def once(progress: Any = None, name: str = "mine", **options: Any) -> None:
        code = compile(file.read_text(), str(file), "exec")
        names: dict[str, Any] = {"__name__": "changing"}
        exec(code, names)
        audit(
            datasets={name: names["mine"]},
            out=tmp_path / "out",
            workloads=("input",),
            pairs=2,
            progress=progress,
            **options,
        )

    with pytest.raises(KeyboardInterrupt):
        once(stopping_at(2))
    if changed.pop("edited", False):
        file.write_text(GOOD + "\n# another one\n")
    once(**changed)
    assert {run["attempt"] for run in logged(tmp_path / "out")} == {1}


def test_what_fails_between_the_runs_keeps_them(good: ModuleType, tmp_path: Path) -> None:
    epochs: list[int] = []
    broken = True

    def rows() -> Iterator[Any]:
        epochs.append(0)
        if broken and len(epochs) == 7:  # 2 before the blocks, 2 in each
            raise OSError("the disk is gone")
        yield [1.0, 2.0]

    def flaky() -> Any:
        return tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec([2], tf.float32))

    arguments: dict[str, Any] = {"datasets": {"flaky": flaky}, "out": tmp_path, "workloads": ("input",), "pairs": 4}
    with pytest.raises(ArmError, match=r"flaky failed: OSError: the disk is gone \(\S+test_own_pipelines\.py:\d+\)$"):
        audit(**arguments)
    assert [run["block"] for run in logged(tmp_path)] == [0, 0, 1, 1]
    broken = False
    audit(**arguments)
    assert [(run["block"], run["attempt"]) for run in logged(tmp_path)] == [
        (block, 1 + block // 2) for block in (0, 0, 1, 1, 2, 2, 3, 3)
    ]


# The command ----------------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]

NOISY = (
    GOOD
    + """

import os

print("hello from the module")


def noisy():
    print("hello from the function")
    os.write(1, b"hello from number 1\\n")

    def tell(number):
        print("hello from the map")
        return number

    return tf.data.Dataset.range(6).map(lambda number: tf.py_function(tell, [number], tf.int64)).batch(2)
"""
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_noisy", None)


def test_noise_of_a_pipeline_does_not_spoil_the_json(run: Run, here: Path) -> None:
    code, out, err = run(
        *("audit", "--pipeline", "my_noisy:noisy", "--workload", "input", "--pairs", 1, "--out", "out", "--json")
    )
    assert code == 0
    body = json.loads(out)
    assert body["reference"] == "my_noisy:noisy"
    assert [path.name for path in sorted((here / "out").iterdir())] == [
        "report.html",
        "report.json",
        "report.md",
        "runs.jsonl",
    ]
    for noise in ("the module", "the function", "number 1", "the map"):
        assert f"hello from {noise}" in err


def test_the_command_compares_two_pipelines(run: Run, here: Path) -> None:
    pipelines = ("--pipeline", "my_noisy:mine", "--pipeline", "my_noisy:theirs")
    code, out, _ = run("audit", *pipelines, "--workload", "input", "--pairs", 1, "--steps", 2, "--out", "out")
    assert code == 0
    assert "Loading images from my_noisy:theirs: inconclusive against my_noisy:mine." in out
    code, out, _ = run("audit", "--compare", "out/report.json", "out/report.json")
    assert code == 0
    assert "my_noisy:theirs" in out


WRONG: dict[str, tuple[list[str], str]] = {
    "a source": (["photos", "--pipeline", "my_noisy:mine"], "--pipeline is audited without a chain"),
    "a chain": (["--chain", "decode", "--pipeline", "my_noisy:mine"], "--pipeline is audited without a chain"),
    "steps alone": (["photos", "--chain", "decode", "--steps", "3"], "--steps needs --pipeline"),
    "a comparison": (["--pipeline", "a:b", "--compare", ".", "."], "--compare reads two reports"),
    "no module": (["--pipeline", "no_such:mine"], "cannot import --pipeline 'no_such': ModuleNotFoundError"),
    "no function": (["--pipeline", "my_noisy:nine"], "my_noisy has no function nine: did you mean mine?"),
    "no colon": (["--pipeline", "my_noisy"], "like my_module:make_dataset"),
    "the same": (
        ["--pipeline", "my_noisy:mine", "--pipeline", "my_noisy:mine"],
        "--pipeline must name each function once",
    ),
    "a module that fails": (["--pipeline", "my_broken:mine"], "my_broken': ZeroDivisionError: division by zero (/"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_bad_options_are_one_line(run: Run, here: Path, options: list[str], message: str) -> None:
    (here / "my_broken.py").write_text("def ratio():\n    return 1 / 0\n\nratio()\n")
    code, out, err = run("audit", *options, "--out", "out")
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("hello")]
    assert message in line
    assert line.startswith("joulecache: ")
    assert not (here / "out").exists()
