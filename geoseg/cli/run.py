"""geoseg run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from geoseg.cli.count import run_count
from geoseg.cli.progress import show_progress
from geoseg.cli.result import show_end, show_result


@click.command(short_help="Run a job file (TOML).")
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an existing output or other run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(context: click.Context, job: Path, overwrite: bool, as_json: bool) -> None:
    """Run JOB, a TOML file with a [detect] or a [count] table: the options of that verb."""
    from geoseg.config import CountSettings, read_job

    settings = read_job(job)
    settings = replace(settings, overwrite=settings.overwrite or overwrite)
    if isinstance(settings, CountSettings):
        run_count(settings, as_json=as_json)
        return
    if settings.output is None:
        raise click.UsageError(f'{job} names no output; add output = "objects.gpkg" to [detect]')
    from geoseg.jobs.pipeline import run_detect

    with show_end(context), show_progress(as_json=as_json) as progress:
        result = run_detect(settings, progress=progress)
    show_result(result, as_json=as_json)
    context.exit(result.exit_code)
