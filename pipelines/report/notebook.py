"""How notebooks display each result; importing this module registers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.building.results import Built
from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.core.notebook import register
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.planning.results import Plan
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.describe.cache import describe_build, describe_manifest
from joulecache.pipelines.report.describe.compression import describe_compression
from joulecache.pipelines.report.describe.energy import describe_energy
from joulecache.pipelines.report.describe.plan import describe_plan
from joulecache.pipelines.report.describe.training import describe_training
from joulecache.pipelines.report.document import Document
from joulecache.pipelines.report.render.html import to_notebook
from joulecache.pipelines.training.results import TrainedModel

T = TypeVar("T")


def _show(kind: type[T], describe: Callable[[T], Document]) -> None:
    register(kind, lambda result: to_notebook(describe(result)))


_show(Audit, describe_audit)
_show(Built, describe_build)
_show(Cache, lambda cache: describe_manifest(cache.manifest, cache.location))
_show(Compression, describe_compression)
_show(Energy, describe_energy)
_show(Manifest, describe_manifest)
_show(Plan, describe_plan)
_show(TrainedModel, describe_training)
