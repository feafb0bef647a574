"""Notes about a build before it begins."""

from __future__ import annotations

import dataclasses
import logging

from joulecache.pipelines.core.quantities import listed
from joulecache.transforms.chain import Chain, fixed_size

_LOG = logging.getLogger("joulecache")


def log_repeated_draws(chain: Chain, variants: int) -> None:
    """Note that epochs will see the same draws, unless the chain says so itself with a cut after its random ops."""
    random = chain.cached_random
    if not random and variants > 1:
        _LOG.warning(
            "%s",
            f"no op before the cut is random, so the {variants} variants hold the same images: build one, with --variants 1 (variants=1)",
        )
    if not random or chain.suffix or variants > 1:
        return
    one = len(random) == 1
    fix = "store K draws with --variants K (variants=K)"
    cut = next(place for place, op in enumerate(chain.ops) if op.random)
    if fixed_size(chain.ops[:cut]) is not None:
        fix = f'use the chain "{dataclasses.replace(chain, cut=cut)}" to draw in every epoch, or {fix}'
    _LOG.warning(
        "%s",
        f"{listed(random)} {'is' if one else 'are'} cached and drawn once, so every epoch repeats the same images: {fix}",
    )
