"""The Beam graph of a build: specs, reshuffle, build, one combined result. Linear, so that any runner takes it."""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from joulecache.pipelines.building.config import BuildError, EngineError
from joulecache.pipelines.building.shard import ShardSpec, TransformedShard, Workplace, transform_shard


def _finish(place: Workplace, transformed: TransformedShard) -> None:
    """Run the second part of a build in a Beam worker. A disk that fails is a result, so that it can be told in one line."""
    try:
        place.finish(transformed)
    except OSError as error:
        reason = error.strerror or str(error)
        try:
            place.fail(reason)
        except OSError:
            raise BuildError(f"shard {place.spec.shard} could not be written: {reason}") from None
    finally:
        place.leave()


def _shard_builder(beam: Any) -> Any:
    """Return a DoFn that builds shards, and writes each while the next one is transformed: two of them lie in memory."""

    class BuildShards(beam.DoFn):  # type: ignore[misc]
        def setup(self) -> None:
            self._writer = ThreadPoolExecutor(1, "write")
            self._writing: Future[None] | None = None

        def process(self, spec: ShardSpec) -> Iterator[int]:
            place = Workplace(spec)
            try:
                transformed = transform_shard(place.spec)
                self._wait()
            except BaseException:
                place.leave()
                raise
            self._writing = self._writer.submit(_finish, place, transformed)
            yield spec.shard

        def finish_bundle(self) -> None:
            self._wait()

        def teardown(self) -> None:
            self._writer.shutdown()

        def _wait(self) -> None:
            if self._writing is not None:
                self._writing.result()
                self._writing = None

    return BuildShards()


log = logging.getLogger("apache_beam")
"""Where Beam speaks: quiet in a build, unless it was given a level."""


def run_specs(specs: Sequence[ShardSpec], options: Any) -> None:
    """Run the linear graph: specs, reshuffle, build, one combined result."""
    with _quiet_import():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    options = options or PipelineOptions([])
    # By name: the default runner first tries to download another one.
    named = options.view_as(StandardOptions).runner
    runner = None if named else FnApiRunner()
    if log.level == logging.NOTSET:  # nobody has asked for more; what it says of a failure is in the exception
        log.setLevel(logging.CRITICAL)
    pipeline = beam.Pipeline(runner=runner, options=options)
    _ = (
        pipeline
        | "specs" >> beam.Create(specs)
        | "spread" >> beam.Reshuffle()
        | "build" >> beam.ParDo(_shard_builder(beam))
        | "combine" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
    )
    try:
        pipeline.run().wait_until_finish()
    except BuildError:
        raise
    except Exception as error:  # of any kind: runners pass on what a worker raised, or wrap its traceback in their own
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        # An engine that cannot be reached is an error without a text.
        silent = "no answer: is it running, and reached from here?" if named else "no reason given"
        cause = str(error).strip().rpartition("\n")[2][:300] or silent
        where = f" on {named}" if named else ""
        raise EngineError(f"the Beam pipeline failed{where}: {type(error).__name__}: {cause}") from error


def parse_beam_options(flags: Sequence[str]) -> Any:
    """Parse Beam's flags, None for none; ValueError for one that Beam does not know, which it would silently drop."""
    if not flags:
        return None
    with _quiet_import():
        from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
        from apache_beam.runners.runner import create_runner

        parser = _options_parser(PipelineOptions)
        try:
            runner = parser.parse_known_args(list(flags))[0].runner
        except argparse.ArgumentError as error:
            raise ValueError(f"Beam cannot read {list(flags)}: {error}") from error
        if runner:
            try:
                create_runner(runner)  # its module may bring options of its own, which Beam then knows
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(f"Beam has no runner {runner!r} here: {error}") from error
    parser = _options_parser(PipelineOptions)
    unknown = parser.parse_known_args(list(flags))[1]
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, 1)
        raise ValueError(f"Beam has no option {unknown[0]!r}" + (f": did you mean {near[0]}?" if near else ""))
    options = PipelineOptions(list(flags))
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        raise ValueError(
            "Beam's multi_processing waits for ever for a worker that has died: leave it out, and give --workers"
        )
    return options


def _options_parser(options: Any) -> Any:
    """Return the parser of all options that Beam knows by now."""
    parsers: list[Any] = []
    options([]).get_all_options(add_extra_args_fn=parsers.append)
    parsers[0].exit_on_error = False
    return parsers[0]


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Hide what Beam says when it is imported: it misses clients that this project never uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
