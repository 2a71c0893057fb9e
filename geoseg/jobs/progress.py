"""How a run tells how far it is, and what can be known from that: rates, and when it ends."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Progress = Callable[[int, int, int], None]
"""Called with supertiles finished, all supertiles, and fragments found so far; the first call tells
what earlier runs finished. One that is a `Watcher` too is told of all events."""

FINISH_S = 0.0015
"""Joining, writing and counting one object, by one process; `geoseg plan` reckons with it too."""
OBJECTS_PER_FOUND = 0.45
"""Objects of a detection: neighbouring tiles both see what their overlap shows."""
RECENT = 20
"""Supertiles, per worker, that tell how fast it goes now ..."""
RECENT_S = 600.0
"""... or more, if they took less than this."""

RUNNING, JOINING, WRITING, COUNTING = "running", "joining", "writing", "counting"
STAGES = (RUNNING, JOINING, WRITING, COUNTING)
"""Of a run, as the event ``stage`` names them."""


@runtime_checkable
class Watcher(Protocol):
    """A `Progress` that also wants every event of a run, when it happens."""

    def __call__(self, done: int, total: int, found: int) -> None:
        """Take note of how many supertiles are finished."""

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take note of an event, as it stands in events.jsonl."""


@dataclass(slots=True)
class RunState:
    """What is known of a run while it goes on; made of calls and events, asked by views.

    Examples
    --------
    >>> now = [0.0]
    >>> state = RunState(clock=lambda: now[0])
    >>> state.tell({"event": "started", "workers": 2, "supertiles": 4, "km2": 4.0})
    >>> state(0, 4, 0)
    >>> now[0] = 60.0
    >>> state.tell({"event": "supertile done", "tiles": 9, "km2": 1.0})
    >>> state(1, 4, 1000)
    >>> round(state.km2_per_hour), round(state.left_s)
    (60, 183)
    """

    clock: Callable[[], float] = time.monotonic
    done: int = 0
    total: int = 0
    found: int = 0
    """Detections so far, those of earlier runs too."""
    before: int = 0
    """Supertiles that earlier runs finished."""
    tiles: int = 0
    """Tiles that this run's detector saw."""
    km2: float = 0.0
    """Ground of the supertiles that this run finished."""
    total_km2: float = 0.0
    """Ground of all supertiles."""
    workers: int | None = None
    """At work now; None where that is not known, as in a cluster that was joined."""
    stage: str = RUNNING
    problems: Counter[str] = field(default_factory=Counter)
    """How often what went wrong, by the name of the event."""
    objects: int | None = None
    """Known when the run has ended."""
    begun: float | None = None
    stage_begun: float = 0.0
    _here: set[str] = field(default_factory=set)
    """Addresses of workers that came and did not go."""
    _recent: deque[tuple[float, int, float]] = field(default_factory=deque)
    """(time, supertiles, km2) after each of the last supertiles."""

    def __call__(self, done: int, total: int, found: int) -> None:
        """Take note of how many supertiles are finished."""
        now = self.clock()
        if self.begun is None:
            # what an earlier run finished took no time
            self.begun, self.before = now, done
        self.done, self.total, self.found = done, total, found
        self._recent.append((now, done, self.km2))
        while len(self._recent) > 2 + RECENT * (self.workers or 1):
            if now - self._recent[1][0] < RECENT_S:
                break
            self._recent.popleft()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take note of an event."""
        name = str(event.get("event"))
        if name == "started":
            self.workers = None if event.get("joined") else event.get("workers")
            self.total_km2 = float(event.get("km2", 0.0))
        elif name == "stage":
            self.stage, self.stage_begun = str(event["stage"]), self.clock()
        elif name in ("worker came", "worker lost"):
            # those that were there from the beginning come too, once the driver looks around
            self._here ^= {str(event.get("worker"))}
            self.workers = len(self._here)
        elif name == "finished":
            self.objects = int(event.get("objects", 0))
        elif name.startswith("supertile ") and name != "supertile failed":
            self.tiles += int(event.get("tiles", 0))
            self.km2 += float(event.get("km2", 0.0))
        if name in PROBLEMS:
            self.problems[name] += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first supertile was handed out."""
        return 0.0 if self.begun is None else self.clock() - self.begun

    @property
    def km2_per_hour(self) -> float | None:
        """How fast it goes now; None before the first supertile is finished."""
        if not self._recent or self._recent[-1][2] <= self._recent[0][2]:
            return None
        (then, _, old), (now, _, new) = self._recent[0], self._recent[-1]
        return 3600 * (new - old) / max(now - then, 1e-9)

    @property
    def finish_s(self) -> float:
        """Seconds that joining, writing and counting will take, for what will be found."""
        share = self.done / self.total if self.total else 0.0
        expected = self.found / share if share else 0.0
        return FINISH_S * OBJECTS_PER_FOUND * expected

    @property
    def left_s(self) -> float | None:
        """Seconds to the end, joins and writing included; None before that can be known."""
        if self.stage != RUNNING:
            passed = self.clock() - self.stage_begun if self.stage == JOINING else 0.0
            return max(0.0, self.finish_s - passed)
        if len(self._recent) < 2 or self._recent[-1][1] == self._recent[0][1]:
            return None
        (then, old, old_km2), (now, new, new_km2) = self._recent[0], self._recent[-1]
        left = float(self.total - self.done)
        if self.total_km2 > 0 and new_km2 > old_km2 and self.before == 0:
            # supertiles at the edges of images are smaller
            done, left = new_km2 - old_km2, max(0.0, self.total_km2 - self.km2)
        else:
            done = float(new - old)
        pause = min(self.clock() - now, left * (now - then) / done)
        return max(0.0, left * (now - then) / done - pause) + self.finish_s


PROBLEMS = {
    "supertile failed": "failed supertiles",
    "tile failed": "tiles left out",
    "retried": "retried",
    "worker lost": "workers lost",
}
"""Events that tell of something wrong, and how views count them."""
