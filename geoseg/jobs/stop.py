"""When a run is to stop before its end: signals, a stop file, a time of day.

A first signal lets the tasks in flight finish, so that nothing is done twice; a second one, or one
that comes while no tasks are out, stops at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from geoseg.errors import ConfigError, StoppedError

LOOK_EVERY_S = 1.0
"""How often the stop file is looked for."""
AGAIN_S = 0.05
"""A signal that came where Python cannot raise is heard again after so long."""
INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of shells: 128 and the number of the signal."""


def stop_time(text: str, now: datetime | None = None) -> datetime:
    """Return when it will next be this time of day.

    Parameters
    ----------
    text : str
        Such as ``07:00``, local time, 24 hours.
    now : datetime, optional
        With a time zone; by default the present.

    Returns
    -------
    datetime
        Local time with its zone; after `now`, at most a day later.

    Raises
    ------
    ConfigError
        If the text is no time of day.

    Examples
    --------
    >>> evening = datetime(2026, 3, 1, 22, 30).astimezone()
    >>> stop_time("07:00", evening).replace(tzinfo=None)
    datetime.datetime(2026, 3, 2, 7, 0)
    """
    if not (found := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text.strip())):
        raise ConfigError(f"--until is '{text}'; expected a time of day such as 07:00")
    now = now or datetime.now(UTC)
    here = now.astimezone()
    wanted = here.replace(
        hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0, tzinfo=None
    )
    # the offset may be another one then: naive times get the zone's own
    until = wanted.astimezone()
    return until if until > now else (wanted + timedelta(days=1)).astimezone()


class Stop:
    """Whether a run is to stop, and why.

    Parameters
    ----------
    until : datetime, optional
        With a time zone: tasks that would not be finished by then are not begun.
    file : Path, optional
        The run stops when this file is there.
    """

    def __init__(self, until: datetime | None = None, file: Path | None = None) -> None:
        self._until, self._file = until, file
        self._looked = -LOOK_EVERY_S
        self._draining = 0
        self._listening = False
        self.reason = ""
        self.exit_code = INTERRUPTED

    def wanted(self, task_s: float = 0.0) -> bool:
        """Tell whether to stop; `task_s` is what a task handed out now would take, seconds."""
        if self.reason:
            return True
        if self._until is not None:
            ends = datetime.now(UTC) + timedelta(seconds=task_s)
            if ends >= self._until:
                self.reason = f"it would soon be {self._until:%H:%M} (--until)"
                return True
        now = time.monotonic()
        if self._file is not None and now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if self._file.exists():
                self.reason = f"the file {self._file.name} asks for it"
        return bool(self.reason)

    def check(self) -> None:
        """Raise if the run is to stop.

        Raises
        ------
        StoppedError
            Says why.
        """
        if self.wanted():
            raise self.error()

    def error(self) -> StoppedError:
        """Return the error that ends the run."""
        return StoppedError(f"stopped: {self.reason}", self.exit_code)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Within, a first signal only notes the wish: whoever hands out tasks sees to it."""
        self._draining += 1
        try:
            yield
        finally:
            self._draining -= 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM within; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, self._hear)
        hook = sys.unraisablehook

        def unraised(event: sys.UnraisableHookArgs) -> None:
            # the callback of a weak reference lets no exception through
            if isinstance(event.exc_value, StoppedError):
                threading.Timer(AGAIN_S, self._raise_again).start()
            else:
                hook(event)

        sys.unraisablehook, self._listening = unraised, True
        try:
            yield
        finally:
            sys.unraisablehook, self._listening = hook, False
            for heard, handler in before.items():
                # None: set by something that is not Python; it cannot be put back
                signal.signal(heard, signal.SIG_DFL if handler is None else handler)

    def _raise_again(self) -> None:
        if self._listening:
            number = signal.SIGTERM if self.exit_code == TERMINATED else signal.SIGINT
            os.kill(os.getpid(), number)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        again = bool(self.reason)
        self.reason = self.reason or f"{signal.Signals(number).name} was received"
        self.exit_code = TERMINATED if number == signal.SIGTERM else INTERRUPTED
        if again or not self._draining:
            raise self.error()
