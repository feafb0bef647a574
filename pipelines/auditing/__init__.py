"""Audit: the same chain on the same files in several arms, measured in interleaved blocks, with what each cost beforehand."""

from __future__ import annotations

import functools
import json
import operator
import os
import platform
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
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
from joulecache.pipelines.auditing.claims import Ratio, break_even, finding, paired_ratio
from joulecache.pipelines.auditing.results import ArmResult, Audit, Comparison, Joules, WorkloadResult
from joulecache.pipelines.auditing.workloads import WORKLOADS, Infer, InputOnly, Train, Workload
from joulecache.pipelines.build import precompute
from joulecache.pipelines.compression import Compression, Recipe, compress_on
from joulecache.pipelines.loader import load
from joulecache.pipelines.manifest import Manifest
from joulecache.pipelines.meter import Energy, Meter
from joulecache.pipelines.source import SYNTHETIC, Source, open_source, source_paths
from joulecache.transforms.chain import Chain, parse
from joulecache.transforms.ops import Normalize

__all__ = ["ARMS", "WORKLOADS", "ArmError", "Audit", "audit"]

REPORT_JSON = "report.json"
RUNS = "runs.jsonl"
_WORK = ".audit"  # the unpacked files and the cache; gone when the audit is done
_DRAWN_EPOCHS = 16  # epochs of random parameters that the online arms get, over and over
_CONTROL = "naive again"
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

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class _Run:
    """One measured run of one arm."""

    workload: str
    block: int
    place: int
    arm: str
    images: int
    energy: Energy
    accuracy: float | None


def audit(
    source: str | os.PathLike[str],
    chain: Chain | str,
    out: str | os.PathLike[str],
    *,
    arms: Sequence[str] = ARMS,
    workloads: Sequence[str] = WORKLOADS,
    epochs: int = 30,
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

    `epochs` is the horizon of the verdict, not what is run; `pairs` the number of blocks (default: 20 for the input, 5 for training, 10
    for inference), `train_epochs` the epochs of one training run. Every run is kept in ``runs.jsonl`` and every model file in ``models/``
    of the folder `out`. Sources other than folders are unpacked to files for the online arms, which is not measured.

    Raises ValueError for arguments and for a folder `out` that holds other things, ArmError for an arm that cannot run, and what
    `precompute` raises.
    """
    parsed = parse(chain) if isinstance(chain, str) else chain
    _check_names("arms", arms, ARMS, needed=("naive", "optimized"))
    _check_names("workloads", workloads, WORKLOADS)
    check_chain(parsed, workloads)
    for name, value in (("epochs", epochs), ("pairs", 1 if pairs is None else pairs), ("train_epochs", train_epochs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    folder = Path(out)
    listed = open_source(source, limit=limit, labels=labels)
    meter = meter or Meter()
    tell = progress or (lambda what, done, total: None)
    with _out_folder(folder, source) as work:
        files = _as_folder(listed, work, tell)
        tell("building the cache", 0, 1)
        cache = work / "cache"
        # A build reads the source as it is, but must not be charged with drawing photos.
        read = files if listed.location.startswith(SYNTHETIC) else source
        built = precompute(read, cache, parsed, seed=seed, meter=meter, limit=limit, labels=labels).manifest
        drawn = list_files(files, cache, _DRAWN_EPOCHS)
        left_out = refused_arms(arms, drawn, cache)
        names = [name for name in arms if name not in left_out]
        chosen = make_arms(names, drawn, cache, batch_size)
        differences = _pixel_differences(make_arms(names, drawn, cache, batch_size, shuffle=False), _level(parsed))
        val_data = load(cache, "val", batch_size) if built.splits["val"].records else None
        if "infer" in workloads and val_data is None:
            raise ValueError("the workload infer needs held-out records to measure its model on: give more images")
        build_j = Energy.from_json((built.energy or {})["energy"])
        bench = _Bench(folder / RUNS, meter, random.Random(seed), tell, {"optimized": _active(build_j)})
        results: list[WorkloadResult] = []
        compression: Compression | None = None
        if "input" in workloads:
            results.append(bench.measure(InputOnly(), chosen, pairs, epochs))
        if "train" in workloads or "infer" in workloads:
            shape = chosen[0].dataset.element_spec[0].shape[1:].as_list()
            trainer = Train(model, tuple(shape), len(built.class_names), val_data, train_epochs)
            optimized = next(arm for arm in chosen if arm.name == "optimized")
            if "train" in workloads:
                results.append(bench.measure(trainer, chosen, pairs, epochs))
            else:
                trainer.run(optimized, 0)  # not measured: it only has to know something
            if "infer" in workloads:
                tell("compressing the model", 0, 1)
                compression = compress_on(
                    trainer.network,
                    optimized.dataset,
                    val_data,
                    Recipe(prune=prune, quantize="int8"),
                    out=folder / "models",
                    seed=seed,
                    meter=meter,
                    progress=tell,
                )
                results.append(bench.measure(Infer(compression.variants[-1].path), chosen, pairs, epochs))
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
        compression=None if compression is None else compression.to_json(),
        method=build_j.method,
        provenance=_provenance(meter, seed, batch_size, model, train_epochs),
    )


class _Bench:
    """Measures workloads: warm-ups, interleaved blocks, and the log of every run."""

    def __init__(
        self, log: Path, meter: Meter, order: random.Random, tell: Progress, one_time: dict[str, Joules]
    ) -> None:
        self._log, self._meter, self._order, self._tell = log, meter, order, tell
        self._one_time = one_time
        self._epoch = 0

    def measure(self, workload: Workload, arms: Sequence[Arm], pairs: int | None, horizon: int) -> WorkloadResult:
        """Run every arm once per block, naive twice, in random order; the first run of each arm is discarded."""
        blocks = pairs or workload.blocks
        entries = [(arm.name, arm) for arm in arms]
        entries.append((_CONTROL, next(arm for arm in arms if arm.name == "naive")))
        steps = len(arms) + blocks * len(entries)
        for done, arm in enumerate(arms):
            self._tell(f"{workload.name}: warm-up", done, steps)
            self._warm_up(workload, arm)
        runs: list[_Run] = []
        for block in range(blocks):
            self._order.shuffle(entries)
            for place, (name, arm) in enumerate(entries):
                self._tell(f"{workload.name}: block {block + 1} of {blocks}", len(arms) + len(runs), steps)
                runs.append(self._run(workload, name, arm, block, place))
        return _summarize(workload, [arm.name for arm in arms], arms[0].records, runs, self._one_time, blocks, horizon)

    def _warm_up(self, workload: Workload, arm: Arm) -> None:
        """Run an arm once. Before all else `tf_cache` fills its cache: what that epoch costs beyond the next is charged once."""
        if arm.name == "tf_cache" and arm.name not in self._one_time:
            energies = []
            for epoch in range(2):
                with self._meter.window("fill") as window:
                    InputOnly().run(arm, epoch)
                energies.append(_active(window.energy))
            first, second = energies
            self._one_time[arm.name] = Joules(
                *(max(0.0, a - b) for a, b in zip(astuple(first), astuple(second), strict=True))
            )
        workload.prepare(0)
        workload.run(arm, 0)

    def _run(self, workload: Workload, name: str, arm: Arm, block: int, place: int) -> _Run:
        workload.prepare(block)
        self._epoch += workload.epochs
        with self._meter.window(workload.name) as window:
            images = workload.run(arm, self._epoch)
        run = _Run(workload.name, block, place, name, images, window.energy, workload.accuracy())
        with open(self._log, "a", encoding="utf-8") as log:
            log.write(json.dumps({**asdict(run), "energy": run.energy.to_json()}) + "\n")
        return run


def _summarize(
    workload: Workload,
    names: Sequence[str],
    records: int,
    runs: Sequence[_Run],
    one_time: Mapping[str, Joules],
    blocks: int,
    horizon: int,
) -> WorkloadResult:
    by_arm: dict[str, list[_Run]] = {name: [] for name in (*names, _CONTROL)}
    for run in runs:
        by_arm[run.arm].append(run)
    active = {name: [run.energy.active_j / run.images for run in of] for name, of in by_arm.items()}
    control = paired_ratio(active[_CONTROL], active["naive"])
    # Both runs of naive in a block are measurements of it.
    active["naive"] = [(a + b) / 2 for a, b in zip(active["naive"], active[_CONTROL], strict=True)]
    both = {**by_arm, "naive": [*by_arm["naive"], *by_arm[_CONTROL]]}
    once = {name: one_time.get(name, Joules(0.0, 0.0, 0.0)) for name in names}

    def compared(name: str, other: str) -> tuple[Ratio, tuple[Any, str]]:
        ratio = paired_ratio(active[name], active[other])
        corners = [
            _mean_per_image(both[name], end) / _mean_per_image(both[other], end)
            for end in ("low_j", "total_j", "high_j")
        ]
        return ratio, finding(ratio, control, corners)

    results = []
    for name in names:
        ratio, (found, why) = compared(name, "naive")
        results.append(_arm_result(name, both[name], once[name], ratio, found, why))
    comparisons = []
    for other in names:
        if other == "optimized" or "optimized" not in names:
            continue
        ratio, (found, why) = compared("optimized", other)
        epoch_j = records * statistics.fmean(active[other])
        extra_j = once["optimized"].value - once[other].value
        paid = break_even(extra_j, epoch_j, ratio)
        whole = (once["optimized"].value + horizon * epoch_j * ratio.value) / (once[other].value + horizon * epoch_j)
        comparisons.append(Comparison(other, ratio, found, why, paid, whole))
    return WorkloadResult(workload.name, blocks, workload.epochs, control, tuple(results), tuple(comparisons))


def _arm_result(name: str, runs: Sequence[_Run], once: Joules, ratio: Ratio, found: Any, why: str) -> ArmResult:
    images = statistics.fmean(run.images for run in runs)
    wall_s = statistics.fmean(run.energy.duration_s / run.images for run in runs)
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    read = [run.energy.read_bytes / run.images for run in runs if run.energy.read_bytes is not None]
    peaks = [run.energy.peak_rss_bytes for run in runs if run.energy.peak_rss_bytes is not None]
    carbon = [run.energy.carbon_g / run.images * 1000 for run in runs if run.energy.carbon_g is not None]
    whole = functools.reduce(operator.add, (run.energy for run in runs))
    return ArmResult(
        name=name,
        runs=len(runs),
        images_per_run=round(images),
        active_j_per_1000=_per_1000(runs, "active_j", "active_low_j", "active_high_j"),
        total_j_per_1000=_per_1000(runs, "total_j", "low_j", "high_j"),
        cpu_us_per_image=statistics.fmean(run.energy.cpu_s / run.images for run in runs) * 1e6,
        wall_us_per_image=wall_s * 1e6,
        images_per_s=1 / wall_s,
        read_bytes_per_image=statistics.fmean(read) if read else None,
        peak_rss_bytes=max(peaks) if peaks else None,
        carbon_g_per_1000=statistics.fmean(carbon) if carbon else None,
        one_time=once,
        ratio=ratio,
        finding=found,
        why=why,
        accuracy=(statistics.fmean(accuracies), min(accuracies), max(accuracies)) if accuracies else None,
        contamination=whole.contamination_shares,
        flags=whole.flags,
        flagged_runs=sum(bool(run.energy.flags) for run in runs),
    )


def _mean_per_image(runs: Sequence[_Run], attribute: str) -> float:
    return statistics.fmean(getattr(run.energy, attribute) / run.images for run in runs)


def _per_1000(runs: Sequence[_Run], *attributes: str) -> Joules:
    return Joules(*(1000 * _mean_per_image(runs, attribute) for attribute in attributes))


def _active(energy: Energy) -> Joules:
    return Joules(energy.active_j, energy.active_low_j, energy.active_high_j)


# Preparation ----------------------------------------------------------------------------------------------------------


def _check_names(what: str, names: Sequence[str], allowed: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not names or len(set(names)) != len(names) or any(name not in allowed for name in names):
        raise ValueError(f"{what} must be some of {', '.join(allowed)}, each once, got {', '.join(names) or 'none'}")
    for name in needed:
        if name not in names:
            raise ValueError(f"{what} must have {name}, which the others are compared with, got {', '.join(names)}")


@contextmanager
def _out_folder(folder: Path, source: str | os.PathLike[str]) -> Iterator[Path]:
    """Make the folder of an audit; yield its work folder, which is gone at the end."""
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
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (folder / RUNS).unlink(missing_ok=True)
    (folder / REPORT_JSON).unlink(missing_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
