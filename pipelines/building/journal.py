"""What a build keeps until its manifest is written: finished shards, and the energy that went into them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.shard import ShardResult, ShardSpec, index_part, read_result
from joulecache.pipelines.cache.manifest import INDEX_SCHEMA
from joulecache.pipelines.cache.shards import DataFile, parse_shard_name
from joulecache.pipelines.energy import Energy, Meter

ENERGY_LOG = "energy.log"


def finished_result(work: Path, spec: ShardSpec, is_whole: Callable[[DataFile], bool]) -> ShardResult | None:
    """Return the result of a shard that an earlier run of the same build finished, None where it must be built.

    The same build: the same recipe, units and number of shards. `is_whole` says whether a file of the shard has its bytes.
    """
    try:
        result = read_result(work, spec.shard)
        if result.spec != spec.digest or result.error or result.index != index_part(spec.shard):
            return None
        files = [file for split in result.files.values() for file in split]
        if any(parse_shard_name(file.name) is None for file in files):
            return None
        if not all(map(is_whole, files)):
            return None
        with pa.ipc.open_file(pa.memory_map(str(work / result.index))) as reader:
            rows = reader.read_all()
        rows.validate(full=True)
    except (BuildError, OSError, ValueError, LookupError, TypeError):  # killed while it was written
        return None
    records = sum(split[0].records for split in result.files.values())
    return result if rows.schema == INDEX_SCHEMA and rows.num_rows == records else None


class EnergyLog:
    """The energy of a build so far, kept in a file: a build that is killed loses only what came after its last writing."""

    def __init__(self, meter: Meter, path: Path) -> None:
        self._path = path
        self._earlier: Energy | None = None  # what runs before this one have spent
        with suppress(OSError, ValueError):  # none, or killed while it was written
            self._earlier = Energy.from_json(json.loads(path.read_text("utf-8")))
        self._stack = ExitStack()
        self._window = self._stack.enter_context(meter.window("build"))

    def write(self) -> Energy:
        """Keep and return the energy so far, that of earlier runs too."""
        spent = self._window.so_far()
        if self._earlier is not None:
            spent += self._earlier
        # On a full disk the build itself fails, and says so.
        with suppress(OSError):
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps(spent.to_json()), "utf-8")
            fresh.replace(self._path)
        return spent

    def close(self) -> Energy:
        """End the build's window, and write once more."""
        self._stack.close()
        return self.write()
