"""A callback that holds kernels to a constraint in every step of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

Projection = Callable[[tf.Tensor], tf.Tensor]
"""Maps a kernel to the nearest one that is allowed."""


@dataclass(frozen=True, eq=False)
class HeldConstraint:
    """A kernel's own constraint, followed by the projection of a callback.

    Attributes:
        own: The constraint that the layer was built with.
        project: The projection.
        owner: The callback.
        fit: Identifies the training: Keras' parameters of the callback.
    """

    own: Callable[[Any], Any] | None
    project: Projection
    owner: keras.callbacks.Callback
    fit: object

    def __call__(self, kernel: Any) -> tf.Tensor:
        """Return the kernel after a step."""
        return self.project(tf.convert_to_tensor(kernel if self.own is None else self.own(kernel)))


class HeldKernels(keras.callbacks.Callback):  # type: ignore[misc]
    """Project kernels after every step of the optimizer, until the training ends.

    Keras applies a variable's constraint inside the compiled step: no step is left out with `steps_per_execution` above
    1, no momentum brings a value back, and no Python runs. Validation and the files of other callbacks see projected
    kernels too. The layer's configuration does not change, so saved files are those of an ordinary model. The step is
    traced again once, when the training begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, keras.Variable] = {}

    def hold(self, kernels: Mapping[str, keras.Variable], projections: Mapping[str, Projection]) -> None:
        """Begin to hold kernels.

        Args:
            kernels: The kernels, by layer.
            projections: Their projections, by layer.

        Raises:
            ValueError: Another callback of this training holds one of them.
        """
        for name, kernel in kernels.items():
            before = kernel.constraint
            if isinstance(before, HeldConstraint) and before.fit is self.params and before.owner is not self:
                raise ValueError(
                    f"the kernel of layer {name!r} is already held by {type(before.owner).__name__}: use one such "
                    "callback per training"
                )
        for name, kernel in kernels.items():
            before = kernel.constraint
            # an interrupted training left its own constraint
            own = before.own if isinstance(before, HeldConstraint) else before
            kernel.constraint = HeldConstraint(own, projections[name], self, self.params)
        self._held = dict(kernels)
        # a step that was traced in an earlier training lacks the constraint
        self.model.make_train_function(force=True)

    def project(self) -> None:
        """Project the kernels now, outside of a step."""
        for kernel in self._held.values():
            kernel.assign(kernel.constraint.project(tf.convert_to_tensor(kernel)))

    def release(self) -> None:
        """Restore the kernels' own constraints."""
        for kernel in self._held.values():
            kernel.constraint = kernel.constraint.own
        self._held = {}
        self.model.train_function = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Project what other callbacks may have written to the kernels."""
        self.project()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Project averages of the optimizer and restored weights, then release the kernels."""
        self.project()
        self.release()
