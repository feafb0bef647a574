"""The energy of every epoch in Keras' logs, and the wait for input next to it."""

from __future__ import annotations

import copy
import csv
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from colours import batches, colours, compiled_model, linear_model
from meters import Diary
from numpy.typing import NDArray

from joulecache.pipelines.energy import Meter
from joulecache.pipelines.training.callback import EnergyCallback, EpochLines
from joulecache.pipelines.training.trainer import fit

CARBON_KEYS = {"co2eq_g", "val_co2eq_g"}
ENERGY_KEYS = {"energy_j", "energy_low_j", "energy_high_j", "energy_j_per_1000_images", "cpu_s"}
TIME_KEYS = {"input_wait_s", "compute_s"}


def by_epoch(history: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=True)]


def written_scalars(folder: Path) -> dict[str, list[float]]:
    """Return what TensorBoard reads from a folder, by name."""
    found: dict[str, list[float]] = {}
    for event in (event for file in folder.glob("*") for event in tf.compat.v1.train.summary_iterator(str(file))):
        for value in event.summary.value:
            if value.tag.startswith("epoch_"):
                found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return found


# ------------------------------------------------------------------------------------------- the callback


def test_joules_stand_beside_loss_and_accuracy(tmp_path: Path) -> None:
    model, meter = compiled_model(), Diary(country="FRA")
    callback = EnergyCallback(meter)
    board = keras.callbacks.TensorBoard(tmp_path / "board", write_graph=False)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    fitted = model.fit(
        batches(80),
        validation_data=batches(40, 1),
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[callback, log, board],
    )
    history = fitted.history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "val_energy_j"} | ENERGY_KEYS | CARBON_KEYS
    names = [window.name for window in meter.closed]
    assert names == ["training", "validation"] * 2
    training, validation = meter.closed[::2], meter.closed[1::2]
    assert history["energy_j"] == [window.energy.total_j for window in training]
    assert history["energy_low_j"] == [window.energy.low_j for window in training]
    assert history["energy_high_j"] == [window.energy.high_j for window in training]
    assert history["cpu_s"] == [window.energy.cpu_s for window in training]
    assert history["val_energy_j"] == [window.energy.total_j for window in validation]
    assert history["co2eq_g"] == [window.energy.carbon_g for window in training]
    assert history["val_co2eq_g"] == [window.energy.carbon_g for window in validation]
    assert 0 < history["co2eq_g"][0] < history["energy_j"][0] / 3.6e6 * 100  # France emits less than 100 g per kWh
    assert callback.energies == [window.energy for window in training]
    assert callback.val_energies == [window.energy for window in validation]
    assert callback.images == [80, 80]  # the last batch was of 16
    assert history["energy_j_per_1000_images"] == pytest.approx([joules / 0.080 for joules in history["energy_j"]])
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(row[name]) for name in history} for row in rows] == by_epoch(history)
    assert written_scalars(tmp_path / "board" / "train")["epoch_co2eq_g"] == pytest.approx(history["co2eq_g"])
    assert written_scalars(tmp_path / "board" / "validation")["epoch_co2eq_g"] == pytest.approx(history["val_co2eq_g"])


def test_each_epoch_is_a_line_with_its_scores() -> None:
    lines: list[str] = []
    model, callbacks = compiled_model(), [EnergyCallback(Meter()), EpochLines(lines.append)]
    data = batches(20, 1)
    history = model.fit(
        batches(40), validation_data=data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
    ).history
    assert len(lines) == 2
    scores = (
        f"loss {history[f'{prefix}loss'][1]:#.4g}, accuracy {history[f'{prefix}accuracy'][1]:.1%}"
        for prefix in ("", "val_")
    )
    assert lines[1].startswith(f"epoch 2 of 2: {'; held out: '.join(scores)}; ")
    assert lines[1].endswith("J")
    compiled_model().fit(batches(20), shuffle=False, verbose=0, callbacks=[EpochLines(lines.append)])
    assert lines[2].startswith("epoch 1 of 1: loss ")
    assert ";" not in lines[2]


def test_given_numbers_of_images_are_believed() -> None:
    model = compiled_model()
    callback = EnergyCallback(Meter(), images_per_epoch=500)
    history = model.fit(batches(40), shuffle=False, verbose=0, callbacks=[callback]).history
    assert history["energy_j_per_1000_images"] == pytest.approx([history["energy_j"][0] * 2])
    with pytest.raises(ValueError, match=r"images_per_epoch must be .* at least 1, got 0"):
        EnergyCallback(Meter(), images_per_epoch=0)


class OwnStep(keras.Model):  # type: ignore[misc]
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def test_images_are_not_guessed_where_the_train_step_is_not_keras_own() -> None:
    inner = linear_model()
    model = OwnStep(inner.inputs, inner.outputs)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    callback = EnergyCallback(Meter())
    history = model.fit(batches(40), shuffle=False, verbose=0, callbacks=[callback]).history
    assert callback.images == [None]
    assert "energy_j_per_1000_images" not in history
    assert history["energy_j"][0] > 0


def test_evaluating_alone_is_not_an_epoch() -> None:
    model, meter = compiled_model(), Diary()
    callback = EnergyCallback(meter)
    model.evaluate(batches(40), verbose=0, callbacks=[callback])
    assert meter.opened == []
    assert callback.energies == []


def test_tuners_may_copy_the_callback_for_every_trial() -> None:
    """As Keras Tuner does, which refuses callbacks that it cannot copy (keras-team/keras-tuner#392)."""
    callback = EnergyCallback(Meter())
    train = batches(40).apply(callback.timed)
    for _ in range(2):
        copied = copy.deepcopy(callback)
        history = compiled_model().fit(train, shuffle=False, verbose=0, callbacks=[copied]).history
        assert len(copied.energies) == 1
        assert history["input_wait_s"][0] > 0
    assert callback.energies == []


class Stop(keras.callbacks.Callback):  # type: ignore[misc]
    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_training_leaves_no_window_open() -> None:
    meter = Diary()
    with pytest.raises(KeyboardInterrupt):
        fit(linear_model(), batches(40), batches(40, 1), epochs=2, meter=meter, callbacks=[Stop()])
    assert meter.opened == ["training", "validation"]
    assert meter.left_open() == set()


def test_an_interrupted_callback_begins_afresh() -> None:
    model, meter = compiled_model(), Diary()
    callback = EnergyCallback(meter)

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            model.fit(batches(40), validation_data=batches(40), shuffle=False, verbose=0, callbacks=[callback, Stop()])

    interrupted()
    history = model.fit(batches(40), shuffle=False, verbose=0, callbacks=[callback]).history
    assert "val_energy_j" not in history  # that of the interrupted one
    assert meter.left_open() == set()
    interrupted()
    assert len(meter.left_open()) == 1
    callback.close()
    assert meter.left_open() == set()


def test_windows_take_the_next_name_where_theirs_is_open() -> None:
    model, meter = compiled_model(), Diary()

    def begin() -> EnergyCallback:
        callback = EnergyCallback(meter)
        callback.set_model(model)
        callback.on_epoch_begin(0)
        return callback

    with meter.window("training"):
        left_open, nested = begin(), begin()
        assert meter.opened == ["training", "training 2", "training 3"]
        nested.on_test_begin()
        nested.on_epoch_begin(1)  # an interruption left the validation open, the next epoch closes it
        left_open.on_epoch_begin(1)
        assert meter.opened[3:] == ["validation", "training 3", "training 2"]
        left_open.close()
        nested.close()
    assert meter.left_open() == set()
    begin().close()
    assert meter.opened[-1] == "training"


def test_a_meter_that_refuses_every_name_is_not_asked_for_ever() -> None:
    class Closed(Meter):
        def window(self, name: str) -> Any:
            raise ValueError("closed")

    with pytest.raises(ValueError, match="closed"):
        EnergyCallback(Closed()).on_epoch_begin(0)


# --------------------------------------------------------------------------------------- the wait for input

# time.sleep keeps to the monotonic clock, waits are counted by the wall clock: this is how much it may be slowed down
SLEPT = 0.98


def slow(data: Any, seconds: float, called: Callable[[], object] = lambda: None) -> Any:
    """Make every batch come late; with nothing behind it that reads ahead."""

    def sleep(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        called()
        time.sleep(seconds)
        return images

    def late(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.ensure_shape(tf.numpy_function(sleep, [images], tf.uint8), images.shape), labels

    return data.map(tf.autograph.experimental.do_not_convert(late)).prefetch(0)


class SlowSteps(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(self.seconds)


def fitted(data: Any, callback: EnergyCallback, *more: Any, steps_per_execution: int = 1, **arguments: Any) -> Any:
    model = compiled_model(eager=steps_per_execution == 1)
    model.steps_per_execution = steps_per_execution
    return model.fit(data, shuffle=False, verbose=0, callbacks=[callback, *more], **arguments).history


def test_the_wait_for_input_stands_apart_from_computing() -> None:
    callback = EnergyCallback(meter := Diary())
    history = fitted(callback.timed(slow(batches(160), 0.02)), callback, SlowSteps(0.03), epochs=2)
    assert set(history) == {"loss", "accuracy"} | ENERGY_KEYS | TIME_KEYS
    assert all(wait >= 5 * 0.02 * SLEPT for wait in history["input_wait_s"])
    # nor are the steps waited for: nothing reads ahead behind the clocks, and every epoch begins at 0
    assert all(rest >= 5 * 0.03 * SLEPT for rest in history["compute_s"])
    durations = [window.energy.duration_s for window in meter.closed]
    assert np.add(history["input_wait_s"], history["compute_s"]) == pytest.approx(durations)
    assert callback.input_waits_s == history["input_wait_s"]


def test_the_wait_of_validation_is_not_that_of_training() -> None:
    callback = EnergyCallback(Meter())
    late = callback.timed(slow(batches(64), 0.2))
    history = fitted(callback.timed(batches(64)), callback, SlowSteps(0.02), epochs=2, validation_data=late)
    # 0.4 s of it would leave nothing of two steps
    assert all(rest >= 2 * 0.02 * SLEPT for rest in history["compute_s"])


def test_input_that_is_not_timed_has_no_wait() -> None:
    callback = EnergyCallback(Meter())
    callback.timed(batches(40))
    assert set(fitted(batches(40), callback)) == {"loss", "accuracy"} | ENERGY_KEYS
    other = EnergyCallback(Meter())
    assert set(fitted(callback.timed(batches(40)), other)) == {"loss", "accuracy"} | ENERGY_KEYS
    assert (callback.input_waits_s, other.input_waits_s) == ([None], [None])
    with pytest.raises(TypeError, match=r"only a tf\.data\.Dataset can be timed, got a tuple"):
        callback.timed(colours(8))


@pytest.mark.parametrize(
    ("data", "steps_per_epoch", "steps_per_execution", "images"),
    [(batches(90), None, 4, 90), (batches(90).repeat(), 4, 1, 122)],
)
def test_every_way_of_iterating_can_be_timed(
    data: Any, steps_per_epoch: int | None, steps_per_execution: int, images: int
) -> None:
    callback = EnergyCallback(Meter())
    history = fitted(
        callback.timed(data),
        callback,
        epochs=2,
        steps_per_epoch=steps_per_epoch,
        steps_per_execution=steps_per_execution,
    )
    assert len(history["input_wait_s"]) == 2
    assert all(wait > 0 for wait in history["input_wait_s"])
    assert callback.images[0] == images


def by_hand(element: Any) -> Any:
    return tf.nest.map_structure(
        lambda part: part.to_list() if hasattr(part, "to_list") else part.numpy().tolist(), element
    )


@pytest.mark.parametrize(
    "data",
    [
        tf.data.Dataset.range(7),
        tf.data.Dataset.range(7).map(lambda n: {"a": n, "b": (n, tf.fill([n], "x"))}).repeat(),
        tf.data.Dataset.range(7).filter(lambda n: n > 2).batch(3),
        tf.data.Dataset.range(0),
        tf.data.Dataset.range(7).shuffle(7, seed=1, reshuffle_each_iteration=False).ragged_batch(2),
    ],
)
def test_a_timed_dataset_is_the_same_dataset(data: Any) -> None:
    timed = data.apply(EnergyCallback(Meter()).timed)
    assert timed.element_spec == data.element_spec
    assert int(timed.cardinality()) == int(data.cardinality())
    for _ in range(2):
        assert [by_hand(row) for row in timed.take(20)] == [by_hand(row) for row in data.take(20)]


def options(**chosen: bool) -> tf.data.Options:
    made = tf.data.Options()
    for name, value in chosen.items():
        setattr(made.autotune if name == "enabled" else made.experimental_optimization, name, value)
    return made


@pytest.mark.parametrize(
    ("ending", "ahead"),
    [
        (lambda data: data.take(1000), True),
        (lambda data: data.take(1000).with_options(options(enabled=True)), True),
        (lambda data: data.prefetch(1), True),
        (lambda data: data.map(lambda x, y: (x, -y), num_parallel_calls=2), True),
        (lambda data: data, False),
        (lambda data: data.with_options(options(map_fusion=True)), False),
        (lambda data: data.take(1000).with_options(options(inject_prefetch=False)), False),
        (lambda data: data.take(1000).with_options(options(apply_default_optimizations=False)), False),
        (lambda data: data.take(1000).with_options(options(enabled=False)), False),
    ],
)
def test_timing_changes_nothing_about_reading_ahead(ending: Callable[[Any], Any], ahead: bool) -> None:
    def goes_on_unasked(data: Any) -> bool:
        """Say whether more batches are made than the four that are asked for."""
        made: list[None] = []
        more = threading.Event()

        def called() -> None:
            made.append(None)
            if len(made) > 4:
                more.set()

        rows = iter(data(called))
        for _ in range(4):
            next(rows)
        return more.wait(20 if ahead else 0.1)

    def data(called: Callable[[], object]) -> Any:
        return ending(slow(batches(32 * 64), 0, called))

    assert goes_on_unasked(data) == ahead
    assert goes_on_unasked(lambda called: EnergyCallback(Meter()).timed(data(called))) == ahead


@pytest.mark.parametrize("step_s", [-5.0, 1e6])
def test_a_clock_that_is_set_is_not_believed(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    seconds = iter(np.arange(100) * step_s)
    monkeypatch.setattr(tf, "timestamp", lambda: tf.constant(next(seconds), tf.float64))
    callback = EnergyCallback(Meter())
    history = fitted(callback.timed(batches(40)), callback)
    if step_s < 0:
        assert TIME_KEYS.isdisjoint(history)
    else:
        assert history["input_wait_s"] == [callback.energies[0].duration_s]
        assert history["compute_s"] == [0]


def test_where_tensorflow_allows_no_clock_nothing_is_timed() -> None:
    from tensorflow.python.framework.config import disable_op_determinism

    data = batches(40)
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert EnergyCallback(Meter()).timed(data) is data
    tf.config.experimental.enable_op_determinism()
    try:
        run = fit(linear_model(), data, epochs=1, meter=Meter())
    finally:
        disable_op_determinism()
    assert set(run.history) == {"loss", "accuracy"} | ENERGY_KEYS


def test_a_strategy_counts_images_too() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = compiled_model(eager=False)
    callback = EnergyCallback(Meter())
    model.fit(callback.timed(batches(80)), shuffle=False, verbose=0, callbacks=[callback])
    assert callback.images == [80]
