"""Hand out tasks, in this process or to Dask workers, a bounded number of them at a time."""

from __future__ import annotations

import logging
import queue
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, Generic, TypeVar

from geoseg.errors import ClusterError, DeviceError, GeosegError, WorkerLostError
from geoseg.jobs.cluster import Cluster, Joining, joined_cluster, local_cluster, scheduler_lost
from geoseg.jobs.events import Events
from geoseg.jobs.lanes import keeping_threads
from geoseg.jobs.probe import Terms, check_here
from geoseg.jobs.stop import Stop

Task = TypeVar("Task")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Supertiles handed out per worker: the network looks at one, the other is read or written. The
rest is kept back, so that one that kills its worker does not take queued innocent ones with it."""
RETRIES = 1
"""How often a task that raised is tried again."""
POLL_S = 0.25
"""How long nothing may come back before the driver looks around."""
FETCH_S = 5.0
"""A summary of some hundred bytes has come by then, or its worker may be gone."""
REMEMBERED = 20
"""Tasks whose duration tells what the next one takes."""


class Workers:
    """Workers that live until the block ends; started or joined when the first task comes.

    Parameters
    ----------
    count : int
        Worker processes on this machine; 1 runs in this process, without Dask.
    gpus : sequence of str
        GPUs to deal out to them, as CUDA_VISIBLE_DEVICES names them.
    joining : Joining, optional
        A cluster of the user's, instead.
    stop : Stop, optional
        Asked before each task is handed out.
    events : Events, optional
        Told of workers that come and go, and of tasks tried again.

    Examples
    --------
    >>> with Workers(1) as workers:
    ...     [outcome for _, outcome in workers.run(abs, [-1, 2])]
    [1, 2]
    """

    def __init__(
        self,
        count: int,
        *,
        gpus: Sequence[str] = (),
        joining: Joining | None = None,
        stop: Stop | None = None,
        events: Events | None = None,
    ) -> None:
        self.count = count
        self.stop = stop or Stop()
        self.events = events or Events()
        self._gpus, self._joining = tuple(gpus), joining
        self._stack = ExitStack()
        self._cluster: Cluster | None = None
        self._took_s: deque[float] = deque(maxlen=REMEMBERED)

    def __enter__(self) -> Workers:
        self._stack.enter_context(keeping_threads())
        # threads that silence a warning at the same time put back each other's filters
        self._stack.enter_context(warnings.catch_warnings())
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster = None
        self._stack.close()

    @property
    def in_this_process(self) -> bool:
        """Whether tasks run here, where a crash is the driver's own."""
        return self.count == 1 and self._joining is None and not self._gpus

    def start(self) -> Cluster | None:
        """Start or join the workers, unless that is done or none are needed.

        Raises
        ------
        ClusterError
            If they do not start, cannot be reached, or do not fit.
        """
        if self._cluster is None and not self.in_this_process:
            source: AbstractContextManager[Cluster] = (
                local_cluster(self.count, self._gpus)
                if self._joining is None
                else joined_cluster(self._joining)
            )
            self._cluster = self._stack.enter_context(source)
        return self._cluster

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        per_worker: int = 1,
        alone: bool = False,
        tries: int = 1,
        on_gpu: bool = False,
    ) -> Iterator[tuple[Task, Result | Exception]]:
        """Run a function on every task and yield each as it finishes.

        Parameters
        ----------
        function : callable
            Importable by name, so that workers can load it.
        tasks : iterable
            Taken one by one as workers become free; never all at once.
        per_worker : int
            Tasks handed out per worker; they run side by side in threads.
        alone : bool
            One task at a time on the whole cluster: if a worker dies it is to blame, no other.
        tries : int
            How often a task is handed out before the deaths of its workers are held against it:
            machines fail and are taken away for reasons of their own.
        on_gpu : bool
            Tasks need what was asked of workers (``GPU``, or the user's own resources).

        Yields
        ------
        (task, result or Exception)
            In the order of completion; an exception stands for a task that failed for good,
            `WorkerLostError` for one whose workers died.

        Raises
        ------
        StoppedError
            If the run is to stop, after what was in flight has been yielded.
        ClusterError
            If the scheduler or all workers are gone.
        """
        cluster = self.start()
        with self.stop.draining():
            if cluster is None:
                yield from self._run_here(function, tasks, 1 if alone else per_worker)
            else:
                needs = self._needs() if on_gpu else {}
                size = (lambda: 1) if alone else (lambda: per_worker * cluster.size)
                terms = None if self._joining is None else self._joining.terms
                out = _HandOut(self, cluster, function, size, needs, terms, tries)
                try:
                    yield from out.run(tasks)
                except (RuntimeError, OSError) as error:
                    # Dask has many words for a connection that is gone
                    if cluster.connected:
                        raise
                    raise scheduler_lost(error) from error
        self.stop.check()

    def _needs(self) -> dict[str, float]:
        if self._joining is not None:
            return dict(self._joining.resources)
        # all that one worker is given shares its GPU
        return {"GPU": 1 / IN_FLIGHT} if self._gpus else {}

    def _run_here(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], at_once: int
    ) -> Iterator[tuple[Task, Result | Exception]]:
        waiting = iter(tasks)
        out: deque[tuple[Task, Future[Result | Exception], float]] = deque()
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="geoseg-task")
        try:
            while True:
                while len(out) < at_once and not self.stop.wanted(self.task_s):
                    if (task := next(waiting, None)) is None:
                        break
                    begun = time.monotonic()
                    out.append((task, pool.submit(self._try_here, function, task), begun))
                if not out:
                    return
                task, future, begun = out.popleft()
                outcome = future.result()
                self.took(time.monotonic() - begun)
                yield task, outcome
        finally:
            # left early: nobody waits for what is still out
            pool.shutdown(wait=not out, cancel_futures=True)

    def _try_here(self, function: Callable[[Task], Result], task: Task) -> Result | Exception:
        for attempt in range(RETRIES + 1):
            try:
                return function(task)
            except Exception as error:  # noqa: BLE001  # the caller decides
                if attempt == RETRIES or not worth_a_retry(error):
                    return error
                self.tell_retry(error)
        raise AssertionError  # the loop always returns

    def tell_retry(self, error: BaseException) -> None:
        """Say that a task is tried again."""
        log.warning("a task failed and is tried again: %s", error)
        self.events.add("retried", reason=str(error))

    @property
    def task_s(self) -> float:
        """What a task handed out now would take at most, seconds, judged by the last ones."""
        return max(self._took_s, default=0.0)

    def took(self, seconds: float) -> None:
        """Remember how long a task was out."""
        self._took_s.append(seconds)


def worth_a_retry(error: BaseException) -> bool:
    """Tell errors that may go away from wrong input and a lost GPU, which stay."""
    stays = isinstance(error, DeviceError)
    return not (stays or (isinstance(error, GeosegError) and error.exit_code == 2))


def run_checked(function: Callable[[Task], Result], terms: Terms, task: Task) -> Result:
    """Run a task on a worker of a joined cluster, which may have come late."""
    check_here(terms)
    return function(task)


class _HandOut(Generic[Task, Result]):
    """One pass over tasks: what is out, what comes back, what is tried again."""

    def __init__(
        self,
        workers: Workers,
        cluster: Cluster,
        function: Callable[[Task], Result],
        size: Callable[[], int],
        needs: dict[str, float],
        terms: Terms | None,
        tries: int,
    ) -> None:
        self.workers, self.cluster = workers, cluster
        self.function, self.size, self.needs, self.terms = function, size, needs, terms
        self.tries = tries
        self.back: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.out: dict[str, tuple[Any, Task, int, float]] = {}
        self.again: deque[tuple[Task, int]] = deque()
        self.name = f"geoseg-{function.__name__}-{uuid.uuid4().hex[:8]}"
        self.count = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | Exception]]:
        """Keep as many tasks out as there is room for, until none is left."""
        waiting = iter(tasks)
        try:
            while True:
                self._fill(waiting)
                if not self.out:
                    return
                future = self._next()
                if (done := self._settle(future)) is not None:
                    yield done
        finally:
            # left early: nobody waits for what is still out, and a lost scheduler cannot be told
            for future, *_ in self.out.values():
                with suppress(Exception):
                    future.cancel()

    def _fill(self, waiting: Iterator[Task]) -> None:
        room = self.size()
        while len(self.out) < room and not self.workers.stop.wanted(self.workers.task_s):
            if self.again:
                self._submit(*self.again.popleft())
            elif (task := next(waiting, None)) is not None:
                self._submit(task, 0)
            else:
                return

    def _submit(self, task: Task, attempt: int) -> None:
        key = f"{self.name}-{self.count}-{attempt}"
        self.count += 1
        options: dict[str, Any] = {"key": key, "pure": False, "retries": 0}
        if self.needs:
            options["resources"] = self.needs
        client = self.cluster.client
        if self.terms is None:
            future = client.submit(self.function, task, **options)
        else:
            future = client.submit(run_checked, self.function, self.terms, task, **options)
        self.out[key] = (future, task, attempt, time.monotonic())
        future.add_done_callback(self.back.put)

    def _next(self) -> Any:
        while True:
            try:
                return self.back.get(timeout=POLL_S)
            except queue.Empty:
                self.workers.stop.wanted()
                self._look_around()

    def _look_around(self) -> None:
        cluster, events = self.cluster, self.workers.events
        cluster.look()
        for address in cluster.lost:
            log.warning("worker %s is gone; its tasks are done again", address)
            events.add("worker lost", worker=address)
        for address in cluster.came:
            events.add("worker came", worker=address)
        cluster.lost, cluster.came = [], []

    def _fetch(self, future: Any) -> tuple[Any, BaseException | None]:
        """Return a result and None, or None and what the task raised.

        The worker that holds a result may die before it is fetched: then it is made again, by
        workers that have to be looked after meanwhile.
        """
        while True:
            if future.status == "error":
                return None, future.exception()
            if future.status == "cancelled":
                raise scheduler_lost()
            try:
                return future.result(timeout=FETCH_S), None
            except TimeoutError:
                self._look_around()
            except Exception:
                if future.status not in ("error", "cancelled"):
                    raise

    def _settle(self, future: Any) -> tuple[Task, Result | Exception] | None:
        """Return a task with what became of it; None if it is tried again."""
        _, task, attempt, begun = self.out.pop(future.key)
        self._look_around()
        result, error = self._fetch(future)
        if error is None:
            self.workers.took(time.monotonic() - begun)
            future.release()
            return task, result
        future.release()
        if isinstance(error, ClusterError):
            raise error
        if isinstance(error, _killed_worker()):
            if attempt + 1 < self.tries:
                self.again.append((task, attempt + 1))
                return None
            return task, WorkerLostError(
                "the worker processes that ran it died: killed, out of memory, or crashed"
            )
        if attempt < RETRIES and worth_a_retry(error):
            self.workers.tell_retry(error)
            self.again.append((task, attempt + 1))
            return None
        return task, _plain_error(error)


def _killed_worker() -> type[Exception]:
    """Return Dask's error for a task whose workers died."""
    from distributed.scheduler import KilledWorker

    error: type[Exception] = KilledWorker
    return error


def _plain_error(error: BaseException) -> Exception:
    """Return an error as one that a caller may hold on to."""
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
