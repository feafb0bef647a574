"""Compare the energy of two custom tf.data pipelines, with intervals, and find out whether they differ at all.

python examples/audit_your_own_pipelines.py
"""

import tensorflow as tf

import joulecache as jc


def images() -> tf.data.Dataset:
    """Return random images, which stand for files that are read and decoded."""
    return tf.data.Dataset.range(256).map(lambda n: (tf.random.stateless_uniform([96, 96, 3], [n, n]) * 255, n % 2))


def resize(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Shrink an image."""
    return tf.cast(tf.image.resize(image, [64, 64]), tf.uint8), label


def one_by_one() -> tf.data.Dataset:
    """Return a simple pipeline."""
    return images().map(resize).batch(32)


def kept() -> tf.data.Dataset:
    """Return the same images, kept in memory after the first epoch."""
    return images().map(resize).cache().batch(32).prefetch(tf.data.AUTOTUNE)


pipelines = {"one by one": one_by_one, "kept": kept}
result = jc.audit(datasets=pipelines, workloads=["input"], pairs=6, out="example-audit")
for arm in result.workloads[0].arms:
    joules = f"{arm.active_j_per_1000.value:.3g} J per 1,000 images"
    print(f"{arm.name}: {joules}, {arm.ratio.value:.3f} times the first: {arm.finding}")
