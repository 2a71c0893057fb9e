"""``geoseg compare``: what changed between dates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.show import show_json, show_table

if TYPE_CHECKING:
    import geopandas as gpd

    from geoseg.jobs.changes import Changes
    from geoseg.objects.compare import Comparison

_PATH = click.Path(path_type=Path)


@click.command("compare")
@click.argument("dates", type=_PATH, nargs=-1, required=True, metavar="BEFORE AFTER...")
@click.option(
    "-o",
    "--output",
    type=_PATH,
    help="GeoPackage with a layer 'changes' (and 'regions', 'tracks', 'things'); other formats "
    "hold the changes alone.",
)
@click.option("--report", type=_PATH, help="A page with map, counts and pictures (.html).")
@click.option("--regions", type=_PATH, help="Count changes per polygon.")
@click.option("--before-image", type=_PATH, help="Imagery of the first date.")
@click.option("--after-image", type=_PATH, help="Imagery of the last date.")
@click.option(
    "--seen",
    type=_PATH,
    multiple=True,
    help="Polygons of what was imaged, once per date in their order.  [default: as each run says]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=5.0,
    show_default=True,
    help="Largest common shift between the dates, metres; 0 takes them as they lie.",
)
@click.option(
    "--slack",
    type=click.FloatRange(0, 20),
    default=1.0,
    show_default=True,
    help="What a small object may lie off after that, metres.",
)
@click.option(
    "--growth",
    type=click.FloatRange(0, 10, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share by which the area must change for grown or shrunk.",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Objects count from this score; weaker ones only confirm one of the other date.",
)
@click.option("--any-class", is_flag=True, help="A thing may change its class.")
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    dates: tuple[Path, ...],
    output: Path | None,
    report: Path | None,
    regions: Path | None,
    before_image: Path | None,
    after_image: Path | None,
    seen: tuple[Path, ...],
    tolerance: float,
    slack: float,
    growth: float,
    min_score: float,
    any_class: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Say what changed between the objects of two or more dates.

    Things are kept, grown, shrunk, appeared, gone, split or merged; what lies where one of the
    dates was not imaged is not comparable.

    BEFORE and AFTER are outputs of geoseg detect, or any files of polygons, earliest first. A
    shift that all objects have in common is estimated and taken out. Of more than two dates each
    is compared with the one before, and things are followed through all of them.
    """
    from geoseg.jobs.changes import compare_files, write_change_report, write_changes
    from geoseg.outputs.tables import check_output

    if len(dates) < 2:
        raise click.UsageError("one file given; expected the objects of two or more dates")
    if output is not None:
        output = check_output(output, overwrite)
    if report is not None:
        report = check_output(report, overwrite, suffixes=(".html", ".htm"))
    images: list[Path | None] = [None] * len(dates)
    images[0], images[-1] = before_image, after_image
    found = compare_files(
        dates,
        regions=regions,
        images=images,
        seen=seen,
        tolerance_m=tolerance,
        slack_m=slack,
        growth=growth,
        min_score=min_score,
        by_class=not any_class,
    )
    if output is not None:
        write_changes(output, found, overwrite=overwrite)
    if report is not None:
        write_change_report(report, found, overwrite=overwrite)
    if as_json:
        show_json(_as_dict(found))
        return
    _show(found)
    for path in (output, report):
        if path is not None:
            click.echo(str(path))


def _figures(step: Comparison) -> dict[str, Any]:
    return {
        "shift_m": list(step.shift_m),
        "matched": step.matched,
        "residual_m": step.residual_m,
        "area_ratio": step.area_ratio,
        "notes": list(step.notes),
        **step.counts,
    }


def _rows(table: gpd.GeoDataFrame) -> list[list[Any]]:
    """Return name, counts of all kinds and net of each region."""
    from geoseg.objects.compare import KINDS

    field = table.attrs["region_field"]
    names = table[field] if field else range(1, len(table) + 1)
    columns = [table[kind.replace(" ", "_")].tolist() for kind in KINDS]
    return [
        [str(name), *values]
        for name, *values in zip(names, *columns, table["net"].tolist(), strict=True)
    ]


def _as_dict(found: Changes) -> dict[str, Any]:
    from geoseg.jobs.changes import names_of_steps
    from geoseg.objects.compare import KINDS

    steps = []
    for k, (name, step) in enumerate(zip(names_of_steps(found), found.steps, strict=True)):
        figures = {"step": name, **_figures(step)}
        if found.regions:
            table = found.regions[k]
            keys = ("region", *KINDS, "net")
            figures["regions"] = [dict(zip(keys, row, strict=True)) for row in _rows(table)]
            figures["outside"] = {
                kind: table.attrs["outside"][kind.replace(" ", "_")] for kind in KINDS
            }
        steps.append(figures)
    if found.tracks is None:
        return steps[0]
    return {"things": len(found.tracks.things), "steps": steps}


def _show(found: Changes) -> None:
    from geoseg.jobs.changes import names_of_steps
    from geoseg.objects.compare import KINDS

    several = len(found.steps) > 1
    for k, (name, step) in enumerate(zip(names_of_steps(found), found.steps, strict=True)):
        if several:
            click.echo(f"{name}:")
        net = step.counts["appeared"] - step.counts["gone"]
        if found.regions:
            outside = found.regions[k].attrs["outside"]
            left = [outside[kind.replace(" ", "_")] for kind in KINDS]
            totals = [
                ["outside", *left, outside["appeared"] - outside["gone"]],
                ["all", *step.counts.values(), net],
            ]
            show_table(["region", *KINDS, "net"], _rows(found.regions[k]), totals=totals)
        else:
            show_table(["change", "things"], [[kind, n] for kind, n in step.counts.items()])
        _show_shift(step)
    if found.tracks is not None:
        click.echo(f"{len(found.tracks.things)} things in {len(found.dates)} dates")


def _show_shift(step: Comparison) -> None:
    east, north = step.shift_m
    if step.matched:
        click.echo(
            f"the later date lies {east:+.2f} m east and {north:+.2f} m north of the first "
            f"({step.matched} pairs agree on it); taken out, what is left is "
            f"{step.residual_m:.2f} m in the median"
        )
    for note in step.notes:
        click.echo(f"note: {note}")
