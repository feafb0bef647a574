"""Audit: the same chain on the same files in several arms, measured in interleaved blocks, with what each cost beforehand."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from joulecache.pipelines.auditing.arms import (
    ARMS,
    Arm,
    ArmError,
    check_chain,
    list_files,
    make_arms,
    refused_arms,
    thread_counts,
)
from joulecache.pipelines.auditing.bench import Bench, Progress, active_joules
from joulecache.pipelines.auditing.results import Audit, WorkloadResult
from joulecache.pipelines.auditing.runs import RunLog
from joulecache.pipelines.auditing.workloads import (
    DEFAULT_WORKLOADS,
    WORKLOADS,
    Infer,
    InputOnly,
    finetune_pruned,
    train_from_scratch,
)
from joulecache.pipelines.build import precompute
from joulecache.pipelines.compression import COMPRESSION_RECORD, Recipe, compress_on
from joulecache.pipelines.compression.staging import discard_folder, read_record
from joulecache.pipelines.loader import load
from joulecache.pipelines.manifest import Manifest
from joulecache.pipelines.meter import Energy, Meter
from joulecache.pipelines.source import SYNTHETIC, Source, open_source, source_paths
from joulecache.transforms.chain import Chain, parse
from joulecache.transforms.ops import Normalize

__all__ = ["ARMS", "WORKLOADS", "ArmError", "Audit", "audit"]

REPORT_JSON = "report.json"
RUNS = "runs.jsonl"
MODELS = "models"
_WORK = ".audit"  # the settings, the unpacked files and the cache; gone when the audit is done
_DRAWN_EPOCHS = 16  # epochs of random parameters that the online arms get, over and over
_LARGEST_DIFFERENCE = 1.0  # levels, on average: beyond, two arms do not show the same pictures
_PACKAGES = (
    "joulecache",
    "tensorflow",
    "keras",
    "apache-beam",
    "pyarrow",
    "pillow",
    "numpy",
    "ai-edge-litert",
    "codecarbon",
)


def audit(
    source: str | os.PathLike[str],
    chain: Chain | str,
    out: str | os.PathLike[str],
    *,
    arms: Sequence[str] = ARMS,
    workloads: Sequence[str] = DEFAULT_WORKLOADS,
    epochs: int = 30,
    runs: int = 1,
    pairs: int | None = None,
    model: str = "cnn",
    train_epochs: int = 3,
    prune: float = 0.5,
    batch_size: int = 64,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Measure what feeding a model costs in each arm, and whether building a cache pays.

    `epochs` is the horizon of the verdict, and `runs` how many trainings share the cache: neither is what is run. `pairs` is the number
    of blocks (default: 20 for the input, 5 for training and fine-tuning, 10 for inference), `train_epochs` the epochs of one
    training run. Every run is kept in ``runs.jsonl`` and every model file in ``models/`` of the folder `out`. An audit that was
    stopped goes on when it is called again with the same arguments. Sources other than folders are unpacked to files for the
    online arms, which is not measured.

    Raises ValueError for arguments and for a folder `out` that holds other things, ArmError for an arm that cannot run, and what
    `precompute` raises.
    """
    parsed = parse(chain) if isinstance(chain, str) else chain
    _check_names("arms", arms, ARMS, needed=("naive", "optimized"))
    _check_names("workloads", workloads, WORKLOADS)
    check_chain(parsed, workloads)
    for name, value in (
        ("epochs", epochs),
        ("runs", runs),
        ("pairs", 1 if pairs is None else pairs),
        ("train_epochs", train_epochs),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    recipe = Recipe(prune=prune, quantize="int8")
    folder = Path(out)
    listed = open_source(source, limit=limit, labels=labels)
    meter = meter or Meter()
    tell = progress or (lambda what, done, total: None)
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
        "seed": seed,
        "threads": thread_counts(),
        # joules of two methods are not one series; what the meter notes may change while it works
        "meter": {name: value for name, value in meter.passport().items() if name != "notes"},
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    with _out_folder(folder, source, settings) as work:
        files = _as_folder(listed, work, tell)
        tell("building the cache", 0, 1)
        cache = work / "cache"
        # A build reads the source as it is, but must not be charged with drawing photos.
        read = files if listed.location.startswith(SYNTHETIC) else source
        built = precompute(read, cache, parsed, seed=seed, meter=meter, limit=limit, labels=labels).manifest
        if _changed(work / "cache.json", sorted(file.name for file in built.files())):
            _forget(folder)
        drawn = list_files(files, cache, _DRAWN_EPOCHS)
        left_out = refused_arms(arms, drawn, cache)
        names = [name for name in arms if name not in left_out]
        chosen = make_arms(names, drawn, cache, batch_size)
        differences = _pixel_differences(make_arms(names, drawn, cache, batch_size, shuffle=False), _level(parsed))
        val_data = load(cache, "val", batch_size) if built.splits["val"].records else None
        if "infer" in workloads and val_data is None:
            raise ValueError("the workload infer needs held-out records to measure its model on: give more images")
        build_j = Energy.from_json((built.energy or {})["energy"])
        bench = Bench(RunLog(folder / RUNS), meter, seed, tell, {"optimized": active_joules(build_j)}, epochs, runs)
        results: list[WorkloadResult] = []
        compression: Mapping[str, Any] | None = None
        if "input" in workloads:
            results.append(bench.measure(InputOnly(), chosen, pairs))
        if set(workloads) != {"input"}:
            optimized = next(arm for arm in chosen if arm.name == "optimized")
            shape = optimized.dataset.element_spec[0].shape[1:].as_list()
            trainer = train_from_scratch(model, tuple(shape), len(built.class_names), val_data, train_epochs)
            if "finetune" in workloads or "infer" in workloads:
                recipe.check(trainer.network)
            if "train" in workloads:
                results.append(bench.measure(trainer, chosen, pairs))
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
                compression = read_record(record)
                file = record.parent / compression["variants"][-1]["path"]
                results.append(bench.measure(Infer(file), chosen, pairs))
    return Audit(
        source=str(source),
        chain=str(parsed),
        records={
            "train": built.splits["train"].records,
            "val": built.splits["val"].records,
            "rejected": built.rejected.records,
            "skipped": sum(listed.skipped.values()),
        },
        class_names=built.class_names,
        horizon_epochs=epochs,
        pixel_difference=differences,
        build=_build_facts(built, build_j),
        workloads=tuple(results),
        left_out=left_out,
        compression=compression,
        method=build_j.method,
        provenance=_provenance(meter, seed, batch_size, model, train_epochs),
    )


# Preparation ----------------------------------------------------------------------------------------------------------


def _check_names(what: str, names: Sequence[str], allowed: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not names or len(set(names)) != len(names) or any(name not in allowed for name in names):
        raise ValueError(f"{what} must be some of {', '.join(allowed)}, each once, got {', '.join(names) or 'none'}")
    for name in needed:
        if name not in names:
            raise ValueError(f"{what} must have {name}, which the others are compared with, got {', '.join(names)}")


@contextmanager
def _out_folder(folder: Path, source: str | os.PathLike[str], settings: Mapping[str, Any]) -> Iterator[Path]:
    """Make the folder of an audit; yield its work folder, which is gone at the end.

    Where an audit of the same settings was stopped, its runs and its cache are still there, and stay; else they are deleted.
    """
    outer = folder.resolve()
    for path in source_paths(source):
        inner = path.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ValueError(
                f"source {str(path)!r} and out {str(folder)!r} lie inside each other: choose another --out"
            )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder)):
        raise ValueError(
            f"{str(folder)!r} is not empty and no audit of ours: choose a folder that is empty or does not exist"
        )
    work = folder / _WORK
    work.mkdir(parents=True, exist_ok=True)
    if _changed(work / "settings.json", settings):
        shutil.rmtree(work)
        work.mkdir()
        _changed(work / "settings.json", settings)
        _forget(folder)
    (folder / REPORT_JSON).unlink(missing_ok=True)
    try:
        yield work
    except BaseException:
        if not (folder / RUNS).exists():  # nothing to go on with
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _changed(file: Path, body: object) -> bool:
    """Say whether a file holds another JSON value than `body`, or none, and put it there."""
    text = json.dumps(body, indent=1)
    if file.exists() and file.read_text("utf-8") == text:
        return False
    file.write_text(text, encoding="utf-8")
    return True


def _forget(folder: Path) -> None:
    """Delete what an audit of other settings left: its runs and its models."""
    (folder / RUNS).unlink(missing_ok=True)
    discard_folder(folder / MODELS, COMPRESSION_RECORD)


def _is_ours(folder: Path) -> bool:
    return (folder / RUNS).is_file() or (folder / REPORT_JSON).is_file() or (folder / _WORK).is_dir()


def _as_folder(source: Source, work: Path, tell: Progress) -> Path:
    """Return a folder with the source's images as files of their keys' names: itself where it is one, else a copy."""
    if Path(source.location).is_dir():
        return Path(source.location).resolve()
    root = work / "files"
    done = 0
    for unit in source.units:
        for record in unit.read():
            path = root / record.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record.data)
            done += 1
            if done % 64 == 0:
                tell("unpacking the source", done, source.records)
    return root


def _level(chain: Chain) -> float:
    """Return how much one level of uint8 is in the images that a chain makes, at least."""
    level = 1 / 255 if chain.is_float else 1.0
    for op in chain.ops:
        if isinstance(op, Normalize):
            level /= max(op.std) if isinstance(op.std, tuple) else op.std
    return level


def _pixel_differences(arms: Sequence[Arm], level: float) -> dict[str, float]:
    """Return each arm's mean absolute difference from the optimized one over the first batch of epoch 0, in levels.

    Raises ArmError when an arm shows other pictures: then its energy would not compare.
    """
    first: dict[str, Any] = {}
    for arm in arms:
        arm.start_epoch(0)
        first[arm.name] = next(iter(arm.dataset))
    images, labels = (part.numpy() for part in first["optimized"])
    differences = {}
    for name, (others, other_labels) in first.items():
        difference = float(np.abs(images.astype(np.float64) - others.numpy()).mean()) / level
        if difference > _LARGEST_DIFFERENCE or not np.array_equal(labels, other_labels.numpy()):
            raise ArmError(
                f"{name} and optimized differ by {difference:.2f} levels on average: they do not run the same chain"
            )
        differences[name] = difference
    return differences


def _build_facts(built: Manifest, energy: Energy) -> dict[str, Any]:
    cached = sum(file.bytes for file in built.files())
    return {
        "energy": energy.to_json(),
        "active_j": energy.active_j,
        "cpu_s": energy.cpu_s,
        "duration_s": energy.duration_s,
        "source_bytes": built.source["bytes"],
        "cache_bytes": cached,
        "format": built.format,
        "encoding": built.encoding,
        "variants": built.variants,
    }


def _provenance(meter: Meter, seed: int, batch_size: int, model: str, train_epochs: int) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "seed": seed,
        "batch_size": batch_size,
        "model": model,
        "train_epochs": train_epochs,
        "threads": thread_counts(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "meter": meter.passport(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
