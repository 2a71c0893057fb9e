from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from geoseg.errors import OutputError, SourceError
from geoseg.imagery.inputs import find_images
from geoseg.imagery.source import (
    create_raster,
    describe_raster,
    open_raster,
    select_bands,
    to_cog,
)

VRT = """<VRTDataset rasterXSize="8" rasterYSize="8">
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativeToVRT="0">{path}</SourceFilename></VRTRasterBand></VRTDataset>"""


# --- finding -----------------------------------------------------------------------------------


def test_find_images_takes_files_folders_and_globs_once_and_sorted(make_raster, tmp_path):
    b = make_raster("b.tif")
    a = make_raster("a.TIF")
    c = make_raster("deep/c.tiff")
    (tmp_path / "notes.txt").write_text("no raster")
    (tmp_path / "._a.tif").write_bytes(b"\0")  # what macOS leaves beside files
    (tmp_path / "a.TIF.msk").write_bytes(b"\0")
    expected = tuple(sorted(str(p) for p in (a, b)))
    assert find_images([b, tmp_path, str(tmp_path / "*.tif")]) == expected
    assert find_images([tmp_path / "**" / "*.tiff"]) == (str(c),)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_find_images_keeps_a_broken_tiff_of_a_folder_but_not_a_photo(make_raster, tmp_path):
    good = make_raster("good.tif")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(good.read_bytes()[:20])
    make_raster("photo.png", driver="PNG", crs=None, transform=None)
    (tmp_path / "photo.png.aux.xml").unlink(missing_ok=True)
    assert find_images([tmp_path]) == (str(broken), str(good))


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("nothing.tif", "nothing.tif: no such file"),
        ("*.tif", "pattern matches no raster"),
        (".", "folder holds no raster"),
        ("/vsitar/a.tar/a.tif", "this kind of path is not read"),
        ("GTIFF_DIR:1:a.tif", "GDAL's syntax"),
    ],
)
def test_find_images_says_what_matches_nothing(tmp_path, monkeypatch, entry, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=match):
        find_images([entry])


def test_find_images_wants_an_input():
    with pytest.raises(SourceError, match="no image given"):
        find_images([])


# --- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG", "JP2OpenJPEG"])
def test_open_raster_reads_the_allowed_formats(make_raster, driver):
    pixels = np.full((3, 40, 50), 90, np.uint8)
    path = make_raster("image.bin", pixels, driver=driver)
    with open_raster(path) as src:
        assert src.driver == driver
        assert abs(src.read().astype(int) - 90).max() <= 2


def test_open_raster_reads_bigtiff(make_raster):
    path = make_raster(bigtiff="yes")
    assert path.read_bytes()[:4] == b"II+\0"
    with open_raster(path) as src:
        assert src.count == 3


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_vrt_that_calls_itself_tif_is_refused(tmp_path, monkeypatch):
    # GDAL 3.12 and newer ask for this before they follow such a path; older ones just do
    monkeypatch.setenv("GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE", "ALL")
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"x" * 64)
    path = tmp_path / "x.tif"
    path.write_text(VRT.format(path=secret))
    with rasterio.open(path) as src:  # the attack works on GDAL's own choice of driver
        assert src.driver == "VRT"
    with pytest.raises(SourceError, match="is a VRT"), open_raster(path):
        pass


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".OVR"])
def test_a_vrt_as_overview_or_mask_is_refused(make_raster, tmp_path, suffix):
    path = make_raster(height=8, width=8)
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"x" * 64)
    Path(f"{path}{suffix}").write_text(VRT.format(path=secret))
    with pytest.raises(SourceError, match=r"is not a TIFF"):
        describe_raster(path)
    Path(f"{path}{suffix}").write_text("{}")
    with pytest.raises(SourceError, match=r"is not a TIFF"):
        describe_raster(path)


def test_overviews_named_in_the_metadata_are_refused(make_raster, tmp_path):
    path = make_raster(height=8, width=8)
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "secret.vrt"))
    with pytest.raises(SourceError, match="names another file as its overviews"):
        describe_raster(path)


def test_a_vrt_behind_leading_bytes_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    path.write_text("<!-- " + "x" * 600 + " -->" + VRT.format(path="/etc/hostname"))
    with pytest.raises(SourceError, match="not a raster"), open_raster(path):
        pass


@pytest.mark.parametrize(
    "prefix", ["GTIFF_DIR:1:{}", "/vsisubfile/0_100,{}", "<VRTDataset>{}</VRTDataset>"]
)
def test_gdal_prefixes_are_refused(make_raster, prefix):
    name = prefix.format(make_raster())
    with pytest.raises(SourceError, match=r"GDAL's syntax|this kind of path is not read"):
        describe_raster(name)


def test_a_file_whose_name_has_a_colon_is_a_file(make_raster, monkeypatch, tmp_path):
    make_raster("WMS:1.tif")
    monkeypatch.chdir(tmp_path)
    assert describe_raster("WMS:1.tif").bands == 3


def test_open_raster_says_why_not(tmp_path, make_raster):
    empty, text, cut = tmp_path / "empty.tif", tmp_path / "text.tif", tmp_path / "cut.tif"
    empty.touch()
    text.write_text("hello")
    cut.write_bytes(make_raster().read_bytes()[:9])
    for path, match in (
        (tmp_path / "none.tif", "no such file"),
        (tmp_path, "is a folder"),
        (empty, "the file is empty"),
        (text, "not a raster that is read here; expected GeoTIFF"),
        (cut, "broken or truncated"),
    ):
        with pytest.raises(SourceError, match=match), open_raster(path):
            pass


# --- describing --------------------------------------------------------------------------------


def test_describe_raster_reads_the_header(make_raster):
    info = describe_raster(
        make_raster(tiled=True, blockxsize=32, blockysize=16, nodata=7, dtype="uint16")
    )
    assert (info.height, info.width, info.bands, info.dtype) == (60, 80, 3, "uint16")
    assert info.block_shape == (16, 32)
    assert (info.mask_kind, info.nodata, info.alpha_band) == ("nodata", 7.0, None)
    assert info.transform == Affine(0.1, 0.0, 500_000.0, 0.0, -0.1, 5_500_000.0)
    assert info.gsd_m == pytest.approx(0.1, rel=1e-3)
    assert pickle.loads(pickle.dumps(info)) == info


def test_describe_raster_names_where_validity_comes_from(make_raster):
    mask = np.ones((60, 80), bool)
    mask[:9] = False
    alpha = np.full((4, 60, 80), 90, np.uint8)
    alpha[3] = np.where(mask, 255, 0)
    kinds = {
        "none.tif": {},
        "nodata.tif": {"nodata": 0},
        "mask.tif": {"mask": mask},
        "msk.tif": {"mask": mask, "external_mask": True},
        "alpha.tif": {"pixels": alpha, "alpha": 4},
    }
    got = {name: describe_raster(make_raster(name, **kw)).mask_kind for name, kw in kinds.items()}
    expected = ["none", "nodata", "mask", "mask", "alpha"]
    assert list(got.values()) == expected


def test_near_infrared_tagged_as_alpha_is_no_mask(make_raster, caplog):
    info = describe_raster(make_raster("naip.tif", bands=4, alpha=4))
    assert (info.alpha_band, info.mask_kind) == (None, "none")
    assert "band 4 is tagged as alpha but holds an image" in caplog.text
    assert select_bands(info, None, 4) == (1, 2, 3, 4)


@pytest.mark.parametrize("values", [(255,), (0,), (0, 255), (0, 4095)])
def test_alpha_of_few_values_is_alpha(make_raster, values):
    pixels = np.full((4, 60, 80), 90, np.uint16)
    pixels[3] = np.resize(values, (60, 80))
    assert describe_raster(make_raster(pixels=pixels, alpha=4)).alpha_band == 4


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_describe_raster_refuses_what_has_no_place(make_raster, tmp_path):
    gcps = tmp_path / "gcps.tif"
    points = [GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 9), (9, 0))]
    with rasterio.open(gcps, "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8") as dst:
        dst.gcps = (points, "EPSG:4326")
    local = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    for path, match in (
        (
            make_raster("a.tif", crs=None),
            "has no CRS; name it with --src-crs EPSG:..., put a .prj file beside it, or assign one",
        ),
        (gcps, "gdalwarp -t_srs EPSG:4326"),
        (make_raster("b.tif", transform=None), "no transform"),
        (make_raster("c.tif", crs=local), "no relation to the earth|no ellipsoid"),
        (make_raster("d.tif", crs="EPSG:4326"), "does not lie on the earth"),
    ):
        with pytest.raises(SourceError, match=match):
            describe_raster(path)


def test_describe_raster_refuses_pixels_that_are_no_brightness(make_raster):
    palette = make_raster("palette.tif", bands=2, photometric="palette", colors=("palette", "gray"))
    for path, match in (
        (palette, "gdal_translate -b 1 -expand rgb"),
        (make_raster("complex.tif", np.ones((9, 9), np.complex64)), "complex"),
    ):
        with pytest.raises(SourceError, match=match):
            describe_raster(path)


def test_a_palette_is_described_as_the_colours_that_it_is_read_as(make_raster):
    path = make_raster("palette.tif", bands=1, photometric="palette", colors=("palette",))
    with rasterio.open(path, "r+") as dst:
        dst.write_colormap(1, {0: (9, 8, 7, 255), 3: (1, 2, 3, 255)})
    info = describe_raster(path)
    assert (info.bands, info.dtype, info.colors) == (3, "uint8", ("red", "green", "blue"))
    assert (info.palette[0], info.palette[3]) == ((9, 8, 7, 255), (1, 2, 3, 255))
    assert (info.nbits, info.alpha_band) == (None, None)


def test_few_bits_are_told(make_raster):
    path = make_raster("bits.tif", np.eye(60, 80, dtype=np.uint8), nbits=4)
    assert describe_raster(path).nbits == 4
    assert describe_raster(make_raster()).nbits is None


def test_select_bands_by_name_takes_descriptions_before_colours(make_raster):
    path = make_raster(bands=4, colors=("red", "green", "blue", "undefined"))
    with rasterio.open(path, "r+") as dst:
        dst.descriptions = ("NIR", "red", "green", "green")
    info = describe_raster(path)
    assert select_bands(info, ("nir", "Red", 4), 3) == (1, 2, 4)
    assert select_bands(info, ("blue",), 1) == (3,)
    with pytest.raises(SourceError, match=r"2 bands 'green' \(bands 3, 4\)"):
        select_bands(info, ("green",), 1)
    with pytest.raises(SourceError, match="no band 'swir'; it has NIR, red, green, green"):
        select_bands(info, ("swir",), 1)


def test_the_fingerprint_follows_the_content_not_the_clock(make_raster, tmp_path):
    path = make_raster()
    first = describe_raster(path).fingerprint
    copy = tmp_path / "copy.tif"
    shutil.copyfile(path, copy)
    assert describe_raster(copy).fingerprint == first
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # a small file is sampled whole
    copy.write_bytes(data)
    assert describe_raster(copy).fingerprint != first
    with rasterio.open(path, "r+") as dst:
        dst.transform = Affine(0.2, 0, 500_000, 0, -0.2, 5_500_000)
    assert describe_raster(path).fingerprint != first


# --- bands -------------------------------------------------------------------------------------

BANDS = [
    # bands, colours, alpha band, bidx, wanted, expected or the error
    (3, ("red", "green", "blue"), None, None, 3, (1, 2, 3)),
    (3, ("blue", "green", "red"), None, None, 3, (3, 2, 1)),
    (4, ("red", "green", "blue", "alpha"), 4, None, 3, (1, 2, 3)),
    (2, ("alpha", "gray"), 1, None, 1, (2,)),
    (8, ("gray", *["undefined"] * 7), None, None, 3, (1, 2, 3)),
    (4, ("red", "green", "blue", "alpha"), 4, (4, 1, 2), 3, (4, 1, 2)),
    (1, ("gray",), None, (1, 1, 1), 3, (1, 1, 1)),
    (4, ("red", "green", "blue", "alpha"), 4, None, 4, "has 3 band.s. beside alpha but 4"),
    (1, ("gray",), None, None, 3, "has 1 band.s. but 3 are needed"),
    (
        3,
        ("red", "green", "blue"),
        None,
        (1, 2, 4),
        3,
        r"has 3 band\(s\) but --bidx asks for band 4",
    ),
    (3, ("red", "green", "blue"), None, (0, 1, 2), 3, "asks for band 0; choose from 1 to 3"),
    (3, ("red", "green", "blue"), None, (1, 2), 3, "--bidx names 2 band"),
]


@pytest.mark.parametrize(("bands", "colors", "alpha", "bidx", "wanted", "expected"), BANDS)
def test_select_bands(make_raster, bands, colors, alpha, bidx, wanted, expected):
    info = replace(describe_raster(make_raster()), bands=bands, colors=colors, alpha_band=alpha)
    if isinstance(expected, tuple):
        assert select_bands(info, bidx, wanted) == expected
    else:
        with pytest.raises(SourceError, match=expected):
            select_bands(info, bidx, wanted)


# --- writing -----------------------------------------------------------------------------------


def test_create_raster_writes_by_window_and_leaves_the_rest_out(tmp_path):
    path = tmp_path / "big.tif"
    shape = {"height": 50_000, "width": 50_000, "bands": 3, "dtype": "uint8"}
    transform = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
    with create_raster(path, crs="EPSG:32633", transform=transform, nodata=0, **shape) as dst:
        dst.write(np.full((3, 512, 512), 9, np.uint8), window=Window(512, 1024, 512, 512))
    assert path.stat().st_size < 2_000_000
    with open_raster(path) as src:
        assert src.read(1, window=Window(511, 1024, 2, 1)).tolist() == [[0, 9]]


def test_create_raster_says_why_not(tmp_path):
    shape = {"height": 5, "width": 5, "bands": 1, "dtype": "uint8"}
    with (
        pytest.raises(OutputError, match="cannot create"),
        create_raster(
            tmp_path / "no" / "a.tif", crs="EPSG:32633", transform=Affine.scale(2, -2), **shape
        ),
    ):
        pass


def test_to_cog_keeps_pixels_and_mask_and_adds_overviews(make_raster, tmp_path):
    mask = np.ones((1100, 700), bool)
    mask[:100] = False
    path = make_raster(height=1100, width=700, mask=mask)
    to_cog(path, tmp_path / "cog.tif", blocksize=256)
    with open_raster(path) as src, open_raster(tmp_path / "cog.tif") as cog:
        assert cog.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert cog.overviews(1)[:2] == [2, 4]
        assert np.array_equal(src.read(), cog.read())
        assert np.array_equal(cog.read_masks(1) > 0, mask)
    with pytest.raises(OutputError, match="cannot write"):
        to_cog(path, tmp_path / "no" / "cog.tif")


# --- world files -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("driver", "name", "world"),
    [("PNG", "x.png", "x.pgw"), ("JPEG", "x.jpg", "x.jgw"), ("GTiff", "x.tif", "x.tfw")],
)
def test_an_image_with_a_world_file_needs_only_a_crs(make_raster, tmp_path, driver, name, world):
    path = make_raster(name, driver=driver, crs=None, transform=None)
    Path(f"{path}.aux.xml").unlink(missing_ok=True)
    if driver != "GTiff":
        with pytest.raises(SourceError, match="holds no raster"):
            find_images([tmp_path])
    (tmp_path / world).write_text("0.1\n0\n0\n-0.1\n500000.05\n5499999.95\n")
    assert find_images([tmp_path]) == (str(path),)
    with pytest.raises(SourceError, match="has no CRS; name it with --src-crs"):
        describe_raster(path)
    with pytest.raises(SourceError, match="is no CRS that PROJ knows"):
        describe_raster(path, src_crs="EPSG:1")
    info = describe_raster(path, src_crs="EPSG:32633")
    assert tuple(info.transform)[:6] == pytest.approx((0.1, 0, 500_000, 0, -0.1, 5_500_000))
    (tmp_path / "x.prj").write_text(pyproj.CRS(32633).to_wkt("WKT1_ESRI"))
    beside = describe_raster(path)
    assert pyproj.CRS(beside.crs_wkt).to_epsg() == 32633
    # what a file or a .prj says is not overruled unless it is asked for
    assert pyproj.CRS(describe_raster(path, src_crs="EPSG:32645").crs_wkt).to_epsg() == 32645
    (tmp_path / "x.prj").write_text("nonsense")
    with pytest.raises(SourceError, match=r"x.prj holds no CRS"):
        describe_raster(path)


def test_src_crs_leaves_the_crs_of_a_file_alone(make_raster):
    path = make_raster(crs="EPSG:32633")
    assert pyproj.CRS(describe_raster(path, src_crs="EPSG:32645").crs_wkt).to_epsg() == 32633


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64", "complex128"])
def test_complex_pixels_are_refused(tmp_path, dtype):
    path = tmp_path / "radar.tif"
    options = {"crs": "EPSG:32633", "transform": Affine(1, 0, 500_000, 0, -1, 5_500_000)}
    with rasterio.open(path, "w", "GTiff", 4, 4, 1, dtype=dtype, **options):
        pass
    with pytest.raises(SourceError, match="has complex pixels; convert them to real ones"):
        describe_raster(path)
