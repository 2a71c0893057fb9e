"""How much memory a process took."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_mb() -> float:
    """Return the largest resident memory of this process so far."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    # what getrusage tells of a child begins with the size of the parent that it was forked from
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 1024, 1)
