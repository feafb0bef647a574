"""Copy batches to an accelerator ahead of their use."""

from __future__ import annotations

import tensorflow as tf

from joulecache.pipelines.core.checks import shown


def check_accelerator(name: object) -> None:
    """Raise ValueError unless TensorFlow sees an accelerator of this name: it would copy batches to the CPU without a word."""
    found = [device.name for device in tf.config.list_logical_devices() if device.device_type != "CPU"]
    try:
        wanted = tf.DeviceSpec.from_string(name)
    except (ValueError, TypeError, AttributeError):
        wanted = tf.DeviceSpec()
    specs = [tf.DeviceSpec.from_string(each) for each in found]
    if (wanted.device_type, wanted.device_index or 0) not in [(each.device_type, each.device_index) for each in specs]:
        raise ValueError(
            f"prefetch_to_device must name an accelerator that TensorFlow sees ({', '.join(found) or 'none here'}), got {shown(name)}"
        )


def to_device(dataset: tf.data.Dataset, name: str) -> tf.data.Dataset:
    """Return a dataset whose elements are copied to a device ahead of their use, with the attributes of `load`.

    Raises:
        ValueError: The elements have strings, which only the CPU has.
    """
    if any(spec.dtype == tf.string for spec in tf.nest.flatten(dataset.element_spec)):
        raise ValueError("prefetch_to_device cannot copy texts, which stay on the CPU: leave them out with targets")
    moved = dataset.apply(tf.data.experimental.prefetch_to_device(name))
    moved.class_names, moved.num_classes = dataset.class_names, dataset.num_classes
    return moved
