"""The map of a page: what its script gets, and the elements around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from geoseg.objects.count import polygonal
from geoseg.outputs.report.encode import OutlineEncoder
from geoseg.outputs.report.frame import Bounds, Frame
from geoseg.outputs.report.page import Html, escape
from geoseg.outputs.report.pictures import Pyramid
from geoseg.outputs.style import Colour, class_colours
from geoseg.records import GeometryArray

RAMP: tuple[Colour, ...] = (
    (243, 246, 205), (160, 218, 184), (78, 181, 192), (38, 118, 178), (24, 50, 120),
)  # fmt: skip
"""Colours of regions, few to many: even steps of lightness, apart from those of objects."""
MAX_REGION_POINTS = 60_000
"""Outlines of regions are simplified until they have no more."""
_RANKED = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """A place that needs a look."""

    kind: str
    """'failed' or 'saturated'."""
    text: str
    """What is wrong there."""
    shape: shapely.Geometry
    """In the CRS of the map's frame."""


@dataclass(frozen=True, eq=False)
class MapData:
    """Everything that a map shows."""

    frame: Frame
    pyramids: Sequence[Pyramid] = ()
    regions: gpd.GeoDataFrame | None = None
    """With ``count`` and ``density_km2``; any CRS."""
    region_names: Sequence[str] = ()
    objects: OutlineEncoder | None = None
    problems: Sequence[Problem] = ()
    homes: Sequence[tuple[str, Bounds]] = ()
    """Places to go to: name and bounds in the frame's CRS."""
    colours: Mapping[str, Colour] = field(default_factory=dict)
    """Of kinds of objects; by default those of all our pictures."""
    kind_title: str = "class"
    """What tells kinds apart."""

    def kinds(self) -> list[dict[str, Any]]:
        """Return names, colours and numbers of the kinds of objects, in their coded order."""
        if self.objects is None:
            return []
        colours = dict(class_colours(self.objects.kinds)) | dict(self.colours)
        return [
            {"name": name, "colour": _hex(colours[name]), "n": self.objects.counts.get(name, 0)}
            for name in self.objects.kinds
        ]

    def to_json(self) -> dict[str, Any]:
        """Return what the script reads; see `write_page`."""
        frame = self.frame
        return {
            "size": [frame.width, frame.height],
            "images": [pyramid.to_json() for pyramid in self.pyramids],
            "regions": self._regions(),
            "kinds": self.kinds(),
            "kindTitle": self.kind_title,
            "objects": None if self.objects is None else self.objects.to_json(),
            "problems": [
                {
                    "kind": p.kind,
                    "text": p.text,
                    "rings": _rings(frame.place(np.array([p.shape]))[0]),
                }
                for p in self.problems
            ],
            "homes": [{"name": n, "box": _home(frame, b)} for n, b in self.homes],
            "ramp": [_hex(colour) for colour in RAMP],
        }

    def _regions(self) -> list[dict[str, Any]]:
        if self.regions is None or len(self.regions) == 0:
            return []
        shapes = _simpler(_regions_near(self.regions, self.frame))
        labels = shapely.point_on_surface(shapes)
        rows = []
        for i, (shape, label) in enumerate(zip(shapes, labels, strict=True)):
            at = None if label.is_empty else [round(label.x, 1), round(label.y, 1)]
            rows.append(
                {
                    "name": self.region_names[i],
                    "rings": _rings(shape),
                    "label": at,
                    "count": _value(self.regions, "count", i),
                    "density": _value(self.regions, "density_km2", i),
                }
            )
        return rows


def map_html(data: MapData, *, title: str) -> Html:
    """Return the elements of a map; `write_page` needs ``data={"map": data.to_json()}`` beside.

    Parameters
    ----------
    data : MapData
        What it shows.
    title : str
        Read aloud as the map's name.
    """
    has_regions = data.regions is not None and len(data.regions) > 0
    swatches = "".join(
        f'<li><svg width="14" height="14" aria-hidden="true"><rect x="1" y="1" width="12" '
        f'height="12" rx="3" fill="{kind["colour"]}" fill-opacity=".35" '
        f'stroke="{kind["colour"]}" stroke-width="2"/></svg> {escape(kind["name"])} '
        f"<span>{kind['n']:,}</span></li>"
        for kind in sorted(data.kinds(), key=lambda k: (-k["n"], k["name"]))[:12]
    )
    return Html(
        '<div class="map-block"><div class="map-frame">'
        f'<div id="map" class="map" tabindex="0" role="application" aria-label="{escape(title)}" '
        'aria-describedby="map-keys"><canvas id="map-canvas" aria-hidden="true"></canvas>'
        '<div class="cross" aria-hidden="true"></div>'
        '<noscript><p class="no-script">The map needs JavaScript; the tables below hold all '
        "numbers.</p></noscript></div>"
        '<div class="zoom" role="group" aria-label="Zoom">'
        '<button type="button" id="map-in" aria-label="Zoom in" title="Zoom in (+)">+</button>'
        '<button type="button" id="map-out" aria-label="Zoom out" title="Zoom out (-)">&minus;'
        '</button><button type="button" id="map-home" aria-label="Show all" title="Show all (0)">⤢'
        "</button>"
        f"</div>{_legend(swatches, has_regions=has_regions)}"
        '<div id="map-scale" class="scale" aria-hidden="true"><i></i><span></span></div></div>'
        f'<aside class="panel" aria-label="Selected on the map">{_controls(data, has_regions)}'
        '<div id="map-picked" class="picked" aria-live="polite">'
        f'<p class="hint">Click {"a region or an object" if has_regions else "an object"} on '
        f"the map to see its numbers.</p></div>{_ranking(data)}</aside></div>"
        '<p id="map-keys" class="remark">Mouse or finger: drag to move, wheel or pinch to zoom, '
        "click to select. Keyboard, with the map in focus: arrows move, + and &minus; zoom, 0 "
        "shows all, Enter selects what is under the cross, N and P go from region to region.</p>"
    )


def _controls(data: MapData, has_regions: bool) -> str:
    layers = [("images", "Imagery", bool(data.pyramids)), ("regions", "Regions", has_regions)]
    layers += [
        ("objects", "Objects", data.objects is not None and data.objects.rows > 0),
        ("problems", "Problem places", bool(data.problems)),
    ]
    boxes = "".join(
        f'<label><input type="checkbox" data-layer="{key}" checked> {name}</label>'
        for key, name, there in layers
        if there
    )
    colour = (
        '<label class="pick">Colour regions by <select id="map-colour">'
        '<option value="density">objects per km²</option><option value="count">count</option>'
        '<option value="none">nothing</option></select></label>'
        if has_regions
        else ""
    )
    homes = "".join(
        f'<option value="{i}">{escape(name)}</option>' for i, (name, _) in enumerate(data.homes)
    )
    go = (
        f'<label class="pick">Go to image <select id="map-go"><option value="">all</option>{homes}'
        "</select></label>"
        if len(data.homes) > 1
        else ""
    )
    shown = f'<fieldset class="layers"><legend>Show</legend>{boxes}</fieldset>' if boxes else ""
    return f"{shown}{colour}{go}"


def _legend(swatches: str, *, has_regions: bool) -> str:
    ramp = ""
    if has_regions:
        last = len(RAMP) - 1
        stops = "".join(
            f'<stop offset="{i / last:.2f}" stop-color="{_hex(c)}"/>' for i, c in enumerate(RAMP)
        )
        ramp = (
            '<div id="map-ramp"><span id="map-ramp-title">objects per km²</span>'
            '<svg width="140" height="10" aria-hidden="true"><defs><linearGradient id="ramp">'
            f"{stops}</linearGradient></defs>"
            '<rect width="140" height="10" rx="3" fill="url(#ramp)"/></svg>'
            '<span class="ends"><span id="map-ramp-low"></span><span id="map-ramp-high"></span>'
            "</span></div>"
        )
    return f'<div class="legend" id="map-legend">{ramp}<ul>{swatches}</ul></div>'


def _ranking(data: MapData) -> str:
    """Return the regions with most objects first, each a button with a bar."""
    if data.regions is None or len(data.regions) == 0:
        return ""
    counts = np.nan_to_num(data.regions["count"].to_numpy(np.float64))
    order = np.argsort(-counts, kind="stable")[:_RANKED]
    most = max(counts.max(initial=0), 1)
    rows = "".join(
        f'<li><button type="button" class="place" data-place="{i}">'
        f"<span>{escape(data.region_names[i])}</span><b>{counts[i]:,.0f}</b>"
        '<svg aria-hidden="true" width="100%" height="4"><rect class="bar" height="4" rx="2" '
        f'width="{100 * counts[i] / most:.1f}%"/></svg></button></li>'
        for i in order
    )
    more = len(counts) - len(order)
    rest = f'<p class="remark">and {more:,} more in the table below</p>' if more > 0 else ""
    return f'<h3>Objects in each region</h3><ol class="ranking">{rows}</ol>{rest}'


def _regions_near(regions: gpd.GeoDataFrame, frame: Frame) -> GeometryArray:
    """Bring regions to the map; of those that reach far beyond it what is near."""
    around = _grown(frame.bounds, 1.0)
    own = pyproj.CRS.from_user_input(regions.crs)
    shapes, _ = polygonal(regions.geometry.array)
    if not own.equals(frame.crs):
        there = pyproj.Transformer.from_crs(frame.crs, own, always_xy=True)
        box = np.array(there.transform_bounds(*around, densify_pts=21))
        if np.isfinite(box).all() and box[0] < box[2]:
            shapes = _clipped(shapes, tuple(_grown(tuple(box.tolist()), 0.05)))
        move = pyproj.Transformer.from_crs(own, frame.crs, always_xy=True)
        shapes = shapely.transform(
            shapes, lambda xy: np.column_stack(move.transform(xy[:, 0], xy[:, 1]))
        )
        points, rows = shapely.get_coordinates(shapes, return_index=True)
        shapes[rows[~np.isfinite(points).all(axis=1)]] = shapely.Polygon()
        shapes, _ = polygonal(shapes)
    return frame.place(_clipped(shapes, around))


def _grown(bounds: Bounds, share: float) -> Bounds:
    """Return bounds grown by a share of their longer side."""
    left, bottom, right, top = bounds
    margin = share * max(right - left, top - bottom)
    return left - margin, bottom - margin, right + margin, top + margin


def _clipped(shapes: GeometryArray, bounds: Sequence[float]) -> GeometryArray:
    box = shapely.box(*bounds)
    out = ~shapely.covered_by(shapes, box)
    if out.any():
        shapes = shapes.copy()
        shapes[out], _ = polygonal(shapely.intersection(shapes[out], box))
    return shapes


def _simpler(shapes: GeometryArray) -> GeometryArray:
    """Simplify shapes in metres until they have few points."""
    tolerance = 0.2
    while shapely.get_num_coordinates(shapes).sum() > MAX_REGION_POINTS and tolerance < 1e6:
        shapes = shapely.simplify(shapes, tolerance, preserve_topology=True)
        tolerance *= 2
    return shapes


def _rings(shape: shapely.Geometry) -> list[list[float]]:
    """Return all rings as x, y, x, y ..., without the last point, which is the first."""
    rings = shapely.get_rings(shapely.get_parts(shape))
    return [np.round(shapely.get_coordinates(r)[:-1], 1).ravel().tolist() for r in rings]


def _home(frame: Frame, bounds: Bounds) -> list[float]:
    """Return bounds on the map: left, top, right, bottom."""
    left, top, right, bottom = shapely.bounds(frame.place(np.array([shapely.box(*bounds)]))[0])
    return [left, top, right, bottom]


def _value(table: gpd.GeoDataFrame, name: str, row: int) -> float | None:
    if name not in table:
        return None
    value = float(table[name].iloc[row])
    return value if np.isfinite(value) else None


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
