"""geoseg demo."""

from __future__ import annotations

from pathlib import Path

import click

from geoseg.cli.progress import show_progress
from geoseg.cli.result import show_demo


@click.command(short_help="Render a town, run the main job on it, compare with the truth.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", type=int, default=4096, show_default=True, help="Side of the town, px.")
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, another town.")
@click.option("--workers", "-j", type=int, help="Processes.  [default: one per physical core]")
@click.option("--render-only", is_flag=True, help="Only write the town, its truth and regions.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in FOLDER.")
def command(
    folder: Path, size: int, seed: int, workers: int | None, render_only: bool, overwrite: bool
) -> None:
    """Render a town into FOLDER, find its buildings and compare them with the truth."""
    from geoseg.jobs.demo import render, run_demo

    if render_only:
        files = render(folder, size_px=size, seed=seed, overwrite=overwrite)
        click.echo(f"{files.image}\n{files.footprints}\n{files.regions}\n{files.aoi}")
        return
    with show_progress() as progress:
        result = run_demo(
            folder,
            size_px=size,
            seed=seed,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )
    show_demo(result)
