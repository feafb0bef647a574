"""The Beam graph of a build: specs, reshuffle, build, one combined result. Linear, so that any runner takes it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joulecache.pipelines.build.recipe import BuildError
from joulecache.pipelines.build.shard import WORK, ShardResult, ShardSpec, build_shard, write_result


def _build_or_explain(spec: ShardSpec) -> int:
    """Build one shard in a Beam worker. A disk that fails is a result, so that it can be told in one line."""
    try:
        build_shard(spec)
    except OSError as error:
        work = Path(spec.folder, WORK)
        try:
            write_result(work, ShardResult(spec.shard, {}, (), {}, 0, "", f"{error.strerror}: {error.filename}"))
        except OSError:
            raise error from None
    return spec.shard


def run_specs(specs: Sequence[ShardSpec], options: Any) -> None:
    """Run the linear graph: specs, reshuffle, build, one combined result."""
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Beam warns at import of clients that this project never uses
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    finally:
        logging.disable(quiet)
    options = options or PipelineOptions([])
    # By name: the default runner first tries to download another one.
    runner = None if options.view_as(StandardOptions).runner else FnApiRunner()
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        with beam.Pipeline(runner=runner, options=options) as pipeline:
            _ = (
                pipeline
                | "specs" >> beam.Create(specs)
                | "spread" >> beam.Reshuffle()
                | "build" >> beam.Map(_build_or_explain)
                | "combine" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
            )
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1][:300]
        raise BuildError(f"the Beam pipeline failed: {cause}") from error


def parse_beam_options(flags: Sequence[str]) -> Any:
    """Parse Beam's flags, None for none; ValueError for one that Beam does not know, which it would silently drop."""
    if not flags:
        return None
    from apache_beam.options.pipeline_options import PipelineOptions

    parsers: list[Any] = []
    options = PipelineOptions(list(flags))
    options.get_all_options(add_extra_args_fn=parsers.append)
    _, unknown = parsers[0].parse_known_args(list(flags))
    if unknown:
        known = [name for action in parsers[0]._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        raise ValueError(f"Beam has no option {unknown[0]!r}" + (f": did you mean {near[0]}?" if near else ""))
    return options
