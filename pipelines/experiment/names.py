"""Names of arms and workloads."""

from __future__ import annotations

ARMS = ("naive", "tuned", "tf_cache", "optimized")
"""The arms of a chain: two that preprocess in every epoch, one with `tf.data`'s own cache, one that reads a joulecache cache."""
DESCRIPTIONS = {
    "naive": "one image at a time, no prefetch",
    "tuned": "parallel map, batch, prefetch",
    "tf_cache": "tuned with cache() in memory",
    "optimized": "a joulecache cache",
}
"""What each arm is, in a few words."""
REFERENCE, CACHED = "naive", "optimized"

WORKLOADS = ("input", "train", "finetune", "infer")
"""What consumes batches: nothing, training from scratch, fine-tuning a pruned model, inference of a compressed one."""
INPUT, TRAIN, FINETUNE, INFER = WORKLOADS
