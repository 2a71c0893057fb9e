"""The main job on real imagery, where it lies beside the repository (it is not part of it)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask

from geoseg.config import DetectSettings
from geoseg.jobs.pipeline import run_detect
from geoseg.models.registry import shipped_models
from geoseg.objects.evaluate import evaluate
from geoseg.outputs.tables import read_vector

SHARED = Path(os.environ.get("GEOSEG_SHARED", Path(__file__).parents[2] / "shared"))
DATA = SHARED / "data" / "buildings"
IMAGE = DATA / "ortho" / "catanduanes_2.tif"
SITE = "aoi = 'catanduanes_2'"

pytestmark = [
    pytest.mark.skipif(not IMAGE.is_file(), reason=f"no real imagery at {DATA}"),
    pytest.mark.skipif("buildings" not in shipped_models(), reason="no model is shipped"),
]


def test_buildings_in_a_drone_image(tmp_path):
    aoi = read_vector(DATA / "aois.geojson", what="AOI", where=SITE)
    aoi.to_file(tmp_path / "aoi.gpkg")
    result = run_detect(
        DetectSettings(
            images=(str(IMAGE),),
            output=tmp_path / "objects.gpkg",
            aoi=tmp_path / "aoi.gpkg",
            workers=1,
        )
    )
    objects = result.objects
    assert result.exit_code == 0
    assert len(objects) > 20
    assert shapely.is_valid(objects.geometry).all()
    assert (objects.geom_type == "Polygon").all()
    # from a shed to a hall
    assert objects["area_m2"].between(0.5, 5_000).all()
    assert 15 < objects["area_m2"].median() < 300
    truth = read_vector(DATA / "buildings.geojson", what="truth", where=SITE)
    quality = evaluate(objects, truth, aoi=aoi)
    assert quality.f1 > 0.5, quality
    with rasterio.open(IMAGE) as src:
        valid = src.dataset_mask() > 0
        placed = objects.to_crs(src.crs).geometry
        inside = ~geometry_mask(placed, src.shape, src.transform)
    # outlines end at pixel edges and lose vertices nearer than a quarter of a working pixel
    assert np.count_nonzero(inside & ~valid) <= 1e-4 * np.count_nonzero(inside)
