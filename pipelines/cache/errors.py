"""The error of caches, importable without pyarrow."""

from __future__ import annotations


class CacheError(ValueError):
    """A cache cannot be read or written. The message says what is wrong, what is expected and what to do."""
