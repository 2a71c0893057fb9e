"""Things followed through several dates: one lasting id each, whatever happened in between.

Each date is compared with the one before. What is new there is also held against all that was
there once and has no successor: a thing that one date missed, or did not see, keeps its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geoseg.errors import ConfigError
from geoseg.objects.compare import (
    CompareSettings,
    Comparison,
    Matched,
    ObjectsOfDate,
    Seen,
    check_dates,
    compared,
    match_dates,
    metres_around,
    objects_of_date,
    one_to_one,
    partners,
    settings_of,
)
from geoseg.records import GeometryArray, IntArray

RETURNED = "returned"
"""A thing that was gone at the date before, and is there again."""


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """Things of several dates."""

    table: gpd.GeoDataFrame
    """One row per thing and object of a date, and one where it is found missing: ``thing_id``,
    ``date`` (from 0), ``uid`` (empty where it is missing), ``change`` (since the date before:
    'appeared' on the first; one of `geoseg.objects.compare.KINDS`, or 'returned'), ``parent`` (the
    thing that a piece came from, or that took it in), ``class``, ``area_m2`` and the outline, in
    the CRS of the first date and moved by the shifts."""
    steps: tuple[Comparison, ...]
    """Each date compared with the one before; outlines and ids as in ``table``. Every date is laid
    on the first one, so each shift is against that."""

    @property
    def things(self) -> gpd.GeoDataFrame:
        """One row per thing.

        ``first`` and ``last`` date on which it is there, ``dates`` (how many of them), ``history``
        (what happened, in order) and its last outline.
        """
        there = self.table[self.table["uid"] != ""]
        by = there.groupby("thing_id", sort=False)
        last = there.loc[by["date"].idxmax(), ["thing_id", "class", "geometry"]]
        story = self.table.drop_duplicates(["thing_id", "date", "change"]).groupby("thing_id")
        out = last.set_index("thing_id").join(
            pd.DataFrame(
                {
                    "first": by["date"].min(),
                    "last": by["date"].max(),
                    "dates": by["date"].nunique(),
                    "history": story["change"].agg(", ".join),
                }
            )
        )
        columns = ["thing_id", "first", "last", "dates", "history", "class", "geometry"]
        return gpd.GeoDataFrame(out.reset_index()[columns], crs=self.table.crs)


@dataclass(slots=True)
class _Thing:
    """What is known of a thing that the last date did not show."""

    outline: shapely.Geometry
    label: str
    change: str


def tracks(
    dates: Sequence[gpd.GeoDataFrame],
    *,
    seen: Sequence[Seen | None] | None = None,
    **settings: Any,
) -> Tracks:
    """Follow things through several dates.

    Parameters
    ----------
    dates : sequence of GeoDataFrame
        Objects of each date, earliest first; at least two, as for `compare`.
    seen : sequence, optional
        Ground that was imaged at each date, or None where that is not known.
    **settings
        Fields of `geoseg.objects.compare.CompareSettings`.

    Returns
    -------
    Tracks
        A row per thing and date, and the comparison of each step.

    Raises
    ------
    ConfigError
        If there are fewer than two dates, or not one entry of ``seen`` for each.
    RegionError
        If a table has no CRS.
    """
    if len(dates) < 2:
        raise ConfigError(f"{len(dates)} date(s) given; expected two or more to follow things")
    if seen is not None and len(seen) != len(dates):
        raise ConfigError(f"seen has {len(seen)} entries for {len(dates)} dates; give one for each")
    how = settings_of(settings)
    check_dates({f"date {k + 1}": table for k, table in enumerate(dates)})
    plane = metres_around(*dates)
    grounds = [None] * len(dates) if seen is None else seen
    objects = [
        objects_of_date(table, plane, ground, f"date-{k + 1}")
        for k, (table, ground) in enumerate(zip(dates, grounds, strict=True))
    ]
    follower = _Follower(how, plane, dates[0].crs)
    follower.begin(objects[0])
    for date in objects[1:]:
        follower.follow(date)
    return follower.result()


class _Follower:
    """Gives out lasting names, date after date."""

    def __init__(self, how: CompareSettings, plane: pyproj.CRS, crs: Any) -> None:
        self.how, self.plane, self.crs = how, plane, crs
        self.taken: set[str] = set()
        self.missing: dict[str, _Thing] = {}
        self.steps: list[Comparison] = []
        self.rows: list[pd.DataFrame] = []
        self.number = 0

    def begin(self, date: ObjectsOfDate) -> None:
        """Take the first date: every object is a thing of its own."""
        self.date, self.names = date, [str(uid) for uid in date.uids]
        self.taken.update(self.names)
        n = len(date)
        self._note(self.names, date, np.arange(n), ["appeared"] * n, [""] * n)

    def follow(self, date: ObjectsOfDate) -> None:
        """Take the next date."""
        self.number += 1
        matched = match_dates(self.date, date, self.how)
        late = matched.late
        lead = tuple(
            _largest(group, objects.polygons, len(matched.change))
            for group, objects in zip(matched.group, (matched.early, late), strict=True)
        )
        names, change = self._name(matched, lead)
        step = compared(matched, self.plane, self.crs, by_class=self.how.by_class)
        step.changes["thing_id"], step.changes["change"] = names, change
        self.steps.append(step)
        self._end(matched, lead[0], names)
        rows = np.flatnonzero(matched.group[1] >= 0)
        own, parents = [], []
        for row, group in zip(rows.tolist(), matched.group[1][rows].tolist(), strict=True):
            heir = row == lead[1][group]
            own.append(names[group] if heir else self._fresh(str(late.uids[row])))
            parents.append("" if heir else names[group])
        became = [change[g] for g in matched.group[1][rows]]
        self._note(own, late, rows, became, parents)
        # from here on the date lies as the first one does; weak objects are no things
        self.date, self.names = late.taken(rows), own

    def _name(self, matched: Matched, lead: tuple[IntArray, ...]) -> tuple[list[str], list[str]]:
        """Return the lasting name of each thing of a step, and what happened to it.

        Of several that became one the largest lends its name; of pieces the largest inherits it.
        """
        names = [self.names[row] if row >= 0 else "" for row in lead[0].tolist()]
        change = [str(c) for c in matched.change]
        new = np.flatnonzero(lead[0] < 0)
        for k, thing_id in self._known(matched, new, lead[1]).items():
            known = self.missing.pop(thing_id)
            names[k] = thing_id
            late = matched.late.polygons[lead[1][k]]
            change[k] = RETURNED if known.change == "gone" else self._sized(known.outline, late)
        for k in new.tolist():
            names[k] = names[k] or self._fresh(str(matched.late.uids[lead[1][k]]))
        return names, change

    def _known(self, matched: Matched, new: IntArray, first: IntArray) -> dict[int, str]:
        """Return which new things were there before the last date, and as what."""
        ids = sorted(self.missing)
        if not ids or not len(new):
            return {}
        old = np.array([*(self.missing[i].outline for i in ids), None], object)[:-1]
        late = matched.late.polygons[first[new]]
        labels = [self.missing[i].label for i in ids], matched.late.classes[first[new]].tolist()
        codes = {name: k for k, name in enumerate(sorted({*labels[0], *labels[1]}))}
        pair = tuple(
            np.array([codes[name] if self.how.by_class else 0 for name in side], np.int64)
            for side in labels
        )
        found = partners(old, late, (pair[0], pair[1]), self.how.slack_m)
        hold = one_to_one(found.early, found.late, found.iou + 1e-6)
        return {
            int(new[b]): ids[a]
            for a, b in zip(found.early[hold].tolist(), found.late[hold].tolist(), strict=True)
        }

    def _sized(self, old: shapely.Geometry, new: shapely.Geometry) -> str:
        """Say what became of a thing that the dates between did not see."""
        if new.area > old.area * (1 + self.how.growth):
            return "grown"
        return "shrunk" if new.area * (1 + self.how.growth) < old.area else "kept"

    def _fresh(self, uid: str) -> str:
        name = uid
        while name in self.taken:
            # two dates may name different things alike
            name = f"{uid}@{self.number + 1}" if name == uid else name + "'"
        self.taken.add(name)
        return name

    def _end(self, matched: Matched, lead: IntArray, names: list[str]) -> None:
        """Note what this date does not show: missing, to be known again, or part of another."""
        there = np.zeros(len(matched.change), bool)
        there[matched.group[1][matched.group[1] >= 0]] = True
        group, early = matched.group[0], matched.early
        rows = np.flatnonzero(group >= 0)
        lost, absorbed = rows[~there[group[rows]]], rows[there[group[rows]]]
        absorbed = absorbed[lead[group[absorbed]] != absorbed]
        for row in lost.tolist():
            self.missing[self.names[row]] = _Thing(
                early.polygons[row], str(early.classes[row]), str(matched.change[group[row]])
            )
        for ended, parents in (
            (lost, [""] * len(lost)),
            (absorbed, [names[g] for g in group[absorbed]]),
        ):
            became = [str(c) for c in matched.change[group[ended]]]
            self._note([self.names[r] for r in ended], early, ended, became, parents, missing=True)

    def _note(
        self,
        names: Sequence[str],
        date: ObjectsOfDate,
        rows: IntArray,
        change: Sequence[str],
        parents: Sequence[str],
        *,
        missing: bool = False,
    ) -> None:
        shapes = date.polygons[rows]
        columns = {
            "thing_id": list(names),
            "date": np.full(len(rows), self.number),
            "uid": [""] * len(rows) if missing else date.uids[rows],
            "change": list(change),
            "parent": list(parents),
            "class": date.classes[rows],
            "area_m2": shapely.area(shapes).round(2),
            "shape": shapes,
        }
        self.rows.append(pd.DataFrame(columns))

    def result(self) -> Tracks:
        """Return all that was noted."""
        table = pd.concat(self.rows, ignore_index=True)
        shapes = gpd.GeoSeries(table.pop("shape").to_numpy(), crs=self.plane).to_crs(self.crs)
        whole = gpd.GeoDataFrame(table, geometry=shapes.to_numpy(), crs=self.crs)
        return Tracks(whole, tuple(self.steps))


def _largest(group: IntArray, polygons: GeometryArray, things: int) -> IntArray:
    """Return the row of each thing's largest object, the first of equals; -1 where it has none."""
    first = np.full(things, -1)
    rows = np.flatnonzero(group >= 0)
    # the last one written stays: the largest, of equals the one that stood first
    rows = rows[np.lexsort((-rows, shapely.area(polygons[rows]).round(6)))]
    first[group[rows]] = rows
    return first
