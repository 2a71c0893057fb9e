"""``geoseg suggest``: which ground to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geoseg.cli.show import show_json, show_table

_PATH = click.Path(path_type=Path)


@click.command(
    short_help="Say which ground to label next, as tasks for QGIS; take the labels back."
)
@click.argument("images", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    required=True,
    help="GeoPackage of tasks; with --collect: the labels, .gpkg, .geojson or .fgb.",
)
@click.option(
    "--collect",
    type=_PATH,
    metavar="TASKS.gpkg",
    help="Make labels, and an AOI beside them, of the tasks that are done.",
)
@click.option(
    "--model",
    default="buildings",
    show_default=True,
    help="Name (geoseg models), or a .safetensors file.",
)
@click.option("--detector", metavar="MODULE:FACTORY", help="Your own detector instead of a model.")
@click.option(
    "-n", "n", type=click.IntRange(min=1), default=20, show_default=True, help="How many squares."
)
@click.option(
    "--tile-m",
    type=click.FloatRange(min=0, min_open=True),
    help="Side of a square, metres.  [default: 384 px of the model, such as 50 m]",
)
@click.option("--aoi", type=_PATH, help="Suggest only inside these polygons.")
@click.option(
    "--labelled",
    type=_PATH,
    multiple=True,
    metavar="AREAS",
    help="Areas that are labelled already, or an earlier task file; may be given again.",
)
@click.option("--coco", type=_PATH, help="Write the tasks as COCO JSON too: an image per square.")
@click.option("--chips", type=_PATH, help="Write the squares' pixels into this folder, GeoTIFF.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--force", is_flag=True, help="Go on although the imagery cannot suit the model.")
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    images: tuple[str, ...],
    collect: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which squares of IMAGES to label next, or collect the labels.

    A square is worth labelling where the model is unsure and where its overlapping tiles disagree.
    Open the GeoPackage in QGIS, correct the outlines, set the status of the square to 'done'; then
    geoseg suggest --collect TASKS.gpkg -o labels.gpkg.
    """
    if collect is not None:
        _check_alone(context, images)
        _collect(collect, options["output"], overwrite=options["overwrite"], as_json=as_json)
        return
    if not images:
        raise click.UsageError("no images named; name some, or tasks with --collect", context)
    from geoseg.jobs.suggest import SuggestSettings, suggest

    found = suggest(SuggestSettings(images=images, **options), progress=_progress())
    table = found.tasks.drop(columns=["geometry", "status"])
    if as_json:
        show_json(
            {
                "side_m": found.side_m,
                "candidates": found.n_candidates,
                "objects": len(found.objects),
                "written": [str(path) for path in found.written],
                "skipped": list(found.skipped),
                "tasks": table.to_dict("records"),
            }
        )
    else:
        show_table(list(table.columns), table.to_numpy().tolist())
        click.echo(
            f"{len(table)} of {found.n_candidates} squares of {found.side_m:.0f} m, with "
            f"{len(found.objects)} outlines to look at"
        )
        for path in found.written:
            click.echo(str(path))
    context.exit(3 if found.skipped else 0)


def _check_alone(context: click.Context, images: tuple[str, ...]) -> None:
    """Refuse what has no meaning beside --collect."""
    given = [
        name
        for name in ("model", "detector", "n", "tile_m", "aoi", "labelled", "coco", "chips")
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    ]
    if images or given:
        what = "images" if images else "--" + given[0].replace("_", "-")
        raise click.UsageError(
            f"--collect reads a task file alone; leave {what.replace('--n', '-n')} out", context
        )


def _collect(path: Path, output: Path, *, overwrite: bool, as_json: bool) -> None:
    """Make labels of tasks, and say how they go into a training file."""
    from geoseg.outputs.tasks import collect_tasks

    found = collect_tasks(path, output, overwrite=overwrite)
    if as_json:
        show_json(
            {
                "labels": str(found.labels),
                "aoi": str(found.aoi),
                "tasks": found.n_tasks,
                "tasks_left": found.n_left,
                "objects": found.n_labels,
                "rejected": found.n_rejected,
                "images": list(found.images),
                "sites": found.sites(),
            }
        )
        return
    click.echo(
        f"{found.n_labels} labels in {found.n_tasks} tasks ({found.n_left} not done); "
        f"{found.n_rejected} outlines rejected\n{found.labels}\n{found.aoi}\n\n"
        "For your training file (set image to the path of the image):\n"
    )
    click.echo(found.sites())


def _progress() -> Any:
    """Return what tells, now and then, how far the look has come; None under geoseg -q."""
    import logging
    import time

    log = logging.getLogger("geoseg")
    if not log.isEnabledFor(logging.INFO):
        return None
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 20:
            last = time.monotonic()
            log.info("%d of %d blocks looked at", done, total)

    return tell
