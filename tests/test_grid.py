from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from geoseg.errors import GridError
from geoseg.imagery.grid import TileGrid, tile_axis

AXES = [
    # length, tile, overlap, (core start, core stop, window start, window stop) of each tile
    (10, 10, 3, [(0, 10, 0, 10)]),  # one tile, exactly
    (7, 10, 3, [(0, 7, 0, 10)]),  # shorter than a tile: the window reaches past
    (11, 10, 3, [(0, 5, 0, 10), (5, 11, 1, 11)]),  # one pixel more: two tiles, the last inwards
    (20, 10, 0, [(0, 10, 0, 10), (10, 20, 10, 20)]),  # no overlap
    (17, 10, 3, [(0, 8, 0, 10), (8, 17, 7, 17)]),  # the last falls into place
]


@pytest.mark.parametrize(("length", "tile", "overlap", "expected"), AXES)
def test_tile_axis(length, tile, overlap, expected):
    assert [tuple(t) for t in tile_axis(length, tile, overlap)] == expected


sizes = st.integers(1, 40).flatmap(
    lambda tile: st.tuples(st.integers(1, 300), st.just(tile), st.integers(0, tile - 1))
)


@given(sizes)
def test_cores_partition_the_axis_and_lie_in_their_windows(size):
    length, tile, overlap = size
    hits = np.zeros(length, int)
    axis = tile_axis(length, tile, overlap)
    for t in axis:
        hits[t.core_start : t.core_stop] += 1
        assert t.core_stop > t.core_start
        assert t.window_start <= t.core_start
        assert t.core_stop <= t.window_stop
        assert t.window_stop - t.window_start == tile
        assert t.window_start == 0 or t.window_stop <= length
    assert (hits == 1).all()
    for a, b in pairwise(axis):
        assert a.window_stop - b.window_start >= overlap
        # the core meets in the middle: both sides see as far beyond it, to a pixel
        assert abs((a.window_stop - a.core_stop) - (b.core_start - b.window_start)) <= 1


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"overlap": 64}, "--overlap is 64 but --tile-size is 64; lower --overlap"),
        ({"overlap": -1}, "0 <= overlap < tile size"),
        ({"tile_size": 0}, "--tile-size is 0"),
        ({"supertile_size": 63}, "--supertile-size is 63 but --tile-size is 64"),
        ({"height": 0}, "at least 1 px a side"),
    ],
)
def test_sizes_out_of_range_name_the_setting(kwargs, match):
    sizes = {"height": 99, "width": 99, "tile_size": 64, "overlap": 16, "supertile_size": 200}
    with pytest.raises(GridError, match=match):
        TileGrid(**(sizes | kwargs))


grids = st.builds(
    lambda h, w, tile, share, more: TileGrid(h, w, tile, int(tile * share), tile + more),
    h=st.integers(1, 80),
    w=st.integers(1, 80),
    tile=st.integers(4, 40),
    share=st.floats(0, 0.7),
    more=st.integers(0, 90),
)


def add(hits: np.ndarray, window: Window) -> None:
    rows = slice(window.row_off, window.row_off + window.height)
    hits[rows, window.col_off : window.col_off + window.width] += 1


def overlap_px(a: Window, b: Window) -> int:
    width = min(a.col_off + a.width, b.col_off + b.width) - max(a.col_off, b.col_off)
    height = min(a.row_off + a.height, b.row_off + b.height) - max(a.row_off, b.row_off)
    return max(width, 0) * max(height, 0)


def contains(outer: Window, inner: Window) -> bool:
    return overlap_px(outer, inner) == inner.width * inner.height


@given(grids)
def test_tiles_and_supertiles_partition_the_raster(grid):
    by_tile = np.zeros((grid.height, grid.width), int)
    by_supertile = by_tile.copy()
    indices = []
    for supertile in grid.supertiles():
        add(by_supertile, supertile.core)
        for tile in supertile.tiles:
            add(by_tile, tile.core)
            assert contains(supertile.window, tile.window)
            assert contains(supertile.core, tile.core)
            assert tile == grid.tile(*tile.index)
        indices += [tile.index for tile in supertile.tiles]
        assert max(supertile.window.width, supertile.window.height) <= grid.supertile_size
        assert len({tile.index for tile in supertile.tiles}) == len(supertile.tiles)
    assert (by_tile == 1).all()
    assert (by_supertile == 1).all()
    assert len(indices) == len(set(indices)) == grid.n_tiles


@given(grids, st.data())
def test_foreign_ground_is_what_tiles_outside_a_block_see_of_it(grid, data):
    n_rows, n_cols = grid.supertile_shape
    top, left = (data.draw(st.integers(0, n - 1)) for n in (n_rows, n_cols))
    rows = range(top, data.draw(st.integers(top + 1, n_rows)))
    cols = range(left, data.draw(st.integers(left + 1, n_cols)))
    block = [s for s in grid.supertiles() if s.index[0] in rows and s.index[1] in cols]
    own = {tile.index for s in block for tile in s.tiles}
    expected, inside = np.zeros((2, grid.height, grid.width), bool)
    for supertile in grid.supertiles():
        for tile in supertile.tiles:
            paint(inside if tile.index in own else expected, bounds(tile.window))
    ground = np.zeros_like(expected)
    for box in grid.foreign_ground(rows, cols):
        paint(ground, box)
    assert ((ground & inside) == (expected & inside)).all()


def bounds(window: Window) -> tuple[int, int, int, int]:
    x, y, width, height = window.flatten()
    return x, y, x + width, y + height


def paint(canvas: np.ndarray, box) -> None:
    x0, y0, x1, y1 = (int(max(v, 0)) for v in box)
    canvas[y0:y1, x0:x1] = True


@given(grids)
def test_windows_are_spans_of_rows_times_spans_of_columns(grid):
    rows, cols = grid.window_spans()
    for r, c in ((0, 0), (grid.shape[0] - 1, grid.shape[1] - 1)):
        (y0, y1), (x0, x1) = rows[r].tolist(), cols[c].tolist()
        assert bounds(grid.tile(r, c).window) == (x0, y0, x1, y1)
    assert (len(rows), len(cols)) == grid.shape


def test_a_huge_raster_is_not_unrolled():
    grid = TileGrid(400_000, 400_000, 512, 128, 8192)
    assert grid.n_tiles == 1042**2
    assert grid.n_supertiles == 50**2
    assert next(grid.supertiles()).index == (0, 0)
    assert grid.supertile(49, 49).core.row_off + grid.supertile(49, 49).core.height == 400_000
    assert len(pickle.dumps(grid)) < 300


def test_a_tile_that_does_not_exist_is_refused():
    grid = TileGrid(100, 100, 50, 10, 50)
    with pytest.raises(GridError, match="the grid has 3 x 3 tiles"):
        grid.tile(3, 0)
    with pytest.raises(GridError, match="the grid has 3 x 3 supertiles"):
        grid.supertile(0, -1)
