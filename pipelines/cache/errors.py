"""The error of caches, importable without pyarrow."""

from __future__ import annotations


class CacheError(ValueError):
    """A cache cannot be read or written. The message says what is wrong, what is expected and what to do."""


class NoCacheError(CacheError):
    """There is no cache at a location."""


def wrong_size(path: object, actual_bytes: int, expected_bytes: int) -> CacheError:
    """Return the error of a file whose size differs from that in the manifest."""
    return CacheError(
        f"{path} has {actual_bytes} bytes, its manifest says {expected_bytes}: it was truncated or changed, rebuild the cache"
    )
