"""What makes one place look unlike another: soil, plants, roofs, sun and camera of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]
"""Red, green, blue as displayed, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Cover:
    """What a roof is covered with."""

    material: str
    """'tin', 'tile' or 'concrete'."""
    colour: Colour
    """Before weather."""
    rust: float
    """Share that rust may take, 0 to 1."""
    weight: float
    """How often it is chosen, relative to the others."""


@dataclass(frozen=True, slots=True)
class Style:
    """The look of one scene."""

    soil: Colour
    """Bare ground."""
    straw: Colour
    """Dry grass."""
    grass: Colour
    """Green grass."""
    crown: Colour
    """Leaves of trees."""
    asphalt: Colour
    """Paved streets."""
    dirt: Colour
    """Unpaved streets."""
    covers: tuple[Cover, ...]
    """Roof covers of houses."""
    flat_share: float
    """Share of flat concrete roofs in dense blocks, 0 to 1."""
    palm_share: float
    """Share of palms and bananas among trees, 0 to 1."""
    lushness: float
    """Share of the ground that plants cover, 0 to 1."""
    sun: tuple[float, float, float]
    """Unit vector to the sun: x right, y down the raster, z up."""
    shade: Colour
    """Light that is left in full shadow, per channel."""
    blur_px: float
    """Deviation of the camera's blur."""
    sharpening: float
    """How much of the edges the camera adds again."""
    grain: float
    """Deviation of the sensor's noise, share of full scale."""
    haze: float
    """Share of white mixed in, 0 to 1."""
    rotation: float
    """Direction of the streets, radians."""
    block_m: tuple[float, float]
    """Mean distance of streets along both directions, metres."""


_GREY = Cover("tin", (0.63, 0.65, 0.65), 0.35, 1.0)
_SILVER = Cover("tin", (0.79, 0.82, 0.83), 0.22, 1.0)
_RUSTY = Cover("tin", (0.52, 0.42, 0.37), 0.75, 1.0)
_BLUE = Cover("tin", (0.20, 0.42, 0.66), 0.12, 1.0)
_SKY = Cover("tin", (0.43, 0.63, 0.73), 0.18, 1.0)
_RED = Cover("tin", (0.64, 0.30, 0.27), 0.18, 1.0)
_MAROON = Cover("tin", (0.60, 0.27, 0.30), 0.16, 1.0)
_GREEN = Cover("tin", (0.27, 0.43, 0.35), 0.18, 1.0)
_TERRACOTTA = Cover("tile", (0.74, 0.46, 0.33), 0.0, 1.0)
_SLATE = Cover("tile", (0.40, 0.38, 0.38), 0.0, 1.0)
CONCRETE = Cover("concrete", (0.56, 0.54, 0.51), 0.0, 1.0)
"""Of flat roofs."""
_THATCH = Cover("tile", (0.52, 0.46, 0.37), 0.0, 1.0)


def _weighted(*pairs: tuple[Cover, float]) -> tuple[Cover, ...]:
    """Give each cover its weight."""
    return tuple(Cover(c.material, c.colour, c.rust, w) for c, w in pairs)


# Four kinds of places, after open drone imagery of Zanzibar, Nepal, Uganda and the Philippines:
# soil, straw, grass, crown, covers, share of flat roofs, share of palms, lushness
_PLACES: tuple[
    tuple[Colour, Colour, Colour, Colour, tuple[Cover, ...], float, float, float], ...
] = (
    (
        (0.72, 0.65, 0.53),
        (0.62, 0.59, 0.42),
        (0.43, 0.50, 0.28),
        (0.33, 0.43, 0.21),
        _weighted((_SILVER, 5), (_GREY, 3), (_RUSTY, 3), (_RED, 0.3), (_THATCH, 0.8)),
        0.25,
        0.35,
        0.62,
    ),
    (
        (0.57, 0.52, 0.45),
        (0.52, 0.49, 0.34),
        (0.36, 0.43, 0.23),
        (0.28, 0.36, 0.18),
        _weighted((_GREY, 4), (_BLUE, 3), (_RUSTY, 2), (_RED, 1.3), (CONCRETE, 4), (_SLATE, 0.7)),
        0.52,
        0.0,
        0.58,
    ),
    (
        (0.68, 0.47, 0.34),
        (0.60, 0.53, 0.34),
        (0.39, 0.47, 0.22),
        (0.30, 0.40, 0.17),
        _weighted((_TERRACOTTA, 4), (_MAROON, 3), (_RUSTY, 3), (_GREY, 1.5), (_GREEN, 0.7)),
        0.20,
        0.12,
        0.52,
    ),
    (
        (0.60, 0.54, 0.45),
        (0.52, 0.54, 0.32),
        (0.38, 0.52, 0.20),
        (0.32, 0.46, 0.17),
        _weighted((_SKY, 2.5), (_SILVER, 2.5), (_RED, 2), (_RUSTY, 2.5), (_GREEN, 1), (_GREY, 2)),
        0.20,
        0.45,
        0.70,
    ),
)


def _shifted(colour: Colour, rng: np.random.Generator, spread: float) -> Colour:
    """Move a colour a little: brighter or darker, warmer or cooler; other hues look wrong."""
    warm = np.array([1.0, 0.1, -1.0]) * rng.normal(0, spread / 3)
    moved = np.array(colour) * (1 + rng.normal(0, spread)) + warm
    r, g, b = np.clip(moved, 0.03, 0.95).tolist()
    return r, g, b


def style_of(seed: int) -> Style:
    """Draw the look of a scene.

    Parameters
    ----------
    seed : int
        At least 0. Four neighbouring seeds are four kinds of places.

    Returns
    -------
    Style
        Always the same for the same seed.
    """
    rng = np.random.default_rng([seed, 101])
    soil, straw, grass, crown, covers, flats, palms, lush = _PLACES[seed % len(_PLACES)]
    elevation = np.radians(rng.uniform(48, 68))
    azimuth = rng.uniform(0, 2 * np.pi)
    flat_ground = np.cos(elevation)
    # thin cloud or clear sky: how dark and how blue the shadows are
    dark = rng.uniform(0.36, 0.60)
    soil = _shifted(soil, rng, 0.06)
    dirt = _shifted((soil[0] * 1.06, soil[1] * 1.04, soil[2] * 1.02), rng, 0.03)
    return Style(
        soil=soil,
        straw=_shifted(straw, rng, 0.06),
        grass=_shifted(grass, rng, 0.06),
        crown=_shifted(crown, rng, 0.08),
        asphalt=_shifted((0.49, 0.475, 0.455), rng, 0.03),
        dirt=dirt,
        covers=covers,
        flat_share=flats,
        palm_share=palms,
        lushness=float(np.clip(lush + rng.normal(0, 0.06), 0.2, 0.85)),
        sun=(
            float(flat_ground * np.cos(azimuth)),
            float(flat_ground * np.sin(azimuth)),
            float(np.sin(elevation)),
        ),
        shade=(dark * 0.92, dark * 0.98, dark * 1.12),
        blur_px=float(rng.uniform(0.42, 0.7)),
        sharpening=float(rng.uniform(0.35, 0.9)),
        grain=float(rng.uniform(0.008, 0.018)),
        haze=float(rng.uniform(0.0, 0.07)),
        rotation=float(rng.uniform(0, np.pi / 2)),
        block_m=(float(rng.uniform(58, 78)), float(rng.uniform(66, 92))),
    )
