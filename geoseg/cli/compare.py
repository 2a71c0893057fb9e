"""``geoseg compare``: what changed between dates."""

from __future__ import annotations

from pathlib import Path

import click

from geoseg.cli.show import show_json, show_table


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="GeoPackage with a layer 'changes'."
)
@click.option("--regions", type=click.Path(path_type=Path), help="Count changes per polygon.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=5.0,
    show_default=True,
    help="Largest common shift between the dates, metres; 0 takes them as they lie.",
)
@click.option(
    "--growth",
    type=click.FloatRange(0, 10, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share by which the area must change for grown or shrunk.",
)
@click.option("--any-class", is_flag=True, help="A thing may change its class.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    before: Path,
    after: Path,
    output: Path | None,
    regions: Path | None,
    tolerance: float,
    growth: float,
    any_class: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Say what changed between the objects of two dates.

    Things are kept, grown, shrunk, appeared, gone, split or merged.

    BEFORE and AFTER are outputs of geoseg detect, or any files of polygons. A shift that all
    objects have in common is estimated and taken out.
    """
    from geoseg.objects.compare import KINDS, compare
    from geoseg.objects.count import count
    from geoseg.outputs.tables import check_output, read_vector, write_geopackage

    if output is not None:
        check_output(output, overwrite, suffixes=(".gpkg",))
    areas = None if regions is None else read_vector(regions, what="regions")
    found = compare(
        read_vector(before, what="objects"),
        read_vector(after, what="objects"),
        tolerance_m=tolerance,
        growth=growth,
        by_class=not any_class,
    )
    counted = None
    if areas is not None:
        kinds = found.changes[["change", "geometry"]].rename(columns={"change": "class"})
        counted = count(kinds, areas, classes=KINDS)
    if output is not None:
        layers = {"changes": found.changes}
        if counted is not None:
            layers["regions"] = counted
        write_geopackage(output, layers, overwrite=overwrite)
    figures = {"shift_m": list(found.shift_m), "matched": found.matched, **found.counts}
    rows = []
    if counted is not None:
        field = counted.attrs["region_field"]
        names = counted[field] if field else range(1, len(counted) + 1)
        columns = [counted[f"count_{kind}"].tolist() for kind in KINDS]
        rows = [[str(name), *values] for name, *values in zip(names, *columns, strict=True)]
    if as_json:
        per_region = [dict(zip(("region", *KINDS), row, strict=True)) for row in rows]
        show_json(figures | ({"regions": per_region} if counted is not None else {}))
        return
    if rows:
        show_table(["region", *KINDS], rows, totals=[["all", *found.counts.values()]])
    else:
        show_table(["change", "things"], [[k, n] for k, n in found.counts.items()])
    east, north = found.shift_m
    click.echo(
        f"the second date lies {east:+.2f} m east and {north:+.2f} m north of the first "
        f"({found.matched} pairs agree on it); taken out"
        if found.matched
        else "no common shift was found; the dates are compared as they lie"
    )
