"""Filter photos in a Beam pipeline, write them as a cache, and compute statistics of what it holds.

python examples/cache_in_a_beam_pipeline.py
"""

import apache_beam as beam
import numpy as np

import joulecache as jc


def is_wanted(record: jc.Record) -> bool:
    """Return whether a photo shows a disc or a square."""
    return record.targets.get("label") in ("disc", "square")


def level(record: jc.Record) -> tuple[str, float]:
    """Return the class of a photo and its mean level."""
    return str(record.targets["label"]), float(np.mean(np.asarray(record.image)))


def main() -> None:
    """Run two pipelines, one after the other."""
    photos = jc.ReadRecords("synthetic:200")
    features = {"label": jc.features.ClassLabel(("disc", "square"))}
    cache = jc.WriteCache("example-beam-cache", "decode|resize(72) || random_crop(64)|flip_lr", features=features)
    with beam.Pipeline("FnApiRunner") as pipeline:  # or any other runner
        written = pipeline | photos | beam.Filter(is_wanted) | cache
        _ = written | beam.Map(lambda result: print(f"written: {result.records} records, {result.energy}"))
    with beam.Pipeline("FnApiRunner") as pipeline:
        levels = pipeline | jc.ReadCache("example-beam-cache", "train") | beam.Map(level)
        _ = levels | beam.combiners.Mean.PerKey() | beam.MapTuple(lambda name, mean: print(f"{name}: level {mean:.1f}"))


if __name__ == "__main__":
    main()
