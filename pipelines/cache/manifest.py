"""The manifest: the file that lists the contents of a cache, written last. Readers ignore files that it does not list."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le, MaxLen

from joulecache.pipelines.cache.data_file import Count, DataFile, Sha256, TargetSummary
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.names import MAX_DRAW, SPLITS, Encoding, Format, is_index, is_rejected, parse_shard_name
from joulecache.pipelines.cache.target_summaries import total
from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.codec import OMITTED, from_json, json_sha256, parse_json, to_json
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.quantities import clipped
from joulecache.pipelines.energy import Energy, Provenance
from joulecache.pipelines.source.feature import MOST_ELEMENTS
from joulecache.pipelines.source.features import LABEL, ClassLabel, Features, MultiLabel, check_columns
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.transforms.chain import Chain, UnknownOpError, fixed_size, output_channels, parse
from joulecache.transforms.ops import Op

MANIFEST = "manifest.json"
FORMAT_VERSION = 3
_LONGEST_MESSAGE = 500  # a malicious manifest can cause long messages

_Text = Annotated[str, MaxLen(1 << 20)]
_Variants = Annotated[int, Ge(1), Le(MAX_DRAW)]
_Draw = Annotated[int, Ge(0), Le(MAX_DRAW)]
_Side = Annotated[int, Ge(1), Le(65535)]
_ChannelValues = Annotated[tuple[float, ...], MaxLen(4)]
_Fraction = Annotated[float, Ge(0), Le(1)] | Annotated[int, Ge(0), Le(1)]  # 0 stays 0: the text is hashed


@dataclass(frozen=True)
class Split:
    """One split of a cache.

    Attributes:
        chain: Text of its chain.
        fingerprint: Fingerprint of its chain, which changes with the version of an op.
        variants: Number of variants.
        records: Number of records.
        image_shape: (H, W, C) of the cached images; H and W are None if encoded images vary in size.
        class_counts: Records of each class.
        mean: Mean pixel value, 0 to 255, of each channel over all variants.
        std: Standard deviation of the pixel values of each channel over all variants.
        files: Shards, ordered by variant, then by shard.
        targets: What the records have, by target; None if the only target is the class.
        first_draw: The draw of the first variant. The others are the draws that follow.
    """

    chain: _Text
    fingerprint: Sha256
    variants: _Variants
    records: Count
    image_shape: tuple[_Side | None, _Side | None, Annotated[int, Ge(1), Le(4)]]
    class_counts: tuple[Count, ...]
    mean: _ChannelValues
    std: _ChannelValues
    files: tuple[DataFile, ...]
    targets: Mapping[str, TargetSummary] | None = field(default=None, metadata=OMITTED)
    first_draw: _Draw = field(default=0, metadata=OMITTED)

    def variant_files(self, variant: int) -> tuple[DataFile, ...]:
        """Return the files of one variant, in the order of the index."""
        count = len(self.files) // self.variants
        return self.files[variant * count : (variant + 1) * count]

    def variant_of(self, epoch: int) -> int:
        """Return the variant that an epoch reads: that of draw `epoch` if the cache has it, else of one that is a multiple of K away."""
        return (epoch - self.first_draw) % self.variants

    def draws_of(self, epoch: int, views: int) -> list[int]:
        """Return the draws that the views of a record have in an epoch; only the first of those that read the same variant."""
        return [*range(epoch * views, epoch * views + min(views, self.variants))]

    def draw_of(self, epoch: int) -> int:
        """Return the draw of the cached ops that an epoch reads."""
        return self.first_draw + self.variant_of(epoch)


@dataclass(frozen=True)
class SourceSummary:
    """What a cache was built from.

    Attributes:
        location: The source as given.
        records: Records that it listed.
        bytes: Encoded size of the images that were read.
        skipped: Number of files that are not images, by suffix.
        columns: Columns of the images and the classes, where they are not the usual ones.
    """

    location: _Text
    records: Count
    bytes: Count
    skipped: Mapping[str, Count]
    columns: tuple[_Text, _Text] | None = None


@dataclass(frozen=True)
class HostEnergy:
    """The energy of one host in all builds that went into a cache, shared between its processes by CPU time. `+` adds two.

    Attributes:
        name: Name of the host; "" for earlier builds, which did not record it.
        launcher: Energy of the processes that launched the builds, without their workers; None if it launched none.
        workers: Energy of the processes that built shards; None if none did.
        worker_processes: Their number.

    Raises:
        ValueError: There is neither part.
    """

    name: _Text
    launcher: Energy | None
    workers: Energy | None
    worker_processes: Count

    def __post_init__(self) -> None:
        if self.launcher is None and self.workers is None:
            raise ValueError(f"host {shown(self.name)} has neither energy of launchers nor of workers")

    @property
    def energy(self) -> Energy:
        """Energy of all processes."""
        parts = [part for part in (self.launcher, self.workers) if part is not None]
        return functools.reduce(operator.add, parts)

    def __add__(self, other: HostEnergy) -> HostEnergy:
        if not isinstance(other, HostEnergy):
            return NotImplemented
        launcher = [part.launcher for part in (self, other) if part.launcher is not None]
        workers = [part.workers for part in (self, other) if part.workers is not None]
        return HostEnergy(
            self.name,
            functools.reduce(operator.add, launcher) if launcher else None,
            functools.reduce(operator.add, workers) if workers else None,
            self.worker_processes + other.worker_processes,
        )


@dataclass(frozen=True)
class BuildEnergy:
    """The energy of all builds that went into a cache. `+` adds that of a later build.

    Attributes:
        energy: Their sum.
        provenance: Provenance of the last one.
        hosts: The parts of `energy` by host; None for earlier builds, which did not record them.
        unmetered_shards: Shards part of whose work is not in `energy`, because their worker ended before it reported.
    """

    energy: Energy
    provenance: Provenance = field(metadata={"alias": "passport"})
    hosts: tuple[HostEnergy, ...] | None = field(default=None, metadata=OMITTED)
    unmetered_shards: tuple[Count, ...] | None = field(default=None, metadata=OMITTED)

    @property
    def parts(self) -> tuple[HostEnergy, ...]:
        """The energy by host."""
        return (HostEnergy("", self.energy, None, 0),) if self.hosts is None else self.hosts

    def __add__(self, later: BuildEnergy) -> BuildEnergy:
        if not isinstance(later, BuildEnergy):
            return NotImplemented
        hosts = {host.name: host for host in self.parts}
        for host in later.parts:
            hosts[host.name] = hosts[host.name] + host if host.name in hosts else host
        unmetered = {*(self.unmetered_shards or ()), *(later.unmetered_shards or ())}
        return BuildEnergy(
            self.energy + later.energy, later.provenance, tuple(hosts.values()), tuple(sorted(unmetered))
        )


@dataclass(frozen=True)
class Manifest(Displayed):
    """What a cache holds.

    Attributes:
        chain: Text of the training chain.
        seed: Seed of all draws.
        variants: Number of variants of the training split.
        format: Format of the shards.
        encoding: Encoding of the images.
        quality: JPEG quality; None for other encodings.
        val_fraction: Share of records held out by a hash of their keys; None if the source has a validation split.
        shards: Number of ranges into which records are partitioned.
        class_names: Name of each class, if it is the only target.
        source: What it was built from.
        splits: The splits by name: all of `SPLITS`, some without records.
        index: The index.
        rejected: The list of rejected records.
        versions: Versions of the libraries that built it.
        energy: Energy of all builds that went into it; None if an earlier version did not measure one of them.
        targets: The feature of each target, by name; None if the only target is the class.
    """

    chain: _Text
    seed: Annotated[int, Ge(0), Le(2**64 - 1)]
    variants: _Variants
    format: Format
    encoding: Encoding
    quality: Annotated[int, Ge(1), Le(100)] | None
    val_fraction: _Fraction | None
    shards: Annotated[int, Ge(1), Le(99_999_999)]
    class_names: tuple[_Text, ...]
    source: SourceSummary
    splits: Mapping[str, Split]
    index: DataFile
    rejected: DataFile
    versions: Mapping[str, _Text]
    energy: BuildEnergy | None
    targets: Features | None = field(default=None, metadata=OMITTED)

    @property
    def features(self) -> Features:
        """The feature of each target, by name."""
        return {LABEL: ClassLabel(self.class_names)} if self.targets is None else self.targets

    @property
    def first_draw(self) -> int:
        """The draw of the first variant of the training split."""
        return self.splits[SPLITS[0]].first_draw

    @property
    def records(self) -> int:
        """Number of cached records, in all splits."""
        return sum(split.records for split in self.splits.values())

    @property
    def build_energy(self) -> Energy:
        """Energy of all builds that went into the cache; CacheError if it was not measured."""
        if self.energy is None:
            raise CacheError("the energy of the build was not measured: rebuild the cache with a meter")
        return self.energy.energy

    def split(self, name: str) -> Split:
        """Return a split; CacheError if it has no records."""
        found = self.splits.get(name)
        if found is None or not found.records:
            filled = ", ".join(key for key, split in self.splits.items() if split.records)
            raise CacheError(f"no records in split {name!r}: this cache has {filled or 'none at all'}")
        return found

    def first_row(self, name: str) -> int:
        """Return the index row at which a split starts."""
        return sum(self.splits[before].records for before in SPLITS[: SPLITS.index(name)])

    def files(self) -> tuple[DataFile, ...]:
        """Return every data file that belongs to the cache."""
        listed = [file for split in self.splits.values() for file in split.files]
        return (*listed, self.index, self.rejected)

    def parsed_chain(self, split: str = "train", ops: Mapping[str, type[Op]] | None = None) -> Chain:
        """Return the chain of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            ops: The custom ops that the chain names, by name.

        Raises:
            CacheError: The split has no records, or an op is missing from `ops`.
        """
        found = self.split(split)
        try:
            chain = parse(found.chain, ops)
            _check_chain(self, split, found, chain)
        except UnknownOpError as error:
            raise CacheError(
                f"{error}; the cache was built with custom ops: pass them as `ops`, or by --ops"
            ) from error
        except ValueError as error:
            raise CacheError(str(error)) from error
        return chain

    def is_outdated(self, split: str, ops: Mapping[str, type[Op]] | None = None) -> bool:
        """Return whether ops of other versions computed the images of a split, so that a new build has other pixels.

        Raises:
            CacheError: As `parsed_chain`.
        """
        return self.parsed_chain(split, ops).fingerprint != self.split(split).fingerprint


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of a manifest's file; raises ValueError for a number that is not finite."""
    body = {"format_version": FORMAT_VERSION, **to_json(manifest)}
    body["digest"] = json_sha256(body)
    return json.dumps(body, indent=1).encode()


def parse_manifest(data: bytes, path: object) -> Manifest:
    """Parse the content of a manifest's file, and check that it is consistent; `path` is for messages.

    Raises:
        CacheError: It is not a manifest of this version, or it is damaged or inconsistent.
    """
    try:
        body = parse_json(data)
        if not isinstance(body, dict):
            raise ValueError(f"not a manifest: expected a JSON object, got {shown(body)}")
        version = body.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"this version of joulecache reads manifests of format version {FORMAT_VERSION}, got {shown(version)}: "
                "upgrade joulecache, or rebuild the cache in another folder"
            )
        digest = body.pop("digest", None)
        manifest = from_json(Manifest, body)
        if digest != json_sha256({"format_version": version, **body}):
            raise ValueError(
                "the manifest does not match its digest: it was edited or damaged, rebuild the cache in another folder"
            )
        _check(manifest)
    except (ValueError, OverflowError) as error:
        raise CacheError(f"{path}: {clipped(str(error), _LONGEST_MESSAGE)}") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise ValueError unless the parts agree with each other."""
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"splits must be {', '.join(SPLITS)}, got {shown([*manifest.splits])}")
    files = manifest.files()
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file is listed twice")
    if not is_index(manifest.index.name) or not is_rejected(manifest.rejected.name):
        raise ValueError(
            f"{shown(manifest.index.name)} and {shown(manifest.rejected.name)} are not names of an index and of rejected records"
        )
    for file in files:
        if not file.name.rpartition(".")[0].endswith(f"-{file.sha256[:8]}"):
            raise ValueError(f"{shown(file.name)} does not carry its SHA-256 {file.sha256[:8]}")
    train, *others = (manifest.splits[name] for name in SPLITS)
    held_out = {(split.variants, split.first_draw) for split in others}
    if (manifest.chain, manifest.variants, {(1, 0)}) != (train.chain, train.variants, held_out):
        raise ValueError("chain and variants differ from those of its splits")
    for name, split in manifest.splits.items():
        # inspecting a cache needs no custom ops: the checks that keep reading safe do not depend on the chain
        with suppress(UnknownOpError):
            _check_chain(manifest, name, split, parse(split.chain))
        _check_targets(manifest, name, split)
        channels = split.image_shape[2]
        if channels not in (1, 3, 4):
            raise ValueError(f"images of {name} must have 1, 3 or 4 channels, got {channels}")
        if {len(split.mean), len(split.std)} != {channels if split.records else 0}:
            raise ValueError(f"mean and std of {name} do not have {channels} channels")
        _check_files(manifest, name, split)


def _check_targets(manifest: Manifest, name: str, split: Split) -> None:
    if manifest.targets is None:
        if len(split.class_counts) != len(manifest.class_names) or sum(split.class_counts) != split.records:
            raise ValueError(f"the class counts of {name} do not add up to its {split.records} records")
        return
    check_columns(manifest.targets)
    if manifest.class_names or split.class_counts or {*(split.targets or {})} != {*manifest.targets}:
        raise ValueError(f"the targets of {name} are not those of the cache")
    for target, summary in (split.targets or {}).items():
        feature = manifest.targets[target]
        names = feature.names if isinstance(feature, ClassLabel | MultiLabel) else None
        if isinstance(feature, Mask | Boxes | Points):
            _check_stored(target, feature, summary, split)
        elif (None if summary.counts is None else len(summary.counts)) != (None if names is None else len(names)):
            raise ValueError(f"the counts of target {shown(target)} of {name} are not those of its classes")


def _check_stored(target: str, feature: Mask | Boxes | Points, summary: TargetSummary, split: Split) -> None:
    """Raise ValueError unless a target that moves with the pixels is in all files of a split, which have what its summary says."""
    stored = [(file.targets or {}).get(target) for file in split.files]
    if None in stored or total(feature, (each.summary for each in stored if each)) != summary:
        raise ValueError(f"the files do not have the target {shown(target)} as its split says")
    of_nothing = total(feature, ())
    if len(summary.counts or ()) != len(of_nothing.counts or summary.counts or ()):
        raise ValueError(f"the counts of target {shown(target)} are not those of its classes")
    if summary.most is not None and summary.most > MOST_ELEMENTS:  # `load` allocates this many
        raise ValueError(
            f"an image has at most {MOST_ELEMENTS:,} boxes, got {summary.most:,} of target {shown(target)}"
        )


def _check_chain(manifest: Manifest, split_name: str, split: Split, chain: Chain) -> None:
    made = (*(fixed_size(chain.prefix) or (None, None)), output_channels(chain.prefix))
    if manifest.encoding == "raw" and split.image_shape != made:
        raise ValueError(
            f"the raw images of {split_name} are {split.image_shape}, its chain {split.chain!r} makes {made}"
        )


def _check_files(manifest: Manifest, split_name: str, split: Split) -> None:
    shards: list[list[tuple[int, int]]] = [[] for _ in range(split.variants)]  # number and records
    last = (-1, -1)
    masks = [name for name, feature in manifest.features.items() if isinstance(feature, Mask)]
    for file in split.files:
        name = parse_shard_name(file.name)
        if (
            name is None
            or name.split != split_name
            or name.format != manifest.format
            or not split.first_draw <= name.draw < split.first_draw + split.variants
            or name.shards != manifest.shards
            or name.shard >= manifest.shards
        ):
            raise ValueError(f"{shown(file.name)} is not a file of split {split_name}")
        if (name.draw, name.shard) <= last:
            raise ValueError(f"the files of {split_name} are out of order")
        last = name.draw, name.shard
        shards[name.draw - split.first_draw].append((name.shard, file.records))
        if manifest.encoding == "raw":
            height, width, channels = split.image_shape
            if height is None or width is None:
                raise ValueError(f"the raw images of {split_name} have no size")
            file.image_layout((height, width, channels))
            for target in masks:
                file.mask_layout(target, (height, width, 1))
    if any(other != shards[0] for other in shards) or sum(records for _, records in shards[0]) != split.records:
        raise ValueError(f"the files of {split_name} do not hold its {split.records} records in every variant")
