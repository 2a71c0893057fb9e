"""Hosts of one's own: network namespaces on a switch, each with an address that no other has."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from runs import environment

NET = "10.87.65"
"""Nothing leaves these namespaces, so that it does not matter who else uses the network."""


def ip(*args: str) -> str:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Host:
    """One namespace; processes started here see only its addresses."""

    name: str
    address: str
    log: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *args: str | Path, **env: str) -> subprocess.Popen[str]:
        """Start a command; what it says goes to the log of the host."""
        with self.log.open("a") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *map(str, args)],
                env=environment(**with_programs(env)),
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,
                text=True,
            )
        self.started.append(process)
        return process

    def listening(self) -> set[tuple[str, int]]:
        """Return where something listens beyond this host, TCP or UDP."""
        found = set()
        for kind, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            text = ip("netns", "exec", self.name, "cat", f"/proc/net/{kind}")
            rows = [line.split() for line in text.splitlines()[1:]]
            found |= {place(row[1]) for row in rows if row[3] == state}
        return {at for at in found if not ipaddress.ip_address(at[0]).is_loopback}

    def cut_off(self) -> None:
        """Take the network away, as when a cable is pulled: nobody is told."""
        ip("-n", self.name, "link", "set", "eth0", "down")


def place(text: str) -> tuple[str, int]:
    """Return address and port as /proc/net writes them: words of four bytes, lowest first."""
    address, _, port = text.partition(":")
    raw = bytes.fromhex(address)
    turned = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return str(ipaddress.ip_address(turned)), int(port, 16)


def with_programs(env: dict[str, str]) -> dict[str, str]:
    """Add what stands beside this Python, dask and geoseg, to the search path."""
    programs = str(Path(sys.executable).parent)
    return {"PATH": os.pathsep.join([programs, os.environ["PATH"]])} | env


@cache
def why_not() -> str:
    """Say why there can be no hosts here; empty if there can."""
    if shutil.which("ip") is None:
        return "there is no program ip (Debian: iproute2)"
    try:
        with hosts(Path(os.devnull), 1):
            return ""
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[list[Host]]:
    """Give so many hosts on one switch; they are gone afterwards, with all that runs there."""
    tag = uuid.uuid4().hex[:6]
    switch = f"geoseg-{tag}-switch"
    made = [
        Host(f"geoseg-{tag}-{i}", f"{NET}.{i}", folder / f"host{i}.log")
        for i in range(1, count + 1)
    ]
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(made):
            ip("netns", "add", host.name)
            plug = ["link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0"]
            ip("-n", switch, *plug, "netns", host.name)
            ip("-n", switch, "link", "set", f"port{number}", "master", "switch", "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", link, "up")
        yield made
    finally:
        for name in (*(host.name for host in made), switch):
            remove(name)
        for host in made:
            for process in host.started:
                process.wait(timeout=30)


def remove(name: str) -> None:
    """End what runs in a namespace, and take the namespace away."""
    with suppress(OSError):
        until = time.monotonic() + 20
        while (left := ip("netns", "pids", name).split()) and time.monotonic() < until:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
        ip("netns", "del", name)
