"""A terminal for tests: runs a command in one, and keeps what stands on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|\x1b.")


def screens(text: str, columns: int) -> list[str]:
    """Return what a terminal showed each time before lines were erased; the end comes last."""
    lines, row, col = [""], 0, 0
    shown, written = [], False
    for parameters, code, control, words in _TOKEN.findall(text):
        if control == "\r":
            col = 0
        elif control == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif words:
            line = lines[row].ljust(col)
            lines[row] = line[:col] + words + line[col + len(words) :]
            col += len(words)
            written = True
            assert col <= columns, f"a line is wider than the terminal: {lines[row]!r}"
        elif code == "A":
            row = max(0, row - int(parameters or 1))
        elif code == "K":
            if written:
                shown.append("\n".join(lines))
                written = False
            lines[row] = ""
    return [*shown, "\n".join(lines)]


def run_in_terminal(
    args: list[str], env: dict[str, str], *, columns: int = 100, seconds: float = 120
) -> tuple[int, str, str]:
    """Run a command whose stderr is a terminal; return exit code, stdout and the raw stderr."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    run = subprocess.Popen(
        args, env=env | {"TERM": env.get("TERM", "xterm-256color")},
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    raw, until = b"", time.monotonic() + seconds
    assert run.stdout is not None
    while time.monotonic() < until:
        ready, _, _ = select.select([mine], [], [], 0.2)
        if not ready:
            if run.poll() is not None:
                break
            continue
        try:
            part = os.read(mine, 65536)
        except OSError:
            # Linux: the other end is closed
            break
        if not part:
            break
        raw += part
    out = run.stdout.read().decode()
    code = run.wait(timeout=10)
    run.stdout.close()
    os.close(mine)
    return code, out, raw.decode(errors="replace")
