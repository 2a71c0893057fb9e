"""Count objects per region so that the numbers reconcile: every object is accounted for once.

Geometry goes through :mod:`shapely` trees, not through ``geopandas.sjoin``: that one only warns
when the CRS differ (and then finds nothing) and counts an object on a shared edge twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, cast

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from geoseg.errors import ConfigError, GeosegError, RegionError
from geoseg.records import DoubleArray, GeometryArray, IntArray

Rule = Literal["point", "area", "intersects"]
CRSLike: TypeAlias = pyproj.CRS | str | int
Imaged: TypeAlias = gpd.GeoDataFrame | gpd.GeoSeries | BaseGeometry
RULES: tuple[Rule, ...] = ("point", "area", "intersects")
NAME_FIELDS = ("region", "name", "region_id", "id")
_OVERLAP_SHARE = 1e-6
# ^ two regions overlap when they share more than this part of the smaller: less is rounding


def count(
    objects: gpd.GeoDataFrame,
    regions: gpd.GeoDataFrame,
    *,
    rule: Rule = "point",
    region_field: str | None = None,
    imaged: Imaged | None = None,
    classes: Sequence[str] | None = None,
) -> gpd.GeoDataFrame:
    """Count objects in each region; counts plus ``attrs['outside']`` make all objects.

    Parameters
    ----------
    objects : GeoDataFrame
        (n) polygons with a CRS; a column ``class`` where there is more than one kind.
    regions : GeoDataFrame
        (m) polygons with a CRS, any CRS; they are brought to the objects' CRS to be compared.
    rule : {'point', 'area', 'intersects'}
        ``point``: an object belongs to the region that holds its representative point, the
        lowest row where several do. ``area``: each region gets the share of the object's area
        that lies in it (fractions; where regions overlap, the lowest row). ``intersects``: each
        region that the object meets counts it; these counts do not add up.
    region_field : str, optional
        Field that names a region; by default the first of ``region``, ``name``, ``region_id``,
        ``id`` that exists. Only recorded, in ``attrs['region_field']``, for labels and reports.
    imaged : GeoDataFrame, GeoSeries or geometry, optional
        Area that was imaged and processed; a bare geometry is taken in the objects' CRS.
    classes : sequence of str, optional
        Classes that get a column even if none was found; by default those in ``objects``.

    Returns
    -------
    GeoDataFrame
        The regions in their own order, index, fields and CRS, plus ``count`` (int64; float64
        for ``area``), ``count_<class>`` where there is more than one class, ``density_km2``
        (count per km2 of the whole region), ``region_area_km2`` (on the ellipsoid) and
        ``imaged_share`` (0 to 1; NaN without ``imaged``). A field of the user's that has one of
        these names, in any case, is kept as ``<field>_given``. ``attrs``: rule, total, outside,
        repaired (regions made valid), empty (regions without area), overlapping (pairs of
        rows), shared (objects counted in more than one region), region_field.

    Raises
    ------
    RegionError
        If objects or regions have no CRS, or ``region_field`` does not exist.
    ConfigError
        If the rule is unknown.
    GeosegError
        If the counts do not add up, which would be a defect of this function.
    """
    _check(objects, regions, rule, region_field)
    own, repaired = polygonal(regions.geometry.array)
    areas = _project(own, regions.crs, objects.crs)
    things = polygonal(objects.geometry.array)[0]
    pairs = _RULES[rule](things, areas)
    rows = pairs[0]
    shared = int(np.count_nonzero(np.bincount(rows, minlength=len(things)) > 1))
    sums = _count_columns(objects, pairs, len(areas), classes)
    total = sums["count"]
    columns: dict[str, Any] = dict(sums)
    if rule != "area":
        columns = {name: np.rint(v).astype(np.int64) for name, v in sums.items()}
    area_km2 = ellipsoid_area_m2(own, regions.crs) / 1e6
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["density_km2"] = np.where(area_km2 > 0, total / area_km2, np.nan)
    columns["region_area_km2"] = area_km2
    columns["imaged_share"] = _imaged_share(areas, imaged, objects.crs)
    outside = _outside(rule, pairs, total, len(objects))
    result = _add_columns(regions, columns)
    result.attrs = {
        "rule": rule,
        "total": len(objects),
        "outside": outside,
        "repaired": repaired,
        "empty": int(np.count_nonzero(area_km2 == 0)),
        "overlapping": overlapping_pairs(areas),
        "shared": shared,
        "region_field": region_field or _name_field(regions),
    }
    return result


def polygonal(geometries: Iterable[BaseGeometry | None]) -> tuple[GeometryArray, int]:
    """Make geometries valid and keep only what has area.

    Parameters
    ----------
    geometries : iterable of shapely geometries
        (n,) of any kind; None is taken as empty.

    Returns
    -------
    tuple of (ndarray, int)
        (n,) valid Polygons and MultiPolygons, empty polygons where nothing has area; and how
        many were invalid.
    """
    given = np.asarray(geometries, dtype=object)
    result = np.where(shapely.is_missing(given), shapely.Polygon(), given).astype(object)
    invalid = ~shapely.is_valid(result)
    if invalid.any():
        result[invalid] = shapely.make_valid(result[invalid], method="structure")
    for row in np.flatnonzero(~np.isin(shapely.get_type_id(result), (3, 6))):
        parts = shapely.get_parts(shapely.get_parts(result[row : row + 1]))
        result[row] = shapely.union_all(parts[shapely.get_type_id(parts) == 3])
        if shapely.is_empty(result[row]):
            result[row] = shapely.Polygon()
    return result, int(np.count_nonzero(invalid))


def ellipsoid_area_m2(polygons: GeometryArray, crs: CRSLike) -> DoubleArray:
    """Return the area of each polygon on the ellipsoid of its CRS, (n,) in m2."""
    source = pyproj.CRS.from_user_input(crs)
    base = source.geodetic_crs
    geod = source.get_geod()
    if base is None or geod is None:
        raise RegionError(
            f"CRS '{source.name}' is not tied to the earth, so areas in m2 are unknown; "
            "give a geographic or projected CRS"
        )
    # normalize turns shells and holes against each other, which Geod needs to subtract holes
    lonlat = shapely.normalize(_project(_densify(polygons, source), source, base, densify=False))
    areas = [abs(geod.geometry_area_perimeter(p)[0]) if not p.is_empty else 0.0 for p in lonlat]
    return np.asarray(areas, dtype=np.float64)


def overlapping_pairs(polygons: GeometryArray) -> list[tuple[int, int]]:
    """Return the pairs of rows, lower row first, whose polygons share area."""
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    keep = first < second
    first, second = first[keep], second[keep]
    common = shapely.area(shapely.intersection(polygons[first], polygons[second]))
    smaller = np.minimum(shapely.area(polygons[first]), shapely.area(polygons[second]))
    hits = common > _OVERLAP_SHARE * smaller
    return sorted(zip(first[hits].tolist(), second[hits].tolist(), strict=True))


def _check(
    objects: gpd.GeoDataFrame, regions: gpd.GeoDataFrame, rule: str, region_field: str | None
) -> None:
    """Refuse what would be counted wrongly."""
    if rule not in RULES:
        raise ConfigError(f"rule is '{rule}'; expected one of {', '.join(RULES)}")
    for what, table in (("objects", objects), ("regions", regions)):
        if table.crs is None:
            raise RegionError(
                f"the {what} have no CRS, so it is unknown where on earth they lie; "
                "set it in the file, or with GeoDataFrame.set_crs"
            )
    if region_field is not None and region_field not in regions.columns:
        fields = ", ".join(str(c) for c in regions.columns if c != regions.geometry.name)
        raise RegionError(f"the regions have no field '{region_field}'; they have: {fields}")


def _name_field(regions: gpd.GeoDataFrame) -> str | None:
    """Return the field that most likely names a region."""
    by_name = {str(c).casefold(): str(c) for c in reversed(regions.columns)}
    return next((by_name[name] for name in NAME_FIELDS if name in by_name), None)


def _densify(polygons: GeometryArray, crs: pyproj.CRS) -> GeometryArray:
    """Add vertices each kilometre or so: a straight edge in one CRS is a curve in another.

    On a parallel at 60 degrees a chord of 1 km leaves the curve by 3 cm; one of 100 km by 340 m.
    """
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    step = 0.01 if crs.is_geographic else 1000.0 / unit
    return cast("GeometryArray", shapely.segmentize(polygons, step))


def _project(
    polygons: GeometryArray, source: CRSLike, target: CRSLike, *, densify: bool = True
) -> GeometryArray:
    """Return the polygons in another CRS, valid; untouched if the CRS are the same."""
    source, target = pyproj.CRS.from_user_input(source), pyproj.CRS.from_user_input(target)
    if source == target:
        return polygons
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    if densify:
        polygons = _densify(polygons, source)
    moved = shapely.transform(
        polygons, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))
    )
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise RegionError(
            f"a polygon in '{source.name}' has no place in '{target.name}': "
            "check that its CRS is the one that its coordinates are in"
        )
    return polygonal(moved)[0]


# Each rule returns pairs: rows of objects, rows of regions and how much of the object is counted.
_Pairs = tuple[IntArray, IntArray, DoubleArray]


def _pairs_by_point(objects: GeometryArray, regions: GeometryArray) -> _Pairs:
    """Give each object to the lowest region that holds its representative point."""
    points = shapely.point_on_surface(objects)
    # the tree holds the points, so that the regions, which have more vertices, are prepared
    owner, row = shapely.STRtree(points).query(regions, predicate="intersects")
    lowest = np.full(len(objects), len(regions), dtype=np.int64)
    np.minimum.at(lowest, row, owner)
    rows = np.flatnonzero(lowest < len(regions))
    return rows, lowest[rows], np.ones(len(rows))


def _pairs_by_area(objects: GeometryArray, regions: GeometryArray) -> _Pairs:
    """Give each region the share of the object's area that lies in it."""
    apart = regions.copy()
    for low, high in overlapping_pairs(regions):
        apart[high] = shapely.difference(apart[high], regions[low])
    apart = polygonal(apart)[0]
    owner, row = shapely.STRtree(objects).query(apart, predicate="intersects")
    shapely.prepare(apart)
    whole = shapely.covers(apart[owner], objects[row])
    weight = np.ones(len(row))
    cut = ~whole
    part = shapely.area(shapely.intersection(objects[row[cut]], apart[owner[cut]]))
    weight[cut] = part / np.maximum(shapely.area(objects[row[cut]]), np.finfo(float).tiny)
    keep = weight > 0
    return row[keep], owner[keep], weight[keep]


def _pairs_by_intersection(objects: GeometryArray, regions: GeometryArray) -> _Pairs:
    """Give each object to every region that it meets."""
    owner, row = shapely.STRtree(objects).query(regions, predicate="intersects")
    return row, owner, np.ones(len(row))


_RULES = {
    "point": _pairs_by_point,
    "area": _pairs_by_area,
    "intersects": _pairs_by_intersection,
}


def _count_columns(
    objects: gpd.GeoDataFrame, pairs: _Pairs, n_regions: int, classes: Sequence[str] | None
) -> dict[str, DoubleArray]:
    """Add the pairs up by region, and by region and class."""
    rows, owners, weights = pairs
    columns = {"count": _add_up(owners, weights, n_regions)}
    if "class" not in objects.columns:
        return columns
    kinds = objects["class"].astype(str).to_numpy()
    names = sorted(set(kinds) | set(classes or ()))
    if len(names) < 2:
        return columns
    for name in names:
        of_class = kinds[rows] == name
        columns[f"count_{name}"] = _add_up(owners[of_class], weights[of_class], n_regions)
    return columns


def _add_up(owners: IntArray, weights: DoubleArray, n: int) -> DoubleArray:
    """Return the sum of the weights of each owner 0..n-1."""
    return np.bincount(owners, weights=weights, minlength=n).astype(np.float64)


def _outside(rule: Rule, pairs: _Pairs, total: DoubleArray, n_objects: int) -> int | float:
    """Return how many objects no region counts, having checked that nothing is lost or doubled."""
    counted = _add_up(pairs[0], pairs[2], n_objects)
    if rule == "intersects":
        return int(np.count_nonzero(counted == 0))
    # per object, not n - sum: so that the sum below can disagree
    outside = float(np.clip(1 - counted, 0, 1).sum())
    if abs(float(total.sum()) + outside - n_objects) > 1e-6 * max(1, n_objects):
        raise GeosegError(
            f"counts do not reconcile: {total.sum():g} in regions + {outside:g} outside is not "
            f"{n_objects} objects; please report this with the two layers"
        )
    return outside if rule == "area" else round(outside)


def _imaged_share(areas: GeometryArray, imaged: Imaged | None, crs: CRSLike) -> DoubleArray:
    """Return the share of each region that was imaged, measured on the ellipsoid."""
    if imaged is None:
        return np.full(len(areas), np.nan)
    if isinstance(imaged, BaseGeometry):
        seen = polygonal([imaged])[0]
    else:
        if imaged.crs is None:
            raise RegionError("the imaged area has no CRS; set it with GeoDataFrame.set_crs")
        seen = _project(polygonal(imaged.geometry.array)[0], imaged.crs, crs)
    common = polygonal(shapely.intersection(areas, shapely.union_all(seen)))[0]
    whole = ellipsoid_area_m2(areas, crs)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = ellipsoid_area_m2(common, crs) / whole
    return np.where(whole > 0, np.clip(share, 0, 1), np.nan)


def _add_columns(regions: gpd.GeoDataFrame, columns: dict[str, Any]) -> gpd.GeoDataFrame:
    """Put the new columns before the geometry; rename the user's that would collide.

    Compared without case, because SQLite, and so a GeoPackage, has one ``Count`` or ``count``.
    """
    taken = {str(c).casefold() for c in regions.columns} | {c.casefold() for c in columns}
    new_names = {}
    for field in regions.columns:
        if field == regions.geometry.name or str(field).casefold() not in {
            c.casefold() for c in columns
        }:
            continue
        name = f"{field}_given"
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        new_names[field] = name
    fields = pd.DataFrame(regions.drop(columns=regions.geometry.name)).rename(columns=new_names)
    added = pd.DataFrame(columns, index=regions.index)
    table = pd.concat([fields, added], axis=1)
    return gpd.GeoDataFrame(table, geometry=regions.geometry.to_numpy(), crs=regions.crs)
