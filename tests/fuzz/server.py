"""A process that has imported everything and forks for each case: a case takes milliseconds.

The server reads one JSON line per case from stdin and answers with one line. The forked child
runs the commands of the case through the ``main`` of ``geoseg``, as users do; the server watches
it from outside: time, signals, exit code, and what it left in its folder.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 10.0
"""A case that takes longer hangs."""
MEMORY_BYTES = 3 << 30
"""Address space beyond what the server itself has: absurd allocations fail instead of swapping."""
FILE_BYTES = 1 << 28
"""No file that a case writes may be larger."""
ENDS = (0, 1, 2, 3, 4)
"""Exit codes that geoseg may end with."""
ROOT = Path(__file__).parents[2]


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
        request = {"folder": str(folder), "commands": commands, "outputs": outputs}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server ended; its stderr says why")
        values = json.loads(line)
        return Ended(**values | {k: tuple(values[k]) for k in ("codes", "strays")})


def _import_all(*, with_torch: bool) -> None:
    """Import what verbs import when they are called."""
    import importlib

    from geoseg.cli.main import VERBS

    heavy = ("learning.train", "learning.labels", "models.convert", "models.detectron2",
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


def _warm_up() -> None:
    """Let GDAL and PROJ read their tables once, and not in every child; nothing starts threads."""
    import pyproj
    import rasterio
    from rasterio.io import MemoryFile

    from geoseg.models.registry import find_card

    find_card("buildings")
    profile = {"driver": "GTiff", "width": 16, "height": 16, "count": 1, "dtype": "uint8"}
    with MemoryFile() as file, file.open(**profile, crs="EPSG:32633") as dst:
        dst.transform = rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5.5e6)
    for code in (32633, 4326, 3857):
        pyproj.Transformer.from_crs(code, 4979, always_xy=True).transform(1.0, 2.0)
    started = len(list(Path("/proc/self/task").iterdir()))
    assert started == 1, f"{started} threads: a fork would lose them"


def _child(request: dict[str, Any], log: Path) -> None:
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
    os.chdir(request["folder"])
    for name in ("TMPDIR", "HOME"):
        os.environ[name] = str(Path(request["folder"]).parent / "tmp")
    import tempfile

    from fuzz.targets import run_command

    tempfile.tempdir = None
    with (log / "codes").open("w", encoding="ascii", buffering=1) as codes:
        for command in request["commands"]:
            codes.write(f"{run_command(command)}\n")
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(0)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def _may_change(name: str, outputs: Sequence[str]) -> bool:
    return any(
        name.startswith(f"case/{o[:-1]}") if o.endswith("*") else name == f"case/{o}"
        for o in outputs
    )


def serve(request: dict[str, Any], log: Path, limit_s: float) -> Ended:
    """Fork, wait and look."""
    folder = Path(request["folder"])
    # all that a case may touch lies in the folder of its folder
    assert folder.name == "case"
    (folder.parent / "tmp").mkdir(exist_ok=True)
    (log / "codes").write_text("", encoding="ascii")
    before = _files(folder.parent)
    begun = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            _child(request, log)
        except BaseException as error:  # noqa: BLE001  # nothing may return into the server
            os.write(2, f"fuzz: internal error: {error!r}\n".encode())
        finally:
            os._exit(70)
    watched = os.pidfd_open(process)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    timed_out = not poll.poll(limit_s * 1000)
    if timed_out:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(watched)
    seconds = time.monotonic() - begun
    try:
        # what it started and left behind
        os.killpg(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    after = _files(folder.parent)
    strays = sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and not _may_change(name, request["outputs"])
    )
    codes = [int(line) for line in (log / "codes").read_text(encoding="ascii").split()]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        codes.append(os.WEXITSTATUS(status))
    texts = [(log / n).read_text(encoding="utf-8", errors="replace") for n in ("out", "err")]
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended(tuple(codes), ended_by, timed_out, round(seconds, 4), *texts, tuple(strays))


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
