"""How much memory a process took, and how it holds what it frees."""

from __future__ import annotations

import ctypes
import resource
from functools import lru_cache
from pathlib import Path

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER = 2**31 - 1


def peak_mb() -> float:
    """Return the largest resident memory of this process so far."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    # what getrusage tells of a child begins with the size of the parent that it was forked from
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 1024, 1)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let this process keep what it frees, to use it again; called before the network's thread.

    A network asks for the same big blocks tile after tile. Given back to the system each time,
    every page of them has to be cleared anew, and Dask's keepers make their workers trim most
    eagerly: docs/adr/0003 has what that costs. One arena for all threads keeps the largest process
    smaller. Elsewhere than on glibc nothing happens.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, _NEVER), (_MMAP_THRESHOLD, _NEVER)):
        set_option(option, value)
