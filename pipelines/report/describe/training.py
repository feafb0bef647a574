"""A trained model."""

from __future__ import annotations

from joulecache.pipelines.report.describe.compression import describe_compression
from joulecache.pipelines.report.describe.values import flagged, share, total
from joulecache.pipelines.report.document import Document, Sentence
from joulecache.pipelines.training.results import TrainedModel


def describe_training(trained: TrainedModel) -> Document:
    """Describe a trained model, and its compression if there was one."""
    run = trained.training
    compressed = None if trained.compression is None else describe_compression(trained.compression)
    accuracy = f"accuracy {share(run.accuracy)}, held out {share(run.val_accuracy)}"
    claim = f"{trained.path}: {accuracy}; training used {total(run.energy)}, {run.energy.method}."
    return Document(
        "joulecache: a trained model",
        str(trained.path),
        headline=(Sentence(claim),),
        warning=" ".join(filter(None, (flagged("Training", run.energy), compressed.warning if compressed else ""))),
        sections=compressed.sections if compressed else (),
    )
