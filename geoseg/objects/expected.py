"""How many things there are, from how many were found: expected counts and their intervals.

Of what a detector finds, some is not there; of what is there, it misses some. A calibration,
measured on areas with known truth, says how often, by score and by size. Object i with score s
and size a then stands for p(s) / q(a) things: it is true with probability p, and true things of
its size are found with probability q = 1 - missed. The sum over a region is the estimator of
Horvitz and Thompson (A generalization of sampling without replacement from a finite universe,
JASA 47, 1952, doi:10.1080/01621459.1952.10483446).

Its variance has two parts. Which of the found ones are true is a sum of independent yes and no,
Poisson's binomial, with variance sum p (1 - p) (Le Cam, An approximation theorem for the Poisson
binomial distribution, 1960); each counts 1 / q. How many things were missed, given those found,
has variance sum p (1 - q) / q**2 (the second part of Horvitz and Thompson's). A log-normal of
that mean and variance, widened by half a thing on each side because counts are whole (the
continuity correction), gives the interval: what an area's imagery does to a count multiplies, and
there are never fewer than none. Where the variance is small it is the normal one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.config import wrong_type
from geoseg.errors import ConfigError
from geoseg.records import DoubleArray

Z_90 = 1.6448536269514722
"""A normal variable is this far or less from its mean, in standard deviations, 90 % of the time."""
MOST_MISSED = 0.95
"""Where more is missed, too little is found to say how much there is."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How often what is found is true, and what is there is missed; measured, not assumed.

    Both curves are straight between their knots and flat beyond them.

    Examples
    --------
    >>> sure = Calibration(scores=(0.5, 1.0), chance=(0.6, 1.0), sizes_m2=(50,), missed=(0.2,))
    >>> mean, variance = sure.expect(np.array([0.5, 1.0]), np.array([40.0, 90.0]))
    >>> mean.round(3).tolist()
    [0.75, 1.25]
    """

    scores: tuple[float, ...]
    """Knots of ``chance``: scores, ascending, in [0, 1]."""
    chance: tuple[float, ...]
    """Probability that an object of that score is true (it matches a thing at IoU 0.5 or as the
    calibration's author says), in [0, 1]."""
    sizes_m2: tuple[float, ...]
    """Knots of ``missed``: sizes of things, m2, ascending, above 0."""
    missed: tuple[float, ...]
    """Share of the true things of that size that are not found at ``min_score``, 0 to 0.95."""
    min_score: float | None = None
    """Score threshold for which ``missed`` holds; None: not said."""
    spread: float = 0.0
    """Relative standard deviation of true to expected counts between areas, beyond what chance
    explains: how far the imagery at hand may differ from that of the calibration. Without it the
    interval of a large region is narrower than anyone should believe."""

    def __post_init__(self) -> None:
        _check_curve("scores", self.scores, "chance", self.chance, (0.0, 1.0))
        _check_curve("sizes_m2", self.sizes_m2, "missed", self.missed, (0.0, MOST_MISSED))
        if not 0 <= min(self.scores) <= max(self.scores) <= 1:
            raise ConfigError("calibration: scores leave [0, 1]")
        if min(self.sizes_m2) <= 0:
            raise ConfigError("calibration: sizes_m2 must be above 0")
        if not 0 <= self.spread < 10:
            raise ConfigError(f"calibration: spread is {self.spread}; expected 0 to 10")

    def expect(
        self, scores: npt.NDArray[Any], sizes_m2: npt.NDArray[Any]
    ) -> tuple[DoubleArray, DoubleArray]:
        """Return how many things each object stands for.

        Parameters
        ----------
        scores : ndarray
            (n,) in [0, 1].
        sizes_m2 : ndarray
            (n,) m2.

        Returns
        -------
        mean, variance : ndarray
            (n,) each; variances of independent objects add up.
        """
        p = np.interp(scores, self.scores, self.chance)
        missed = np.interp(sizes_m2, self.sizes_m2, self.missed)
        found = 1 - missed
        return p / found, (p * (1 - p) + p * missed) / found**2

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, as a model card keeps it under ``quality`` -> ``calibration``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "calibration") -> Calibration:
        """Rebuild it from JSON; ``where`` names the file in errors.

        Raises
        ------
        ConfigError
            If a key is missing or unknown, or a value is out of range.
        """
        if wrong := wrong_type(cls, values):
            raise ConfigError(f"{where}: no calibration: {wrong}")
        try:
            given: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            return cls(**given)
        except TypeError as error:
            raise ConfigError(
                f"{where}: no calibration ({error}); expected scores, chance, sizes_m2, missed "
                "and, if known, min_score and spread"
            ) from error


def interval_90(
    mean: DoubleArray, variance: DoubleArray, spread: float | DoubleArray = 0.0
) -> tuple[DoubleArray, DoubleArray]:
    """Return the bounds between which the number of things lies with a probability of 90 %.

    Parameters
    ----------
    mean, variance : ndarray
        (n,) sums of :meth:`Calibration.expect`.
    spread : float or ndarray
        As in :class:`Calibration`.

    Returns
    -------
    low, high : ndarray
        (n,) each; low is never below 0.
    """
    least = np.maximum(mean, 1e-9)
    excess = np.log1p((variance + (spread * mean) ** 2) / least**2)
    median, factor = mean * np.exp(-excess / 2), np.exp(Z_90 * np.sqrt(excess))
    return np.maximum(median / factor - 0.5, 0.0), median * factor + 0.5


def _check_curve(
    x_name: str,
    x: tuple[float, ...],
    y_name: str,
    y: tuple[float, ...],
    within: tuple[float, float],
) -> None:
    """Refuse knots that make no curve."""
    if not x or len(x) != len(y):
        raise ConfigError(
            f"calibration: {x_name} has {len(x)} values and {y_name} {len(y)}; expected as many, "
            "at least one"
        )
    if not (np.isfinite(x).all() and (np.diff(x) > 0).all()):
        raise ConfigError(f"calibration: {x_name} must ascend and be finite")
    low, high = within
    if not (np.isfinite(y).all() and low <= min(y) and max(y) <= high):
        raise ConfigError(f"calibration: {y_name} must lie in [{low:g}, {high:g}]")
