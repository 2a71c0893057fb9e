"""Run tasks in this process or on Dask workers, a bounded number of them at a time."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from geoseg.jobs import lifeline

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


class Workers:
    """Worker processes that live until the block ends; started when the first task comes.

    Parameters
    ----------
    count : int
        Worker processes on this machine; 1 runs in this process, without Dask.

    Examples
    --------
    >>> with Workers(1) as workers:
    ...     [outcome for _, outcome in workers.run(abs, [-1, 2])]
    [1, 2]
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._stack = ExitStack()
        self._client: Any = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._client = None
        self._stack.close()

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Iterator[tuple[Task, Result | Exception]]:
        """Run a function on every task and yield each as it finishes.

        Parameters
        ----------
        function : callable
            Importable by name, so that workers can load it.
        tasks : iterable
            Taken one by one as workers become free; never all at once.

        Yields
        ------
        (task, result or Exception)
            In the order of completion; an exception stands for a task that failed for good.
        """
        if self.count == 1:
            for task in tasks:
                yield task, _try_here(function, task)
            return
        if self._client is None:
            self._client = self._stack.enter_context(_cluster(self.count))
        yield from _hand_out(self._client, function, tasks, self.count)


def _try_here(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    for attempt in range(RETRIES + 1):
        try:
            return function(task)
        except Exception as error:  # noqa: BLE001  # the caller decides
            if attempt == RETRIES:
                return error
            log.warning("a task failed and is tried again: %s", error)
    raise AssertionError  # the loop always returns


_DASK: dict[str, Any] = {
    # one thread a worker: BLAS and torch bring their own
    "distributed.worker.daemon": True,
    "distributed.scheduler.worker-ttl": "15 minutes",
    # tasks return summaries of some 200 bytes: there is nothing to spill
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.profile.enabled": False,
    # a driver that was killed must leave no process behind
    "distributed.scheduler.preload": [lifeline.__name__],
    "distributed.nanny.preload": [lifeline.__name__],
}


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Start a scheduler and workers on this machine; yields a client."""
    import dask

    # distributed sets up its log when it is first imported; what goes wrong comes back as an
    # exception. Its defaults must be there before ours: leaving `set` takes out what it brought in
    with dask.config.set({"logging.distributed": "error"}):
        from dask.distributed import Client
        from distributed.deploy.subprocess import SubprocessCluster
    settings = _DASK | {"logging.distributed": "error"}
    with (
        dask.config.set(settings),
        _inherited(dask.config.serialize(dask.config.global_config)),
        # workers of their own process image: a script that calls geoseg.detect needs no
        # __main__ guard, and nothing listens beyond this machine
        SubprocessCluster(
            host="127.0.0.1",
            # any free port, not the one that a second run would want too
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            n_workers=workers,
            threads_per_worker=1,
            worker_kwargs={"dashboard": False},
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _hand_out(
    client: Any, function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result | Exception]]:
    """Keep `IN_FLIGHT` tasks per worker going until none is left."""
    from dask.distributed import as_completed

    waiting = iter(tasks)
    running = as_completed(loop=client.loop)
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
            log.warning("a task failed and is tried again: %s", error)
            submit(task, attempt + 1)
            continue
        outcome = future.result() if error is None else error
        future.release()
        if (more := next(waiting, None)) is not None:
            submit(more, 0)
        yield task, outcome


@contextmanager
def _inherited(dask_config: str) -> Iterator[None]:
    """Hand down to child processes what they would not get by themselves.

    Dask's settings; the folders that this process imports from, so that a detector that lies
    beside the user's script is found; and whom to live with.
    """
    handed_down = {
        "DASK_INTERNAL_INHERIT_CONFIG": dask_config,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
        lifeline.DRIVER_PID: str(os.getpid()),
    }
    before = {name: os.environ.get(name) for name in handed_down}
    os.environ.update(handed_down)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
