"""What stitchers get wrong, with an exact detector: 0 missed, 0 extra, 0 of a wrong class.

Each scene is stitched at once and supertile by supertile; both must give the same bytes.
"""

import numpy as np
import painted
import pytest
import shapely
from scipy import ndimage

from geoseg.objects.stitch import split_settled, stitch
from geoseg.records import Fragments, Instances, Objects

FULL, NETWORK = painted.PaintedDetector(), painted.PaintedDetector(28)
GRIDS = [(128, 32), (160, 48), (256, 64)]
BLOCK = 2
"""Tiles along a supertile: 224, 272 and 448 px."""


def canvas(height, width):
    return np.zeros((height, width), np.int32), np.zeros((height, width), np.uint8)


def paint(ids, classes, mask, x, y, label=0):
    """Paint over what is there; the next id."""
    where = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
    number = ids.max() + 1
    ids[where][mask] = number
    classes[where][mask] = label + 1


def in_parts(fragments, tiles, **options):
    """Stitch supertile by supertile, then what waits at their seams."""
    home = np.array([(t.index[0] // BLOCK) * 1000 + t.index[1] // BLOCK for t in tiles])
    done, rest = [], []
    for supertile in np.unique(home):
        foreign = [t.window for t, h in zip(tiles, home, strict=True) if h != supertile]
        mine = fragments.take(home[fragments.tiles] == supertile)
        settled = split_settled(mine, tiles, foreign, **options)
        done.append(stitch(mine.take(settled), tiles, **options))
        rest.append(mine.take(~settled))
    done.append(stitch(Fragments.concatenate(rest), tiles, **options))
    return Objects.concatenate(done)


def by_content(objects):
    places = np.unique(shapely.to_wkb(objects.polygons), return_inverse=True)[1]
    return objects.take(np.lexsort((objects.scores, objects.labels, places)))


def stitched(fragments, tiles, **options):
    """Stitch at once; the parts must give the same bytes."""
    objects = by_content(stitch(fragments, tiles, **options))
    parts = by_content(in_parts(fragments, tiles, **options))
    assert shapely.equals_exact(objects.polygons, parts.polygons, 0).all()
    for name in ("scores", "labels", "n_parts", "complete", "touches_edge"):
        assert np.array_equal(getattr(objects, name), getattr(parts, name))
    return objects


def faults(scene, objects):
    verdict = painted.judge(scene, objects)
    assert verdict.truth == len(np.unique(scene.ids)) - 1
    return verdict.missed, verdict.extra, verdict.wrong_class, verdict.invalid


def exact(scene, grid, detector, **options):
    tiles = painted.square_tiles(*scene.shape, *grid)
    objects = stitched(painted.detect(scene, tiles, detector), tiles, **options)
    assert faults(scene, objects) == (0, 0, 0, 0)
    return objects


def l_shape(size, wall):
    mask = np.zeros((size, size), bool)
    mask[:, :wall] = mask[-wall:] = True
    return mask


def comb(size, wall, gap):
    mask = np.zeros((size, size), bool)
    mask[-wall:] = True
    mask[:, np.arange(size) % (wall + gap) < wall] = True
    return mask


def perforated(size, hole, pitch):
    """A hall with courts."""
    y, x = np.mgrid[:size, :size]
    mask = ~((x % pitch >= pitch - hole) & (y % pitch >= pitch - hole))
    mask[-10:] = mask[:, -10:] = True
    return mask


@pytest.fixture(scope="module")
def giants():
    """Larger than every supertile here: L, U both ways, ring, hall with courts, comb, bars."""
    ids, classes = canvas(1600, 1600)
    paint(ids, classes, l_shape(620, 40), 20, 20)
    paint(ids, classes, painted.u_shape(500, 45), 110, 30, 1)
    paint(ids, classes, painted.u_shape(600, 50, 1), 700, 20)
    paint(ids, classes, painted.ring(560, 45), 30, 720, 2)
    paint(ids, classes, painted.ring(380, 40), 120, 810, 2)
    paint(ids, classes, perforated(560, 40, 100), 700, 700)
    paint(ids, classes, np.ones((30, 1340), bool), 40, 1380)
    paint(ids, classes, np.ones((1550, 30), bool), 1420, 20, 1)
    paint(ids, classes, np.ones((1550, 30), bool), 1455, 20, 1)
    paint(ids, classes, painted.u_shape(300, 30, 2), 780, 150, 1)
    return painted.Scene(ids, classes)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("detector", [FULL, NETWORK], ids=["full", "28"])
def test_objects_larger_than_a_supertile_stay_whole(giants, grid, detector):
    objects = exact(giants, grid, detector)
    assert (objects.n_parts > 1).all()
    assert objects.complete.all()
    truth, _ = giants.truth()
    holes = sorted(len(p.interiors) for p in truth)
    if detector is FULL:
        assert sorted(len(p.interiors) for p in objects.polygons) == holes
        assert shapely.area(objects.polygons).sum() == pytest.approx(
            shapely.area(truth).sum(), rel=0.002
        )


@pytest.mark.parametrize("grid", GRIDS)
def test_a_comb_keeps_all_its_teeth(grid):
    ids, classes = canvas(700, 700)
    paint(ids, classes, comb(600, 20, 40), 40, 40)
    (found,) = exact(painted.Scene(ids, classes), grid, FULL).polygons
    assert found.area == pytest.approx((ids > 0).sum(), rel=0.01)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rise", [0.1, 0.45, 1.0, -0.7])
def test_thin_diagonals_cross_supertiles_in_one_piece(grid, rise):
    ids, classes = canvas(1000, 800)
    for k, thickness in enumerate((1, 2, 3, 1, 2, 3)):
        line = painted.diagonal(600, thickness, abs(rise))
        paint(ids, classes, line[:: -1 if rise < 0 else 1], 50 + 3 * k, 30 + 60 * k)
    objects = exact(painted.Scene(ids, classes), grid, FULL)
    assert len(objects) == 6
    bounds = shapely.bounds(objects.polygons)
    assert (bounds[:, 2] - bounds[:, 0]).min() > 599
    assert (objects.n_parts > 1).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("detector", [FULL, NETWORK], ids=["full", "28"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_rows_wall_to_wall_are_told_apart(grid, detector, class_agnostic):
    rng = np.random.default_rng(0)
    ids, classes = canvas(500, 500)
    y = 0
    while y < 500:
        height = int(rng.integers(8, 60))
        x = 0
        while x < 500:
            width = int(rng.integers(8, 60))
            block = np.ones((min(height, 500 - y), min(width, 500 - x)), bool)
            # what the raster's edge leaves a sliver of joins nobody: leave it out
            if min(block.shape) >= 4:
                paint(ids, classes, block, x, y, int(rng.integers(3)))
            x += width
        y += height
    objects = exact(painted.Scene(ids, classes), grid, detector, class_agnostic=class_agnostic)
    assert len(objects) > 200


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("detector", [FULL, NETWORK], ids=["full", "28"])
def test_what_lies_on_or_in_a_thing_of_another_class_stays(grid, detector):
    ids, classes = canvas(700, 700)
    for k, (x, y) in enumerate(np.mgrid[20:680:170, 20:680:170].reshape(2, -1).T):
        paint(ids, classes, np.ones((150, 150), bool), x, y, k % 2)
        # on it, of another class: one to nine px from its walls, and one in the middle
        for dx, dy, size in ((4, 4, 20), (120, 9, 25), (60, 65, 30), (10, 110, 16), (128, 128, 12)):
            paint(ids, classes, np.ones((size, size), bool), x + dx, y + dy, 2)
    exact(painted.Scene(ids, classes), grid, detector)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_what_stands_in_a_court_stays(grid, class_agnostic):
    ids, classes = canvas(700, 700)
    for size, wall in ((660, 50), (480, 40), (300, 40)):
        at = (700 - size) // 2
        paint(ids, classes, np.ones((size, size), bool), at, at)
        inner = np.s_[at + wall : 700 - at - wall]
        ids[inner, inner] = classes[inner, inner] = 0
    paint(ids, classes, np.ones((120, 150), bool), 280, 290)
    ids = np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.int32)
    objects = exact(painted.Scene(ids, classes), grid, FULL, class_agnostic=class_agnostic)
    assert sorted(len(p.interiors) for p in objects.polygons) == [0, 1, 1, 1]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("detector", [FULL, NETWORK], ids=["full", "28"])
def test_what_lies_at_the_rasters_edges_and_corners_is_found_once(grid, detector):
    # the last row and column of tiles move inwards: sizes that no stride divides
    for height, width in ((413, 577), (300, 129), (128, 700)):
        ids, classes = canvas(height, width)
        for y, x in ((0, 0), (0, width - 9), (height - 9, 0), (height - 9, width - 9)):
            paint(ids, classes, np.ones((9, 9), bool), x, y)
        for at in range(16, width - 40, 24):
            paint(ids, classes, np.ones((5 + at % 13, 18), bool), at, 0, at % 3)
            depth = 5 + at % 11
            paint(ids, classes, np.ones((depth, 18), bool), at, height - depth, at % 3)
        for at in range(30, height - 60, 24):
            paint(ids, classes, np.ones((18, 5 + at % 13), bool), 0, at, at % 3)
            depth = 5 + at % 11
            paint(ids, classes, np.ones((18, depth), bool), width - depth, at, at % 3)
        objects = exact(painted.Scene(ids, classes), grid, detector)
        assert objects.touches_edge.all()
        assert objects.complete.all()


@pytest.fixture(scope="module")
def torn():
    """Blobs beside holes without data: what is left of them, all of them, and the validity."""
    whole = painted.blob_scene(11, size=900, count=900, large=4, small_px=(5, 32))
    valid = np.ones(whole.shape, bool)
    valid[200:420, 300:560] = False
    valid[700:, :150] = False
    y, x = np.mgrid[:900, :900]
    valid &= np.hypot(x - 700, y - 650) > 110
    valid &= x + y < 1700
    shown, left = whole.ids.copy(), np.where(valid, whole.ids, 0)
    for number in np.unique(shown[~valid]):
        # what a hole cuts in two or leaves little of is no fair truth
        share = (left == number).sum() / (shown == number).sum()
        if share < 0.6 or ndimage.label(left == number, np.ones((3, 3)))[1] > 1:
            left[left == number] = 0
            shown[shown == number] = 0
    scenes = []
    for numbers in (left, shown):
        ids = np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape).astype(np.int32)
        scenes.append(painted.Scene(ids, np.where(ids > 0, whole.classes, 0).astype(np.uint8)))
    assert len(np.unique(left[ndimage.binary_dilation(~valid) & valid])) > 15
    return *scenes, valid


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("detector", [FULL, NETWORK], ids=["full", "28"])
@pytest.mark.parametrize("overhang", [False, True], ids=["torn", "overhanging"])
def test_what_lies_beside_holes_without_data_is_found_once(torn, grid, detector, overhang):
    left, shown, valid = torn
    tiles = [t for t in painted.square_tiles(*left.shape, *grid) if valid[window_of(t)].any()]
    scene = shown if overhang else left
    found = [
        painted.detect_tile(scene, tile, detector, row, valid=valid[window_of(tile)])
        for row, tile in enumerate(tiles)
    ]
    objects = stitched(Fragments.concatenate(found), tiles)
    assert faults(left, objects) == (0, 0, 0, 0)


def window_of(tile):
    w = tile.window
    return np.s_[w.row_off : w.row_off + w.height, w.col_off : w.col_off + w.width]


class Wavering(painted.PaintedDetector):
    """Names a thing differently in every tile."""

    def find(self, pixels, cut_sides=(True,) * 4):
        found = super().find(pixels, cut_sides)
        labels = (
            found.labels + np.random.default_rng(pixels.sum()).integers(3, size=len(found))
        ) % 3
        return Instances(found.boxes, found.scores, labels, found.masks)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cells", [None, 28], ids=["full", "28"])
def test_class_agnostic_makes_one_object_of_what_tiles_name_differently(grid, cells):
    scene = painted.blob_scene(12, size=700, count=200, large=3)
    tiles = painted.square_tiles(*scene.shape, *grid)
    fragments = painted.detect(scene, tiles, Wavering(cells))
    missed, extra, _, invalid = faults(scene, stitched(fragments, tiles, class_agnostic=True))
    assert (missed, extra, invalid) == (0, 0, 0)
    # kept apart, the same detections give things twice
    assert faults(scene, stitched(fragments, tiles))[1] > 20
