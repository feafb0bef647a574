"""Measure on a sample of a source what each op, each way to cache and feeding online cost, with the code that does it in earnest."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS, Encoding, Format
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.experiment.arms import Arm, ArmError, as_folder, check_chain, list_files, make_arms
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.experiment.workloads import InputOnly
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.planning.pricing import CacheCost, EpochCost, Line
from joulecache.pipelines.planning.results import CacheLayout, StepCost
from joulecache.pipelines.source import SYNTHETIC, Record, Source, Unit, open_source
from joulecache.transforms import chain as chains
from joulecache.transforms.chain import Chain, fixed_size
from joulecache.transforms.images import as_array
from joulecache.transforms.ops import OPS, BatchOp, Op, op_name
from joulecache.transforms.randomness import key_hash, random_words

Tell = Callable[[str, int, int], None]

ONLINE = "tuned"
"""The arm that stands for feeding online: what the guides of tf.data advise."""

_FORMS: tuple[tuple[Format, Encoding, int | None], ...] = (
    ("arrow", "raw", None),
    ("tfrecord", "raw", None),
    ("arrow", "jpeg", 95),
    ("arrow", "jpeg", 85),
    ("arrow", "png", None),
)
_WARM_BUILDS = 3  # of few records, after the first: their median counts
_FEW = 16  # records of the build and the epochs that show what does not grow with the images
_LOOKED_AT = 32  # records on which the ops are timed, and
_LOOKS = 3  # how often at least, and
_LOOK_S = 0.5  # for how long: a cheap op is a small difference
_READ_S = 0.2  # of CPU time: for how long whole units are read, since a row group costs as much for one row as for all
# The sample: what takes some seconds of reading and all ops, up to what no processor's cache holds once it is stored raw. Where it fits
# one, an epoch comes out a fifth too cheap.
_LEAST_CPU_S = 1.5
_SAMPLE_SHARE = 1 / 12  # of the time: what a build of the sample may take, which is built and iterated in every way
_SAMPLE_BYTES = 128 << 20
_FEWEST = 64  # records
_PART = 1 / 4  # of the sample is enough where each image is decoded in every epoch, and for a second variant
_BESIDE_US = 300  # of CPU time: what a build does to a record beside its ops, on 2 CPUs of an AMD EPYC
_CHEAP_SHARE = 0.1  # of the CPU time of all ops: a random op below it is rather done anew in each epoch
_BUILDS_SHARE = 0.6  # of the time, for building; the rest for epochs
_PASS_S = 0.15  # of CPU time in a measured pass, at least
_ENOUGH_S = 3 * _PASS_S  # of CPU time: what each arm is measured for, however short the time
_MOST_ROUNDS = 10
_BAD_SHARE = 0.5  # of the sample's records may be broken: few are no fair share
_DISK_BYTES = 64 << 20


@dataclass(frozen=True)
class Sample:
    """What was measured on `images` of a source's `records`.

    `online` is None where `refused` says why the chain cannot run in TensorFlow; `unmeasured` are ways for which the time did not
    suffice. `ends`: the lowest and highest active joules over the central ones. `train_share`: of the records, those that are trained on.
    `duration_s` is how long it took to measure all this, without drawing photos.
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
    method: str
    duration_s: float


@dataclass(frozen=True)
class Request:
    """What is to be measured. `fresh` None: random ops that are cheap stay behind the cut."""

    source: str
    chain: Chain
    fresh: tuple[str, ...] | None
    batch_size: int
    limit: int | None
    labels: str | os.PathLike[str] | None
    seed: int
    seconds: float

    def listed(self, records: int | None) -> Source:
        """List the source, at most so many of its records."""
        limits = [limit for limit in (records, self.limit) if limit is not None]
        return open_source(self.source, limit=min(limits, default=None), labels=self.labels)


@dataclass(frozen=True)
class _Built:
    """A sample's cache: `spent_j` active joules of its build."""

    folder: Path
    manifest: Manifest
    spent_j: float

    @property
    def records(self) -> int:
        """How many records it holds."""
        return sum(split.records for split in self.manifest.splits.values())

    @property
    def train_records(self) -> int:
        """How many of them are trained on."""
        return self.manifest.splits[SPLITS[0]].records


class _Builder:
    """Builds caches of the first records of a source, each in a folder of its own."""

    def __init__(self, request: Request, read: str | Path, folder: Path, meter: Meter) -> None:
        self._request, self._read, self._folder, self._meter = request, read, folder, meter
        self._count = 0

    def build(self, way: CacheLayout, records: int, variants: int = 1) -> _Built:
        """Build a cache and say what that took."""
        self._count += 1
        place = self._folder / f"cache-{self._count}"
        manifest = precompute(
            self._read,
            place,
            replace(self._request.chain, cut=way.cut),
            variants=variants,
            format=way.format,
            encoding=way.encoding,
            quality=way.quality,
            seed=self._request.seed,
            limit=records,
            labels=None if self._read != self._request.source else self._request.labels,
            max_reject_rate=_BAD_SHARE,
            meter=self._meter,
        ).manifest
        return _Built(place, manifest, manifest.build_energy.active_j)


def measure(request: Request, folder: Path, meter: Meter, tell: Tell) -> Sample:
    """Measure in about `request.seconds` what everything costs that a plan may choose; caches of the sample are left in `folder`.

    Ways are measured by building and iterating them, never op by op alone. Each is priced by a line through two sizes of sample,
    since a build has a cost, and an epoch too, that does not grow with the images. Raises ValueError for a chain whose images
    cannot be batched and for names in `fresh` that it has not, and what `open_source` and `precompute` raise.
    """
    started = time.monotonic()
    chain = request.chain
    if fixed_size(chain.ops) is None:
        raise ValueError(f"the images of {str(chain)!r} vary in size and cannot be batched: add a resize or crop")
    listed = request.listed(None)
    tell("looking at the ops", 0, 1)
    looked = request.listed(min(_LOOKED_AT, listed.records))
    if _is_drawn(request):  # to draw a photo is no reading
        looked = open_source(as_folder(looked, folder, tell))
    steps = _step_costs(chain, looked, looked.units if _is_drawn(request) else listed.units)
    steps = _fresh_steps(steps, chain, request.fresh)
    ways = list(_ways(chain, steps))
    if not ways:
        stay = ", ".join(step.name for step in steps if step.fresh)
        raise ValueError(
            f"nothing of {str(chain)!r} can be cached: before {stay or 'its batch ops'} its images have no fixed size; put a resize "
            "or crop before, or name other ops as fresh"
        )
    images = min(listed.records, _sample_size(steps, ways, request.seconds))
    begun = time.monotonic()
    files, read = _sample_files(request, request.listed(images), folder, tell)
    if _is_drawn(request):
        started += time.monotonic() - begun
    builder = _Builder(request, read, folder, meter)
    few, part = min(_FEW, images), min(images, max(_FEWEST, round(_PART * images)))
    cold, *others = (builder.build(ways[0], few) for _ in range(1 + _WARM_BUILDS))
    warm = sorted(others, key=lambda built: built.spent_j)[_WARM_BUILDS // 2]
    caches: list[tuple[CacheLayout, _Built, float]] = []
    unmeasured = []
    for number, way in enumerate(ways):
        if caches and time.monotonic() - started > _BUILDS_SHARE * request.seconds:
            unmeasured.append(f"{replace(chain, cut=way.cut)}, {way}")
            continue
        tell("building caches of the sample", number, len(ways))
        built = builder.build(way, images if way.encoding == "raw" else part)
        more_j = 0.0
        if _draws(chain, way):
            twice = builder.build(way, part, variants=2)
            once_j = warm.spent_j + _slope(warm, built) * (twice.records - warm.records)
            more_j = max(0.0, twice.spent_j - once_j) / twice.train_records
            shutil.rmtree(twice.folder)
        caches.append((way, built, more_j))
    arms = {"few": _cached_arm(warm, request)}
    arms |= {str(number): _cached_arm(built, request) for number, (_, built, _) in enumerate(caches)}
    largest = caches[0][1]
    refused = None
    try:
        check_chain(chain, ("input",))
        online = [
            make_arms([ONLINE], list_files(files, built.folder, 1), built.folder, request.batch_size)[0]
            for built in (warm, largest)
        ]
        arms |= dict(zip(("few online", "online"), online, strict=True))
    except ArmError as error:
        refused = str(error)
    tell("reading from the disk", 0, 1)
    disk_bytes_per_s = _disk_speed(folder)
    epochs = _Epochs(meter, arms, request.seed)
    epochs.measure(started + request.seconds, tell)

    def cost(few_name: str, name: str) -> EpochCost:
        (few_j, few_s), (many_j, many_s) = epochs.of(few_name), epochs.of(name)
        small, large = arms[few_name].records, arms[name].records
        return EpochCost(Line.through((small, few_j), (large, many_j)), Line.through((small, few_s), (large, many_s)))

    whole = epochs.whole()
    idle_j = (whole.total_j - whole.active_j, whole.low_j - whole.active_low_j, whole.high_j - whole.active_high_j)
    return Sample(
        images=images,
        records=listed.records,
        train_share=largest.train_records / largest.records,
        source_bytes=largest.manifest.source.bytes / largest.records * listed.records,
        steps=steps,
        caches=tuple(
            CacheCost(
                layout=way,
                random=_draws(chain, way),
                build_j=_build_line(cold, warm, built),
                variant_j_per_image=more_j,
                epoch=cost("few", str(number)),
                stored_bytes_per_image=sum(file.bytes for file in built.manifest.files()) / built.records,
            )
            for number, (way, built, more_j) in enumerate(caches)
        ),
        online=None if refused else cost("few online", "online"),
        refused=refused,
        unmeasured=tuple(unmeasured),
        disk_bytes_per_s=disk_bytes_per_s,
        idle_w=Joules(*(max(0.0, energy) / whole.duration_s for energy in idle_j)),
        ends=(whole.active_low_j / whole.active_j, whole.active_high_j / whole.active_j),
        method=whole.active.method,
        duration_s=time.monotonic() - started,
    )


# The ops --------------------------------------------------------------------------------------------------------------


def _step_costs(chain: Chain, source: Source, units: Sequence[Unit]) -> Sequence[StepCost]:
    """Time the reading of `units`, and each op by what the chain costs up to it beyond what it costs up to the one before."""
    records = [record for unit in source.units for record in _readable(unit)]
    read_us = _read_us(units)
    on_images = tuple(op for op in chain.ops if not isinstance(op, BatchOp))
    hashes = [key_hash(record.key) for record in records]
    drawn = random_words(on_images, 0, 0, hashes, 0)
    usable = [pair for pair in zip(records, drawn, strict=True) if _runs(on_images, *pair)]
    if not usable:
        raise ValueError(f"no record of {len(records)} in the sample runs through {str(chain)!r}: look at the images")

    def images_after(count: int) -> list[Any]:
        return [chains.run(on_images[:count], record.data, words) for record, words in usable]

    after = [functools.partial(images_after, count + 1) for count in range(len(on_images))]
    spent_us = _increments(_medians(after), len(usable))
    sizes = [statistics.fmean(as_array(image).nbytes for image in work()) for work in after]
    on_batches = chain.ops[len(on_images) :]
    if on_batches:
        batch = np.stack([as_array(image) for image in after[-1]()])
        words = random_words(on_batches, len(on_images), 0, [0], 0)[0]

        def batch_after(count: int) -> Any:
            return chains.apply_batch_ops(on_batches[:count], batch, words)

        late = [functools.partial(batch_after, count + 1) for count in range(len(on_batches))]
        spent_us += _increments(_medians(late), len(usable))
        sizes += [work().nbytes / len(usable) for work in late]
    encoded = statistics.fmean(len(record.data) for record, _ in usable)
    steps = [StepCost("read", False, False, read_us, encoded)]
    for op, cpu_us, size in zip(chain.ops, spent_us, sizes, strict=True):
        steps.append(StepCost(op_name(type(op)), op.random, False, cpu_us, size))
    return steps


def _read_us(units: Sequence[Unit]) -> float:
    """Return the CPU time of reading a record, from as many whole units as take a moment."""
    begun, count = time.process_time(), 0
    for unit in units:
        count += len(_readable(unit))
        if time.process_time() - begun > _READ_S:
            break
    return (time.process_time() - begun) / max(1, count) * 1e6


def _readable(unit: Unit) -> list[Record]:
    try:
        return [record for record in unit.read() if record.problem is None]
    except OSError:
        return []


def _runs(ops: Sequence[Op], record: Record, words: Sequence[int]) -> bool:
    try:
        chains.run(ops, record.data, words)
    except ValueError:  # a broken image, or one that an op cannot take
        return False
    return True


def _medians(works: Sequence[Callable[[], object]]) -> list[float]:
    """Return the CPU seconds of each function: the median of some rounds, in which all take their turn."""
    spent: list[list[float]] = [[] for _ in works]
    while len(spent[0]) < _LOOKS or sum(map(sum, spent)) < _LOOK_S:
        for seconds, work in zip(spent, works, strict=True):
            begun = time.process_time()
            work()
            seconds.append(time.process_time() - begun)
    return [statistics.median(seconds) for seconds in spent]


def _increments(sums_s: Sequence[float], images: int) -> list[float]:
    """Return what each sum adds to the one before, in us per image; noise that makes one negative counts as nothing."""
    return [max(0.0, b - a) / images * 1e6 for a, b in itertools.pairwise([0.0, *sums_s])]


def _fresh_steps(steps: Sequence[StepCost], chain: Chain, fresh: Sequence[str] | None) -> tuple[StepCost, ...]:
    """Mark the random ops that stay behind the cut: those named, or where None are, those that are cheap.

    None is cheap before the images have one size: nothing could be cached then.
    """
    if fresh is not None:
        names = [step.name for step in steps[2:]]  # what can be named: not reading, nor decode
        for name in fresh:
            if name not in names:
                raise ValueError(
                    f"fresh op {name!r} is none behind decode in the chain: allowed are {', '.join(names)}"
                )
        return tuple(replace(step, fresh=step.name in fresh) for step in steps)
    sized = next(cut for cut in range(1, len(chain.ops) + 1) if fixed_size(chain.ops[:cut]))
    cheap_us = _CHEAP_SHARE * sum(step.cpu_us_per_image for step in steps)
    return tuple(
        replace(step, fresh=step.random and step.cpu_us_per_image < cheap_us and place > sized)
        for place, step in enumerate(steps)
    )


def _sample_size(steps: Sequence[StepCost], ways: Sequence[CacheLayout], seconds: float) -> int:
    """Return how many records are enough for figures that hold for many, and few enough for the time."""
    per_image_s = (_BESIDE_US + sum(step.cpu_us_per_image for step in steps)) / 1e6
    stored_bytes = min(steps[way.cut].bytes_per_image for way in ways)
    wanted = _SAMPLE_BYTES / stored_bytes
    return max(_FEWEST, round(min(max(wanted, _LEAST_CPU_S / per_image_s), _SAMPLE_SHARE * seconds / per_image_s)))


# The ways to cache ----------------------------------------------------------------------------------------------------


def _ways(chain: Chain, steps: Sequence[StepCost]) -> Iterator[CacheLayout]:
    """Yield the ways to cache before the first op that stays fresh: the later the cut, and the simpler the form, the sooner."""
    pinned = next((place for place, step in enumerate(steps[1:]) if step.fresh), len(chain.ops))
    latest = next((place for place, op in enumerate(chain.ops[:pinned]) if isinstance(op, BatchOp)), pinned)
    for form in _FORMS:
        for cut in range(latest, 0, -1):
            if fixed_size(chain.ops[:cut]):  # else the images cannot be batched
                yield CacheLayout(cut, *form)


def _draws(chain: Chain, way: CacheLayout) -> bool:
    return any(op.random for op in chain.ops[: way.cut])


def _sample_files(request: Request, listed: Source, folder: Path, tell: Tell) -> tuple[Path, str | Path]:
    """Return the folder that holds the sample as files, and what its builds read: the source as it is, but for photos to be drawn."""
    files = as_folder(listed, folder, tell)
    return files, files if _is_drawn(request) else request.source


def _is_drawn(request: Request) -> bool:
    return request.source.startswith(SYNTHETIC)


def _build_line(cold: _Built, warm: _Built, built: _Built) -> Line:
    """Return what a build costs by the number of records: the first of a process costs most, and that is fixed."""
    slope = _slope(warm, built)
    return Line(max(0.0, cold.spent_j - slope * warm.records), slope)


def _slope(warm: _Built, built: _Built) -> float:
    """Return what a record costs, beyond what a build of few does."""
    more = built.records - warm.records
    return max(0.0, built.spent_j - warm.spent_j) / more if more > 0 else 0.0


# The epochs -----------------------------------------------------------------------------------------------------------


@dataclass
class _Epochs:
    """Iterates over arms in rounds, in which all take their turn in random order."""

    meter: Meter
    arms: dict[str, Arm]
    seed: int
    energies: dict[str, list[Energy]] = field(init=False)

    def measure(self, until: float, tell: Tell) -> None:
        """Measure until that moment, each arm for a moment at least: one whose epoch is long takes part in fewer rounds."""
        self.energies = {name: [] for name in self.arms}
        epochs, lasts_s, spent_s = {}, {}, dict.fromkeys(self.arms, 0.0)
        for number, (name, arm) in enumerate(self.arms.items()):
            tell("warming up", number, len(self.arms))
            one = self._pass(arm, 1)  # not measured: the first epoch maps files, and makes what later ones use again
            if one.cpu_s < _PASS_S:
                one = self._pass(arm, 1)
            epochs[name] = max(1, math.ceil(_PASS_S / max(one.cpu_s, 1e-6)))
            lasts_s[name] = epochs[name] * one.duration_s
        for rounds in range(_MOST_ROUNDS):
            tell("measuring epochs", rounds, _MOST_ROUNDS)
            for name in random.Random(f"{self.seed} {rounds}").sample(list(self.arms), len(self.arms)):
                if spent_s[name] < _ENOUGH_S or time.monotonic() + lasts_s[name] < until:
                    mean = self._pass(self.arms[name], epochs[name])
                    self.energies[name].append(mean)
                    spent_s[name] += epochs[name] * mean.cpu_s

    def _pass(self, arm: Arm, epochs: int) -> Energy:
        """Return the mean energy of an epoch: each has a window, as in an audit."""
        return functools.reduce(operator.add, (self._epoch(arm) for _ in range(epochs))) / epochs

    def _epoch(self, arm: Arm) -> Energy:
        work = InputOnly()
        with self.meter.window("sample") as window:
            work.run(arm, 0)
        return window.energy

    def of(self, name: str) -> tuple[float, float]:
        """Return the active joules and the seconds of an epoch: medians of the rounds."""
        energies = self.energies[name]
        joules, seconds = [one.active_j for one in energies], [one.duration_s for one in energies]
        return statistics.median(joules), statistics.median(seconds)

    def whole(self) -> Energy:
        """Return the energy of all passes, an epoch each."""
        return functools.reduce(operator.add, itertools.chain.from_iterable(self.energies.values()))


def _cached_arm(built: _Built, request: Request) -> Arm:
    own = {op_name(type(op)): type(op) for op in request.chain.ops if type(op) not in OPS.values()}
    dataset = load(built.folder, SPLITS[0], request.batch_size, ops=own)
    return Arm("optimized", built.train_records, dataset, lambda epoch: None)


def _disk_speed(folder: Path) -> float:
    """Return the bytes per second that the disk of a folder gives, of a file that memory does not hold any more."""
    path = folder / "disk"
    path.write_bytes(os.urandom(_DISK_BYTES))
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.monotonic()
        while os.read(handle, 1 << 20):
            pass
        return _DISK_BYTES / (time.monotonic() - begun)
    finally:
        os.close(handle)
        path.unlink()
