"""``geoseg evaluate``: objects against truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.show import show_json, show_table

if TYPE_CHECKING:
    import geopandas as gpd

    from geoseg.objects.evaluate import Evaluation

_PATH = click.Path(path_type=Path)


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
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compare objects with truth: precision, recall, F1, AP.

    OBJECTS and TRUTH are files of polygons. Several areas are pooled where the files hold them
    all, however far apart they lie: detect writes the objects of several images into one file.
    """
    from geoseg.errors import ConfigError
    from geoseg.objects.evaluate import evaluate
    from geoseg.outputs.tables import check_output, read_vector

    if aoi_where is not None and aoi is None:
        raise ConfigError("--aoi-where is a condition on the AOI file, but there is no --aoi")
    borders = _parse_sizes(sizes)
    if output is not None:
        output = check_output(output, overwrite, suffixes=(".gpkg",))
    if curves is not None:
        curves = check_output(curves, overwrite, suffixes=(".png",))
    found = read_vector(objects, what="objects")
    true = read_vector(truth, layer=layer, what="truth", where=where)
    area = None if aoi is None else read_vector(aoi, what="AOI", where=aoi_where)
    in_band = None
    if run_dir is not None:
        from geoseg.jobs.bands import rows_in_bands

        in_band = rows_in_bands(run_dir, found), rows_in_bands(run_dir, true)
    result = evaluate(
        found,
        true,
        aoi=area,
        iou_threshold=iou,
        min_score=min_score,
        by_class=by_class,
        in_band=in_band,
    )
    parts, per_region = _take_apart(
        found, true, result, borders, None if regions is None else read_vector(regions)
    )
    if by_class:
        # what was taken for what shows only where classes may differ
        across = evaluate(found, true, aoi=area, iou_threshold=iou, min_score=min_score)
        parts["confusion"] = _confusion(across)
    _write(output, curves, (found, true, result, per_region), overwrite=overwrite)
    if as_json:
        show_json(result.to_dict() | parts)
        return
    _show(result, parts)
    for path in (output, curves):
        if path is not None:
            click.echo(str(path))


def _parse_sizes(text: str) -> tuple[float, ...]:
    """Return the borders between sizes."""
    from geoseg.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--sizes is {text}; expected areas in m2 such as 30,100,300") from error


def _take_apart(
    found: gpd.GeoDataFrame,
    true: gpd.GeoDataFrame,
    result: Evaluation,
    borders: tuple[float, ...],
    regions: gpd.GeoDataFrame | None,
) -> tuple[dict[str, Any], gpd.GeoDataFrame | None]:
    """Return the figures by size, class and region, ready for JSON, and the regions."""
    from geoseg.objects.breakdown import by_class, by_region, by_size, count_errors

    parts: dict[str, Any] = {"by_size": by_size(result, borders).to_dict("records")}
    if (result.truth["class"] != "").any():
        parts["by_class"] = by_class(result).to_dict("records")
    if regions is None:
        return parts, None
    table = by_region(found, true, regions, result)
    parts["by_region"] = count_errors(table)
    return parts, table


def _confusion(across: Evaluation) -> dict[str, dict[str, int]]:
    """Return what was taken for what: counts by true class and class of the object."""
    from geoseg.objects.breakdown import confusion

    table = confusion(across)
    return {str(true): {str(k): int(v) for k, v in row.items()} for true, row in table.iterrows()}


def _write(
    output: Path | None,
    curves: Path | None,
    judged: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame, Evaluation, gpd.GeoDataFrame | None],
    *,
    overwrite: bool,
) -> None:
    """Write what was right, false and missed, and the regions, as layers; and the curves."""
    from geoseg.objects.breakdown import verdicts
    from geoseg.outputs.curves import write_curves
    from geoseg.outputs.tables import write_geopackage

    found, true, result, per_region = judged
    if output is not None:
        regions = {} if per_region is None else {"regions": per_region}
        write_geopackage(output, verdicts(found, true, result) | regions, overwrite=overwrite)
    if curves is not None:
        write_curves(curves, result, overwrite=overwrite)


def _show(result: Evaluation, parts: dict[str, Any]) -> None:
    """Print the figures as tables."""
    figures = result.to_dict()
    places = {name: figures.pop(name) for name in ("bands", "interiors") if name in figures}
    show_table(["figure", "value"], [[name, value] for name, value in figures.items()])
    if places:
        names = list(next(iter(places.values())))
        click.echo("\nwhere two or more tiles looked (bands), and where one did (interiors)")
        show_table(["figure", *places], [[n, *(p[n] for p in places.values())] for n in names])
    click.echo("\nby size: true ones by their own, objects by theirs")
    sizes = [{"m2": _size(row.pop("from_m2"), row.pop("to_m2")), **row} for row in parts["by_size"]]
    _show_rows(sizes)
    if "by_class" in parts:
        click.echo("\nby class")
        _show_rows(parts["by_class"])
    if "confusion" in parts:
        table = parts["confusion"]
        click.echo("\nwhat was taken for what: true classes down, classes of objects across")
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
