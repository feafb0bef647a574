"""Measure what every cache layout and feeding online cost, by building and loading caches of a sample of the source."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.core.progress import Progress
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.arms import Arm, image_shape, make_arms
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.experiment.files import Unpacked, list_files, unpack
from joulecache.pipelines.experiment.names import CACHED
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.planning.config import PlanConfig
from joulecache.pipelines.planning.epochs import EpochRounds
from joulecache.pipelines.planning.pricing import CacheCost, EpochCost, Line
from joulecache.pipelines.planning.results import CacheLayout, StepCost
from joulecache.pipelines.planning.step_costs import check_fresh, mark_fresh, measure_steps
from joulecache.pipelines.source import SYNTHETIC, Source, log_notes, open_source
from joulecache.transforms.chain import Chain, fixed_size, output_channels
from joulecache.transforms.custom import custom_ops
from joulecache.transforms.ops import BatchOp

ONLINE = "tuned"
"""The arm that represents feeding online, as TensorFlow's guide recommends it."""

_FORMS: tuple[tuple[Format, Encoding, int | None], ...] = (
    ("arrow", "raw", None),
    ("tfrecord", "raw", None),
    ("arrow", "jpeg", 95),
    ("arrow", "jpeg", 85),
    ("arrow", "png", None),
)
_FEW = 16  # records in the small builds and epochs that reveal the fixed costs
_TIMED = 32  # records on which the ops are timed
# The sample: as far as time allows, images that take at least `_MIN_CPU_S` to read and transform, and `_SAMPLE_BYTES` in every
# layout. If they fit in a processor cache, an epoch would seem a fifth too cheap.
_MIN_CPU_S = 1.5
_SAMPLE_SHARE = 1 / 12  # share of the time for one build of the sample
_SAMPLE_BYTES = 128 << 20
_MIN_RECORDS = 64
_PART = 1 / 4  # share of the sample that is enough for encoded images, and for a second variant
_BUILD_US = 300  # CPU time of a build per record without its ops, on 2 CPUs of an AMD EPYC
_BUILDS_SHARE = 0.6  # share of the time for building; the rest is for epochs
_MAX_REJECT_RATE = 0.5  # a small sample may have many broken records by chance


@dataclass(frozen=True)
class Sample:
    """Measurements of a sample of `images` from a source of `records`.

    `online` is None if the chain cannot run in TensorFlow; `refused` is the reason. There was no time for the layouts in
    `unmeasured`. `ends` are the lowest and the highest active joules relative to the central ones; `build_error` is the standard
    error of the joules of a build, as a share of them. The duration excludes drawing synthetic photos.
    """

    images: int
    records: int
    train_share: float
    source_bytes: float
    steps: tuple[StepCost, ...]
    caches: tuple[CacheCost, ...]
    online: EpochCost | None
    refused: str | None
    unmeasured: tuple[str, ...]
    disk_bytes_per_s: float
    idle_w: Joules
    ends: tuple[float, float]
    build_error: float
    method: str
    duration_s: float


@dataclass(frozen=True)
class _Built:
    """A cache of the sample, and the active joules of its build."""

    cache: Cache
    build_j: float

    @property
    def records(self) -> int:
        """Records of all splits."""
        return sum(split.records for split in self.cache.manifest.splits.values())

    @property
    def train_records(self) -> int:
        """Records for training."""
        return self.cache.manifest.splits["train"].records

    def more_per_record(self, fewer: _Built) -> float:
        """Return the joules per record beyond a build of fewer records."""
        more = self.records - fewer.records
        return max(0.0, self.build_j - fewer.build_j) / more if more > 0 else 0.0


@dataclass(frozen=True)
class _Candidate:
    """A layout that was built, and the joules per image of each further variant."""

    layout: CacheLayout
    built: _Built
    variant_j_per_image: float


class Sampler:
    """Measures, in about `seconds` of the config, all that a plan chooses between.

    Layouts are measured by building and iterating them, never op by op. Each is priced by a line through two sizes of the sample,
    since both builds and epochs have a fixed cost. Caches of the sample stay in `folder`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        chain: Chain,
        config: PlanConfig,
        folder: Path,
        meter: Meter,
        progress: Progress,
    ) -> None:
        self._source, self._chain, self._config = os.fspath(source), chain, config
        self._folder, self._meter, self._progress = folder, meter, progress
        self._is_synthetic = self._source.startswith(SYNTHETIC)
        self._builds = 0

    def measure(self) -> Sample:
        """Measure; raise ValueError if images vary in size, nothing can be cached, or `fresh` names ops that the chain lacks."""
        config, chain = self._config, self._chain
        started_s = time.monotonic()
        image_shape(chain)
        check_fresh(chain, config.fresh or ())
        listed = open_source(self._source, replace(config, limit=None))
        log_notes(listed)
        steps = self._measure_steps(listed)
        layouts = self._layouts(steps)
        images = min(config.limit or listed.records, listed.records, sample_size(steps, layouts, config.seconds))
        unpacked_s = time.monotonic()
        files = unpack(self._list(images), self._folder, self._progress)
        if self._is_synthetic:
            started_s += time.monotonic() - unpacked_s
        self._drawn = files.source if self._is_synthetic else None
        cold, warm, build_error = self._build_few(layouts[0], images)
        until_s = started_s + _BUILDS_SHARE * config.seconds
        candidates, unmeasured = self._build_candidates(layouts, images, warm, until_s)
        arms = {"few": self._cached_arm(warm)}
        arms |= {str(number): self._cached_arm(each.built) for number, each in enumerate(candidates)}
        largest = candidates[0].built
        online, refused = self._online_arms(files, {"few online": warm, "online": largest})
        self._progress("reading from the disk", 0, 1)
        disk_bytes_per_s = disk_speed(self._folder, config.budget.disk_bytes)
        rounds = EpochRounds(arms | online, self._meter, config.seed, config.budget)
        rounds.measure(started_s + config.seconds, self._progress)
        total = rounds.total()
        idle_j = (total.total_j - total.active_j, total.low_j - total.active_low_j, total.high_j - total.active_high_j)
        return Sample(
            images=images,
            records=listed.records,
            train_share=largest.train_records / largest.records,
            source_bytes=largest.cache.manifest.source.bytes / largest.records * listed.records,
            steps=steps,
            caches=tuple(
                self._cache_cost(each, cold, warm, _epoch_cost(rounds, arms, "few", str(number)))
                for number, each in enumerate(candidates)
            ),
            online=None if refused else _epoch_cost(rounds, online, "few online", "online"),
            refused=refused,
            unmeasured=unmeasured,
            disk_bytes_per_s=disk_bytes_per_s,
            idle_w=Joules(*(max(0.0, energy) / total.duration_s for energy in idle_j)),
            ends=(total.active_low_j / total.active_j, total.active_high_j / total.active_j),
            build_error=rounds.relative_error("few") if build_error is None else build_error,
            method=total.active.method,
            duration_s=time.monotonic() - started_s,
        )

    # The steps of the chain -------------------------------------------------------------------------------------------

    def _list(self, records: int) -> Source:
        """List at most `records` of the source, within the limit of the config."""
        return open_source(self._source, replace(self._config, limit=min(records, self._config.limit or records)))

    def _measure_steps(self, listed: Source) -> tuple[StepCost, ...]:
        self._progress("timing the ops", 0, 1)
        timed = self._list(min(_TIMED, listed.records))
        if self._is_synthetic:  # drawing a photo is not reading
            timed = unpack(timed, self._folder, self._progress).source
        steps = measure_steps(self._chain, timed, timed.units if self._is_synthetic else listed.units)
        return mark_fresh(steps, self._chain, self._config.fresh)

    def _layouts(self, steps: Sequence[StepCost]) -> list[CacheLayout]:
        layouts = list(cache_layouts(self._chain, steps))
        if not layouts:
            fresh = ", ".join(step.name for step in steps if step.fresh)
            raise ValueError(
                f"nothing of {str(self._chain)!r} can be cached: before {fresh or 'its batch ops'} its images have no fixed size; add a "
                "resize or a crop before, or name other ops as fresh"
            )
        return layouts

    # Builds -----------------------------------------------------------------------------------------------------------

    def _build(self, layout: CacheLayout, records: int, variants: int = 1) -> _Built:
        self._builds += 1
        folder = self._folder / f"cache-{self._builds}"
        source = self._list(records) if self._drawn is None else _first(self._drawn, records)
        config = BuildConfig(
            chain=replace(self._chain, cut=layout.cut),
            variants=variants,
            format=layout.format,
            encoding=layout.encoding,
            quality=layout.quality,
            seed=self._config.seed,
            max_reject_rate=_MAX_REJECT_RATE,
        )
        manifest = build_cache(source, folder, config, self._meter).manifest
        return _Built(open_cache(folder), manifest.build_energy.active_j)

    def _build_few(self, layout: CacheLayout, images: int) -> tuple[_Built, _Built, float | None]:
        """Build caches of few records; return the first one, which costs most, and the median of the others with its relative error.

        The error is None if there is only one other build.
        """
        few, warm_builds = min(_FEW, images), self._config.budget.warm_builds
        cold, *others = (self._build(layout, few) for _ in range(1 + warm_builds))
        joules = [built.build_j for built in others]
        error = statistics.stdev(joules) / statistics.fmean(joules) if warm_builds > 1 else None
        return cold, sorted(others, key=lambda built: built.build_j)[warm_builds // 2], error

    def _build_candidates(
        self, layouts: Sequence[CacheLayout], images: int, warm: _Built, until_s: float
    ) -> tuple[list[_Candidate], tuple[str, ...]]:
        """Build the layouts until a time; return them, and those that were left out."""
        part = min(images, max(_MIN_RECORDS, round(_PART * images)))
        candidates: list[_Candidate] = []
        unmeasured = []
        for number, layout in enumerate(layouts):
            if candidates and time.monotonic() > until_s:
                unmeasured.append(f"{replace(self._chain, cut=layout.cut)}, {layout}")
                continue
            self._progress("building caches of the sample", number, len(layouts))
            built = self._build(layout, images if layout.encoding == "raw" else part)
            variant_j = 0.0
            if self._draws(layout):
                twice = self._build(layout, part, variants=2)
                once_j = warm.build_j + built.more_per_record(warm) * (twice.records - warm.records)
                variant_j = max(0.0, twice.build_j - once_j) / twice.train_records
                shutil.rmtree(twice.cache.folder)
            candidates.append(_Candidate(layout, built, variant_j))
        return candidates, tuple(unmeasured)

    def _draws(self, layout: CacheLayout) -> bool:
        return bool(replace(self._chain, cut=layout.cut).cached_random)

    def _cache_cost(self, candidate: _Candidate, cold: _Built, warm: _Built, epoch: EpochCost) -> CacheCost:
        built = candidate.built
        slope = built.more_per_record(warm)
        return CacheCost(
            layout=candidate.layout,
            random=self._draws(candidate.layout),
            # the first build in a process costs more, by a fixed amount
            build_j=Line(max(0.0, cold.build_j - slope * warm.records), slope),
            variant_j_per_image=candidate.variant_j_per_image,
            epoch=epoch,
            stored_bytes_per_image=sum(file.bytes for file in built.cache.manifest.files()) / built.records,
        )

    # Arms -------------------------------------------------------------------------------------------------------------

    def _cached_arm(self, built: _Built) -> Arm:
        dataset = load(built.cache, "train", self._config.batch_size, ops=custom_ops(self._chain.ops))
        return Arm(CACHED, built.train_records, dataset)

    def _online_arms(self, files: Unpacked, caches: dict[str, _Built]) -> tuple[dict[str, Arm], str | None]:
        """Return an online arm over the records of each cache, or why the chain cannot run online."""
        try:
            return {
                name: make_arms(
                    [ONLINE],
                    list_files(files.folder, built.cache, 1, files.moving, custom_ops(self._chain.ops)),
                    built.cache,
                    self._config.batch_size,
                )[0]
                for name, built in caches.items()
            }, None
        except ArmError as error:
            return {}, str(error)


def _first(drawn: Source, records: int) -> Source:
    """Return the first records of a source with one in each unit."""
    units = drawn.units[:records]
    return replace(drawn, units=units, records=len(units))


def _epoch_cost(rounds: EpochRounds, arms: dict[str, Arm], few: str, many: str) -> EpochCost:
    (few_j, few_s), (many_j, many_s) = rounds.of(few), rounds.of(many)
    small, large = arms[few].records, arms[many].records
    return EpochCost(
        Line.through((small, few_j), (large, many_j)),
        Line.through((small, few_s), (large, many_s)),
        rounds.relative_error(many),
    )


def sample_size(steps: Sequence[StepCost], layouts: Sequence[CacheLayout], seconds: float) -> int:
    """Return a number of records that is large enough for figures that scale, and small enough for the time."""
    per_image_s = (_BUILD_US + sum(step.cpu_us_per_image for step in steps)) / 1e6
    stored_bytes = min(steps[layout.cut].bytes_per_image for layout in layouts)
    wanted = _SAMPLE_BYTES / stored_bytes
    return max(_MIN_RECORDS, round(min(max(wanted, _MIN_CPU_S / per_image_s), _SAMPLE_SHARE * seconds / per_image_s)))


def cache_layouts(chain: Chain, steps: Sequence[StepCost]) -> Iterator[CacheLayout]:
    """Yield the layouts that can hold the images, with a cut before the first fresh op: late cuts first, simple forms first."""
    pinned = next((place for place, step in enumerate(steps[1:]) if step.fresh), len(chain.ops))
    latest = next((place for place, op in enumerate(chain.ops[:pinned]) if isinstance(op, BatchOp)), pinned)
    for form in _FORMS:
        for cut in range(latest, 0, -1):
            if form[1] == "jpeg" and output_channels(chain.ops[:cut]) == 4:
                continue
            if fixed_size(chain.ops[:cut]):  # else the images cannot be batched
                yield CacheLayout(cut, *form)


def disk_speed(folder: Path, size: int) -> float:
    """Return the read throughput of a folder's disk, in bytes per second, over a file that is not in memory."""
    path = folder / "disk"
    path.write_bytes(os.urandom(size))
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        started_s = time.monotonic()
        while os.read(handle, 1 << 20):
            pass
        return size / (time.monotonic() - started_s)
    finally:
        os.close(handle)
        path.unlink()
