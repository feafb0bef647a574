"""Train a small network from a cache, prune and quantize it, and print the size, accuracy and speed of each file.

python examples/compress_for_a_small_device.py
"""

import joulecache as jc

jc.precompute("synthetic:200", "example-small-cache", "decode|resize(32)", val_fraction=0.3)
recipe = jc.Recipe(prune=0.25, quantize="int8", finetune_epochs=1)
trained = jc.train("example-small-cache", out="example-run", epochs=2, model="cnn", recipe=recipe)
print(f"training: {trained.training.energy}")
assert trained.compression is not None
for file in trained.compression.model_files:
    print(f"{file.name}: {file.file_bytes:,} bytes, accuracy {file.accuracy:.1%}, {file.cpu_ms_per_image:.3f} ms")
