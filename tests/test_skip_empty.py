"""Work that is not done: tiles without data, outside the AOI, and empty land where that is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from rasterio.windows import Window
from stubs import Bright

from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, ModelError
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.read import SupertilePixels
from geoseg.jobs import skip
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.skip import FACTOR, coarser, promising

GRID = TileGrid(512, 512, 128, 32, 512)


@dataclass
class Looks(Bright):
    """Bright pieces, counting the tiles that it is shown; its first look knows only large ones."""

    tile_size: int = 128
    overlap: int = 32
    seen: list[int] = field(default_factory=list)

    def __call__(self, tiles):
        self.seen.append(len(tiles))
        return super().__call__(tiles)

    def make_glance(self):
        def glance(pixels, min_score):
            assert min_score == skip.SURE
            return self.find(pixels[0] > 100).boxes

        return glance


def scene(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    pixels = np.full((1, 512, 512), 20, np.uint8)
    for x, y, width, height in boxes:
        pixels[0, y : y + height, x : x + width] = 200
    return pixels


def write(path, pixels, nodata=None):
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=512, width=512, dtype="uint8", nodata=nodata,
        crs="EPSG:32645", transform=from_origin(330_000, 3_070_000, 0.2, 0.2),
    ) as dst:  # fmt: skip
        dst.write(pixels)
    return path


def run(image, tmp_path, detector, **changes):
    return run_detect(
        DetectSettings(
            images=(str(image),), output=tmp_path / "out.gpkg", workers=1, supertile_size=512,
            overwrite=True, **changes,
        ),
        detector=detector,
    )  # fmt: skip


def supertile_of(pixels: np.ndarray, valid: np.ndarray | None = None) -> SupertilePixels:
    valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
    return SupertilePixels(pixels, valid, Window(0, 0, 512, 512))


def touched(tiles, *boxes) -> list:
    """Return the tiles whose windows come near a box, as the rule says it."""
    near = shapely.union_all(
        [
            shapely.box(x, y, x + w, y + h).buffer(
                skip.REACH_PX, cap_style="square", join_style="mitre"
            )
            for x, y, w, h in boxes
        ]
    )
    places = [t.window.flatten() for t in tiles]
    windows = [shapely.box(x, y, x + w, y + h) for x, y, w, h in places]
    return [t for t, w in zip(tiles, windows, strict=True) if w.intersection(near).area > 0]


def test_tiles_near_something_are_kept_and_no_others():
    tiles = GRID.supertile(0, 0).tiles
    boxes = (40, 40, 40, 40), (400, 300, 24, 16)
    kept, skipped = promising(Looks(), supertile_of(scene(*boxes)), tiles)
    assert [t.index for t in kept] == [t.index for t in touched(tiles, *boxes)]
    assert 0 < len(kept) < len(tiles) == len(kept) + skipped


def test_nothing_is_kept_of_empty_land_and_tiles_without_data_do_not_count():
    tiles = GRID.supertile(0, 0).tiles
    assert promising(Looks(), supertile_of(scene()), tiles) == ([], len(tiles))
    valid = np.zeros((512, 512), bool)
    # as without the option: left out further on, and not told as skipped
    assert promising(Looks(), supertile_of(scene() * 0, valid), tiles) == (list(tiles), 0)
    valid[:90, :90] = True
    kept, skipped = promising(Looks(), supertile_of(scene() * valid, valid), tiles)
    assert (len(kept), skipped) == (len(tiles) - 1, 1)


def test_coarser_pixels_are_means_of_the_valid_ones():
    pixels = np.arange(2 * 6 * 9, dtype=np.uint8).reshape(2, 6, 9)
    valid = np.ones((6, 9), bool)
    valid[0, 0] = valid[4:, 8] = False
    pixels[:, ~valid] = 0
    got = coarser(pixels, valid)
    assert (got.shape, got.dtype) == ((2, 2, 3), np.uint8)
    for band in range(2):
        for row in range(2):
            for col in range(3):
                place = np.s_[
                    row * FACTOR : row * FACTOR + FACTOR, col * FACTOR : col * FACTOR + FACTOR
                ]
                part = pixels[band][place][valid[place]]
                assert got[band, row, col] == (np.rint(part.mean()) if len(part) else 0)
    floats = coarser(np.where(valid, 0.5, np.nan).astype(np.float32)[None], valid)
    assert (floats[0, 0] == 0.5).all()


def test_a_run_skips_empty_land_and_says_so(tmp_path):
    image = write(tmp_path / "land.tif", scene((40, 40, 30, 30), (300, 320, 24, 16)))
    plain, some = Looks(), Looks()
    whole = run(image, tmp_path, plain)
    found = run(image, tmp_path, some, skip_empty=True)
    assert found.n_objects == whole.n_objects == 2
    assert found.objects["uid"].tolist() == whole.objects["uid"].tolist()
    skipped = int(found.coverage["tiles_skipped"].sum())
    assert (whole.coverage["tiles_skipped"] == 0).all()
    assert 0 < sum(some.seen) == sum(plain.seen) - skipped
    run_json = json.loads((found.run_dir / "run.json").read_text())
    assert run_json["skipped_tiles"] == skipped > 0
    assert run_json["settings"]["skip_empty"] is True
    assert any(f"{skipped} tile(s) were left out because" in note for note in found.notes)
    layer = gpd.read_file(tmp_path / "out.gpkg", layer="coverage")
    assert layer["tiles_skipped"].sum() == skipped


def test_what_the_first_look_cannot_see_is_lost(tmp_path):
    """The trade: an object smaller than the coarser pixels is not there any more."""
    image = write(tmp_path / "land.tif", scene((40, 40, 30, 30), (302, 322, 4, 4)))
    assert run(image, tmp_path, Looks()).n_objects == 2
    assert run(image, tmp_path, Looks(), skip_empty=True).n_objects == 1


def test_empty_land_is_empty_not_without_data(tmp_path):
    image = write(tmp_path / "land.tif", scene())
    detector = Looks()
    found = run(image, tmp_path, detector, skip_empty=True)
    assert (found.supertiles, found.n_objects, detector.seen) == ({"empty": 1}, 0, [])


def test_a_run_with_the_option_is_another_run(tmp_path):
    image = write(tmp_path / "land.tif", scene((40, 40, 30, 30)))
    keys = set()
    for changes in ({}, {"skip_empty": True}, {"precision": "float32"}):
        found = run(image, tmp_path, Looks(), **changes)
        keys.add(json.loads((found.run_dir / "run.json").read_text())["key"])
    assert len(keys) == 3


def test_detectors_without_a_first_look_are_refused(tmp_path):
    image = write(tmp_path / "land.tif", scene((40, 40, 30, 30)))
    with pytest.raises(ModelError, match="which Bright has not; leave --skip-empty out"):
        promising(Bright(), supertile_of(scene()), GRID.supertile(0, 0).tiles)
    with pytest.raises(ConfigError, match="--skip-empty looks with geoseg's own models"):
        DetectSettings(images=(str(image),), detector="a:b", skip_empty=True)
    with pytest.raises(
        ConfigError, match="--precision is 'int8'; expected one of auto, bfloat16, float32, exact"
    ):
        DetectSettings(images=(str(image),), precision="int8")


def test_tiles_without_data_and_outside_the_aoi_are_not_looked_at(tmp_path):
    pixels = scene((40, 40, 30, 30))
    pixels[:, :, 256:] = 0
    image = write(tmp_path / "land.tif", pixels, nodata=0)
    everything, half, corner = Looks(), Looks(), Looks()
    run(write(tmp_path / "full.tif", scene((40, 40, 30, 30))), tmp_path, everything)
    run(image, tmp_path, half)
    tiles = GRID.supertile(0, 0).tiles
    assert sum(everything.seen) == len(tiles)
    assert sum(half.seen) == sum(t.window.col_off < 256 for t in tiles)
    aoi = tmp_path / "aoi.gpkg"
    box = shapely.box(330_000, 3_070_000 - 0.2 * 90, 330_000 + 0.2 * 90, 3_070_000)
    gpd.GeoDataFrame(geometry=[box], crs="EPSG:32645").to_file(aoi)
    run(image, tmp_path, corner, aoi=aoi)
    assert sum(corner.seen) == 1


def test_the_shipped_model_has_a_first_look():
    from geoseg.models.registry import load_model

    detector = load_model("buildings", device="cpu")
    boxes = detector.make_glance()(np.zeros((3, 96, 96), np.uint8), 0.05)
    assert boxes.shape[1] == 4
