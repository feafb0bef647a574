"""Files that are read whole: tables of targets and JSON. What they may cost is limited."""

from __future__ import annotations

import os
from pathlib import Path

from joulecache.pipelines.core.files import unexpanded_home
from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.core.quantities import data_size
from joulecache.pipelines.source.records import SourceError

LARGEST_DOCUMENT = 1_500_000_000
"""Bytes. The largest instances JSON in common use, of LVIS, has 1.1 GB."""


def read_document(what: str, path: str | os.PathLike[str]) -> bytes:
    """Return the content of a local or remote file; SourceError if it is missing or larger than `LARGEST_DOCUMENT`.

    Args:
        what: What it is, for messages: "the labels".
        path: The file.
    """
    name = os.fspath(path)
    try:
        with open_binary(name) as file:
            size = file.seek(0, os.SEEK_END) if file.seekable() else 0
            if size > LARGEST_DOCUMENT:
                raise SourceError(
                    f"{what} {name!r} must have at most {data_size(LARGEST_DOCUMENT)}, got {data_size(size)}: split the file, or drop "
                    "what is not needed from it"
                )
            if size:
                file.seek(0)
            return file.read()
    except OSError as error:
        why = unexpanded_home(Path(name)) or f": {error.strerror or error}"
        raise SourceError(f"cannot read {what} {name!r}{why}") from error
