"""What happened when: one JSON line per event in the run directory, for machines and mornings."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geoseg.redact import redact as redact_secrets
from geoseg.redact import redact_all

EVENTS = "events.jsonl"
NOTIFY_TIMEOUT_S = 60.0
"""A notification may take this long; it must not hold up the end of the run."""

_VRT = re.compile(r"\bVRT:(?=/)")
_FOLDERS = re.compile(r"(?<![\w:/\\])(?:[A-Za-z]:)?[\\/](?:[^\\/\s'\"]+[\\/])+")
_QUERY = re.compile(r"(\b\w+://[^\s?'\"]*)\?[^\s'\"]*")
_LOGIN = re.compile(r"(\b\w+://)[^\s/@'\"]+@")


def redact(text: str) -> str:
    """Leave of paths the file's name, and of addresses no login and no query.

    Examples
    --------
    >>> redact("cannot read /home/ann/flight 3.tif, rows 1-9")
    'cannot read flight 3.tif, rows 1-9'
    >>> redact("https://me:secret@host/x.tif?sig=abc failed")
    'https://host/x.tif failed'
    """
    text = redact_secrets(_QUERY.sub(r"\1", _LOGIN.sub(r"\1", text)))
    return _FOLDERS.sub("", _VRT.sub("", text))


class Events:
    """Appends events to a file; what cannot be written stops no run.

    Parameters
    ----------
    path : Path, optional
        None: events go into no file.
    listener : callable, optional
        Told of every event at once, with the fields that the file gets.
    **always
        Fields of every event.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        listener: Callable[[Mapping[str, Any]], None] | None = None,
        **always: Any,
    ) -> None:
        self._path = path
        self._listener = listener
        self._always = always

    def add(self, event: str, **fields: Any) -> None:
        """Add one event, with the time (UTC) and this process's id."""
        if self._path is None and self._listener is None:
            return
        plain = {k: redact(v) if isinstance(v, str) else redact_all(v) for k, v in fields.items()}
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        line = line | self._always | plain
        if self._listener is not None:
            self._listener(line)
        if self._path is None:
            return
        text = json.dumps(line, default=str) + "\n"
        try:
            # one write of one line: shards share the file
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError:
            # a full disk is told by what needs it
            return


def notify(command: str, **about: Any) -> str:
    """Run the user's command at the end of a run.

    Parameters
    ----------
    command : str
        Split as a shell would, but no shell runs it.
    **about
        Become environment variables: ``state`` is ``GEOSEG_STATE``.

    Returns
    -------
    str
        Why it failed; empty if it did not.
    """
    values = {f"GEOSEG_{name.upper()}": redact_secrets(str(value)) for name, value in about.items()}
    try:
        done = subprocess.run(  # noqa: S603  # the user's own command
            shlex.split(command),
            env=os.environ | values,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=NOTIFY_TIMEOUT_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    why = redact_secrets(said[-1]) if said else ""
    return f"it ended with exit code {done.returncode}" + (f": {why}" if why else "")
