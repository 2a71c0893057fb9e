"""Run tasks in this process or on Dask workers, a bounded number of them at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Tasks handed out per worker: one runs, one waits. The rest is kept back, so that a task that
kills its worker does not take queued innocent ones with it."""
RETRIES = 1
"""How often a task that raised or lost its worker is tried again."""


def physical_cores() -> int:
    """Return the physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result | Exception]]:
    """Run a function on every task and yield each as it finishes.

    Parameters
    ----------
    function : callable
        Importable by name, so that workers can load it.
    tasks : iterable
        Taken one by one as workers become free; never all at once.
    workers : int
        Worker processes on this machine; 1 runs in this process, without Dask.

    Yields
    ------
    (task, result or Exception)
        In the order of completion; an exception stands for a task that failed for good.
    """
    if workers == 1:
        for task in tasks:
            yield task, _try_here(function, task)
        return
    yield from _run_on_cluster(function, tasks, workers)


def _try_here(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    for attempt in range(RETRIES + 1):
        try:
            return function(task)
        except Exception as error:  # noqa: BLE001  # becomes a failed supertile in the report
            if attempt == RETRIES:
                return error
            log.warning("a supertile failed and is tried again: %s", error)
    raise AssertionError  # the loop always returns


def _run_on_cluster(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result | Exception]]:
    import dask
    from dask.distributed import Client, as_completed
    from distributed.deploy.subprocess import SubprocessCluster

    settings: dict[str, Any] = {
        # one thread a worker: BLAS and torch bring their own
        "distributed.worker.daemon": True,
        "distributed.scheduler.worker-ttl": "15 minutes",
        # tasks return summaries of some 200 bytes: there is nothing to spill
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.profile.enabled": False,
    }
    with (
        dask.config.set(settings),
        # workers of their own process image: a script that calls geoseg.detect needs no
        # __main__ guard, and nothing listens beyond this machine
        SubprocessCluster(
            host="127.0.0.1",
            dashboard_address=None,  # type: ignore[arg-type]  # its own text allows None
            n_workers=workers,
            threads_per_worker=1,
            worker_kwargs={"dashboard": False},
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        waiting = iter(tasks)
        running = as_completed()
        known: dict[str, tuple[Task, int]] = {}

        def submit(task: Task, attempt: int) -> None:
            future = client.submit(function, task, pure=False, retries=0)
            known[future.key] = (task, attempt)
            running.add(future)

        for _ in range(IN_FLIGHT * workers):
            if (task := next(waiting, None)) is not None:
                submit(task, 0)
        for future in running:
            task, attempt = known.pop(future.key)
            error = future.exception()
            if error is not None and attempt < RETRIES:
                log.warning("a supertile failed and is tried again: %s", error)
                submit(task, attempt + 1)
                continue
            outcome = future.result() if error is None else error
            future.release()
            if (more := next(waiting, None)) is not None:
                submit(more, 0)
            yield task, outcome
