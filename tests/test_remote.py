"""Images of other machines: what is read, how often, and what happens when servers misbehave."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from cases import check, run_case
from cases_remote import CASES, paint
from painted import blob_scene
from rasterio.windows import Window
from servers import FileServer, OwnProcess
from stubs import Stub

from geoseg.cli.main import main
from geoseg.config import DetectSettings
from geoseg.errors import SourceError, TileError
from geoseg.imagery import chunks, remote
from geoseg.imagery.check import check_image, check_truncation
from geoseg.imagery.georef import WorkingGrid
from geoseg.imagery.inputs import find_images
from geoseg.imagery.read import read_window
from geoseg.imagery.remote import RemoteError, plain_path
from geoseg.imagery.source import describe_raster, open_raster
from geoseg.jobs.pipeline import run_detect

UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
TILES = {"tile_size": 256, "overlap": 64, "supertile_size": 448, "workers": 1, "report": False}
HEADER = 65_536


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test begins without anything kept of servers, and does not wait long for them."""
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.delenv(chunks.CACHE_FOLDER, raising=False)
    yield
    chunks.drop_cache()
    remote._known.clear()
    remote._sidecars.clear()


@pytest.fixture(scope="module")
def scene():
    return blob_scene(7, size=1000, count=150, large=1)


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory) -> Path:
    """A folder with painted.tif, a tiled COG of noise and objects, that servers serve."""
    folder = tmp_path_factory.mktemp("served")
    height, width = scene.shape
    # noise in a third band keeps blocks large
    noise = np.random.default_rng(3).integers(0, 65535, (1, height, width)).astype(np.uint16)
    profile = {"count": 3, "height": height, "width": width, "dtype": "uint16", "crs": UTM}
    plain = folder / "plain.tif"
    with rasterio.open(plain, "w", driver="GTiff", transform=NORTH_UP, **profile) as dst:
        dst.write(np.concatenate([scene.pixels, noise]))
    rasterio.shutil.copy(
        plain, folder / "painted.tif", driver="COG", blocksize=128, compress="deflate"
    )
    return folder


def block_bytes(path: Path, window: Window | None = None) -> int:
    """Return the bytes of the blocks of the full image that a window touches."""
    with rasterio.open(path) as src:
        side = src.block_shapes[0][0]
        window = window or Window(0, 0, src.width, src.height)
        rows = range(int(window.row_off // side), -(-int(window.row_off + window.height) // side))
        cols = range(int(window.col_off // side), -(-int(window.col_off + window.width) // side))
        return sum(
            int(src.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1)) for y in rows for x in cols
        )


def run(image, tmp_path, **settings):
    settings = TILES | {"output": tmp_path / "out.gpkg", "bidx": (1, 2)} | settings
    return run_detect(DetectSettings(images=(image,), **settings), Stub())


def rows(result) -> list:
    columns = ["class", "score", "area_m2", "geometry"]
    return [tuple(map(str, row)) for row in result.objects[columns].itertuples(index=False)]


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_run_reads_little_more_than_the_blocks(folder, tmp_path, workers):
    here = run(str(folder / "painted.tif"), tmp_path)
    with FileServer(folder) as server:
        there = run(
            f"{server.url}/painted.tif",
            tmp_path,
            output=tmp_path / "remote.gpkg",
            workers=workers,
            detector="stubs:make" if workers > 1 else None,
        ) if workers == 1 else run_detect(
            DetectSettings(
                images=(f"{server.url}/painted.tif",), detector="stubs:make",
                **(TILES | {"output": tmp_path / "remote.gpkg", "bidx": (1, 2), "workers": workers}),
            )
        )  # fmt: skip
        sent, requests = server.sent, len(server.log)
    assert rows(there) == rows(here)
    assert len(here.objects) > 100
    needed = block_bytes(folder / "painted.tif")
    print(f"{workers} worker(s): {sent / needed:.3f} of what is needed, {requests} requests")
    assert sent <= 1.15 * needed
    assert requests < 120


READ_ALL = """
import sys
from geoseg.imagery.inputs import find_images
from geoseg.imagery.remote import RemoteFile
(path,) = find_images([sys.argv[1]])
file = RemoteFile(path)
print("ready", flush=True)
sys.stdin.readline()
assert len(file.ranges([(200_000, 600_000), (900_000, 1_000_000)])[0]) == 400_000
"""


def test_processes_that_want_the_same_chunks_fetch_them_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(chunks.CACHE_FOLDER, str(tmp_path / "cache"))
    slow = lambda _path, _number: int(time.sleep(0.5) or 0)  # noqa: E731
    with FileServer(folder, refuse=slow) as server:
        command = [sys.executable, "-c", READ_ALL, f"{server.url}/painted.tif"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
            assert {one.stdout.readline(), two.stdout.readline()} == {"ready\n"}
            server.reset()
            for process in (one, two):
                process.stdin.write("go\n")
                process.stdin.flush()
            assert {one.wait(), two.wait()} == {0}
        assert 500_000 <= server.sent <= 500_000 + 4 * chunks.CHUNK


def test_a_window_reads_its_blocks_and_the_header(folder):
    window = Window(300, 420, 260, 230)
    with FileServer(folder) as server:
        (path,) = find_images([f"{server.url}/painted.tif"])
        info = describe_raster(path)
        grid = WorkingGrid(info.transform, info.height, info.width, 1.0, 1.0, info.gsd_m)
        pixels, valid = read_window(info, grid, window, (1, 2))
        sent = server.sent
    with rasterio.open(folder / "painted.tif") as src:
        assert (pixels == src.read([1, 2], window=window)).all()
    assert valid.all()
    # a row of blocks lies together: of what is rounded to chunks there is little
    assert sent <= 1.15 * block_bytes(folder / "painted.tif", window) + HEADER


def test_an_aoi_reads_only_what_it_needs(folder, tmp_path):
    from shapely.geometry import box

    aoi = tmp_path / "aoi.geojson"
    square = gpd.GeoSeries([box(500_002, 5_499_990, 500_010, 5_499_998)], crs=UTM)
    square.to_crs(4326).to_file(aoi)
    with FileServer(folder) as server:
        run(f"{server.url}/painted.tif", tmp_path, aoi=aoi)
        sent = server.sent
    with rasterio.open(folder / "painted.tif") as src:
        assert sent <= 1.15 * block_bytes(folder / "painted.tif", Window(0, 0, 448, 448)) + HEADER
        assert src.width == 1000


def test_check_takes_few_requests_and_finds_what_is_missing(folder, tmp_path):
    data = (folder / "painted.tif").read_bytes()
    (tmp_path / "half.tif").write_bytes(data[: len(data) // 2])
    with FileServer(tmp_path) as server:
        (path,) = find_images([f"{server.url}/half.tif"])
        report = check_truncation(path)
        assert len(server.log) == 1
        assert report.problem.startswith("half.tif is truncated: ")
        assert check_truncation(tmp_path / "half.tif").lost == report.lost
        found = check_image(path)
        assert found.state == "damaged"
        assert 0.1 < found.loss.share < 0.9
        assert len(server.log) < 5


def test_masks_beside_a_remote_file_are_seen(make_raster, tmp_path):
    mask = np.ones((60, 80), bool)
    mask[:, :30] = False
    make_raster("masked.tif", mask=mask, external_mask=True)
    with FileServer(tmp_path) as server:
        info = describe_raster(f"{server.url}/masked.tif")
        assert info.mask_kind == "mask"
        with open_raster(info.path) as src:
            assert (src.read_masks(1)[:, :30] == 0).all()
            assert (src.read_masks(1)[:, 30:] == 255).all()
        # a mask that is no TIFF could be anything
        (tmp_path / "masked.tif.msk").write_text("<VRTDataset/>")
        with pytest.raises(SourceError, match="VRT"):
            describe_raster(find_images([f"{server.url}/masked.tif"])[0])


# --- servers that misbehave --------------------------------------------------------------------


def test_a_busy_server_is_asked_again(folder, tmp_path):
    with FileServer(folder, busy_every=3) as server:
        result = run(f"{server.url}/painted.tif", tmp_path)
    assert result.exit_code == 0
    assert sum(status == 503 for *_, status in server.log) > 3
    assert len(result.objects) > 100


def test_what_a_server_never_gives_costs_its_tiles(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    whole = run(str(folder / "painted.tif"), tmp_path)
    with FileServer(folder) as server:
        size = (folder / "painted.tif").stat().st_size
        broken = []

        def refuse(_path: str, number: int) -> int:
            wanted = server.log[number - 1][1]
            start = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
            broken.append(start > size * 0.7)
            return 503 if broken[-1] else 0

        server.refuse = refuse
        result = run(f"{server.url}/painted.tif", tmp_path, output=tmp_path / "part.gpkg")
        assert result.exit_code == 3
        assert result.tiles_failed
        assert 0 < len(result.objects) < len(whole.objects)
        failed = json.loads((tmp_path / "part.geoseg-run/run.json").read_text())["failed_tiles"]
        assert all("the server answers 503" in tile["reason"] for tile in failed)
        server.refuse = lambda _path, _number: 0
        again = run(f"{server.url}/painted.tif", tmp_path, output=tmp_path / "part.gpkg")
    assert (again.exit_code, rows(again)) == (0, rows(whole))


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (404, "no such file"),
        (403, r"refuses access \(403\)"),
        (401, "refuses"),
        (500, "answers 500"),
    ],
)
def test_what_is_not_served_is_told(folder, capsys, monkeypatch, status, match):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    with FileServer(folder, refuse=lambda _path, _number: status) as server:
        url = f"{server.url}/painted.tif"
        with pytest.raises(RemoteError, match=match):
            describe_raster(url)
        out = folder / "never.gpkg"
        assert main(["detect", url, "-o", str(out), "--detector", "stubs:make"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("geoseg: error: ")
        assert said.count("\n") == 1
        assert not out.exists()


def test_a_server_without_ranges_is_refused(folder):
    with FileServer(folder, ranges=False) as server:
        with pytest.raises(RemoteError, match="whole files only"):
            describe_raster(f"{server.url}/painted.tif")
        # the file was not downloaded for that
        assert len(server.log) == 1


def test_no_server_at_all(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    with pytest.raises(RemoteError, match="connection is refused, after 2 tries"):
        describe_raster("http://127.0.0.1:9/x.tif")


def test_a_file_that_is_no_raster(tmp_path):
    (tmp_path / "x.tif").write_text("<html>please log in</html>")
    (tmp_path / "v.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    (tmp_path / "empty.tif").write_bytes(b"")
    with FileServer(tmp_path) as server:
        for name, match in (("x", "expected GeoTIFF"), ("v", "is a VRT"), ("empty", "is empty")):
            with pytest.raises(SourceError, match=match):
                describe_raster(f"{server.url}/{name}.tif")


def test_a_file_that_changes_while_it_is_read(folder, tmp_path):
    file = tmp_path / "x.tif"
    shutil.copy(folder / "painted.tif", file)
    with FileServer(tmp_path) as server:
        info = describe_raster(f"{server.url}/x.tif")
        grid = WorkingGrid(info.transform, info.height, info.width, 1.0, 1.0, info.gsd_m)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(TileError, match="has changed since"):
            read_window(info, grid, Window(800, 800, 200, 200), (1, 2))


def test_a_file_that_changes_between_run_and_resume(folder, tmp_path, capsys):
    file = tmp_path / "x.tif"
    shutil.copy(folder / "painted.tif", file)
    with FileServer(tmp_path) as server:
        url = f"{server.url}/x.tif"
        assert run(url, tmp_path).exit_code == 0
        server.reset()
        again = run(f"{url}?X-Amz-Signature=another-one", tmp_path)
        assert again.already_done
        shutil.copy(folder / "painted.tif", file)  # a new time: the server says another state
        with pytest.raises(Exception, match="run with other images"):
            run(url, tmp_path, output=tmp_path / "out.gpkg")


# --- redirections ------------------------------------------------------------------------------


def test_a_redirection_is_followed_without_the_login(folder, tmp_path):
    with FileServer(folder) as target, FileServer(tmp_path, login="me:password1") as server:
        server.moved["/a.tif"] = f"{target.url}/painted.tif"
        info = describe_raster(f"http://me:password1@127.0.0.1:{server.port}/a.tif")
        assert (info.width, info.path) == (1000, f"{server.url}/a.tif")
        assert all("Authorization" not in headers for headers in target.headers)


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        ("https://example.org/x.tif", "http://example.org/x.tif"),
        ("http://192.0.43.8/x.tif", "http://127.0.0.1/x.tif"),
        ("http://192.0.43.8/x.tif", "http://169.254.169.254/latest/meta-data"),
        ("http://192.0.43.8/x.tif", "http://10.0.0.1/x.tif"),
        ("http://192.0.43.8/x.tif", "http://[::1]/x.tif"),
        ("http://127.0.0.1/x.tif", "file:///etc/passwd"),
    ],
)
def test_where_a_redirection_may_not_lead(origin, target):
    with pytest.raises(RemoteError, match="leads to"):
        remote.check_step(origin, target)


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("https://h.org/a/x.tif", "https://h.org/a/x.tif"),
        ("HTTPS://me:pass@h.org:8443/x.tif?X-Amz-Signature=1&X-Amz-Date=2", "https://h.org:8443/x.tif"),
        ("/vsicurl/https://h.org/x.tif?sv=1&sig=2", "https://h.org/x.tif"),
        (str(Path("https://h.org/a/x.tif")), "https://h.org/a/x.tif"),
        ("s3://bucket/a/x.tif", "/vsis3/bucket/a/x.tif"),
        ("gs://bucket/x.tif", "/vsigs/bucket/x.tif"),
        ("az://container/x.tif", "/vsiaz/container/x.tif"),
        ("/vsis3/bucket/x.tif", "/vsis3/bucket/x.tif"),
    ],
)  # fmt: skip
def test_plain_paths(given, plain):
    assert plain_path(given) == plain
    assert plain_path(plain) == plain


def test_queries_that_tell_files_apart_stay_apart():
    one, two = (plain_path(f"https://h.org/get?id={n}&token=abc{n}") for n in (1, 2))
    assert one != two
    assert one == plain_path("https://h.org/get?id=1&token=fresh")
    assert "id=" not in one


@pytest.mark.parametrize(
    "given",
    ["/vsizip/x.zip/x.tif", "/vsicurl?url=https://h.org/x.tif", "/vsimem/x", "/vsistdin/",
     "/vsis3/bucket", "s3://b/../../x", "/vsis3//vsizip/x"],
)  # fmt: skip
def test_other_kinds_of_paths_are_refused(given):
    with pytest.raises(SourceError, match=r"not read|names no object|no address"):
        find_images([given])


# --- what is kept ------------------------------------------------------------------------------


def test_the_cache_is_bounded_and_private(monkeypatch, tmp_path):
    monkeypatch.setenv(chunks.CACHE_FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv(chunks.CACHE_MB, "40")
    store = chunks.ChunkStore("a file")
    chunk = bytes(range(256)) * 64
    for index in range(4 * 1024):
        store.put(index, chunk)
    held = sum(p.stat().st_blocks * 512 for p in (tmp_path / "cache").iterdir())
    assert held < 45e6
    assert store.get_many([4 * 1024 - 1]) == {4 * 1024 - 1: chunk}
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert chunks.ChunkStore("another file").get_many([4 * 1024 - 1]) == {}


# --- buckets -----------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A server that passes for S3, Google's and Azure's, with a bucket b."""
    (tmp_path / "b").mkdir()
    with OwnProcess(tmp_path) as server:
        host = f"127.0.0.1:{server.port}"
        values = {
            "AWS_S3_ENDPOINT": host, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-of-aws",
            "AWS_REGION": "eu-north-1", "CPL_GS_ENDPOINT": f"http://{host}/",
            "GS_NO_SIGN_REQUEST": "YES", "AZURE_NO_SIGN_REQUEST": "YES",
            "AZURE_STORAGE_ACCOUNT": "me", "GDAL_HTTP_RETRY_DELAY": "0.01",
            "AZURE_STORAGE_CONNECTION_STRING":
                f"DefaultEndpointsProtocol=http;AccountName=me;AccountKey=bWU=;"
                f"BlobEndpoint=http://{host}",
        }  # fmt: skip
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_an_object_of_a_bucket_is_read(folder, tmp_path, bucket, scheme):
    # GDAL remembers what it saw under a name
    name = f"{scheme}-{bucket.port}.tif"
    shutil.copy(folder / "painted.tif", tmp_path / "b" / name)
    (path,) = find_images([f"{scheme}://b/{name}"])
    info = describe_raster(path)
    with rasterio.open(folder / "painted.tif") as src, open_raster(info.path) as there:
        window = Window(300, 300, 100, 100)
        assert (src.read(window=window) == there.read(window=window)).all()
    assert info.fingerprint == describe_raster(path).fingerprint
    report = check_image(path)
    assert report.state == "ok"
    assert any("was not checked" in note for note in report.notes)


def test_a_run_over_a_bucket_and_what_it_reads(folder, tmp_path, bucket):
    name = f"run-{bucket.port}.tif"
    shutil.copy(folder / "painted.tif", tmp_path / "b" / name)
    here = run(str(folder / "painted.tif"), tmp_path, output=tmp_path / "here.gpkg")
    bucket.told()
    there = run(f"s3://b/{name}", tmp_path)
    assert rows(there) == rows(here)
    needed = block_bytes(folder / "painted.tif")
    sent, log = bucket.told()
    print(f"bucket: {sent / needed:.3f} of what is needed, {len(log)} requests")
    # GDAL keeps no ranges that it read at once: what supertiles share is read again
    assert sent <= 2.0 * needed
    text = (tmp_path / "out.geoseg-run" / "run.json").read_text()
    assert "secret-of-aws" not in text
    assert "AKIAEXAMPLE" not in text


def test_a_mask_beside_an_object_is_seen_if_it_is_a_tiff(make_raster, tmp_path, bucket):
    mask = np.ones((60, 80), bool)
    mask[:, :30] = False
    names = [f"{kind}-{bucket.port}.tif" for kind in ("good", "evil")]
    for name in names:
        make_raster(f"b/{name}", mask=mask, external_mask=True)
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"\0" * 4800)
    (tmp_path / "b" / f"{names[1]}.msk").write_text(
        '<VRTDataset rasterXSize="80" rasterYSize="60">'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="0">{secret}</SourceFilename>'
        "<PixelOffset>1</PixelOffset><LineOffset>80</LineOffset></VRTRasterBand></VRTDataset>"
    )
    assert describe_raster(f"s3://b/{names[0]}").mask_kind == "mask"
    with open_raster(f"s3://b/{names[1]}") as src:
        # the file of this machine is not taken for a mask
        assert (src.read_masks(1) == 255).all()


def test_an_object_that_is_not_there_or_no_raster(tmp_path, bucket, capsys):
    (tmp_path / "b" / f"page-{bucket.port}.tif").write_text("<html/>")
    vrt = f"v-{bucket.port}.tif"
    (tmp_path / "b" / vrt).write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    for name in (f"none-{bucket.port}.tif", f"page-{bucket.port}.tif", vrt):
        out = str(tmp_path / "x.gpkg")
        assert main(["detect", f"s3://b/{name}", "-o", out, "--detector", "stubs:make"]) == 2
        said = capsys.readouterr().err
        assert "does not open" in said
        assert "secret-of-aws" not in said


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case, tmp_path):
    outcome = run_case(case, tmp_path)
    check(case, outcome)
    if case.exit_code == 0:
        truth = paint(tmp_path / "truth" / "t.tif").to_crs(outcome.objects.crs)
        assert len(outcome.objects) == len(truth)
        for shape in truth.geometry:
            best = outcome.objects.geometry.intersection(shape).area.max()
            assert best > 0.98 * shape.area
        areas = sorted(outcome.objects.geometry.area)
        assert np.allclose(areas, sorted(truth.geometry.area), rtol=0.02)
