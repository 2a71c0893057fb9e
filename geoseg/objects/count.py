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
_WHOLE = 2**30
# ^ an object is this many parts, and sums are of whole numbers: the order never shows in them
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
    bounds = objects.total_bounds
    counter = RegionCounter(
        regions,
        _crs_of(objects, "objects"),
        rule=rule,
        region_field=region_field,
        classes=classes,
        around=tuple(bounds.tolist()) if np.isfinite(bounds).all() else None,
    )
    counter.add(objects)
    return counter.result(imaged)


class RegionCounter:
    """Count objects that come a table at a time, as if they had come all at once.

    The regions are brought to the CRS of the objects once. How the objects are cut into tables
    never changes a number.

    Parameters
    ----------
    regions : GeoDataFrame
        (m) polygons with a CRS, any CRS.
    crs : pyproj.CRS or str or int
        CRS of the objects.
    rule : {'point', 'area', 'intersects'}
        As for :func:`count`.
    region_field : str, optional
        As for :func:`count`.
    classes : sequence of str, optional
        As for :func:`count`; by default those that were seen.
    around : tuple of float, optional
        (left, bottom, right, top) in the CRS of the objects: bounds that hold all of them.
        Regions far larger are cut to it before they are projected: no projected CRS has a place
        for a region that goes around the earth. Without it regions are projected whole.

    Raises
    ------
    RegionError
        If the regions have no CRS or coordinates that are not on earth, or ``region_field`` does
        not exist.
    ConfigError
        If the rule is unknown, or objects lie outside ``around``.

    Examples
    --------
    >>> regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=32645)
    >>> counter = RegionCounter(regions, 32645)
    >>> for x in (1, 5, 20):
    ...     counter.add(gpd.GeoDataFrame(geometry=[shapely.box(x, 1, x + 1, 2)], crs=32645))
    >>> counter.result()["count"].tolist()
    [2]
    """

    def __init__(
        self,
        regions: gpd.GeoDataFrame,
        crs: CRSLike,
        *,
        rule: Rule = "point",
        region_field: str | None = None,
        classes: Sequence[str] | None = None,
        around: tuple[float, float, float, float] | None = None,
    ) -> None:
        if rule not in RULES:
            raise ConfigError(f"rule is '{rule}'; expected one of {', '.join(RULES)}")
        _check_regions(regions, region_field)
        self.regions = regions
        self.crs = pyproj.CRS.from_user_input(crs)
        self.rule = rule
        self.region_field = region_field or _name_field(regions)
        self.around = around
        self._own, self._repaired = polygonal(regions.geometry.array)
        _check_places(self._own, regions.crs)
        self._areas: GeometryArray | None = None
        self._named = set(classes or ())
        self._classified = True
        self._sums = np.zeros(len(regions), dtype=np.int64)
        self._by_class: dict[str, IntArray] = {}
        self._objects = self._shared = self._outside = 0

    def add(self, objects: gpd.GeoDataFrame) -> None:
        """Count some more objects.

        Parameters
        ----------
        objects : GeoDataFrame
            (n) polygons with a CRS; a column ``class`` where there is more than one kind.

        Raises
        ------
        RegionError
            If they have no CRS.
        ConfigError
            If they lie outside ``around``.
        """
        if not self.crs.equals(_crs_of(objects, "objects")):
            objects = objects.to_crs(self.crs)
        things = polygonal(objects.geometry.array)[0]
        self._check_around(things)
        rows, owners, weights = _RULES[self.rule](things, self._counted_areas(len(things)))
        parts = np.rint(weights * _WHOLE).astype(np.int64)
        n = len(self.regions)
        self._objects += len(things)
        self._shared += int(np.count_nonzero(np.bincount(rows, minlength=len(things)) > 1))
        self._sums += _add_up(owners, parts, n)
        counted = _add_up(rows, parts, len(things))
        # per object, not n - sum: so that the sum at the end can disagree
        if self.rule == "intersects":
            self._outside += int(np.count_nonzero(counted == 0)) * _WHOLE
        else:
            self._outside += int(np.clip(_WHOLE - counted, 0, _WHOLE).sum())
        if "class" not in objects.columns:
            self._classified = False
            return
        of_kind, kinds = pd.factorize(objects["class"].astype(str).to_numpy())
        cells = _add_up(of_kind[rows] * n + owners, parts, len(kinds) * n)
        for kind, sums in zip(kinds.tolist(), cells.reshape(len(kinds), n), strict=True):
            self._by_class[kind] = self._by_class.get(kind, 0) + sums

    def result(self, imaged: Imaged | None = None) -> gpd.GeoDataFrame:
        """Return the counts so far; more may be added afterwards.

        Parameters
        ----------
        imaged : GeoDataFrame, GeoSeries or geometry, optional
            As for :func:`count`.

        Returns
        -------
        GeoDataFrame
            As :func:`count`.

        Raises
        ------
        RegionError
            If the imaged area has no CRS.
        GeosegError
            If the counts do not add up, which would be a defect of this class.
        """
        self._reconcile()
        sums = {"count": self._sums}
        names = sorted(set(self._by_class) | self._named) if self._classified else []
        if len(names) > 1:
            none = np.zeros_like(self._sums)
            sums |= {f"count_{name}": self._by_class.get(name, none) for name in names}
        columns: dict[str, Any] = {
            name: values / _WHOLE if self.rule == "area" else values // _WHOLE
            for name, values in sums.items()
        }
        area_km2 = ellipsoid_area_m2(self._own, self.regions.crs) / 1e6
        with np.errstate(divide="ignore", invalid="ignore"):
            density = np.where(area_km2 > 0, columns["count"] / area_km2, np.nan)
        columns["density_km2"] = density
        columns["region_area_km2"] = area_km2
        columns["imaged_share"] = self._imaged_share(imaged)
        result = _add_columns(self.regions, columns)
        outside = self._outside / _WHOLE
        result.attrs = {
            "rule": self.rule,
            "total": self._objects,
            "outside": outside if self.rule == "area" else round(outside),
            "repaired": self._repaired,
            "empty": int(np.count_nonzero(area_km2 == 0)),
            "overlapping": overlapping_pairs(self._own),
            "shared": self._shared,
            "region_field": self.region_field,
        }
        return result

    def _counted_areas(self, n_objects: int) -> GeometryArray:
        """Return the regions in the CRS of the objects, made when the first object comes."""
        if self._areas is None and n_objects == 0:
            # there may never be any, and then no need for a place in their CRS
            return np.full(len(self._own), shapely.Polygon(), dtype=object)
        if self._areas is None:
            near = _near(self._own, self.regions.crs, self.around, self.crs)
            areas = _project(near, self.regions.crs, self.crs)
            self._areas = _apart(areas) if self.rule == "area" else areas
            shapely.prepare(self._areas)
        return self._areas

    def _check_around(self, things: GeometryArray) -> None:
        """Refuse objects for which regions may have been cut away."""
        if self.around is None or not len(things):
            return
        left, bottom, right, top = shapely.total_bounds(things)
        west, south, east, north = self.around
        # far less than the margin of the cut
        rounding = 1e-8 * max(map(abs, self.around))
        beyond = max(west - left, south - bottom, right - east, top - north)
        if beyond > rounding:
            raise ConfigError(
                f"objects reach to {left:g}, {bottom:g}, {right:g}, {top:g} but around is "
                f"{west:g}, {south:g}, {east:g}, {north:g}; give bounds that hold all objects"
            )

    def _reconcile(self) -> None:
        """Check that no object is lost or doubled."""
        if self.rule == "intersects":
            return
        total = int(self._sums.sum())
        if abs(total + self._outside - self._objects * _WHOLE) > 1e-6 * _WHOLE * self._objects:
            raise GeosegError(
                f"counts do not reconcile: {total / _WHOLE:g} in regions + "
                f"{self._outside / _WHOLE:g} outside is not {self._objects} objects; please "
                "report this with the two layers"
            )

    def _imaged_share(self, imaged: Imaged | None) -> DoubleArray:
        """Return the share of each region that was imaged, measured on the ellipsoid."""
        if imaged is None:
            return np.full(len(self._own), np.nan)
        if isinstance(imaged, BaseGeometry):
            seen = polygonal([imaged])[0]
        else:
            source = _crs_of(imaged, "imaged area")
            seen = _project(polygonal(imaged.geometry.array)[0], source, self.crs)
        area = shapely.union_all(seen)
        if shapely.is_empty(area):
            return np.where(shapely.is_empty(self._own), np.nan, 0.0)
        source = self.regions.crs
        # not the areas of the count: images may reach beyond the objects
        near = _near(self._own, source, shapely.bounds(area), self.crs)
        whole = _project(near, source, self.crs)
        common = polygonal(shapely.intersection(whole, area))[0]
        share = _ratio(ellipsoid_area_m2(common, self.crs), ellipsoid_area_m2(whole, self.crs))
        cut = near != self._own
        if cut.any():
            share[cut] *= _ratio(
                ellipsoid_area_m2(near[cut], source), ellipsoid_area_m2(self._own[cut], source)
            )
        # what was cut away wholly is not imaged, what has no area has no share
        share = np.where(cut & shapely.is_empty(near), 0.0, share)
        share[shapely.is_empty(self._own)] = np.nan
        return np.clip(share, 0, 1)


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
    # of a ring around more than half the earth Geod measures the other side: hence the slabs
    if source.is_geographic:
        pieces, rows = _slabs(_project(polygons, source, base, densify=False), seams=False)
        pieces = _densify(pieces, base)
    else:
        dense = _densify(polygons, source)
        pieces, rows = _slabs(_project(dense, source, base, densify=False), seams=True)
    # normalize turns shells and holes against each other, which Geod needs to subtract holes
    areas = [_one_area(geod, p) for p in shapely.normalize(pieces)]
    return np.bincount(rows, weights=areas, minlength=len(polygons)).astype(np.float64)


def _one_area(geod: pyproj.Geod, polygon: BaseGeometry) -> float:
    """Return the area of one polygon, m2; of an empty one 0."""
    return 0.0 if polygon.is_empty else abs(float(geod.geometry_area_perimeter(polygon)[0]))


def overlapping_pairs(polygons: GeometryArray) -> list[tuple[int, int]]:
    """Return the pairs of rows, lower row first, whose polygons share area."""
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    keep = first < second
    first, second = first[keep], second[keep]
    common = shapely.area(shapely.intersection(polygons[first], polygons[second]))
    smaller = np.minimum(shapely.area(polygons[first]), shapely.area(polygons[second]))
    hits = common > _OVERLAP_SHARE * smaller
    return sorted(zip(first[hits].tolist(), second[hits].tolist(), strict=True))


def _crs_of(table: gpd.GeoDataFrame | gpd.GeoSeries, what: str) -> pyproj.CRS:
    """Return the CRS of a table; refuse one without."""
    if table.crs is None:
        verb = "has" if what == "imaged area" else "have"
        raise RegionError(
            f"the {what} {verb} no CRS, so it is unknown where on earth this lies; "
            "set it in the file, or with GeoDataFrame.set_crs"
        )
    return cast("pyproj.CRS", table.crs)


def _check_regions(regions: gpd.GeoDataFrame, region_field: str | None) -> None:
    """Refuse what would be counted wrongly."""
    _crs_of(regions, "regions")
    if region_field is not None and region_field not in regions.columns:
        fields = ", ".join(str(c) for c in regions.columns if c != regions.geometry.name)
        raise RegionError(f"the regions have no field '{region_field}'; they have: {fields}")


def _check_places(polygons: GeometryArray, crs: pyproj.CRS) -> None:
    """Refuse metres that pass for degrees: cut to the surroundings they would just be gone."""
    if not crs.is_geographic or not len(polygons):
        return
    left, bottom, right, top = shapely.total_bounds(polygons)
    turn = _turn(crs)
    if left < -turn or right > 1.5 * turn or max(-bottom, top) > turn / 4 + 1e-3:
        raise RegionError(
            f"regions in '{crs.name}' reach to {left:g}, {bottom:g}, {right:g}, {top:g}, which is "
            "no place on earth: check that their CRS is the one that their coordinates are in"
        )


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


def _turn(crs: pyproj.CRS) -> float:
    """Return once around the earth in the units of a geographic CRS."""
    return float(2 * np.pi / crs.axis_info[0].unit_conversion_factor)


def _slabs(lonlat: GeometryArray, *, seams: bool) -> tuple[GeometryArray, IntArray]:
    """Cut what is wider than half the earth at every 90 degrees; return parts and their rows.

    With ``seams``, an edge of more than 180 degrees is a short one across the antimeridian.
    """
    parts, rows = shapely.get_parts(lonlat, return_index=True)
    bounds = shapely.bounds(parts)
    pieces, owners = [], []
    for part in np.flatnonzero(bounds[:, 2] - bounds[:, 0] > 179):
        lon = shapely.get_coordinates(shapely.get_exterior_ring(parts[part]))[:, 0]
        if seams and np.abs(np.diff(lon)).max() > 180:
            # small, and Geod goes the short way too
            continue
        starts = np.arange(np.floor(lon.min() / 90) * 90, lon.max(), 90)
        slabs = shapely.intersection(parts[part], shapely.box(starts, -90, starts + 90, 90))
        pieces.append(shapely.get_parts(polygonal(slabs)[0]))
        owners.append(np.full(len(pieces[-1]), rows[part]))
        parts[part] = shapely.Polygon()
    return np.concatenate([parts, *pieces]), np.concatenate([rows, *owners])


def _near(
    polygons: GeometryArray,
    source: pyproj.CRS,
    around: Sequence[float] | None,
    target: pyproj.CRS,
) -> GeometryArray:
    """Cut polygons in their own CRS to the surroundings of bounds in another.

    A projected CRS has no place for what lies on the other side of the earth, and bends the long
    edges of a country beyond recognition. Polygons that need no cut stay the same objects.
    """
    if around is None or source == target:
        return polygons
    frame = _surroundings(around, target, source)
    if frame is None:
        return polygons
    rows = np.flatnonzero(~shapely.is_empty(polygons))
    # of most their bounds tell that they need no cut
    cut = rows[~shapely.covered_by(shapely.box(*shapely.bounds(polygons[rows]).T), frame)]
    result = polygons.copy()
    result[cut] = polygonal(shapely.intersection(polygons[cut], frame))[0]
    return result


def _surroundings(
    around: Sequence[float], target: pyproj.CRS, source: pyproj.CRS
) -> BaseGeometry | None:
    """Bring bounds, with a margin, from one CRS to another; None where that CRS cannot say."""
    left, bottom, right, top = around
    size = max(right - left, top - bottom)
    # a kilometre at least, which on the earth's radius is 0.00016 radians
    unit = target.axis_info[0].unit_conversion_factor if target.axis_info else 1.0
    margin = max(size / 8, (0.00016 if target.is_geographic else 1000.0) / unit)
    box = shapely.box(left - margin, bottom - margin, right + margin, top + margin)
    there = shapely.get_coordinates(shapely.segmentize(box, (size + 2 * margin) / 64)).T
    transformer = pyproj.Transformer.from_crs(target, source, always_xy=True)
    x, y = transformer.transform(*there)
    back = np.asarray(transformer.transform(x, y, direction="INVERSE"))
    # folded, or off the map: then the bounds of the points say nothing of what is between them
    if not np.isfinite(back).all() or np.abs(back - there).max() > margin / 100:
        return None
    if not source.is_geographic:
        return shapely.box(x.min(), y.min(), x.max(), y.max())
    return _frame_on_globe(x, y, _turn(source))


def _frame_on_globe(lon: DoubleArray, lat: DoubleArray, turn: float) -> BaseGeometry:
    """Return the frame of a closed line of lon and lat, on whichever round it is counted."""
    lon = np.unwrap(lon, period=turn)
    south, north = lat.min(), lat.max()
    if abs(lon[-1] - lon[0]) > turn / 2:
        # it runs around a pole
        south, north = (south, turn / 4) if lat.mean() > 0 else (-turn / 4, north)
        return shapely.box(-turn, south, 2 * turn, north)
    rounds = np.arange(-2, 3) * turn
    return shapely.union_all(shapely.box(lon.min() + rounds, south, lon.max() + rounds, north))


def _ratio(part: DoubleArray, whole: DoubleArray) -> DoubleArray:
    """Return part / whole, NaN where there is no whole."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


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


def _apart(regions: GeometryArray) -> GeometryArray:
    """Take from each region what a lower row has already."""
    apart = regions.copy()
    for low, high in overlapping_pairs(regions):
        apart[high] = shapely.difference(apart[high], regions[low])
    return polygonal(apart)[0]


def _pairs_by_area(objects: GeometryArray, regions: GeometryArray) -> _Pairs:
    """Give each region, none over another, the share of the object's area that lies in it."""
    owner, row = shapely.STRtree(objects).query(regions, predicate="intersects")
    whole = shapely.covers(regions[owner], objects[row])
    weight = np.ones(len(row))
    cut = ~whole
    part = shapely.area(shapely.intersection(objects[row[cut]], regions[owner[cut]]))
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


def _add_up(owners: IntArray, parts: IntArray, n: int) -> IntArray:
    """Return the sum of the parts of each owner 0..n-1."""
    # bincount adds in float64, exact up to 2**53: eight million whole objects in one cell
    return np.bincount(owners, weights=parts, minlength=n).astype(np.int64)


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
