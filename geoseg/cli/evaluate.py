"""``geoseg evaluate``: objects against truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from geoseg.cli.show import show_json, show_table

_PATH = click.Path(path_type=Path)
_PARTS = ("bands", "interiors", "by_size", "by_class", "confusion", "by_region")


@click.command("evaluate")
@click.argument("objects", type=_PATH)
@click.argument("truth", type=_PATH)
@click.option(
    "--aoi",
    type=_PATH,
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
    type=_PATH,
    help="Directory of the run that made OBJECTS: tell ground that two or more tiles saw from the "
    "rest.",
)
@click.option(
    "--sizes",
    default="30,100,300,1000",
    show_default=True,
    metavar="M2,...",
    help="Where one size of things ends and the next begins, m2.",
)
@click.option("--regions", type=_PATH, help="Tell the count's error per polygon of this layer.")
@click.option(
    "-o",
    "--output",
    type=_PATH,
    help="GeoPackage with layers 'right', 'false', 'missed' (and 'regions'), styled.",
)
@click.option("--curves", type=_PATH, help="Picture (.png): precision over recall, and the count.")
@click.option(
    "--calibration",
    type=_PATH,
    help="Fit and write what geoseg count --calibration takes (.json); each polygon of the AOI is "
    "an area of its own.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
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
    sizes: str,
    regions: Path | None,
    output: Path | None,
    curves: Path | None,
    calibration: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compare objects with truth: precision, recall, F1, AP.

    OBJECTS and TRUTH are files of polygons. Several areas are pooled where the files hold them
    all, however far apart they lie: detect writes the objects of several images into one file.
    """
    from geoseg.jobs.judge import judge_files, write_calibration, write_verdicts
    from geoseg.outputs.curves import write_curves
    from geoseg.outputs.tables import check_output

    borders = _parse_sizes(sizes)
    wanted = (
        (output, ".gpkg", write_verdicts),
        (curves, ".png", lambda path, judged, **more: write_curves(path, judged.result, **more)),
        (calibration, ".json", write_calibration),
    )
    for path, suffix, _ in wanted:
        if path is not None:
            check_output(path, overwrite, suffixes=(suffix,))
    judged = judge_files(
        objects,
        truth,
        layer=layer,
        where=where,
        aoi=aoi,
        aoi_where=aoi_where,
        iou_threshold=iou,
        min_score=min_score,
        compare_classes=by_class,
        run_dir=run_dir,
        sizes_m2=borders,
        regions=regions,
    )
    written = [
        write(path, judged, overwrite=overwrite) for path, _, write in wanted if path is not None
    ]
    if as_json:
        show_json(judged.to_dict())
        return
    _show(judged.to_dict())
    for path in written:
        click.echo(str(path))


def _parse_sizes(text: str) -> tuple[float, ...]:
    """Return the borders between sizes."""
    from geoseg.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--sizes is {text}; expected areas in m2 such as 30,100,300") from error


def _show(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    parts = {name: figures.pop(name) for name in _PARTS if name in figures}
    show_table(["figure", "value"], [[name, value] for name, value in figures.items()])
    if "bands" in parts:
        names = list(parts["bands"])
        places = {name: parts[name] for name in ("bands", "interiors")}
        click.echo("\nwhere two or more tiles looked (bands), and where one did (interiors)")
        show_table(["figure", *places], [[n, *(p[n] for p in places.values())] for n in names])
    click.echo("\nby size: true ones by their own, objects by theirs")
    _show_rows(
        [{"m2": _size(row.pop("from_m2"), row.pop("to_m2")), **row} for row in parts["by_size"]]
    )
    if "by_class" in parts:
        click.echo("\nby class")
        _show_rows(parts["by_class"])
        click.echo("\nwhat was taken for what: true classes down, classes of objects across")
        table = parts["confusion"]
        show_table(["", *table], [[true, *row.values()] for true, row in table.items()])
    if "by_region" in parts:
        click.echo("\ncount per region: objects minus true ones")
        show_table(["figure", "value"], list(parts["by_region"].items()))


def _show_rows(rows: list[dict[str, Any]]) -> None:
    """Print records as a table."""
    if rows:
        show_table(list(rows[0]), [list(row.values()) for row in rows])


def _size(low: float, high: float) -> str:
    """Return a range of sizes as people write it."""
    return f"{low:g} up" if math.isinf(high) else f"{low:g} to {high:g}"
