"""Towns at two dates whose every change is known: outlines as a detector draws them, and verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geoseg.objects.compare import KINDS, Comparison, one_to_one
from geoseg.scenes.dates import TownChange, houses_of, scenes_of, truth_of

NOTHING = "nothing"


def two_dates(
    seed: int, *, size_px: tuple[int, int] = (3600, 3600), change: TownChange | None = None
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame, gpd.GeoDataFrame, list[shapely.Polygon]]:
    """Return the houses of both dates as their images show them, the truth, and what they show."""
    scenes = scenes_of(
        size_px, 0.13, seed, "EPSG:32645", 1.4, hole=True, change=change or TownChange()
    )
    dates, seen = [], []
    for scene in scenes:
        ground = scene.to_crs(
            np.array([shapely.box(*scene.extent_m) - shapely.Polygon(scene.hole)], object)
        )[0]
        houses = houses_of(scene)
        visible = shapely.intersection(houses.geometry.to_numpy(), ground)
        keep = shapely.area(visible) > 4
        table = houses[["uid"]][keep].set_geometry(visible[keep], crs=houses.crs)
        dates.append(table.assign(**{"class": "house"}).reset_index(drop=True))
        seen.append(ground)
    return dates[0], dates[1], truth_of(*scenes), seen


def redrawn(
    houses: gpd.GeoDataFrame, rng: np.random.Generator, prefix: str, *, rough_m: float = 0.15
) -> gpd.GeoDataFrame:
    """Draw outlines as a detector does: off by a little, a bit large or small, corners rounded.

    Each outline is moved and widened as a whole (deviations `rough_m` and half of it), its corners
    are rounded by twice that, and its points then move along a wave around it.
    """
    shapes = houses.geometry.to_numpy()
    n = len(shapes)
    round_m = 2 * rough_m
    wide = rng.normal(0, rough_m / 2, n)
    shapes = shapely.buffer(shapes, wide)
    shapes = shapely.buffer(shapely.buffer(shapes, -round_m), round_m, quad_segs=3)
    shapes = np.where(shapely.is_empty(shapes), houses.geometry.to_numpy(), shapes)
    shapes = shapely.segmentize(shapes, 1.0)
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    centre = shapely.get_coordinates(shapely.centroid(shapes))[owner]
    angle = np.arctan2(*(points - centre).T)
    wave = sum(
        rng.normal(0, rough_m / 2, n)[owner] * np.cos(k * angle + rng.uniform(0, 6.28, n)[owner])
        for k in (2, 3, 4)
    )
    outward = (points - centre) / np.maximum(np.hypot(*(points - centre).T), 0.1)[:, None]
    moved = points + outward * wave[:, None] + rng.normal(0, rough_m, (n, 2))[owner]
    shapes = shapely.make_valid(shapely.set_coordinates(shapes.copy(), moved))
    order = rng.permutation(n)
    out = houses.set_geometry(shapes, crs=houses.crs).iloc[order].reset_index(drop=True)
    return out.assign(uid=prefix + out["uid"])


@dataclass(frozen=True)
class Verdict:
    """What was said about houses of which the truth is known."""

    table: pd.DataFrame
    """Truth (rows: kinds, and 'nothing') by what was said (columns)."""

    @property
    def houses(self) -> int:
        """Houses with a truth."""
        return int(self.table.drop(index=NOTHING).to_numpy().sum())

    @property
    def all_right(self) -> float:
        """Share of verdicts that are right, among all houses and all that was made up."""
        return float(
            sum(self.table.loc[k, k] for k in self.table.index) / self.table.to_numpy().sum()
        )

    def found(self, *kinds: str) -> float:
        """Share of true changes that were said."""
        rows = self.table.loc[list(kinds)]
        return float(sum(rows.loc[k, k] for k in kinds) / rows.to_numpy().sum())

    def true(self, *kinds: str) -> float:
        """Share of the changes said that are true."""
        columns = self.table[list(kinds)]
        return float(sum(columns.loc[k, k] for k in kinds) / columns.to_numpy().sum())


def judge(
    found: Comparison, truth: gpd.GeoDataFrame, both: shapely.Polygon, *, clear_m: float = 3.0
) -> Verdict:
    """Hold what was said against the truth, for houses wholly on ground that both dates show.

    A house and a thing belong together if they share half of the smaller one, one to one, the
    best overlap first.
    """
    inner = shapely.buffer(both, -clear_m)
    shapely.prepare(inner)
    truth = truth[shapely.covers(inner, truth.geometry.to_numpy())].reset_index(drop=True)
    changes = found.changes.to_crs(truth.crs).reset_index(drop=True)
    mine, theirs = truth.geometry.to_numpy(), changes.geometry.to_numpy()
    a, b = shapely.STRtree(theirs).query(mine, predicate="intersects")
    common = shapely.area(shapely.intersection(mine[a], theirs[b]))
    area = shapely.area(mine)[a], shapely.area(theirs)[b]
    iou = common / (area[0] + area[1] - common)
    hold = one_to_one(a, b, np.where(common >= 0.5 * np.minimum(*area), iou, 0.0))
    said = np.full(len(truth), NOTHING, object)
    said[a[hold]] = changes["change"].to_numpy()[b[hold]]
    rows = [*zip(truth["change"], said, strict=True)]
    # what was made up: things inside that are no house, unless they say that there is none
    left = np.setdiff1d(np.arange(len(changes)), b[hold])
    left = left[shapely.covers(inner, theirs[left])]
    rows += [(NOTHING, kind) for kind in changes["change"].to_numpy()[left]]
    counts = pd.DataFrame(rows, columns=["truth", "said"]).value_counts().unstack(fill_value=0)
    names = [*KINDS, NOTHING]
    return Verdict(counts.reindex(index=names, columns=names, fill_value=0).astype(int))


def moved_back(seen: shapely.Geometry, change: TownChange) -> shapely.Geometry:
    """Return the ground that the second image shows where it truly lies."""
    return shapely.transform(seen, lambda xy: xy - np.array(change.shift_m))
