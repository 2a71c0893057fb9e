"""One town at two dates: the same layout with some houses gone, some new, some enlarged.

The layout holds every house of both dates, so nothing ever has to find room: the first date
leaves out what is new and draws small what will be enlarged, the second leaves out what is gone.
The second date is another flight, too: another sun, other noise, other cars, another extent, and
its georeference lies off by a shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import shapely

from geoseg.errors import ConfigError, OutputError
from geoseg.records import GeometryArray
from geoseg.scenes.areas import hole_ring
from geoseg.scenes.houses import Fixture, House
from geoseg.scenes.layout import Block, Car, Town
from geoseg.scenes.paint import Painter
from geoseg.scenes.streets import CellIndex, StreetNet
from geoseg.scenes.style import style_of
from geoseg.scenes.town import (
    Scene,
    check_content,
    check_size,
    fixed_date,
    write_footprints,
    write_image,
)

_SUN_TURN = 0.9
"""By how much the sun has moved, radians."""
_MARGIN_PX = (61, 43)
"""How much further right and down the second raster begins."""


@dataclass(frozen=True, slots=True)
class TownChange:
    """What happens between the dates.

    Raises
    ------
    ConfigError
        If a share is out of range or the shares leave no house in peace.
    """

    gone: float = 0.10
    """Share of the first date's houses that the second date does not have."""
    new: float = 0.15
    """New houses, as a share of the first date's."""
    enlarged: float = 0.05
    """Share of the first date's houses that grow."""
    growth: float = 1.5
    """Area of an enlarged house, relative to before."""
    shift_m: tuple[float, float] = (1.2, -0.9)
    """East and north by which the second image lies off the first."""

    def __post_init__(self) -> None:
        shares = (self.gone, self.new, self.enlarged)
        if min(shares) < 0 or self.gone + self.enlarged > 1 or self.growth < 1:
            raise ConfigError(
                f"changes {shares} and growth {self.growth}: expected shares from 0, gone and "
                "enlarged together at most 1, and a growth of at least 1"
            )


@dataclass(frozen=True, slots=True)
class TownDate:
    """The files of one date."""

    image: Path
    """Cloud optimized GeoTIFF, as `geoseg.scenes.town.render_town` writes it."""
    footprints: Path
    """GeoPackage, layer ``footprints``, where the image shows them."""


@dataclass(frozen=True, slots=True)
class TwoDates:
    """A town at two dates, and the truth of what happened."""

    before: TownDate
    after: TownDate
    changes: Path
    """GeoPackage, layer ``truth``: ``uid``, ``change``, ``area_before_m2``, ``area_after_m2``, and
    the outline (the later one where there is one), where the first image shows it."""


@dataclass(slots=True, eq=False)
class DatedTown(Town):
    """The plan of a town as it stands at one date."""

    change: TownChange = TownChange()  # frozen
    later: bool = False

    def block(self, cell: CellIndex) -> Block:
        """Return one block as it stands."""
        whole = super(DatedTown, self).block(cell)
        houses = [h for _, _, h in self.standing(cell, whole)]
        return replace(whole, houses=houses, cars=_moved(whole.cars) if self.later else whole.cars)

    def standing(
        self, cell: CellIndex, whole: Block | None = None
    ) -> Iterator[tuple[str, str, House]]:
        """Yield name, fate and house for all houses that stand at this date."""
        block = super(DatedTown, self).block(cell) if whole is None else whole
        for number, house in enumerate(block.houses):
            name = f"{cell[0]}.{cell[1]}.{number}"
            fate = self._fate(cell, number)
            if fate == ("gone" if self.later else "appeared"):
                continue
            if fate == "grown" and not self.later:
                house = scale_house(house, float(np.sqrt(1 / self.change.growth)))  # noqa: PLW2901
            yield name, fate, house

    def _fate(self, cell: CellIndex, number: int) -> str:
        """Return what becomes of a house, drawn from the seed and its place in the plan."""
        seed = [self.net.seed, 909, cell[0] + (1 << 20), cell[1] + (1 << 20), number]
        chance = float(np.random.default_rng(seed).random())
        # of all houses ever, those of the first date are this share
        first = 1 / (1 + self.change.new)
        if chance < first * self.change.gone:
            return "gone"
        if chance < first * (self.change.gone + self.change.enlarged):
            return "grown"
        return "kept" if chance < first else "appeared"


@dataclass(frozen=True)
class DatedPainter(Painter):
    """Renders a town as it stands at one date."""

    change: TownChange = TownChange()  # frozen

    @cached_property
    def town(self) -> DatedTown:
        """The plan of the scene at this date."""
        style = style_of(self.seed)
        net = StreetNet(self.seed, style, self.density)
        if self.flight:
            x, y, z = style.sun
            c, s = np.cos(_SUN_TURN), np.sin(_SUN_TURN)
            style = replace(style, sun=(float(c * x - s * y), float(s * x + c * y), z))
        return DatedTown(net, style, change=self.change, later=self.flight > 0)


def scale_house(house: House, factor: float) -> House:
    """Return a house with all lengths on the ground multiplied, about its middle."""
    f = house.frame
    middle = np.array([f.x, f.y])
    ring = (house.ring - middle) * factor + middle
    return replace(
        house,
        ring=ring,
        polygon=shapely.Polygon(ring),
        frame=f._replace(half_u=f.half_u * factor, half_v=f.half_v * factor),
        wings=tuple((u * factor, v * factor, a * factor, b * factor) for u, v, a, b in house.wings),
        fixtures=tuple(_scale_fixture(x, factor) for x in house.fixtures),
    )


def _scale_fixture(item: Fixture, factor: float) -> Fixture:
    """Move a fixture with its roof; it keeps its size unless it covers much of it."""
    size = factor if item.kind == "sheet" else 1.0
    return replace(
        item,
        u=item.u * factor,
        v=item.v * factor,
        half_u=item.half_u * size,
        half_v=item.half_v * size,
    )


def _moved(cars: list[Car]) -> list[Car]:
    """Return the cars of another day: every other one, a little further."""
    return [
        replace(c, x=c.x + 1.7 * float(np.cos(c.angle)), y=c.y + 1.7 * float(np.sin(c.angle)))
        for c in cars[::2]
    ]


def render_two_dates(
    folder: Path,
    *,
    width_px: int = 4096,
    height_px: int = 4096,
    gsd_m: float = 0.13,
    seed: int = 1,
    crs: str = "EPSG:32645",
    density: float = 1.0,
    hole: bool = True,
    change: TownChange | None = None,
) -> TwoDates:
    """Render a town at two dates, with the truth of what happened in between.

    Parameters
    ----------
    folder : Path
        Gets ``before/`` and ``after/`` with image and footprints, and ``truth.gpkg``; made if it
        is missing. Files of an earlier call are replaced.
    width_px, height_px, gsd_m, seed, crs, density
        As for `geoseg.scenes.town.render_town`.
    hole : bool
        Leave a hole without data in each image, at different places.
    change : TownChange, optional
        What happens; by default a tenth of the houses goes, 15 % are new, 5 % grow by half, and
        the second image lies 1.5 m off.

    Returns
    -------
    TwoDates
        The files.

    Raises
    ------
    ConfigError
        If a setting is outside its range.
    OutputError
        If a folder cannot be made.
    """
    check_size(width_px, height_px, gsd_m)
    check_content(seed, crs, density)
    scenes = scenes_of(
        (width_px, height_px), gsd_m, seed, crs, density, hole=hole, change=change or TownChange()
    )
    dates = []
    for name, scene in zip(("before", "after"), scenes, strict=True):
        place = Path(folder) / name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {place}: {error}") from error
        date = TownDate(place / "town.tif", place / "footprints.gpkg")
        write_image(scene, date.image)
        with fixed_date():
            write_footprints(scene, date.footprints)
        dates.append(date)
    truth = Path(folder) / "truth.gpkg"
    truth.unlink(missing_ok=True)
    with fixed_date():
        pyogrio.write_dataframe(truth_of(*scenes), truth, layer="truth", driver="GPKG")
    return TwoDates(dates[0], dates[1], truth)


def scenes_of(
    size_px: tuple[int, int],
    gsd_m: float,
    seed: int,
    crs: str,
    density: float,
    *,
    hole: bool,
    change: TownChange,
) -> tuple[Scene, Scene]:
    """Return the scenes of both dates; nothing is rendered yet."""
    width_m, height_m = size_px[0] * gsd_m, size_px[1] * gsd_m
    first = Scene(
        DatedPainter(seed, gsd_m, density, change=change),
        *size_px,
        crs,
        hole_ring(width_m, height_m, seed) if hole else None,
    )
    second = replace(
        first,
        painter=DatedPainter(seed, gsd_m, density, flight=1, change=change),
        hole=hole_ring(width_m, height_m, seed + 1000) if hole else None,
        origin_px=_MARGIN_PX,
        offset_m=change.shift_m,
    )
    return first, second


def houses_of(scene: Scene) -> gpd.GeoDataFrame:
    """Return the whole houses that stand at a scene's date and meet its raster.

    Returns
    -------
    GeoDataFrame
        ``uid`` (the same at both dates), ``change`` and the outline, where the image shows it.
    """
    town = scene.painter.town
    assert isinstance(town, DatedTown)  # noqa: S101  # made above
    extent = shapely.box(*scene.extent_m)
    shapely.prepare(extent)
    rows = [row for cell in town.net.cells_in(scene.extent_m) for row in town.standing(cell)]
    rows = [row for row in rows if extent.intersects(row[2].polygon)]
    shapes: GeometryArray = np.array([house.polygon for *_, house in rows], object)
    return gpd.GeoDataFrame(
        {"uid": [name for name, *_ in rows], "change": [fate for _, fate, _ in rows]},
        geometry=scene.to_crs(shapes),
        crs=scene.crs,
    )


def truth_of(first: Scene, second: Scene) -> gpd.GeoDataFrame:
    """Return what happened to every house that either raster shows, where the first shows it."""
    old = houses_of(first).set_index("uid")
    # what the second raster shows, moved back to where the first one would
    new = houses_of(replace(second, offset_m=first.offset_m)).set_index("uid")
    uids = sorted({*old.index, *new.index})
    both = new.geometry.reindex(uids).fillna(old.geometry.reindex(uids))
    fates = new["change"].reindex(uids).fillna(old["change"].reindex(uids))
    return gpd.GeoDataFrame(
        {
            "uid": uids,
            "change": fates.to_numpy(),
            "area_before_m2": old.area.reindex(uids).fillna(0).round(2).to_numpy(),
            "area_after_m2": new.area.reindex(uids).fillna(0).round(2).to_numpy(),
        },
        geometry=both.to_numpy(),
        crs=first.crs,
    )
