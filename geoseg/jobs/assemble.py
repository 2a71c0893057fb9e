"""From parts to tables: join the seams, put objects on the earth, count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyproj
import shapely

from geoseg.globe import turned
from geoseg.imagery.placing import Placing, horizontal
from geoseg.jobs.executor import Workers
from geoseg.jobs.join import ImageJoin, Joined, finished_objects, join_parts
from geoseg.jobs.ledger import RunDirectory
from geoseg.jobs.manifest import calibration_of
from geoseg.jobs.parts import PartSummary
from geoseg.jobs.plan import ImagePlan, RunPlan, part_key
from geoseg.jobs.sheets import SheetJoin
from geoseg.jobs.supertile import COARSE_PX
from geoseg.objects.cells import make_grid, no_cells
from geoseg.objects.count import RegionCounter, Rule
from geoseg.objects.seams import SeamCounts, SeamReport, band_share, seam_report
from geoseg.objects.shape import ShapeSettings
from geoseg.outputs.polygons import open_polygons
from geoseg.outputs.tables import ObjectsWriter


def _image_join(plan: RunPlan, number: int) -> ImageJoin:
    image, wanted = plan.images[number], plan.settings
    placing = _placing(plan, image)
    return ImageJoin(
        number=number,
        name=Path(image.info.path).name,
        fingerprint=image.info.fingerprint,
        grid=image.tiles,
        transform=image.grid.transform,
        gsd_m=image.grid.gsd_m,
        crs_wkt=placing.crs_wkt,
        output_wkt=placing.output_wkt,
        classes=plan.classes,
        shape=ShapeSettings(
            resolve_overlaps=wanted.resolve_overlaps,
            simplify_px=wanted.simplify,
            regularize=wanted.regularize,
            min_area_m2=wanted.min_area or 0.0,
            max_hole_m2=wanted.fill_holes,
        ),
        class_agnostic=wanted.class_agnostic,
        aoi_wkb=None if image.aoi is None else image.aoi.wkb,
        cut=placing.cut,
    )


def _placing(plan: RunPlan, image: ImagePlan) -> Placing:
    """Return the way of an image's outlines to the output.

    Alone and in its own CRS, an image that goes on beyond 180 degrees takes its objects with it,
    so that they lie on it.
    """
    own = horizontal(pyproj.CRS.from_wkt(image.info.crs_wkt))
    return Placing(
        transform=image.grid.transform,
        crs_wkt=own.to_wkt(),
        output_wkt="" if plan.crs.equals(own) else plan.crs.to_wkt(),
        cut=plan.settings.dst_crs is not None or len(plan.images) > 1,
    )


def write_objects_file(
    plan: RunPlan, run_dir: RunDirectory, summaries: Sequence[PartSummary], workers: Workers
) -> tuple[int, SeamCounts]:
    """Join all parts into the run's objects file, in its fixed order.

    Returns
    -------
    n_objects : int
        Rows of the file.
    seams : SeamCounts
        Of what the joins did; those of the parts come on top.
    """
    with run_dir.joining():
        # absolute: workers of a joined cluster stand in other folders
        parts = {
            (s.image, s.index): run_dir.part(part_key(plan, s.image, s.index)).absolute()
            for s in summaries
            if s.status == "done"
        }
        images = [_image_join(plan, number) for number in range(len(plan.images))]
        joined = join_parts(images, parts, run_dir.joins.absolute(), workers)
        sheets = _join_sheets(plan, run_dir, summaries, joined)
        with ObjectsWriter(run_dir.objects, plan.crs) as writer:
            for number, image in enumerate(joined):
                first = 0
                for table in finished_objects(image):
                    kept = table if sheets is None else sheets.apply(number, table, first)
                    first += len(table)
                    ids = pa.array(writer.rows + 1 + np.arange(len(kept)), pa.int64())
                    writer.write(kept.add_column(0, "object_id", ids))
        seams = SeamCounts.total([summary.seams for image in joined for _, summary in image])
        return writer.rows, seams


def seams_of(plan: RunPlan, counts: SeamCounts) -> SeamReport:
    """Return what a run tells about its seams."""
    areas = [image.tiles.height * image.tiles.width for image in plan.images]
    shares = [
        band_share(*image.tiles.window_spans(), image.tiles.height, image.tiles.width)
        for image in plan.images
    ]
    share = float(np.average(shares, weights=areas))
    return seam_report(counts, overlap_px=plan.images[0].tiles.overlap, band_share=share)


def _join_sheets(
    plan: RunPlan,
    run_dir: RunDirectory,
    summaries: Sequence[PartSummary],
    joined: Sequence[Joined],
) -> SheetJoin | None:
    """Find out which objects several images show, if that is wanted."""
    if not plan.settings.cross_image or len(plan.images) == 1:
        return None
    sheets = SheetJoin(
        footprints=[
            imaged_area(plan, [s for s in summaries if s.image == i]).union_all()
            for i in range(len(plan.images))
        ],
        near=max(_coarse_cell(plan, image) for image in plan.images),
        crs_wkt=plan.crs.to_wkt(),
        folder=run_dir.joins,
        n_objects=sum(summary.objects for image in joined for _, summary in image),
    )
    for number, image in enumerate(joined):
        for table in finished_objects(image):
            sheets.add(number, table)
    sheets.join()
    return sheets


def _coarse_cell(plan: RunPlan, image: ImagePlan) -> float:
    """Return the side of the cells on which imaged areas are traced, in units of the output."""
    x, y = image.grid.width / 2, image.grid.height / 2
    cell = shapely.box(x, y, x + COARSE_PX, y + COARSE_PX)
    return float(np.sqrt(_place(plan, image, [cell])[0].area))


def coverage_table(plan: RunPlan, summaries: Sequence[PartSummary]) -> gpd.GeoDataFrame:
    """Return one row per supertile: what happened there and why."""
    rows: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for s in summaries:
        image = plan.images[s.image]
        core = image.tiles.supertile(*s.index).core
        x, y = core.col_off, core.row_off
        shapes.append(_place(plan, image, [shapely.box(x, y, x + core.width, y + core.height)])[0])
        rows.append(
            {
                "image": Path(image.info.path).name,
                "row": s.index[0],
                "col": s.index[1],
                "status": s.status,
                "reason": s.reason,
                "tiles": s.tiles,
                "tiles_run": s.tiles_run,
                "tiles_failed": len(s.tiles_failed),
                "tiles_saturated": len(s.saturated),
                "tiles_skipped": s.tiles_skipped,
                "quarters_capped": s.capped,
                "seconds": round(sum(s.seconds.values()), 2),
            }
        )
    return gpd.GeoDataFrame(rows, geometry=shapes, crs=plan.crs)


def _place(plan: RunPlan, image: ImagePlan, polygons: Sequence[Any]) -> Any:
    """Bring grid px to the output's CRS."""
    placing = _placing(plan, image)
    return turned(placing.to_output(placing.in_image_crs(polygons)))


def count_in_regions(
    plan: RunPlan, objects: Path, summaries: Sequence[PartSummary]
) -> gpd.GeoDataFrame | None:
    """Count the objects of a file in the regions; say which share of each was imaged.

    Raises
    ------
    GeosegError
        If counts and what is outside do not make the objects of the file.
    """
    settings = plan.settings
    if not settings.counting:
        return None
    imaged = imaged_area(plan, summaries)
    regions = plan.regions
    if regions is None:
        regions = make_grid(str(settings.grid), imaged, plan.crs) if len(imaged) else no_cells(
            plan.crs
        )  # fmt: skip
    found = open_polygons(objects)
    counter = RegionCounter(
        regions,
        plan.crs,
        rule=cast("Rule", settings.rule),
        classes=plan.classes,
        around=found.bounds,
        parent=settings.parent,
        id_field=settings.id_field,
        calibration=calibration_of(plan)[0],
    )
    found.count_into(counter)
    return counter.result(imaged=imaged)


def imaged_area(plan: RunPlan, summaries: Sequence[PartSummary]) -> gpd.GeoSeries:
    """Return the areas that were imaged and worked through."""
    areas: list[Any] = []
    for s in summaries:
        if s.status == "failed" or not s.imaged:
            continue
        image = plan.images[s.image]
        area = shapely.from_wkt(s.imaged)
        if image.aoi is not None:
            area = shapely.intersection(area, image.aoi)
        areas += list(_place(plan, image, shapely.get_parts([area])))
    return gpd.GeoSeries(areas, crs=plan.crs)
