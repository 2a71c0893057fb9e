"""``geoseg report``: the page of a finished run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The page, .html.  [default: report.html in RUN_DIR, replaced]",
)
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An image, or a folder of images, where they have moved; may be given again.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
def command(
    *, run_dir: Path, output: Path | None, images: tuple[Path, ...], overwrite: bool
) -> None:
    """Make the page of a finished run: map, counts, examples, what failed.

    RUN_DIR is what geoseg detect made beside its output, NAME.geoseg-run. The page is one HTML
    file that any browser opens from disk; it needs no network.
    """
    from geoseg.jobs.report import report_run

    click.echo(report_run(run_dir, output, images=images, overwrite=overwrite))
