"""From parts to tables: join the seams, put objects on the earth, count."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely

from geoseg.imagery.georef import geodesic_area_perimeter, polygons_to_crs, reproject_polygons
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.parts import PartSummary, read_part
from geoseg.jobs.plan import ImagePlan, RunPlan, part_key
from geoseg.jobs.supertile import COARSE_PX
from geoseg.objects.count import count
from geoseg.objects.shape import ShapeSettings, finish_shapes
from geoseg.objects.sheets import Sheets, join_sheets
from geoseg.objects.stitch import stitch
from geoseg.outputs.tables import empty_objects
from geoseg.records import BoolArray, Fragments, Objects, Tile


def objects_table(
    plan: RunPlan, run_dir: RunDirectory, summaries: Sequence[PartSummary]
) -> gpd.GeoDataFrame:
    """Join all parts into the objects table, in its fixed order."""
    tables = []
    for number, image in enumerate(plan.images):
        mine = [s for s in summaries if s.image == number and s.status == "done"]
        paths = [run_dir.part(part_key(plan, number, s.index)) for s in mine]
        joined = _in_order(_join_seams(image, paths))
        # what identifies an object must not change with how its outline is finished
        uids = _uids(plan, image, joined)
        finished, keep = _finish(plan, image, joined)
        if keep.any():
            table = _table(plan, image, finished).assign(sheet=number)
            table.insert(0, "uid", uids[keep])
            tables.append(table)
    if not tables:
        return empty_objects(plan.crs)
    table = gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), crs=plan.crs)
    if plan.settings.cross_image and len(tables) > 1:
        table = _join_images(plan, table, summaries)
    table = table.drop(columns="sheet")
    table.insert(0, "object_id", np.arange(1, len(table) + 1))
    return table


def _join_seams(image: ImagePlan, paths: Sequence[Path]) -> Objects:
    """Return the settled objects of all parts, and those that the seams had kept waiting."""
    settled: list[Objects] = []
    waiting: list[Fragments] = []
    tiles: list[Tile] = []
    for path in paths:
        part = read_part(path)
        settled.append(part.settled)
        rest = part.waiting
        waiting.append(replace(rest, tiles=rest.tiles + len(tiles)))
        tiles += part.tiles
    across = stitch(Fragments.concatenate(waiting), tiles)
    objects = Objects.concatenate([*settled, across])
    if image.aoi is not None and len(objects):
        points = shapely.point_on_surface(objects.polygons)
        shapely.prepare(image.aoi)
        objects = objects.take(shapely.intersects(image.aoi, points))
    return objects


def _in_order(objects: Objects) -> Objects:
    """Sort as one reads: from the top, then from the left; size decides on one spot."""
    x, y = shapely.get_coordinates(shapely.centroid(objects.polygons)).T.round(2)
    return objects.take(np.lexsort((shapely.area(objects.polygons), objects.labels, x, y)))


def _uids(plan: RunPlan, image: ImagePlan, objects: Objects) -> npt.NDArray[np.object_]:
    """Return names made of image, class, place and size: the same in every run."""
    places = shapely.get_coordinates(shapely.centroid(objects.polygons))
    areas = shapely.area(objects.polygons)
    texts = [
        f"{image.info.fingerprint}|{plan.classes[label]}|{x:.1f}|{y:.1f}|{area:.0f}"
        for label, (x, y), area in zip(objects.labels, places, areas, strict=True)
    ]
    return np.array([hashlib.sha256(t.encode()).hexdigest()[:16] for t in texts], dtype=object)


def _finish(plan: RunPlan, image: ImagePlan, objects: Objects) -> tuple[Objects, BoolArray]:
    """Give the outlines their final form; say which objects stay."""
    wanted = plan.settings
    polygons, keep = finish_shapes(
        objects.polygons,
        objects.scores,
        objects.labels,
        ShapeSettings(
            resolve_overlaps=wanted.resolve_overlaps,
            simplify_px=wanted.simplify,
            regularize=wanted.regularize,
            min_area_m2=wanted.min_area,
            max_hole_m2=wanted.fill_holes,
        ),
        gsd_m=image.grid.gsd_m,
    )
    return replace(objects, polygons=polygons).take(keep), keep


def _table(plan: RunPlan, image: ImagePlan, objects: Objects) -> gpd.GeoDataFrame:
    """Put objects on the earth, with the columns that users see but numbers and names."""
    wkt = image.info.crs_wkt
    placed = polygons_to_crs(objects.polygons, image.grid.transform)
    area, perimeter = geodesic_area_perimeter(placed, wkt)
    if not plan.crs.equals(pyproj.CRS.from_wkt(wkt)):
        placed = reproject_polygons(placed, wkt, plan.crs.to_wkt())
    return gpd.GeoDataFrame(
        {
            "class": np.array(plan.classes, dtype=object)[objects.labels],
            "score": objects.scores.astype(np.float64).round(6),
            "area_m2": area.round(3),
            "perimeter_m": perimeter.round(3),
            "n_parts": objects.n_parts.astype(np.int32),
            "touches_edge": objects.touches_edge,
            "image": Path(image.info.path).name,
        },
        geometry=_valid(placed),
        crs=plan.crs,
    )


def _join_images(
    plan: RunPlan, table: gpd.GeoDataFrame, summaries: Sequence[PartSummary]
) -> gpd.GeoDataFrame:
    """Keep objects that several images show once."""
    imaged = [
        imaged_area(plan, [s for s in summaries if s.image == i]) for i in range(len(plan.images))
    ]
    joined = join_sheets(
        Sheets(
            polygons=table.geometry.to_numpy(),
            scores=table["score"].to_numpy(),
            labels=pd.factorize(table["class"], sort=True)[0],
            sheet=table["sheet"].to_numpy(),
            footprints=[area.union_all() for area in imaged],
            near=max(_coarse_cell(plan, image) for image in plan.images),
        )
    )
    out = table.iloc[joined.rows].reset_index(drop=True)
    out = out.set_geometry(gpd.GeoSeries(joined.polygons, crs=plan.crs))
    several = [k for k, members in enumerate(joined.parts) if len(members) > 1]
    if several:
        area, perimeter = geodesic_area_perimeter(joined.polygons[several], plan.crs.to_wkt())
        out.loc[several, "area_m2"] = area.round(3)
        out.loc[several, "perimeter_m"] = perimeter.round(3)
        for k in several:
            members = table.iloc[joined.parts[k]]
            out.loc[k, "n_parts"] = members["n_parts"].sum()
            out.loc[k, "touches_edge"] = members["touches_edge"].any()
    return out


def _coarse_cell(plan: RunPlan, image: ImagePlan) -> float:
    """Return the side of the cells on which imaged areas are traced, in units of the output."""
    x, y = image.grid.width / 2, image.grid.height / 2
    cell = shapely.box(x, y, x + COARSE_PX, y + COARSE_PX)
    return float(np.sqrt(_place(plan, image, [cell])[0].area))


def _valid(polygons: Any) -> Any:
    """Repair the rare polygon that rounding or projecting made invalid; keep its largest part."""
    bad = np.flatnonzero(~shapely.is_valid(polygons))
    for i in bad:
        parts = shapely.get_parts(shapely.make_valid(polygons[i]))
        polygons[i] = max(parts, key=shapely.area)
    return polygons


def coverage_table(plan: RunPlan, summaries: Sequence[PartSummary]) -> gpd.GeoDataFrame:
    """Return one row per supertile: what happened there and why."""
    rows: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for s in summaries:
        image = plan.images[s.image]
        core = image.tiles.supertile(*s.index).core
        x, y = core.col_off, core.row_off
        shapes.append(_place(plan, image, [shapely.box(x, y, x + core.width, y + core.height)])[0])
        rows.append(
            {
                "image": Path(image.info.path).name,
                "row": s.index[0],
                "col": s.index[1],
                "status": s.status,
                "reason": s.reason,
                "tiles": s.tiles,
                "tiles_run": s.tiles_run,
                "tiles_saturated": len(s.saturated),
                "quarters_capped": s.capped,
                "seconds": round(sum(s.seconds.values()), 2),
            }
        )
    return gpd.GeoDataFrame(rows, geometry=shapes, crs=plan.crs)


def _place(plan: RunPlan, image: ImagePlan, polygons: Sequence[Any]) -> Any:
    """Bring grid px to the output's CRS."""
    placed = polygons_to_crs(polygons, image.grid.transform)
    return reproject_polygons(placed, image.info.crs_wkt, plan.crs.to_wkt())


def count_in_regions(
    plan: RunPlan, objects: gpd.GeoDataFrame, summaries: Sequence[PartSummary]
) -> gpd.GeoDataFrame | None:
    """Count objects in the regions, and say which share of each was imaged."""
    if plan.regions is None:
        return None
    imaged = imaged_area(plan, summaries)
    return count(objects, plan.regions, imaged=imaged, classes=plan.classes)


def imaged_area(plan: RunPlan, summaries: Sequence[PartSummary]) -> gpd.GeoSeries:
    """Return the areas that were imaged and worked through."""
    areas: list[Any] = []
    for s in summaries:
        if s.status == "failed" or not s.imaged:
            continue
        image = plan.images[s.image]
        area = shapely.from_wkt(s.imaged)
        if image.aoi is not None:
            area = shapely.intersection(area, image.aoi)
        areas += list(_place(plan, image, shapely.get_parts([area])))
    return gpd.GeoSeries(areas, crs=plan.crs)
