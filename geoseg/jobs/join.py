"""From parts to finished objects, out of core: a tree of joins over an image's supertiles.

A leaf takes one part, each level above joins blocks of 2 x 2::

    level 0   [part] [part] [part] [part]      finished: clear of what other parts saw
    level 1   [   block   ] [   block   ]      finished: what waited at the seams inside the block
    level 2   [          image          ]      finished: the rest

What is still open, fragments that tiles outside the block may have seen and objects that may still
get a neighbour, goes on to the level above: as much as fits along the block's border, whatever the
number of objects. `geoseg.objects.stitch` and `geoseg.objects.shape` see to it that joining in
parts gives exactly what joining all at once gives, so neither the supertiles nor the workers show.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely
from affine import Affine

from geoseg.errors import OutputError, WorkerLostError
from geoseg.globe import turned
from geoseg.imagery.georef import geodesic_area_perimeter
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.placing import Placing
from geoseg.jobs.executor import Workers
from geoseg.jobs.memory import peak_mb
from geoseg.jobs.parts import Part, PartSummary, read_part, tiles_around, write_part
from geoseg.objects.regions import polygonal
from geoseg.objects.seams import SeamCounts, count_duplicates, in_bands
from geoseg.objects.shape import (
    ShapeSettings,
    fit_shapes,
    form_shapes,
    largest_polygon,
    undecided_shapes,
)
from geoseg.objects.stitch import split_settled, stitch_counted
from geoseg.records import DoubleArray, Fragments, GeometryArray, Objects, Tile

log = logging.getLogger(__name__)

BLOCK_PX = 4096
"""Side of the squares in the order of which objects are written, grid px: what is near on the
ground is near in the file, and a writer holds the objects of one square."""

TRIES = 5
"""How often a join whose workers died is run alone before the run is given up, resumable."""

_KEYS = ("y", "x", "label", "area")
"""Objects of a square are sorted as one reads; class and size decide on one spot, then the uid."""


@dataclass(frozen=True, slots=True)
class ImageJoin:
    """What joins must know of an image; the same for all of its tasks."""

    number: int
    """Index of the image in the run."""
    name: str
    fingerprint: str
    grid: TileGrid
    transform: Affine
    """Grid px to the image's CRS."""
    gsd_m: float
    crs_wkt: str
    """Of the image."""
    output_wkt: str
    """CRS of the output; '' where it is the image's."""
    classes: tuple[str, ...]
    shape: ShapeSettings
    class_agnostic: bool
    aoi_wkb: bytes | None
    """Area of interest, grid px."""
    cut: bool = False
    """Whether longitudes of the output end at the antimeridian."""

    @property
    def placing(self) -> Placing:
        """The way to the output."""
        return Placing(self.transform, self.crs_wkt, self.output_wkt, self.cut)

    @property
    def levels(self) -> int:
        """Levels of the tree; at least 1."""
        return int(max(self.grid.supertile_shape) - 1).bit_length() + 1


@dataclass(frozen=True, slots=True)
class JoinTask:
    """One block of supertiles to join."""

    image: ImageJoin
    level: int
    index: tuple[int, int]
    """(row, col) among the blocks of the level; a block has 2**level supertiles a side."""
    inputs: tuple[Path, ...]
    """The part of a leaf, or what its blocks left open."""
    folder: Path
    """Where results go."""

    @property
    def finished(self) -> Path:
        """Where finished objects go."""
        return self.folder / f"{self._name}.arrow"

    @property
    def left_open(self) -> Path:
        """Where what is still open goes."""
        return self.folder / f"{self._name}.parquet"

    @property
    def _name(self) -> str:
        return f"{self.image.number}-{self.level}-{self.index[0]}-{self.index[1]}"


@dataclass(frozen=True, slots=True)
class JoinSummary:
    """What one join did."""

    squares: tuple[tuple[int, int], ...]
    """(row, col) of the squares of `BLOCK_PX` in the finished file, one batch each, in order."""
    objects: int
    """Finished objects."""
    left_open: bool
    """Whether anything goes on to the level above."""
    seams: SeamCounts
    """How tiles agreed on what was stitched here, and duplicates among what was finished."""
    peak_mb: float
    """Largest resident memory of the process so far."""


def run_join(task: JoinTask) -> JoinSummary:
    """Join one block: stitch what no tile outside can change any more, finish, write."""
    image = task.image
    parts = [read_part(path) for path in task.inputs]
    fragments, tiles = _together(parts)
    side, (rows, cols) = 2**task.level, image.grid.supertile_shape
    row, col = (side * i for i in task.index)
    foreign = image.grid.foreign_ground(
        range(row, min(row + side, rows)), range(col, min(col + side, cols))
    )
    settled = np.zeros(len(fragments), bool)
    if task.level or not len(foreign):
        # a leaf's own fragments were parted by the task that found them
        settled = split_settled(fragments, tiles, foreign, class_agnostic=image.class_agnostic)
    stitched, seams = stitch_counted(
        fragments.take(settled), tiles, class_agnostic=image.class_agnostic
    )
    waiting, tiles = tiles_around(fragments.take(~settled), tiles)
    objects = _inside(image, Objects.concatenate([*(p.settled for p in parts), stitched]))
    formed, keep = form_shapes(objects.polygons, image.shape, gsd_m=image.gsd_m)
    objects, formed = objects.take(keep), formed[keep]
    open_ground = np.concatenate([foreign, shapely.bounds(waiting.polygons).reshape(-1, 4)])
    undecided = undecided_shapes(formed, open_ground, image.shape)
    table, duplicates = _table(image, objects.take(~undecided), formed[~undecided])
    squares = _write_squares(task.finished, table)
    left = Part(
        PartSummary(image.number, task.index, "done"), objects.take(undecided), waiting, tiles
    )
    left_open = len(left.settled) + len(left.waiting) > 0
    if left_open:
        write_part(task.left_open, left, durable=False)
    return JoinSummary(squares, len(table), left_open, seams + duplicates, peak_mb())


def _together(parts: Sequence[Part]) -> tuple[Fragments, tuple[Tile, ...]]:
    """Return the waiting fragments of several parts, and the tiles that they refer to."""
    waiting: list[Fragments] = []
    tiles: list[Tile] = []
    for part in parts:
        waiting.append(replace(part.waiting, tiles=part.waiting.tiles + len(tiles)))
        tiles += part.tiles
    return Fragments.concatenate(waiting), tuple(tiles)


def _inside(image: ImageJoin, objects: Objects) -> Objects:
    """Return the objects whose representative point lies in the area of interest."""
    if image.aoi_wkb is None or len(objects) == 0:
        return objects
    aoi = shapely.from_wkb(image.aoi_wkb)
    shapely.prepare(aoi)
    return objects.take(shapely.intersects(aoi, shapely.point_on_surface(objects.polygons)))


def _table(
    image: ImageJoin, objects: Objects, formed: GeometryArray
) -> tuple[pa.Table, SeamCounts]:
    """Finish outlines and put objects on the earth: all columns but the number, and sort keys.

    The uid and the place in the order come from the outline as found: they must not change with
    how it is finished.
    """
    polygons, keep = fit_shapes(
        formed, objects.scores, objects.labels, image.shape, gsd_m=image.gsd_m
    )
    polygons, objects = polygons[keep], objects.take(keep)
    centres = shapely.get_coordinates(shapely.centroid(objects.polygons))
    duplicates = count_duplicates(
        polygons, objects.labels, in_bands(centres, *image.grid.window_spans())
    )
    x, y = centres.T.round(2)
    size = shapely.area(objects.polygons)
    placed = image.placing.in_image_crs(polygons)
    # before they are projected: the ground is the image's
    area, perimeter = geodesic_area_perimeter(placed, image.crs_wkt)
    placed = _sound(image.placing.to_output(placed))
    names = np.array(image.classes, dtype=object)
    table = pa.table(
        {
            "square_row": (y // BLOCK_PX).astype(np.int64),
            "square_col": (x // BLOCK_PX).astype(np.int64),
            "y": y,
            "x": x,
            "label": objects.labels,
            "area": size,
            "uid": _uids(image, objects, centres),
            "class": pa.array(names[objects.labels], pa.string()),
            "score": objects.scores.astype(np.float64).round(6),
            "area_m2": area.round(3),
            "perimeter_m": perimeter.round(3),
            "n_parts": objects.n_parts.astype(np.int32),
            "touches_edge": objects.touches_edge,
            "image": pa.array([image.name] * len(objects), pa.string()),
            "geometry": pa.array(shapely.to_wkb(placed), pa.binary()),
        }
    )
    return table, duplicates


def _sound(placed: GeometryArray) -> GeometryArray:
    """Return outlines as they are written: valid, in one piece unless cut, shells to the left."""
    out = np.array(placed, dtype=object)
    several = shapely.get_type_id(out) == shapely.GeometryType.MULTIPOLYGON
    out[~several] = largest_polygon(out[~several])
    out[several] = polygonal(out[several])[0]
    return turned(out)


def _uids(image: ImageJoin, objects: Objects, centres: DoubleArray) -> pa.Array:
    """Return names made of image, class, place and size: the same in every run."""
    heads = [f"{image.fingerprint}|{name}|" for name in image.classes]
    texts = [
        f"{heads[label]}{x:.1f}|{y:.1f}|{area:.0f}"
        for label, (x, y), area in zip(
            objects.labels.tolist(),
            centres.tolist(),
            shapely.area(objects.polygons).tolist(),
            strict=True,
        )
    ]
    return pa.array([hashlib.sha256(t.encode()).hexdigest()[:16] for t in texts], pa.string())


def _write_squares(path: Path, table: pa.Table) -> tuple[tuple[int, int], ...]:
    """Write one Arrow record batch per square, and return the squares."""
    if len(table) == 0:
        return ()
    row, col = (table[name].to_numpy() for name in ("square_row", "square_col"))
    order = np.lexsort([col, row])
    row, col = row[order], col[order]
    starts = np.flatnonzero(np.diff(row, prepend=row[0] - 1) | np.diff(col, prepend=col[0] - 1))
    ends = [*starts[1:].tolist(), len(row)]
    table = table.drop_columns(["square_row", "square_col"]).take(order)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(path, table.schema, options=options) as file:
        for start, end in zip(starts.tolist(), ends, strict=True):
            file.write_batch(table.slice(start, end - start).combine_chunks().to_batches()[0])
    return tuple(zip(row[starts].tolist(), col[starts].tolist(), strict=True))


Joined = list[tuple[JoinTask, JoinSummary]]
"""The joins of one image."""


def join_parts(
    images: Sequence[ImageJoin],
    parts: Mapping[tuple[int, tuple[int, int]], Path],
    folder: Path,
    workers: Workers,
) -> list[Joined]:
    """Join the parts of every image, level by level.

    Parameters
    ----------
    images : sequence of ImageJoin
        Numbered in their order.
    parts : mapping of (image, (row, col)) to Path
        The part of each supertile that has one.
    folder : Path
        Where results go.
    workers : Workers
        Who does it; the blocks of one level at the same time.

    Returns
    -------
    list of list of (JoinTask, JoinSummary)
        For each image, what `finished_objects` reads.

    Raises
    ------
    OutputError
        If a join failed.
    """
    done: list[Joined] = [[] for _ in images]
    inputs = {place: (path,) for place, path in parts.items()}
    for level in range(max(image.levels for image in images)):
        tasks = [
            JoinTask(images[number], level, index, paths, folder)
            for (number, index), paths in sorted(inputs.items())
        ]
        log.info("joining level %d: %d block(s)", level, len(tasks))
        inputs = {}
        for task, outcome in _run_level(tasks, workers):
            if isinstance(outcome, Exception):
                raise OutputError(
                    f"{task.image.name}: joining block {task.index} of level {level} failed: "
                    f"{outcome}. What was found is kept: the same command goes on from it"
                ) from outcome
            done[task.image.number].append((task, outcome))
            if level:
                # not in the task: it may have to run again
                for path in task.inputs:
                    path.unlink()
            if outcome.left_open:
                place = task.image.number, (task.index[0] // 2, task.index[1] // 2)
                inputs[place] = tuple(sorted((*inputs.get(place, ()), task.left_open)))
    return done


def _run_level(
    tasks: Sequence[JoinTask], workers: Workers
) -> Iterator[tuple[JoinTask, JoinSummary | Exception]]:
    """Run the joins of a level; those whose workers died again, alone, a few times."""
    lost: list[JoinTask] = []
    # a process of one CPU thread gains nothing by a second join; this one may have more
    at_once = 2 if workers.in_this_process else 1
    for task, outcome in workers.run(run_join, tasks, per_worker=at_once):
        if isinstance(outcome, WorkerLostError):
            lost.append(task)
        else:
            yield task, outcome
    # whatever killed a worker, a join is small and innocent: only the last try is to blame
    yield from workers.run(run_join, lost, alone=True, tries=TRIES)


def finished_objects(done: Joined) -> Iterator[pa.Table]:
    """Yield the finished objects of one image square by square, in their fixed order."""
    where: dict[tuple[int, int], list[tuple[Path, int]]] = defaultdict(list)
    for task, summary in done:
        for batch, square in enumerate(summary.squares):
            where[square].append((task.finished, batch))
    for square in sorted(where):
        batches = []
        for path, batch in where[square]:
            with pa.memory_map(str(path)) as file:
                batches.append(pa.ipc.open_file(file).get_batch(batch))
        table = pa.Table.from_batches(batches)
        yield table.take(_reading_order(table)).drop_columns(list(_KEYS))


def _reading_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the order of the rows: from the top, then from the left."""
    keys = [table[name].to_numpy() for name in (*_KEYS, "uid")]
    return np.asarray(np.lexsort(keys[::-1]), np.int64)
