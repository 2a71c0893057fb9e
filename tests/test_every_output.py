"""Every output opens in the programs that people use, with the right CRS, types and rows."""

import json
import shutil
import subprocess

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from layered import ODD_CLASSES, UTM, file_of, nothing, town

from geoseg.errors import OutputError
from geoseg.outputs.tables import OBJECT_DTYPES, write_geopackage, write_objects, write_table

OGRINFO = shutil.which("ogrinfo")
CUSTOM = "+proj=tmerc +lat_0=27 +lon_0=85.3 +k=0.9996 +x_0=1000 +ellps=GRS80 +units=m"
TURNED = "+proj=omerc +lat_0=27 +lonc=85.3 +alpha=33 +gamma=0 +k=1 +ellps=bessel +units=m"
ROTATED = (
    "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10 +to_meter=0.0174532925199433"
)
CASES = {
    "many": town,
    "none": nothing,
    "one": lambda: town(1),
    "odd classes": lambda: town(classes=ODD_CLASSES),
    "10,000 classes": lambda: town(10_000, classes=[f"class {i}" for i in range(10_000)]),
    "no code": lambda: town(crs=CUSTOM),
    "turned": lambda: town(crs=TURNED),
    "rotated pole": lambda: town(crs=ROTATED, at=(10.0, 20.0, 0.0003)),
    "no code, none": lambda: nothing(CUSTOM),
    "degrees": lambda: town(crs=4326, at=(85.5, 27.6, 0.0003)),
    "degrees of NAD83": lambda: town(crs=4269, at=(-120.0, 40.0, 0.0003)),
    "feet": lambda: town(crs=2263, at=(980_000.0, 200_000.0, 90.0)),
    "web": lambda: town(crs=3857, at=(9_519_000.0, 3_202_000.0, 30.0)),
    "polar": lambda: town(crs=3031, at=(1_000_000.0, 1_000_000.0, 30.0)),
    "height too": lambda: town(crs="EPSG:32645+5773"),
}
OGR_TYPES = {
    "int64": "Integer64 (0.0)",
    "int32": "Integer (0.0)",
    "float64": "Real (0.0)",
    "str": "String (0.0)",
    "bool": "Integer(Boolean) (0.0)",
}
SUFFIXES = (".gpkg", ".fgb", ".parquet", ".geojson")


def is_same_crs(found, wanted):
    """Tell whether two CRSs put coordinates at the same place, whatever they are called."""
    found, wanted = pyproj.CRS.from_user_input(found), pyproj.CRS.from_user_input(wanted)
    if found.equals(wanted, ignore_axis_order=True):
        return True
    # names and remarks may go; to_2d, as heights do in polygons without any
    there = pyproj.Transformer.from_crs(wanted, found, always_xy=True)
    given = [[10.0, 12.0], [20.0, 22.0]] if wanted.is_geographic else [[5e5, 5.1e5], [3e6, 3.01e6]]
    return bool(np.allclose(there.transform(*given), given))


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_opens_in_pyogrio_and_geopandas(tmp_path, case, suffix):
    path = write_objects(tmp_path / f"o{suffix}", file_of(tmp_path / "s.parquet", case))
    crs = 4326 if suffix == ".geojson" else case.crs
    if suffix == ".parquet":
        back = gpd.read_parquet(path)
    else:
        layer = "objects" if suffix == ".gpkg" else 0
        # FlatGeobuf's header has 0 for both none and unknown
        info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
        assert info["features"] == len(case)
        assert is_same_crs(info["crs"], crs)
        if suffix != ".geojson":
            several = case.geom_type.eq("MultiPolygon").any()
            assert info["geometry_type"] == ("MultiPolygon" if several else "Polygon")
            kinds = dict(zip(info["fields"], info["dtypes"], strict=True))
            assert kinds == {k: "object" if v == "str" else v for k, v in OBJECT_DTYPES.items()}
        back = gpd.read_file(path, layer=layer)
    assert len(back) == len(case)
    assert is_same_crs(back.crs, crs)
    if suffix == ".geojson" and not len(case):
        # a FeatureCollection of nothing has no fields, whoever writes it
        return
    back = back.sort_values("object_id", ignore_index=True)
    assert list(back.columns) == [*OBJECT_DTYPES, "geometry"]
    for name, kind in OBJECT_DTYPES.items():
        want = case[name].tolist()
        # text keeps 15 digits
        loose = suffix == ".geojson" and kind == "float64"
        assert back[name].tolist() == (pytest.approx(want, rel=1e-14) if loose else want), name
    want = case.geometry.to_crs(4326) if suffix == ".geojson" else case.geometry
    off = shapely.hausdorff_distance(back.geometry.to_numpy(), want.to_numpy())
    assert off.max(initial=0) < 1e-7


@pytest.mark.skipif(OGRINFO is None, reason="ogrinfo is not installed (Debian: gdal-bin)")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_opens_in_ogrinfo(tmp_path, case, suffix):
    known = subprocess.run([OGRINFO, "--formats"], capture_output=True, text=True, check=True)
    if suffix == ".parquet" and "Parquet" not in known.stdout:
        pytest.skip("this ogrinfo was built without Parquet")
    path = write_objects(tmp_path / f"o{suffix}", file_of(tmp_path / "s.parquet", case))
    done = subprocess.run(
        [OGRINFO, "-so", "-al", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "ERROR" not in done.stderr
    # of a GeoPackage the first layer; the styles come after
    said = done.stdout.split("Layer name: ")[1]
    assert f"Feature Count: {len(case)}" in said
    lines = said.splitlines()
    if suffix != ".geojson":
        for name, kind in OBJECT_DTYPES.items():
            (line,) = (one for one in lines if one.startswith(f"{name}: "))
            assert line.startswith(f"{name}: {OGR_TYPES[kind]}")
        several = case.geom_type.eq("MultiPolygon").any()
        assert f"Geometry: {'Multi Polygon' if several else 'Polygon'}" in lines
    wkt = said.split("Layer SRS WKT:")[1].split("Data axis")[0]
    assert is_same_crs(wkt, 4326 if suffix == ".geojson" else case.crs)


def test_outputs_in_px_of_an_image_say_so(tmp_path):
    table = town(20, at=(0.0, 0.0, 30.0)).set_crs(None, allow_override=True)
    for suffix in (".gpkg", ".fgb", ".parquet"):
        with pytest.raises(OutputError, match="has no CRS"):
            write_table(tmp_path / f"no{suffix}", table)
        path = write_table(tmp_path / f"px{suffix}", table, pixels=True)
        if suffix == ".parquet":
            back = gpd.read_parquet(path)
        else:
            back = gpd.read_file(path, layer="objects" if suffix == ".gpkg" else 0)
        back = back.sort_values("object_id", ignore_index=True)
        # a GeoPackage must name a CRS: it is one without a place on earth
        assert back.crs is None or not (back.crs.is_projected or back.crs.is_geographic)
        assert shapely.equals(back.geometry.to_numpy(), table.geometry.to_numpy()).all()
        if OGRINFO is not None and suffix != ".parquet":
            subprocess.run([OGRINFO, "-so", "-al", str(path)], capture_output=True, check=True)
    with pytest.raises(OutputError, match="has no CRS"):
        write_table(tmp_path / "px.geojson", table, pixels=True)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
@pytest.mark.parametrize("table", [town, nothing])
def test_tables_too_may_be_in_a_crs_that_wkt_1_cannot_tell(tmp_path, suffix, table):
    given = table().set_crs(ROTATED, allow_override=True)
    if len(given):
        given = town(crs=ROTATED, at=(10.0, 20.0, 0.0003))
    path = write_table(tmp_path / f"t{suffix}", given)
    back = gpd.read_file(path, layer="objects" if suffix == ".gpkg" else 0)
    assert len(back) == len(given)
    assert is_same_crs(back.crs, 4326 if suffix == ".geojson" else ROTATED)
    if len(given):
        back = back.sort_values("object_id", ignore_index=True)
        assert back["uid"].tolist() == given["uid"].tolist()
        assert shapely.is_valid(back.geometry.to_numpy()).all()


def test_layers_of_other_crss_keep_theirs(tmp_path):
    path = write_geopackage(
        tmp_path / "a.gpkg",
        {"objects": town(), "regions": town(3, at=(85.5, 27.6, 0.01), crs=4326)},
    )
    assert pyogrio.read_info(path, layer="objects")["crs"] == f"EPSG:{UTM}"
    assert pyogrio.read_info(path, layer="regions")["crs"] == "EPSG:4326"


# ---------------------------------------------------------------- GeoJSON


def rings_of(path):
    for feature in json.loads(path.read_text(encoding="utf-8"))["features"]:
        geometry = feature["geometry"]
        several = geometry["type"] == "MultiPolygon"
        for polygon in geometry["coordinates"] if several else [geometry["coordinates"]]:
            yield from enumerate(polygon)


def test_geojson_is_as_rfc_7946_wants_it(tmp_path):
    path = write_objects(tmp_path / "o.geojson", file_of(tmp_path / "s.parquet", town()))
    text = path.read_text(encoding="utf-8")
    assert '"crs"' not in text
    n = 0
    for i, ring in rings_of(path):
        line = shapely.LinearRing(ring)
        # shells against the clock, holes with it
        assert line.is_ccw == (i == 0)
        assert ring[0] == ring[-1]
        n += i > 0
    assert n > 20
    numbers = [number for _, ring in rings_of(path) for point in ring for number in point]
    assert all(round(number, 7) == number for number in numbers)
    assert max(len(str(number).split(".")[1]) for number in numbers) == 7


@pytest.mark.parametrize("crs", [32601, 32660, 3832])
def test_what_crosses_the_antimeridian_is_cut_there(tmp_path, crs):
    east = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(180.0, -17.0)
    x, y = np.array([east[0] - 400.0, east[0] - 5, east[0] + 300.0]), np.full(3, east[1])
    one = gpd.GeoSeries(shapely.box(x, y, x + 10, y + 10), crs=crs)
    table = town(3).set_geometry(one)
    file = file_of(tmp_path / "s.parquet", table)
    path = write_objects(tmp_path / "o.geojson", file)
    back = gpd.read_file(path)
    assert shapely.is_valid(back.geometry.to_numpy()).all()
    assert back.geom_type.tolist() == ["Polygon", "MultiPolygon", "Polygon"]
    parts = shapely.get_parts(back.geometry.to_numpy())
    bounds = shapely.bounds(parts)
    # no part reaches around the earth, and none beyond its end
    assert (bounds[:, 2] - bounds[:, 0] < 0.001).all()
    assert np.abs(bounds[:, [0, 2]]).max() == 180
    geod = pyproj.Geod(ellps="WGS84")
    areas = [
        abs(sum(geod.geometry_area_perimeter(p)[0] for p in shapely.get_parts(g)))
        for g in back.geometry
    ]
    assert areas == pytest.approx([100] * 3, rel=0.1)
    whole = write_table(tmp_path / "w.geojson", table)
    assert gpd.read_file(whole).geometry.geom_equals(back.geometry).all()


def test_what_spans_the_earth_is_not_torn(tmp_path):
    world = gpd.GeoDataFrame(
        {"name": ["world", "fiji", "north"]},
        geometry=[
            shapely.box(-180, -80, 180, 80),
            shapely.box(178, -17, 182, -16),
            shapely.box(-170, 60, 100, 80),
        ],
        crs=4326,
    )
    back = gpd.read_file(write_table(tmp_path / "w.geojson", world[:2], layer="regions"))
    assert back.geometry[0].bounds == (-180, -80, 180, 80)
    assert back.geometry[1].geom_type == "MultiPolygon"
    assert shapely.area(back.geometry[1]) == pytest.approx(4)
    web = world.iloc[[0, 2]].to_crs(3857)
    back = gpd.read_file(write_table(tmp_path / "m.geojson", web, layer="regions"))
    assert back.total_bounds == pytest.approx([-180, -80, 180, 80])
    areas = shapely.area(back.geometry.to_numpy())
    assert areas.tolist() == pytest.approx([360 * 160, 270 * 20])


def test_slivers_stay_valid_on_the_coarse_grid_of_geojson(tmp_path):
    rng = np.random.default_rng(5)
    x, y = 500_000 + 50 * np.arange(300), np.full(300, 3_000_000.0)
    fine = rng.uniform(-0.03, 0.03, (300, 12, 2)).cumsum(axis=1)
    fine += np.stack([x, y], axis=1)[:, None]
    shapes = shapely.convex_hull(shapely.multipoints(fine))
    table = town(300).set_geometry(gpd.GeoSeries(shapes, crs=UTM))
    back = gpd.read_file(
        write_objects(tmp_path / "o.geojson", file_of(tmp_path / "s.parquet", table))
    )
    assert len(back) == 300
    assert back.geometry.is_valid.all()
    assert not back.geometry.is_empty.any()
