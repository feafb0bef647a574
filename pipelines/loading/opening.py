"""Open a cache for reading by step, for `load` and `batches`. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

from joulecache.pipelines.cache.cache import Cache, CacheLike, open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_committed
from joulecache.pipelines.cache.streamed import StreamedCache
from joulecache.pipelines.core.checks import check_choice, check_integer, check_path
from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.core.quantities import shortened
from joulecache.pipelines.loading.config import VERIFY, LoadConfig, Verify
from joulecache.pipelines.loading.mixing import Mix, MixedReader, mix_readers
from joulecache.pipelines.loading.reader import StepReader, note_slow_shuffle, open_reader
from joulecache.pipelines.loading.streaming import open_remote
from joulecache.transforms.ops import Op

_LOG = logging.getLogger("joulecache")
_SHOWN_PROBLEMS = 5


def open_steps(
    cache: CacheLike | Mix,
    config: LoadConfig,
    *,
    verify: Verify,
    ops: Mapping[str, type[Op]] | None,
    stage_limit_bytes: int,
) -> StepReader:
    """Open a split as `load` describes it; log what makes it slow, or its images different from those of a new build.

    Raises:
        CacheError: The cache cannot be read.
        ValueError: An argument is invalid or does not fit the cache.
    """
    check_choice("verify", verify, VERIFY)
    check_integer("stage_limit_bytes", stage_limit_bytes)
    if not isinstance(cache, Mix | Cache):
        check_path("cache", cache)
    if isinstance(cache, Mix):
        return _open_mix(cache, config, verify=verify, ops=ops, stage_limit_bytes=stage_limit_bytes)
    if config.follow and isinstance(cache, StreamedCache):
        raise ValueError(
            f"follow needs a cache on this machine, and {cache.location} is read as it arrives: pass its URL"
        )
    location = cache.location if isinstance(cache, Cache) else cache
    reader, config = open_committed(location, lambda: _open(cache, config, verify, ops, stage_limit_bytes))
    note_slow_shuffle(reader, config)
    opened = reader.split.cache
    if opened.manifest.is_outdated(config.split, ops):
        _LOG.warning(
            "%s was built with other versions of its ops, so its images differ from those of a new build: rebuild it with --replace",
            opened.location,
        )
    return reader


def _open(
    cache: CacheLike, config: LoadConfig, verify: Verify, ops: Mapping[str, type[Op]] | None, stage_limit_bytes: int
) -> tuple[StepReader, LoadConfig]:
    """Return a reader, and the config with its shuffle."""
    if not isinstance(cache, Cache) and is_remote(cache) and not config.follow:
        opened, config = open_remote(os.fspath(cache), config, verify, stage_limit_bytes)
    else:
        opened = open_cache(cache, stage_limit_bytes=stage_limit_bytes)
    if verify == "full" and (problems := opened.verify()):
        raise CacheError(f"{opened.location} is damaged ({shortened(problems, _SHOWN_PROBLEMS, '; ')}): build it again")
    reopen = functools.partial(open_cache, opened.location, stage_limit_bytes=stage_limit_bytes)
    return open_reader(opened, config, ops, reopen if config.follow else None), config


def _open_mix(mixed: Mix, config: LoadConfig, **options: Any) -> MixedReader:
    if config.follow or config.shuffled == "blocks":
        what = "follow" if config.follow else 'shuffle="blocks"'
        raise ValueError(f"{what} is not for a mix, whose caches begin their epochs at any time: leave it out")
    each = dataclasses.replace(config, hosts=(0, 1), drop_remainder=False, epochs=None, start=(0, 0))
    return mix_readers([open_steps(cache, each, **options) for cache in mixed.shares], mixed, config)
