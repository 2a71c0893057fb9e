"""Loaded by the scheduler and the keepers of the workers: they end with the process they serve.

Processes started as subprocesses outlive a parent that was killed, and would hold memory and GPU
for ever. A worker itself ends with its keeper; Dask sees to that.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

DRIVER_PID = "GEOSEG_DRIVER_PID"
"""Environment variable that names the process to live with."""
LOOK_EVERY_S = 0.5


def dask_setup(_server: Any) -> None:
    """Start to watch the parent; Dask calls this when the process is up."""
    driver = int(os.environ[DRIVER_PID])
    threading.Thread(target=_watch, args=(driver,), daemon=True).start()


def _watch(driver: int) -> None:
    # a process whose parent is gone gets another one
    while os.getppid() == driver:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)
