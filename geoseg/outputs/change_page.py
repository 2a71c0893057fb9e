"""A page of what changed between two dates: map, counts, regions, pictures of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geoseg.errors import GeosegError
from geoseg.objects.compare import KINDS, NOT_COMPARABLE, Comparison, metres_around
from geoseg.objects.count import ellipsoid_area_m2, polygonal
from geoseg.outputs.report import (
    Column,
    Frame,
    Html,
    MapData,
    OutlineEncoder,
    Section,
    all_bounds,
    escape,
    facts,
    figures,
    headline,
    join,
    make_pyramids,
    map_html,
    notice,
    paragraph,
    table,
    write_page,
)
from geoseg.outputs.report.encode import MAX_OUTLINES
from geoseg.outputs.report.pictures import Crop, crop
from geoseg.outputs.style import CHANGE_COLOURS

CHANGED = tuple(kind for kind in KINDS if kind not in ("kept", NOT_COMPARABLE))
"""Kinds that are changes."""
PICTURED = 7
"""Things of each kind that are shown, the largest first."""
LISTED = 300
"""Changes in the table, the largest first."""
_MEANING = {
    "kept": "there at both dates, of about the same size",
    "grown": "larger at the second date, beyond what chance draws",
    "shrunk": "smaller at the second date, beyond what chance draws",
    "appeared": "only at the second date",
    "gone": "only at the first date",
    "split": "one at the first date, several at the second",
    "merged": "several at the first date, one at the second",
    NOT_COMPARABLE: "where one of the dates was not imaged, or its edge cuts the object",
}


@dataclass(frozen=True, slots=True, eq=False)
class ChangeStep:
    """Two dates that are compared."""

    before: str
    """Name of the first date."""
    after: str
    """Name of the second date."""
    found: Comparison
    regions: gpd.GeoDataFrame | None = None
    """From `geoseg.objects.compare.count_changes`."""
    before_image: Path | None = None
    after_image: Path | None = None

    @property
    def n_changes(self) -> int:
        """Things that are not as they were."""
        return sum(self.found.counts[kind] for kind in CHANGED)


def write_change_page(
    path: str | Path,
    steps: Sequence[ChangeStep],
    *,
    settings: Sequence[tuple[str, object]] = (),
    overwrite: bool = False,
) -> Path:
    """Write a page of what changed.

    Parameters
    ----------
    path : str or Path
        Ends in .html.
    steps : sequence of ChangeStep
        At least one; of several, map and pictures are of the last, counts of all.
    settings : sequence of (str, object)
        Names and values to be told below.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written: it needs no other file and no network.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    last = steps[-1]
    shown = _in_order(last.found.changes)
    drawn, notes = _map(last, shown)
    sections = [
        Section("map-section", "Map", map_html(drawn, title="Map of what changed")),
        Section("kinds", "What happened", join([_kinds(step, several=len(steps) > 1)
                                                for step in steps])),
        Section("regions", "Regions", join([_regions(step, several=len(steps) > 1,
                                                     places=step is last) for step in steps])),
        Section("pictures", "Before and after", _pictures(last, shown, drawn.frame)),
        Section("changes", "List of changes", _list(shown), link="List"),
        Section("method", "How dates were compared", _method(steps, settings), link="Method"),
    ]  # fmt: skip
    return write_page(
        path,
        title=f"Changes: {last.n_changes:,}",
        header=_top(steps, notes),
        sections=sections,
        data={"map": drawn.to_json()},
        footer=paragraph(
            "Made by geoseg compare. This page is one file and asks the network for nothing."
        ),
        overwrite=overwrite,
    )


def _in_order(changes: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the things to draw: what stayed first, so that nothing hides a change."""
    if len(changes) > MAX_OUTLINES:
        changes = changes[changes["change"] != "kept"]
    rank = changes["change"].map({NOT_COMPARABLE: 0, "kept": 1}).fillna(2)
    table_ = changes.loc[rank.sort_values(kind="stable").index].reset_index(drop=True)
    area = table_["area_after_m2"].where(table_["area_after_m2"] > 0, table_["area_before_m2"])
    score = pd.Series(0.0, index=table_.index)
    for name in ("score_before", "score_after"):
        if name in table_:
            score = table_[name].fillna(score)
    return table_.assign(area_m2=area, score=score)


def _map(step: ChangeStep, shown: gpd.GeoDataFrame) -> tuple[MapData, list[str]]:
    """Return the map, and what could not be shown on it."""
    crs = pyproj.CRS.from_user_input(shown.crs)
    bounds = tuple(shown.total_bounds.tolist()) if len(shown) else None
    frame = Frame.around(crs, all_bounds([bounds]))
    image = step.after_image or step.before_image
    pyramids, notes = make_pyramids([image] if image is not None else [], frame)
    if step.after_image is not None:
        # outlines lie as the first date has them, and so must the second image
        east, north = step.found.shift_m
        pyramids = [replace(p, place=_moved(p.place, -east, north)) for p in pyramids]
    encoder = OutlineEncoder(frame, len(shown), 0.2, kind_field="change")
    if len(shown):
        encoder.add(shown)
    regions = names = None
    if step.regions is not None:
        regions = step.regions.copy()
        kinds = [kind.replace(" ", "_") for kind in KINDS]
        regions["count"] = regions[kinds].sum(axis=1)
        km2 = ellipsoid_area_m2(polygonal(regions.geometry.array)[0], regions.crs) / 1e6
        regions["density_km2"] = regions["count"] / np.where(km2 > 0, km2, np.nan)
        names = _region_names(step.regions)
    drawn = MapData(
        frame=frame,
        pyramids=pyramids,
        regions=regions,
        region_names=names or (),
        objects=encoder,
        colours=CHANGE_COLOURS,
        kind_title="change",
    )
    return drawn, notes


def _moved(place: tuple[float, ...], x: float, y: float) -> tuple[float, ...]:
    a, b, c, d, e, f = place
    return a, b, c + x, d, e, f + y


def _region_names(regions: gpd.GeoDataFrame) -> list[str]:
    field = regions.attrs.get("region_field")
    values = regions[field] if field else range(1, len(regions) + 1)
    return [str(value) for value in values]


def _top(steps: Sequence[ChangeStep], notes: Sequence[str]) -> Html:
    last, counts = steps[-1], steps[-1].found.counts
    title = f"{last.n_changes:,} {'change' if last.n_changes == 1 else 'changes'}"
    if len(steps) > 1:
        title += f" in the last of {len(steps)} steps"
    compared = sum(counts.values()) - counts[NOT_COMPARABLE]
    told = [notice("warn", n[:1].upper() + n[1:] + ".") for n in last.found.notes]
    told += [notice("info", n[:1].upper() + n[1:] + ".") for n in notes]
    rest = figures(
        [
            ("appeared", f"{counts['appeared']:,}", ""),
            ("gone", f"{counts['gone']:,}", ""),
            ("net", f"{counts['appeared'] - counts['gone']:+,}", "appeared less gone"),
            ("grown, shrunk", f"{counts['grown']:,}, {counts['shrunk']:,}", ""),
            ("split, merged", f"{counts['split']:,}, {counts['merged']:,}", ""),
            ("kept", f"{counts['kept']:,}", ""),
            (NOT_COMPARABLE, f"{counts[NOT_COMPARABLE]:,}", "not seen at both dates"),
        ]
    )
    lead = f"{compared:,} things compared between {last.before} and {last.after}."
    return headline(title, lead, over="geoseg compare", rest=join([*told, rest]))


def _kinds(step: ChangeStep, *, several: bool) -> Html:
    changes = step.found.changes
    rows = []
    for kind in KINDS:
        mine = changes[changes["change"] == kind]
        old, new = float(mine["area_before_m2"].sum()), float(mine["area_after_m2"].sum())
        rows.append([_swatch(kind), len(mine), old, new, new - old, _MEANING[kind]])
    columns = [
        Column("change"),
        Column("things", numeric=True),
        Column("area before", "m²", numeric=True, digits=0),
        Column("area after", "m²", numeric=True, digits=0),
        Column("difference", "m²", numeric=True, digits=0),
        Column("meaning"),
    ]
    caption = f"{step.before} to {step.after}"
    return table(caption, columns, rows, hidden_caption=not several)


def _swatch(kind: str) -> Html:
    colour = "#{:02x}{:02x}{:02x}".format(*CHANGE_COLOURS[kind])
    return Html(
        f'<svg width="14" height="14" aria-hidden="true"><rect x="1" y="1" width="12" height="12" '
        f'rx="3" fill="{colour}"/></svg> {escape(kind)}'
    )


def _regions(step: ChangeStep, *, several: bool, places: bool) -> Html:
    if step.regions is None:
        return Html("")
    kinds = [kind.replace(" ", "_") for kind in KINDS]
    names = _region_names(step.regions)
    counts = step.regions[[*kinds, "net"]].to_numpy().tolist()
    rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
    outside = step.regions.attrs["outside"]
    left = [outside[k] for k in kinds]
    total = step.found.counts
    columns = [Column("region"), *(Column(k, numeric=True) for k in (*KINDS, "net"))]
    return table(
        f"Changes per region, {step.before} to {step.after}",
        columns,
        rows,
        key="changes-table" if places else "",
        totals=[
            ["outside", *left, outside["appeared"] - outside["gone"]],
            ["all", *total.values(), total["appeared"] - total["gone"]],
        ],
        sortable=True,
        places=places,
        hidden_caption=not several,
    )


def _pictures(step: ChangeStep, shown: gpd.GeoDataFrame, frame: Frame) -> Html:
    """Return the largest changes of each kind, cut out of both images."""
    if step.before_image is None or step.after_image is None or not len(shown):
        return Html("")
    on_map = frame.place(shown.geometry.to_numpy())
    parts = []
    for kind in CHANGED:
        rows = shown.index[shown["change"] == kind]
        rows = rows[np.argsort(-shown.loc[rows, "area_m2"].to_numpy(), kind="stable")][:PICTURED]
        items = [_item(step, shown, int(row), on_map[row]) for row in rows]
        if items:
            parts.append(Html(f'<h3>{escape(kind)}</h3><ul class="crops">{"".join(items)}</ul>'))
    return join(parts)


def _item(step: ChangeStep, shown: gpd.GeoDataFrame, row: int, on_map: shapely.Geometry) -> str:
    thing, shape = shown.iloc[row], shown.geometry.iloc[row]
    later = _shifted(shape, shown, step.found.shift_m)
    assert step.before_image is not None  # noqa: S101  # asked by the caller
    assert step.after_image is not None  # noqa: S101
    cuts = [
        _crop(image, outline, shown.crs)
        for image, outline in ((step.before_image, shape), (step.after_image, later))
    ]
    colour = "#{:02x}{:02x}{:02x}".format(*CHANGE_COLOURS[thing["change"]])
    said = f"{thing['change']} {thing['thing_id']}"
    shots = "".join(
        _picture(cut, f"{said}, {name}", colour)
        for cut, name in zip(cuts, (step.before, step.after), strict=True)
    )
    left, top, right, bottom = on_map.bounds
    size = max(right - left, bottom - top, 5)
    at = f"{(left + right) / 2:.1f} {(top + bottom) / 2:.1f} {size:.1f}"
    return (
        f"<li>{shots}<p>{_areas(thing)}<br>"
        f'<button type="button" data-object="{row + 1}" data-at="{at}" '
        f'aria-label="{escape(said)} on the map">on the map</button></p></li>'
    )


def _areas(thing: Any) -> str:
    old, new = float(thing["area_before_m2"]), float(thing["area_after_m2"])
    if old and new:
        return f"{old:,.0f} to {new:,.0f} m²"
    return f"{old or new:,.0f} m²"


def _shifted(
    shape: shapely.Geometry, shown: gpd.GeoDataFrame, shift_m: tuple[float, float]
) -> shapely.Geometry:
    """Return an outline where the second date's image shows it."""
    plane = metres_around(shown)
    moved = gpd.GeoSeries([shape], crs=shown.crs).to_crs(plane).translate(*shift_m)
    return moved.to_crs(shown.crs).iloc[0]


def _crop(image: Path, shape: shapely.Geometry, crs: Any) -> Crop | None:
    try:
        return crop(image, shape, pyproj.CRS.from_user_input(crs))
    except GeosegError:
        # a thing at the edge may lie off one of the images
        return None


def _picture(cut: Crop | None, said: str, colour: str) -> str:
    if cut is None:
        return '<p class="remark">not imaged</p>'
    path = "".join(
        "M" + " ".join(f"{x:g},{y:g}" for x, y in zip(r[::2], r[1::2], strict=True)) + "Z"
        for r in cut.rings
    )
    return (
        f'<svg viewBox="0 0 {cut.width} {cut.height}" role="img" aria-label="{escape(said)}" '
        f'preserveAspectRatio="xMidYMid slice"><image width="{cut.width}" height="{cut.height}" '
        f'href="data:image/jpeg;base64,{cut.jpeg}"/><path class="halo" d="{path}"/>'
        f'<path class="line" d="{path}" stroke="{colour}"/></svg>'
    )


def _list(shown: gpd.GeoDataFrame) -> Html:
    changed = shown[shown["change"].isin(CHANGED)]
    if changed.empty:
        return paragraph("Nothing changed.")
    largest = changed.sort_values("area_m2", ascending=False, kind="stable").head(LISTED)
    columns = [
        Column("thing"), Column("change"), Column("area before", "m²", numeric=True, digits=0),
        Column("area after", "m²", numeric=True, digits=0), Column("score", numeric=True, digits=2),
    ]  # fmt: skip
    rows = [
        [row.thing_id, row.change, row.area_before_m2 or None, row.area_after_m2 or None,
         row.score or None]
        for row in largest.itertuples()
    ]  # fmt: skip
    listed = table("Changes", columns, rows, key="list-table", sortable=True, hidden_caption=True)
    left = len(changed) - len(largest)
    more = f"The {LISTED} largest; {left:,} more are in the output of geoseg compare -o."
    return join([listed, paragraph(more, "remark")]) if left else listed


def _method(steps: Sequence[ChangeStep], settings: Sequence[tuple[str, object]]) -> Html:
    parts: list[Html] = []
    for step in steps:
        found = step.found
        east, north = found.shift_m
        shift = (
            f"{east:+.2f} m east, {north:+.2f} m north; {found.matched:,} pairs agree on it"
            if found.matched
            else "none was found or looked for"
        )
        rows: list[tuple[str, object]] = [
            ("compared", f"{step.before} to {step.after}"),
            ("common shift of the second date, taken out", shift),
            ("what is left between centres", f"{found.residual_m:.2f} m in the median"),
            ("outlines differ by chance", f"{found.outline_m:.2f} m (one deviation)"),
            ("area of what stayed, later to earlier", f"{found.area_ratio:.3f} in the median"),
        ]
        parts.append(facts(rows))
    return join([*parts, facts(settings)] if settings else parts)
