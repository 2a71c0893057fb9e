"""Put a finished file in place of an old one, so that nobody ever sees half of one.

A GeoPackage is a SQLite database, and its ``-journal``, ``-wal`` and ``-shm`` files are part of
it: a new file renamed over an old one beside a stale journal is destroyed when next opened. So
the old file is first brought to rest and proven unlocked, and only then replaced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError

from geoseg.errors import OutputError

SIDECARS = ("-journal", "-wal", "-shm")
LOCK_WAIT_S = 5.0
_OGR_ERRORS = (DataSourceError, DataLayerError)
_WRITE_ERRORS = (
    *(*_OGR_ERRORS, FieldError, FeatureError),
    *(OSError, sqlite3.Error, pa.ArrowException),
)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give a place for the file on the target's own disk; whatever is left there is removed.

    A folder, not a file: journals and index files that a dying writer leaves go with it.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write in {path.parent} ({error}); choose another") from error
    try:
        yield folder / path.name
    except _WRITE_ERRORS as error:
        free_mb = shutil.disk_usage(path.parent).free / 1e6
        raise OutputError(
            f"writing {path} failed ({first_line(error)}); {free_mb:,.0f} MB are free there; "
            "an earlier file of that name is as it was"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(new: Path, target: Path, *, overwrite: bool) -> None:
    """Put a finished file, which is no database, in place of the target."""
    fsync(new)
    if target.exists() and not overwrite:
        raise OutputError(f"output {target} appeared while it was being made; not replaced")
    new.replace(target)
    fsync(target.parent)


def publish_database(new: Path, target: Path, *, overwrite: bool) -> None:
    """Put the finished file in place of the target, or keep it beside and say why."""
    try:
        if target.exists():
            if not overwrite:
                raise OutputError(f"{target} appeared while it was being made")
            _replace_database(new, target)
        else:
            _refuse_sidecars(target)
            new.replace(target)
    except (OutputError, OSError, sqlite3.Error) as error:
        kept = _name_beside(target)
        new.replace(kept)
        fsync(target.parent)
        reason = first_line(error)
        raise OutputError(
            f"{target} was not replaced: {reason}. The new file is complete and lies at {kept}; "
            "close programs that have the old one open, then rename it"
        ) from error
    fsync(target.parent)


def _replace_database(new: Path, target: Path) -> None:
    """Bring the old database to rest, prove that nobody uses it, and replace it."""
    if not _is_database(target):
        _refuse_sidecars(target)
        new.replace(target)
        return
    database = sqlite3.connect(target, timeout=LOCK_WAIT_S, isolation_level=None)
    with contextlib.closing(database):
        # the first rolls a hot journal back and folds a write-ahead log in; both fail if locked
        mode = database.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        if mode != "delete":
            raise OutputError(f"it is in journal mode '{mode}', which cannot be ended")
        database.execute("BEGIN EXCLUSIVE")
        if os.name == "posix":
            # the lock is held over the exchange; closing then lets go of the old, nameless file
            _refuse_sidecars(target)
            new.replace(target)
            return
        database.execute("ROLLBACK")
    _refuse_sidecars(target)
    new.replace(target)


def _is_database(path: Path) -> bool:
    """Tell whether the file starts as SQLite files do."""
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def sidecars(path: Path) -> list[Path]:
    """Return the SQLite files that lie beside a database."""
    return [s for s in (Path(f"{path}{suffix}") for suffix in SIDECARS) if s.exists()]


def _refuse_sidecars(path: Path) -> None:
    """Never put a new database beside the journal of another: SQLite would apply it."""
    left = sidecars(path)
    if left:
        raise OutputError(f"{left[0].name} lies beside it and would corrupt the new file")


def _name_beside(path: Path) -> Path:
    """Return a free name with the time in it, UTC."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, n = path.with_name(f"{path.stem}.{stamp}{path.suffix}"), 1
    while name.exists() or sidecars(name):
        name, n = path.with_name(f"{path.stem}.{stamp}-{n}{path.suffix}"), n + 1
    return name


def fsync(path: Path) -> None:
    """Ask the disk to keep a file, or the names in a folder (where the system can)."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message of one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
