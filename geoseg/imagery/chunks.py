"""What was read of remote files, in a folder that the processes of a run share.

A file is cut into chunks of one size, chunks into segments; a segment is one sparse file that
begins with a flag per chunk. A flag is set after its chunk was written, so reading needs no lock:
whoever sees the flag may read the chunk. Who fetches a chunk claims it before, so that two
processes do not fetch the same one. Segments used longest ago go when the folder grows too large.
The folder goes with the process that made it.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

CHUNK = 16_384
"""Bytes that are fetched and kept together."""
CACHE_FOLDER = "GEOSEG_REMOTE_CACHE"
"""Environment variable with the folder; set for the workers that a run starts."""
CACHE_MB = "GEOSEG_REMOTE_CACHE_MB"
"""Environment variable with what the folder may hold, MB."""

_PREFIX = "geoseg-remote-"
_SEGMENT = 1024
_DEFAULT_MB = 2048.0
_IN_MEMORY = 256
_LOCKS = ".locks"
_CLAIM_S = 60.0
_lock = threading.Lock()
_recent: OrderedDict[tuple[str, int], bytes] = OrderedDict()


def cache_folder() -> Path:
    """Return the folder, made when it is first needed; only its owner can read it."""
    with _lock:
        given = os.environ.get(CACHE_FOLDER)
        if given:
            folder = Path(given)
            # its maker may have ended
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return folder
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        os.environ[CACHE_FOLDER] = str(folder)
        atexit.register(_remove, folder, os.getpid())
        return folder


def _remove(folder: Path, maker: int) -> None:
    """Remove the folder at the end of the process that made it."""
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop(CACHE_FOLDER, None)


def drop_cache() -> None:
    """Remove the folder now, if this process made it."""
    folder = Path(os.environ.get(CACHE_FOLDER, ""))
    if folder.name.startswith(f"{_PREFIX}{os.getpid()}-"):
        _remove(folder, os.getpid())
    with _lock:
        _recent.clear()


def _sweep() -> None:
    """Remove folders whose makers were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, ValueError):
            maker = int(folder.name.removeprefix(_PREFIX).partition("-")[0])
            if folder.stat().st_uid == os.getuid() and not Path(f"/proc/{maker}").exists():
                shutil.rmtree(folder, ignore_errors=True)


class ChunkStore:
    """The chunks of one state of one file.

    Parameters
    ----------
    key : str
        Tells it from all others; holds no secret.
    """

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(key.encode()).hexdigest()[:24]

    def get_many(self, indices: Sequence[int]) -> dict[int, bytes]:
        """Return those of some chunks that are there."""
        found = {}
        by_segment: dict[int, list[int]] = {}
        with _lock:
            for index in indices:
                chunk = _recent.get((self._key, index))
                if chunk is None:
                    by_segment.setdefault(index // _SEGMENT, []).append(index)
                else:
                    _recent.move_to_end((self._key, index))
                    found[index] = chunk
        for segment, wanted in by_segment.items():
            read = self._read(segment, wanted)
            found |= read
            for index, chunk in read.items():
                self._remember(index, chunk)
        return found

    @contextmanager
    def claim(self, indices: Sequence[int]) -> Iterator[None]:
        """Keep other processes from fetching some chunks meanwhile.

        The locks go with a process that dies. One that neither fetches nor dies is waited for no
        longer than a minute: a chunk fetched twice is no harm.

        Parameters
        ----------
        indices : sequence of int
            In ascending order, as all claim them, so that no two wait for each other.
        """
        end = time.monotonic() + _CLAIM_S
        with ExitStack() as stack:
            with suppress(OSError):
                path = cache_folder() / f"{self._key}{_LOCKS}"
                file = stack.enter_context(path.open("ab"))
                for index in indices:
                    while _is_locked(file.fileno(), index) and time.monotonic() < end:
                        time.sleep(0.005)
            yield

    def put(self, index: int, chunk: bytes) -> None:
        """Keep a chunk; where there is no room it is not kept."""
        self._remember(index, chunk)
        segment, place = divmod(index, _SEGMENT)
        path = self._path(segment)
        with suppress(OSError):
            if not path.exists():
                _make_room(path.parent)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                # the last chunk of a file is shorter: its length stands before it
                data = len(chunk).to_bytes(4, "little") + chunk
                os.pwrite(handle, data, _SEGMENT + place * (CHUNK + 4))
                os.pwrite(handle, b"\1", place)
            finally:
                os.close(handle)

    def _remember(self, index: int, chunk: bytes) -> None:
        with _lock:
            _recent[self._key, index] = chunk
            _recent.move_to_end((self._key, index))
            while len(_recent) > _IN_MEMORY:
                _recent.popitem(last=False)

    def _path(self, segment: int) -> Path:
        return cache_folder() / f"{self._key}-{segment}"

    def _read(self, segment: int, wanted: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        path = self._path(segment)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            flags = file.read(_SEGMENT)
            for index in wanted:
                place = index % _SEGMENT
                if place >= len(flags) or flags[place] != 1:
                    continue
                data = os.pread(file.fileno(), CHUNK + 4, _SEGMENT + place * (CHUNK + 4))
                length = int.from_bytes(data[:4], "little")
                if 0 < length <= len(data) - 4:
                    found[index] = data[4 : 4 + length]
            os.utime(path)
        return found


def _is_locked(handle: int, index: int) -> bool:
    """Lock a chunk, or tell that another process has it."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
    except (BlockingIOError, PermissionError):
        return True
    return False


def _make_room(folder: Path) -> None:
    """Remove the segments used longest ago where the folder holds too much."""
    try:
        limit = float(os.environ.get(CACHE_MB, _DEFAULT_MB)) * 1e6
    except ValueError:
        limit = _DEFAULT_MB * 1e6
    # on a disk that is nearly full, less
    limit = min(limit, shutil.disk_usage(folder).free / 2 + _held(folder))
    segments = []
    for path in folder.iterdir():
        with suppress(OSError):
            if path.suffix not in (".json", _LOCKS):
                state = path.stat()
                segments.append((state.st_mtime_ns, state.st_blocks * 512, path))
    held = sum(size for _, size, _ in segments)
    for _, size, path in sorted(segments):
        if held <= limit - _SEGMENT * CHUNK:
            return
        path.unlink(missing_ok=True)
        held -= size


def _held(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir() if path.is_file())
