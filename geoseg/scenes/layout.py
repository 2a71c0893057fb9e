"""What stands in one block: plots, houses, trees and cars, drawn from (seed, block index)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import shapely
from shapely.affinity import affine_transform

from geoseg.records import DoubleArray
from geoseg.scenes.houses import House, attach_annex, design_house, frame_of, place_house
from geoseg.scenes.streets import CellIndex, Street, StreetNet
from geoseg.scenes.style import Colour, Style

_CACHED_BLOCKS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """A piece of ground with one use."""

    ring: DoubleArray
    """(n, 2) x, y in metres, open."""
    use: str
    """'yard', 'paved', 'lawn', 'beds', 'furrow', 'crop', 'stubble', 'scrub' or 'grove'."""
    angle: float
    """Direction of rows, radians."""
    tone: float
    """Brightness relative to others of its use, about 1."""
    wall: Colour | None
    """Colour of the wall around it, if there is one."""
    key: int
    """For its noise."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree or a bush."""

    x: float
    """Metres."""
    y: float
    """Metres, downwards."""
    radius_m: float
    """Of the crown."""
    kind: str
    """'round', 'palm' or 'banana'."""
    tone: float
    """Brightness, about 1."""
    hue: float
    """-1 dark and bluish to 1 yellow."""
    key: int
    """For its noise."""


@dataclass(frozen=True, slots=True)
class Car:
    """A vehicle."""

    x: float
    """Metres."""
    y: float
    """Metres, downwards."""
    angle: float
    """Radians."""
    length_m: float
    """Bumper to bumper."""
    colour: Colour
    """Of the body."""


@dataclass(slots=True, eq=False)
class Block:
    """All that one block holds, its own two streets included."""

    streets: tuple[Street, Street]
    bounds: tuple[float, float, float, float]
    """x0, y0, x1, y1 of the outline, metres."""
    plots: list[Plot] = field(default_factory=list)
    houses: list[House] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    cars: list[Car] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Town:
    """The plan of a whole scene; blocks are laid out when they are asked for."""

    net: StreetNet
    style: Style
    _blocks: OrderedDict[CellIndex, Block] = field(default_factory=OrderedDict)

    def block(self, cell: CellIndex) -> Block:
        """Return one block; the last few hundred are kept."""
        if cell in self._blocks:
            self._blocks.move_to_end(cell)
            return self._blocks[cell]
        block = lay_out_block(self.net, cell)
        self._blocks[cell] = block
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return block

    def blocks_in(self, bounds_m: tuple[float, float, float, float]) -> list[Block]:
        """Return the blocks that may meet a box, metres."""
        return [self.block(cell) for cell in self.net.cells_in(bounds_m)]


@dataclass(slots=True, eq=False)
class _Draft:
    """A block in the making."""

    rng: np.random.Generator
    style: Style
    land: shapely.Polygon
    block: Block

    def key(self) -> int:
        """Return a new key for noise."""
        return int(self.rng.integers(1, 1 << 30))

    def add_plot(self, ground: shapely.Polygon, use: str, wall: Colour | None = None) -> None:
        """Add a piece of ground."""
        if ground.is_empty or ground.area < 1.0:
            return
        ring = shapely.get_coordinates(ground.exterior)[:-1]
        tone = float(np.clip(self.rng.normal(1, 0.09), 0.75, 1.25))
        turn = 0.0 if self.rng.random() < 0.6 else np.pi / 2
        angle = frame_of(ground).angle + turn + float(self.rng.normal(0, 0.04))
        self.block.plots.append(Plot(ring, use, angle, tone, wall, self.key()))


def largest_part(shape: shapely.Geometry) -> shapely.Polygon:
    """Return the largest polygon of a geometry; empty if there is none."""
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    return max(parts, key=lambda p: p.area) if parts else shapely.Polygon()


def split_land(
    land: shapely.Polygon,
    target_m2: tuple[float, float],
    rng: np.random.Generator,
    gap_m: float = 0.0,
) -> list[shapely.Polygon]:
    """Cut land across its long side again and again until the pieces are small enough.

    Parameters
    ----------
    land : Polygon
        Metres.
    target_m2 : tuple of float
        A piece is cut while it is larger than a size drawn from this range.
    rng : Generator
        Source of the cuts.
    gap_m : float
        Width of the strip that each cut takes away; 0 leaves common walls.

    Returns
    -------
    list of Polygon
        Pieces without holes; they do not overlap.
    """
    pieces: list[shapely.Polygon] = []
    stack = [land]
    while stack:
        piece = stack.pop()
        if piece.is_empty or piece.area < 4.0:
            continue
        if piece.area < rng.uniform(*target_m2) * 1.45:
            pieces.append(piece)
            continue
        frame = frame_of(piece)
        reach = 4 * frame.half_u + 4
        at = rng.uniform(-0.24, 0.24) * frame.half_u
        turn = frame.angle + rng.normal(0, 0.05)
        c, s = np.cos(turn), np.sin(turn)
        for low, high in ((-reach, at - gap_m / 2), (at + gap_m / 2, reach)):
            half_plane = affine_transform(
                shapely.box(low, -reach, high, reach), [c, -s, s, c, frame.x, frame.y]
            )
            stack.append(largest_part(piece & half_plane))
    return pieces


def _land(net: StreetNet, cell: CellIndex) -> shapely.Polygon:
    """Return the block without its streets and a narrow verge."""
    land: shapely.Geometry = net.polygon(cell)
    for street in net.sides(cell):
        line = shapely.LineString(street.line)
        verge = 0.5 if street.surface in ("paved", "path") else 0.9
        land = land - line.buffer(street.half_width_m + verge, cap_style="flat", quad_segs=2)
    return largest_part(land.simplify(0.15))


def lay_out_block(net: StreetNet, cell: CellIndex) -> Block:
    """Lay out one block.

    Parameters
    ----------
    net : StreetNet
        Gives the block's outline and how built-up the place is.
    cell : tuple of int
        Which block.

    Returns
    -------
    Block
        Depends on the net and ``cell`` alone. Houses stay inside the block; crowns of trees may
        reach 6 m beyond it.
    """
    i, j = cell
    # SeedSequence takes no negative numbers
    rng = np.random.default_rng([net.seed, 202, i + (1 << 20), j + (1 << 20)])
    sides = net.sides(cell)
    outline = net.polygon(cell)
    block = Block((sides[0], sides[3]), outline.bounds)
    land = _land(net, cell)
    centre = outline.centroid
    urban = net.urbanity(centre.x, centre.y)
    if land.area > 30.0:
        draft = _Draft(rng, net.style, land, block)
        _pick_use(urban, float(rng.random()))(draft, urban)
        _plant_verges(draft, urban)
    _park_on_streets(rng, block, urban)
    return block


def _pick_use(urban: float, chance: float) -> Callable[[_Draft, float], None]:
    """Choose how a block is used."""
    if urban > 0.66:
        return _open_ground if chance < 0.04 else _campus if chance < 0.09 else _old_town
    if urban > 0.50:
        return _shacks if chance < 0.25 else _campus if chance < 0.33 else _close_houses
    if urban > 0.26:
        return _campus if chance < 0.08 else _open_ground if chance < 0.12 else _gardens
    if urban > 0.12 and chance < 0.7:
        return _gardens
    return _grove if chance < 0.16 else _farmland


def _old_town(draft: _Draft, urban: float) -> None:
    """Cover the land with houses wall to wall, courts and a few lanes between them."""
    rng = draft.rng
    draft.add_plot(draft.land, "yard" if rng.random() < 0.6 else "paved")
    for quarter in split_land(draft.land, (500, 1100), rng, gap_m=float(rng.uniform(0.9, 2.6))):
        depth = float(rng.uniform(8, 14))
        court = quarter.buffer(-depth)
        for lot in split_land(quarter, (28, 110), rng):
            inner = court.intersects(lot.centroid) if not court.is_empty else False
            if rng.random() < (0.35 if inner else 0.04 + 0.25 * (1 - urban)):
                _fill_court(draft, lot)
                continue
            # most walls are common, some houses stand back a little
            back = 0.0 if rng.random() < 0.75 else float(rng.uniform(0.3, 1.0))
            body = largest_part(lot.buffer(-back, join_style="mitre")) if back else lot
            if body.area > 14.0:
                draft.block.houses.append(design_house(body, draft.style, rng, dense=True))
    _plant(draft, draft.land, 0.0012, (1.0, 2.8))


def _fill_court(draft: _Draft, lot: shapely.Polygon) -> None:
    """Use a lot without a house: paved, bare or green, sometimes with a shed."""
    rng = draft.rng
    use = str(rng.choice(["paved", "yard", "lawn", "beds", "scrub"], p=[0.35, 0.3, 0.1, 0.1, 0.15]))
    inside = largest_part(lot.buffer(-0.3, join_style="mitre"))
    draft.add_plot(inside, use)
    if rng.random() < 0.35:
        house = place_house(inside, (10, 24), draft.style, rng, simple=True)
        if house is not None:
            draft.block.houses.append(house)


def _close_houses(draft: _Draft, urban: float) -> None:
    """Give each small plot a house that leaves a strip of yard."""
    _houses_on_plots(draft, (130, 330), (0.36, 0.72), wall_share=0.35 + 0.3 * urban)


def _gardens(draft: _Draft, urban: float) -> None:
    """Give large plots a house each, gardens and trees; some stay fields."""
    size = 300.0 + 900.0 * max(0.0, 0.5 - urban)
    _houses_on_plots(draft, (size, 2 * size), (0.12, 0.34), wall_share=0.3)


def _houses_on_plots(
    draft: _Draft, plot_m2: tuple[float, float], built: tuple[float, float], wall_share: float
) -> None:
    """Split the land into plots with houses, sheds, gardens, walls, trees and cars."""
    rng = draft.rng
    for plot in split_land(draft.land, plot_m2, rng, gap_m=float(rng.uniform(0.3, 1.2))):
        use = str(
            rng.choice(
                ["yard", "paved", "lawn", "beds", "scrub", "crop"],
                p=[0.44, 0.10, 0.18, 0.05, 0.19, 0.04],
            )
        )
        wall = None
        if rng.random() < wall_share:
            tone = float(rng.uniform(0.5, 0.75))
            wall = (tone, tone * 0.96, tone * 0.9)
        draft.add_plot(plot, use, wall)
        if rng.random() > 0.08:
            size = float(np.clip(plot.area * rng.uniform(*built), 14, 330))
            _build_on(draft, plot, size)
    thick = 0.005 + 0.012 * draft.style.lushness
    _plant(draft, draft.land, thick * float(rng.uniform(0.4, 1.8)), (0.7, 4.6))


def _build_on(draft: _Draft, plot: shapely.Polygon, size_m2: float) -> None:
    """Put a house on a plot, perhaps with an annex, a shed, a garden and a car."""
    rng = draft.rng
    inside = largest_part(plot.buffer(-rng.uniform(0.5, 1.6), join_style="mitre"))
    house = place_house(inside, (0.7 * size_m2, size_m2), draft.style, rng)
    if house is None:
        return
    houses = [house]
    if rng.random() < 0.4:
        houses += attach_annex(house, plot, draft.style, rng)
    draft.block.houses += houses
    left = largest_part(inside - shapely.union_all([h.polygon for h in houses]).buffer(1.0))
    if rng.random() < 0.5:
        shed = place_house(left, (9, 26), draft.style, rng, simple=True)
        if shed is not None:
            draft.block.houses.append(shed)
    if rng.random() < 0.45:
        bed = largest_part(left.buffer(-1.0))
        use = rng.choice(["beds", "lawn", "yard", "scrub"], p=[0.15, 0.2, 0.3, 0.35])
        draft.add_plot(bed, str(use))
    if rng.random() < 0.22:
        _park_in(draft, left)


def _shacks(draft: _Draft, urban: float) -> None:
    """Scatter small tin houses close together, at all angles."""
    rng = draft.rng
    draft.add_plot(draft.land, "yard")
    for plot in split_land(draft.land, (35, 110), rng, gap_m=0.5):
        if rng.random() < 0.14 + 0.3 * max(0.0, 0.6 - urban):
            continue
        size = plot.area * rng.uniform(0.45, 0.85)
        house = place_house(plot, (0.6 * size, size), draft.style, rng, simple=True, turn=0.12)
        if house is not None:
            draft.block.houses.append(house)
            if rng.random() < 0.3:
                draft.block.houses += attach_annex(house, plot, draft.style, rng)
    _plant(draft, draft.land, 0.006, (0.8, 3.0))


def _campus(draft: _Draft, urban: float) -> None:
    """Place a few long buildings around an open yard: a school, a market, a workshop."""
    rng = draft.rng
    draft.add_plot(draft.land, "yard" if rng.random() < 0.7 else "lawn")
    free: shapely.Geometry = draft.land.buffer(-2.0)
    for _ in range(int(rng.integers(2, 6))):
        house = place_house(largest_part(free), (150, 420), draft.style, rng, slim=True)
        if house is not None:
            draft.block.houses.append(house)
            free = free - house.polygon.buffer(3.0 + 3.0 * (1 - min(urban, 1.0)))
    for _ in range(int(rng.integers(0, 5))):
        _park_in(draft, largest_part(free))
    _plant(draft, draft.land, 0.004, (1.5, 4.5))


def _open_ground(draft: _Draft, urban: float) -> None:
    """Leave the land open: a playing field, a market place, waste land."""
    rng = draft.rng
    draft.add_plot(draft.land, str(rng.choice(["yard", "scrub", "lawn"])))
    for _ in range(int(rng.integers(0, 6))):
        _park_in(draft, draft.land)
    _plant(draft, draft.land, 0.002 + 0.001 * urban, (1.0, 4.0))


def _farmland(draft: _Draft, urban: float) -> None:
    """Split the land into fields with grass between them; a farm here and there."""
    rng = draft.rng
    uses = ["furrow", "crop", "beds", "stubble", "scrub", "lawn"]
    shares = rng.dirichlet([0.9, 1.0, 1.0, 0.8, 0.6, 0.4])
    size = float(rng.uniform(160, 900))
    for plot in split_land(draft.land, (size, 2.2 * size), rng, gap_m=float(rng.uniform(0.5, 1.4))):
        draft.add_plot(plot, str(rng.choice(uses, p=shares)))
        if rng.random() < 0.07 + 0.12 * max(urban, 0.0):
            inside = largest_part(plot.buffer(-1.5))
            house = place_house(inside, (14, 90), draft.style, rng)
            if house is not None:
                draft.add_plot(largest_part(house.polygon.buffer(2.5) & plot), "yard")
                draft.block.houses.append(house)
    _plant(draft, draft.land, 0.0012, (0.8, 4.0))


def _grove(draft: _Draft, urban: float) -> None:
    """Cover the land with trees, a hut between them."""
    rng = draft.rng
    draft.add_plot(draft.land, "grove")
    if rng.random() < 0.6 + 0.4 * urban:
        house = place_house(draft.land.buffer(-6.0), (18, 80), draft.style, rng)
        if house is not None:
            draft.block.houses.append(house)
    _plant(draft, draft.land, float(rng.uniform(0.012, 0.035)), (1.8, 5.0))


def _plant(
    draft: _Draft, land: shapely.Polygon, per_m2: float, radius_m: tuple[float, float]
) -> None:
    """Plant trees and bushes on land that no house covers; crowns may overhang eaves."""
    rng, style = draft.rng, draft.style
    x0, y0, x1, y1 = land.bounds
    n = int(rng.poisson((x1 - x0) * (y1 - y0) * per_m2))
    x, y = rng.uniform(x0, x1, n), rng.uniform(y0, y1, n)
    # trees stand in company: half of them move near another one
    if n > 3:
        mates = rng.integers(0, n, n)
        together = rng.random(n) < 0.5
        spread = rng.normal(0, 3.0, (2, n))
        x = np.where(together, x[mates] + spread[0], x)
        y = np.where(together, y[mates] + spread[1], y)
    low, high = radius_m
    radius = low + (high - low) * rng.beta(1.1, 2.3, n)
    points = shapely.points(x, y)
    keep = shapely.contains_xy(land, x, y)
    if draft.block.houses:
        built = shapely.multipolygons([h.polygon for h in draft.block.houses])
        overhang = rng.uniform(0.0, 1.3, n)
        keep &= shapely.distance(points, built) > np.maximum(radius - overhang, 0.4)
    hue = rng.normal(0, 0.45, n) + rng.normal(0, 0.2)
    for k in np.flatnonzero(keep):
        kind = "round"
        if rng.random() < style.palm_share and radius[k] > 1.2:
            kind = "palm" if rng.random() < 0.55 else "banana"
        size = float(radius[k]) if kind != "banana" else min(float(radius[k]), 2.2)
        draft.block.trees.append(
            Tree(
                float(x[k]),
                float(y[k]),
                size,
                kind,
                float(np.clip(rng.normal(1, 0.12), 0.7, 1.35)),
                float(np.clip(hue[k], -1, 1)),
                draft.key(),
            )
        )


def _plant_verges(draft: _Draft, urban: float) -> None:
    """Plant a hedge or a row of trees along an edge of the block now and then."""
    rng = draft.rng
    if rng.random() > 0.5 or urban > 0.7:
        return
    strip = draft.land - draft.land.buffer(-2.5)
    if not strip.is_empty:
        _plant(draft, strip, 0.010, (0.7, 2.6))


_BODY = ((0.88, 0.88, 0.88), (0.62, 0.63, 0.65), (0.18, 0.18, 0.2), (0.62, 0.14, 0.13))
_MORE = ((0.17, 0.28, 0.5), (0.8, 0.66, 0.2), (0.75, 0.74, 0.7))


def _car(x: float, y: float, angle: float, rng: np.random.Generator) -> Car:
    """Draw a car, or a lorry now and then."""
    colours = _BODY + _MORE
    colour = colours[int(rng.choice(len(colours), p=[0.34, 0.2, 0.13, 0.1, 0.1, 0.05, 0.08]))]
    length = float(rng.uniform(3.4, 4.6) if rng.random() < 0.85 else rng.uniform(5.5, 8.5))
    return Car(x, y, angle, length, colour)


def _park_in(draft: _Draft, ground: shapely.Polygon) -> None:
    """Park a car somewhere on a piece of ground, clear of houses."""
    rng = draft.rng
    if ground.is_empty:
        return
    x0, y0, x1, y1 = ground.bounds
    for _ in range(6):
        x, y = float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1))
        spot = shapely.Point(x, y).buffer(2.4)
        if ground.contains(spot):
            draft.block.cars.append(_car(x, y, float(rng.uniform(0, np.pi)), rng))
            return


def _park_on_streets(rng: np.random.Generator, block: Block, urban: float) -> None:
    """Put traffic on the block's own streets."""
    for street in block.streets:
        if street.half_width_m < 1.9 or street.surface == "path":
            continue
        for _ in range(int(rng.poisson(0.6 + 3.0 * max(0.0, min(urban, 1.0))))):
            k = int(rng.integers(0, len(street.line) - 1))
            start, step = street.line[k], street.line[k + 1] - street.line[k]
            angle = float(np.arctan2(step[1], step[0]))
            side = (street.half_width_m - 1.2) * (1 if rng.random() < 0.5 else -1)
            across = np.array([-np.sin(angle), np.cos(angle)])
            x, y = (start + rng.random() * step + side * across).tolist()
            block.cars.append(_car(x, y, angle + float(rng.normal(0, 0.05)), rng))
