"""Count objects per region so that the numbers reconcile: every object is accounted for once.

Geometry goes through :mod:`geoseg.objects.lookup`, not through ``geopandas.sjoin``: that one only
warns when the CRS differ (and then finds nothing) and counts an object on a shared edge twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from geoseg.errors import ConfigError, GeosegError, RegionError
from geoseg.objects.expected import Calibration, interval_90
from geoseg.objects.hierarchy import Hierarchy
from geoseg.objects.lookup import Batch, Pairs, RegionLookup
from geoseg.objects.regions import (
    CRSLike,
    check_places,
    cut_near,
    ellipsoid_area_m2,
    ground_area_m2,
    in_range,
    leaping,
    on_rounds,
    overlapping_pairs,
    polygonal,
    project,
    ratio,
    share_within,
    shared_ground,
    take_apart,
)
from geoseg.objects.tally import CM2, FINE, MEASURES, WHOLE, Sums, Tally, add_up, as_whole
from geoseg.records import DoubleArray, GeometryArray, IntArray

__all__ = [
    "RULES",
    "Calibration",
    "Calibrations",
    "Encoded",
    "RegionCounter",
    "Rule",
    "count",
    "ellipsoid_area_m2",
    "overlapping_pairs",
    "polygonal",
]

Rule = Literal["point", "area", "intersects"]
Imaged: TypeAlias = gpd.GeoDataFrame | gpd.GeoSeries | BaseGeometry
Calibrations: TypeAlias = Calibration | Mapping[str, Calibration]
RULES: tuple[Rule, ...] = ("point", "area", "intersects")
NAME_FIELDS = ("region", "name", "region_id", "id")
MOST_CLASSES = 12
UNCLASSIFIED = "unclassified"
"""What an object without a class is counted as."""
"""With more classes than this only counts get a column each."""


def count(
    objects: gpd.GeoDataFrame,
    regions: gpd.GeoDataFrame,
    *,
    rule: Rule = "point",
    region_field: str | None = None,
    imaged: Imaged | None = None,
    classes: Sequence[str] | None = None,
    parent: str | None = None,
    id_field: str | None = None,
    calibration: Calibrations | None = None,
) -> gpd.GeoDataFrame:
    """Count objects in each region; counts plus ``attrs['outside']`` make all objects.

    Parameters
    ----------
    objects : GeoDataFrame
        (n) polygons with a CRS; a column ``class`` where there is more than one kind, ``area_m2``
        where their size is known (it is measured where not), ``score`` for a calibration.
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
    parent : str, optional
        Field with the id of the region that a region lies in; empty at the top. An object then
        belongs to the deepest region that holds it, and to that one's ancestors.
    id_field : str, optional
        Field with the ids that ``parent`` names; by default ``id``, ``region_id``, ``fid``,
        ``code`` or ``name``.
    calibration : Calibration or mapping of str to it, optional
        How often the detector is right; by class where a mapping. Brings expected counts.

    Returns
    -------
    GeoDataFrame
        The regions in their own order, index, fields and CRS, plus

        ``count``
            Objects; int64, float64 for ``area``.
        ``count_<class>``
            The same of each class, where there is more than one.
        ``density_km2``
            Count per km2 of the whole region.
        ``region_area_km2``
            On the ellipsoid.
        ``imaged_share``
            Of the region's area, 0 to 1; NaN without ``imaged``.
        ``covered_share``
            Of the region's imaged area (of all of it without ``imaged``), the share that objects
            cover, 0 to 1. By every rule this is the ground in the region, whichever region counts
            the object; ground of two objects is added twice.
        ``mean_area_m2``
            Size of the objects counted, on the ellipsoid, each as a whole; NaN without any.
        ``covered_share_<class>``, ``mean_area_m2_<class>``
            Where there are 2 to 12 classes.
        ``expected``, ``expected_low``, ``expected_high``
            With a calibration: how many things there are, and between which bounds with a
            probability of 90 %; see :mod:`geoseg.objects.expected`.
        ``level``, ``count_own``
            With ``parent``: 1 at the top; and what no child holds.

        A field of the user's that has one of these names, in any case, is kept as
        ``<field>_given``. ``attrs``: rule, total, outside, by_class (total and outside of each),
        repaired (regions made valid), leaping (regions with an edge of more than 180 degrees),
        empty (regions without area), overlapping (pairs of rows),
        overlap_share (of the regions' ground, in more than one), shared (objects counted in more
        than one region), duplicate_names, region_field; with ``parent`` levels (per level:
        regions, counted, above: counted only in higher levels, outside).

    Raises
    ------
    RegionError
        If objects or regions have no CRS, a field does not exist, or parents make no tree.
    ConfigError
        If the rule is unknown, or objects have no score for the calibration.
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
        parent=parent,
        id_field=id_field,
        calibration=calibration,
    )
    counter.add(objects)
    return counter.result(imaged)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Objects as a file has them: only those at the outline of a region are ever decoded."""

    wkb: npt.NDArray[np.object_]
    """(n,) WKB of polygons, in the CRS of the counter."""
    bounds: DoubleArray
    """(n, 4) left, bottom, right, top."""
    area_m2: DoubleArray
    """(n,) size on the ellipsoid; NaN or 0 where it is to be measured."""
    kinds: IntArray | None
    """(n,) index into ``classes``; None where objects have no class."""
    classes: tuple[str, ...] = ()
    """Names of the kinds."""
    scores: DoubleArray | None = None
    """(n,) in [0, 1]; needed with a calibration."""


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
    parent, id_field : str, optional
        As for :func:`count`.
    calibration : Calibration or mapping of str to it, optional
        As for :func:`count`.

    Raises
    ------
    RegionError
        If the regions have no CRS or coordinates that are not on earth, a field does not exist,
        or parents make no tree.
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
        parent: str | None = None,
        id_field: str | None = None,
        calibration: Calibrations | None = None,
    ) -> None:
        if rule not in RULES:
            raise ConfigError(f"rule is '{rule}'; expected one of {', '.join(RULES)}")
        _check_regions(regions, region_field)
        self.regions = regions
        self.crs = pyproj.CRS.from_user_input(crs)
        self.rule = rule
        self.region_field = region_field or _name_field(regions)
        self.around = around
        self.calibration = calibration
        fields = pd.DataFrame(regions.drop(columns=regions.geometry.name))
        self.tree = None if parent is None else Hierarchy.from_table(fields, parent, id_field)
        self._own, self._repaired = polygonal(regions.geometry.array)
        check_places(self._own, regions.crs)
        self._leaping = leaping(self._own, regions.crs)
        self._own = in_range(self._own, regions.crs)
        n = len(regions)
        # the deepest regions first, so that 'the lowest row' is the deepest; otherwise as they are
        levels = np.zeros(n, np.int64) if self.tree is None else self.tree.levels
        self._order = np.lexsort((np.arange(n), -levels))
        self._lookups: tuple[RegionLookup, RegionLookup] | None = None
        self._named = set(classes or ())
        self._classified = True
        self._tally = Tally(n)
        self._per_kind: dict[str, int] = {}
        self._objects = self._shared = 0

    @property
    def objects(self) -> int:
        """Objects so far."""
        return self._objects

    def add(self, objects: gpd.GeoDataFrame) -> None:
        """Count some more objects.

        Parameters
        ----------
        objects : GeoDataFrame
            (n) polygons with a CRS; columns as for :func:`count`.

        Raises
        ------
        RegionError
            If they have no CRS.
        ConfigError
            If they lie outside ``around``, or have no score for the calibration.
        """
        things = polygonal(objects.geometry.array)[0]
        if not self.crs.equals(_crs_of(objects, "objects")):
            things = project(things, objects.crs, self.crs)
        kinds, classes = None, ()
        if "class" in objects.columns:
            named = objects["class"].astype(object)
            # a Shapefile has no empty text, only none
            named = named.where(named.notna(), UNCLASSIFIED).astype(str)
            kinds, names = pd.factorize(named.to_numpy(dtype=object))
            classes = tuple(names.tolist())
        scores = objects["score"].to_numpy(np.float64) if "score" in objects.columns else None
        given = objects["area_m2"] if "area_m2" in objects.columns else None
        self._count(
            Batch(shapely.bounds(things), polygons=things),
            self._measured(things, given),
            kinds,
            classes,
            scores,
        )

    def add_encoded(self, objects: Encoded) -> None:
        """Count some more objects without decoding most of them.

        Raises
        ------
        ConfigError
            As :meth:`add`.
        """
        area = objects.area_m2.copy()
        unknown = np.flatnonzero(~(area > 0))
        bounds = objects.bounds
        if len(unknown):
            # those may have no area at all, and then are nowhere: look at them
            bounds = bounds.copy()
            bounds[unknown] = np.nan
        batch = Batch(bounds, wkb=objects.wkb)
        if len(unknown):
            things = batch.polygons(unknown)
            area[unknown] = ground_area_m2(things, self.crs)
            bounds[unknown] = shapely.bounds(things)
            bounds[unknown[shapely.is_empty(things)]] = np.nan
        self._count(batch, area, objects.kinds, objects.classes, objects.scores)

    def _measured(self, things: GeometryArray, given: pd.Series | None) -> DoubleArray:
        """Return the size of objects, m2: what the table says, or measured."""
        if given is None or not pd.api.types.is_numeric_dtype(given):
            return ground_area_m2(things, self.crs)
        area = given.to_numpy(np.float64, na_value=np.nan).copy()
        unknown = ~(area > 0)
        area[unknown] = ground_area_m2(things[unknown], self.crs)
        return area

    def _count(
        self,
        batch: Batch,
        area: DoubleArray,
        kinds: IntArray | None,
        classes: Sequence[str],
        scores: DoubleArray | None,
    ) -> None:
        """Add the objects of a batch to the sums."""
        n, n_regions = len(batch), len(self.regions)
        # what is refused leaves no trace
        self._check_around(batch.bounds)
        named = kinds is not None
        if kinds is None:
            kinds, classes = np.zeros(n, np.int64), ("",)
        stands = None
        if self.calibration is not None:
            stands = self._expect(kinds, classes, scores, area)
        self._classified &= named
        if n == 0:
            return
        self._objects += n
        for name, found in zip(classes, np.bincount(kinds, minlength=len(classes)), strict=True):
            self._per_kind[name] = self._per_kind.get(name, 0) + int(found)
        pairs = self._counted(batch)
        rows, owners, weights = pairs
        self._shared += int(np.count_nonzero(np.bincount(rows, minlength=n) > 1))
        if self.rule == "intersects" and self.tree is not None:
            rows, owners = self.tree.with_ancestors(rows, self._order[owners])
            owners, weights = np.argsort(self._order)[owners], np.ones(len(rows))
        parts = np.rint(weights * WHOLE).astype(np.int64)
        counted = add_up(rows, parts, n)
        # per object, not n - sum: so that the sum at the end can disagree
        outside = (
            (counted == 0) * WHOLE
            if self.rule == "intersects"
            else np.clip(WHOLE - counted, 0, WHOLE)
        )
        # those outside are counted in a last column, as if in one more region
        lost = np.flatnonzero(outside)
        rows, owners = np.r_[rows, lost], np.r_[owners, np.full(len(lost), n_regions)]
        parts = np.r_[parts, outside[lost]]
        share = parts / WHOLE
        add, names = self._tally.add, [str(c) for c in classes]
        add("parts", names, kinds[rows], owners, parts)
        add("area", names, kinds[rows], owners, as_whole(share * area[rows], CM2))
        covering, grounds, lying = self._covered(batch, pairs)
        add("covered", names, kinds[covering], grounds, as_whole(lying * area[covering], CM2))
        if stands is not None:
            mean, variance = stands
            add("mean", names, kinds[rows], owners, as_whole(share * mean[rows], FINE))
            add("variance", names, kinds[rows], owners, as_whole(share**2 * variance[rows], FINE))

    def _expect(
        self,
        kinds: IntArray,
        classes: Sequence[str],
        scores: DoubleArray | None,
        area: DoubleArray,
    ) -> tuple[DoubleArray, DoubleArray]:
        """Return for how many things each object stands, and the variance of that."""
        if scores is None or not np.isfinite(scores).all():
            raise ConfigError(
                "objects have no score (or not all of them), which a calibration needs; count "
                "without it, or give the objects that geoseg detect wrote"
            )
        mean, variance = np.zeros(len(kinds)), np.zeros(len(kinds))
        for kind, name in enumerate(classes):
            own = kinds == kind
            curve = _calibration_of(self.calibration, name)
            mean[own], variance[own] = curve.expect(scores[own], area[own])
        return mean, variance

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
        own = sums = self._tally.in_order(self._order)
        if self.tree is not None:
            # an object that meets two children was given to their parents once already
            only_ground = self.rule == "intersects"
            sums = own.rolled_up(self.tree, ("covered",) if only_ground else MEASURES)
        levels = self._reconcile(own, sums)
        names = sorted({k for k, _ in sums if k} | self._named) if self._classified else []
        names = names if len(names) > 1 else []
        total = sums.total()
        area_m2 = self._areas_m2()
        imaged_share = self._imaged_share(imaged)
        columns = self._counts(total, sums, names)
        columns["density_km2"] = ratio(columns["count"], area_m2 / 1e6)
        columns["region_area_km2"] = area_m2 / 1e6
        columns["imaged_share"] = imaged_share
        seen_m2 = area_m2 if imaged is None else area_m2 * imaged_share
        few = names if len(names) <= MOST_CLASSES else []
        kinds = {"": total} | {f"_{name}": sums.of(name) for name in few}
        for suffix, of_kind in kinds.items():
            ground = of_kind["covered"][:-1] / CM2
            columns[f"covered_share{suffix}"] = np.clip(ratio(ground, seen_m2), 0, 1)
        for suffix, of_kind in kinds.items():
            mean = ratio(of_kind["area"][:-1] / CM2, of_kind["parts"][:-1] / WHOLE)
            columns[f"mean_area_m2{suffix}"] = mean
        if self.calibration is not None:
            columns |= self._expected(sums)
        if self.tree is not None:
            columns["level"] = self.tree.levels
            if self.rule != "intersects":
                alone = own.total()["parts"][:-1]
                columns["count_own"] = self._as_counts(alone)
        result = _add_columns(self.regions, columns)
        result.attrs = self._about(total, sums, area_m2)
        if levels:
            result.attrs["levels"] = levels
        return result

    def _counts(self, total: Sums, sums: Tally, names: Sequence[str]) -> dict[str, Any]:
        """Return the columns of counts."""
        parts = {"count": total["parts"]}
        parts |= {f"count_{name}": sums.of(name)["parts"] for name in names}
        return {name: self._as_counts(values[:-1]) for name, values in parts.items()}

    def _as_counts(self, parts: IntArray) -> npt.NDArray[Any]:
        """Return counts: whole ones, unless objects are shared out."""
        return parts / WHOLE if self.rule == "area" else parts // WHOLE

    def _about(self, total: Sums, sums: Tally, area_m2: DoubleArray) -> dict[str, Any]:
        """Return what is to be known about the counts beside them."""
        names = self.regions[self.region_field] if self.region_field else pd.Series(dtype=object)
        pairs = overlapping_pairs(self._own)
        by_class = {}
        for kind in sorted(k for k, _ in sums if k) if self._classified else []:
            outside = self._as_counts(sums.of(kind)["parts"][-1:])[0].item()
            by_class[kind] = {"total": self._per_kind[kind], "outside": outside}
        return {
            "rule": self.rule,
            "total": self._objects,
            "outside": self._as_counts(total["parts"][-1:])[0].item(),
            "by_class": by_class,
            "repaired": self._repaired,
            "leaping": self._leaping,
            "empty": int(np.count_nonzero(area_m2 == 0)),
            "overlapping": pairs,
            "overlap_share": shared_ground(self._own, self.regions.crs) if pairs else 0.0,
            "shared": self._shared,
            "duplicate_names": int(names.dropna().duplicated().sum()),
            "region_field": self.region_field,
        }

    def _expected(self, sums: Tally) -> dict[str, DoubleArray]:
        """Return the columns of expected counts."""
        mean, variance = np.zeros(len(self.regions)), np.zeros(len(self.regions))
        for kind, of_kind in sums:
            things = of_kind["mean"][:-1] / FINE
            mean += things
            spread = _calibration_of(self.calibration, kind).spread
            variance += of_kind["variance"][:-1] / FINE + (spread * things) ** 2
        low, high = interval_90(mean, variance)
        return {"expected": mean, "expected_low": low, "expected_high": high}

    def _find(self) -> tuple[RegionLookup, RegionLookup]:
        """Return what finds regions, and regions less what goes before; made when first needed."""
        if self._lookups is None:
            source = self.regions.crs
            near = cut_near(self._own[self._order], source, self.around, self.crs)
            areas = on_rounds(project(near, source, self.crs), self.crs, self.around)
            whole = apart = RegionLookup(areas, self.around)
            split = self.rule == "area" or self.tree is not None
            if split and overlapping_pairs(areas):
                apart = RegionLookup(take_apart(areas), self.around)
            self._lookups = whole, apart
        return self._lookups

    def _counted(self, batch: Batch) -> Pairs:
        """Return which objects count in which regions, and how much of each."""
        whole, apart = self._find()
        if self.rule == "point":
            return whole.lowest(batch)
        return apart.shares(batch) if self.rule == "area" else whole.meets(batch)

    def _covered(self, batch: Batch, counted: Pairs) -> Pairs:
        """Return which objects lie on which regions' ground, and how much of each."""
        whole, apart = self._find()
        finder = whole if self.tree is None else apart
        if self.rule == "area" and finder is apart:
            # known already: by area, ground is what counts
            return counted
        return finder.shares(batch)

    def _areas_m2(self) -> DoubleArray:
        """Return the size of each region; of a parent without a shape that of its children."""
        areas = ellipsoid_area_m2(self._own, self.regions.crs)
        if self.tree is None:
            return areas
        for level in range(self.tree.depth, 1, -1):
            rows = np.flatnonzero(self.tree.levels == level)
            parents = self.tree.parents[rows]
            shapeless = shapely.is_empty(self._own[parents])
            np.add.at(areas, parents[shapeless], areas[rows[shapeless]])
        return areas

    def _check_around(self, bounds: DoubleArray) -> None:
        """Refuse objects for which regions may have been cut away."""
        if self.around is None or not np.isfinite(bounds).any():
            return
        left, bottom = np.nanmin(bounds[:, :2], axis=0)
        right, top = np.nanmax(bounds[:, 2:], axis=0)
        west, south, east, north = self.around
        # far less than the margin of the cut
        rounding = 1e-8 * max(map(abs, self.around))
        beyond = max(west - left, south - bottom, right - east, top - north)
        if beyond > rounding:
            raise ConfigError(
                f"objects reach to {left:g}, {bottom:g}, {right:g}, {top:g} but around is "
                f"{west:g}, {south:g}, {east:g}, {north:g}; give bounds that hold all objects"
            )

    def _reconcile(self, own: Tally, sums: Tally) -> list[dict[str, Any]]:
        """Check that no object is lost or doubled, in any class and on any level."""
        if self.rule == "intersects":
            return []
        for kind, of_kind in own:
            self._check_sum(int(of_kind["parts"].sum()), self._per_kind[kind], f" of {kind}")
        alone, all_in = own.total()["parts"], sums.total()["parts"]
        self._check_sum(int(alone.sum()), self._objects, "")
        if self.tree is None:
            return []
        found = []
        for level in range(1, self.tree.depth + 1):
            here = self.tree.levels == level
            values = {
                "counted": all_in[:-1][here].sum(),
                "above": alone[:-1][self.tree.levels < level].sum(),
                "outside": alone[-1],
            }
            self._check_sum(int(sum(values.values())), self._objects, f" on level {level}")
            plain = {k: self._as_counts(np.atleast_1d(v))[0].item() for k, v in values.items()}
            found.append({"level": level, "regions": int(here.sum()), **plain})
        return found

    def _check_sum(self, parts: int, objects: int, which: str) -> None:
        """Refuse a sum that is not the number of objects."""
        if abs(parts - objects * WHOLE) > 1e-6 * WHOLE * objects:
            raise GeosegError(
                f"counts do not reconcile: {parts / WHOLE:g} in regions and outside is not the "
                f"{objects} objects{which}; please report this with the two layers"
            )

    def _imaged_share(self, imaged: Imaged | None) -> DoubleArray:
        """Return the share of each region that was imaged, measured on the ellipsoid."""
        if imaged is None:
            return np.full(len(self._own), np.nan)
        if isinstance(imaged, BaseGeometry):
            seen = polygonal([imaged])[0]
        else:
            source = _crs_of(imaged, "imaged area")
            seen = project(polygonal(imaged.geometry.array)[0], source, self.crs)
        return share_within(self._own, self.regions.crs, shapely.union_all(seen), self.crs)


def _calibration_of(given: Calibrations | None, kind: str) -> Calibration:
    """Return the calibration of a class."""
    if isinstance(given, Calibration):
        return given
    if given is None or kind not in given:
        raise ConfigError(
            f"there is no calibration for the class '{kind}', only for "
            f"{', '.join(given or {}) or 'none'}; give one for each class"
        )
    return given[kind]


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


def _name_field(regions: gpd.GeoDataFrame) -> str | None:
    """Return the field that most likely names a region."""
    by_name = {str(c).casefold(): str(c) for c in reversed(regions.columns)}
    return next((by_name[name] for name in NAME_FIELDS if name in by_name), None)


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
