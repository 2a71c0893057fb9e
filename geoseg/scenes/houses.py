"""Houses: outline, roof, height, cover and what stands on the roof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import shapely

from geoseg.records import DoubleArray
from geoseg.scenes.style import CONCRETE, Colour, Cover, Style

Wing = tuple[float, float, float, float]
"""Centre (u, v) and half sizes (along u, along v) of a roof's rectangle, metres."""


class Frame(NamedTuple):
    """A house's own coordinates: u along its long side, v across."""

    x: float
    """Centre, metres."""
    y: float
    """Centre, metres, downwards."""
    angle: float
    """Direction of u, radians."""
    half_u: float
    """Half length, metres."""
    half_v: float
    """Half width, metres; at most half_u."""


@dataclass(frozen=True, slots=True)
class Fixture:
    """Something on a roof: a tank, a stair tower, a shelter, a panel."""

    kind: str
    """'disc', 'box' or 'sheet' (a tin shelter)."""
    u: float
    """Centre in the house's frame, metres."""
    v: float
    """Centre in the house's frame, metres."""
    half_u: float
    """Half length, or radius, metres."""
    half_v: float
    """Half width, metres."""
    height_m: float
    """Above the roof."""
    colour: Colour
    """Of its top."""


@dataclass(frozen=True, slots=True, eq=False)
class House:
    """One building."""

    ring: DoubleArray
    """(n, 2) outline of the roof, x, y in metres, open: the footprint."""
    polygon: shapely.Polygon
    """The same as a polygon."""
    frame: Frame
    """Its own coordinates."""
    roof: str
    """'flat', 'gable', 'hip', 'shed' or 'l_shaped'."""
    hipped: bool
    """True where the ends of a pitched roof slope too."""
    wings: tuple[Wing, ...]
    """Rectangles whose pitched roofs meet; one, or two for an L."""
    eaves_m: float
    """Height of the lowest roof edge."""
    pitch: float
    """Rise per metre; 0 for flat roofs."""
    cover: Cover
    """Material and colour."""
    second: Colour
    """Parapet of a flat roof, patches of a tin one."""
    rust: float
    """Share that rust or stains take."""
    fixtures: tuple[Fixture, ...]
    """What stands on it."""
    key: int
    """For its noise."""


def frame_of(shape: shapely.Polygon) -> Frame:
    """Return the frame of the smallest rectangle around a polygon."""
    box = shapely.get_coordinates(shapely.oriented_envelope(shape))
    if len(box) < 5:
        x, y = box.mean(axis=0).tolist()
        return Frame(x, y, 0.0, 0.1, 0.1)
    a, b = box[1] - box[0], box[2] - box[1]
    if np.hypot(*a) < np.hypot(*b):
        a, b = b, a
    x, y = box[:4].mean(axis=0).tolist()
    angle = float(np.arctan2(a[1], a[0]))
    return Frame(x, y, angle, float(np.hypot(*a)) / 2, float(np.hypot(*b)) / 2)


def _to_world(points: DoubleArray, frame: Frame) -> DoubleArray:
    """Map (n, 2) points from a house's frame to the raster's."""
    c, s = np.cos(frame.angle), np.sin(frame.angle)
    turn = np.array([[c, s], [-s, c]])
    out: DoubleArray = points @ turn + np.array([frame.x, frame.y])
    return out


def place_house(
    ground: shapely.Polygon,
    size_m2: tuple[float, float],
    style: Style,
    rng: np.random.Generator,
    *,
    simple: bool = False,
    slim: bool = False,
    turn: float = 0.02,
) -> House | None:
    """Put a rectangular or L-shaped house on a piece of ground.

    Parameters
    ----------
    ground : Polygon
        Where it must fit, metres.
    size_m2 : tuple of float
        Range of footprint areas.
    style : Style
        Look of the scene.
    rng : Generator
        Source of all choices.
    simple : bool
        A shed or shack: one plain roof.
    slim : bool
        A long building, up to five times as long as wide.
    turn : float
        Deviation of its direction from the plot's, radians.

    Returns
    -------
    House or None
        None if it fits nowhere.
    """
    if ground.is_empty or ground.geom_type != "Polygon" or ground.area < 8.0:
        return None
    land = frame_of(ground)
    size = rng.uniform(*size_m2)
    aspect = rng.uniform(2.2, 5.0) if slim else rng.uniform(1.0, 1.9)
    angle = land.angle + rng.normal(0, turn)
    if rng.random() < 0.2:
        angle += np.pi / 2
    x0, y0, x1, y1 = ground.bounds
    spots = [(land.x, land.y)]
    spots += zip(rng.uniform(x0, x1, 7).tolist(), rng.uniform(y0, y1, 7).tolist(), strict=True)
    if rng.random() < 0.6:
        spots = spots[1:] + spots[:1]
    cut = (rng.uniform(0.35, 0.6), rng.uniform(0.35, 0.6)) if _wants_l(size, simple, rng) else None
    shapely.prepare(ground)
    for shrink in (1.0, 0.88, 0.75):
        width = shrink * float(np.sqrt(size / aspect))
        for x, y in spots:
            frame = Frame(x, y, float(angle), width * float(aspect) / 2, width / 2)
            local, wings = _outline(frame, cut)
            ring = _to_world(local, frame)
            if width > 2.4 and ground.contains(shapely.Polygon(ring)):
                return _finish(ring, frame, wings, style, rng, dense=False, simple=simple)
    return None


def attach_annex(
    house: House, ground: shapely.Polygon, style: Style, rng: np.random.Generator
) -> list[House]:
    """Lean a low tin roof against the long straight side of a house, wall to wall.

    Returns
    -------
    list of House
        One house, or none where it would leave the ground.
    """
    old = house.frame
    half_u = old.half_u * float(rng.uniform(0.3, 1.0))
    half_v = float(rng.uniform(0.9, 1.7))
    at = np.array([[(old.half_u - half_u) * rng.choice([-1.0, 1.0]), -old.half_v - half_v]])
    x, y = _to_world(at, old)[0].tolist()
    frame = Frame(x, y, old.angle, half_u, half_v)
    local, wings = _outline(frame, None)
    ring = _to_world(local, frame)
    if not ground.contains(shapely.Polygon(ring)):
        return []
    annex = _finish(ring, frame, wings, style, rng, dense=False, simple=True)
    # its roof rises towards the house and ends under the eaves
    return [replace(annex, roof="shed", hipped=False, eaves_m=2.1, pitch=0.12)]


def _wants_l(size_m2: float, simple: bool, rng: np.random.Generator) -> bool:
    """Say whether a house gets an L-shaped outline."""
    return bool(not simple and size_m2 > 60 and rng.random() < 0.35)


def _outline(frame: Frame, cut: tuple[float, float] | None) -> tuple[DoubleArray, tuple[Wing, ...]]:
    """Return the outline in the house's frame and the rectangles of its roof."""
    a, b = frame.half_u, frame.half_v
    if cut is None:
        return np.array([(-a, -b), (a, -b), (a, b), (-a, b)]), ((0.0, 0.0, a, b),)
    # the corner (u > p, v > q) is missing
    p, q = a - 2 * a * cut[0], b - 2 * b * cut[1]
    ring = np.array([(-a, -b), (a, -b), (a, q), (p, q), (p, b), (-a, b)])
    long_wing = (0.0, (q - b) / 2, a, (q + b) / 2)
    side_wing = ((p - a) / 2, 0.0, (p + a) / 2, b)
    return ring, (long_wing, side_wing)


def design_house(
    body: shapely.Polygon, style: Style, rng: np.random.Generator, *, dense: bool
) -> House:
    """Make a house of any given outline, as in old towns where lots are built over.

    Parameters
    ----------
    body : Polygon
        Footprint without holes, metres.
    style : Style
        Look of the scene.
    rng : Generator
        Source of all choices.
    dense : bool
        Several storeys, more flat roofs.

    Returns
    -------
    House
        Its outline is exactly ``body``.
    """
    frame = frame_of(body)
    ring = shapely.get_coordinates(body.exterior)[:-1]
    wings: tuple[Wing, ...] = ((0.0, 0.0, frame.half_u, frame.half_v),)
    return _finish(ring, frame, wings, style, rng, dense=dense, simple=False)


def _pick_cover(style: Style, rng: np.random.Generator, simple: bool) -> Cover:
    """Choose a roof cover; sheds are of tin."""
    covers = [c for c in style.covers if c.material == "tin"] if simple else list(style.covers)
    weights = np.array([c.weight for c in covers])
    return covers[int(rng.choice(len(covers), p=weights / weights.sum()))]


def _vary(colour: Colour, rng: np.random.Generator, spread: float = 0.07) -> Colour:
    """Fade or darken a colour."""
    grey = sum(colour) / 3
    fade = rng.uniform(0, 0.45)
    tone = 1 + rng.normal(0, spread)
    r, g, b = (float(np.clip((c + fade * (grey - c)) * tone, 0.06, 0.95)) for c in colour)
    return r, g, b


def _finish(
    ring: DoubleArray,
    frame: Frame,
    wings: tuple[Wing, ...],
    style: Style,
    rng: np.random.Generator,
    *,
    dense: bool,
    simple: bool,
) -> House:
    """Choose roof, cover, height and fixtures for an outline."""
    cover = _pick_cover(style, rng, simple)
    if dense and rng.random() < style.flat_share:
        cover = CONCRETE
    flat = cover.material == "concrete"
    polygon = shapely.Polygon(ring)
    area = polygon.area
    roof, hipped = _pick_roof(cover.material, area, rng, simple=simple, wings=len(wings))
    storeys = (
        rng.choice(4, p=[0.25, 0.4, 0.27, 0.08]) + 1
        if dense
        else (rng.integers(1, 4) if flat else 1)
    )
    if simple or (area < 30 and not dense):
        storeys = 1
    pitch = {"flat": 0.0, "shed": float(rng.uniform(0.04, 0.16))}.get(
        roof, float(rng.uniform(0.2, 0.55))
    )
    base = _vary(cover.colour, rng, 0.15 if flat else 0.08)
    second = _vary((0.66, 0.63, 0.58), rng)
    if flat and rng.random() < 0.3:
        second = _vary(
            ((0.72, 0.36, 0.29), (0.75, 0.7, 0.6), (0.6, 0.5, 0.42))[rng.integers(3)], rng
        )
    elif not flat:
        second = _vary(style.covers[int(rng.integers(len(style.covers)))].colour, rng)
    fixtures: tuple[Fixture, ...] = ()
    if flat:
        fixtures = _furnish(frame, polygon, base, style, rng)
    return House(
        ring=ring,
        polygon=polygon,
        frame=frame,
        roof=roof,
        hipped=hipped,
        wings=wings,
        eaves_m=float(storeys) * 2.9 + float(rng.uniform(-0.4, 0.3)),
        pitch=pitch,
        cover=Cover(cover.material, base, cover.rust, 1.0),
        second=second,
        rust=float(np.clip(cover.rust * rng.uniform(0.0, 1.8), 0, 0.9)),
        fixtures=fixtures,
        key=int(rng.integers(1, 1 << 30)),
    )


def _pick_roof(
    material: str, area_m2: float, rng: np.random.Generator, *, simple: bool, wings: int
) -> tuple[str, bool]:
    """Choose the roof's shape and whether its ends slope."""
    if material == "concrete":
        return "flat", False
    hipped = bool(rng.random() < (0.55 if material == "tile" else 0.25))
    if wings == 2:
        return "l_shaped", hipped
    if rng.random() < (0.6 if simple else 0.15 if area_m2 < 120 else 0.05):
        return "shed", False
    return ("hip" if hipped else "gable"), hipped


_TANKS = ((0.09, 0.09, 0.10), (0.12, 0.13, 0.14), (0.78, 0.80, 0.82), (0.20, 0.40, 0.62))
_CLOTH = ((0.75, 0.25, 0.28), (0.25, 0.35, 0.65), (0.85, 0.83, 0.8), (0.8, 0.65, 0.2))


def _furnish(
    frame: Frame,
    polygon: shapely.Polygon,
    base: Colour,
    style: Style,
    rng: np.random.Generator,
) -> tuple[Fixture, ...]:
    """Put a stair tower, tanks, a shelter, panels and washing on a flat roof."""
    out: list[Fixture] = []
    room_u, room_v = frame.half_u - 0.9, frame.half_v - 0.9
    if min(room_u, room_v) < 0.8:
        return ()
    tin = [c for c in style.covers if c.material == "tin"]

    def add(kind: str, half_u: float, half_v: float, height: float, colour: Colour) -> None:
        """Add a fixture where it fits."""
        du, dv = max(room_u - half_u, 0.0), max(room_v - half_v, 0.0)
        # fixtures like the corners: it keeps the terrace free
        u = float(du * np.clip(rng.uniform(-1.6, 1.6), -1, 1))
        v = float(dv * np.clip(rng.uniform(-1.6, 1.6), -1, 1))
        corners = np.array([(u + a, v + b) for a in (-half_u, half_u) for b in (-half_v, half_v)])
        hull = shapely.MultiPoint(_to_world(corners, frame)).convex_hull
        if polygon.contains(hull):
            out.append(Fixture(kind, u, v, half_u, half_v, height, colour))

    if rng.random() < 0.45:
        colour = _vary(tin[int(rng.integers(len(tin)))].colour, rng)
        add("sheet", room_u * rng.uniform(0.3, 0.95), room_v * rng.uniform(0.4, 0.95), 2.3, colour)
    if rng.random() < 0.7:
        add("box", rng.uniform(1.2, 2.0), rng.uniform(1.0, 1.7), 2.5, _vary(base, rng, 0.12))
    for _ in range(int(rng.poisson(1.1))):
        radius = rng.uniform(0.45, 0.75)
        add("disc", radius, radius, 1.5, _TANKS[int(rng.integers(len(_TANKS)))])
    for _ in range(int(rng.poisson(0.3))):
        add("box", 1.0, 0.55, 0.35, (0.12, 0.15, 0.26))
    for _ in range(int(rng.poisson(1.5))):
        colour = _CLOTH[int(rng.integers(len(_CLOTH)))]
        add("box", rng.uniform(0.2, 1.0), rng.uniform(0.12, 0.5), 0.25, _vary(colour, rng, 0.2))
    for _ in range(int(rng.poisson(4.0))):
        grey = float(rng.uniform(0.15, 0.85))
        add("box", rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.4), 0.4, (grey, grey, grey * 0.94))
    return tuple(out)
