"""Fragments from the outlines and masks of any detector, and the pages that show how."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import painted
import pytest
import shapely
from rasterio.windows import Window

import geoseg.objects.evaluate
import geoseg.objects.seams
import geoseg.objects.stitch
import geoseg.records
from geoseg.errors import TileError
from geoseg.objects.stitch import stitch, stitch_counted
from geoseg.records import Fragments, Instances, Tile

DOCS = Path(__file__).parents[1] / "docs"
PAIR = painted.square_tiles(200, 340, 200, 60)
"""Windows x 0-200 and 140-340 of a raster of 200 x 340; cores meet at 170."""


def taken(*polygons, tiles=None, tile_list=PAIR, **options):
    n = len(polygons)
    return Fragments.from_polygons(
        polygons, np.full(n, 0.9), np.zeros(n, int), tiles or [0] * n, tile_list, **options
    )


@pytest.mark.parametrize(
    "module",
    [geoseg.records, geoseg.objects.stitch, geoseg.objects.seams, geoseg.objects.evaluate],
    ids=lambda m: m.__name__,
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_examples_of_the_stitching_page_run():
    result = doctest.testfile(str(DOCS / "stitching.md"), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0


def test_stitching_loads_no_network():
    code = "import sys, geoseg; geoseg.stitch, geoseg.Fragments; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- outlines ---------------------------------------------------------------------------------


def test_cut_and_edge_come_from_windows_and_cores():
    found = taken(
        shapely.box(10, 10, 30, 30),  # inside
        shapely.box(150, 50, 198.5, 70),  # ends 1.5 px short of the cut
        shapely.box(150, 50, 197, 70),  # 3 px short
        shapely.box(0, 50, 30, 70),  # at the raster's left edge
        shapely.box(50, 150, 70, 200),  # at its lower edge
        shapely.box(190, 190, 200, 200),  # at both
        shapely.box(140, 50, 160, 70),  # the right tile's cut side
        shapely.box(330, 0, 340, 10),
        tiles=[0, 0, 0, 0, 0, 0, 1, 1],
    )
    assert found.cut.tolist() == [False, True, False, False, False, True, True, False]
    assert found.at_edge.tolist() == [False, False, False, True, True, True, False, True]
    assert taken(shapely.box(150, 50, 197, 70), reach_px=3).cut.tolist() == [True]
    assert found.scores.dtype == np.float32
    assert found.labels.dtype == found.tiles.dtype == np.int64


def test_the_raster_may_end_inside_a_window():
    padded = [Tile((0, 0), Window(0, 0, 80, 60), Window(0, 0, 100, 100))]
    at_end = shapely.box(70, 20, 80, 30)
    plain = taken(at_end, tile_list=padded)
    assert (plain.cut[0], plain.at_edge[0]) == (False, False)
    told = taken(at_end, tile_list=padded, raster_shape=(60, 80))
    assert (told.cut[0], told.at_edge[0]) == (False, True)
    past = taken(shapely.box(70, 20, 90, 30), tile_list=padded, raster_shape=(60, 80))
    assert past.polygons[0].bounds == (70, 20, 80, 30)
    # an edge of the raster told from its size is the one told from cores
    both = [taken(shapely.box(190, 190, 200, 200), raster_shape=s) for s in (None, (200, 340))]
    assert both[0].cut.tolist() == both[1].cut.tolist() == [True]
    assert both[0].at_edge.tolist() == both[1].at_edge.tolist() == [True]


def test_polygons_in_px_of_their_tile_are_moved():
    found = taken(shapely.box(10, 10, 30, 30), tiles=[1], in_tile_px=True)
    assert found.polygons[0].bounds == (150, 10, 170, 30)


def test_invalid_outlines_are_repaired_and_overhang_is_clipped():
    bow = shapely.Polygon([(10, 10), (40, 40), (40, 10), (10, 30)])
    both = shapely.MultiPolygon([shapely.box(10, 10, 20, 20), shapely.box(30, 10, 60, 20)])
    over = shapely.box(-5, 190, 30, 210)
    # a U whose foot lies past the window: two legs are left, the larger stays
    legs = (
        shapely.box(150, 20, 230, 60) - shapely.box(140, 30, 210, 50) - shapely.box(0, 50, 180, 60)
    )
    deep = shapely.force_3d(shapely.box(50, 50, 60, 60), 7)
    found = taken(bow, both, over, legs, deep)
    assert shapely.is_valid(found.polygons).all()
    assert (shapely.get_type_id(found.polygons) == shapely.GeometryType.POLYGON).all()
    assert not shapely.has_z(found.polygons).any()
    assert found.polygons[0].area == pytest.approx(
        shapely.area(max(shapely.get_parts(shapely.make_valid(bow)), key=shapely.area))
    )
    assert [p.bounds for p in found.polygons[1:]] == [
        (30, 10, 60, 20),
        (0, 190, 30, 200),
        (150, 20, 200, 30),
        (50, 50, 60, 60),
    ]
    assert not bow.is_valid


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        (shapely.Polygon(), r"polygon 1 is empty or not finite \(1 of 2\)"),
        (shapely.LineString([(0, 0), (9, 9)]), "polygon 1 is no Polygon or MultiPolygon"),
        (None, "polygon 1 is no Polygon"),
        ("POLYGON ((0 0, 1 1, 0 1))", "polygon 1 is no Polygon"),
        (shapely.Polygon([(0, 0), (9, 9), (4, 4)]), "polygon 1 has no area .*drop what shows"),
        (
            shapely.box(400, 10, 420, 30),
            "polygon 1 lies outside its tile's window.*in_tile_px=True",
        ),
    ],
)
def test_what_is_no_outline_is_refused(polygon, message):
    with pytest.raises(TileError, match=message):
        taken(shapely.box(10, 10, 30, 30), polygon)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_coordinates_that_are_not_finite_are_refused():
    with pytest.raises(TileError, match="polygon 0 is empty or not finite"):
        taken(shapely.Polygon([(0, 0), (np.nan, 9), (4, 4)]))
    with pytest.raises(TileError, match="polygon 0 is empty or not finite"):
        taken(shapely.Polygon([(0, 0), (np.inf, 9), (4, 4)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5]}, r"scores has shape \(1,\) but there are 2 polygons"),
        ({"scores": [0.5, 1.5]}, r"scores are not all in \[0, 1\]"),
        ({"scores": [0.5, np.nan]}, r"scores are not all in \[0, 1\]"),
        ({"labels": [0, -1]}, "labels must be indices"),
        ({"labels": [0.0, 1.0]}, "labels must be indices"),
        ({"tiles": [0, 2]}, "integers from 0 to 1: 2 tiles were given"),
        ({"tiles": [0, -1]}, "integers from 0 to 1"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change, message):
    columns = {"scores": [0.5, 0.6], "labels": [0, 0], "tiles": [0, 1], **change}
    polygons = [shapely.box(150, 10, 160, 20)] * 2
    with pytest.raises(TileError, match=message):
        Fragments.from_polygons(polygons, **columns, tile_list=PAIR)


def test_no_outlines_give_no_fragments():
    assert len(Fragments.from_polygons([], [], [], [], PAIR)) == 0


def test_outlines_of_a_painted_scene_give_the_objects_that_masks_give():
    scene = painted.blob_scene(6, size=500, count=100, large=2)
    tiles = painted.square_tiles(*scene.shape, 200, 60)
    traced = painted.detect(scene, tiles, painted.PaintedDetector())
    taken_ = Fragments.from_polygons(
        traced.polygons, traced.scores, traced.labels, traced.tiles, tiles, reach_px=2.5
    )
    assert np.array_equal(taken_.at_edge, traced.at_edge)
    verdict = painted.judge(scene, stitch(taken_, tiles))
    assert verdict.truth > 50
    assert (verdict.missed, verdict.extra, verdict.wrong_class) == (0, 0, 0)


# -- masks ------------------------------------------------------------------------------------


def test_masks_are_stitched_as_their_outlines_are():
    scene = painted.blob_scene(6, size=500, count=100, large=2)
    tiles = painted.square_tiles(*scene.shape, 200, 60)
    detector = painted.PaintedDetector(28)
    masks = [detector.find(scene.crop(tile.window)) for tile in tiles]
    expected = stitch(painted.detect(scene, tiles, detector), tiles)
    objects = stitch(masks, tiles)
    assert shapely.equals_exact(objects.polygons, expected.polygons, 0).all()
    assert np.array_equal(objects.touches_edge, expected.touches_edge)
    again, counts = stitch_counted(tuple(masks), tiles, raster_shape=scene.shape)
    assert shapely.equals_exact(again.polygons, expected.polygons, 0).all()
    assert counts.fragments == len(painted.detect(scene, tiles, detector))


def test_masks_need_one_record_per_tile():
    one = Instances.empty()
    with pytest.raises(TileError, match="got 1 Instances but 2 tiles"):
        stitch([one], PAIR)
    for wrong in (one, [one, None], [np.ones((3, 3)), one]):
        with pytest.raises(TileError, match="neither Fragments nor a sequence of Instances"):
            stitch(wrong, PAIR)
    assert len(stitch([one, one], PAIR)) == 0
    assert len(stitch([], [])) == 0
