"""The report of an audit."""

from __future__ import annotations

from collections.abc import Iterator

from joulecache.pipelines.auditing.results import Audit, Example, InPython
from joulecache.pipelines.core.quantities import Spread, change, count, number, plural
from joulecache.pipelines.experiment.results import ArmResult, WorkloadResult
from joulecache.pipelines.report.describe.arms import workload_section
from joulecache.pipelines.report.describe.compression import compression_section
from joulecache.pipelines.report.describe.first_screen import certainty, facts, next_step, picture
from joulecache.pipelines.report.describe.provenance import provenance_section
from joulecache.pipelines.report.describe.reuse import reuse_section
from joulecache.pipelines.report.describe.stages import stages_section
from joulecache.pipelines.report.describe.values import (
    active_tag,
    change_interval,
    class_list,
    joules,
    share,
    title_of,
)
from joulecache.pipelines.report.describe.verdict import doubts, headline, main_workload
from joulecache.pipelines.report.document import (
    Cell,
    Code,
    Document,
    Fact,
    Image,
    Images,
    Paragraph,
    Section,
    Sentence,
    Text,
    cell,
)

_CLASSES_SHOWN = 20
_FOOTER = "The same numbers: report.html with charts, report.md as text, report.json for machines. Every single run: runs.jsonl."
_NOTHING = Sentence("Nothing was compared with the cache.")
_EXAMPLES = "Training images after each op in epoch 0, and in later epochs. Large ones are shrunk to 112 pixels, small ones enlarged."


def describe_audit(audit: Audit) -> Document:
    """Describe an audit."""
    result, sections = main_workload(audit), []
    if audit.stages is not None:
        sections.append(stages_section(audit, audit.stages))
    sections += [workload_section(result, audit) for result in audit.workloads]
    if audit.reuse is not None:
        sections.append(reuse_section(audit.reuse, audit.horizon_epochs or 0, audit.metric))
    if audit.cached is not None:
        sections.append(compression_section(audit.compression))
    if audit.examples:
        sections.append(_examples(audit.examples))
    sections.append(provenance_section(audit))
    return Document(
        title=f"joulecache: {_question(audit)}",
        name=f"joulecache: {', '.join(each.name for each in audit.pipelines) or audit.source}",
        headline=headline(audit) or (_NOTHING,),
        picture=picture(result, audit) if result else None,
        certainty=certainty(result, audit) if result else "",
        next_step=next_step(result, audit) if result else None,
        warning=doubts(audit),
        facts=tuple(_facts(result, audit)) if result else (),
        about=_about(audit),
        sections=tuple(sections),
        footer=_FOOTER,
    )


def _question(audit: Audit) -> str:
    if audit.cached is not None:
        return "is the cache worth its energy?"
    return "which pipeline uses less energy?" if len(audit.pipelines) > 1 else "how much energy does the pipeline use?"


def _about(audit: Audit) -> Text:
    if audit.records is None:
        first, *others = (each.name for each in audit.pipelines)
        parts: list[str | Code] = ["Reference " if others else "Pipeline ", Code(first)]
        for other in others:
            parts += [", compared with ", Code(other)]
        sizes = [
            f" {each.name}: {count(each.images)} images in {count(each.batches)} batches per epoch."
            for each in audit.pipelines
        ]
        return (*parts, ".", *sizes)
    records = audit.records
    counts = [plural(records.train, "training image"), f"{count(records.val)} held out"]
    counts += [f"{count(records.rejected)} rejected"] if records.rejected else []
    counts += [f"{plural(records.skipped, 'other file')} skipped"] if records.skipped else []
    return (
        "Source ",
        Code(audit.source or ""),
        ", chain ",
        Code(audit.chain or ""),
        f". {', '.join(counts)}. {_targets(audit)}",
        *(_in_python(audit.in_python, records.train) if audit.in_python is not None else ()),
    )


def _in_python(found: InPython, images: int) -> Iterator[str | Code]:
    """Yield what ran in Python in the arms without a cache."""
    where = "in the arms without a cache: TensorFlow"
    if found.ops:
        yield " "
        for number, op in enumerate(found.ops):
            yield from (", " if number else "", Code(op))
        yield f" ran in Python (tf.numpy_function) {where} has no kernel for some of them, or one that costs more."
    if found.files:
        yield f" {count(found.files)} of {count(images)} files were decoded in Python {where} decodes them differently."


def _targets(audit: Audit) -> str:
    if audit.targets is None:
        return class_list(audit.class_names, _CLASSES_SHOWN)
    named = [f"{name} ({kind})" for name, kind in audit.targets.items()]
    return f"Targets: {', '.join(named) or 'none'}."


def _facts(result: WorkloadResult, audit: Audit) -> Iterator[Fact]:
    return facts(result, audit) if audit.cached is not None else _custom_facts(result, audit)


def _custom_facts(result: WorkloadResult, audit: Audit) -> Iterator[Fact]:
    """Yield the key values of custom pipelines: the best against the first one, or what a single one uses."""
    tag, job, first = active_tag(audit, result), title_of(result.workload), result.arm(audit.reference)
    others = [arm for arm in result.arms if arm is not first]
    if not others:
        spent = joules(first.active_j_per_1000)
        detail = f"{job}; {spent.interval}"
        yield Fact("Active energy per 1,000 images", Cell(Spread(spent.value), tag), detail)
        yield Fact("Throughput", cell(_rate(first)), job)
        if first.waiting is not None:
            waited = share(first.waiting.share_of_time, at_most=first.waiting.at_most)
            yield Fact("Waiting for input", cell(waited), f"{job}, share of its time")
        return
    least = min(others, key=lambda arm: arm.ratio.value)
    detail = f"{job}, {least.name} against {first.name}; {change_interval(least.ratio)}"
    yield Fact("Active energy per image", cell(change(least.ratio.value), tag), detail, least.finding)
    yield Fact("Throughput", cell(_rate(least)), f"{job}, {least.name}; {first.name}: {_rate(first)}")


def _rate(arm: ArmResult) -> str:
    return f"{number(arm.images_per_s)} images/s"


def _examples(examples: tuple[Example, ...]) -> Section:
    strips = (
        Images(
            (Code(example.key), f", {example.class_name}" if example.class_name else ""),
            tuple(Image(image.jpeg, image.step, "cached" if image.cached else "") for image in example.images),
        )
        for example in examples
    )
    return Section("What the model sees", (Paragraph(_EXAMPLES, muted=True, detail=True), *strips))
