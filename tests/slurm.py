"""A SLURM of one's own: one node, this machine, for as long as a test takes."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
CONFIG = """
ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=60
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# more processors than there may be: what runs here mostly waits
SlurmdParameters=config_overrides
NodeName={node} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=night Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str:
    """Say why there can be no SLURM here; empty if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Give the environment in which sbatch and its kin reach a SLURM of one node."""
    folder.mkdir()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    # munge wants to be sure that nobody else can write where its socket and key lie
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    node = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    ports = {"controller": free_port(), "daemon": free_port()}
    config.write_text(CONFIG.format(folder=folder, node=node, **ports))
    env = os.environ | {"SLURM_CONF": str(config)}
    munge = [
        "munged", "--foreground", "--force", f"--key-file={key}",
        f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
    ]  # fmt: skip
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", node]):
            log = (folder / f"{command[0]}.out").open("w")
            daemons.append(
                subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
            )
            log.close()
            time.sleep(0.5)
        wait_until_idle(env, folder)
        yield env
    finally:
        subprocess.run(
            ["scancel", "--full", "-u", "root"], env=env, capture_output=True, check=False
        )
        until = time.monotonic() + 20
        while queue(env) and time.monotonic() < until:
            time.sleep(0.2)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()


def queue(env: dict[str, str]) -> list[str]:
    """Return the jobs that run or wait: id, state and name."""
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%i %T %j"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.splitlines()


def wait_until_idle(env: dict[str, str], folder: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.3)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.out")))
    raise AssertionError(f"SLURM did not start: {done.stdout} {done.stderr}\n{logs}")
