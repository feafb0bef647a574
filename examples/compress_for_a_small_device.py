"""Train a small network from a cache, prune and quantize it, and see what that costs in accuracy and saves in bytes.

python examples/compress_for_a_small_device.py
"""

from joulecache.pipelines import Recipe, precompute, train

precompute("synthetic:200", "example-small-cache", "decode|resize(32)", val_fraction=0.3)
recipe = Recipe(prune=0.25, quantize="int8", finetune_epochs=1)
done = train("example-small-cache", out="example-run", epochs=2, model="cnn", recipe=recipe)
print(f"training: {done.training.energy}")
assert done.compression is not None
for file in done.compression.model_files:
    print(f"{file.name}: {file.file_bytes:,} bytes, accuracy {file.accuracy:.1%}, {file.cpu_ms_per_image:.3f} ms")
