"""Painted scenes with known truth, and a detector that reads them, exact or disturbed.

A scene is two rasters: object ids and classes. `PaintedDetector` finds in a tile what is painted
there, cut by the window as a network's masks would be. With ``disturb=True`` it errs as networks
do at seams: boxes a little off, masks that end short of a cut, blown-up slivers, double reports.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from rasterio.windows import Window
from scipy import ndimage

from geoseg.objects.vectorize import vectorize
from geoseg.records import Fragments, Instances, Objects, Tile

CLASSES = ("roof", "tree", "boat")
GAP_PX = 2
EDGE_PX = 12
ID_MODULUS = 65536


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What is painted: ids (H, W), 0 = nothing, and classes (H, W), class index + 1, 0 = nothing."""

    ids: np.ndarray
    classes: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape

    @property
    def pixels(self) -> np.ndarray:
        """(2, H, W) uint16: what `PaintedDetector` reads."""
        return self.crop(Window(0, 0, self.ids.shape[1], self.ids.shape[0]))

    def crop(self, window: Window) -> np.ndarray:
        """Return the pixels (2, h, w) of a window, 0 past the raster."""
        y, x, h, w = (int(v) for v in (window.row_off, window.col_off, window.height, window.width))
        part = np.stack(
            [self.ids[y : y + h, x : x + w] % ID_MODULUS, self.classes[y : y + h, x : x + w]]
        )
        room = ((0, 0), (0, h - part.shape[1]), (0, w - part.shape[2]))
        return np.pad(part.astype(np.uint16), room)

    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each object's exact area as rows of pixels joined, and its class index."""
        polygons, labels = [], []
        for row, where in enumerate(ndimage.find_objects(self.ids), start=1):
            if where is None:
                continue
            mask = self.ids[where] == row
            polygons.append(outline(mask, where[1].start, where[0].start))
            labels.append(int(self.classes[where][mask][0]) - 1)
        return np.array(polygons, object), np.array(labels)


def outline(mask: np.ndarray, x: float, y: float):
    """Return the area of a mask along pixel edges, built from its runs of pixels."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return shapely.union_all(shapely.box(x + starts, y + rows, x + ends, y + rows + 1))


class Painter:
    """Paints shapes where they leave a gap to everything painted before."""

    def __init__(self, height: int, width: int, rng: np.random.Generator):
        self.ids = np.zeros((height, width), np.int32)
        self.classes = np.zeros((height, width), np.uint8)
        self.taken = np.zeros((height, width), bool)
        self.rng = rng
        self.count = 0

    def paint(self, mask: np.ndarray, x: int, y: int, *, label: int | None = None) -> bool:
        """Paint a mask with its corner at (x, y), clipped; False where there is no room."""
        height, width = self.ids.shape
        y0, x0, y1, x1 = (
            max(y, 0),
            max(x, 0),
            min(y + len(mask), height),
            min(x + mask.shape[1], width),
        )
        mask = mask[y0 - y : max(y1 - y, 0), x0 - x : max(x1 - x, 0)]
        # a shape that the raster's edge cuts in two or leaves a sliver of is no fair truth
        if mask.size == 0 or mask.sum() < 12 or ndimage.label(mask, np.ones((3, 3)))[1] != 1:
            return False
        # nor is one that hangs together by a strip along the edge alone: no 28 x 28 mask shows it
        inner = mask[
            max(EDGE_PX - y0, 0) : height - EDGE_PX - y0,
            max(EDGE_PX - x0, 0) : width - EDGE_PX - x0,
        ]
        if ndimage.label(inner, np.ones((3, 3)))[1] > 1:
            return False
        where = np.s_[y0:y1, x0:x1]
        if (self.taken[where] & mask).any():
            return False
        self.count += 1
        self.ids[where][mask] = self.count
        self.classes[where][mask] = 1 + (
            int(self.rng.integers(len(CLASSES))) if label is None else label
        )
        wide = np.s_[max(y0 - GAP_PX, 0) : y1 + GAP_PX, max(x0 - GAP_PX, 0) : x1 + GAP_PX]
        near = ndimage.binary_dilation(self.ids[wide] == self.count, np.ones((3, 3)), GAP_PX)
        self.taken[wide] |= near
        return True

    def scatter(self, make, count: int, tries: int = 40) -> None:
        """Paint ``count`` shapes at random places."""
        height, width = self.ids.shape
        for _ in range(count):
            mask = make()
            for _ in range(tries):
                x = int(self.rng.integers(-mask.shape[1] // 3, width - mask.shape[1] // 2))
                y = int(self.rng.integers(-mask.shape[0] // 3, height - mask.shape[0] // 2))
                if self.paint(mask, x, y):
                    break

    def scene(self) -> Scene:
        return Scene(self.ids, self.classes)


def blob(size: float, rng: np.random.Generator) -> np.ndarray:
    """Return a rounded, bumpy, tilted shape about ``size`` px long, in one piece."""
    n = int(np.ceil(size)) + 2
    y, x = np.mgrid[:n, :n] + 0.5 - n / 2
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    v = v / rng.uniform(0.6, 1.0)
    theta = np.arctan2(v, u)
    waves = sum(
        rng.uniform(0, 0.12 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    return tidy(np.hypot(u, v) <= size / 2 * (1 + waves) / 1.1)


def tidy(mask: np.ndarray) -> np.ndarray:
    """Keep the largest piece and trim empty borders."""
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    if count > 1:
        mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def ring(size: int, wall: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    r = np.hypot(x, y)
    return (r <= size / 2) & (r >= size / 2 - wall)


def u_shape(size: int, wall: int, turn: int = 0) -> np.ndarray:
    mask = np.ones((size, size), bool)
    mask[:-wall, wall:-wall] = False
    return np.rot90(mask, turn)


def diagonal(length: int, thickness: int, rise: float = 1.0) -> np.ndarray:
    """Return a line ``length`` columns long; cells may touch by corners only."""
    x = np.arange(length)
    y = np.floor(x * rise).astype(int)
    mask = np.zeros((int(y.max()) + thickness, length), bool)
    for k in range(thickness):
        mask[y + k, x] = True
    return mask


def blob_scene(
    seed: int, *, size: int = 1100, count: int = 400, large: int = 6, small_px=(5, 45)
) -> Scene:
    """Hundreds of blobs of 5 to 45 px, six of 150 to 420 px, three classes, gaps of 2 px."""
    rng = np.random.default_rng(seed)
    painter = Painter(size, size, rng)
    painter.scatter(lambda: blob(rng.uniform(150, 420), rng), large)
    painter.scatter(lambda: blob(rng.uniform(*small_px), rng), count)
    return painter.scene()


def shape_scene(seed: int, *, size: int = 1100, count: int = 200, thin: bool = False) -> Scene:
    """Bars, rings and U shapes of several tiles among blobs; with ``thin`` also 1 to 3 px diagonals."""
    rng = np.random.default_rng(seed)
    painter = Painter(size, size, rng)
    for _ in range(3):
        wall = int(rng.integers(35, 50))
        long = int(rng.integers(260, 420))
        painter.scatter(lambda: np.ones((wall, long), bool), 1)  # noqa: B023
        painter.scatter(lambda: np.ones((long, wall), bool), 1)  # noqa: B023
        painter.scatter(lambda: ring(long, wall), 1)  # noqa: B023
        painter.scatter(lambda: u_shape(long, wall, int(rng.integers(4))), 1)  # noqa: B023
    if thin:
        for thickness in (1, 2, 3):
            for rise in (1.0, 0.45):
                line = diagonal(int(rng.integers(200, 500)), thickness, rise)
                painter.scatter(lambda: line[:: int(rng.choice([-1, 1]))], 1, tries=300)  # noqa: B023
    painter.scatter(lambda: blob(rng.uniform(5, 45), rng), count)
    return painter.scene()


def square_tiles(
    height: int, width: int, tile_size: int, overlap: int, shift: int = 0
) -> list[Tile]:
    """Cut a raster into square windows; the last shifts inwards, cores meet in mid-overlap.

    ``shift`` moves the first inner window by some px, for tests that move the grid.
    """

    def axis(length: int) -> list[tuple[int, int, int]]:
        stride = tile_size - overlap
        starts = [0]
        nxt = stride - shift
        while starts[-1] + tile_size < length:
            starts.append(min(nxt, length - tile_size))
            nxt += stride
        seams = [(a + tile_size + b) // 2 for a, b in pairwise(starts)]
        edges = [0, *seams, length]
        return [(s, edges[i], edges[i + 1]) for i, s in enumerate(starts)]

    return [
        Tile((i, j), Window(c0, r0, c1 - c0, r1 - r0), Window(x, y, tile_size, tile_size))
        for i, (y, r0, r1) in enumerate(axis(height))
        for j, (x, c0, c1) in enumerate(axis(width))
    ]


class PaintedDetector:
    """A detector over painted pixels: band 1 object ids modulo 65536, band 2 class index + 1.

    One instance per piece of an object that the window shows (a U cut across its legs gives two).
    ``mask_size`` lays the masks on a fixed grid, as Mask R-CNN does; None keeps full resolution.
    Errors depend on the pixels and ``seed`` alone, never on the order of tiles.
    """

    classes = CLASSES

    def __init__(self, mask_size: int | None = None, *, disturb: bool = False, seed: int = 0):
        self.mask_size = mask_size
        self.disturb = disturb
        self.seed = seed

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [self.find(pixels) for pixels in np.asarray(tiles)]

    def find(self, pixels: np.ndarray, cut_sides: Sequence[bool] = (True,) * 4) -> Instances:
        """Find what one window shows; ``cut_sides`` (left, top, right, bottom) cut objects off.

        A side that is the raster's own edge cuts nothing off: there is no more to see.
        """
        rng = np.random.default_rng(
            [self.seed, zlib.crc32(np.ascontiguousarray(pixels[:2]).tobytes())]
        )
        found = []
        for mask, box, label in pieces(pixels):
            score = rng.uniform(0.7, 1.0)
            if not self.disturb:
                found.append((mask, box, label, score))
                continue
            found.append((*disturbed(mask, box, pixels.shape[1:], cut_sides, rng), label, score))
            if max(mask.shape) >= 30 and rng.random() < 0.1:
                twin_mask, twin_box = disturbed(mask, box, pixels.shape[1:], cut_sides, rng)
                found.append((twin_mask, jitter(twin_box, rng, 4.0, 0.06), label, score * 0.9))
        found = [f for f in found if f[0].size and f[1][2] > f[1][0] and f[1][3] > f[1][1]]
        if not found:
            return Instances.empty(self.mask_size or 28)
        masks = [f[0].astype(np.float32) for f in found]
        if self.mask_size:
            masks = np.stack([resample(m, self.mask_size) for m in masks])
        return Instances(
            boxes=np.array([f[1] for f in found], np.float32),
            scores=np.array([f[3] for f in found], np.float32),
            labels=np.array([f[2] for f in found], np.int64),
            masks=masks,
        )


def pieces(pixels: np.ndarray):
    """Yield mask, box (x0, y0, x1, y1) and class index of each connected piece in a window."""
    ids = np.where(pixels[1] > 0, pixels[0].astype(np.int64) + 1, 0)
    for value, where in enumerate(ndimage.find_objects(ids), start=1):
        if where is None:
            continue
        parts, _ = ndimage.label(ids[where] == value, np.ones((3, 3)))
        label = int(pixels[1][where][parts > 0][0]) - 1
        for k, part in enumerate(ndimage.find_objects(parts), start=1):
            y, x = where[0].start + part[0].start, where[1].start + part[1].start
            mask = parts[part] == k
            yield mask, np.array([x, y, x + mask.shape[1], y + mask.shape[0]], float), label


def jitter(box: np.ndarray, rng: np.random.Generator, most_px: float, share: float) -> np.ndarray:
    """Move each side of a box by up to ``most_px``, less for small boxes."""
    side = np.tile(box[2:] - box[:2], 2)
    return box + rng.uniform(-1, 1, 4) * np.minimum(most_px, share * side)


def disturbed(
    mask: np.ndarray,
    box: np.ndarray,
    shape: tuple[int, int],
    cut_sides: Sequence[bool],
    rng: np.random.Generator,
):
    """Return a mask and box as a network errs: short or inflated at a cut, box sides off."""
    height, width = shape
    box = box.copy()
    for axis, (low, high, limit) in enumerate([(0, 2, width), (1, 3, height)]):
        extent = box[high] - box[low]
        at_low = cut_sides[low] and box[low] <= 0
        at_high = cut_sides[high] and box[high] >= limit
        if at_low == at_high:
            continue
        if extent < 12 and rng.random() < 0.5:
            # a sliver taken for a small whole object: stretched away from the cut
            box[high if at_low else low] += extent * rng.uniform(0.3, 1.5) * (1 if at_low else -1)
            continue
        short = int(rng.uniform(0, min(0.2 * extent, 10)))
        if short:
            kept = np.s_[short:] if at_low else np.s_[: int(extent) - short]
            mask = mask[(np.s_[:], kept) if axis == 0 else (kept, np.s_[:])]
            box[low if at_low else high] += short if at_low else -short
    box = jitter(box, rng, 1.5, 0.06)
    return mask, np.clip(box, 0, [width, height, width, height])


def resample(mask: np.ndarray, size: int) -> np.ndarray:
    """Return the share of each of ``size`` x ``size`` cells that a mask covers."""

    def along(array: np.ndarray) -> np.ndarray:
        sums = np.concatenate([np.zeros((1, *array.shape[1:])), np.cumsum(array, axis=0)])
        at = np.linspace(0, len(array), size + 1)
        low = np.minimum(at.astype(int), len(array) - 1)
        part = (at - low)[:, None]
        edges = sums[low] * (1 - part) + sums[low + 1] * part
        return np.diff(edges, axis=0) * size / len(array)

    return np.clip(along(along(mask).T).T, 0, 1).astype(np.float32)


def detect_tile(
    scene: Scene, tile: Tile, detector: PaintedDetector, tile_row: int, **kwargs
) -> Fragments:
    """Run the detector on one window of a scene and vectorize what it finds."""
    window, (height, width) = tile.window, scene.shape
    right, bottom = window.col_off + window.width, window.row_off + window.height
    sides = (window.col_off > 0, window.row_off > 0, right < width, bottom < height)
    found = detector.find(scene.crop(window), sides)
    return vectorize(found, tile, tile_row=tile_row, raster_shape=scene.shape, **kwargs)


def detect(scene: Scene, tiles: Sequence[Tile], detector: PaintedDetector) -> Fragments:
    """Return the fragments of all tiles."""
    return Fragments.concatenate(
        [detect_tile(scene, t, detector, row) for row, t in enumerate(tiles)]
    )


@dataclass(frozen=True)
class Verdict:
    """How found objects compare with the truth."""

    truth: int
    missed: int
    extra: int
    wrong_class: int
    invalid: int
    worst_iou: float
    missed_rows: np.ndarray
    extra_rows: np.ndarray


def judge(scene: Scene, objects: Objects) -> Verdict:
    """Match objects to truth one to one at IoU 0.5; ``worst_iou`` is the 1 % quantile."""
    truth, labels = scene.truth()
    found = objects.polygons
    a, b = shapely.STRtree(found).query(truth, predicate="intersects")
    inter = shapely.area(shapely.intersection(truth[a], found[b]))
    iou = inter / (shapely.area(truth[a]) + shapely.area(found[b]) - inter)
    order = np.argsort(-iou, kind="stable")
    partner = np.full(len(truth), -1)
    used = np.zeros(len(found), bool)
    best = []
    for k in order:
        if iou[k] >= 0.5 and partner[a[k]] < 0 and not used[b[k]]:
            partner[a[k]] = b[k]
            used[b[k]] = True
            best.append(iou[k])
    hit = partner >= 0
    return Verdict(
        truth=len(truth),
        missed=int((~hit).sum()),
        extra=int((~used).sum()),
        wrong_class=int((objects.labels[partner[hit]] != labels[hit]).sum()),
        invalid=int((~shapely.is_valid(found)).sum()),
        worst_iou=float(np.quantile(best, 0.01)) if best else 0.0,
        missed_rows=np.flatnonzero(~hit),
        extra_rows=np.flatnonzero(~used),
    )
