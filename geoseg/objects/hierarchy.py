"""Regions in regions: wards in districts in a country, by a field that names the parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from geoseg.errors import RegionError
from geoseg.records import BoolArray, IntArray

_SHOWN = 5
# ^ so many ids are named in an error


@dataclass(frozen=True, slots=True, eq=False)
class Hierarchy:
    """Which region lies in which; every region has at most one parent.

    Examples
    --------
    >>> tree = Hierarchy.from_ids(["country", "north", "south"], [None, "country", "country"])
    >>> tree.levels.tolist()
    [1, 2, 2]
    >>> tree.roll_up(np.array([1, 20, 300])).tolist()
    [321, 20, 300]
    """

    parents: IntArray
    """(n,) row of each region's parent, -1 at the top."""
    levels: IntArray
    """(n,) 1 at the top, 2 for what lies in it, and so on."""

    @classmethod
    def from_ids(cls, ids: Sequence[Any], parents: Sequence[Any]) -> Hierarchy:
        """Build it from two columns of a table.

        Parameters
        ----------
        ids : sequence
            (n,) what names each region; numbers and texts of the same look are the same.
        parents : sequence
            (n,) the id of each region's parent; None, NaN or an empty text at the top.

        Returns
        -------
        Hierarchy

        Raises
        ------
        RegionError
            If an id is missing or there twice while a region names it as its parent, a parent is
            not there, or regions are their own ancestors.
        """
        names = [_as_id(value) for value in ids]
        wanted = [_as_id(value) for value in parents]
        rows: dict[str, int] = {}
        twice = set()
        for row, name in enumerate(names):
            if name is not None and rows.setdefault(name, row) != row:
                twice.add(name)
        if clash := sorted(twice & set(wanted) - {None}):
            raise RegionError(
                f"{len(clash)} ids of parents are there more than once ({_some(clash)}); "
                "expected one region with each id that others name as their parent"
            )
        orphans = [
            f"{name} -> {parent}"
            for name, parent in zip(names, wanted, strict=True)
            if parent is not None and parent not in rows
        ]
        if orphans:
            raise RegionError(
                f"{len(orphans)} regions name a parent that is not there ({_some(orphans)}); add "
                "the parents to the layer, or leave the field empty for regions at the top"
            )
        up = np.array([-1 if p is None else rows[p] for p in wanted], dtype=np.int64)
        return cls(up, _levels(up, names))

    @classmethod
    def from_table(cls, table: pd.DataFrame, parent: str, own: str | None) -> Hierarchy:
        """Build it from the fields of regions.

        Parameters
        ----------
        table : DataFrame
            (n) regions.
        parent : str
            Field with the id of the parent.
        own : str, optional
            Field with the region's own id; by default ``id``, ``region_id``, ``fid``, ``code``
            or ``name``, whichever comes first.

        Raises
        ------
        RegionError
            If a field does not exist; or as :meth:`from_ids`.
        """
        if own is None:
            by_name = {str(c).casefold(): str(c) for c in reversed(table.columns)}
            names = ("id", "region_id", "fid", "code", "name", "region")
            own = next((by_name[n] for n in names if n in by_name), None)
        for option, field in (("--parent", parent), ("--id", own)):
            if field is None or field not in table.columns:
                fields = ", ".join(str(c) for c in table.columns)
                which = "no field that looks like an id" if field is None else f"no '{field}'"
                raise RegionError(
                    f"the regions have {which}; name one with {option}; they have: {fields}"
                )
        return cls.from_ids(table[own].tolist(), table[parent].tolist())

    @property
    def depth(self) -> int:
        """Number of levels; 0 without regions."""
        return int(self.levels.max(initial=0))

    @property
    def has_children(self) -> BoolArray:
        """(n,) whether other regions lie in it."""
        result = np.zeros(len(self.parents), dtype=bool)
        result[self.parents[self.parents >= 0]] = True
        return result

    def roll_up(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return (n,) values with those of all descendants added to each region."""
        total = values.copy()
        for level in range(self.depth, 1, -1):
            rows = np.flatnonzero(self.levels == level)
            np.add.at(total, self.parents[rows], total[rows])
        return total

    def with_ancestors(self, things: IntArray, owners: IntArray) -> tuple[IntArray, IntArray]:
        """Return pairs of thing and region, and with each its ancestors, every pair once."""
        n = max(len(self.parents), 1)
        pairs = np.unique(things * n + owners)
        for _ in range(self.depth - 1):
            things, owners = pairs // n, self.parents[pairs % n]
            up = owners >= 0
            pairs = np.union1d(pairs, things[up] * n + owners[up])
        return pairs // n, pairs % n


def _as_id(value: Any) -> str | None:
    """Return an id as text: a column with gaps has 7.0 where another has 7."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return None
        value = int(value) if float(value).is_integer() else value
    return str(value).strip() or None


def _some(values: Sequence[str]) -> str:
    """Return the first of some values, for a message."""
    more = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _levels(parents: IntArray, names: Sequence[str | None]) -> IntArray:
    """Return each region's level; refuse regions that are their own ancestors."""
    levels = np.where(parents < 0, 1, 0).astype(np.int64)
    level = 1
    while (below := (levels == 0) & (levels[parents] == level) & (parents >= 0)).any():
        level += 1
        levels[below] = level
    rings = np.flatnonzero(levels == 0)
    if len(rings):
        # whoever hangs below a ring is left over too: walk up until in it, then around once
        at = int(rings[0])
        for _ in range(len(rings)):
            at = int(parents[at])
        ring = [at]
        while int(parents[ring[-1]]) != at:
            ring.append(int(parents[ring[-1]]))
        path = [str(names[row]) for row in ring]
        raise RegionError(
            f"regions are their own ancestors: {_some([*path, path[0]])}, each the child of the "
            "next; clear the parent of the one at the top"
        )
    return levels
