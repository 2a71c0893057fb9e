"""Paint any window of a town, with shadows and a camera's flaws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from geoseg.records import BoolArray, FloatArray
from geoseg.scenes.canvas import Canvas
from geoseg.scenes.greenery import paint_car, paint_tree
from geoseg.scenes.ground import paint_plot, paint_soil, paint_street
from geoseg.scenes.layout import Block, Town
from geoseg.scenes.noise import Rect, field, grain
from geoseg.scenes.roofs import paint_house
from geoseg.scenes.streets import Street, StreetNet
from geoseg.scenes.style import style_of

HIGHEST_M = 17.0
"""Nothing in a town is higher; bounds the length of shadows."""
_BLUR_PX = 5
_SURFACES = ("path", "dirt", "paved", "asphalt")


@dataclass(frozen=True)
class Painter:
    """Renders windows of one scene; any window gives the same pixels as any other."""

    seed: int
    """At least 0."""
    gsd_m: float
    """Pixel size, metres."""
    density: float = 1.0
    """As in :class:`~geoseg.scenes.streets.StreetNet`."""
    flight: int = 0
    """Another number, another day over the same town: other noise and uneven light."""

    @cached_property
    def town(self) -> Town:
        """The plan of the scene."""
        style = style_of(self.seed)
        return Town(StreetNet(self.seed, style, self.density), style)

    def paint(self, rect: Rect) -> tuple[npt.NDArray[np.uint8], BoolArray]:
        """Render a window.

        Parameters
        ----------
        rect : Rect
            Pixels of the raster frame; may lie anywhere.

        Returns
        -------
        pixels : ndarray
            (3, height, width) uint8 red, green, blue.
        built : ndarray
            (height, width) bool, True where the pixel's centre lies in a footprint.
        """
        reach = self._shadow_reach()
        # shadows come from the sun's side: the margin is as long as they are, there alone
        left, right = max(-reach[0], 0) + _BLUR_PX, max(reach[0], 0) + _BLUR_PX
        above, below = max(-reach[1], 0) + _BLUR_PX, max(reach[1], 0) + _BLUR_PX
        canvas = Canvas.blank(
            Rect(
                rect.x0 - left,
                rect.y0 - above,
                rect.width + left + right,
                rect.height + above + below,
            ),
            self.gsd_m,
            self.town.style.sun,
        )
        self._paint_things(canvas)
        y, x = above - _BLUR_PX, left - _BLUR_PX
        keep = (
            slice(y, y + rect.height + 2 * _BLUR_PX),
            slice(x, x + rect.width + 2 * _BLUR_PX),
        )
        lit = self._light(canvas, keep)
        inner = slice(_BLUR_PX, -_BLUR_PX)
        return self._expose(lit, rect), canvas.built[keep][inner, inner]

    def _shadow_reach(self) -> tuple[int, int]:
        """Return how many columns and rows towards the sun a shadow may start."""
        sx, sy, sz = self.town.style.sun
        length_px = HIGHEST_M / sz / self.gsd_m
        return round(sx * length_px), round(sy * length_px)

    def _paint_things(self, canvas: Canvas) -> None:
        """Paint ground, streets, cars, houses and trees, in this order."""
        style, r, g = self.town.style, canvas.rect, self.gsd_m
        crowns_m = 8.0
        blocks = self.town.blocks_in(
            (
                r.x0 * g - crowns_m,
                r.y0 * g - crowns_m,
                (r.x0 + r.width) * g + crowns_m,
                (r.y0 + r.height) * g + crowns_m,
            )
        )
        paint_soil(canvas, style, self.seed)
        for block in blocks:
            for plot in block.plots:
                paint_plot(canvas, plot, style)
        for street in _streets(blocks):
            paint_street(canvas, street, style)
        for block in blocks:
            for car in block.cars:
                paint_car(canvas, car)
        for block in blocks:
            for house in block.houses:
                paint_house(canvas, house)
        for block in blocks:
            for tree in block.trees:
                paint_tree(canvas, tree, style)

    def _light(self, canvas: Canvas, keep: tuple[slice, slice]) -> FloatArray:
        """Return the lit colours of a part of the canvas, (3, h, w)."""
        lit = canvas.light[keep] * (1 - self._shadow(canvas, keep))
        out = canvas.colour[:, keep[0], keep[1]]
        for band, shade in enumerate(self.town.style.shade):
            out[band] *= np.float32(shade) + np.float32(1 - shade) * lit
        return out

    def _shadow(self, canvas: Canvas, keep: tuple[slice, slice]) -> FloatArray:
        """Return how much of each pixel lies in shadow: walk towards the sun, look up."""
        rows, columns = keep
        high = canvas.height
        own = high[keep]
        reach = self._shadow_reach()
        steps = max(abs(reach[0]), abs(reach[1]), 1)
        tops = np.zeros_like(own)
        drop = np.float32(HIGHEST_M / steps)
        ray = np.empty_like(own)
        for k in range(1, steps + 1):
            dx, dy = round(reach[0] * k / steps), round(reach[1] * k / steps)
            source = high[rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]
            np.subtract(source, drop * np.float32(k), out=ray)
            np.maximum(tops, ray, out=tops)
        tops -= own
        tops -= np.float32(0.12)
        tops *= np.float32(1 / 0.35)
        return np.clip(tops, 0, 1)

    def _expose(self, lit: FloatArray, rect: Rect) -> npt.NDArray[np.uint8]:
        """Blur, sharpen, add noise and uneven light, and round; lit has the blur's margin."""
        style, inner = self.town.style, slice(_BLUR_PX, -_BLUR_PX)
        key = self.seed * 71 + self.flight * 7919
        uneven = 1 + 0.16 * (field(rect, self.gsd_m, 160.0, key + 5) - 0.5)
        noise = grain(rect, key + 6)
        # cameras sharpen brightness, and do it a little too much
        grey = lit.mean(axis=0)
        wide = gaussian_filter1d(grey, 1.2, axis=0, truncate=3.5)
        wide = gaussian_filter1d(wide, 1.2, axis=1, truncate=3.5)
        edges = (grey - wide)[inner, inner] * np.float32(style.sharpening)
        out = np.empty((3, rect.height, rect.width), np.uint8)
        for band in range(3):
            soft = gaussian_filter1d(lit[band], style.blur_px, axis=0, truncate=3.5)
            soft = gaussian_filter1d(soft, style.blur_px, axis=1, truncate=3.5)[inner, inner]
            soft = (soft + edges) * uneven
            # bright surfaces come close to white, dark ones keep their colour
            soft = np.maximum(soft, 0)
            soft *= np.float32(1.22) - np.float32(0.16) * soft
            own = grain(rect, key + 7 + band)
            soft += np.float32(style.grain) * (0.8 * noise + 0.6 * own)
            soft += np.float32(style.haze) * (1 - soft)
            out[band] = np.clip(soft * 255 + 0.5, 0, 255).astype(np.uint8)
        return out


def _streets(blocks: list[Block]) -> list[Street]:
    """Return the streets of blocks, the better ones last."""
    streets = [street for block in blocks for street in block.streets]
    return sorted(streets, key=lambda street: _SURFACES.index(street.surface))
