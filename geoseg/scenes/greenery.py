"""Paint trees and cars: small things with height, drawn over the rest."""

from __future__ import annotations

import numpy as np

from geoseg.records import FloatArray
from geoseg.scenes.canvas import Canvas, bands, mix, ramp
from geoseg.scenes.layout import Car, Tree
from geoseg.scenes.noise import Rect, field, grain, layered, uniform
from geoseg.scenes.style import Style


def paint_tree(canvas: Canvas, tree: Tree, style: Style) -> None:
    """Paint one tree, lit from the sun's side; its height casts the shadow later."""
    reach = 1.3 * tree.radius_m
    rect = canvas.cover(tree.x - reach, tree.y - reach, tree.x + reach, tree.y + reach)
    if rect is None:
        return
    if tree.kind == "round":
        _paint_crown(canvas, rect, tree, style)
    else:
        _paint_fronds(canvas, rect, tree, style)


def _leaf_colour(tree: Tree, style: Style) -> FloatArray:
    """Return the mean colour of a tree's leaves, (3, 1, 1)."""
    crown, grass = bands(style.crown), bands(style.grass)
    shift = np.float32(max(tree.hue, 0.0))
    leaf = crown + (grass - crown) * shift
    return leaf * np.float32(tree.tone * (1 + 0.25 * min(tree.hue, 0.0)))


def _paint_crown(canvas: Canvas, rect: Rect, tree: Tree, style: Style) -> None:
    """Paint a broad-leaved crown: a dome of clumps."""
    gsd, r = canvas.gsd_m, tree.radius_m
    dx = (rect.columns_m(gsd) - tree.x).astype(np.float32)
    dy = (rect.rows_m(gsd) - tree.y).astype(np.float32)
    far = np.sqrt(dx * dx + dy * dy) * np.float32(1 / r)
    clumps = layered(rect, gsd, (max(0.42 * r, 0.5), 0.55, 0.27), tree.key)
    lobes = field(rect, gsd, max(0.8 * r, 0.7), tree.key + 1)
    edge = 0.9 + 0.6 * (lobes - 0.5) + 0.4 * (clumps - 0.5)
    alpha = ramp((edge - far) * np.float32(r), -0.12, 0.16)
    dome = np.sqrt(np.clip(1.05 - far * far, 0, 1))
    tall = 0.9 + 1.35 * r
    bumps = np.float32(0.55 * r) * dome + np.float32(0.25 + 0.16 * r) * clumps
    light = canvas.relief_light(bumps, 0.75)
    deep = ramp(clumps, 0.12, 0.62)
    tone = 0.52 + 0.7 * deep + 0.11 * grain(rect, tree.key + 2)
    colour = _leaf_colour(tree, style) * tone
    height = np.float32(tall) * (0.45 + 0.4 * dome) + bumps * 0.5
    canvas.blend(rect, alpha, colour, light=light, height=height)


def _paint_fronds(canvas: Canvas, rect: Rect, tree: Tree, style: Style) -> None:
    """Paint a palm or a banana: leaves like the rays of a star."""
    gsd, r = canvas.gsd_m, tree.radius_m
    dx = (rect.columns_m(gsd) - tree.x).astype(np.float32)
    dy = (rect.rows_m(gsd) - tree.y).astype(np.float32)
    far = np.sqrt(dx * dx + dy * dy) * np.float32(1 / r)
    palm = tree.kind == "palm"
    count = (11 if palm else 7) + tree.key % 4
    turn = np.arctan2(dy, dx) / np.float32(2 * np.pi) + np.float32((tree.key % 101) / 101)
    ray = turn * np.float32(count) + np.float32(0.35 if palm else 0.15) * far
    number = np.floor(ray).astype(np.int64)
    own = uniform(np.mod(number, count), 0, tree.key)
    aside = np.abs(ray - number - np.float32(0.5)) * 2
    length = 0.66 + 0.34 * own
    width = (0.9 - 0.55 * far / length) if palm else (0.98 - 0.5 * (far / length) ** 2)
    torn = 0.3 * (field(rect, gsd, 0.3, tree.key + 1) - 0.5)
    alpha = ramp(width - aside + torn, -0.12, 0.18) * (1 - ramp(far, 0.94, 1.04))
    alpha *= 1 - ramp(far - length, -0.05, 0.08)
    tone = 0.72 + 0.5 * own - 0.25 * aside + 0.06 * grain(rect, tree.key + 2)
    leaf = _leaf_colour(tree, style) * np.float32(1.1)
    colour = leaf * tone
    # old fronds are straw-coloured
    colour = mix(colour, style.straw, (own < 0.12).astype(np.float32) * np.float32(0.5))
    tall = 7.0 if palm else 2.6
    height = np.float32(tall) * (1 - 0.25 * far * far)
    canvas.blend(rect, alpha, colour, light=np.float32(1.05), height=height)


def paint_car(canvas: Canvas, car: Car) -> None:
    """Paint one vehicle: body, windscreens, roof."""
    half_u = car.length_m / 2
    half_v = 0.88 if car.length_m < 5 else 1.2
    reach = half_u + 0.3
    rect = canvas.cover(car.x - reach, car.y - reach, car.x + reach, car.y + reach)
    if rect is None:
        return
    gsd = canvas.gsd_m
    x, y = rect.columns_m(gsd) - car.x, rect.rows_m(gsd) - car.y
    c, s = np.cos(car.angle), np.sin(car.angle)
    u = (x * c + y * s).astype(np.float32)
    v = (y * c - x * s).astype(np.float32)
    corner = np.float32(0.3)
    qu = np.maximum(np.abs(u) - (np.float32(half_u) - corner), 0)
    qv = np.maximum(np.abs(v) - (np.float32(half_v) - corner), 0)
    distance = np.sqrt(qu * qu + qv * qv) - corner
    alpha = np.clip(0.5 - distance * np.float32(1 / gsd), 0, 1)
    body = bands(car.colour)
    if car.length_m < 5:
        inner = 1 - ramp(np.abs(v), half_v - 0.3, half_v - 0.12)
        front = (1 - ramp(np.abs(u - np.float32(0.17 * car.length_m)), 0.22, 0.4)) * inner
        rear = (1 - ramp(np.abs(u + np.float32(0.3 * car.length_m)), 0.12, 0.28)) * inner
        glass = np.maximum(front, rear) * np.float32(0.85)
        high = 1.4
    else:
        # a lorry's cab stands apart from its load
        glass = (1 - ramp(np.abs(u - np.float32(half_u - 1.7)), 0.05, 0.2)) * np.float32(0.8)
        high = 2.6
    canvas.blend(rect, alpha, mix(body, (0.1, 0.11, 0.13), glass), height=high)
