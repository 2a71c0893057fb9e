"""``geoseg evaluate``: objects against truth."""

from __future__ import annotations

from pathlib import Path

import click

from geoseg.cli.show import show_json, show_table


@click.command("evaluate")
@click.argument("objects", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option(
    "--aoi",
    type=click.Path(path_type=Path),
    help="Areas where the truth is complete; polygons of either file at least half inside take "
    "part, clipped. Without it everything counts.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="IoU from which an object matches a true one.",
)
@click.option("--min-score", type=click.FloatRange(0, 1), help="Leave objects below out.")
@click.option("--by-class", is_flag=True, help="Match only within a class.")
@click.option("--where", metavar="SQL", help="Condition on the fields of TRUTH.")
@click.option("--aoi-where", metavar="SQL", help="Condition on the fields of the AOI file.")
@click.option("--layer", help="Layer of TRUTH, where it has several.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Directory of the run that made OBJECTS: tell ground that two or more tiles saw from the "
    "rest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    objects: Path,
    truth: Path,
    aoi: Path | None,
    iou: float,
    min_score: float | None,
    by_class: bool,
    where: str | None,
    aoi_where: str | None,
    layer: str | None,
    run_dir: Path | None,
    as_json: bool,
) -> None:
    """Compare objects with truth: precision, recall, F1, AP.

    OBJECTS and TRUTH are files of polygons. Several areas are pooled where the files hold them
    all, however far apart they lie: detect writes the objects of several images into one file.
    """
    from geoseg.errors import ConfigError
    from geoseg.objects.evaluate import evaluate
    from geoseg.outputs.tables import read_vector

    if aoi_where is not None and aoi is None:
        raise ConfigError("--aoi-where is a condition on the AOI file, but there is no --aoi")
    found = read_vector(objects, what="objects")
    true = read_vector(truth, layer=layer, what="truth", where=where)
    in_band = None
    if run_dir is not None:
        from geoseg.jobs.bands import rows_in_bands

        in_band = rows_in_bands(run_dir, found), rows_in_bands(run_dir, true)
    result = evaluate(
        found,
        true,
        aoi=None if aoi is None else read_vector(aoi, what="AOI", where=aoi_where),
        iou_threshold=iou,
        min_score=min_score,
        by_class=by_class,
        in_band=in_band,
    )
    figures = result.to_dict()
    if as_json:
        show_json(figures)
    else:
        places = {name: figures.pop(name) for name in ("bands", "interiors") if name in figures}
        show_table(["figure", "value"], [[name, value] for name, value in figures.items()])
        if places:
            names = list(next(iter(places.values())))
            click.echo("\nwhere two or more tiles looked (bands), and where one did (interiors)")
            show_table(["figure", *places], [[n, *(p[n] for p in places.values())] for n in names])
