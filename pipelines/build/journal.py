"""What a build keeps until its manifest is written: finished shards, and the energy that went into them."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa

from joulecache.pipelines.build.recipe import BuildError
from joulecache.pipelines.build.shard import WORK, ShardResult, ShardSpec, index_part, read_result
from joulecache.pipelines.manifest import INDEX_SCHEMA
from joulecache.pipelines.meter import Energy, Meter
from joulecache.pipelines.shards import parse_shard_name

ENERGY_LOG = "energy.jsonl"


def finished_result(folder: Path, spec: ShardSpec) -> ShardResult | None:
    """Return the result of a shard that an earlier run of the same build finished, None where it must be built.

    The same build: the same recipe, units and number of shards. Every byte of the shard's files is checked.
    """
    try:
        result = read_result(folder / WORK, spec.shard)
        if result.spec != spec.digest or result.error or result.index != index_part(spec.shard):
            return None
        files = [file for split in result.files.values() for file in split]
        if any(parse_shard_name(file.name) is None for file in files):
            return None
        for file in files:
            with open(folder / file.name, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                    return None
        with pa.ipc.open_file(pa.memory_map(str(folder / WORK / result.index))) as reader:
            rows = reader.read_all()
        rows.validate(full=True)
    except (BuildError, OSError, ValueError, LookupError, TypeError):  # killed while it was written
        return None
    records = sum(split[0].records for split in result.files.values())
    return result if rows.schema == INDEX_SCHEMA and rows.num_rows == records else None


class EnergyLog:
    """The energy of a build in pieces, kept in a file: a build that is killed loses only what came after its last piece."""

    def __init__(self, meter: Meter, path: Path) -> None:
        self._meter, self._path = meter, path
        self._pieces = _read_pieces(path)
        self._open()

    def _open(self) -> None:
        self._stack = ExitStack()
        self._window = self._stack.enter_context(self._meter.window("build"))

    def cut(self) -> float:
        """End a piece and begin the next; return the joules so far."""
        self.close()
        self._open()
        return sum(piece.total_j for piece in self._pieces)

    def close(self) -> Energy:
        """End the last piece and return the sum of all, those of earlier runs too."""
        self._stack.close()
        self._pieces.append(self._window.energy)
        # On a full disk the build itself fails, and says so.
        with suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(self._window.energy.to_json()) + "\n")
        return functools.reduce(operator.add, self._pieces)


def _read_pieces(path: Path) -> list[Energy]:
    pieces: list[Energy] = []
    with suppress(OSError, ValueError):  # none yet, or the last line was cut short
        for line in path.read_text("utf-8").splitlines():
            pieces.append(Energy.from_json(json.loads(line)))
    return pieces
