"""Folders of images."""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections import Counter
from pathlib import Path

from joulecache.pipelines.source.listing import LABEL_SUFFIXES, ImageListing, image_places
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES, NOT_UTF8, is_utf8, printable
from joulecache.pipelines.source.records import SourceError


def list_folder(root: Path) -> ImageListing:
    """List the images below a folder; SourceError if a folder cannot be listed."""
    names: list[str] = []
    sizes, mtimes_ns = array("q"), array("q")
    beside: list[str] = []
    skipped: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    # plain strings: a Path for each file costs ten times as much as the listing itself
    for folder, folders, files in os.walk(root, onerror=_refuse_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := sum(os.path.islink(os.path.join(folder, name)) for name in folders):  # noqa: PTH114, PTH118
            skipped["(link to a folder)"] += links
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative + "/"
        prefix_is_utf8 = is_utf8(prefix)
        for file in files:
            dot = file.rfind(".")
            suffix = file[dot:].lower() if dot > 0 else ""
            if file.startswith(".") or suffix not in IMAGE_SUFFIXES:
                skipped[suffix if len(suffix) > 1 else file] += 1
                if suffix in LABEL_SUFFIXES and not file.startswith(".") and is_utf8(prefix + file):
                    beside.append(prefix + file)
                continue
            status = _status(f"{folder}/{file}")
            if status is None:
                skipped["(no regular file)"] += 1
            elif prefix_is_utf8 and is_utf8(file):
                names.append(prefix + file)
                sizes.append(status.st_size)
                mtimes_ns.append(status.st_mtime_ns)
            else:
                refused.append((printable(prefix + file), NOT_UTF8))
    places = image_places(str(root.absolute()), sizes, mtimes_ns, None)
    return ImageListing("", names, places, None, beside, skipped, refused)


def _status(path: str) -> os.stat_result | None:
    """Return the status of a regular file, following links; None for anything else."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each file costs more
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _refuse_unlisted(error: OSError) -> None:
    raise SourceError(f"cannot list {error.filename!r} ({error.strerror}): make it readable or move it") from error
