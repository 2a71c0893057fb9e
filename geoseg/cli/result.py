"""What a run found, on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from geoseg.cli.show import show_json, show_table
from geoseg.errors import StoppedError
from geoseg.redact import redact

if TYPE_CHECKING:
    import geopandas as gpd

    from geoseg.jobs.demo import DemoResult
    from geoseg.jobs.pipeline import RunResult


_KINDS = 6
# ^ classes that get a column on the terminal
NOTHING = "no objects"
"""How the notes begin that say why nothing was found."""
_MOST_SHOWN, _FEW_SHOWN = 60, 20


@contextmanager
def show_end(context: click.Context) -> Iterator[None]:
    """Tell of a run that was asked to stop: that is no error, but not the end either."""
    try:
        yield
    except StoppedError as error:
        click.echo(f"geoseg: {redact(str(error))}; the same command goes on from here", err=True)
        context.exit(error.exit_code)


def show_result(result: RunResult, *, as_json: bool) -> None:
    """Print what a run found, and numbers that add up."""
    _show_why(result)
    if as_json:
        show_json(_as_dict(result))
        return
    if result.regions is not None:
        _show_counts(result.regions, result.n_objects)
    states = result.supertiles
    lost = f"; {result.tiles_failed} tiles left out" if result.tiles_failed else ""
    click.echo(
        f"{sum(states.values())} supertiles: {states.get('done', 0)} done, "
        f"{states.get('empty', 0)} empty, {states.get('nodata', 0)} nodata, "
        f"{states.get('outside', 0)} outside the AOI, {states.get('failed', 0)} failed{lost}"
    )
    for note in (note for note in result.notes if not note.startswith(NOTHING)):
        click.echo(f"note: {note}")
    if result.shard is not None:
        _show_shard(result)
        return
    click.echo(f"seams: {result.seams.verdict}")
    if result.exit_code:
        click.echo(
            "tiles failed: see the coverage layer and run.json; the same command tries their "
            "supertiles again, and only them"
        )
    done = ", finished before: nothing was left to do" if result.already_done else ""
    click.echo(
        f"{result.n_objects} objects in {result.seconds:.0f} s, "
        f"largest process {result.peak_mb / 1000:.2f} GB: {result.output}{done}"
    )
    for path in result.also:
        click.echo(f"also: {path}")
    if result.report is not None:
        click.echo(f"report: {result.report}")


def _show_why(result: RunResult) -> None:
    """Say on stderr why a run found nothing, so that it is seen whatever reads stdout."""
    for note in result.notes:
        if note.startswith(NOTHING):
            click.echo(f"geoseg: {note}", err=True)


def _show_shard(result: RunResult) -> None:
    again = "the same command tries what failed again; " if result.exit_code else ""
    click.echo(
        f"shard {result.shard} in {result.seconds:.0f} s, largest process "
        f"{result.peak_mb / 1000:.2f} GB; {again}when all shards are done, the command without "
        "--shard joins them"
    )


def _as_dict(result: RunResult) -> dict[str, Any]:
    values: dict[str, Any] = {
        "output": str(result.output),
        "also": [str(path) for path in result.also],
        "run_dir": str(result.run_dir),
        "report": None if result.report is None else str(result.report),
        "objects": result.n_objects,
        "supertiles": result.supertiles,
        "tiles_failed": result.tiles_failed,
        "exit_code": result.exit_code,
        "shard": result.shard,
        "already_done": result.already_done,
        "saturated_tiles": result.saturated,
        "seconds": round(result.seconds, 2),
        "peak_mb": result.peak_mb,
        "notes": list(result.notes),
        "why_nothing": [asdict(cause) for cause in result.why_nothing],
        "seams": result.seams.to_dict(),
    }
    if result.regions is not None:
        rows = result.regions.drop(columns=result.regions.geometry.name)
        values["regions"] = rows.to_dict(orient="records")
        values |= {k: result.regions.attrs[k] for k in ("outside", "by_class")}
    return values


def _show_counts(regions: gpd.GeoDataFrame, n_objects: int) -> None:
    from geoseg.outputs.counts import remarks_on

    by_class = regions.attrs["by_class"]
    kinds = [kind for kind in by_class if f"count_{kind}" in regions.columns][:_KINDS]
    counts = ["count", *(f"count_{kind}" for kind in kinds)]
    order = np.arange(len(regions))
    if len(regions) > _MOST_SHOWN:
        # cells of a grid may be thousands
        order = np.argsort(-regions["count"].to_numpy(), kind="stable")[:_FEW_SHOWN]
    shown, names = regions.iloc[order], _names(regions)
    rows = [
        [name, *counted, round(density), f"{imaged:.0%}"]
        for name, counted, density, imaged in zip(
            [names[i] for i in order],
            shown[counts].to_numpy().tolist(),
            shown["density_km2"].fillna(0),
            shown["imaged_share"].fillna(0),
            strict=True,
        )
    ]
    if len(shown) < len(regions):
        rest = len(regions) - len(shown)
        rows.append([f"... {rest} more in the output", *([None] * (len(counts) + 2))])
    ends = []
    for label, end in (("outside", "outside"), ("all", "total")):
        all_of_it = n_objects if end == "total" else regions.attrs[end]
        ends.append([label, all_of_it, *(by_class[kind][end] for kind in kinds), None, None])
    show_table(["region", "objects", *kinds, "per km2", "imaged"], rows, totals=ends)
    for text in remarks_on(regions):
        click.echo(f"note: {text}")


def _names(regions: gpd.GeoDataFrame) -> list[str]:
    """Return what to call the regions: their name field, or their number."""
    field = regions.attrs.get("region_field")
    values = regions[field] if field else range(1, len(regions) + 1)
    return [str(value) for value in values]


def show_demo(result: DemoResult) -> None:
    """Print the demo's table: objects and truth per region, quality, seconds, files."""
    counts = result.counts
    rows = [
        [name, int(row["count"]), int(row["truth"])]
        for name, (_, row) in zip(_names(counts), counts.iterrows(), strict=True)
    ]
    n_truth = int(counts["truth"].sum()) + result.outside[1]
    totals = [["outside", *result.outside], ["all", result.run.n_objects, n_truth]]
    show_table(["region", "objects", "truth"], rows, totals=totals)
    q = result.quality
    click.echo(f"precision {q.precision:.3f}, recall {q.recall:.3f}, F1 {q.f1:.3f} at IoU 0.5")
    click.echo(
        f"{result.render_s:.0f} s to render, {result.run.seconds:.0f} s to find, join and count; "
        f"largest process {result.run.peak_mb / 1000:.2f} GB"
    )
    files = {
        "image": result.town.image,
        "truth": result.town.footprints,
        "regions": result.town.regions,
        "objects": result.run.output,
        "picture": result.picture,
    }
    for name, path in files.items():
        click.echo(f"{name + ':':9}{path}")
