"""The Beam graph of a build, which is linear, so that any runner supports it."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from joulecache.pipelines.building.config import BuildError, EngineError
from joulecache.pipelines.building.shard_builder import ShardBuilder
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.worker_pool import WorkerPool
from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.quantities import clipped

if TYPE_CHECKING:
    from types import ModuleType

    from apache_beam.options.pipeline_options import PipelineOptions

BeamOptions: TypeAlias = "Sequence[str] | PipelineOptions"
"""Flags, or Beam's own object."""

log = logging.getLogger("apache_beam")
"""Beam's logger. A build silences it, unless it has a level."""

_LONGEST_CAUSE = 2000
_BUILD = "build"
_BEAM_SUFFIX = f" [while running '{_BUILD}']"
_TRACEBACK = "Traceback (most recent call last):"

# Building -------------------------------------------------------------------------------------------------------------


_POOLS: dict[int, WorkerPool] = {}
"""Worker processes of the running builds: Beam pickles a DoFn, even for workers in this process."""


def _build_in(pool: int, specs: Sequence[ShardSpec]) -> None:
    """Build shards in a pool. A function of this module, which Beam pickles by its name: `_POOLS` must not be copied."""
    _POOLS[pool].build(specs)


def _shard_builder(beam: ModuleType) -> Any:
    """Return a DoFn that builds shards in its own process."""

    class BuildShards(beam.DoFn):  # type: ignore[name-defined, misc]
        def setup(self) -> None:
            self._builder = ShardBuilder()

        def process(self, spec: ShardSpec) -> Iterator[int]:
            self._builder.build(spec)
            yield spec.shard

        def finish_bundle(self) -> None:
            self._builder.wait()

        def teardown(self) -> None:
            self._builder.close()

    return BuildShards()


def _pool_builder(beam: ModuleType, pool: WorkerPool) -> Any:
    """Return a DoFn that builds all shards of a bundle in worker processes."""
    number = id(pool)

    class BuildShardsInProcesses(beam.DoFn):  # type: ignore[name-defined, misc]
        def start_bundle(self) -> None:
            self._specs: list[ShardSpec] = []

        def process(self, spec: ShardSpec) -> Iterator[int]:
            self._specs.append(spec)
            yield spec.shard

        def finish_bundle(self) -> None:
            _build_in(number, self._specs)

    return BuildShardsInProcesses()


@contextmanager
def _started_pool(workers: int) -> Iterator[WorkerPool | None]:
    """Start worker processes, unless one is enough: this process then builds itself."""
    if workers == 1:
        yield None
        return
    with WorkerPool(workers) as pool:
        _POOLS[id(pool)] = pool
        try:
            yield pool
        finally:
            del _POOLS[id(pool)]


def run_specs(specs: Sequence[ShardSpec], options: PipelineOptions | None = None, workers: int = 1) -> None:
    """Build shards on a Beam runner: the one that the options name, else `FnApiRunner` with worker processes.

    Args:
        specs: The shards.
        options: Beam's options; None to build on this machine.
        workers: Worker processes on this machine; 1 to build in this process, or on a runner that the options name.

    Raises:
        EngineError: The runner failed or could not be reached, or a shard ended its worker process twice.
        BuildError: Neither a shard nor its result could be written.
    """
    with _started_pool(workers) as pool:
        _run(specs, options, pool)


def _run(specs: Sequence[ShardSpec], options: PipelineOptions | None, pool: WorkerPool | None) -> None:
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
    _ = shards | _BUILD >> beam.ParDo(_pool_builder(beam, pool) if pool else _shard_builder(beam))
    try:
        pipeline.run().wait_until_finish()
    except BuildError as error:
        raise type(error)(str(error).removesuffix(_BEAM_SUFFIX)) from error
    except Exception as error:  # of any type: runners re-raise what a worker raised, or wrap its traceback
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise _engine_error(error, named) from error


def _engine_error(error: Exception, runner: str | None) -> EngineError:
    where = f" on {runner}" if runner else ""
    return EngineError(f"the Beam pipeline failed{where}: {_cause(error, runner)}")


def _cause(error: Exception, runner: str | None) -> str:
    """Return in one line why a pipeline failed: of a Python traceback the exception, of Java's stack trace the messages."""
    import grpc

    if isinstance(error, grpc.Call):
        return clipped(f"{error.code().name}: {error.details()}", _LONGEST_CAUSE)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:  # for example, the runner cannot be reached
        lines = ["no answer: check that it is running and reachable" if runner else "no reason given"]
    told = lines[-1:] if _TRACEBACK in lines else [line for line in lines if not line.startswith("at ")]
    return clipped(f"{type(error).__name__}: {' '.join(told)}", _LONGEST_CAUSE)


# Options --------------------------------------------------------------------------------------------------------------


def parse_beam_options(given: BeamOptions) -> PipelineOptions | None:
    """Check Beam's options, and parse them if they are flags; return None if there are none.

    Raises:
        ValueError: They are neither a list of flags nor Beam's `PipelineOptions`, or an option is unknown (Beam would ignore it) or has
            an invalid value.
    """
    if isinstance(given, list | tuple) and not given:
        return None
    with _quiet_import():
        from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
    if isinstance(given, PipelineOptions):
        options = given
        _check_options(options)
    else:
        options = PipelineOptions(_checked_flags(given))
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        raise ValueError(
            "Beam's direct_running_mode multi_processing hangs when a worker dies: drop it and pass --workers"
        )
    return options


def _checked_flags(given: object) -> list[str]:
    if isinstance(given, str):
        raise ValueError(f"beam_options must be a list of options, got a string: pass {shlex.split(given)}")
    if not isinstance(given, list | tuple) or not all(isinstance(flag, str) for flag in given):
        raise ValueError(
            f'beam_options must be a list, such as ["--runner=FlinkRunner"], or Beam\'s PipelineOptions, got {shown(given)}'
        )
    flags = list(given)
    _import_runner(_runner_of(flags))
    parser = _options_parser()
    if unknown := parser.parse_known_args(flags)[1]:
        if not unknown[0].startswith("-"):
            raise ValueError(
                f"unknown Beam option {unknown[0]!r}: expected --NAME=VALUE; put a pattern of files in quotes, else the shell expands it"
            )
        _refuse(unknown[0], unknown[0].split("=")[0], parser._option_string_actions)
    return flags


def _check_options(options: PipelineOptions) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    messages = io.StringIO()
    try:
        with redirect_stderr(messages):  # Beam prints its usage and exits
            _import_runner(options.view_as(StandardOptions).runner)
            known = options.get_all_options()
            # without flags, the object takes those of the process, most of which are not for Beam
            of_process = PipelineOptions().get_all_options(retain_unknown_options=True)
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise ValueError(f"Beam cannot parse its options: {messages.getvalue().splitlines()[-1]}") from None
    if unknown := [name for name in given if name not in known and name not in of_process]:
        _refuse(unknown[0], unknown[0], known)


def _refuse(option: str, name: str, known: Iterable[str]) -> NoReturn:
    near = difflib.get_close_matches(name, known, 1)
    raise ValueError(f"unknown Beam option {option!r}" + (f": did you mean {near[0]}?" if near else ""))


def _runner_of(flags: Sequence[str]) -> str | None:
    try:
        runner: str | None = _options_parser().parse_known_args(list(flags))[0].runner
    except argparse.ArgumentError as error:
        raise ValueError(f"Beam cannot parse {list(flags)}: {error}") from error
    return runner


def _import_runner(name: str | None) -> None:
    """Import the module of a runner, which may define more options."""
    if not name:
        return
    try:
        with _quiet_import():
            from apache_beam.runners.runner import create_runner

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
