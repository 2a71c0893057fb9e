"""Paint houses: roof planes with light, sheets, tiles, rust, parapets and what stands on them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from geoseg.records import FloatArray, IntArray
from geoseg.scenes.canvas import Canvas, bands, mix, ramp, signed_distance
from geoseg.scenes.houses import Fixture, Frame, House, Wing
from geoseg.scenes.noise import Rect, grain, layered, uniform
from geoseg.scenes.style import Colour

_RUST = bands((0.43, 0.29, 0.21))


def paint_house(canvas: Canvas, house: House) -> None:
    """Paint one house and mark its footprint."""
    rect = canvas.cover_ring(house.ring)
    if rect is None:
        return
    gsd = canvas.gsd_m
    distance, inside = signed_distance(house.ring, rect.columns_m(gsd), rect.rows_m(gsd))
    alpha = np.clip(0.5 - distance * np.float32(1 / gsd), 0, 1)
    here, there = canvas.overlap(rect)
    canvas.built[here] |= inside[there]
    u, v = _frame_axes(rect, gsd, house.frame)
    if house.roof == "flat":
        _paint_flat(canvas, rect, house, alpha, distance)
        for fixture in house.fixtures:
            _paint_fixture(canvas, rect, house, fixture, (u, v))
        return
    rise, plane = _roof_planes(house, u, v)
    light = _plane_lights(canvas, house)[plane]
    across_u = plane >= 2
    along, down = np.where(across_u, v, u), np.where(across_u, u, v)
    if house.cover.material == "tile":
        colour = _tiles(rect, gsd, house, down)
    else:
        added = _added_part(house, u)
        colour = _sheets(rect, gsd, house, _Sheeting(along, down, plane, added))
        rise = rise + np.float32(0.4) * added
    # the light line of the ridge cap and the dark one of the eaves
    top = float(rise.max())
    if house.roof != "shed":
        colour *= 1 + 0.10 * ramp(rise, top - 0.26 * house.pitch, top - 0.08 * house.pitch)
    colour *= 1 - 0.14 * ramp(distance, -0.22, -0.02)
    canvas.blend(rect, alpha, colour, light=light, height=house.eaves_m + rise)


def _added_part(house: House, u: FloatArray) -> FloatArray:
    """Return 1 where a tin roof was extended later, in another colour and a little higher."""
    if house.key % 10 > 2:
        return np.zeros_like(u)
    cut = house.frame.half_u * (0.7 * ((house.key % 41) / 41) - 0.1)
    return (u > np.float32(cut)).astype(np.float32)


def _frame_axes(rect: Rect, gsd_m: float, frame: Frame) -> tuple[FloatArray, FloatArray]:
    """Return the house's own coordinates of the pixel centres, (h, w) each."""
    x, y = rect.columns_m(gsd_m) - frame.x, rect.rows_m(gsd_m) - frame.y
    c, s = np.cos(frame.angle), np.sin(frame.angle)
    u = (x * c + y * s).astype(np.float32)
    v = (y * c - x * s).astype(np.float32)
    return u, v


def _wing_planes(
    wing: Wing, hipped: bool, pitch: float, u: FloatArray, v: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return rise and plane of one wing: planes 0, 1 fall to -v, +v and 2, 3 to -u, +u."""
    cu, cv, half_u, half_v = (np.float32(w) for w in wing)
    to_u, to_v = half_u - np.abs(u - cu), half_v - np.abs(v - cv)
    plane_v = (v > cv).astype(np.int64)
    plane_u = 2 + (u > cu).astype(np.int64)
    if hipped:
        steep = to_u < to_v
        plane, rise = np.where(steep, plane_u, plane_v), np.minimum(to_u, to_v)
    elif half_u >= half_v:
        plane, rise = plane_v, to_v
    else:
        plane, rise = plane_u, to_u
    off = (to_u < -0.2) | (to_v < -0.2)
    return np.where(off, np.float32(-1), rise * np.float32(pitch)), plane


def _roof_planes(house: House, u: FloatArray, v: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return how far each pixel's roof lies above the eaves, and on which plane it is."""
    if house.roof == "shed":
        rise = (v + np.float32(house.frame.half_v)) * np.float32(house.pitch)
        return np.maximum(rise, 0), np.zeros(u.shape, np.int64)
    rise, plane = _wing_planes(house.wings[0], house.hipped, house.pitch, u, v)
    for wing in house.wings[1:]:
        other, its_plane = _wing_planes(wing, house.hipped, house.pitch, u, v)
        higher = other > rise
        rise, plane = np.where(higher, other, rise), np.where(higher, its_plane, plane)
    return np.maximum(rise, 0), plane


def _plane_lights(canvas: Canvas, house: House) -> FloatArray:
    """Return the direct light on the four roof planes."""
    c, s = np.cos(house.frame.angle), np.sin(house.frame.angle)
    p = house.pitch
    # plane 0 falls to -v: it rises with v
    slopes = ((0, p), (0, -p), (p, 0), (-p, 0))
    return np.array(
        [canvas.plane_light(a * c - b * s, a * s + b * c) for a, b in slopes], np.float32
    )


class _Sheeting(NamedTuple):
    """How the sheets of a tin roof lie, per pixel."""

    along: FloatArray
    """Metres along the eaves."""
    down: FloatArray
    """Metres down the slope."""
    plane: IntArray
    """Which roof plane."""
    added: FloatArray
    """1 where the house's second colour lies."""


def _sheets(rect: Rect, gsd_m: float, house: House, sheeting: _Sheeting) -> FloatArray:
    """Return the colour of corrugated tin: sheets of uneven age, rust, faint ribs."""
    along, down, plane, added = sheeting
    wide = 0.8 + 0.3 * ((house.key % 31) / 31)
    strip = np.floor(along / np.float32(wide)).astype(np.int64)
    row = np.floor(down / np.float32(2.7)).astype(np.int64) + 64 * plane
    age = uniform(strip, row, house.key)
    band = uniform(strip, plane, house.key + 1)
    stain = layered(rect, gsd_m, (2.9, 1.1, 0.45, 0.21), house.key + 2)
    worn = 0.6 + 1.0 * ((house.key % 37) / 37)
    tone = 1 + worn * (0.13 * (age - 0.5) + 0.12 * (band - 0.5) + 0.16 * (stain - 0.5))
    tone += 0.05 * np.cos(along * np.float32(2 * np.pi / 0.41))
    tone += 0.015 * grain(rect, house.key + 3)
    # dirt washes down in streaks
    streak = uniform(np.floor(along / np.float32(0.28)).astype(np.int64), plane, house.key + 5)
    tone -= 0.10 * worn * ramp(streak, 0.75, 1.0) * stain
    seam = np.abs(along / np.float32(wide) - strip - np.float32(0.5)) > 0.44
    tone -= 0.07 * seam
    base = bands(house.cover.colour)
    if house.key % 5 == 0:
        # single sheets were replaced
        added = np.maximum(added, (age > 0.88).astype(np.float32) * np.float32(0.8))
    colour = mix(base, house.second, added) * tone
    level = stain + 0.55 * (age - 0.5) + 0.3 * (band - 0.5)
    edge = 1.05 - house.rust
    rust = ramp(level, edge - 0.2, edge + 0.3) * np.float32(min(0.85, 0.3 + house.rust))
    return mix(colour, _RUST * (0.75 + 0.5 * stain), rust)


def _tiles(rect: Rect, gsd_m: float, house: House, down: FloatArray) -> FloatArray:
    """Return the colour of tiles in courses, some of them dark with moss."""
    stain = layered(rect, gsd_m, (2.6, 0.6, 0.25), house.key + 2)
    tone = 1 + 0.16 * (stain - 0.5) + 0.03 * grain(rect, house.key + 3)
    tone += 0.045 * np.cos(down * np.float32(2 * np.pi / 0.37))
    colour = bands(house.cover.colour) * tone
    moss = ramp(stain, 0.7, 1.0) * np.float32(0.1 + 0.4 * ((house.key % 17) / 17))
    return mix(colour, (0.25, 0.24, 0.2), moss)


def _paint_flat(
    canvas: Canvas, rect: Rect, house: House, alpha: FloatArray, distance: FloatArray
) -> None:
    """Paint a flat roof of concrete with stains, and its parapet."""
    gsd = canvas.gsd_m
    stain = layered(rect, gsd, (4.7, 1.5, 0.5), house.key + 2)
    wet = layered(rect, gsd, (3.7, 1.3, 0.5, 0.22), house.key + 4)
    tone = 1 + 0.22 * (stain - 0.5) + 0.02 * grain(rect, house.key + 3)
    tone -= 0.34 * ramp(wet, 0.5, 1.0)
    colour = bands(house.cover.colour) * tone
    height = np.full(distance.shape, house.eaves_m, np.float32)
    has_parapet = house.key % 8 != 0
    if has_parapet:
        # dirt gathers along the foot of the parapet
        colour *= 1 - 0.16 * ramp(distance, -1.1, -0.3)
        wide = 0.2 + 0.18 * ((house.key % 13) / 13)
        on_top = ramp(distance, -wide - gsd / 2, -wide + gsd / 2)
        cap = bands(house.second) * (1 + 0.14 * (stain - 0.5))
        colour = colour + (cap - colour) * on_top
        height += np.float32(0.5 + 0.5 * ((house.key % 7) / 7)) * on_top
    canvas.blend(rect, alpha, colour, height=height)


def _paint_fixture(
    canvas: Canvas,
    rect: Rect,
    house: House,
    fixture: Fixture,
    axes: tuple[FloatArray, FloatArray],
) -> None:
    """Paint one thing that stands on a flat roof."""
    du, dv = axes[0] - np.float32(fixture.u), axes[1] - np.float32(fixture.v)
    pixel = np.float32(1 / canvas.gsd_m)
    height = np.float32(house.eaves_m + fixture.height_m)
    colour: FloatArray | Colour = fixture.colour
    light = np.float32(1.0)
    if fixture.kind == "disc":
        far = np.hypot(du, dv)
        alpha = np.clip(0.5 + (np.float32(fixture.half_u) - far) * pixel, 0, 1)
        # a paler lid in the middle
        lid = ramp(-far, -0.55 * fixture.half_u, -0.3 * fixture.half_u) * np.float32(0.3)
        base = bands(fixture.colour)
        colour = mix(base, (0.6, 0.6, 0.6), lid)
    else:
        gap = np.minimum(fixture.half_u - np.abs(du), fixture.half_v - np.abs(dv))
        alpha = np.clip(0.5 + gap.astype(np.float32) * pixel, 0, 1)
        if fixture.kind == "sheet":
            plane = np.zeros(du.shape, np.int64)
            colour = _sheets(
                rect,
                canvas.gsd_m,
                _covered(house, fixture),
                _Sheeting(du, dv, plane, np.zeros_like(du)),
            )
            c, s = np.cos(house.frame.angle), np.sin(house.frame.angle)
            light = np.float32(canvas.plane_light(-0.12 * s, 0.12 * c))
    canvas.blend(rect, alpha, colour, light=light, height=height)


def _covered(house: House, fixture: Fixture) -> House:
    """Return the house as if its cover were the shelter's."""
    cover = replace(house.cover, material="tin", colour=fixture.colour)
    return replace(
        house, cover=cover, rust=0.2 * ((house.key % 11) / 11), fixtures=(), key=house.key + 17
    )
