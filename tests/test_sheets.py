"""Objects of overlapping images, each once."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from geoseg.objects.sheets import Sheets, join_sheets

# two sheets that share x from 40 to 60
LEFT, RIGHT = shapely.box(0, 0, 60, 100), shapely.box(40, 0, 100, 100)


def sheets(rows, footprints=(LEFT, RIGHT), near=0.5) -> Sheets:
    polygons, scores, number, labels = zip(*rows, strict=True)
    return Sheets(
        polygons=np.array(polygons, dtype=object),
        scores=np.array(scores),
        labels=np.array(labels, np.int64),
        sheet=np.array(number, np.int64),
        footprints=footprints,
        near=near,
    )


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        # alone on its sheet, outside the shared area
        ([(shapely.box(5, 5, 15, 15), 0.9, 0, 0)], [0]),
        # the same house on both, drawn a little differently: the deeper inside stays
        ([(shapely.box(44, 5, 54, 15), 0.7, 0, 0), (shapely.box(44, 5, 54, 14), 0.9, 1, 0)], [0]),
        # cut off by the left sheet's end, whole on the right one
        ([(shapely.box(52, 5, 60, 15), 0.9, 0, 0), (shapely.box(52, 5, 70, 15), 0.8, 1, 0)], [1]),
        # neighbours that touch are two
        (
            [(shapely.box(44, 5, 50, 15), 0.9, 0, 0), (shapely.box(50, 5, 56, 15), 0.8, 1, 0)],
            [0, 1],
        ),
        # another class on the same spot is another thing
        (
            [(shapely.box(44, 5, 54, 15), 0.9, 0, 0), (shapely.box(44, 5, 54, 15), 0.8, 1, 1)],
            [0, 1],
        ),
        # a sliver at the left sheet's end, inside a house that the right one shows
        ([(shapely.box(58, 5, 60, 8), 0.9, 0, 0), (shapely.box(50, 5, 70, 15), 0.8, 1, 0)], [1]),
    ],
)
def test_each_thing_once(rows, kept):
    assert join_sheets(sheets(rows)).rows.tolist() == kept


def test_larger_than_what_both_sheets_show_is_joined():
    halves = [(shapely.box(10, 5, 60, 15), 0.9, 0, 0), (shapely.box(40, 5, 90, 15), 0.8, 1, 0)]
    joined = join_sheets(sheets(halves))
    assert joined.rows.tolist() == [0]
    assert joined.parts[0].tolist() == [0, 1]
    assert joined.polygons[0].equals(shapely.box(10, 5, 90, 15))


def test_two_neighbours_are_not_joined_through_a_third():
    # a coarse outline, cut off where the right sheet begins, covers two houses of the left one
    rows = [
        (shapely.box(41, 5, 46, 15), 0.9, 0, 0),
        (shapely.box(47, 5, 52, 15), 0.9, 0, 0),
        (shapely.box(40, 5, 52, 15), 0.8, 1, 0),
    ]
    assert join_sheets(sheets(rows)).rows.tolist() == [0, 1]


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(60):
        x, y = rng.uniform(0, 88, 2)
        house = shapely.box(x, y, x + 6, y + 6)
        for number, area in enumerate((LEFT, RIGHT)):
            seen = shapely.intersection(house, area)
            if seen.area > 1:
                rows.append((seen, float(rng.uniform(0.5, 1)), number, 0))
    one = join_sheets(sheets(rows))
    shuffled = rng.permutation(len(rows))
    two = join_sheets(sheets([rows[i] for i in shuffled]))
    assert sorted(shuffled[two.rows].tolist()) == one.rows.tolist()
    assert len(one.rows) < len(rows)


def test_sheets_that_do_not_meet_and_nothing_at_all():
    apart = [LEFT, shapely.box(200, 0, 300, 100)]
    rows = [(shapely.box(5, 5, 15, 15), 0.9, 0, 0), (shapely.box(205, 5, 215, 15), 0.9, 1, 0)]
    assert join_sheets(sheets(rows, apart)).rows.tolist() == [0, 1]
    empty = Sheets(np.zeros(0, object), np.zeros(0), np.zeros(0, int), np.zeros(0, int), apart, 1)
    assert len(join_sheets(empty).rows) == 0
