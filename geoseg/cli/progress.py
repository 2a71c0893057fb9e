"""Progress of a run, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from geoseg.jobs.progress import Progress

LINE_EVERY_S = 30.0
"""Where stderr is no terminal, a line at most this often."""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a callback that shows progress: a bar in a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _lines(sys.stderr)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("supertiles"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]} detections, ends in"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        # the clock starts with the first call: what an earlier run finished took no time
        task = bar.add_task("run", total=None, found=0, start=False)

        def progress(done: int, total: int, found: int) -> None:
            bar.update(task, completed=done, total=total, found=found)
            bar.start_task(task)

        yield progress


def _lines(stream: TextIO) -> Progress:
    begun = last = -LINE_EVERY_S
    before: int | None = None

    def progress(done: int, total: int, found: int) -> None:
        nonlocal begun, last, before
        now = time.monotonic()
        if before is None:
            # what an earlier run finished took no time
            begun, before = now, done
        if done == before or (done < total and now - last < LINE_EVERY_S):
            return
        last = now
        left = (now - begun) / (done - before) * (total - done)
        end = datetime.now(UTC).astimezone() + timedelta(seconds=left)
        at = "" if left < 60 else f", ends at {end:%H:%M}"
        stream.write(f"{done} of {total} supertiles, {found} detections, {left:.0f} s to go{at}\n")
        stream.flush()

    return progress
