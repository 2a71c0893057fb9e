"""The run directory: parts, manifest, lock. What is finished is what exists under its key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import ConfigError
from geoseg.jobs.events import EVENTS
from geoseg.jobs.parts import disk_error
from geoseg.redact import redact_all

if TYPE_CHECKING:
    from filelock import BaseFileLock

MANIFEST = "run.json"
REPORTED = ("report.html", "regions.parquet", "coverage.parquet")
"""The page of a run, and the tables that it is made from."""
SHARD_WAIT_S = 20.0
"""Shards that start at the same time wait for each other to look at the directory."""
LOOK_WAIT_S = 2.0
"""A lock that is only looked at is free again by then."""
KEPT = ("outputs", "writing", "objects_file", "joined_seams")
"""What a run that goes on keeps of the manifest: whose the output is, and what is joined."""

_SHAPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "state", "geoseg", "python", "reason"), (str,)),
    **dict.fromkeys(("images", "failed_tiles", "saturated_places", "notes"), (list,)),
    **dict.fromkeys(("settings", "outputs", "packages", "model", "supertiles", "seconds"), (dict,)),
    **dict.fromkeys(("objects_file", "joined_seams", "seams", "imaged"), (dict,)),
    **dict.fromkeys(("peak_mb", "objects", "saturated_tiles"), (int, float)),
}
"""What stands where in a manifest; a key may be missing."""


def digest(*values: Any) -> str:
    """Return a short hash of plain values, the same in every process."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check_shapes(values: dict[str, Any]) -> None:
    """Raise ValueError where a manifest holds something else than is written into one."""
    for name, kinds in _SHAPES.items():
        if not isinstance(values.get(name), (*kinds, type(None))):
            raise ValueError(f"{name} is a {type(values[name]).__name__}")
    for name in ("images", "failed_tiles", "saturated_places"):
        if not all(isinstance(value, dict) for value in values.get(name) or ()):
            raise ValueError(f"{name} has something else than tables in it")
    files = (values.get("outputs") or {}).get("files") or []
    if not isinstance(files, list) or not all(isinstance(f, dict | None) for f in files):
        raise ValueError("outputs has something else than a list of files")
    if not isinstance((values.get("settings") or {}).get("output"), str | None):
        raise ValueError("the output in settings is no name")
    for name in ("supertiles", "seconds"):
        if not all(type(value) in (int, float) for value in (values.get(name) or {}).values()):
            raise ValueError(f"{name} has something else than numbers in it")


def manifest_from(text: str) -> dict[str, Any]:
    """Return what a manifest says.

    Raises
    ------
    ValueError
        If it is none, such as one that a full disk or a hand has spoilt.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("lists in lists, deeper than any manifest") from error
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}, not a table")
    _check_shapes(values)
    return values


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One job's directory.

    Raises
    ------
    ConfigError
        From `prepare`, if it belongs to another job.
    """

    path: Path

    @property
    def parts(self) -> Path:
        """Where the parts lie."""
        return self.path / "parts"

    @property
    def joins(self) -> Path:
        """Where joins keep what they finished until the objects file is complete."""
        return self.path / "joins"

    @property
    def tiles(self) -> Path:
        """Where tiles of failed supertiles keep what they found until it is put together."""
        return self.path / "tiles"

    @property
    def stop_file(self) -> Path:
        """The run stops when this is there."""
        return self.path / "stop"

    @property
    def objects(self) -> Path:
        """All objects of the run, GeoParquet."""
        return self.path / "objects.parquet"

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Give an empty folder `joins`, and remove it with all that is in it."""
        shutil.rmtree(self.joins, ignore_errors=True)
        self.joins.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self.joins, ignore_errors=True)

    def part(self, key: str) -> Path:
        """Return the path of one part."""
        return self.parts / f"{key}.parquet"

    def check(self, run_key: str, *, overwrite: bool) -> None:
        """Refuse a directory that holds something else, before anything is computed."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ConfigError(f"--run-dir {self.path} is a file; name a directory")
        # the directory itself may be a link to a larger disk, but what we clear away in it not:
        # somebody else could make us write into, or empty, another folder
        for inside in (self.parts, self.tiles, self.joins, self.objects, self.path / MANIFEST):
            if inside.is_symlink():
                raise ConfigError(
                    f"{inside} is a link to {inside.readlink()}; remove it, or name another "
                    "--run-dir"
                )
        manifest = self.read_manifest()
        # a run that was stopped before it wrote its manifest leaves these
        ours: tuple[str, ...] = ("lock*", "owner*.json", "stop", "token", EVENTS, f".{MANIFEST}.*")
        if (self.path / MANIFEST).is_file():
            # a manifest that a power cut spoilt
            ours += (MANIFEST, "parts", "tiles", "joins", "objects.parquet", *REPORTED)
        if manifest is None and any(
            not any(entry.match(name) for name in ours) for entry in self.path.iterdir()
        ):
            raise ConfigError(
                f"--run-dir {self.path} is not empty and holds no run; name another directory"
            )
        if manifest is not None and manifest.get("key") != run_key and not overwrite:
            raise ConfigError(
                f"{self.path} holds a run with other images, model or settings; give --overwrite "
                "to start it anew, or another --run-dir to keep both"
            )

    def prepare(self, run_key: str, settings: Mapping[str, Any], *, shared: bool = False) -> None:
        """Create the directory; parts of another run are removed.

        `shared`: other shards may be at work here, so what is theirs stays.
        """
        manifest = self.read_manifest() or {}
        same = manifest.get("key") == run_key
        # without a manifest nobody knows whose parts lie there: they are named by their key
        if manifest and not same and not shared:
            shutil.rmtree(self.parts, ignore_errors=True)
            for stale in REPORTED:
                (self.path / stale).unlink(missing_ok=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        if not shared:
            for left in self.parts.glob(".*"):
                # a private name of a writer that was killed
                left.unlink()
            shutil.rmtree(self.tiles, ignore_errors=True)
            # it asked for the end of the run before this one
            self.stop_file.unlink(missing_ok=True)
        self.tiles.mkdir(exist_ok=True)
        if shared and same:
            return
        kept = {name: manifest[name] for name in KEPT if same and name in manifest}
        values = {"key": run_key, "state": "running", "settings": dict(settings)}
        self.write_manifest(kept | values)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None where there is none."""
        try:
            return manifest_from((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write_manifest(self, values: Mapping[str, Any]) -> None:
        """Write the manifest whole or not at all."""
        private = self.path / f".{MANIFEST}.{os.getpid()}"
        try:
            with private.open("w", encoding="utf-8") as file:
                file.write(json.dumps(redact_all(dict(values)), indent=2, default=str) + "\n")
                file.flush()
                os.fsync(file.fileno())
            private.replace(self.path / MANIFEST)
        except OSError as error:
            private.unlink(missing_ok=True)
            raise disk_error(self.path, error) from error

    def note(self, **values: Any) -> None:
        """Change some values of the manifest."""
        self.write_manifest((self.read_manifest() or {}) | values)

    @contextmanager
    def locked(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Hold the directory against a second run; the lock goes with the process.

        Shards hold a lock each: they may work side by side, but not beside a whole run.

        Raises
        ------
        ConfigError
            If another process holds it; names that process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            whole = self._acquire("lock", "owner.json", wait_s=0 if shard is None else SHARD_WAIT_S)
            stack.callback(whole.release)
            if shard is None:
                for held in sorted(self.path.glob("lock-*")):
                    # acquired and let go: no new shard can start while the whole lock is held
                    name = held.name.removeprefix("lock-")
                    self._acquire(held.name, f"owner-{name}.json").release()
                owner = self.path / "owner.json"
                self._sign(owner, stack)
                yield
                return
            name = f"{shard[0]}-of-{shard[1]}"
            # another shard may be looking whether this lock is held
            mine = self._acquire(f"lock-{name}", f"owner-{name}.json", wait_s=LOOK_WAIT_S)
            stack.callback(mine.release)
            self._sign(self.path / f"owner-{name}.json", stack)
            # the whole lock was only held to keep a whole run from starting meanwhile
            whole.release()
            yield

    def others_at_work(self, shard: tuple[int, int]) -> bool:
        """Tell whether another shard holds its lock."""
        mine = f"lock-{shard[0]}-of-{shard[1]}"
        for held in self.path.glob("lock-*"):
            if held.name == mine:
                continue
            try:
                self._acquire(held.name, "").release()
            except ConfigError:
                return True
        return False

    def _acquire(self, name: str, owner: str, wait_s: float = 0) -> BaseFileLock:
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / name)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout as error:
            signed = self.path / owner
            who = signed.read_text(encoding="utf-8").strip() if signed.is_file() else "unknown"
            raise ConfigError(
                f"{self.path} is in use by another run ({who}); wait for it or name another "
                "--run-dir"
            ) from error
        return lock

    def _sign(self, owner: Path, stack: ExitStack) -> None:
        """Say who holds the lock, until the end of the stack."""
        values = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        owner.write_text(json.dumps(values) + "\n", encoding="utf-8")
        stack.callback(owner.unlink, missing_ok=True)


def file_mark(path: Path) -> dict[str, Any] | None:
    """Return what tells a file from a changed one: name, size and time; None where there is none.

    The whole is not read: a file that a program rewrote with the same size within a clock tick
    passes for unchanged.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return {"name": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
