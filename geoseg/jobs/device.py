"""What to do when a GPU fails for good: only a new process can use it again.

After a device-side assert, an illegal access or a memory error every call of CUDA in the process
fails with the same words. A worker leaves then: its keeper starts another one, and what it was at
is done again elsewhere, as after any worker's death. A run in one process can only end.
"""

from __future__ import annotations

import logging
import os
import sys

from geoseg.errors import DeviceError

log = logging.getLogger(__name__)

EXIT_CODE = 74
"""Of a worker that left; any but 0 will do."""
_STICKY = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid program counter",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "gpu has fallen off the bus",
)
"""Words of CUDA for errors that stay: https://docs.nvidia.com/cuda/cuda-runtime-api, cudaError."""


def device_lost(error: BaseException) -> bool:
    """Tell whether an error says that this process cannot use its GPU any more.

    Examples
    --------
    >>> device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    True
    >>> device_lost(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    False
    """
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "cuda" in text and any(w in text for w in _STICKY)


def leave_if_lost(error: BaseException) -> None:
    """End this process if it is a worker and its GPU is lost to it.

    Raises
    ------
    DeviceError
        If the GPU is lost and the process is no worker.
    """
    if not device_lost(error):
        return
    said = str(error).splitlines()[0]
    if _is_worker():
        log.error("worker %d ends, its GPU failed: %s", os.getpid(), said)
        sys.stderr.flush()
        os._exit(EXIT_CODE)
    raise DeviceError(
        f"the GPU failed: {said}. This process cannot use it any more; what is finished is kept: "
        "the same command goes on from there, with --workers 2 one process of them alone ends"
    ) from error


def _is_worker() -> bool:
    """Tell whether this process is a worker of Dask's, in whichever thread one asks."""
    module = sys.modules.get("distributed.worker")
    return bool(module is not None and len(getattr(module.Worker, "_instances", ())))
