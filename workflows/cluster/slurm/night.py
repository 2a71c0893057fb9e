r"""Run geoseg detect on SLURM: workers are jobs, asked for and given back by dask-jobqueue.

    pip install dask-jobqueue cryptography
    python night.py --jobs 4 --cores 8 --memory 32GB --partition night --walltime 04:00:00 \
        --interface ib0 --shared /scratch/me/geoseg -- ortho/*.tif -o /scratch/me/buildings.gpkg

What follows `--` is for geoseg detect. It begins when the first job has started; jobs that end at
their walltime are replaced. `--show` prints the job script and does nothing. Start it where it may
run all night: a login node that allows that, or a job of its own, which asks for the others:

    sbatch --time 12:00:00 --wrap "python night.py ... -- ..."

Killed, or out of time? The same command goes on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import click
import dask
from dask_jobqueue import SLURMCluster
from distributed.security import Security

from geoseg.cli.main import main
from geoseg.jobs import cluster as waiting

SETTINGS = Path(__file__).resolve().parents[1] / "dask"


def read_arguments(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own options, and those of geoseg detect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="jobs at the same time")
    parser.add_argument("--cores", type=int, default=4, help="cores of a job: a worker for each")
    parser.add_argument("--memory", default="16GB", help="memory of a job, for all its workers")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each job, and one worker")
    parser.add_argument("--partition", help="SLURM's partition")
    parser.add_argument("--account", help="SLURM's account")
    parser.add_argument("--walltime", default="04:00:00", help="time limit of a job, HH:MM:SS")
    parser.add_argument(
        "--interface", required=True, help="network that all nodes share, such as ib0 or eth0"
    )
    parser.add_argument(
        "--shared", type=Path, required=True, help="folder that all nodes see: logs, certificates"
    )
    parser.add_argument("--show", action="store_true", help="print the job script, and stop")
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:at])
    if any(blank in str(options.shared) for blank in " \t'\""):
        parser.error("--shared must have no blanks or quotes: job scripts name it as it is")
    return options, arguments[at + 1 :]


def lifetime(walltime: str) -> str:
    """Return when a worker says goodbye, so that SLURM has none to kill: six minutes earlier."""
    hours, minutes, seconds = map(int, walltime.split(":"))
    limit = 3600 * hours + 60 * minutes + seconds
    return f"{max(limit - 360, limit // 2)}s"


def make_cluster(options: argparse.Namespace, security: Security) -> SLURMCluster:
    """Start a scheduler in this process; no job is asked for yet."""
    # Whoever reaches a plain tcp scheduler can run code as you, and a compute network is full of
    # other users: everything is encrypted, with certificates that only you can read.
    options.shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    workers = 1 if options.gpu else options.cores
    return SLURMCluster(
        # a worker for each core, each with two threads: one reads while the network works
        processes=workers,
        cores=2 * workers,
        job_cpu=options.cores,
        memory=options.memory,
        queue=options.partition,
        account=options.account,
        walltime=options.walltime,
        job_name="geoseg",
        job_extra_directives=["--gres=gpu:1"] if options.gpu else [],
        job_script_prologue=[f"export DASK_CONFIG='{SETTINGS}'"],
        worker_extra_args=[
            *here,
            # not all at the same moment
            *("--lifetime", lifetime(options.walltime), "--lifetime-stagger", "60s"),
            *(("--resources", "GPU=1") if options.gpu else ()),
        ],
        interface=options.interface,
        scheduler_options={
            "interface": options.interface,
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },
        log_directory=str(options.shared / "logs"),
        shared_temp_directory=str(options.shared),
        local_directory=tempfile.gettempdir(),
        security=security,
        protocol="tls://",
    )


def run(arguments: list[str]) -> int:
    """Ask for workers, run geoseg detect on them, give them back; returns its exit code."""
    options, theirs = read_arguments(arguments)
    # asked to stop while waiting: the jobs are given back, as they are in the end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # a queue may be long, also for those that come in the place of others
    waiting.NO_WORKER_S = max(waiting.NO_WORKER_S, 7 * 24 * 3600.0)
    # the same settings as the workers', and certificates for this run alone
    dask.config.update(dask.config.config, dask.config.collect([str(SETTINGS)], env={}))
    security = Security.temporary()
    certificates = {
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        "distributed.comm.tls.client.cert": security.tls_client_cert,
        "distributed.comm.tls.client.key": security.tls_client_key,
    }
    with (
        dask.config.set(certificates),
        make_cluster(options, security) as cluster,
    ):
        if options.show:
            click.echo(cluster.job_script())
            return 0
        # as many as that, always: what ends at its walltime is asked for again
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)
        click.echo("waiting for the first job to start", err=True)
        cluster.wait_for_workers(1)
        needs = ["--resource", "GPU=0.5"] if options.gpu else []
        return main(["detect", *theirs, *needs, "--scheduler", cluster.scheduler_address])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
