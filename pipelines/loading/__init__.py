"""Feeding caches to training: NumPy batches, tf.data over them, and drop-ins for `cache()` and Keras' directory loader."""
