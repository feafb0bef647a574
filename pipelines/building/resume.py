"""Find the shards that an interrupted build finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.specs import ShardResult, ShardSpec, read_result
from joulecache.pipelines.building.work_folder import index_name
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.index import index_schema
from joulecache.pipelines.cache.names import parse_shard_name


def finished_result(work: Path, spec: ShardSpec, is_intact: Callable[[DataFile], bool]) -> ShardResult | None:
    """Return the result of a shard if an interrupted build finished it; None if it must be built."""
    try:
        result = read_result(work, spec.shard)
        if result.error or result.index != index_name(spec.shard) or result.spec != spec.digest:
            return None
        if any(parse_shard_name(file.name) is None for file in result.data_files):
            return None
        if not all(map(is_intact, result.data_files)):
            return None
        with pa.ipc.open_file(pa.memory_map(str(work / result.index))) as reader:
            rows = reader.read_all()
        rows.validate(full=True)
    except (BuildError, OSError, ValueError):  # missing or damaged
        return None
    return result if rows.schema == index_schema(spec.features) and rows.num_rows == result.cached_records else None
