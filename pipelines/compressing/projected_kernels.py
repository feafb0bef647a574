"""A callback that enforces a constraint on kernels in every training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

Projection = Callable[[tf.Tensor], tf.Tensor]
"""Maps a kernel to the nearest allowed one."""


@dataclass(frozen=True, eq=False)
class ProjectedConstraint:
    """A kernel's original constraint, if any, then the projection of a callback (`owner`) in one training (`fit`)."""

    original: Callable[[Any], Any] | None
    project: Projection
    owner: keras.callbacks.Callback
    fit: object

    def __call__(self, kernel: Any) -> tf.Tensor:
        """Return the kernel after a step."""
        return self.project(tf.convert_to_tensor(kernel if self.original is None else self.original(kernel)))


class ProjectedKernels(keras.callbacks.Callback):  # type: ignore[misc]
    """Project kernels after every optimizer step, until training ends.

    Keras applies a variable's constraint inside the compiled step: this works with `steps_per_execution` above 1, momentum
    cannot bring a value back, and no Python runs. Validation and the files of other callbacks see projected kernels
    too. The layer's configuration does not change, so saved files are those of an ordinary model. The step is traced once
    more when training begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kernels: dict[str, keras.Variable] = {}

    def start_projecting(self, kernels: Mapping[str, keras.Variable], projections: Mapping[str, Projection]) -> None:
        """Begin to project kernels, by layer; raise ValueError if another callback of this training does so already."""
        for name, kernel in kernels.items():
            before = kernel.constraint
            if isinstance(before, ProjectedConstraint) and before.fit is self.params and before.owner is not self:
                raise ValueError(
                    f"the kernel of layer {name!r} is already constrained by {type(before.owner).__name__}: use one such "
                    "callback per training"
                )
        for name, kernel in kernels.items():
            before = kernel.constraint
            # an interrupted training left its constraint
            original = before.original if isinstance(before, ProjectedConstraint) else before
            kernel.constraint = ProjectedConstraint(original, projections[name], self, self.params)
        self._kernels = dict(kernels)
        # a step traced in an earlier training lacks the constraint
        self.model.make_train_function(force=True)

    def project(self) -> None:
        """Project the kernels now, outside a step."""
        for kernel in self._kernels.values():
            kernel.assign(kernel.constraint.project(tf.convert_to_tensor(kernel)))

    def release(self) -> None:
        """Restore the kernels' original constraints."""
        for kernel in self._kernels.values():
            kernel.constraint = kernel.constraint.original
        self._kernels = {}
        self.model.train_function = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Project what other callbacks may have written to the kernels."""
        self.project()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Project averaged or restored weights, then release the kernels."""
        self.project()
        self.release()
