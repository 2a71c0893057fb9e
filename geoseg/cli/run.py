"""geoseg run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from geoseg.cli.progress import show_progress
from geoseg.cli.result import show_end, show_result


@click.command(short_help="Run a job file (TOML).")
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an existing output or other run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(context: click.Context, job: Path, overwrite: bool, as_json: bool) -> None:
    """Run JOB, a TOML file whose [detect] table holds the options of geoseg detect."""
    from geoseg.config import read_job
    from geoseg.jobs.pipeline import run_detect

    settings = read_job(job)
    if settings.output is None:
        raise click.UsageError(f'{job} names no output; add output = "objects.gpkg" to [detect]')
    settings = replace(settings, overwrite=settings.overwrite or overwrite)
    with show_end(context), show_progress(as_json=as_json) as progress:
        result = run_detect(settings, progress=progress)
    show_result(result, as_json=as_json)
    context.exit(result.exit_code)
