"""Sums by class and region, in whole numbers: in which order they were added never shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from geoseg.objects.hierarchy import Hierarchy
from geoseg.records import DoubleArray, IntArray

WHOLE = 2**30
"""An object is this many parts."""
CM2 = 10_000
"""Areas are added in square centimetres."""
FINE = 2**24
"""Expected things are added in such parts."""
MEASURES = ("parts", "area", "covered", "mean", "variance")
"""Parts of objects counted, size of the objects counted, ground covered, and the mean and variance
of the things that the objects stand for."""
Sums: TypeAlias = dict[str, IntArray]
"""(n + 1,) for each measure: the regions, and at the end what is outside all."""


@dataclass(slots=True, eq=False)
class Tally:
    """What was added up so far.

    Examples
    --------
    >>> tally = Tally(2)
    >>> tally.add("parts", ["roof"], np.array([0, 0]), np.array([1, 2]), np.array([5, 7]))
    >>> tally.of("roof")["parts"].tolist()
    [0, 5, 7]
    """

    n: int
    """Regions."""
    sums: dict[str, Sums] = field(default_factory=dict)
    """By class; an empty name where objects have none."""

    def add(
        self,
        measure: str,
        classes: Sequence[str],
        kinds: IntArray,
        owners: IntArray,
        values: IntArray,
    ) -> None:
        """Add (p,) values to one measure of their classes and regions; region n is outside."""
        n = self.n + 1
        cells = add_up(kinds * n + owners, values, len(classes) * n)
        for name, added in zip(classes, cells.reshape(-1, n), strict=True):
            of_kind = self.sums.setdefault(name, self._nothing())
            of_kind[measure] += added

    def of(self, kind: str) -> Sums:
        """Return the sums of a class, zeros where it was never seen."""
        return self.sums.get(kind) or self._nothing()

    def total(self) -> Sums:
        """Return the sums over all classes."""
        result = self._nothing()
        for of_kind in self.sums.values():
            for name, values in of_kind.items():
                result[name] += values
        return result

    def in_order(self, order: IntArray) -> Tally:
        """Return the sums with region order[i] in place of region i."""
        back = np.append(np.argsort(order), self.n)
        return self._mapped(lambda _, values: values[back])

    def rolled_up(self, tree: Hierarchy, measures: Sequence[str] = MEASURES) -> Tally:
        """Return the sums with those of children added to their parents, for some measures."""

        def add_children(name: str, values: IntArray) -> IntArray:
            if name not in measures:
                return values
            return np.append(tree.roll_up(values[:-1]), values[-1])

        return self._mapped(add_children)

    def __iter__(self) -> Iterator[tuple[str, Sums]]:
        return iter(self.sums.items())

    def _mapped(self, change: Callable[[str, IntArray], IntArray]) -> Tally:
        """Return another tally with each array changed."""
        return Tally(
            self.n,
            {
                kind: {name: change(name, values) for name, values in of_kind.items()}
                for kind, of_kind in self
            },
        )

    def _nothing(self) -> Sums:
        return {name: np.zeros(self.n + 1, np.int64) for name in MEASURES}


def as_whole(values: DoubleArray, unit: int) -> IntArray:
    """Return values in whole parts of a unit."""
    return np.rint(values * unit).astype(np.int64)


def add_up(owners: IntArray, parts: IntArray, n: int) -> IntArray:
    """Return the sum of the parts of each owner 0..n-1."""
    # bincount adds in float64, exact up to 2**53: eight million whole objects in one cell
    return np.bincount(owners, weights=parts, minlength=n).astype(np.int64)
