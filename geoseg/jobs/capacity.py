"""What this machine can run at once: cores, GPUs, and how a run deals them out."""

from __future__ import annotations

import os

from geoseg.jobs.plan import RunPlan


def physical_cores() -> int:
    """Return the physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


def usable_gpus(plan: RunPlan) -> tuple[str, ...]:
    """Return the GPUs for a model of ours, as CUDA_VISIBLE_DEVICES names them."""
    if plan.detector.model is None or plan.settings.device == "cpu":
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    names = [name for name in visible if name]
    return tuple(names[:count]) if names else tuple(str(i) for i in range(count))


def local_workers(plan: RunPlan) -> tuple[int, int, tuple[str, ...]]:
    """Return the processes of a run on this machine, CPU threads of each, and GPUs for them."""
    cores = physical_cores()
    gpus = usable_gpus(plan)
    # a GPU is fed by one process; more would only share its memory
    wanted = plan.settings.workers or len(gpus) or cores
    workers = max(1, min(wanted, plan.n_supertiles))
    # a single process needs nobody to deal out the only GPU
    return workers, max(1, cores // workers), gpus if workers > 1 else ()
