"""VRTs: refused unless allowed, and then only as mosaics of images beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoseg.cli.main import main
from geoseg.errors import SourceError
from geoseg.imagery.check import check_image
from geoseg.imagery.inputs import find_images
from geoseg.imagery.source import describe_raster, open_raster
from geoseg.imagery.vrt import allow_vrt, read_vrt

UTM = "EPSG:32633"
SOURCE = (
    '<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>'
    "<SourceBand>{band}</SourceBand>"
    '<SrcRect xOff="0" yOff="0" xSize="40" ySize="50"/>'
    '<DstRect xOff="{x}" yOff="0" xSize="40" ySize="50"/></SimpleSource>'
)
PASSWORDS = """<VRTDataset rasterXSize="8" rasterYSize="8">
<SRS>EPSG:32633</SRS><GeoTransform>500000, 0.1, 0, 5500000, 0, -0.1</GeoTransform>
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativeToVRT="0">{path}</SourceFilename><ImageOffset>0</ImageOffset>
<PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand></VRTDataset>"""


def mosaic(bands: str, *, root: str = "", more: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="80" rasterYSize="50"{root}><SRS>{UTM}</SRS>'
        "<GeoTransform>500000, 0.1, 0, 5500000, 0, -0.1</GeoTransform>"
        f"{more}{bands}</VRTDataset>"
    )


def band(*sources: str, number: int = 1, attributes: str = "") -> str:
    return (
        f'<VRTRasterBand dataType="Byte" band="{number}"{attributes}>{"".join(sources)}'
        "</VRTRasterBand>"
    )


@pytest.fixture
def two(make_raster, tmp_path) -> Path:
    """A folder with two sheets side by side, and the VRT over them."""
    for name, left in (("a", 0.0), ("b", 4.0)):
        transform = Affine(0.1, 0, 500_000 + left, 0, -0.1, 5_500_000)
        make_raster(f"in/{name}.tif", height=50, width=40, transform=transform)
    sources = [
        band(
            SOURCE.format(name="a.tif", band=b, x=0),
            SOURCE.format(name="b.tif", band=b, x=40),
            number=b,
        )
        for b in (1, 2, 3)
    ]
    path = tmp_path / "in" / "all.vrt"
    path.write_text(mosaic("".join(sources)))
    return path


def refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "in" / "evil.vrt"
    path.write_text(text)
    with pytest.raises(SourceError, match=match):
        describe_raster(allow_vrt(path))


def test_a_vrt_is_refused_unless_it_is_allowed(two, capsys):
    with pytest.raises(SourceError, match="--allow-vrt"):
        describe_raster(two)
    assert main(["check", str(two)]) == 1
    assert "--allow-vrt" in capsys.readouterr().out
    assert main(["check", str(two), "--allow-vrt"]) == 0


def test_an_allowed_mosaic_reads_as_its_images(two):
    (path,) = find_images([two], allow_vrt=True)
    info = describe_raster(path)
    assert (info.height, info.width, info.bands, info.path) == (50, 80, 3, f"VRT:{two}")
    with open_raster(path) as src:
        pixels = src.read()
        assert src.crs == UTM
    for name, part in (("a", pixels[:, :, :40]), ("b", pixels[:, :, 40:])):
        with rasterio.open(two.with_name(f"{name}.tif")) as src:
            assert (src.read() == part).all()


def test_what_gdalbuildvrt_writes_is_understood(two, tmp_path):
    with rasterio.open(two) as src:
        rasterio.shutil.copy(src, tmp_path / "in" / "copied.vrt", driver="VRT")
    (tmp_path / "in" / "copied.vrt").write_text(
        (tmp_path / "in" / "copied.vrt").read_text().replace("all.vrt", "a.tif")
    )
    with open_raster(allow_vrt(tmp_path / "in" / "copied.vrt")) as src:
        assert src.count == 3


def test_a_changed_source_changes_the_fingerprint(two):
    before = describe_raster(allow_vrt(two)).fingerprint
    assert describe_raster(allow_vrt(two)).fingerprint == before
    with rasterio.open(two.with_name("b.tif"), "r+") as dst:
        dst.write(np.zeros((3, 50, 40), np.uint8))
    assert describe_raster(allow_vrt(two)).fingerprint != before


def test_a_truncated_source_is_found(two):
    source = two.with_name("b.tif")
    source.write_bytes(source.read_bytes()[:1000])
    report = check_image(allow_vrt(two))
    assert report.state == "damaged"
    assert "b.tif is truncated" in report.problems[0]


def test_no_file_of_the_machine_is_read_through_a_vrt(tmp_path, two, monkeypatch):
    monkeypatch.setenv("GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE", "ALL")
    monkeypatch.setenv("GDAL_VRT_ENABLE_RAWRASTERBAND", "YES")
    text = PASSWORDS.format(path="/etc/passwd")
    path = tmp_path / "in" / "passwords.vrt"
    path.write_text(text)
    with rasterio.open(path) as src:  # the attack works on GDAL alone
        assert src.read(1).tobytes() == Path("/etc/passwd").read_bytes()[:64]
    with pytest.raises(SourceError, match="subClass"):
        describe_raster(allow_vrt(path))
    # nor beside the VRT, where sources may lie
    inside = tmp_path / "in" / "secret.txt"
    inside.write_text("x" * 64)
    refused(tmp_path, PASSWORDS.format(path=inside), "subClass")
    refused(tmp_path, mosaic(band(SOURCE.format(name="secret.txt", band=1, x=0))), "not a raster")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside.tif",
        "link.tif",
        "/vsicurl/http://127.0.0.1:9/x.tif",
        "/vsizip/x.zip/x.tif",
        "https://h.org/x.tif",
        "GTIFF_DIR:1:a.tif",
        "vrt://a.tif?bands=1",
        "",
        ".",
        "a\0b",
        "../in/../../in/a.tif",
    ],
)
def test_sources_elsewhere_are_refused(tmp_path, two, name, make_raster):
    outside = make_raster("outside.tif")
    (tmp_path / "in" / "link.tif").symlink_to(outside)
    text = mosaic(band(SOURCE.format(name=name.replace("\0", ""), band=1, x=0)))
    for flag in ('relativeToVRT="1"', 'relativeToVRT="0"'):
        refused(
            tmp_path,
            text.replace('relativeToVRT="1"', flag),
            "no file in the folder|not there|is missing or wrong|no file|not a raster",
        )


def test_a_vrt_in_a_vrt_is_refused(tmp_path, two):
    refused(tmp_path, mosaic(band(SOURCE.format(name="all.vrt", band=1, x=0))), "is a VRT")
    # by whatever name
    (tmp_path / "in" / "c.tif").write_text(two.read_text())
    refused(tmp_path, mosaic(band(SOURCE.format(name="c.tif", band=1, x=0))), "is a VRT")


A = SOURCE.format(name="a.tif", band=1, x=0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (mosaic(band(A), root=' subClass="VRTWarpedDataset"'), "subClass"),
        (mosaic(band(A, attributes=' subClass="VRTDerivedRasterBand"')), "subClass"),
        (mosaic(band(A, "<PixelFunctionType>x</PixelFunctionType>")), "PixelFunctionType"),
        (mosaic(band(A, "<PixelFunctionCode>x</PixelFunctionCode>")), "PixelFunctionCode"),
        (mosaic(band(A, "<Overview><SourceFilename>/etc/passwd</SourceFilename></Overview>")), "Ov"),
        (mosaic(band(A.replace("</SourceB", "</SourceB").replace("<SrcRect", "<OpenOptions/><SrcRect"))),
         "OpenOptions"),
        (mosaic(band(A.replace("SimpleSource", "KernelFilteredSource"))), "KernelFilteredSource"),
        (mosaic(band(A.replace("<SrcRect", "<LUT>0:1</LUT><SrcRect"))), "LUT"),
        (mosaic(band(A)).replace("EPSG:32633", "/etc/passwd"), "SRS"),
        (mosaic(band(A)).replace("EPSG:32633", "http://h.org/x.prj"), "SRS"),
        (mosaic(band(A)).replace("500000,", "inf,"), "GeoTransform"),
        (mosaic(band(A)).replace('"80"', '"80000000000"'), "rasterXSize"),
        (mosaic(band(A)).replace(">1</SourceBand", ">1e9</SourceBand"), "SourceBand"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + mosaic(band(A)), "entities"),
        (mosaic("<GCPList/>" + band(A)), "GCPList"),
        (mosaic("<Group name='/'/>" + band(A)), "Group"),
        (mosaic(band()), "names no rasters"),
        ("<VRTDataset", "is no VRT"),
        ("<OGRVRTDataSource/>", "is no VRT"),
    ],
)  # fmt: skip
def test_what_is_more_than_a_mosaic_is_refused(tmp_path, two, text, match):
    refused(tmp_path, text, match)


def test_gdal_gets_only_what_was_understood(two):
    two.write_text(
        two.read_text().replace("<SRS>", "<Metadata><MDI key='x'>/vsi</MDI></Metadata><SRS>")
    )
    vrt = read_vrt(allow_vrt(two))
    assert "MDI" not in vrt.text
    assert str(two.parent) not in vrt.relative_text
    assert vrt.sources == tuple(str(two.with_name(f"{n}.tif")) for n in "ab")
