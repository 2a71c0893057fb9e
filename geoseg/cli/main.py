"""The ``geoseg`` command: a verb's module is imported when that verb is called, and not before."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

import geoseg
from geoseg.errors import GeosegError, printable
from geoseg.redact import RedactingFilter, guard_logs, redact

VERBS = {
    "detect": "Find objects in images and write them as polygons.",
    "count": "Count objects per region.",
    "run": "Run a job file (TOML).",
    "report": "Make the page of a finished run: map, counts, examples, what failed.",
    "preview": "Draw objects over imagery, as a PNG.",
    "evaluate": "Compare objects with truth: precision, recall, F1, AP.",
    "tune": "Choose a model's thresholds on labelled areas; calibrate its counts.",
    "check": "Find broken and unfit images before the night.",
    "plan": "Tell tiles, memory, disk and time before the night.",
    "compare": "Say what changed between the objects of two or more dates.",
    "models": "List the models that have a name, or show a model's card.",
    "convert": "Make a model (safetensors and card) of a checkpoint, such as Detectron2's.",
    "train": "Train a model from a training file (TOML), or from one image and its labels.",
    "suggest": "Say which ground to label next, as tasks for QGIS; take the labels back.",
    "demo": "Render a town, run the main job on it, compare with the truth.",
    "doctor": "Check this installation: versions, torch and torchvision, GPU, GDAL, memory.",
    "completion": "Print what makes a shell complete verbs and options.",
}
"""Verb to short help, so that ``geoseg --help`` need not import the verbs."""

INTERRUPTED, TERMINATED = 130, 143

_log = logging.getLogger("geoseg")


class VerbGroup(click.Group):
    """A group whose commands are the attribute ``command`` of ``geoseg.cli.<verb>``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the verbs in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"geoseg.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101  # our own module
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the verbs of the help from the table."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="geoseg VERB --help tells more. Exit codes: 0 done, 1 failed, 2 wrong usage or input, "
    "3 done but tiles were skipped, 130 stopped.",
)
@click.version_option(geoseg.__version__, prog_name="geoseg")
@click.option("-v", "--verbose", "--debug", is_flag=True, help="Tell more, and errors in full.")
@click.option("-q", "--quiet", is_flag=True, help="Tell only errors.")
def cli(verbose: bool, quiet: bool) -> None:
    """Find and count objects in aerial imagery overnight."""
    set_up_logging(verbose=verbose, quiet=quiet)


def set_up_logging(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send the log to stderr: our progress, others' warnings; stdout is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(with_name=verbose))
    handler.addFilter(RedactingFilter())
    guard_logs()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    _log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    # what fails where nobody can catch it, such as in GDAL's calls of rasterio's log
    sys.unraisablehook = _unraisable
    # Python's warnings speak to programmers: what concerns users is logged or raised
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if verbose else logging.ERROR)


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    """Tell of an exception that nobody could catch; only where errors are wanted in full."""
    _log.debug("ignored in %r: %r", failure.object, failure.exc_value)


class _Formatter(logging.Formatter):
    """Time and message; the level where it is no progress, the logger where wanted."""

    def __init__(self, *, with_name: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._with_name = with_name

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line of a record."""
        name = f" {record.name}:" if self._with_name else ""
        level = "" if record.levelno <= logging.INFO else f" {record.levelname.lower()}:"
        # names of files and classes, and GDAL's words about them, may come from anybody
        message = printable(record.message, keep="\n")
        return f"{self.formatTime(record, self.datefmt)}{name}{level} {message}"

    def usesTime(self) -> bool:  # noqa: N802  # logging's name
        """Tell that the time is wanted."""
        return True


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    args : sequence of str, optional
        Without the program's name; by default those of the process.

    Returns
    -------
    int
        0 done; 1 failed; 2 wrong usage or input; what a verb returned; 130 stopped by the user.
    """
    try:
        returned = cli.main(
            args=None if args is None else list(args), prog_name="geoseg", standalone_mode=False
        )
        sys.stdout.flush()
    except GeosegError as error:
        return _fail(error, str(error), error.exit_code)
    except click.ClickException as error:
        return _misused(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("geoseg: stopped", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  # the last resort: one line, not a traceback
        return _unexpected(error)
    return returned if isinstance(returned, int) else 0


def _verbose() -> bool:
    """Tell whether errors are wanted in full."""
    return _log.isEnabledFor(logging.DEBUG)


def _misused(error: click.ClickException) -> int:
    """Say in one line what is wrong with the command; the help, if no verb or argument came."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = "" if context is None else f" (see {context.command_path} --help)"
    said = printable(redact(error.format_message().rstrip(".")), keep="\n")
    click.echo(f"geoseg: error: {said}{where}", err=True)
    return error.exit_code


def _unexpected(error: Exception) -> int:
    """Say that something happened that nobody thought of; too little memory is no fault of ours."""
    if isinstance(error, MemoryError):
        return _fail(error, f"there is too little memory for this ({error})", 1)
    # by name: the command line starts without shapely
    if type(error).__name__ == "GEOSException":
        # whatever is done with outlines that nobody can mend ends here
        said = " ".join(str(error).split()) or "no reason given"
        return _fail(
            error,
            f"an outline of the input cannot be worked with ({said}); find and mend it, for "
            "example with QGIS's Check Validity",
            1,
        )
    hint = "" if _verbose() else " (geoseg -v VERB ... shows where; please report it)"
    return _fail(error, f"internal error: {type(error).__name__}: {error}{hint}", 1, ours=True)


def _fail(error: Exception, message: str, exit_code: int, *, ours: bool = False) -> int:
    """Say what went wrong in one line, after the traceback where it is wanted."""
    if _verbose():
        _log.debug("error in full", exc_info=error)
    line = printable(redact(" ".join(part.strip() for part in message.splitlines())))
    click.echo(f"geoseg: {'' if ours else 'error: '}{line}", err=True)
    return exit_code


def entry() -> None:
    """Run the command line as a process of its own; the entry point ``geoseg``."""
    # what cleans up on Ctrl-C does so for whoever ends processes politely, too
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    if code in (INTERRUPTED, TERMINATED):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # a second signal does not wait for the supertiles that threads are still at
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


if __name__ == "__main__":
    entry()
