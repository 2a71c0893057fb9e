"""Factories that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import settings
from painted import Scene, blob_scene
from rasterio.enums import ColorInterp, Resampling
from runs import job_over, table
from stubs import Stub

from geoseg.jobs.pipeline import run_detect

# the machine's load is no property of the code
settings.register_profile("geoseg", deadline=None, max_examples=50)
settings.load_profile("geoseg")

UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0.0, 500_000.0, 0.0, -0.1, 5_500_000.0)
"""10 cm pixels at the central meridian of UTM 33N, at 49.6 degrees north."""


@pytest.fixture
def make_raster(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a raster and returns its path.

    ``pixels`` is (C, h, w), or (h, w) for one band; without it they are random (seeded by the
    name). ``mask`` (h, w) bool is written as an internal mask, or beside the file with
    ``external_mask``. ``alpha`` names the band to tag as alpha, ``overviews`` the factors to build.
    What is left over goes to rasterio (``compress``, ``tiled``, ...).
    """

    def make(
        name: str = "image.tif",
        pixels: np.ndarray | None = None,
        *,
        height: int = 60,
        width: int = 80,
        bands: int = 3,
        dtype: str = "uint8",
        crs: str | None = UTM,
        transform: Affine | None = NORTH_UP,
        nodata: float | None = None,
        mask: np.ndarray | None = None,
        external_mask: bool = False,
        alpha: int | None = None,
        colors: tuple[str, ...] | None = None,
        overviews: tuple[int, ...] = (),
        **options: Any,
    ) -> Path:
        if pixels is None:
            rng = np.random.default_rng(sum(name.encode()))
            pixels = rng.integers(1, 200, (bands, height, width)).astype(dtype)
        pixels = np.atleast_3d(pixels) if pixels.ndim == 3 else pixels[None]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {
            "driver": "GTiff",
            "count": pixels.shape[0],
            "height": pixels.shape[1],
            "width": pixels.shape[2],
            "dtype": pixels.dtype.name,
            "crs": crs,
            "nodata": nodata,
        }
        if transform is not None:
            profile["transform"] = transform
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not external_mask),
            rasterio.open(path, "w", **(profile | options)) as dst,
        ):
            if alpha is not None or pixels.shape[0] == 4:
                tags = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
                tags += [ColorInterp.undefined] * max(0, pixels.shape[0] - 3)
                tags = tags[: pixels.shape[0]]
                if alpha is not None:
                    tags[alpha - 1] = ColorInterp.alpha
                dst.colorinterp = tags
            if colors is not None:
                dst.colorinterp = [ColorInterp[c] for c in colors]
            dst.write(pixels)
            if mask is not None:
                dst.write_mask(mask)
        if overviews:
            with rasterio.open(path, "r+") as dst:
                dst.build_overviews(overviews, Resampling.average)
        return path

    return make


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Some hundred painted blobs on 520 px a side, one of them larger than a tile."""
    return blob_scene(5, size=520, count=110, large=1)


@pytest.fixture(scope="session")
def image(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return that scene as a raster, the same for all tests: copy it to change it."""
    path = tmp_path_factory.mktemp("painted") / "painted.tif"
    height, width = scene.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=2, height=height, width=width, dtype="uint16", crs=UTM,
        transform=NORTH_UP,
    ) as dst:  # fmt: skip
        dst.write(scene.pixels)
    path.chmod(0o444)
    return path


@pytest.fixture(scope="session")
def whole(image: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """Return the objects layer of an undisturbed run over that raster, row by row."""
    output = tmp_path_factory.mktemp("undisturbed") / "whole.gpkg"
    found = run_detect(job_over(image, output=output), Stub())
    assert (found.exit_code, found.supertiles) == (0, {"done": 9})
    return table(output)
