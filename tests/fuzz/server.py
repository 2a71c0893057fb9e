"""A process that has imported everything and forks for each case: a case takes milliseconds.

The server reads one JSON line per case from stdin and answers with one line. The forked child
runs the commands of the case through the ``main`` of ``geoseg``, as users do; the server watches
it from outside: time, signals, exit code, and what it left in its folder.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 10.0
"""A case that takes longer hangs: of a processor's time, for a busy machine is slow with all."""
WAIT = 6
"""Times that limit by the clock, after which it hangs even if it did nothing."""
MEMORY_BYTES = 3 << 30
"""Address space beyond what the server itself has: absurd allocations fail instead of swapping."""
FILE_BYTES = 1 << 28
"""No file that a case writes may be larger."""
ENDS = (0, 1, 2, 3, 4)
"""Exit codes that geoseg may end with."""
ROOT = Path(__file__).parents[2]


Work = tuple[Path, Sequence[Sequence[str]], Sequence[str]]
"""Folder, commands and outputs of a case."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a case ended."""

    codes: tuple[int, ...]
    """Exit code of each command that ended by itself."""
    signal: int
    """Signal that ended the process; 0: none."""
    timed_out: bool
    seconds: float
    out: str
    err: str
    strays: tuple[str, ...]
    """Files that appeared, changed or vanished and are no output."""
    each_s: tuple[float, ...] = ()
    """Seconds of a processor's time of each case that came to its end."""

    @property
    def findings(self) -> tuple[str, ...]:
        """What must not be; empty if all is well."""
        found = []
        if self.timed_out:
            found.append(f"hang: more than {LIMIT_S:g} s")
        elif self.signal:
            found.append(f"signal {signal.Signals(self.signal).name}")
        found += [f"exit code {code}" for code in self.codes if code not in ENDS]
        said = self.out + self.err
        found += [
            f"says '{words}'"
            for words in ("Traceback", "internal error", "cannot be judged")
            if words in said
        ]
        found += [f"stray file: {stray}" for stray in self.strays]
        return tuple(found)


@dataclass(slots=True)
class Server:
    """The driver's end of a server process; a context manager."""

    limit_s: float = LIMIT_S
    torch: bool = False
    """Whether torch is imported, too: forking then costs four times as much."""
    _process: Any = field(default=None)

    def __enter__(self) -> Server:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.server", str(self.limit_s), str(int(self.torch))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(
        self, folder: Path, commands: Sequence[Sequence[str]], outputs: Sequence[str] = ()
    ) -> Ended:
        """Run commands one after the other in one process whose current folder is ``folder``.

        ``outputs`` are what they may write: names, or prefixes that end in '*'.
        """
        return self.run_all([(folder, commands, outputs)])

    def run_all(self, cases: Sequence[Work]) -> Ended:
        """Run several cases in one process, which is quicker; what is found is of any of them."""
        names = ("folder", "commands", "outputs")
        request = [dict(zip(names, (str(f), c, o), strict=True)) for f, c, o in cases]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server ended; its stderr says why")
        values = json.loads(line)
        return Ended(**values | {k: tuple(values[k]) for k in ("codes", "strays", "each_s")})


def _import_all(*, with_torch: bool) -> None:
    """Import what verbs import when they are called."""
    import importlib

    from geoseg.cli.main import VERBS

    heavy = ("learning.train", "learning.labels", "learning.chips", "models.convert", "models.detectron2",
             "models.inference")  # fmt: skip
    for name in (
        *(f"cli.{verb}" for verb in VERBS), "api", "runs", "jobs.pipeline", "jobs.estimate",
        "jobs.report", "jobs.changes", "imagery.check", "outputs.polygons", "outputs.counts",
        "objects.evaluate", "outputs.report", *(heavy if with_torch else ()),
    ):  # fmt: skip
        importlib.import_module(f"geoseg.{name}")
    import fuzz.targets

    if with_torch:
        import torch
        import yaml  # noqa: F401
        from safetensors.torch import load_file  # noqa: F401

        torch.set_num_threads(1)
    assert fuzz.targets.CALLS
    _warm_up()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _warm_up() -> None:
    """Let GDAL and PROJ read their tables once, and not in every child; nothing starts threads."""
    import contextlib
    import io
    import random
    import tempfile

    from fuzz import tiff
    from geoseg.cli.main import main as geoseg

    before = _threads()
    picture = tiff.image(random.Random(1))
    tiff.georeference(picture)
    with tempfile.NamedTemporaryFile(suffix=".tif") as file, contextlib.redirect_stdout(
        io.StringIO()
    ), contextlib.redirect_stderr(io.StringIO()):  # fmt: skip
        Path(file.name).write_bytes(tiff.write([picture]))
        for command in (["check"], ["plan", "--no-probe", "--detector", "fuzz.targets:detector"]):
            code = geoseg([*command, file.name])
            assert code == 0, command
    logging.getLogger().handlers.clear()
    after = _threads()
    assert after == before, f"{after - before} new threads: a fork would lose them"


def _child(request: list[dict[str, Any]], log: Path) -> None:
    """Run the commands of a case in this process, which ends here."""
    os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        own = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    import tempfile

    from fuzz.targets import run_command

    with (log / "codes").open("w", encoding="ascii", buffering=1) as codes:
        for case in request:
            begun = time.process_time()
            os.chdir(case["folder"])
            for name in ("TMPDIR", "HOME"):
                os.environ[name] = str(Path(case["folder"]).parent / "tmp")
            tempfile.tempdir = None
            for command in case["commands"]:
                codes.write(f"code {run_command(command)}\n")
                sys.stdout.flush()
                sys.stderr.flush()
            codes.write(f"seconds {time.process_time() - begun:.4f}\n")
    os._exit(0)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def _strays(case: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return what appeared, changed or vanished beside the outputs of a case."""
    after = _files(Path(case["folder"]).parent)
    return sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
        and not any(
            name.startswith(f"case/{o[:-1]}") if o.endswith("*") else name == f"case/{o}"
            for o in case["outputs"]
        )
    )


def serve(request: list[dict[str, Any]], log: Path, limit_s: float) -> Ended:
    """Fork, wait and look."""
    before = []
    for case in request:
        folder = Path(case["folder"])
        # all that a case may touch lies in the folder of its folder
        assert folder.name == "case"
        (folder.parent / "tmp").mkdir(exist_ok=True)
        before.append(_files(folder.parent))
    (log / "codes").write_text("", encoding="ascii")
    begun = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            _child(request, log)
        except BaseException as error:  # noqa: BLE001  # nothing may return into the server
            os.write(2, f"fuzz: internal error: {error!r}\n".encode())
        finally:
            os._exit(70)
    status, timed_out = _wait(process, limit_s * (1 if len(request) == 1 else 3))
    seconds = time.monotonic() - begun
    strays = [s for case, b in zip(request, before, strict=True) for s in _strays(case, b)]
    notes = [line.split() for line in (log / "codes").read_text(encoding="ascii").splitlines()]
    codes = [int(value) for what, value in notes if what == "code"]
    each = tuple(float(value) for what, value in notes if what == "seconds")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        codes.append(os.WEXITSTATUS(status))
    texts = [(log / n).read_text(encoding="utf-8", errors="replace") for n in ("out", "err")]
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    timed_out |= len(request) > 1 and max(each, default=0.0) > limit_s
    return Ended(tuple(codes), ended_by, timed_out, round(seconds, 4), *texts, tuple(strays), each)


def _worked_s(process: int) -> float:
    """Return the processor's time that a process has taken, seconds."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(process: int, limit_s: float) -> tuple[int, bool]:
    """Wait for a process and end it in time; return its status and whether that was needed."""
    watched = os.pidfd_open(process)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    begun, timed_out = time.monotonic(), False
    while not poll.poll(limit_s * 200) and not timed_out:
        timed_out = time.monotonic() - begun > WAIT * limit_s or _worked_s(process) > limit_s
    if timed_out:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(watched)
    with suppress(ProcessLookupError, PermissionError):
        # what it started and left behind
        os.killpg(process, signal.SIGKILL)
    return status, timed_out


def main() -> None:
    """Serve until stdin ends."""
    import tempfile

    limit_s = float(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    _import_all(with_torch=sys.argv[2] == "1")
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="fuzz-log-") as log:
        for line in sys.stdin:
            answers.write(json.dumps(asdict(serve(json.loads(line), Path(log), limit_s))) + "\n")


if __name__ == "__main__":
    main()
