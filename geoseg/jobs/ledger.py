"""The run directory: parts, manifest, lock. What is finished is what exists under its key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geoseg.errors import ConfigError

MANIFEST = "run.json"


def digest(*values: Any) -> str:
    """Return a short hash of plain values, the same in every process."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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
        manifest = self.read_manifest()
        # a run that was stopped before it wrote its manifest leaves these
        ours = ("lock", "owner.json", f".{MANIFEST}.*")
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

    def prepare(self, run_key: str, settings: Mapping[str, Any]) -> None:
        """Create the directory; parts of another run are removed."""
        manifest = self.read_manifest()
        if manifest is not None and manifest.get("key") != run_key:
            shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        for left in self.parts.glob(".*"):
            # a private name of a writer that was killed
            left.unlink()
        self.write_manifest({"key": run_key, "state": "running", "settings": dict(settings)})

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None where there is none."""
        try:
            values = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return values if isinstance(values, dict) else None

    def write_manifest(self, values: Mapping[str, Any]) -> None:
        """Write the manifest whole or not at all."""
        private = self.path / f".{MANIFEST}.{os.getpid()}"
        private.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")
        private.replace(self.path / MANIFEST)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against a second run; the lock goes with the process.

        Raises
        ------
        ConfigError
            If another process holds it; names that process.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / "owner.json"
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            who = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "unknown"
            raise ConfigError(
                f"{self.path} is in use by another run ({who}); wait for it or name another "
                "--run-dir"
            ) from error
        try:
            values = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            owner.write_text(json.dumps(values) + "\n", encoding="utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()
