"""The whole path over painted rasters: what is painted is what comes out, wherever tiles are cut."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import geopandas as gpd
import numpy as np
import psutil
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from painted import Painter, Scene, blob, blob_scene
from rasterio.enums import Resampling
from rasterio.warp import calculate_default_transform, reproject
from stubs import Bright, Capped, Stub

from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, ModelError, OutputError, SourceError, TileError
from geoseg.jobs import sheets
from geoseg.jobs import supertile as supertiles
from geoseg.jobs.bands import rows_in_bands
from geoseg.jobs.pipeline import run_detect
from geoseg.objects.evaluate import evaluate
from geoseg.outputs.tables import OBJECT_DTYPES

UTM = "EPSG:32633"
GSD = 0.1
NORTH_UP = Affine(GSD, 0, 500_000, 0, -GSD, 5_500_000)
TILES = {"tile_size": 256, "overlap": 64, "supertile_size": 448}


@pytest.fixture(scope="module")
def scene() -> Scene:
    """700 x 820 px (rows and columns differ), objects from 5 px to more than a tile."""
    rng = np.random.default_rng(4)
    painter = Painter(700, 820, rng)
    painter.scatter(lambda: blob(rng.uniform(150, 330), rng), 3)
    painter.scatter(lambda: blob(rng.uniform(6, 45), rng), 180)
    return painter.scene()


@pytest.fixture
def image(make_raster, scene) -> Path:
    return make_raster("painted.tif", scene.pixels, transform=NORTH_UP, crs=UTM)


def run(image, detector=None, progress=None, **settings):
    images = (str(image),) if isinstance(image, str | Path) else tuple(str(i) for i in image)
    settings = TILES | {"workers": 1} | settings
    return run_detect(DetectSettings(images=images, **settings), detector or Stub(), progress)


def place(polygons, transform: Affine):
    """Bring px to the ground, apart from the code under test."""
    a, b, c, d, e, f = transform[:6]
    return shapely.transform(
        polygons,
        lambda xy: np.column_stack(
            [a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f]
        ),
    )


def read_objects(path: Path) -> gpd.GeoDataFrame:
    if path.suffix == ".parquet":
        return gpd.read_parquet(path)
    layer = "objects" if path.suffix.lower() == ".gpkg" else None
    return pyogrio.read_dataframe(path, layer=layer)


def match(truth, found):
    """Pair polygons one to one by largest overlap; return rows of both and the IoU."""
    a, b = shapely.STRtree(found).query(truth, predicate="intersects")
    inter = shapely.area(shapely.intersection(truth[a], found[b]))
    iou = inter / (shapely.area(truth[a]) + shapely.area(found[b]) - inter)
    good = iou > 0.5
    return a[good], b[good], iou[good]


def check_against(scene: Scene, objects: gpd.GeoDataFrame, transform: Affine, crs=None) -> None:
    """Compare objects with what is painted: none missed, none extra, in the right place."""
    truth, labels = scene.truth()
    where = place(truth, transform)
    if crs is not None:
        where = gpd.GeoSeries(where, crs=crs).to_crs(objects.crs).to_numpy()
    found = objects.geometry.to_numpy()
    assert shapely.is_valid(found).all()
    a, b, iou = match(where, found)
    # an IoU above 0.5 pairs one to one
    assert (len(a), len(truth), len(found)) == (len(truth), len(truth), len(truth))
    names = np.array(Stub.classes)[labels]
    assert (objects["class"].to_numpy()[b] == names[a]).all()
    px = np.sqrt(abs(transform.determinant))
    if crs is not None:
        px *= np.sqrt(np.median(shapely.area(found[b]) / shapely.area(place(truth, transform))[a]))
    shift = (
        shapely.get_coordinates(shapely.centroid(found[b]))
        - shapely.get_coordinates(shapely.centroid(where[a]))
    ) / px
    assert np.abs(shift).max() < 0.5
    # half a pixel off, or a raster turned over, would show here at once
    assert np.abs(shift.mean(axis=0)).max() < 0.02
    change = (shapely.area(found[b]) - shapely.area(where[a])) / px**2
    assert np.abs(change / (shapely.length(where[a]) / px)).max() < 0.25
    assert abs(change.sum()) < 0.01 * shapely.area(truth).sum()
    assert np.median(iou) > 0.9


def same_table(one: gpd.GeoDataFrame, two: gpd.GeoDataFrame) -> None:
    """Assert that two tables are the same to the last bit, in the same order."""
    assert list(one.columns) == list(two.columns)
    assert one.crs == two.crs
    for column in one.columns.drop("geometry"):
        assert one[column].tolist() == two[column].tolist(), column
    assert shapely.to_wkb(one.geometry).tolist() == shapely.to_wkb(two.geometry).tolist()


# --- what is painted comes out ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile_size", "overlap"),
    # objects larger than a tile, usual sizes, no overlap at all, one tile for everything
    [(128, 32), (256, 64), (300, 117), (1024, 64)],
)
def test_painted_objects_come_out_whatever_the_tiles(image, scene, tile_size, overlap):
    result = run(image, tile_size=tile_size, overlap=overlap, supertile_size=1024)
    check_against(scene, result.objects, NORTH_UP)
    assert result.exit_code == 0


def test_the_same_objects_for_other_tile_sizes(image):
    one = run(image, tile_size=200, overlap=60).objects
    two = run(image, tile_size=333, overlap=40).objects
    a, b, iou = match(one.geometry.to_numpy(), two.geometry.to_numpy())
    assert len(one) == len(two) == len(a)
    # outlines may differ by the vertices that were left out
    assert np.quantile(iou, 0.05) > 0.97
    assert (one["class"].to_numpy()[a] == two["class"].to_numpy()[b]).all()
    assert (one["touches_edge"].to_numpy()[a] == two["touches_edge"].to_numpy()[b]).all()


def test_a_detector_at_its_cap_looks_again_in_quarters(image, scene, tmp_path):
    result = run(image, Capped(30), tile_size=512, overlap=128, supertile_size=768)
    check_against(scene, result.objects, NORTH_UP)
    assert result.saturated > 0
    assert any("run in quarters" in note for note in result.notes)
    # and it says where
    kept = run(
        image, Capped(30), tile_size=512, overlap=128, supertile_size=768, run_dir=tmp_path / "r"
    )
    places = json.loads((kept.run_dir / "run.json").read_text())["saturated_places"]
    assert len(places) == kept.saturated == kept.coverage["tiles_saturated"].sum()
    truth = scene.truth()[0]
    for place_ in places:
        x, y, width, height = place_["window"]
        assert shapely.intersects(truth, shapely.box(x, y, x + width, y + height)).sum() >= 30
    parts = run(image, Capped(30), tile_size=512, overlap=128, supertile_size=512)
    same_table(result.objects, parts.objects)
    # where even the smallest quarters are full, the run says so
    full = run(image, Capped(1), tile_size=256, overlap=64)
    assert len(full.objects) < len(result.objects)
    assert any("may lack objects" in note for note in full.notes)


def test_the_same_table_for_every_supertile_size_and_number_of_workers(image):
    whole = run(image, supertile_size=4096)
    assert sum(whole.supertiles.values()) == 1
    for supertile_size in (256, 448, 650):
        parts = run(image, supertile_size=supertile_size)
        assert sum(parts.supertiles.values()) > 1
        same_table(whole.objects, parts.objects)
    open_to_others: set[str] = set()
    children: set[psutil.Process] = set()

    def look(_done, _total, _found):
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            children.add(process)
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    open_to_others.add(connection.laddr.ip)

    parts = run(image, supertile_size=256, workers=2, progress=look)
    same_table(whole.objects, parts.objects)
    children.remove(psutil.Process())
    assert len(children) >= 3, "the cluster's processes were seen"
    assert open_to_others == {"127.0.0.1"}
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_columns_order_and_types(image, scene):
    objects = run(image).objects
    assert list(objects.columns) == [*OBJECT_DTYPES, "geometry"]
    assert objects["object_id"].tolist() == list(range(1, len(objects) + 1))
    assert objects["uid"].is_unique
    assert objects["score"].between(0.7, 1).all()
    assert set(objects["image"]) == {"painted.tif"}
    assert (objects["n_parts"] >= 1).all()
    # objects of two and more tiles' length are joined from parts
    assert objects["n_parts"].max() > 1
    rows = [(500_000 - x) for x in objects.geometry.centroid.y]
    # in reading order; finishing the outlines moves their centres by less than a tenth of a pixel
    assert np.diff(rows).min() > -0.1 * GSD
    truth = place(scene.truth()[0], NORTH_UP)
    at_edge = ~shapely.contains_properly(
        shapely.box(*gpd.GeoSeries(truth).total_bounds).buffer(-GSD), truth
    )
    a, b, _ = match(truth, objects.geometry.to_numpy())
    assert (objects["touches_edge"].to_numpy()[b] == at_edge[a]).mean() > 0.98


# --- where it lies and how large it is -------------------------------------------------------

LAT = 49.65
MERCATOR_PX = GSD / np.cos(np.deg2rad(LAT))


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (
            Affine.translation(500_000, 5_500_000) @ Affine.rotation(30) @ Affine.scale(GSD, -GSD),
            UTM,
        ),
        (Affine(GSD, 0, 500_000, 0, GSD, 5_500_000), UTM),  # south-up
        (Affine(0, GSD, 500_000, GSD, 0, 5_500_000), UTM),  # rows run east, columns north
        (Affine(MERCATOR_PX, 0, 1_669_792, 0, -MERCATOR_PX, 6_380_000), "EPSG:3857"),
    ],
)
def test_positions_and_areas_on_the_ellipsoid(make_raster, scene, transform, crs):
    image = make_raster("turned.tif", scene.pixels, transform=transform, crs=crs)
    objects = run(image).objects
    assert objects.crs == crs
    check_against(scene, objects, transform)
    to_lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    lonlat = shapely.transform(
        objects.geometry.to_numpy(),
        lambda xy: np.column_stack(to_lonlat.transform(xy[:, 0], xy[:, 1])),
    )
    geod = pyproj.Geod(ellps="WGS84")
    area, perimeter = np.abs([geod.geometry_area_perimeter(p) for p in lonlat]).T
    np.testing.assert_allclose(objects["area_m2"], area, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(objects["perimeter_m"], perimeter, rtol=1e-3, atol=2e-3)
    # 10 cm pixels on the ground in either CRS: in EPSG:3857 the plane's areas are 2.4 times too big
    painted = np.count_nonzero(scene.ids) * GSD**2
    assert objects["area_m2"].sum() == pytest.approx(painted, rel=0.02)


def test_dst_crs(image, scene):
    here = run(image)
    there = run(image, dst_crs="EPSG:3857")
    assert there.objects.crs == there.coverage.crs == "EPSG:3857"
    check_against(scene, there.objects, NORTH_UP, crs=UTM)
    # measures are those of the ground, whatever the CRS of the file
    assert there.objects["area_m2"].tolist() == here.objects["area_m2"].tolist()
    assert there.objects["uid"].tolist() == here.objects["uid"].tolist()


def test_coarser_working_pixels(make_raster):
    rng = np.random.default_rng(2)
    painter = Painter(600, 760, rng)
    painter.scatter(lambda: np.ones(rng.integers(20, 90, 2), bool), 40)
    scene = painter.scene()
    image = make_raster("grey.tif", (scene.ids[None] > 0).astype(np.uint8) * 200)
    native = run(image, Bright(), gsd="native", bidx=(1,))
    coarse = run(image, Bright(), gsd=2 * GSD, bidx=(1,))
    truth = place(scene.truth()[0], NORTH_UP)
    for result, wide in ((native, 0.1), (coarse, 0.5)):
        a, b, _ = match(truth, result.objects.geometry.to_numpy())
        assert len(a) == len(truth) == len(result.objects)
        shift = shapely.get_coordinates(
            shapely.centroid(result.objects.geometry.to_numpy()[b])
        ) - shapely.get_coordinates(shapely.centroid(truth[a]))
        assert np.abs(shift).max() < wide * 2 * GSD
        assert np.abs(shift.mean(axis=0)).max() < 0.1 * GSD
    # a quarter of the pixels: fewer tiles, the same areas
    assert coarse.coverage["tiles"].sum() < native.coverage["tiles"].sum()
    fine, rough = (r.objects["area_m2"].sum() for r in (native, coarse))
    # pixels that are half covered, along every second edge, are not bright enough
    assert 0.95 * fine < rough < fine


# --- what there is no data for ---------------------------------------------------------------


def test_no_polygon_in_a_hole_and_the_share_that_was_imaged(make_raster, scene, tmp_path):
    mask = np.ones(scene.shape, bool)
    hole = shapely.box(203, 150, 491, 467)
    mask[150:467, 203:491] = False
    # the pixels under the mask are painted: only the mask can keep them out
    image = make_raster("hole.tif", scene.pixels, mask=mask)
    boxes = [
        shapely.box(250, 200, 450, 400),  # inside the hole
        shapely.box(347, 100, 635, 600),  # half of its width in the hole
        shapely.box(600, 0, 820, 700),  # up to the edges, no hole
        shapely.box(-820, 0, 0, 700),  # beside the raster
    ]
    regions = gpd.GeoDataFrame(
        {"name": list("abcd")}, geometry=list(place(boxes, NORTH_UP)), crs=UTM
    )
    regions.to_crs(4326).to_file(tmp_path / "regions.gpkg")
    result = run(image, regions=tmp_path / "regions.gpkg")
    found = result.objects.geometry.to_numpy()
    inner = place([hole.buffer(-0.3)], NORTH_UP)[0]
    assert not shapely.intersects(found, inner).any()
    counts = result.regions
    assert counts["name"].tolist() == list("abcd")
    assert counts["count"].tolist()[0] == 0
    assert counts["count"].tolist()[3] == 0
    assert counts["count"].sum() + counts.attrs["outside"] == len(found)
    assert counts.attrs["outside"] > 0
    # 144 of 288 columns for 317 of 500 rows
    expected = [0, 1 - 0.5 * 317 / 500, 1, 0]
    np.testing.assert_allclose(counts["imaged_share"], expected, atol=0.02)
    whole = run(make_raster("whole.tif", scene.pixels)).objects.geometry.to_numpy()
    away = ~shapely.intersects(whole, place([hole.buffer(8)], NORTH_UP)[0])
    assert len(match(whole[away], found)[0]) == away.sum(), "and nothing else is lost"


def test_counts_per_region(image, tmp_path):
    grid = [shapely.box(x, y, x + 205, y + 350) for x in range(0, 600, 205) for y in (0, 350)]
    regions = gpd.GeoDataFrame(
        {"name": [f"r{i}" for i in range(len(grid))]}, geometry=list(place(grid, NORTH_UP)), crs=UTM
    )
    regions.to_crs(4326).to_file(tmp_path / "regions.geojson")
    output = tmp_path / "objects.gpkg"
    result = run(image, regions=tmp_path / "regions.geojson", output=output)
    points = result.objects.representative_point()
    expected = [int(points.within(region).sum()) for region in regions.geometry]
    assert abs(np.array(expected) - result.regions["count"]).sum() <= 1
    per_class = result.regions[[f"count_{name}" for name in Stub.classes]].sum(axis=1)
    assert per_class.tolist() == result.regions["count"].tolist()
    written = pyogrio.read_dataframe(output, layer="regions")
    assert written["count"].tolist() == result.regions["count"].tolist()
    assert written["name"].tolist() == regions["name"].tolist()
    np.testing.assert_allclose(written["imaged_share"], 1, atol=1e-3)


def test_only_inside_the_aoi(image, scene, tmp_path):
    # a bow tie, as drawn by hand: its two halves count
    bow = shapely.Polygon([(100, 50), (500, 450), (500, 50), (100, 450)])
    aoi = gpd.GeoSeries(place([bow], NORTH_UP), crs=UTM)
    aoi.to_crs(4326).to_file(tmp_path / "aoi.gpkg")
    result = run(image, aoi=tmp_path / "aoi.gpkg", supertile_size=256)
    everything = run(image, supertile_size=256).objects
    inside = shapely.make_valid(aoi.to_numpy()[0])
    assert 0 < len(result.objects) < len(everything)
    assert result.objects.representative_point().intersects(inside.buffer(1e-6)).all()
    wanted = everything[everything.representative_point().intersects(inside.buffer(-0.05))]
    assert set(wanted["uid"]) <= set(result.objects["uid"])
    assert result.supertiles["outside"] > 0
    # one as large as the earth is no limit, nor are its far sides of any concern
    gpd.GeoSeries([shapely.box(-180, -90, 180, 90)], crs=4326).to_file(tmp_path / "earth.gpkg")
    same_table(run(image, aoi=tmp_path / "earth.gpkg", supertile_size=256).objects, everything)
    # an AOI that meets no image: nothing to do is no failure
    gpd.GeoSeries([shapely.box(0, 0, 1, 1)], crs=4326).to_file(tmp_path / "far.gpkg")
    nowhere = run(image, aoi=tmp_path / "far.gpkg")
    assert (len(nowhere.objects), nowhere.exit_code) == (0, 0)
    assert set(nowhere.supertiles) == {"outside"}
    assert "no objects" in nowhere.notes[-1]


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson", ".fgb"])
def test_nothing_there_is_a_valid_output(make_raster, tmp_path, suffix):
    image = make_raster("blank.tif", np.zeros((2, 300, 400), np.uint16), nodata=0)
    output = tmp_path / f"objects{suffix}"
    result = run(image, output=output)
    assert (len(result.objects), result.exit_code) == (0, 0)
    assert set(result.supertiles) == {"nodata"}
    written = read_objects(output)
    assert len(written) == 0
    assert written.crs == (4326 if suffix == ".geojson" else UTM)
    if suffix == ".gpkg":
        info = pyogrio.read_info(output, layer="objects")
        assert info["geometry_type"] == "Polygon"
        assert dict(zip(info["fields"], info["dtypes"], strict=True)) == {
            name: "object" if kind == "str" else kind for name, kind in OBJECT_DTYPES.items()
        }


def test_a_raster_smaller_than_a_tile(make_raster, scene):
    small = Scene(*(np.ascontiguousarray(a[:70, :90]) for a in (scene.ids, scene.classes)))
    image = make_raster("small.tif", small.crop(rasterio.windows.Window(0, 0, 90, 70)))
    objects = run(image, tile_size=512, overlap=128, supertile_size=512).objects
    found = objects.geometry.to_numpy()
    ids = np.unique(small.ids[small.ids > 0])
    # a cut object may leave a sliver that is too small to count
    assert len(ids) - 2 <= len(objects) <= len(ids)
    frame = place([shapely.box(0, 0, 90, 70)], NORTH_UP)[0]
    assert shapely.within(found, frame.buffer(1e-6)).all()


# --- several images, their kinds and bands ---------------------------------------------------


def test_images_of_two_zones_in_one_run(make_raster, scene, tmp_path):
    other = blob_scene(9, size=400, count=60, large=0)
    there = Affine(GSD, 0, 510_000, 0, -GSD, 5_500_000)
    first = make_raster("set/a.tif", scene.pixels, transform=NORTH_UP, crs=UTM)
    second = make_raster("set/b.tif", other.pixels, transform=there, crs="EPSG:32634")
    result = run([tmp_path / "set"], output=tmp_path / "both.gpkg")
    assert result.objects.crs == UTM
    assert result.objects["object_id"].tolist() == list(range(1, len(result.objects) + 1))
    for path, painted, transform, crs in (
        (first, scene, NORTH_UP, None),
        (second, other, there, "EPSG:32634"),
    ):
        mine = result.objects[result.objects["image"] == path.name]
        check_against(painted, mine, transform, crs=crs)
    assert any("different CRSs" in note for note in result.notes)
    coverage = pyogrio.read_dataframe(tmp_path / "both.gpkg", layer="coverage")
    assert set(coverage["image"]) == {"a.tif", "b.tif"}


def test_overlapping_sheets_give_each_object_once(image, make_raster, scene, tmp_path):
    whole = run(image).objects
    middle = scene.pixels.shape[2] // 2
    for name, cols in (("left", slice(0, middle + 90)), ("right", slice(middle - 90, None))):
        at = NORTH_UP @ Affine.translation(cols.start, 0)
        make_raster(f"sheets/{name}.tif", scene.pixels[:, :, cols], transform=at, crs=UTM)
    both = run([tmp_path / "sheets"]).objects
    a, _, iou = match(whole.geometry.to_numpy(), both.geometry.to_numpy())
    assert len(whole) == len(both) == len(a)
    assert np.quantile(iou, 0.05) > 0.97
    apart = run([tmp_path / "sheets"], cross_image=False).objects
    assert len(apart) > len(both)


def test_sheets_in_another_crs_with_other_pixels_give_each_object_once(
    image, make_raster, scene, tmp_path
):
    whole = run(image).objects
    middle = scene.pixels.shape[2] // 2
    left, right = slice(0, middle + 130), slice(middle - 130, None)
    make_raster("sheets/left.tif", scene.pixels[:, :, left], transform=NORTH_UP, crs=UTM)
    # six degrees from its meridian the neighbouring zone stands 4.6 degrees askew
    at = NORTH_UP @ Affine.translation(right.start, 0)
    given = scene.pixels[:, :, right]
    bounds = rasterio.transform.array_bounds(*given.shape[1:], at)
    to, width, height = calculate_default_transform(
        UTM, "EPSG:32632", given.shape[2], given.shape[1], *bounds, resolution=0.12
    )
    warped = [
        reproject(
            band, np.zeros((height, width), band.dtype), src_transform=at, src_crs=UTM,
            dst_transform=to, dst_crs="EPSG:32632", resampling=Resampling.nearest,
        )[0]
        for band in (*given, np.ones_like(given[0]))
    ]  # fmt: skip
    pixels, seen = np.stack(warped[:-1]), warped[-1] > 0
    make_raster("sheets/right.tif", pixels, transform=to, crs="EPSG:32632", mask=seen)
    both = run([tmp_path / "sheets"], tile_size=256, gsd="native")
    a, _, iou = match(whole.geometry.to_numpy(), both.objects.geometry.to_numpy())
    assert len(whole) == len(both.objects) == len(a)
    assert np.median(iou) > 0.9
    assert set(both.objects["image"]) == {"left.tif", "right.tif"}
    apart = run([tmp_path / "sheets"], cross_image=False, gsd="native").objects
    assert len(apart) > len(whole) + 30


def test_a_thing_on_three_sheets_is_one(image, make_raster, scene, tmp_path):
    whole = run(image).objects
    width = scene.pixels.shape[2]
    # sheets that overlap so far that the middle is on all of them
    for k, cols in enumerate((slice(0, 560), slice(130, 690), slice(260, width))):
        at = NORTH_UP @ Affine.translation(cols.start, 0)
        make_raster(f"sheets/{k}.tif", scene.pixels[:, :, cols], transform=at, crs=UTM)
    three = run([tmp_path / "sheets"], output=tmp_path / "three.parquet")
    a, _, _ = match(whole.geometry.to_numpy(), three.objects.geometry.to_numpy())
    assert len(whole) == len(three.objects) == len(a)
    # strips decide what a sweep holds, never what comes out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sheets, "STRIP_OBJECTS", 9)
        many = run([tmp_path / "sheets"], output=tmp_path / "many.parquet")
    same_table(three.objects, many.objects)
    assert (tmp_path / "three.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()


def test_the_same_bytes_for_any_number_of_workers_and_any_supertiles(image, tmp_path):
    expected = b""
    for number, (supertile, workers) in enumerate([(4096, 1), (448, 1), (256, 2), (256, 8)]):
        output = tmp_path / f"{number}.parquet"
        result = run(image, output=output, supertile_size=supertile, workers=workers)
        expected = expected or output.read_bytes()
        assert output.read_bytes() == expected, (supertile, workers)
        assert result.n_objects > 150


@pytest.mark.parametrize("shift", [1, 37, 128])
def test_moving_the_grid_of_tiles_moves_no_object(make_raster, scene, shift):
    plain = run(make_raster("plain.tif", scene.pixels, transform=NORTH_UP, crs=UTM)).objects
    pixels = np.pad(scene.pixels, [(0, 0), (shift, 0), (shift, 0)])
    at = NORTH_UP @ Affine.translation(-shift, -shift)
    moved = run(make_raster("moved.tif", pixels, transform=at, crs=UTM)).objects
    a, b, iou = match(plain.geometry.to_numpy(), moved.geometry.to_numpy())
    assert len(plain) == len(moved) == len(a)
    assert plain["class"].iloc[a].tolist() == moved["class"].iloc[b].tolist()
    assert iou.min() > 0.9


def test_the_seam_report_of_a_run(image, tmp_path):
    result = run(image, output=tmp_path / "o.gpkg", supertile_size=256)
    whole = run(image, supertile_size=4096)
    # what is counted does not depend on where it was counted
    assert result.seams == whole.seams
    assert result.seams.objects == result.n_objects
    # an exact detector shows in each tile all that its neighbour shows there
    assert result.seams.trials > 50
    assert all(bin_.hits == bin_.trials for bin_ in result.seams.agreement)
    assert result.seams.band_duplicate_rate == result.seams.interior_duplicate_rate == 0
    assert result.seams.joined == (result.objects["n_parts"] > 1).sum() > 0
    manifest = json.loads((result.run_dir / "run.json").read_text())
    assert manifest["seams"] == result.seams.to_dict()


def test_bands_and_interiors_with_truth(image, scene, tmp_path):
    result = run(image, output=tmp_path / "o.gpkg")
    in_band = rows_in_bands(result.run_dir, result.objects)
    assert 0 < in_band.sum() < len(in_band)
    x, y = shapely.get_coordinates(result.objects.representative_point()).T
    col, row = (x - 500_000) / GSD, (5_500_000 - y) / GSD
    # windows start every 192 px and are 256 px long; the last ones move inwards
    looks = [sum(s <= v < s + 256 for s in starts) for v, starts in
             [(c, (0, 192, 384, 564)) for c in col]]  # fmt: skip
    looks = np.array(looks) * [sum(s <= v < s + 256 for s in (0, 192, 384, 444)) for v in row]
    assert (in_band == (looks >= 2)).all()
    truth = gpd.GeoDataFrame(geometry=place(scene.truth()[0], NORTH_UP), crs=UTM)
    found = evaluate(
        result.objects, truth, in_band=(in_band, rows_in_bands(result.run_dir, truth.to_crs(4326)))
    )
    assert found.bands.f1 == found.interiors.f1 == 1
    assert found.bands.n_truth + found.interiors.n_truth == len(truth)
    with pytest.raises(ConfigError, match="no finished run"):
        rows_in_bands(tmp_path, truth)


def test_class_agnostic_gives_one_object_where_tiles_disagree(image):
    class Wavering(Stub):
        """Names the class anew in every tile."""

        fingerprint = "wavering"

        def find(self, pixels, *args):
            return super().find(
                np.stack([pixels[0], np.where(pixels[1], 1 + pixels[0].sum() % 3, 0)]), *args
            )

    whole = run(image).objects
    by_class = run(image, Wavering()).objects
    agnostic = run(image, Wavering(), class_agnostic=True, supertile_size=256).objects
    assert len(by_class) > len(whole) == len(agnostic)


def test_finished_outlines(image, scene):
    raw = run(image, simplify=0).objects
    plain = run(image).objects
    # names and order do not depend on the finish, vertices do
    assert raw["uid"].tolist() == plain["uid"].tolist()
    assert plain.geometry.count_coordinates().sum() < 0.7 * raw.geometry.count_coordinates().sum()
    large = run(image, min_area=6.0).objects
    assert 0 < len(large) == (plain["area_m2"] >= 6.0).sum() < len(plain)
    square = run(image, regularize=True, resolve_overlaps=True, fill_holes=1e6).objects
    assert len(square) == len(plain)
    assert shapely.is_valid(square.geometry).all()
    assert shapely.get_num_interior_rings(square.geometry.to_numpy()).sum() == 0
    a, b = shapely.STRtree(square.geometry).query(square.geometry, predicate="overlaps")
    same = square["class"].to_numpy()[a] == square["class"].to_numpy()[b]
    shared = shapely.area(shapely.intersection(*(square.geometry.to_numpy()[i] for i in (a, b))))
    assert shared[same].sum() < 1e-6 * square.area.sum()


def test_detectors_that_name_no_bands_get_all_but_alpha(make_raster):
    pixels = np.zeros((4, 200, 240), np.uint8)
    pixels[:3, 50:90, 60:130] = 200
    pixels[3, :, 20:] = 255
    image = make_raster("rgba.tif", pixels, alpha=4)
    seen = []

    class Wide(Bright):
        def __call__(self, tiles):
            seen.append(tiles.shape[1])
            return super().__call__(tiles)

    objects = run(image, Wide()).objects
    assert set(seen) == {3}
    assert len(objects) == 1
    assert objects["area_m2"][0] == pytest.approx(40 * 70 * GSD**2, rel=0.01)


def test_a_class_and_a_score_below_the_threshold(image):
    everything = run(image).objects
    some = run(image, min_score=0.85).objects
    # the scores of an object's parts differ: a lower threshold finds at least as much
    assert 0 < len(some) < len(everything)
    assert some["score"].min() >= 0.85


# --- the output ------------------------------------------------------------------------------


def test_layers_and_coverage(image, scene, tmp_path):
    output = tmp_path / "objects.gpkg"
    result = run(image, output=output)
    layers = dict(pyogrio.list_layers(output).tolist())
    assert list(layers)[:2] == ["objects", "coverage"]
    assert "layer_styles" in layers
    objects = pyogrio.read_dataframe(output, layer="objects")
    assert objects["uid"].tolist() == result.objects["uid"].tolist()
    check_against(scene, objects, NORTH_UP)
    coverage = pyogrio.read_dataframe(output, layer="coverage")
    assert len(coverage) == sum(result.supertiles.values())
    assert coverage["status"].value_counts().to_dict() == result.supertiles
    # the supertiles' cores are the raster, once
    assert coverage.area.sum() == pytest.approx(scene.ids.size * GSD**2)
    assert coverage.union_all().equals(
        place([shapely.box(0, 0, scene.shape[1], scene.shape[0])], NORTH_UP)[0].normalize()
    )


@pytest.mark.parametrize("suffix", [".parquet", ".fgb", ".geojson", ".GPKG"])
def test_other_formats_hold_the_same_objects(image, tmp_path, suffix):
    regions = tmp_path / "r.geojson"
    gpd.GeoSeries(place([shapely.box(0, 0, 400, 700)], NORTH_UP), crs=UTM).to_crs(4326).to_file(
        regions
    )
    output = tmp_path / f"objects{suffix}"
    result = run(image, output=output, regions=regions)
    written = read_objects(output)
    assert sorted(written["uid"]) == sorted(result.objects["uid"])
    if suffix == ".GPKG":
        counts = pyogrio.read_dataframe(output, layer="regions")
    else:
        beside = tmp_path / f"objects_regions{suffix}"
        counts = read_objects(beside)
    assert counts["count"].tolist() == result.regions["count"].tolist()


def test_an_output_may_not_replace_what_the_run_reads(image, tmp_path):
    regions = tmp_path / "regions.gpkg"
    gpd.GeoSeries([shapely.box(14, 49, 16, 50)], crs=4326).to_file(regions)
    before = regions.read_bytes()
    for option in ("regions", "aoi"):
        with pytest.raises(OutputError, match=f"is also the --{option} file"):
            run(image, output=regions, overwrite=True, **{option: regions})
    assert regions.read_bytes() == before


# --- the Python call -------------------------------------------------------------------------


def test_detect_from_python(image, scene, tmp_path):
    import geoseg

    objects = geoseg.detect(image, detector=Stub(), workers=1, **TILES)
    check_against(scene, objects, NORTH_UP)
    assert objects.attrs["notes"] == []
    assert not list(image.parent.glob("*geoseg-run")), "without an output nothing stays behind"
    again = geoseg.detect([image], tmp_path / "o.gpkg", detector="stubs:make", workers=1, **TILES)
    same_table(objects, again)
    assert len(gpd.read_file(tmp_path / "o.gpkg", layer="objects")) == len(objects)
    with pytest.raises(TileError, match=r"1 of 4 supertiles failed.*cannot stand"):
        geoseg.detect(image, detector=Stub(poison=poison_in_one(scene)), workers=1, **TILES)


def poison_in_one(scene: Scene) -> int:
    """Return the id of an object that one supertile alone shows (the first, without its seams)."""
    ids = np.unique(scene.ids[:150, :150])
    elsewhere = np.unique(np.r_[scene.ids[190:].ravel(), scene.ids[:, 190:].ravel()])
    return int(np.setdiff1d(ids[ids > 0], elsewhere)[0])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"detector": object()}, ModelError, "expected a callable with classes"),
        ({"detector": lambda tiles: []}, ModelError, "expected a callable with classes"),
        ({"detector": Stub(), "tile": 3}, ConfigError, "unexpected keyword argument 'tile'"),
        ({"detector": Stub(), "min_score": float("nan")}, ConfigError, "--min-score is nan"),
        ({"detector": Stub(), "gsd": float("nan")}, ConfigError, "--gsd is nan"),
        ({"detector": Stub(), "bidx": (1, 5)}, SourceError, "asks for band 5"),
        ({"detector": Stub(), "workers": 0}, ConfigError, "--workers is 0"),
    ],
)
def test_bad_calls_from_python(image, settings, error, message):
    import geoseg

    with pytest.raises(error, match=message):
        geoseg.detect(image, **({"workers": 1} | settings))
    with pytest.raises(ConfigError, match="no images named"):
        geoseg.detect([], detector=Stub())


class Watched(Stub):
    """Notes its thread, and waits with its first answer until two supertiles have been read."""

    def __init__(self, read: threading.Semaphore):
        super().__init__()
        self.read, self.threads, self.waited = read, set(), False

    def __call__(self, tiles):
        self.threads.add(threading.get_ident())
        if not self.waited:
            assert all(self.read.acquire(timeout=30) for _ in range(2)), "nothing is read ahead"
            self.waited = True
        return super().__call__(tiles)


def test_the_next_supertile_is_read_while_the_network_runs(image, monkeypatch):
    read = threading.Semaphore(0)
    plain = supertiles.read_supertile

    def noted(*args):
        found = plain(*args)
        read.release()
        return found

    monkeypatch.setattr(supertiles, "read_supertile", noted)
    detector = Watched(read)
    found = run(image, detector)
    assert detector.waited
    # whatever runs around it, a detector is called from one thread
    assert len(detector.threads) == 1
    assert threading.get_ident() not in detector.threads
    assert list(found.objects["uid"]) == list(run(image).objects["uid"])
