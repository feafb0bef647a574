"""The Beam graph of a build, which is linear, so that any runner supports it."""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from joulecache.pipelines.building.config import BuildError, EngineError
from joulecache.pipelines.building.shard import TransformedShard, finish_shard, transform_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.workspace import Workspace

if TYPE_CHECKING:
    from types import ModuleType

    from apache_beam.options.pipeline_options import PipelineOptions

log = logging.getLogger("apache_beam")
"""Beam's logger. A build silences it, unless it has a level."""

_LONGEST_CAUSE = 300

# Building -------------------------------------------------------------------------------------------------------------


def _finish(workspace: Workspace, transformed: TransformedShard) -> None:
    """Write a shard. On a full disk the error becomes the shard's result, so that the build fails with a one-line message."""
    try:
        finish_shard(workspace, transformed)
    except OSError as error:
        reason = error.strerror or str(error)
        try:
            workspace.fail(reason)
        except OSError:
            raise BuildError(f"shard {workspace.spec.shard} could not be written: {reason}") from None
    finally:
        workspace.close()


def _shard_builder(beam: ModuleType) -> Any:
    """Return a DoFn that writes each shard while it transforms the next, with two shards in memory."""

    class BuildShards(beam.DoFn):  # type: ignore[name-defined, misc]
        def setup(self) -> None:
            self._writer = ThreadPoolExecutor(1, "write")
            self._writing: Future[None] | None = None

        def process(self, spec: ShardSpec) -> Iterator[int]:
            workspace = Workspace(spec)
            try:
                transformed = transform_shard(workspace.spec)
                self._wait()
            except BaseException:
                workspace.close()
                raise
            self._writing = self._writer.submit(_finish, workspace, transformed)
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


def run_specs(specs: Sequence[ShardSpec], options: PipelineOptions | None = None) -> None:
    """Build shards on a Beam runner: the one that the options name, else `FnApiRunner`.

    Raises:
        EngineError: The runner failed or could not be reached.
        BuildError: Neither a shard nor its result could be written.
    """
    with _quiet_import():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    is_local = options is None
    options = options or PipelineOptions([])
    named = options.view_as(StandardOptions).runner
    runner = None if named else FnApiRunner()  # Beam's default runner would try to download another one
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)  # it would repeat the exception
    pipeline = beam.Pipeline(runner=runner, options=options)
    shards = pipeline | "specs" >> beam.Create(specs)
    if not is_local:
        shards |= "spread over workers" >> beam.Reshuffle()
    _ = shards | "build" >> beam.ParDo(_shard_builder(beam))
    try:
        pipeline.run().wait_until_finish()
    except BuildError:
        raise
    except Exception as error:  # of any type: runners re-raise what a worker raised, or wrap its traceback
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise _engine_error(error, named) from error


def _engine_error(error: Exception, runner: str | None) -> EngineError:
    cause = str(error).strip().rpartition("\n")[2][:_LONGEST_CAUSE]
    if not cause:  # for example, the runner cannot be reached
        cause = "no answer: check that it is running and reachable" if runner else "no reason given"
    where = f" on {runner}" if runner else ""
    return EngineError(f"the Beam pipeline failed{where}: {type(error).__name__}: {cause}")


# Options --------------------------------------------------------------------------------------------------------------


def parse_beam_options(flags: Sequence[str]) -> PipelineOptions | None:
    """Parse Beam's flags; return None if there are none.

    Raises:
        ValueError: A flag is unknown (Beam would ignore it) or has an invalid value.
    """
    if not flags:
        return None
    with _quiet_import():
        from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

        _import_runner(_runner_of(flags))
    parser = _options_parser()
    unknown = parser.parse_known_args(list(flags))[1]
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, 1)
        raise ValueError(f"unknown Beam option {unknown[0]!r}" + (f": did you mean {near[0]}?" if near else ""))
    options = PipelineOptions(list(flags))
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        raise ValueError(
            "Beam's direct_running_mode multi_processing hangs when a worker dies: drop it and pass --workers"
        )
    return options


def _runner_of(flags: Sequence[str]) -> str | None:
    try:
        runner: str | None = _options_parser().parse_known_args(list(flags))[0].runner
    except argparse.ArgumentError as error:
        raise ValueError(f"Beam cannot parse {list(flags)}: {error}") from error
    return runner


def _import_runner(name: str | None) -> None:
    """Import the module of a runner, which may define more options."""
    from apache_beam.runners.runner import create_runner

    if not name:
        return
    try:
        create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Beam has no runner {name!r} on this machine: {error}") from error


def _options_parser() -> argparse.ArgumentParser:
    """Return a parser of all options of the imported Beam modules."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parsers: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    parsers[0].exit_on_error = False
    return parsers[0]


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Hide Beam's import warnings about missing clients that joulecache does not use."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
