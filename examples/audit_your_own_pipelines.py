"""Compare two tf.data pipelines of your own: what each takes, with an interval, and whether they differ at all.

python examples/audit_your_own_pipelines.py
"""

import tensorflow as tf

from joulecache.pipelines import audit


def pictures() -> tf.data.Dataset:
    """Return images that are made up, in place of reading and decoding files."""
    return tf.data.Dataset.range(256).map(lambda n: (tf.random.stateless_uniform([96, 96, 3], [n, n]) * 255, n % 2))


def resized(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Shrink an image."""
    return tf.cast(tf.image.resize(image, [64, 64]), tf.uint8), label


def one_by_one() -> tf.data.Dataset:
    """Return what people write first."""
    return pictures().map(resized).batch(32)


def kept() -> tf.data.Dataset:
    """Return the same images, kept in memory after the first epoch."""
    return pictures().map(resized).cache().batch(32).prefetch(tf.data.AUTOTUNE)


result = audit(datasets={"one by one": one_by_one, "kept": kept}, workloads=["input"], pairs=6, out="example-audit")
for arm in result.workloads[0].arms:
    print(
        f"{arm.name}: {arm.active_j_per_1000.value:.3g} J per 1,000 images, {arm.ratio.value:.3f} of the first: {arm.finding}"
    )
