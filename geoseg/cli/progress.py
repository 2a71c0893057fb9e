"""Progress of a run, on stderr: a live view in a terminal, plain lines elsewhere, or JSON lines.

What goes wrong is said when it happens, by the log, above the live view; the view counts it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from geoseg.jobs.progress import RunState, Watcher

LINE_EVERY_S = 30.0
"""Where stderr is no terminal, a line this often."""
NARROW = 64
"""Columns below which the live view leaves out what is nice to know."""

_log = logging.getLogger("geoseg")


@contextmanager
def show_progress(*, as_json: bool = False) -> Iterator[Watcher | None]:
    """Yield what a run tells its progress to.

    Parameters
    ----------
    as_json : bool
        For machines: every event of the run and the log as JSON, one line each, and an event
        ``progress`` as often as there would be a line.
    """
    with ExitStack() as stack:
        if as_json:
            yield stack.enter_context(_json_lines(sys.stderr))
        elif not _log.isEnabledFor(logging.INFO):
            # geoseg -q tells only errors
            yield None
        elif _can_redraw():
            yield stack.enter_context(_live())
        else:
            yield stack.enter_context(_plain_lines(sys.stderr))


def _can_redraw() -> bool:
    """Tell whether stderr is a terminal that moves its cursor."""
    if not sys.stderr.isatty():
        return False
    from rich.console import Console

    return not Console(stderr=True).is_dumb_terminal


# In words


def as_line(state: RunState) -> str:
    """Return where a run is, in one line."""
    parts = [f"{state.done:,} of {state.total:,} supertiles", f"{state.tiles:,} tiles"]
    parts.append(f"{state.found:,} detections")
    if state.km2_per_hour is not None:
        parts.append(f"{_number(state.km2_per_hour)} km2/h")
    if state.workers is not None:
        parts.append(f"{state.workers} worker(s)")
    return ", ".join([*parts, _end(state)]) + "".join(f"; {p}" for p in _problems(state))


def _end(state: RunState) -> str:
    """Say when a run ends."""
    from geoseg.jobs.progress import RUNNING

    doing = "" if state.stage == RUNNING else f"{state.stage}, "
    if state.left_s is None:
        return f"{doing}running for {_duration(state.elapsed_s)}"
    end = datetime.now(UTC).astimezone() + timedelta(seconds=state.left_s)
    at = f" at {end:%H:%M}" if state.left_s >= 60 else ""
    return f"{doing}ends{at} in {_duration(state.left_s)}"


def _problems(state: RunState) -> list[str]:
    from geoseg.jobs.progress import PROBLEMS

    return [f"{name}: {state.problems[key]}" for key, name in PROBLEMS.items() if
            state.problems[key]]  # fmt: skip


def _number(value: float) -> str:
    """Return a number with three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, or as days and hours where they are many.

    Examples
    --------
    >>> _duration(3725), _duration(200_000)
    ('1:02:05', '2 d 7 h')
    """
    whole = round(seconds)
    if whole >= 2 * 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def as_event(state: RunState) -> dict[str, Any]:
    """Return where a run is, for machines."""
    left = state.left_s
    return {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": "progress",
        "stage": state.stage,
        "supertiles_done": state.done,
        "supertiles": state.total,
        "tiles": state.tiles,
        "found": state.found,
        "km2": round(state.km2, 4),
        "km2_per_hour": None if state.km2_per_hour is None else round(state.km2_per_hour, 3),
        "workers": state.workers,
        "elapsed_s": round(state.elapsed_s, 1),
        "left_s": None if left is None else round(left, 1),
        "finish_s": round(state.finish_s, 1),
        "problems": dict(state.problems),
    }


# Lines, plain and JSON


class _Teller:
    """Keeps the state of a run and writes a line now and then, from a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        from geoseg.jobs.progress import RunState

        self.state = RunState()
        self.stream = stream
        self._said: str | None = None
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._now_and_then, daemon=True)

    def __enter__(self) -> _Teller:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def __call__(self, done: int, total: int, found: int) -> None:
        """Take note; the last supertile is told at once."""
        self.state(done, total, found)
        if done == total > self.state.before:
            self.say()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take note of an event."""
        self.state.tell(event)

    def say(self) -> None:
        """Write where the run is."""
        self.write(as_line(self.state))

    def write(self, line: str) -> None:
        """Write one line, whole, whichever thread asks."""
        with self._lock:
            self.stream.write(line + "\n")
            self.stream.flush()

    def _now_and_then(self) -> None:
        while not self._end.wait(LINE_EVERY_S):
            # before the first call there is nothing to tell but the log
            if self.state.begun is not None:
                self.say()


@contextmanager
def _plain_lines(stream: TextIO) -> Iterator[Watcher]:
    with _Teller(stream) as teller:
        yield teller


class _JsonTeller(_Teller):
    """Writes events, and where the run is as one of them."""

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take note of an event and pass it on at once."""
        super().tell(event)
        self.write(json.dumps(event, default=str))

    def say(self) -> None:
        """Write where the run is."""
        self.write(json.dumps(as_event(self.state)))


class _JsonLog(logging.Formatter):
    """The log as events."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, message = record.levelname.lower(), record.getMessage()
        return json.dumps({"at": at, "event": "log", "level": level, "message": message})


@contextmanager
def _json_lines(stream: TextIO) -> Iterator[Watcher]:
    handlers = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    for handler, _ in handlers:
        handler.setFormatter(_JsonLog())
    try:
        with _JsonTeller(stream) as teller:
            yield teller
    finally:
        for handler, formatter in handlers:
            handler.setFormatter(formatter)


# The live view


class _View:
    """Draws the state of a run; rich asks it again and again."""

    def __init__(self) -> None:
        from geoseg.jobs.progress import RunState

        self.state = RunState()

    def __call__(self, done: int, total: int, found: int) -> None:
        """Take note of how many supertiles are finished."""
        self.state(done, total, found)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take note of an event."""
        self.state.tell(event)

    def __rich_console__(self, console: Console, options: Any) -> Iterator[RenderableType]:
        """Yield the lines that fit the terminal."""
        state = self.state
        if state.begun is None:
            yield _line("getting ready ...")
            return
        yield self._bar(options.max_width)
        narrow = options.max_width < NARROW
        facts = [f"{state.tiles:,} tiles", f"{state.found:,} detections"]
        if state.km2_per_hour is not None:
            facts.append(f"{_number(state.km2_per_hour)} km2/h")
        if state.workers is not None and not narrow:
            facts.append(f"{state.workers} worker" + "s" * (state.workers != 1))
        yield _line("   ".join(facts) if not narrow else ", ".join(facts))
        yield _line(_end(state) if narrow else self._clock())
        problems = _problems(state)
        if problems:
            yield _line("   ".join(problems), "bold red")

    def _clock(self) -> str:
        """Return how long it runs, and when it ends."""
        state = self.state
        if state.left_s is None:
            return _end(state)
        parts = [f"running for {_duration(state.elapsed_s)}", _end(state)]
        if state.finish_s >= 60 and state.stage == "running":
            parts.append(f"{_duration(state.finish_s)} of it to join and write")
        return "   ".join(parts)

    def _bar(self, width: int) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        state = self.state
        share = state.done / state.total if state.total else 0.0
        count = f"{state.done:,} of {state.total:,}"
        grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        bar = ProgressBar(total=max(1, state.total), completed=state.done)
        label = "supertiles" if width >= NARROW else ""
        grid.add_row(label, bar, f"{count} {share:4.0%}")
        return grid


def _line(text: str, style: str = "") -> Text:
    """Return a line that is cut, never wrapped: the view must keep its height."""
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


@contextmanager
def _live() -> Iterator[Watcher]:
    from rich.console import Console
    from rich.file_proxy import FileProxy
    from rich.live import Live

    console, view = Console(stderr=True), _View()
    # the log must go above the view, not through it
    above = FileProxy(console, sys.stderr)
    handlers = [
        (handler, handler.setStream(above))
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
    try:
        with Live(
            view, console=console, refresh_per_second=4, transient=True, redirect_stdout=False
        ):
            yield view
    finally:
        for handler, stream in handlers:
            handler.setStream(stream)
