"""``geoseg count``: objects x regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from geoseg.cli.show import show_json, show_table

if TYPE_CHECKING:
    import geopandas as gpd

    from geoseg.config import CountSettings
    from geoseg.objects.count import Imaged, Rule
    from geoseg.outputs.polygons import PolygonFile


_MOST_SHOWN, _FEW_SHOWN = 60, 20


@click.command("count")
@click.argument("objects", type=click.Path(path_type=Path))
@click.argument("regions", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write the regions with their counts: .gpkg, .parquet, .fgb, .geojson, .csv or .xlsx.",
)
@click.option(
    "--grid",
    metavar="SHAPE:METRES",
    help="Count in cells instead of REGIONS: hexagon:500, square:1000.",
)
@click.option(
    "--rule",
    type=click.Choice(["point", "area", "intersects"]),
    default="point",
    show_default=True,
    help="point: by the object's representative point; area: by its share in the region; "
    "intersects: in every region that it meets.",
)
@click.option("--layer", help="Layer of REGIONS, where it has several.")
@click.option("--region-field", help="Field of REGIONS that names a region.")
@click.option("--regions-crs", metavar="CRS", help="CRS of REGIONS, where the file has none.")
@click.option("--parent", metavar="FIELD", help="Field with the id of the region's parent.")
@click.option("--id", "id_field", metavar="FIELD", help="Field with the ids that --parent names.")
@click.option(
    "--imaged",
    type=click.Path(path_type=Path),
    help="Polygons of what was imaged.  [default: the coverage in OBJECTS, if there]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Model card or JSON that says how often the detector is right: adds expected counts.  "
    "[default: that of the model, kept in OBJECTS]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool, **options: Any) -> None:
    """Count objects per region.

    OBJECTS is an output of geoseg detect, or any file of polygons; REGIONS a file of polygons in
    any CRS. Without -o the counts are only printed. By point and by area, regions and 'outside'
    add up to all objects.
    """
    from geoseg.config import CountSettings

    if options["regions"] is None and options["grid"] is None:
        raise click.UsageError("Missing argument 'REGIONS'")
    run_count(CountSettings(**options), as_json=as_json)


def run_count(settings: CountSettings, *, as_json: bool) -> None:
    """Count, write the output if one is named, and print the counts."""
    from geoseg.objects.cells import GridSpec
    from geoseg.objects.count import RegionCounter
    from geoseg.outputs.counts import check_counts_output, write_counts
    from geoseg.outputs.polygons import open_polygons
    from geoseg.outputs.regions import calibration_in, read_calibration, read_regions

    output, overwrite, curve = settings.output, settings.overwrite, settings.calibration
    spec = None if settings.grid is None else GridSpec.parse(settings.grid)
    if output is not None:
        check_counts_output(output, overwrite)
    own, why = (None, "") if curve is not None else calibration_in(settings.objects)
    if why:
        click.echo(why, err=True)
    found = open_polygons(settings.objects)
    seen = _seen(settings.objects, settings.imaged)
    table = (
        _grid(found, seen, cast("GridSpec", spec))
        if settings.regions is None
        else read_regions(settings.regions, layer=settings.layer, crs=settings.regions_crs)
    )
    counter = RegionCounter(
        table,
        found.crs,
        rule=cast("Rule", settings.rule),
        region_field=settings.region_field,
        around=found.bounds,
        parent=settings.parent,
        id_field=settings.id_field,
        calibration=own if curve is None else read_calibration(curve),
    )
    found.count_into(counter)
    counted = counter.result(seen)
    if output is not None:
        write_counts(output, counted, overwrite=overwrite)
    if as_json:
        show_json(_as_json(counted))
    else:
        _show(counted, all_of_them=output is None)


def _seen(objects: Path, imaged: Path | None) -> Imaged | None:
    """Return the area that was imaged: named by the user, or told beside the objects."""
    from geoseg.outputs.regions import has_coverage, read_imaged

    if imaged is not None:
        return read_imaged(imaged)
    return read_imaged(objects) if has_coverage(objects) else None


def _grid(found: PolygonFile, seen: Imaged | None, spec: Any) -> gpd.GeoDataFrame:
    """Return cells over what was imaged, or over the objects' bounds where nobody knows."""
    import shapely

    from geoseg.errors import RegionError
    from geoseg.objects.cells import make_grid

    if seen is not None:
        return make_grid(spec, seen.geometry.to_crs(found.crs), found.crs)
    if found.bounds is None:
        raise RegionError(
            f"{found.path} holds no objects, so there is no place for a grid; say with --imaged "
            "what was imaged"
        )
    return make_grid(spec, shapely.box(*found.bounds), found.crs)


def _columns(counted: gpd.GeoDataFrame) -> tuple[list[str], list[str]]:
    """Return the columns of counts and those that stand beside them."""
    counts = ["count", *(f"count_{kind}" for kind in counted.attrs["by_class"])]
    counts = [name for name in counts if name in counted.columns]
    wanted = ["density_km2", "covered_share", "mean_area_m2", "imaged_share"]
    wanted += ["expected", "expected_low", "expected_high"]
    return counts, [c for c in wanted if c in counted.columns and counted[c].notna().any()]


def _names(counted: gpd.GeoDataFrame) -> list[Any]:
    """Return the regions' names, or their place in the file from 1."""
    field = counted.attrs["region_field"]
    return list(range(1, len(counted) + 1)) if field is None else counted[field].tolist()


def _show(counted: gpd.GeoDataFrame, *, all_of_them: bool) -> None:
    """Print a row per region, then what is outside and in all; what is odd goes to stderr.

    Of very many regions that are in a file anyway, those with most objects.
    """
    from geoseg.outputs.counts import remarks_on, summary_of

    counts, beside = _columns(counted)
    columns = [*counts, *beside]
    values = [counted[c].tolist() for c in columns]
    names = list(map(str, _names(counted)))
    rows = [list(row) for row in zip(names, *values, strict=True)]
    if len(rows) > _MOST_SHOWN and not all_of_them:
        ranked = sorted(rows, key=lambda row: -row[1])
        more = [f"... {len(rows) - _FEW_SHOWN} more in the output", *([None] * len(columns))]
        rows = [*ranked[:_FEW_SHOWN], more]
    attrs = counted.attrs
    rest: list[Any] = [None] * len(beside)
    ends = []
    for end in ("outside", "total"):
        of_class = [attrs["by_class"][c.removeprefix("count_")][end] for c in counts[1:]]
        ends.append([end, attrs[end], *of_class, *rest])
    show_table(["region", *columns], rows, totals=ends)
    for name, value in summary_of(counted):
        if name.startswith("level "):
            click.echo(f"{name}: {value}")
    for text in remarks_on(counted):
        click.echo(text, err=True)


def _as_json(counted: gpd.GeoDataFrame) -> dict[str, Any]:
    """Return the counts and how they were made."""
    field = counted.attrs["region_field"]
    own = {counted.geometry.name, *([field] if field else [])}
    # what counting added stands last, from the count on
    names = [c for c in counted.columns if c not in own]
    columns = names[names.index("count") :]
    values = [counted[c].tolist() for c in columns]
    return {
        **counted.attrs,
        "regions": [
            {"region": name} | dict(zip(columns, row, strict=True))
            for name, *row in zip(_names(counted), *values, strict=True)
        ],
    }
