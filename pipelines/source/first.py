"""The first record of a source, to look at before anything is built."""

from __future__ import annotations

from pathlib import Path

from joulecache.pipelines.source.config import SourceConfig
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.opening import archive_kind, open_source
from joulecache.pipelines.source.records import Record, SourceError, local_archive, log_notes


def read_first(location: str, config: SourceConfig | None = None) -> tuple[Features, Record]:
    """Read the first record of a source, or an image file.

    Args:
        location: A source, or the path of an image, which is a record without targets and has the name of the file as its key.
        config: How to read the source.

    Returns:
        The features of the source, and the record.

    Raises:
        SourceError: The source cannot be opened, its first record cannot be used, or an image is to have targets.
        OSError: A file cannot be read.
    """
    path, config = Path(location), config or SourceConfig()
    if path.is_file() and archive_kind(local_archive(path)) is None:
        if options := config.source_options():
            raise SourceError(
                f"{location!r} is one image: drop --{next(iter(options))}, or give the folder of its images"
            )
        return {}, Record(path.name, (), path.read_bytes(), 0)
    source = open_source(location, config)
    log_notes(source)
    record = next(record for unit in source.units for record in unit.read())
    if record.problem is not None:
        raise SourceError(f"the first record of {location!r}, {record.key!r}, cannot be used: {record.problem}")
    return source.features, record
