"""Odd rasters of public test suites, where they lie beside the repository: how each ends."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import Case, Made, check, run_case
from cases_kinds import TILES
from rasterio.windows import Window

from geoseg.imagery.georef import working_grid
from geoseg.imagery.read import read_window
from geoseg.imagery.source import describe_raster

ODD = Path(__file__).parents[2] / "shared" / "data" / "odd"
OUTPUT = "found.gpkg"

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@dataclass(frozen=True)
class Odd:
    """One file, and how a run over it ends."""

    file: str
    detector: str = "make_rgb"
    args: tuple[str, ...] = ()
    exit_code: int = 0
    message: str = ""
    out: str = ""
    """Regular expression that stdout must match."""
    objects: bool | None = None
    """Whether some must come back; None: not asked."""


FILES = (
    Odd("aerial15cm_extmask.tif", out="1 done|1 empty"),
    Odd("aerial15cm_intmask.tif", out="1 done|1 empty"),
    # the only word on validity is nodata 0, and every pixel is
    Odd("all_nodata_uint16_4band.tif", out="1 nodata", objects=False),
    Odd("antimeridian_uint16.tif", detector="make_grey", args=("--tile-size", "1024")),
    Odd("cog_jpeg_overviews.tif", args=("--tile-size", "512"), objects=True),
    Odd("derived_rotated_zanzibar.tif", args=("--tile-size", "512"), objects=True),
    Odd("derived_southup_kampala.tif", args=("--tile-size", "512"), objects=True),
    Odd("gcps_only_uint16.tif", exit_code=2, message="ground control points.*gdalwarp"),
    Odd("huge_36000x18000_1band_4326.tif", exit_code=2, message=r"1 band\(s\) but 3 are needed"),
    Odd("multispectral_float32_5band_nodata.tif", args=("--bidx", "red,green,blue")),
    Odd("naip_rgbn_claremont_2020_0.tif", objects=True),
    Odd("naip_rgbn_claremont_2020_0.tif", args=("--bidx", "4,1,2"), objects=True),
    Odd("nocrs_uint16_rgba.tif", exit_code=2, message="has no CRS"),
    Odd("palette_7168x8704_sparse.tif", args=("--gsd", "20"), out="1 done|1 empty"),
    Odd("rgba_alpha_border.tif", args=("--tile-size", "512"), objects=True),
    Odd("rotated_tiny_nocrs.tif", exit_code=2, message="has no CRS"),
    Odd("spacenet_atlanta_pan_uint16.tif", detector="make_grey", args=("--tile-size", "512")),
    Odd("tiny_20x20_1band.tif", detector="make_grey", objects=True),
    Odd("truncated_corrupt.tif", exit_code=2, message="truncated: 25 % of its blocks"),
)


@pytest.mark.parametrize("odd", FILES, ids=lambda odd: f"{odd.file} {' '.join(odd.args)}")
def test_an_odd_file_ends_as_it_should(odd, tmp_path):
    if not (ODD / odd.file).is_file():
        pytest.skip(f"{odd.file} is not beside the repository")

    def make(folder: Path) -> Made:
        for path in ODD.glob(f"{odd.file}*"):
            shutil.copy(path, folder)
        how = ("--detector", f"painted_kinds:{odd.detector}", "-o", OUTPUT, *TILES, *odd.args)
        return Made(("detect", odd.file, *how), OUTPUT)

    case = Case(odd.file, "Odd", odd.file, make, odd.exit_code, odd.message)
    outcome = run_case(case, tmp_path)
    check(case, outcome)
    if odd.out:
        assert re.search(odd.out, outcome.out), outcome.out
    if odd.objects is not None:
        assert (len(outcome.objects) > 0) == odd.objects, outcome.out


def test_what_the_files_mask_is_not_seen(tmp_path):
    """A detector that finds all that is bright must find nothing where the masks say no data."""
    shares = {"aerial15cm_extmask.tif": "mask", "aerial15cm_intmask.tif": "mask",
              "rgba_alpha_border.tif": "alpha", "all_nodata_uint16_4band.tif": "nodata",
              "palette_7168x8704_sparse.tif": "nodata"}  # fmt: skip
    if not (ODD / next(iter(shares))).is_file():
        pytest.skip("the files are not beside the repository")
    for name, kind in shares.items():
        info = describe_raster(ODD / name)
        assert info.mask_kind == kind, name
        grid = working_grid(info, None)
        window = Window(0, 0, min(info.width, 1024), min(info.height, 1024))
        pixels, valid = read_window(info, grid, window, (1, 2, 3))
        assert not valid.all(), name
        assert not np.any(pixels[:, ~valid]), name
