"""Names of arms and workloads."""

from __future__ import annotations

ARMS = ("naive", "tuned", "tf_cache", "tf_cache_file", "tfrecord", "optimized")
"""The arms of a chain: two that preprocess in every epoch, `tf.data`'s cache in RAM and on disk, TFRecord files, a joulecache cache."""
REFERENCE, TUNED, TF_CACHE, TF_CACHE_FILE, TFRECORD, CACHED = ARMS
DEFAULT_ARMS = (REFERENCE, TUNED, TF_CACHE, TFRECORD, CACHED)
DESCRIPTIONS = {
    REFERENCE: "one image at a time, no prefetch",
    TUNED: "parallel map, batch, prefetch",
    TF_CACHE: "tuned with cache() in memory",
    TF_CACHE_FILE: "tuned with cache() on disk",
    TFRECORD: "TFRecord files, parsed every epoch",
    CACHED: "a joulecache cache",
}
"""What each arm is, in a few words."""

WORKLOADS = ("input", "train", "finetune", "infer", "accelerator")
"""What consumes batches: nothing, training from scratch, fine-tuning a pruned model, inference of a compressed one, a simulated device."""
INPUT, TRAIN, FINETUNE, INFER, ACCELERATOR = WORKLOADS
WITHOUT_MODEL = frozenset({INPUT, ACCELERATOR})
