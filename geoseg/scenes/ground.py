"""Paint what lies flat: soil, grass, streets, yards, gardens and fields."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from geoseg.records import FloatArray
from geoseg.scenes.canvas import Canvas, bands, mix, ramp, signed_distance
from geoseg.scenes.layout import Plot
from geoseg.scenes.noise import Rect, field, grain, layered
from geoseg.scenes.streets import Street
from geoseg.scenes.style import Colour, Style


def paint_soil(canvas: Canvas, style: Style, seed: int) -> None:
    """Fill the canvas with bare ground, dry grass and green in patches of all sizes."""
    rect, gsd = canvas.rect, canvas.gsd_m
    wide = layered(rect, gsd, (47.0, 13.0, 4.1), seed * 53 + 1)
    fine = layered(rect, gsd, (1.3, 0.53, 0.24), seed * 53 + 2)
    speck = grain(rect, seed * 53 + 3)
    soil = np.float32(1.0) + 0.30 * (layered(rect, gsd, (21.0, 6.3), seed * 53 + 4) - 0.5)
    soil += 0.20 * (fine - 0.5) + 0.035 * speck
    canvas.colour[:] = bands(style.soil)
    canvas.colour *= soil
    plants = wide + 0.55 * (fine - 0.5) + 0.03 * speck
    edge = 1.0 - style.lushness
    dry = ramp(plants, edge - 0.12, edge + 0.06)
    tone = 0.74 + 0.5 * fine + 0.06 * speck
    straw = bands(style.straw) * tone
    canvas.colour[:] = mix(canvas.colour, straw, dry * np.float32(0.85))
    tone = 0.62 + 0.62 * fine + 0.10 * speck + 0.2 * (wide - 0.5)
    green = ramp(plants, edge + 0.02, edge + 0.28)
    grass = bands(style.grass) * tone
    canvas.colour[:] = mix(canvas.colour, grass, green * np.float32(0.92))
    bumps = fine * (0.05 + 0.35 * green)
    canvas.light[:] = canvas.relief_light(bumps)


def paint_street(canvas: Canvas, street: Street, style: Style) -> None:
    """Paint one street along its curve."""
    half = street.half_width_m
    rect = canvas.cover_ring(street.line, half + 2.0)
    if rect is None:
        return
    gsd = canvas.gsd_m
    distance, along = _distance_along(street, rect, gsd)
    rough = layered(rect, gsd, (2.7, 0.8), street.key)
    wobble = {"asphalt": 0.35, "paved": 0.25}.get(street.surface, 1.5)
    outer = distance + wobble * (rough - 0.5)
    soft = 0.35 if street.surface in ("asphalt", "paved") else 0.9
    alpha = 1 - ramp(outer, half - soft / 2, half + soft / 2)
    # dust and trodden ground beside the street
    verge = (1 - ramp(outer, half, half + 1.7)) * np.float32(0.6)
    dust = bands(style.dirt) * np.float32(0.96)
    canvas.blend(rect, verge, dust)
    tone = 1 + 0.16 * (rough - 0.5) + 0.025 * grain(rect, street.key + 3)
    tone += 0.12 * (layered(rect, gsd, (9.0, 3.1), street.key + 5) - 0.5)
    base = style.asphalt if street.surface in ("asphalt", "paved") else style.dirt
    colour = bands(base) * tone
    if street.surface == "asphalt":
        # dust gathers at the sides
        colour = mix(colour, style.dirt, ramp(outer, 0.45 * half, half) * np.float32(0.55))
        dashes = (distance < 0.09) & (np.mod(along, 6.0) < 2.6) & (rough > 0.38)
        if half > 3.4:
            colour = mix(colour, (0.8, 0.8, 0.78), dashes.astype(np.float32) * np.float32(0.6))
    elif street.surface == "dirt":
        wheels = 1 - ramp(np.abs(distance - 0.85), 0.15, 0.6)
        colour *= 1 + 0.07 * wheels
        # grass grows between the wheels where few drive
        middle = (1 - ramp(distance, 0.2, 0.7)) * ramp(rough, 0.5, 0.8) * np.float32(0.5)
        colour = mix(colour, style.straw, middle)
    canvas.blend(rect, alpha, colour)


def _distance_along(street: Street, rect: Rect, gsd_m: float) -> tuple[FloatArray, FloatArray]:
    """Return distance to a street's middle line and the way along it, metres, (h, w) each."""
    x = (rect.columns_m(gsd_m) - street.line[0, 0]).astype(np.float32)
    y = (rect.rows_m(gsd_m) - street.line[0, 1]).astype(np.float32)
    points = (street.line - street.line[0]).astype(np.float32)
    best = np.full((rect.height, rect.width), np.inf, np.float32)
    along = np.zeros_like(best)
    way = np.float32(0)
    for (ax, ay), (bx, by) in pairwise(points):
        ex, ey = bx - ax, by - ay
        length = np.hypot(ex, ey)
        t = ((x - ax) * ex + (y - ay) * ey) / (length * length)
        np.clip(t, 0, 1, out=t)
        d2 = (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2
        nearer = d2 < best
        best = np.where(nearer, d2, best)
        along = np.where(nearer, way + t * length, along)
        way += length
    return np.sqrt(best), along


class _Ground(NamedTuple):
    """What every way of painting a plot needs."""

    canvas: Canvas
    rect: Rect
    plot: Plot
    style: Style
    distance: FloatArray
    """(h, w) to the outline, negative inside, metres."""
    fine: FloatArray
    """(h, w) noise of 1.7, 0.61 and 0.23 m."""
    speck: FloatArray
    """(h, w) noise per pixel, deviation 1."""


def paint_plot(canvas: Canvas, plot: Plot, style: Style) -> None:
    """Paint one piece of ground and the wall around it."""
    rect = canvas.cover_ring(plot.ring)
    if rect is None:
        return
    gsd = canvas.gsd_m
    distance, _ = signed_distance(plot.ring, rect.columns_m(gsd), rect.rows_m(gsd))
    fine = layered(rect, gsd, (1.7, 0.61, 0.23), plot.key)
    ragged = 0.15 if plot.use == "paved" else 1.4
    alpha = 1 - ramp(distance + ragged * (fine - 0.2), -0.3, 0.3)
    ground = _Ground(canvas, rect, plot, style, distance, fine, grain(rect, plot.key + 1))
    if plot.use in ("furrow", "crop", "beds", "stubble"):
        colour, light = _field_rows(ground)
        canvas.blend(rect, alpha, colour, light=light)
    elif plot.use in ("scrub", "grove", "lawn"):
        _paint_green(ground, alpha)
    else:
        _paint_bare(ground, alpha)
    if plot.wall is not None:
        _paint_wall(ground, plot.wall)


def _paint_wall(ground: _Ground, tint: Colour) -> None:
    """Draw the wall along a plot's edge, with gaps."""
    canvas, rect = ground.canvas, ground.rect
    gaps = field(rect, canvas.gsd_m, 5.0, ground.plot.key + 9) < 0.8
    ring = 1 - ramp(np.abs(ground.distance + 0.3), 0.06, 0.2)
    tone = 1 + 0.3 * (ground.fine - 0.5)
    canvas.blend(rect, ring * gaps, bands(tint) * tone, height=1.7)


def _paint_bare(ground: _Ground, alpha: FloatArray) -> None:
    """Paint trodden soil, or concrete slabs; weeds and litter come through."""
    canvas, rect, plot, style, distance, fine, speck = ground
    gsd = canvas.gsd_m
    patches = layered(rect, gsd, (11.0, 3.7), plot.key + 2)
    tone = plot.tone * (1 + 0.30 * (patches - 0.5) + 0.20 * (fine - 0.5) + 0.035 * speck)
    # nobody treads along the fence: weeds grow there first
    fence = 0.35 * ramp(distance, -2.2, -0.2)
    if plot.use == "paved":
        base: Colour = (0.57, 0.55, 0.52)
        weeds = ramp(patches + 0.4 * (fine - 0.5) + 0.5 * fence, 0.78, 1.0)
        tone -= 0.12 * ramp(layered(rect, gsd, (2.3, 0.7), plot.key + 3), 0.6, 0.9)
    else:
        base = style.soil
        weeds = ramp(
            patches + 0.6 * (fine - 0.5) + 0.05 * speck + fence,
            1.12 - style.lushness,
            1.58 - style.lushness,
        )
    colour = bands(base) * tone
    litter = field(rect, gsd, 0.42, plot.key + 4)
    bright = ramp(litter, 0.93, 0.99) * np.float32(0.6)
    colour = mix(colour, (0.85, 0.85, 0.83), bright)
    dark = ramp(-litter, -0.08, -0.03) * np.float32(0.5)
    colour = mix(colour, (0.2, 0.2, 0.2), dark)
    weed = bands(style.grass) * (0.6 + 0.5 * fine + 0.08 * speck)
    colour = mix(colour, weed, weeds * np.float32(0.8))
    canvas.blend(rect, alpha, colour, light=canvas.relief_light(fine * weeds * np.float32(0.22)))


def _paint_green(ground: _Ground, alpha: FloatArray) -> None:
    """Paint grass, or weeds and low bushes."""
    canvas, rect, plot, style, _, fine, speck = ground
    gsd = canvas.gsd_m
    patches = layered(rect, gsd, (9.0, 2.9), plot.key + 2)
    if plot.use == "lawn":
        share = 0.25 + 0.75 * ramp(patches, 0.25, 0.65)
        tone = plot.tone * (0.8 + 0.34 * fine + 0.3 * (patches - 0.5) + 0.08 * speck)
        bump = np.float32(0.12)
        base = bands(style.grass)
    else:
        share = ramp(patches + 0.5 * (fine - 0.5), 0.28, 0.58)
        tone = plot.tone * (0.55 + 0.62 * fine + 0.3 * (patches - 0.5) + 0.12 * speck)
        bump = np.float32(0.6)
        base = 0.5 * (bands(style.grass) + bands(style.crown))
    dry = ramp(layered(rect, gsd, (6.1, 1.9), plot.key + 3), 0.55, 0.95) * np.float32(0.7)
    colour = mix(bands(base) * tone, style.straw, dry)
    light = canvas.relief_light(fine * bump)
    canvas.blend(rect, alpha * share * np.float32(0.95), colour, light=light)


def _field_rows(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    """Return colour and light of furrows, crops in rows, vegetable beds or stubble."""
    canvas, rect, plot, style, _, fine, speck = ground
    gsd = canvas.gsd_m
    wander = layered(rect, gsd, (14.0, 5.0), plot.key + 6)
    c, s = np.cos(plot.angle), np.sin(plot.angle)
    x = rect.columns_m(gsd) - plot.ring[0, 0]
    y = rect.rows_m(gsd) - plot.ring[0, 1]
    across = (x * c + y * s).astype(np.float32) + 1.3 * (wander - 0.5) + 0.25 * (fine - 0.5)
    along = (y * c - x * s).astype(np.float32) + 1.1 * (wander - 0.5)
    pitch = 0.42 + 0.6 * ((plot.key % 97) / 97) + (0.8 if plot.use == "beds" else 0.0)
    wave = np.cos(across * np.float32(2 * np.pi / pitch))
    soil = bands(style.soil) * np.float32(0.9 * plot.tone)
    tone = 1 + 0.30 * (wander - 0.5) + 0.18 * (fine - 0.5) + 0.04 * speck
    earth = soil * tone
    relief = 0.02 * wave + 0.09 * fine
    if plot.use == "furrow":
        return earth * (1 + 0.04 * wave), canvas.relief_light(relief)
    if plot.use == "stubble":
        straw = bands(style.straw) * np.float32(plot.tone)
        tone = 0.86 + 0.26 * fine + 0.05 * wave + 0.3 * (wander - 0.5) + 0.07 * speck
        return mix(straw * tone, earth, ramp(wander, 0.62, 0.95)), canvas.relief_light(0.6 * relief)
    leaf = bands(style.grass) * np.float32(plot.tone)
    leaf = leaf * (0.62 + 0.55 * fine + 0.25 * (wander - 0.5) + 0.09 * speck)
    full = ramp(wander, 0.1, 0.5) if plot.use == "crop" else np.float32(1.0)
    # young rows show the soil, grown ones close
    closed = 1.1 * ((plot.key % 89) / 89)
    rows = ramp(wave + 1.3 * (fine - 0.5), -0.6 - closed, 0.5 - closed)
    if plot.use == "beds":
        # beds end at small cross paths
        rows = rows * ramp(np.cos(along * np.float32(2 * np.pi / (2.6 * pitch))), -0.95, -0.7)
        full = ramp(field(rect, gsd, 4.5, plot.key + 8), 0.1, 0.55)
    return mix(earth, leaf, rows * full), canvas.relief_light(0.16 * rows * full + 0.22 * fine)
