"""What a training gave."""

from __future__ import annotations

from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED
from joulecache.pipelines.report.describe.compression import describe_compression
from joulecache.pipelines.report.document import Document, Section, Sentence
from joulecache.pipelines.training.results import TrainedModel


def describe_training(trained: TrainedModel) -> Document:
    """Return what there is to say of a trained model, and of its compression if there was one."""
    run = trained.training
    energy = quantities.joules_range(run.energy.total_j, run.energy.low_j, run.energy.high_j)
    held_out = NOT_MEASURED if run.val_accuracy is None else quantities.share(run.val_accuracy)
    accuracy = f"accuracy {quantities.share(run.accuracy)}, held out {held_out}"
    claim = f"{trained.path}: {accuracy}; training used {energy}, {run.energy.method}."
    warnings = [f"Training is flagged by the meter: {'; '.join(run.energy.flags)}."] if run.energy.flags else []
    sections: tuple[Section, ...] = ()
    if trained.compression is not None:
        compressed = describe_compression(trained.compression)
        warnings += filter(None, [compressed.warning])
        sections = compressed.sections
    name = str(trained.path)
    return Document("joulecache: a trained model", name, (Sentence(claim),), " ".join(warnings), sections=sections)
