"""The command line. Each command parses its arguments, calls public functions and prints what they return."""

from __future__ import annotations

import sys
import traceback

import typer

from joulecache.pipelines.cli.commands import app
from joulecache.pipelines.cli.config_options import Job
from joulecache.pipelines.cli.errors import explained
from joulecache.pipelines.cli.logs import is_verbose, printed_notes
from joulecache.pipelines.cli.terminal import fail, prepare_streams, say, writing


def main() -> None:
    """Run the command line.

    Every error is one line on stderr. The exit code is 1 if the job failed, and 2 for bad arguments.
    """
    prepare_streams()
    with printed_notes(), writing(sys.stderr):
        code = _run(sys.argv[1:] or ["--help"])
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Parse and run a command; return the exit code."""
    command = "joulecache"
    try:
        # typer only parses: it would mistake some errors of a job for the end of its input or output
        with writing(sys.stdout):
            parsed = typer.main.get_command(app).main(arguments, prog_name=command, standalone_mode=False)
        if not isinstance(parsed, Job):  # the exit code of --help
            return int(parsed or 0)
        command = parsed.command
        parsed.run()
    except typer.Exit as end:
        return end.exit_code
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - libraries and the user's code raise anything
        message, code = explained(error, command)
        if message and is_verbose():
            say(traceback.format_exc().rstrip())
        if message:
            fail(message, code)
        return code
    return 0
