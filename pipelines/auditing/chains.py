"""The audit of one chain: the same files in several arms, with the cost of each before its first epoch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from joulecache.pipelines.auditing.config import AuditConfig
from joulecache.pipelines.auditing.examples import draw_examples
from joulecache.pipelines.auditing.folder import AuditFolder, replace_json
from joulecache.pipelines.auditing.results import Audit, BuildFacts, DrawReuse, InPython, RecordCounts
from joulecache.pipelines.auditing.stages import measure_stages
from joulecache.pipelines.auditing.variants import Diverged, draw_reuse, measure_variants
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.notes import log_repeated_draws
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.compressing.compression import PreparedCompression, prepare_compression
from joulecache.pipelines.compressing.feasibility import check_conversion, check_recipe
from joulecache.pipelines.compressing.results import Compression, read_compression
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.checks import check_path
from joulecache.pipelines.core.progress import Progress
from joulecache.pipelines.core.user_code import source_sha256
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.energy.storage import storage_energy
from joulecache.pipelines.experiment.arms import Arm, check_chain, image_shape, make_arms, refused_arms
from joulecache.pipelines.experiment.blocks import Bench, active_joules
from joulecache.pipelines.experiment.failures import ArmError, naming_failures
from joulecache.pipelines.experiment.files import list_files, unpack
from joulecache.pipelines.experiment.names import (
    ACCELERATOR,
    CACHED,
    FINETUNE,
    INFER,
    INPUT,
    REFERENCE,
    TFRECORD,
    TRAIN,
)
from joulecache.pipelines.experiment.provenance import conditions, run_provenance
from joulecache.pipelines.experiment.results import WorkloadResult
from joulecache.pipelines.experiment.summary import CachedArm
from joulecache.pipelines.experiment.tfrecord_files import tfrecord_config
from joulecache.pipelines.experiment.workloads import (
    Accelerator,
    Infer,
    InputOnly,
    Training,
    finetune_pruned,
    train_from_scratch,
    train_user_model,
)
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models.classifiers import build_model, check_model, feature_to_classify, is_model_file
from joulecache.pipelines.models.heads import check_head, log_objective
from joulecache.pipelines.models.metrics import ACCURACY
from joulecache.pipelines.models.user_models import MakeModel, TrainingData, UserModel, batch_spec, make_user_model
from joulecache.pipelines.source import Source, log_notes, open_source, source_paths
from joulecache.pipelines.source.features import is_labelled
from joulecache.transforms.chain import Chain, as_chain, op_text
from joulecache.transforms.custom import custom_ops
from joulecache.transforms.ops import Normalize

_DRAWN_EPOCHS = 16  # epochs of random parameters that the online arms cycle through
_MAX_DIFFERENCE = 1.0  # mean difference in levels above which two arms do not show the same images
_NOT_IN_SETTINGS = (
    "workloads",
    "pairs",
    "epochs",
    "runs",
    "device_watts",
    "budget",
)  # may change when a stopped audit continues


def audit_chain(
    source: str | os.PathLike[str],
    chain: Chain | str,
    out: str | os.PathLike[str],
    config: AuditConfig,
    *,
    make_model: MakeModel | None = None,
    meter: Meter,
    progress: Progress,
) -> Audit:
    """Audit a chain over any source that `precompute` reads, in the folder `out`; `make_model` makes the model to train.

    Raises:
        ValueError: Arguments contradict each other, the model does not fit, or `out` cannot be written to or holds anything but an
            audit.
        ArmError: An arm cannot run.
        RuntimeError: The model to compress for inference diverged in training.
    """
    check_path("source", source)
    parsed = as_chain(chain)
    check_chain(parsed, config.workloads, own_model=make_model is not None)
    config.check_draws(parsed)
    _build_config(parsed, config, config.variants[0])
    shape = image_shape(parsed)
    folder = AuditFolder(Path(check_path("out", out)))
    folder.check(source_paths(source))
    if config.trains and make_model is None:
        check_model(config.model, shape)
    listed = open_source(source, config)
    folder.check(listed.linked)
    model: keras.Model | UserModel | None = None
    if config.trains:
        model = _make_model(config, make_model, parsed, shape, listed)
    log_notes(listed)
    log_repeated_draws(parsed, config.variants[0])
    arguments = {name: value for name, value in codec.to_json(config).items() if name not in _NOT_IN_SETTINGS}
    settings = {"source": os.fspath(source), "chain": str(parsed), **arguments, **conditions(meter)}
    if make_model is not None:
        settings["model_sha256"] = source_sha256(make_model)
    if custom_ops(parsed.ops):
        settings["ops_sha256"] = {name: source_sha256(op) for name, op in custom_ops(parsed.ops).items()}
    with folder.work(settings) as work:
        return _ChainAudit(source, parsed, listed, model, config, folder, work, meter, progress).run()


def _build_config(chain: Chain, config: AuditConfig, variants: int) -> BuildConfig:
    return BuildConfig(chain=chain, variants=variants, seed=config.seed)


def _make_model(
    config: AuditConfig, make_model: MakeModel | None, chain: Chain, shape: tuple[int, int, int], listed: Source
) -> keras.Model | UserModel:
    """Make the model to train; raise ValueError if it does not fit the data, or cannot be compressed as the workloads need."""
    compressed = [name for name in (FINETUNE, INFER) if name in config.workloads]
    if make_model is not None:
        if compressed:
            raise ValueError(
                f"the workload {compressed[0]} compresses a classifier by name or from a file, got {config.model}: leave it out"
            )
        keras.utils.set_random_seed(config.seed)
        dtype = tf.float32 if chain.is_float else tf.uint8
        return make_user_model(make_model, TrainingData(batch_spec(shape, dtype, listed.features), listed.features))
    feature = feature_to_classify(listed.features, config.model, listed.location)
    network = build_model(config.model, shape, len(feature.names))
    check_head(network, feature, listed.location)
    if is_model_file(config.model):
        log_objective(network, feature)
    if compressed:
        check_recipe(config.recipe, network)
        if is_model_file(config.model):  # the named ones can be converted
            check_conversion(config.recipe, network)
    return network


class _ChainAudit:
    """An audit in progress: the cache, the arms, and the measurements so far."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        chain: Chain,
        listed: Source,
        model: keras.Model | UserModel | None,
        config: AuditConfig,
        folder: AuditFolder,
        work: Path,
        meter: Meter,
        progress: Progress,
    ) -> None:
        """Unpack the source, build the cache, and make the arms."""
        self.config, self.folder, self.work, self.meter, self.progress = config, folder, work, meter, progress
        self.source, self.chain, self.listed, self.model = source, chain, listed, model
        self.multi_label = not is_labelled(listed.features)
        self.labels = {"multi_label": self.multi_label, "soft_labels": chain.mixes and not self.multi_label}
        self.unpacked = unpack(listed, work, progress)
        self.cache = self.build_cache(config.variants[0])
        manifest = self.cache.manifest
        if replace_json(work / "cache.json", sorted(file.name for file in manifest.files())):
            folder.forget()
        self.files = list_files(
            self.unpacked.folder, self.cache, _DRAWN_EPOCHS, self.unpacked.moving, custom_ops(self.chain.ops)
        )
        self.tfrecord = self.build_tfrecord() if TFRECORD in config.arms else None
        self.left_out = refused_arms(config.arms, self.files, self.cache, work)
        self.arms = self.make_arms("shuffled")
        self.by_name = {arm.name: arm for arm in self.arms}
        self.pixel_difference = _pixel_differences(self.make_arms("in-order", shuffle=False), _level(chain))
        self.held_out = manifest.splits["val"].records
        self.val_data = self.load("val") if self.held_out else None
        if INFER in config.workloads and self.val_data is None:
            raise ValueError("the workload infer needs held-out records to measure its model on: use more images")
        self.compression = self.prepare_compression()
        self.build_energy = manifest.build_energy
        cached = CachedArm(CACHED, manifest.splits["train"].records, config.epochs, config.runs)
        one_time = {CACHED: active_joules(self.build_energy)}
        if self.tfrecord is not None:
            one_time[TFRECORD] = active_joules(self.tfrecord.manifest.build_energy)
        self.bench = Bench(folder.open_log(), meter, config.seed, REFERENCE, progress, cached, one_time)
        self.results: dict[str, WorkloadResult] = {}

    def build_cache(self, variants: int) -> Cache:
        """Build the cache with a number of variants; one that a stopped audit built is up to date, and reused."""
        self.progress("building the cache" if variants == 1 else f"building the cache of {variants} variants", 0, 1)
        folder = self.work / f"cache-{variants}"
        # A build reads the source itself, but drawing synthetic photos must not be charged to it.
        build_cache(self.unpacked.source, folder, _build_config(self.chain, self.config, variants), self.meter)
        return open_cache(folder)

    def build_tfrecord(self) -> Cache:
        """Build what the arm `tfrecord` reads; files that a stopped audit built are up to date, and reused."""
        self.progress("building the TFRecord files", 0, 1)
        folder = self.work / TFRECORD
        config = _build_config(self.chain, self.config, self.config.variants[0])
        build_cache(self.unpacked.source, folder, tfrecord_config(config, self.cache), self.meter)
        return open_cache(folder)

    def make_arms(self, folder: str, *, shuffle: bool = True) -> list[Arm]:
        """Make the arms that this machine can run; they keep their files in a folder of this name, emptied first."""
        files = self.work / folder
        # a file that a killed audit left would be taken for another process's, or for one that is filled
        shutil.rmtree(files, ignore_errors=True)
        names = [name for name in self.config.arms if name not in self.left_out]
        return make_arms(
            *(names, self.files, self.cache, self.config.batch_size),
            shuffle=shuffle,
            folder=files,
            tfrecord=self.tfrecord,
        )

    def load(self, split: str) -> tf.data.Dataset:
        """Load a split of the cache."""
        return load(self.cache, split, self.config.batch_size, ops=custom_ops(self.chain.ops))

    def prepare_compression(self) -> PreparedCompression | None:
        """Check the compression of the model for inference; None if none is needed, since a stopped audit left it."""
        if INFER not in self.config.workloads or self.folder.compression.exists():
            return None
        return prepare_compression(
            self.model,
            self.load("train"),  # its epochs are not those of the arm
            self.val_data,
            self.config.recipe,
            out=self.folder.models,
            seed=self.config.seed,
            meter=self.meter,
            progress=self.progress,
            multi_label=self.multi_label,
        )

    def run(self) -> Audit:
        """Measure the workloads, the reuse of draws and the stages; return the audit."""
        why = self.config.why_unmeasured(self.held_out)
        reuse = draw_reuse(self.config, why=why) if self.chain.cached_random else None
        compression: Compression | None = None
        training: Training | None = None
        self.measure_input()
        self.measure_accelerator()
        if self.model is not None:
            training = self.make_training(self.model)
            self.measure_training(training)
            if reuse is not None and why is None:
                reuse = self.measure_reuse(training)
            compression = self.measure_compressed(training)
        return self.finish(training, reuse, compression)

    def make_training(self, model: keras.Model | UserModel) -> Training:
        """Make the training of the model."""
        if isinstance(model, UserModel):
            return train_user_model(model, self.val_data, self.config.train_epochs)
        return train_from_scratch(model, self.val_data, self.config.train_epochs, **self.labels)

    def measure_reuse(self, training: Training) -> DrawReuse:
        """Measure how reused draws affect the training."""
        try:
            points = measure_variants(self.bench, training, self.build_cache, self.config, custom_ops(self.chain.ops))
        except Diverged as error:
            return draw_reuse(self.config, why=str(error))
        return draw_reuse(self.config, points, metric=training.metric)

    def measure_input(self) -> None:
        """Measure the input alone."""
        if INPUT in self.config.workloads:
            workload = InputOnly(shortest_s=self.config.budget.shortest_run_s)
            self.results[INPUT] = self.bench.measure(workload, self.arms, self.config.pairs)

    def measure_accelerator(self) -> None:
        """Measure the feeding of a simulated device."""
        if ACCELERATOR in self.config.workloads:
            workload = Accelerator(self.config.device, shortest_s=self.config.budget.shortest_run_s)
            self.results[ACCELERATOR] = self.bench.measure(workload, self.arms, self.config.pairs)

    def measure_training(self, training: Training) -> None:
        """Measure the training."""
        if TRAIN in self.config.workloads:
            self.results[TRAIN] = self.bench.measure(training, self.arms, self.config.pairs)

    def measure_compressed(self, training: Training) -> Compression | None:
        """Measure fine-tuning and inference of the compressed model, which a stopped audit may have left."""
        config = self.config
        if FINETUNE in config.workloads or self.compression is not None:
            self.progress("training a model to compress", 0, 1)
            training.prepare(0)
            training.run(self.by_name[CACHED], 0)  # not measured
        if FINETUNE in config.workloads:
            finetuning = finetune_pruned(
                training.network, config.prune, self.val_data, config.train_epochs, **self.labels
            )
            self.results[FINETUNE] = self.bench.measure(finetuning, self.arms, config.pairs)
        if INFER not in config.workloads:
            return None
        if self.compression is not None:
            try:
                self.compression.run()
            except ValueError as error:  # the training diverged
                raise RuntimeError(
                    f"no model for the workload infer: {error}; what was measured is kept: repeat the command without this workload"
                ) from error
        compression = read_compression(self.folder.compression)
        workload = Infer(self.folder.models / compression.model_files[-1].file_name)
        self.results[INFER] = self.bench.measure(workload, self.arms, config.pairs)
        return compression

    def finish(self, training: Training | None, reuse: DrawReuse | None, compression: Compression | None) -> Audit:
        """Measure the stages, and return the audit."""
        config, manifest = self.config, self.cache.manifest
        whole = self.results.get(TRAIN, self.results.get(INPUT))
        stages = None
        if whole is not None and config.budget.stage_run_s is not None:
            naive = self.by_name[REFERENCE]
            stages = measure_stages(self.bench, naive, self.files, self.cache, config, whole, training)
        energy = self.bench.log.energy()
        return Audit(
            source=str(self.source),
            chain=str(self.chain),
            pipelines=(),
            reference=REFERENCE,
            cached=CACHED,
            records=RecordCounts(
                train=manifest.splits["train"].records,
                val=self.held_out,
                rejected=manifest.rejected.records,
                skipped=sum(self.listed.skipped.values()),
                chance=self.chance(),
            ),
            class_names=manifest.class_names,
            horizon_epochs=config.epochs,
            pixel_difference=self.pixel_difference,
            build=self.build_facts(),
            workloads=tuple(self.results.values()),
            left_out=self.left_out,
            compression=compression,
            energy=energy,
            method=energy.method,
            provenance=run_provenance(
                self.meter,
                seed=config.seed,
                batch_size=config.batch_size,
                model=config.model,
                train_epochs=config.train_epochs,
            ),
            reuse=reuse,
            stages=stages,
            examples=draw_examples(self.files, self.unpacked.folder, self.cache),
            targets=None
            if is_labelled(manifest.features)
            else {name: each.kind for name, each in manifest.features.items()},
            trained_metric=None if training is None or training.metric == ACCURACY else training.metric,
            in_python=self.in_python(),
        )

    def in_python(self) -> InPython | None:
        """Return what the online arms run in Python."""
        decoded = self.files.decoded_in_python
        files = 0 if decoded is None else int(decoded.sum())
        ops = tuple(op_text(self.chain.ops[number]) for number in sorted(self.files.ops.in_python))
        return InPython(ops, files) if ops or files else None

    def chance(self) -> float | None:
        """Return the accuracy of always answering the most frequent class."""
        counts = self.cache.manifest.splits["val"].class_counts
        return max(counts) / self.held_out if self.held_out and counts else None

    def build_facts(self) -> BuildFacts:
        """Return the energy and the sizes of the build."""
        manifest = self.cache.manifest
        cache_bytes = sum(file.bytes for file in manifest.files())
        return BuildFacts(
            energy=self.build_energy,
            source_bytes=manifest.source.bytes,
            cache_bytes=cache_bytes,
            storage_per_day=storage_energy(cache_bytes, 1, self.meter.provenance().pue),
            format=manifest.format,
            encoding=manifest.encoding,
            variants=manifest.variants,
            unmetered_shards=len((manifest.energy and manifest.energy.unmetered_shards) or ()) or None,
        )


def _level(chain: Chain) -> float:
    """Return the minimum size of one uint8 level in the images of a chain."""
    level = 1 / 255 if chain.is_float else 1.0
    for op in chain.ops:
        if isinstance(op, Normalize):
            level /= max(op.std) if isinstance(op.std, tuple) else op.std
    return level


def _pixel_differences(arms: Sequence[Arm], level: float) -> dict[str, float]:
    """Return each arm's mean absolute difference from the cached one over the first batch of epoch 0, in levels.

    Raises ArmError if an arm yields other images or targets: its energy would not compare.
    """
    first = {}
    for arm in arms:
        arm.start_epoch(0)
        with naming_failures(arm.name):
            first[arm.name] = [part.numpy() for part in tf.nest.flatten(next(iter(arm.dataset)))]
    images, *targets = first[CACHED]
    differences = {}
    for name, (others, *other_targets) in first.items():
        difference = float(np.abs(images.astype(np.float64) - others).mean()) / level
        if difference > _MAX_DIFFERENCE:
            raise ArmError(
                f"{name} and {CACHED} differ by {difference:.2f} levels on average: they do not run the same chain"
            )
        if not all(map(np.array_equal, targets, other_targets)):
            raise ArmError(f"{name} and {CACHED} yield different targets: they do not read the same source")
        differences[name] = difference
    return differences
