"""Dask workers: processes started on this machine, or a cluster that the user runs."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geoseg.errors import ClusterError, ConfigError
from geoseg.jobs import lifeline
from geoseg.jobs.probe import Terms, describe_problems, problem_here

log = logging.getLogger(__name__)

START_S = 60.0
"""A local scheduler is up by then, or something is wrong."""
JOIN_S = 45.0
"""A cluster that is joined has a worker, and the resources asked for, by then."""
NO_WORKER_S = 600.0
"""A run waits so long for a worker to come back."""
LOOK_EVERY_S = 2.0
"""How often the list of workers is asked for."""
THREADS = 2
"""Tasks that a worker runs side by side: one is read while the network looks at the other."""
DEATHS = 1
"""A task is taken from its workers when more than so many died with it (Dask: allowed-failures)."""

_DASK: dict[str, Any] = {
    "distributed.worker.daemon": True,
    "distributed.scheduler.worker-ttl": "15 minutes",
    "distributed.scheduler.allowed-failures": DEATHS,
    "distributed.comm.retry.count": 3,
    # tasks return summaries of some 200 bytes: there is nothing to spill
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # and a worker paused with nothing to spill would never go on
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    # logs for Dask's own developers, of which every process keeps several
    "distributed.admin.low-level-log-length": 50,
    "distributed.admin.log-length": 500,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.log-length": 100,
    # a driver that was killed must leave no process behind
    "distributed.scheduler.preload": [lifeline.__name__],
    "distributed.nanny.preload": [lifeline.__name__],
    # distributed sets up its log when it is first imported; what goes wrong comes back as an
    # exception, and what processes say when their scheduler died helps nobody
    "logging": dict.fromkeys(
        ("distributed", "distributed.client", "tornado", "tornado.application"), "critical"
    ),
}


@dataclass(frozen=True, slots=True)
class Joining:
    """A cluster of the user's."""

    scheduler: str
    """tcp://host:port, tls://host:port, or the path of a scheduler file."""
    insecure: bool = False
    """Plain tcp beyond this machine is all right."""
    terms: Terms | None = None
    """What every worker must have."""
    resources: tuple[tuple[str, float], ...] = ()
    """What each task needs of its worker."""


class Cluster:
    """A scheduler and its workers, as the driver sees them.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    joined : Joining, optional
        None: the workers were started for this run.
    revive : callable, optional
        Starts own workers again that have ended with their keepers; raises `ClusterError` if the
        scheduler has ended.
    """

    def __init__(
        self,
        client: Any,
        joined: Joining | None = None,
        revive: Callable[[], None] | None = None,
    ) -> None:
        self.client = client
        self._revive = revive
        self.joined = joined
        self.workers: dict[str, int] = {}
        """Address to threads, as last seen."""
        self.lost: list[str] = []
        """Workers that went since this was last emptied."""
        self.came: list[str] = []
        """Workers that came since this was last emptied."""
        self._looked = self._seen = time.monotonic()
        self.look(force=True)

    @property
    def connected(self) -> bool:
        """Whether the scheduler can be talked to, as far as is known."""
        return bool(self.client.status == "running")

    @property
    def size(self) -> int:
        """Workers that are there; at least 1."""
        return max(1, len(self.workers))

    def look(self, *, force: bool = False) -> None:
        """Take note of workers that came and went.

        Raises
        ------
        ClusterError
            If the scheduler is gone, or all workers for `NO_WORKER_S`.
        """
        now = time.monotonic()
        if not force and now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        if self._revive is not None:
            self._revive()
        try:
            workers = dict(self.client.nthreads())
        except (OSError, RuntimeError, ValueError) as error:
            raise scheduler_lost(error) from error
        self.lost += sorted(set(self.workers) - set(workers))
        self.came += sorted(set(workers) - set(self.workers))
        self.workers = workers
        if workers:
            self._seen = now
        elif now - self._seen > NO_WORKER_S:
            raise ClusterError(
                f"no worker has been there for {NO_WORKER_S / 60:.0f} minutes; start workers and "
                "give the same command again: it goes on from here"
            )


def scheduler_lost(error: BaseException | None = None) -> ClusterError:
    """Return the error for a scheduler that is gone."""
    detail = f" ({type(error).__name__})" if error is not None else ""
    return ClusterError(
        f"the connection to the scheduler was lost{detail}; what is finished is kept: the same "
        "command goes on from there"
    )


@contextmanager
def local_cluster(count: int, gpus: Sequence[str] = ()) -> Iterator[Cluster]:
    """Start a scheduler and workers on this machine; nothing listens beyond it.

    Parameters
    ----------
    count : int
        Worker processes.
    gpus : sequence of str
        As CUDA_VISIBLE_DEVICES names them: dealt out to the workers, each of which sees one and
        has the resource ``GPU`` once.

    Raises
    ------
    ClusterError
        If they do not start.
    """
    import dask

    # its defaults must be there before ours: leaving `set` takes out what it brought in
    with dask.config.set({"logging.distributed": "error"}):
        from dask.distributed import Client
        from distributed.system import MEMORY_LIMIT
    host = "127.0.0.1"
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_DASK))
        # a closed connection is told by what was to come over it
        stack.enter_context(_quiet())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geoseg-dask-")))
        env = _handed_down(dask.config.serialize(dask.config.global_config))
        address_file = folder / "scheduler.json"
        scheduler = {
            "host": host,
            "port": 0,
            "dashboard": False,
            # any free port, not the one that a second run would want too
            "dashboard_address": f"{host}:0",
            "scheduler_file": str(address_file),
        }
        started = stack.enter_context(_processes())
        started.append(_start("distributed.Scheduler", scheduler, (), env))
        address = _wait_for_address(address_file, started[0])
        options: dict[str, Any] = {
            "host": host,
            "nthreads": THREADS,
            "dashboard": False,
            "silence_logs": logging.CRITICAL,
            "memory_limit": int(MEMORY_LIMIT / count),
            "local_directory": str(folder),
        }
        if gpus:
            options["resources"] = {"GPU": 1}

        def start_worker(number: int) -> subprocess.Popen[bytes]:
            own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
            return _start("distributed.Nanny", options, (address,), env | own)

        def revive() -> None:
            if started[0].poll() is not None:
                # asking it would take as long as connecting may: minutes
                raise scheduler_lost()
            # a keeper starts its worker again, but ends where the worker said goodbye
            for number in range(count):
                if started[1 + number].poll() is not None:
                    started[1 + number] = start_worker(number)

        started += [start_worker(number) for number in range(count)]
        client = stack.enter_context(_connected(Client, address))
        _wait_for_workers(client, count, started)
        yield Cluster(client, revive=revive)


def _handed_down(dask_config: str) -> dict[str, str]:
    """Return the environment of child processes, with what they would not get by themselves.

    Dask's settings; the folders that this process imports from, so that a detector that lies
    beside the user's script is found; and whom to live with.
    """
    # a server that is ended on a busy machine leaves semaphores that Python clears away, aloud
    quiet = "ignore:resource_tracker:UserWarning"
    warnings = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), quiet)))
    return os.environ | {
        "PYTHONWARNINGS": warnings,
        "DASK_INTERNAL_INHERIT_CONFIG": dask_config,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
        lifeline.DRIVER_PID: str(os.getpid()),
    }


def _start(
    cls: str, options: Mapping[str, Any], args: Sequence[str], env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start one of Dask's servers, in a session of its own: Ctrl-C is the driver's to hear."""
    spec = json.dumps({"cls": cls, "opts": dict(options)})
    command = [sys.executable, "-m", "dask", "spec", *args, "--spec", spec]
    return subprocess.Popen(  # noqa: S603  # our own command
        command, env=dict(env), start_new_session=True, stdin=subprocess.DEVNULL
    )


@contextmanager
def _processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Give a list for processes; they end with the block, and all that they started."""
    import psutil

    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        family = []
        for process in started:
            with contextlib.suppress(psutil.Error):
                family += psutil.Process(process.pid).children(recursive=True)
            process.kill()
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        for process in started:
            process.wait()


def _wait_for_address(file: Path, scheduler: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and scheduler.poll() is None:
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return str(json.loads(file.read_text(encoding="utf-8"))["address"])
        time.sleep(0.05)
    raise ClusterError(
        f"the scheduler did not start (exit code {scheduler.poll()}); --workers 1 runs without one"
    )


def _wait_for_workers(client: Any, count: int, started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the first worker; the others may come while it works."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and any(p.poll() is None for p in started[1:]):
        if started[0].poll() is not None:
            raise scheduler_lost()
        try:
            if client.nthreads():
                return
        except (OSError, RuntimeError, ValueError) as error:
            raise scheduler_lost(error) from error
        time.sleep(0.05)
    raise ClusterError(f"none of {count} worker processes started; --workers 1 runs without them")


@contextmanager
def _connected(client_class: Any, address: str) -> Iterator[Any]:
    """Give a client that does not become everybody's default and does not hang when it closes."""
    try:
        client = client_class(address, set_as_default=False, timeout=f"{JOIN_S:.0f}s")
    except (OSError, ValueError, ImportError) as error:
        same = ", with certificates of the same folder" if address.startswith("tls") else ""
        raise ClusterError(
            f"cannot connect to the scheduler at {address} ({type(error).__name__}); check that "
            f"it runs{same} and that this machine may reach it"
        ) from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log for what it cannot tell otherwise."""
    heads = ("distributed", "tornado", "asyncio")
    known = list(logging.root.manager.loggerDict)
    loggers = [logging.getLogger(name) for name in known if name.partition(".")[0] in heads]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        # attempts to connect that nobody waits for complain when they are thrown away
        gc.collect()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def scheduler_address(scheduler: str, *, insecure: bool) -> str:
    """Return the address of a scheduler, from itself or from its file.

    Raises
    ------
    ConfigError
        If it is none, or plain tcp beyond this machine that was not asked for.
    """
    address = scheduler
    if "://" not in scheduler:
        try:
            address = str(json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--scheduler is '{scheduler}'; expected tcp://HOST:PORT, tls://HOST:PORT, or the "
                "file that dask scheduler --scheduler-file writes"
            ) from error
    parts = urlsplit(address)
    try:
        known = parts.scheme in ("tcp", "tls") and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            f"--scheduler is '{scheduler}'; expected tcp://HOST:PORT or tls://HOST:PORT"
        )
    if parts.scheme == "tcp" and not insecure and not _is_loopback(str(parts.hostname)):
        raise ConfigError(
            f"--scheduler {address} is plain tcp: whoever reaches it may run code on all workers; "
            "use tls://, or --insecure-cluster in a network that you trust"
        )
    return address


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextmanager
def joined_cluster(joining: Joining) -> Iterator[Cluster]:
    """Join a cluster that runs, after making sure that its workers fit.

    Raises
    ------
    ClusterError
        If it cannot be reached, has no worker or not the resources, or workers differ.
    """
    import dask

    address = scheduler_address(joining.scheduler, insecure=joining.insecure)
    with dask.config.set({"logging.distributed": "error"}):
        from dask.distributed import Client
    _check_certificates(address)
    with _quiet(), _connected(Client, address) as client:
        _wait_for_resources(client, joining)
        if joining.terms is not None:
            check_workers(client, joining.terms)
        yield Cluster(client, joining)


def _check_certificates(address: str) -> None:
    """Refuse tls where this process has no certificates: Dask would say so late and darkly."""
    from distributed.security import Security

    if urlsplit(address).scheme != "tls":
        return
    cure = (
        "export DASK_CONFIG with the folder that workflows/cluster/tls/certificates.sh made, as "
        "where scheduler and workers were started"
    )
    try:
        context = Security().get_connection_args("client")["ssl_context"]
    except OSError as error:
        raise ConfigError(
            f"--scheduler {address}: the certificates that Dask's settings name cannot be used "
            f"({error}); {cure}"
        ) from error
    if context is None:
        raise ConfigError(
            f"--scheduler {address} needs certificates, and Dask's settings name none; {cure}"
        )


def _wait_for_resources(client: Any, joining: Joining) -> None:
    """Wait for a worker that has what tasks need, not for ever as Dask would."""
    wanted = dict(joining.resources)
    end = time.monotonic() + JOIN_S
    found: dict[str, Any] = {}
    while True:
        found = client.scheduler_info(n_workers=-1)["workers"]
        for worker in found.values():
            has = worker.get("resources") or {}
            if all(has.get(name, 0) >= amount for name, amount in wanted.items()):
                return
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    if not found:
        raise ClusterError(f"the cluster has had no worker for {JOIN_S:.0f} s; start workers first")
    text = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
    raise ClusterError(
        f"none of {len(found)} workers has the resource {text}; start workers with --resources "
        f'"{text}", or leave --resource out'
    )


def check_workers(client: Any, terms: Terms) -> None:
    """Ask every worker whether it meets the terms.

    Raises
    ------
    ClusterError
        Names a worker that does not, and what to do.
    """
    try:
        answers = client.run(problem_here, terms, on_error="return")
    except Exception as error:
        # what a worker cannot load comes back as whatever loading raised
        raise ClusterError(f"asking the workers for their versions failed: {error}") from error
    said = {
        place: f"geoseg does not load there ({answer})" if isinstance(answer, Exception) else answer
        for place, answer in answers.items()
    }
    if problem := describe_problems(said):
        raise ClusterError(problem)


def write_token(run_dir: Path) -> tuple[str, str]:
    """Write a file that workers are to find; returns its path and text."""
    path, text = run_dir.absolute() / "token", uuid.uuid4().hex
    path.write_text(text, encoding="utf-8")
    return str(path), text
