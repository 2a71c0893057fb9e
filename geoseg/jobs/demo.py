"""The demo: render a town, run the main job on it, compare with the known truth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from geoseg.config import DetectSettings
from geoseg.errors import OutputError
from geoseg.imagery.read import read_overview
from geoseg.imagery.source import describe_raster
from geoseg.jobs.pipeline import Progress, RunResult, run_detect
from geoseg.objects.count import count
from geoseg.objects.evaluate import Evaluation, evaluate
from geoseg.outputs.preview import write_preview
from geoseg.outputs.tables import read_vector
from geoseg.scenes.town import TownFiles, render_town

if TYPE_CHECKING:
    import geopandas as gpd

PICTURE_PX = 2048


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
    """What the demo shows."""

    town: TownFiles
    run: RunResult
    counts: gpd.GeoDataFrame
    """Regions with ``count`` and ``truth``."""
    outside: tuple[int, int]
    """Objects and footprints outside every region."""
    quality: Evaluation
    picture: Path
    render_s: float
    """Seconds to render; the run's own are in ``run.seconds``."""


def render(folder: Path, *, size_px: int, seed: int, overwrite: bool) -> TownFiles:
    """Render the demo's town into a folder.

    Raises
    ------
    OutputError
        If the folder holds a town already and may not be changed.
    """
    if (folder / "town.tif").exists() and not overwrite:
        raise OutputError(
            f"{folder} holds a town already; give --overwrite to render it anew, or another folder"
        )
    return render_town(folder, width_px=size_px, height_px=size_px, seed=seed)


def run_demo(
    folder: Path,
    *,
    size_px: int = 4096,
    seed: int = 1,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Render a town, find its buildings with the shipped model, and judge them.

    Parameters
    ----------
    folder : Path
        Gets the town's files, ``objects.gpkg``, ``objects.png`` and the run directory.
    size_px : int
        Side of the town, px of 13 cm.
    seed : int
        Another seed, another town; the model was trained on seeds 21 to 24.
    """
    begun = time.perf_counter()
    town = render(folder, size_px=size_px, seed=seed, overwrite=overwrite)
    rendered = time.perf_counter() - begun
    run = run_detect(
        DetectSettings(
            images=(str(town.image),),
            output=folder / "objects.gpkg",
            regions=town.regions,
            aoi=town.aoi,
            workers=workers,
            overwrite=overwrite,
        ),
        progress=progress,
    )
    truth = read_vector(town.footprints, what="truth")
    regions = read_vector(town.regions)
    aoi = read_vector(town.aoi, what="AOI")
    inside = truth[truth.representative_point().intersects(aoi.union_all())]
    found, true = count(run.objects, regions), count(inside, regions)
    counts = found.assign(truth=true["count"].to_numpy())
    counts.attrs = dict(found.attrs)
    pixels, transform, _ = read_overview(town.image, PICTURE_PX)
    picture = write_preview(
        pixels,
        transform,
        describe_raster(town.image).crs_wkt,
        run.objects,
        folder / "objects.png",
        regions=counts,
        max_px=PICTURE_PX,
    )
    return DemoResult(
        town=town,
        run=run,
        counts=counts,
        outside=(int(found.attrs["outside"]), int(true.attrs["outside"])),
        quality=evaluate(run.objects, truth, aoi=aoi),
        picture=picture,
        render_s=rendered,
    )
