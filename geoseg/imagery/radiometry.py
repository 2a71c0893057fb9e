"""Whether a model can work on imagery as it is: how its pixels are scaled, and what is in the way.

One linear scale holds for a whole image and for all sheets of its kind in a run, never for a tile:
a tile of its own makes one roof bright here and dark there, and a seam of every edge. It is the
same for all bands, which keeps colours. No file is opened here; statistics come from
`geoseg.imagery.check.read_statistics`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.records import BoolArray, DoubleArray, RasterInfo

PROBABILITIES = (
    0, 0.001, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35,
    0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.96, 0.97, 0.975, 0.98,
    0.985, 0.99, 0.995, 0.999, 1,
)  # fmt: skip
"""Of `BandStatistics.quantiles`."""
LOW, HIGH = 0.02, 0.98
"""Percentiles that a scale is made of: hot pixels and glints decide nothing."""
MARGIN = 0.1
"""Share of the model's range that is left beyond each of them.

Bright roofs are among the brightest 2 % of many images; stretched to the ends they would be cut
off. In the images that the shipped model was trained on these percentiles lie at 0.04 to 0.17 and
0.62 to 0.98 of the range.
"""
FILL_SHARE = 0.01
"""From this share on, the smallest value is taken for ground without data that nobody declared."""
GROUP_FACTOR = 4.0
"""Images of one type get one scale, unless their brightness leaves a gap of more than this."""
FLAT = 1 / 16
"""Values that use less of a range than this are not meant for it: 12 bits in a type of 16."""
GSD_WARN, GSD_REFUSE = 2.0, 4.0
"""Factors from the model's pixel size; beyond the second a run is refused unless forced."""
DARK = 0.06
"""Half of the pixels below this share of the range, or above what it leaves, are worth a word."""
BLANK_SHARE = 0.99
"""Share of pixels at one end of the type from which an image shows nothing."""
END_SHARE = 0.5
"""The same share from which it is worth a word."""
BLUE_MARGIN = 0.04
"""Blue above red by this share of the spread: imagery of land is hardly ever so."""

BY_USER = "--scale"
"""How a scale is told that the user gave."""

_COLOURS = {
    "near infrared": re.compile(r"\bnir\d?\b|near[ _-]?infra|\binfra[ _-]?red\b"),
    "red edge": re.compile(r"red[ _-]?edge"),
    "red": re.compile(r"\bred\b"),
    "green": re.compile(r"\bgreen\b"),
    "blue": re.compile(r"\bblue\b"),
}
"""What a band may be called, the more telling first."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a model or detector wants of imagery: from its card, or what it says of itself."""

    model: str
    """Its name."""
    gsd_m: float | None
    """Ground metres per pixel; None: any."""
    bands: int
    """How many."""
    dtype: str | None = "uint8"
    """Pixel type; None: the raster's, or float32 where it is scaled."""
    value_range: tuple[float, float] | None = (0.0, 255.0)
    """Smallest and largest pixel value; None: any, pixels come as they are."""
    names: tuple[str, ...] = ()
    """What the bands are, in order; empty: not said."""


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """What the valid pixels of one band hold; None where there are none."""

    band: int
    """1-based."""
    min: float | None
    max: float | None
    mean: float | None
    invalid: float
    """Share of pixels that are nodata, masked or not finite."""
    low: float | None
    """Share of valid pixels at the smallest value of the type (0 of uint8); None for float."""
    high: float | None
    """Share of valid pixels at the largest value of the type (255 of uint8); None for float."""
    std: float | None = None
    """Standard deviation of the valid pixels."""
    quantiles: tuple[float, ...] = ()
    """Values below which the shares `PROBABILITIES` of the valid pixels without `fill` lie; empty
    without any."""
    fill: float = 0.0
    """Share of the valid pixels that hold the smallest value, where that seems to be ground without
    data that nobody declared."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """A linear map from an image's values to a model's, the same for all bands.

    None in the place of one: pixels come as they are.
    """

    low: float
    """Value of the image that becomes ``to_low``."""
    high: float
    """Value of the image that becomes ``to_high``; above ``low``."""
    to_low: float
    to_high: float
    value_range: tuple[float, float]
    """What lies beyond is cut off."""
    dtype: str
    """Numpy name of the type that comes out."""
    how: str = ""
    """Where the numbers are from, in words."""

    def apply(self, pixels: npt.NDArray[Any], valid: BoolArray) -> npt.NDArray[Any]:
        """Scale pixels.

        Parameters
        ----------
        pixels : ndarray (..., C, H, W)
            Of any real type.
        valid : ndarray (..., H, W)
            True = use this pixel.

        Returns
        -------
        ndarray (..., C, H, W)
            Of `dtype`, rounded where that is an integer; 0 where invalid.

        Examples
        --------
        >>> twelve_bits = Scaling(0, 4095, 0, 255, (0, 255), "uint8")
        >>> pixels = np.array([[[0, 2048, 4095, 9000]]], np.uint16)
        >>> twelve_bits.apply(pixels, np.array([[True, True, True, True]])).tolist()
        [[[0, 128, 255, 255]]]
        """
        gain = (self.to_high - self.to_low) / (self.high - self.low)
        # large values first lose their offset: float32 has 24 bits
        out = (pixels - np.float32(self.low)).astype(np.float32, copy=False)
        out *= np.float32(gain)
        out += np.float32(self.to_low)
        np.clip(out, *self.value_range, out=out)
        if np.dtype(self.dtype).kind in "iu":
            np.rint(out, out=out)
        scaled: npt.NDArray[Any] = out.astype(self.dtype)
        scaled *= valid[..., None, :, :]
        return scaled

    @property
    def keeps_values(self) -> bool:
        """Whether only the type changes, and what lies beyond the range."""
        return (self.low, self.high) == (self.to_low, self.to_high)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "from": [self.low, self.high],
            "to": [self.to_low, self.to_high],
            "range": list(self.value_range),
            "dtype": self.dtype,
            "how": self.how,
        }

    def __str__(self) -> str:
        return (
            f"{self.low:.6g} to {self.high:.6g} become {self.to_low:.4g} to {self.to_high:.4g} of "
            f"{self.value_range[0]:g} to {self.value_range[1]:g} ({self.how})"
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an image that a result may suffer from."""

    kind: str
    """'gsd', 'bands', 'colour', 'type', 'scaled', 'range', 'blank', 'nodata', 'flat' or 'small'."""
    says: str
    """What is wrong and what was expected; without the name of the image."""
    to_do: str = ""
    """What to do."""
    level: str = "warn"
    """'remark' (said by ``geoseg check`` alone), 'info', 'warn', or 'refuse': such a run is not
    begun unless it is forced."""

    @property
    def text(self) -> str:
        """Everything in a line."""
        return f"{self.says}; {self.to_do}" if self.to_do else self.says


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of an image before a run."""

    info: RasterInfo
    bands: tuple[int, ...]
    """1-based, as they will be read."""
    names: tuple[str, ...] = ()
    """What the file calls each of its bands: '' where it does not say; see `band_name`."""
    working_gsd_m: float | None = None
    """Metres per pixel that the model sees; None: the model's own."""
    bands_chosen: bool = False
    """The user named the bands."""
    statistics: tuple[BandStatistics, ...] = ()
    """One per band read; empty: not taken."""
    source: str = ""
    """What the statistics were taken from."""

    @property
    def seen(self) -> bool:
        """Whether statistics of valid pixels are there."""
        return any(band.quantiles for band in self.statistics)


def band_name(color: str, description: str | None) -> str:
    """Return what a band is, by its description or else its colour tag; '' if nothing says so.

    Examples
    --------
    >>> band_name("undefined", "B8 NIR"), band_name("red", None), band_name("gray", "band 1")
    ('near infrared', 'red', '')
    """
    for text in (description, color):
        for name, pattern in _COLOURS.items():
            if text and pattern.search(text.lower()):
                return name
    return ""


# -- quantiles --------------------------------------------------------------------------------


def quantile(bands: Sequence[BandStatistics], share: float, weights: Sequence[float] = ()) -> float:
    """Return the value below which a share of the pixels of several bands lies.

    Parameters
    ----------
    bands : sequence of BandStatistics
        At least one of them with quantiles.
    share : float
        0 to 1.
    weights : sequence of float
        One per band; by default all the same.
    """
    curves: list[tuple[DoubleArray, DoubleArray, float]] = []
    for number, band in enumerate(bands):
        if not band.quantiles:
            continue
        values, probabilities = np.asarray(band.quantiles), np.asarray(PROBABILITIES)
        # of equal values the last: how much lies at or below them
        last = np.r_[np.diff(values) > 0, True]
        curves.append((values[last], probabilities[last], weights[number] if len(weights) else 1.0))
    at = np.unique(np.concatenate([values for values, *_ in curves]))
    total = sum(weight for *_, weight in curves)
    below = sum(w * np.interp(at, v, p, left=0.0) for v, p, w in curves) / total
    return float(np.interp(share, below, at))


def without_fill(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
    """Leave out the smallest value where so many pixels hold it that it is no brightness.

    Parameters
    ----------
    values : ndarray (n,)
        Of one band; n at least 1.

    Returns
    -------
    values : ndarray (m,)
        All, or those above the smallest.
    share : float
        What was left out, of `FILL_SHARE` to `BLANK_SHARE`; else 0.

    Examples
    --------
    >>> without_fill(np.array([0, 0, 0, 7, 8, 9]))
    (array([7, 8, 9]), 0.5)
    """
    above = values > values.min()
    share = 1 - float(above.mean())
    return (values[above], share) if FILL_SHARE <= share < BLANK_SHARE else (values, 0.0)


def spread(bands: Sequence[BandStatistics]) -> float:
    """Return how far the percentiles `LOW` and `HIGH` of all bands lie apart."""
    return quantile(bands, HIGH) - quantile(bands, LOW)


def scale_text(scale: tuple[float, float] | str | None) -> str:
    """Return a user's scale as it was written; '' for none given."""
    if isinstance(scale, tuple):
        return f"{scale[0]:g},{scale[1]:g}"
    return scale or ""


# -- scaling ----------------------------------------------------------------------------------


def fits(bands: Sequence[BandStatistics], dtype: str, expected: Expectation) -> bool:
    """Tell whether values are those that a model knows.

    uint8 for a model of uint8 always is. Other values are if none (of floats: one in a thousand)
    lies outside the model's range and they use more of it than `FLAT`: 8 bits in a type of 16
    are, fractions from 0 to 1 and 12 bits are not.
    """
    if expected.value_range is None or (dtype == expected.dtype == "uint8"):
        return True
    low, high = expected.value_range
    seen = [band.quantiles for band in bands if band.quantiles]
    if not seen:
        return dtype == expected.dtype
    end = 1 if np.dtype(dtype).kind == "f" else 0
    least, most = min(q[end] for q in seen), max(q[-1 - end] for q in seen)
    return bool(least >= low and most <= high and spread(bands) >= FLAT * (high - low))


def wants_statistics(dtype: str, expected: Expectation) -> bool:
    """Tell whether a scale may have to be made for images of a type."""
    return expected.value_range is not None and not dtype == expected.dtype == "uint8"


def plan_scaling(
    sights: Sequence[Sight],
    expected: Expectation,
    scale: tuple[float, float] | str | None = None,
) -> list[Scaling | None]:
    """Decide for each image of a run how its pixels are scaled.

    Sheets of one flight get one scale, so that an object which two of them show looks the same:
    images of one type share the percentiles of all their pixels, except where their brightness
    falls into groups that are more than `GROUP_FACTOR` apart.

    Parameters
    ----------
    sights : sequence of Sight
        Of all images of the run, with statistics where `wants_statistics` says so.
    expected : Expectation
        Of the model.
    scale : (float, float), 'none' or None
        What the user set: values that become the ends of the model's range, or no scaling.

    Returns
    -------
    list of Scaling or None
        One per image; None: as it is.
    """
    out = [_kept(sight.info.dtype, expected) for sight in sights]
    if expected.value_range is None or scale == "none":
        return out
    if isinstance(scale, tuple):
        return [_scaling(*scale, expected, 0.0, BY_USER)] * len(sights)
    for group in _groups(sights, expected):
        scaling = _scaling_of([sights[i] for i in group], expected)
        for i in group:
            out[i] = scaling
    return out


def _kept(dtype: str, expected: Expectation) -> Scaling | None:
    """Return what keeps values and makes them the type that is wanted; None if they are of it."""
    if expected.value_range is None or expected.dtype in (None, dtype):
        return None
    return _scaling(*expected.value_range, expected, 0.0, "the values are the model's")


def _groups(sights: Sequence[Sight], expected: Expectation) -> list[list[int]]:
    """Return images that get one scale: of one type, and alike in brightness."""
    by_type: dict[str, list[tuple[float, int]]] = {}
    for i, sight in enumerate(sights):
        if wants_statistics(sight.info.dtype, expected) and sight.seen:
            brightness = quantile(sight.statistics, HIGH)
            by_type.setdefault(sight.info.dtype, []).append((brightness, i))
    groups = []
    for entries in by_type.values():
        entries.sort()
        last = None
        for brightness, i in entries:
            if last is None or brightness > GROUP_FACTOR * max(last, 0.0):
                groups.append([i])
            else:
                groups[-1].append(i)
            last = brightness
    return groups


def _scaling_of(sights: Sequence[Sight], expected: Expectation) -> Scaling | None:
    """Return the common scale of images of one type, or None if they fit as they are."""
    bands = [band for sight in sights for band in sight.statistics]
    dtype = sights[0].info.dtype
    if fits(bands, dtype, expected):
        return _kept(dtype, expected)
    if dtype == "uint8":
        # made for the eye: its range says what black and white are
        return _scaling(0, 255, expected, 0.0, "the range of uint8")
    pixels = [
        sight.info.width * sight.info.height * (1 - band.invalid)
        for sight in sights
        for band in sight.statistics
    ]
    low, high = (quantile(bands, share, pixels) for share in (LOW, HIGH))
    if not high > low:
        # one value nearly everywhere: what little differs decides
        low = min(band.quantiles[0] for band in bands if band.quantiles)
        high = max(band.quantiles[-1] for band in bands if band.quantiles)
    if not high > low:
        high = low + 1
    of = sights[0].source if len(sights) == 1 else f"{len(sights)} images together"
    return _scaling(low, high, expected, MARGIN, f"2nd and 98th percentile, {of}")


def _scaling(low: float, high: float, expected: Expectation, margin: float, how: str) -> Scaling:
    assert expected.value_range is not None  # noqa: S101  # asked by plan_scaling
    first, last = expected.value_range
    room = margin * (last - first)
    return Scaling(
        low=float(low),
        high=float(high),
        to_low=first + room,
        to_high=last - room,
        value_range=(first, last),
        dtype=expected.dtype or "float32",
        how=how,
    )


# -- what is in the way -----------------------------------------------------------------------


def judge(
    sight: Sight, expected: Expectation, scaling: Scaling | None = None, *, scale: str = ""
) -> list[Finding]:
    """Say what about an image a result may suffer from: the only place that does.

    Parameters
    ----------
    sight : Sight
        What is known of the image; without statistics only its header is judged.
    expected : Expectation
        Of the model.
    scaling : Scaling, optional
        How its pixels will be scaled.
    scale : str
        The user's ``--scale``, if any.

    Returns
    -------
    list of Finding
        Those that refuse come first.
    """
    found = [*_on_gsd(sight, expected), *_on_bands(sight, expected)]
    if sight.seen:
        found += _on_values(sight, expected, scaling, scale)
    elif sight.statistics:
        found.append(Finding("nodata", "no valid pixel was seen: nothing will be found"))
    elif wants_statistics(sight.info.dtype, expected):
        found.append(_on_type(sight.info.dtype, expected))
    return sorted(found, key=lambda finding: finding.level != "refuse")


def _on_gsd(sight: Sight, expected: Expectation) -> list[Finding]:
    """Compare pixel sizes: of the image, of what the model sees, of what it was trained at."""
    if expected.gsd_m is None:
        return []
    of_image = sight.info.gsd_m
    works_at = expected.gsd_m if sight.working_gsd_m is None else sight.working_gsd_m
    model = f"model {expected.model} was trained at ({expected.gsd_m:.3g} m)"
    coarse, seen = of_image / expected.gsd_m, works_at / expected.gsd_m
    if not 1 / GSD_WARN <= seen <= GSD_WARN:
        level = "warn" if 1 / GSD_REFUSE <= seen <= GSD_REFUSE else "refuse"
        factor, size = (seen, "small") if seen > 1 else (1 / seen, "large")
        return [
            Finding(
                "gsd",
                f"the run would work at {works_at:.3g} m a pixel, {factor:.1f} times as "
                f"{'coarse' if seen > 1 else 'fine'} as {model}: objects would look {factor:.1f} "
                f"times too {size} to it",
                f"leave out --gsd, or take a model for {works_at:.2g} m" + _or_force(level),
                level,
            )
        ]
    if coarse > GSD_WARN:
        level = "refuse" if coarse > GSD_REFUSE else "warn"
        return [
            Finding(
                "gsd",
                f"{of_image:.3g} m a pixel is {coarse:.1f} times as coarse as {model}; geoseg "
                "detect enlarges it, which adds no detail: expect worse results",
                "use finer imagery or a model trained on such pixels" + _or_force(level),
                level,
            )
        ]
    if coarse < 1 / GSD_WARN:
        return [
            Finding(
                "gsd",
                f"{of_image:.3g} m a pixel is {1 / coarse:.1f} times as fine as {model}; geoseg "
                "detect reduces it",
                level="remark",
            )
        ]
    return []


def _or_force(level: str) -> str:
    return ", or give --force to run it anyway" if level == "refuse" else ""


def _on_bands(sight: Sight, expected: Expectation) -> list[Finding]:
    """Compare what the file calls the bands with what the model wants there."""
    if not sight.names or len(expected.names) != len(sight.bands):
        return []
    called = [sight.names[band - 1] for band in sight.bands]
    wrong = [
        (band, name, wanted)
        for band, name, wanted in zip(sight.bands, called, expected.names, strict=True)
        if name and wanted in _COLOURS and name != wanted
    ]
    if not wrong:
        return []
    said = ", ".join(f"band {b} is {name} where it wants {wanted}" for b, name, wanted in wrong)
    right = [sight.names.index(n) + 1 for n in expected.names if n in sight.names]
    to_do = "name the right ones with --bidx"
    if len(right) == len(expected.names):
        to_do = f"give --bidx {','.join(map(str, right))}"
    level = "warn" if sight.bands_chosen else "refuse"
    force = _or_force(level).replace(", or give", ", or")
    return [Finding("bands", f"by the file, {said} (model {expected.model})", to_do + force, level)]


def _on_type(dtype: str, expected: Expectation) -> Finding:
    low, high = expected.value_range or (0.0, 0.0)
    unknown = ", whose range no header tells" if dtype.startswith("float") else ""
    return Finding(
        "type",
        f"pixels are {dtype}{unknown}; model {expected.model} knows {low:g} to {high:g}: geoseg "
        "detect scales them by the whole image's values where they are others (--statistics shows "
        "how)",
        level="remark",
    )


def _on_values(
    sight: Sight, expected: Expectation, scaling: Scaling | None, scale: str
) -> list[Finding]:
    """Say what the values give away."""
    found = _on_emptiness(sight)
    if found and found[0].kind == "blank":
        return found
    found += _on_colour(sight, expected)
    if scaling is not None and not scaling.keeps_values:
        found += _on_scaling(sight, scaling)
    elif expected.value_range is not None:
        found += _on_range(sight, expected, scale)
    return found


def _on_emptiness(sight: Sight) -> list[Finding]:
    """Say whether the pixels show anything at all."""
    found = []
    dtype, bands = sight.info.dtype, [band for band in sight.statistics if band.quantiles]
    to_do = "if that is no data, say so: gdal_edit.py -a_nodata VALUE"
    for end, word in (("low", "smallest"), ("high", "largest")):
        share = min(getattr(band, end) or 0.0 for band in bands)
        if share > END_SHARE:
            found.append(
                Finding(
                    "blank" if share >= BLANK_SHARE else "range",
                    f"{share:.0%} of the valid pixels hold the {word} value of {dtype} in all "
                    "bands",
                    to_do,
                    "refuse" if share >= BLANK_SHARE else "warn",
                )
            )
    if not found and all(band.min == band.max for band in bands):
        value = " ".join(f"{band.min:g}" for band in bands)
        found.append(
            Finding(
                "blank",
                f"every band holds one value only ({value}): nothing will be found",
                "look at the file, its export may have failed",
                "refuse",
            )
        )
    invalid = min(band.invalid for band in sight.statistics)
    if invalid > BLANK_SHARE:
        found.append(
            Finding(
                "nodata",
                f"{invalid:.1%} of the pixels are without data",
                "if that is not so, look at its nodata value, mask and alpha band: geoseg check "
                "--statistics",
            )
        )
    return found


def _on_scaling(sight: Sight, scaling: Scaling) -> list[Finding]:
    """Tell the scale, and whether it cuts off what the image shows."""
    found = [Finding("scaled", f"{sight.info.dtype} pixels are scaled: {scaling}", level="info")]
    low, high = (quantile(sight.statistics, share) for share in (LOW, HIGH))
    to_do = f"leave out --scale, or give {_suggested(low, high)}"
    black, white = _ends(scaling)
    outside = share_outside(sight.statistics, black, white)
    middle = (quantile(sight.statistics, 0.5) - black) / (white - black)
    dark = high - low < FLAT * (white - black) or not DARK <= middle <= 1 - DARK
    if scaling.how == BY_USER and dark and outside <= END_SHARE:
        found.append(
            Finding(
                "flat",
                f"the scale makes the image very dark, very bright or nearly of one tone: most "
                f"values lie from {low:.5g} to {high:.5g}",
                to_do,
            )
        )
    if outside > END_SHARE:
        found.append(
            Finding(
                "range",
                f"the scale cuts off {outside:.0%} of the values, most of which lie from {low:.5g} "
                f"to {high:.5g}",
                to_do,
            )
        )
    return found


def _suggested(low: float, high: float) -> str:
    """Return the option that scales as these percentiles would by themselves."""
    room = MARGIN * (high - low) / (1 - 2 * MARGIN)
    return f"--scale {low - room:.4g},{high + room:.4g}"


def _ends(scaling: Scaling) -> tuple[float, float]:
    """Return the values of the image that become the ends of the model's range."""
    gain = (scaling.to_high - scaling.to_low) / (scaling.high - scaling.low)
    first, last = scaling.value_range
    return (
        scaling.low + (first - scaling.to_low) / gain,
        scaling.low + (last - scaling.to_low) / gain,
    )


def share_outside(bands: Sequence[BandStatistics], low: float, high: float) -> float:
    """Return the share of valid pixels of all bands that lie below `low` or above `high`."""
    shares = []
    for band in bands:
        if band.quantiles:
            # (of a fill nobody asks what becomes of it)
            inside = np.interp([low, high], band.quantiles, PROBABILITIES, left=0.0, right=1.0)
            below = inside[0] if low > band.quantiles[0] else 0.0
            above = 1 - (inside[1] if high < band.quantiles[-1] else 1.0)
            shares.append(below + above)
    return float(np.mean(shares)) if shares else 0.0


def _on_range(sight: Sight, expected: Expectation, scale: str) -> list[Finding]:
    """Compare values that stay as they are with those that the model knows."""
    assert expected.value_range is not None  # noqa: S101  # asked by the caller
    low, high = expected.value_range
    least, most = (quantile(sight.statistics, share) for share in (LOW, HIGH))
    largest = max(band.quantiles[-1] for band in sight.statistics if band.quantiles)
    to_do = f"give {_suggested(least, most)}"
    if scale:
        to_do = f"leave out --scale {scale}, or {to_do}"
    if share_outside(sight.statistics, low, high) > 0.001:
        return [
            Finding(
                "range",
                f"values reach {largest:g}, but model {expected.model} knows {low:g} to {high:g}",
                to_do,
            )
        ]
    middle = (quantile(sight.statistics, 0.5) - low) / (high - low)
    if most - least < FLAT * (high - low) or not DARK <= middle <= 1 - DARK:
        return [
            Finding(
                "flat",
                f"nearly all values lie from {least:.5g} to {most:.5g}, in a small part of the "
                f"{low:g} to {high:g} that model {expected.model} knows: the image is very dark, "
                "very bright or nearly of one tone",
                f"if it should not be, {to_do}",
            )
        ]
    return []


def _on_colour(sight: Sight, expected: Expectation) -> list[Finding]:
    """Hint at bands that no tag names and that look swapped.

    Soil, roofs, roads and dry plants are redder than blue, green plants greener than both, in each
    of the seven flights at hand; water and snow are not, so it is no more than a hint.
    """
    if expected.names != ("red", "green", "blue") or len(sight.statistics) != 3:
        return []
    if sight.names and any(sight.names[band - 1] for band in sight.bands):
        return []
    red, green, blue = (band.mean for band in sight.statistics)
    if red is None or green is None or blue is None:
        return []
    margin = BLUE_MARGIN * spread(sight.statistics)
    if blue - red <= margin or blue - green <= -margin:
        return []
    swapped = ",".join(str(band) for band in reversed(sight.bands))
    return [
        Finding(
            "colour",
            f"bands {','.join(map(str, sight.bands))}, taken for red, green and blue, have means "
            f"of {red:.4g}, {green:.4g} and {blue:.4g}: land is hardly ever bluer than red",
            f"if they are blue, green and red, give --bidx {swapped}",
        )
    ]
