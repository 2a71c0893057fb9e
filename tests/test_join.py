"""Joining parts out of core: the same objects as from everything at once."""

from __future__ import annotations

import numpy as np
import painted
import pyarrow as pa
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.windows import Window

from geoseg.errors import OutputError
from geoseg.globe import turned
from geoseg.imagery.georef import polygons_to_crs
from geoseg.imagery.grid import TileGrid
from geoseg.jobs import join
from geoseg.jobs.executor import Workers
from geoseg.jobs.parts import Part, PartSummary, write_part
from geoseg.objects.shape import ShapeSettings, finish_shapes, largest_polygon
from geoseg.objects.stitch import split_settled, stitch
from geoseg.records import Fragments, Tile

SIZE, TILE, OVERLAP = 1000, 192, 48
WKT = pyproj.CRS.from_epsg(32645).to_wkt()
TRANSFORM = Affine(0.5, 0, 300_000, 0, -0.5, 3_000_000)
SHAPES = {
    "as found": ShapeSettings(simplify_px=0),
    "simplified": ShapeSettings(),
    "all steps": ShapeSettings(
        resolve_overlaps=True, regularize=True, max_hole_m2=50, min_area_m2=4, simplify_px=0.5
    ),
}


def grid_of(supertile: int) -> TileGrid:
    return TileGrid(SIZE, SIZE, TILE, OVERLAP, supertile)


@pytest.fixture(scope="module")
def detections() -> dict[str, dict[tuple[int, int], Fragments]]:
    """What a disturbed detector shows in each tile of a scene, and clutter in which all touch."""
    grid = grid_of(SIZE * 2)
    tiles = next(grid.supertiles()).tiles
    detector = painted.PaintedDetector(28, disturb=True, seed=3)
    scene = painted.shape_scene(5, size=SIZE, count=260)
    found = {tile.index: painted.detect(scene, [tile], detector) for tile in tiles}
    return {"scene": found, "clutter": clutter(tiles)}


def clutter(tiles) -> dict[tuple[int, int], Fragments]:
    """Return rows of tilted boxes that touch and overlap each other over the whole image."""
    rng = np.random.default_rng(8)
    centre = rng.uniform(0, SIZE, (2500, 2))
    half = rng.uniform(4, 22, (2500, 2))
    boxes = shapely.box(*(centre - half).T, *(centre + half).T)
    angle = rng.uniform(0, 90, 2500)
    things = np.array(
        [shapely.affinity.rotate(b, a) for b, a in zip(boxes, angle, strict=True)], object
    )
    scores, labels = rng.uniform(0.5, 1, 2500), rng.integers(0, 2, 2500)
    found = {}
    for tile in tiles:
        x0, y0, width, height = tile.window.flatten()
        window = shapely.box(x0, y0, x0 + width, y0 + height)
        pieces = shapely.intersection(things, window)
        rows = np.flatnonzero(shapely.area(pieces) > 1)
        edge = shapely.box(0, 0, SIZE, SIZE).exterior
        cut = shapely.intersects(pieces[rows], window.exterior)
        found[tile.index] = Fragments(
            pieces[rows],
            scores[rows].astype(np.float32),
            labels[rows],
            np.zeros(len(rows), np.int64),
            cut & ~shapely.intersects(pieces[rows], edge),
            shapely.intersects(pieces[rows], edge),
        )
    return found


def together(found, tiles: tuple[Tile, ...]) -> Fragments:
    """Return the fragments of several tiles."""
    parts = []
    for k, tile in enumerate(tiles):
        columns = {name: getattr(found[tile.index], name) for name in Fragments.__slots__}
        parts.append(Fragments(**(columns | {"tiles": np.full(len(columns["scores"]), k)})))
    return Fragments.concatenate(parts)


def image_join(grid: TileGrid, shape: ShapeSettings, **changes) -> join.ImageJoin:
    values = {
        "number": 0, "name": "scene.tif", "fingerprint": "f", "grid": grid,
        "transform": TRANSFORM, "gsd_m": 0.5, "crs_wkt": WKT, "output_wkt": "",
        "classes": ("a", "b", "c"), "shape": shape, "class_agnostic": False, "aoi_wkb": None,
    }  # fmt: skip
    return join.ImageJoin(**(values | changes))


def joined(found, supertile: int, shape: ShapeSettings, folder, workers: int = 1):
    """Make the parts as a worker does, join them, return the table and the joins."""
    grid = grid_of(supertile)
    parts = {}
    folder.mkdir()
    for block in grid.supertiles():
        row, col = block.index
        fragments = together(found, block.tiles)
        foreign = grid.foreign_ground(range(row, row + 1), range(col, col + 1))
        settled = split_settled(fragments, block.tiles, foreign)
        objects = stitch(fragments.take(settled), block.tiles)
        summary = PartSummary(0, block.index, "done")
        parts[0, block.index] = folder / f"part-{row}-{col}.parquet"
        write_part(
            parts[0, block.index], Part(summary, objects, fragments.take(~settled), block.tiles)
        )
    with Workers(workers) as pool:
        done = join.join_parts([image_join(grid, shape)], parts, folder, pool)[0]
    tables = list(join.finished_objects(done))
    return pa.concat_tables(tables), done


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["scene", "clutter"])
def test_any_supertile_size_gives_the_bytes_of_everything_at_once(
    detections, kind, shape, tmp_path
):
    found = detections[kind]
    whole, done = joined(found, SIZE * 2, shape, tmp_path / "whole")
    assert [task.level for task, _ in done] == [0]
    block = next(grid_of(SIZE * 2).supertiles())
    objects = stitch(together(found, block.tiles), block.tiles)
    polygons, keep = finish_shapes(
        objects.polygons, objects.scores, objects.labels, shape, gsd_m=0.5
    )
    assert len(whole) == np.count_nonzero(keep) > 150
    placed = turned(largest_polygon(polygons_to_crs(polygons[keep], TRANSFORM)))
    assert sorted(whole["geometry"].to_pylist()) == sorted(shapely.to_wkb(placed))
    for supertile in (TILE, 400, 700):
        table, done = joined(found, supertile, shape, tmp_path / str(supertile))
        assert table.equals(whole), supertile
        assert max(task.level for task, _ in done) == {TILE: 3, 400: 2, 700: 1}[supertile]


def test_two_workers_give_the_same_bytes(detections, tmp_path):
    one, _ = joined(detections["scene"], 400, ShapeSettings(), tmp_path / "one")
    two, _ = joined(detections["scene"], 400, ShapeSettings(), tmp_path / "two", workers=2)
    assert one.equals(two)


def test_what_waits_is_what_lies_along_the_borders(detections, tmp_path):
    _, done = joined(detections["scene"], 400, ShapeSettings(), tmp_path / "run")
    by_level = [sum(s.objects for t, s in done if t.level == level) for level in range(3)]
    # most is finished where it was found; each level above has the seams of its blocks alone
    assert by_level[0] > by_level[1] > by_level[2] > 0
    assert not done[-1][1].left_open
    # nothing is left behind but finished objects
    assert not list((tmp_path / "run").glob("0-*.parquet"))


def test_order_goes_by_squares_then_as_one_reads(detections, tmp_path, monkeypatch):
    plain, _ = joined(detections["scene"], 400, ShapeSettings(), tmp_path / "plain")
    monkeypatch.setattr(join, "BLOCK_PX", 300)
    small, _ = joined(detections["scene"], 400, ShapeSettings(), tmp_path / "small")
    assert sorted(small["uid"].to_pylist()) == sorted(plain["uid"].to_pylist())
    centre = shapely.centroid(shapely.from_wkb(small["geometry"].to_numpy(zero_copy_only=False)))
    x, y = shapely.get_coordinates(centre).T
    squares = np.stack([(3_000_000 - y) / 0.5 // 300, (x - 300_000) / 0.5 // 300], axis=1)
    # finishing moves a centre by a fraction of a px
    steps = np.diff(squares @ [100, 1])
    assert np.count_nonzero(steps < 0) <= 3
    assert len(np.unique(squares, axis=0)) == 16


def test_a_part_that_is_missing_costs_its_own_objects_alone(detections, tmp_path):
    found = detections["scene"]
    whole, _ = joined(found, 400, ShapeSettings(), tmp_path / "whole")
    grid = grid_of(400)
    lost = grid.supertile(1, 1)
    kept = {t: f for t, f in found.items() if t not in {tile.index for tile in lost.tiles}}
    blank = {tile.index: Fragments.empty() for tile in lost.tiles}
    some, _ = joined(kept | blank, 400, ShapeSettings(), tmp_path / "some")
    inside = shapely.from_wkb(some["geometry"].to_numpy(zero_copy_only=False))
    assert len(some) < len(whole)
    window = lost.window
    x, y = TRANSFORM @ (window.col_off, window.row_off)
    far = shapely.box(x, y - 0.5 * window.height, x + 0.5 * window.width, y)
    away = ~shapely.intersects(inside, far)
    assert set(np.array(some["uid"].to_pylist())[away]) <= set(whole["uid"].to_pylist())


def test_a_join_that_fails_says_where(detections, tmp_path):
    grid = grid_of(400)
    broken = tmp_path / "part.parquet"
    broken.write_bytes(b"PAR1 no parquet")
    with pytest.raises(OutputError, match=r"scene.tif: joining block \(0, 1\) of level 0 failed"):
        join.join_parts(
            [image_join(grid, ShapeSettings())], {(0, (0, 1)): broken}, tmp_path, Workers(1)
        )


def test_nothing_there_gives_nothing(tmp_path):
    part = tmp_path / "part.parquet"
    write_part(
        part,
        Part(
            PartSummary(0, (0, 0), "done"),
            stitch(Fragments.empty(), []),
            Fragments.empty(),
            (Tile((0, 0), Window(0, 0, 8, 8), Window(0, 0, 8, 8)),),
        ),
    )
    image = image_join(grid_of(400), ShapeSettings())
    done = join.join_parts([image], {(0, (0, 0)): part}, tmp_path, Workers(1))[0]
    assert list(join.finished_objects(done)) == []


def test_workers_can_be_started_again_in_one_process():
    for _ in range(2):
        with Workers(2) as pool:
            assert sorted(outcome for _, outcome in pool.run(abs, [-3, 1, 2])) == [1, 2, 3]
