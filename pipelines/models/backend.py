"""Check, when imported, that Keras runs on TensorFlow. Modules that depend on that import this one."""

from __future__ import annotations

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"joulecache needs Keras on TensorFlow, got the backend {keras.backend.backend()!r}: unset KERAS_BACKEND"
    )
