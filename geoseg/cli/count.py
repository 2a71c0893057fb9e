"""``geoseg count``: objects x regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from geoseg.cli.show import show_json, show_table

if TYPE_CHECKING:
    import geopandas as gpd

    from geoseg.config import CountSettings
    from geoseg.objects.count import Rule


@click.command("count")
@click.argument("objects", type=click.Path(path_type=Path))
@click.argument("regions", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write the regions with their counts: .gpkg, .parquet, .fgb, .geojson or .csv.",
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
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool, **options: Any) -> None:
    """Count objects per region.

    OBJECTS is an output of geoseg detect, or any file of polygons; REGIONS a file of polygons in
    any CRS. Without -o the counts are only printed. By point and by area, regions and 'outside'
    add up to all objects.
    """
    from geoseg.config import CountSettings

    run_count(CountSettings(**options), as_json=as_json)


def run_count(settings: CountSettings, *, as_json: bool) -> None:
    """Count, write the output if one is named, and print the counts."""
    from geoseg.objects.count import count
    from geoseg.outputs.tables import COUNT_SUFFIXES, check_output, read_vector, write_counts

    output, overwrite = settings.output, settings.overwrite
    if output is not None:
        check_output(output, overwrite, suffixes=COUNT_SUFFIXES)
    counted = count(
        read_vector(settings.objects, what="objects"),
        read_vector(settings.regions, layer=settings.layer, what="regions"),
        rule=cast("Rule", settings.rule),
        region_field=settings.region_field,
    )
    if output is not None:
        write_counts(output, counted, overwrite=overwrite)
    if as_json:
        show_json(_as_json(counted))
    else:
        _show(counted)


def _columns(counted: gpd.GeoDataFrame) -> tuple[list[str], list[str]]:
    """Return the columns of counts and those that stand beside them."""
    counts = [c for c in counted.columns if c == "count" or str(c).startswith("count_")]
    beside = [c for c in ("density_km2", "imaged_share") if counted[c].notna().any()]
    return counts, beside


def _names(counted: gpd.GeoDataFrame) -> list[Any]:
    """Return the regions' names, or their place in the file from 1."""
    field = counted.attrs["region_field"]
    return list(range(1, len(counted) + 1)) if field is None else counted[field].tolist()


def _show(counted: gpd.GeoDataFrame) -> None:
    """Print a row per region, then what is outside and in all."""
    counts, beside = _columns(counted)
    columns = [*counts, *beside]
    values = [counted[c].tolist() for c in columns]
    rows = [list(row) for row in zip(map(str, _names(counted)), *values, strict=True)]
    rest = [None] * (len(columns) - 1)
    ends = [[name, counted.attrs[name], *rest] for name in ("outside", "total")]
    show_table(["region", *columns], rows, totals=ends)
    attrs = counted.attrs
    if attrs["shared"]:
        click.echo(f"{attrs['shared']} objects lie in more than one region", err=True)
    if attrs["overlapping"]:
        click.echo(f"{len(attrs['overlapping'])} pairs of regions overlap", err=True)
    if attrs["repaired"]:
        click.echo(f"{attrs['repaired']} regions were invalid and have been repaired", err=True)


def _as_json(counted: gpd.GeoDataFrame) -> dict[str, Any]:
    """Return the counts and how they were made."""
    counts, _ = _columns(counted)
    columns = [*counts, "density_km2", "region_area_km2", "imaged_share"]
    values = [counted[c].tolist() for c in columns]
    return {
        **counted.attrs,
        "regions": [
            {"region": name} | dict(zip(columns, row, strict=True))
            for name, *row in zip(_names(counted), *values, strict=True)
        ],
    }
