"""The threads that detectors run on, and how many tiles go through one side by side.

A detector is called from one thread, always the same: it need not be safe for several, and a GPU
is shared by nobody. A detector that says it may be called from several (``side_by_side``) gets two
lanes on a CPU, each with a tile of its own and half of the CPU's threads: those of one tile wait
for each other after every layer, and for whichever of them shares its core with reading or
tracing; two tiles never wait. docs/adr/0003 has what that brings.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from geoseg.jobs.memory import keep_freed_memory

Result = TypeVar("Result")

LANES = 2
"""Tiles that a network looks at side by side: each needs room for its own maps."""

_ONE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="geoseg-network")
_LANES = ThreadPoolExecutor(max_workers=LANES, thread_name_prefix="geoseg-lane")
_untouched: list[int] = []


def lanes_of(detector: Any, threads: int) -> int:
    """Return how many tiles a detector looks at side by side.

    Parameters
    ----------
    detector : Detector
        Its ``side_by_side`` says whether several threads may call it at once.
    threads : int
        CPU threads that it may use; 0: as many as the owner of the process set, in one lane.
    """
    return min(LANES, threads) if threads and getattr(detector, "side_by_side", False) else 1


def submit(
    work: Callable[[], Result], *, lanes: int = 1, threads: int = 0
) -> Future[tuple[Result, float]]:
    """Do something with the detector in its turn.

    Parameters
    ----------
    work : callable
        Without arguments.
    lanes : int
        As `lanes_of` says.
    threads : int
        PyTorch's CPU threads for all lanes together; 0: as they are.

    Returns
    -------
    Future of (result, seconds)
        Seconds of the work itself, not of waiting for the turn; where several lanes share the
        time, the work's part of it.
    """

    def timed() -> tuple[Result, float]:
        if threads:
            set_threads(max(1, threads // lanes))
        begun = time.perf_counter()
        result = work()
        return result, (time.perf_counter() - begun) / lanes

    keep_freed_memory()
    return (_ONE if lanes == 1 else _LANES).submit(timed)


def set_threads(count: int) -> None:
    """Set PyTorch's CPU threads: of the thread that says so, and of threads that begin later."""
    import torch

    if not _untouched:
        _untouched.append(torch.get_num_threads())
    torch.set_num_threads(count)


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Set PyTorch's CPU threads back at the end: the process may be the user's own."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        if before is None and _untouched:
            # a thread that never set any has those that the process began with
            before = _untouched[0]
        if before is not None:
            sys.modules["torch"].set_num_threads(before)
