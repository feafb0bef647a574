"""The audit of one chain: the same files in several arms, with what each cost beforehand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from joulecache.pipelines.auditing.examples import draw_examples
from joulecache.pipelines.auditing.results import Audit, BuildFacts, RecordCounts
from joulecache.pipelines.auditing.stages import measure_stages
from joulecache.pipelines.auditing.variants import (
    check_variants,
    draw_reuse,
    draws_before_cut,
    measure_variants,
    why_unmeasured,
)
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.compressing.compression import compress_on
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD, Compression, read_compression
from joulecache.pipelines.compressing.steps import check_recipe
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.energy.storage import storage_energy
from joulecache.pipelines.experiment.arms import (
    ARMS,
    Arm,
    ArmError,
    as_folder,
    check_chain,
    list_files,
    make_arms,
    refused_arms,
)
from joulecache.pipelines.experiment.blocks import Bench, Progress, active_joules
from joulecache.pipelines.experiment.folder import MODELS, RUNS, changed, check_folder, forget, work_folder
from joulecache.pipelines.experiment.provenance import conditions, run_provenance
from joulecache.pipelines.experiment.results import WorkloadResult
from joulecache.pipelines.experiment.runs import RunLog
from joulecache.pipelines.experiment.summary import CachedArm
from joulecache.pipelines.experiment.workloads import (
    DEFAULT_WORKLOADS,
    SHORTEST_RUN_S,
    WORKLOADS,
    Infer,
    InputOnly,
    Training,
    check_names,
    check_whole,
    finetune_pruned,
    train_from_scratch,
)
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models.classifiers import build_model
from joulecache.pipelines.source import SYNTHETIC, open_source, source_paths
from joulecache.transforms.chain import Chain, parse
from joulecache.transforms.ops import Normalize

_REFERENCE, _CACHED = "naive", "optimized"
_DRAWN_EPOCHS = 16  # epochs of random parameters that the online arms get, over and over
_LARGEST_DIFFERENCE = 1.0  # levels, on average: beyond, two arms do not show the same pictures


def audit_chain(
    source: str | os.PathLike[str],
    chain: Chain | str,
    folder: Path,
    *,
    arms: Sequence[str] = ARMS,
    workloads: Sequence[str] = DEFAULT_WORKLOADS,
    epochs: int = 30,
    runs: int = 1,
    pairs: int | None,
    model: str,
    train_epochs: int,
    prune: float = 0.5,
    batch_size: int = 64,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    variants: Sequence[int] = (1,),
    seed: int,
    meter: Meter,
    tell: Progress,
) -> Audit:
    """Audit a chain: see `audit`."""
    parsed = parse(chain) if isinstance(chain, str) else chain
    check_names("arms", arms, ARMS, needed=(_REFERENCE, _CACHED))
    check_names("workloads", workloads, WORKLOADS)
    check_chain(parsed, workloads)
    check_whole(epochs=epochs, runs=runs)
    check_variants(variants, parsed, workloads, train_epochs)
    recipe = Recipe(prune=prune, quantize="int8")
    listed = open_source(source, limit=limit, labels=labels)
    check_folder(folder, source_paths(source))
    settings = {
        "source": os.fspath(source),
        "limit": limit,
        "labels": None if labels is None else os.fspath(labels),
        "chain": str(parsed),
        "arms": list(arms),
        "workloads": list(workloads),
        "model": os.fspath(model),
        "train_epochs": train_epochs,
        "prune": prune,
        "batch_size": batch_size,
        "variants": list(variants),
        "seed": seed,
        **conditions(meter),
    }
    with work_folder(folder, settings) as work:
        files = as_folder(listed, work, tell)
        # A build reads the source as it is, but must not be charged with drawing photos.
        read = files if listed.location.startswith(SYNTHETIC) else source

        def build(count: int) -> Path:
            tell("building the cache" if count == 1 else f"building the cache of {count} variants", 0, 1)
            made = work / f"cache-{count}"
            precompute(read, made, parsed, variants=count, seed=seed, meter=meter, limit=limit, labels=labels)
            return made

        cache = build(variants[0])
        built = open_manifest(cache)
        if changed(work / "cache.json", sorted(file.name for file in built.files())):
            forget(folder)
        drawn = list_files(files, cache, _DRAWN_EPOCHS)
        left_out = refused_arms(arms, drawn, cache)
        names = [name for name in arms if name not in left_out]
        chosen = make_arms(names, drawn, cache, batch_size)
        differences = _pixel_differences(make_arms(names, drawn, cache, batch_size, shuffle=False), _level(parsed))
        val_data = load(cache, "val", batch_size) if built.splits["val"].records else None
        if "infer" in workloads and val_data is None:
            raise ValueError("the workload infer needs held-out records to measure its model on: give more images")
        unmeasured = why_unmeasured(variants, workloads, train_epochs, built.splits["val"].records)
        build_j = built.build_energy
        log = RunLog(folder / RUNS)
        cached = CachedArm(_CACHED, built.splits["train"].records, epochs, runs)
        bench = Bench(log, meter, seed, tell, _REFERENCE, cached, {_CACHED: active_joules(build_j)})
        results: list[WorkloadResult] = []
        compression: Compression | None = None
        trainer: Training | None = None
        reuse = draw_reuse(variants, epochs, train_epochs, why=unmeasured) if draws_before_cut(parsed) else None
        if "input" in workloads:
            results.append(bench.measure(InputOnly(shortest_s=SHORTEST_RUN_S), chosen, pairs))
        if set(workloads) != {"input"}:
            optimized = next(arm for arm in chosen if arm.name == _CACHED)
            shape = optimized.dataset.element_spec[0].shape[1:].as_list()
            trainer = train_from_scratch(
                build_model(model, tuple(shape), len(built.class_names)), val_data, train_epochs
            )
            if "finetune" in workloads or "infer" in workloads:
                check_recipe(recipe, trainer.network)
            if "train" in workloads:
                results.append(bench.measure(trainer, chosen, pairs))
            if reuse is not None and unmeasured is None:
                points = measure_variants(bench, trainer, build, variants, epochs, batch_size, pairs)
                reuse = draw_reuse(variants, epochs, train_epochs, points)
            record = folder / MODELS / COMPRESSION_RECORD
            if "finetune" in workloads or ("infer" in workloads and not record.exists()):
                tell("training a model to compress", 0, 1)
                trainer.prepare(0)
                trainer.run(optimized, 0)  # not measured
            if "finetune" in workloads:
                finetuner = finetune_pruned(trainer.network, prune, val_data, train_epochs)
                results.append(bench.measure(finetuner, chosen, pairs))
            if "infer" in workloads:
                if not record.exists():
                    compress_on(
                        trainer.network,
                        optimized.dataset,
                        val_data,
                        recipe,
                        out=record.parent,
                        seed=seed,
                        meter=meter,
                        progress=tell,
                    )
                compression = read_compression(record)
                file = record.parent / compression.model_files[-1].file_name
                results.append(bench.measure(Infer(file), chosen, pairs))
        naive = next(arm for arm in chosen if arm.name == _REFERENCE)
        stages = measure_stages(bench, naive, drawn, cache, batch_size, pairs, results, trainer)
        whole = log.energy()
        examples = draw_examples(drawn, files, built)
    return Audit(
        source=str(source),
        chain=str(parsed),
        pipelines=(),
        reference=_REFERENCE,
        cached=_CACHED,
        records=RecordCounts(
            train=built.splits["train"].records,
            val=built.splits["val"].records,
            rejected=built.rejected.records,
            skipped=sum(listed.skipped.values()),
        ),
        class_names=built.class_names,
        horizon_epochs=epochs,
        pixel_difference=differences,
        build=_build_facts(built, build_j, meter),
        workloads=tuple(results),
        left_out=left_out,
        compression=compression,
        energy=whole,
        method=whole.method,
        provenance=run_provenance(
            meter, seed=seed, batch_size=batch_size, model=os.fspath(model), train_epochs=train_epochs
        ),
        reuse=reuse,
        stages=stages,
        examples=examples,
    )


def _level(chain: Chain) -> float:
    """Return how much one level of uint8 is in the images that a chain makes, at least."""
    level = 1 / 255 if chain.is_float else 1.0
    for op in chain.ops:
        if isinstance(op, Normalize):
            level /= max(op.std) if isinstance(op.std, tuple) else op.std
    return level


def _pixel_differences(arms: Sequence[Arm], level: float) -> dict[str, float]:
    """Return each arm's mean absolute difference from the cached one over the first batch of epoch 0, in levels.

    Raises ArmError when an arm shows other pictures: then its energy would not compare.
    """
    first: dict[str, Any] = {}
    for arm in arms:
        arm.start_epoch(0)
        first[arm.name] = next(iter(arm.dataset))
    images, labels = (part.numpy() for part in first[_CACHED])
    differences = {}
    for name, (others, other_labels) in first.items():
        difference = float(np.abs(images.astype(np.float64) - others.numpy()).mean()) / level
        if difference > _LARGEST_DIFFERENCE or not np.array_equal(labels, other_labels.numpy()):
            raise ArmError(
                f"{name} and {_CACHED} differ by {difference:.2f} levels on average: they do not run the same chain"
            )
        differences[name] = difference
    return differences


def _build_facts(built: Manifest, energy: Energy, meter: Meter) -> BuildFacts:
    cached = sum(file.bytes for file in built.files())
    return BuildFacts(
        energy=energy,
        source_bytes=built.source.bytes,
        cache_bytes=cached,
        storage_per_day=storage_energy(cached, 1, meter.provenance().pue),
        format=built.format,
        encoding=built.encoding,
        variants=built.variants,
    )
