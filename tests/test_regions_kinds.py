"""Regions as people have them, from files, and random partitions in random CRSs."""

from __future__ import annotations

import datetime
import itertools
import json
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely
from cases import check, run_case
from cases_regions import CASES, GRID_OBJECTS, HALVES, UTM33, frame, lattice
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg import count
from geoseg.cli.main import main
from geoseg.globe import cut_at_seam, projected
from geoseg.objects.regions import ellipsoid_area_m2

UTM = pyproj.CRS(UTM33)
DEGREES = pyproj.CRS(4326)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_ends_as_it_says(case, tmp_path):
    check(case, run_case(case, tmp_path))


def counted(tmp_path: Path, regions: gpd.GeoDataFrame, *more: str) -> gpd.GeoDataFrame:
    """Count the lattice in a layer of regions, through files."""
    lattice(tmp_path)
    regions.to_parquet(tmp_path / "r.parquet")
    out = tmp_path / "counts.gpkg"
    args = ["count", tmp_path / "objects.gpkg", tmp_path / "r.parquet", "-o", out, *more]
    assert main([*map(str, args), "--overwrite"]) == 0
    return gpd.read_file(out, layer="regions")


def by_rule(objects, regions) -> list[tuple[list[float], float]]:
    """Count by both rules that make a partition, and check that nothing is lost."""
    result = []
    for rule in ("point", "area"):
        found = count(objects, regions, rule=rule)
        total = found["count"].sum() + found.attrs["outside"]
        assert total == pytest.approx(len(objects), abs=1e-6)
        result.append((found["count"].round(6).tolist(), round(found.attrs["outside"], 6)))
    return result


def test_fields_of_every_type_and_name_come_back(tmp_path):
    regions = frame(
        HALVES,
        Count=[1, 2],
        fid=[7, 7],
        ogc_fid=[1, 1],
        object_id=[5, 5],
        when=pd.to_datetime(["2020-01-01", "2021-02-03"]),
        day=[datetime.date(2020, 1, 1), None],
        big=[2**62 + 1, -(2**61)],
        flag=pd.array([True, None], dtype="boolean"),
        many=[[1, 2], [3]],
        bytes=[b"\x00\x01", b"x"],
        text=["=1+1", 'o\'h "q"'],
        none=pd.array([None, None], dtype="string"),
    )
    back = counted(tmp_path, regions)
    assert back["count"].tolist() == [50, 50]
    assert back["Count_given"].tolist() == [1, 2]
    assert back["fid"].tolist() == [7, 7]
    assert back["big"].tolist() == [2**62 + 1, -(2**61)]
    assert back["text"].tolist() == ["=1+1", 'o\'h "q"']
    assert back["none"].isna().all()
    assert pyogrio.read_info(tmp_path / "counts.gpkg", layer="regions")["features"] == 2
    for suffix in ("csv", "fgb", "geojson", "parquet"):
        out = tmp_path / f"counts.{suffix}"
        files = [str(tmp_path / name) for name in ("objects.gpkg", "r.parquet")]
        assert main(["count", *files, "-o", str(out)]) == 0


def test_columns_of_one_name_are_all_kept():
    regions = frame(HALVES, a=[1, 2], b=[3, 4]).set_axis(["a", "a", "geometry"], axis=1)
    found = count(GRID_OBJECTS, regions)
    assert found["count"].tolist() == [50, 50]
    assert found["a"].to_numpy().tolist() == [[1, 3], [2, 4]]


CROSSING = shapely.box(178.0, -20.0, 182.0, -10.0)
ACROSS = np.array([shapely.box(x, -17, x + 1e-4, -17 + 1e-4)
                   for x in (179.9, 179.99995, 180.1, 181.9, 182.1)])  # fmt: skip
"""Four objects in it, the second right on the antimeridian, and one east of it."""


def told(shapes: np.ndarray, how: str) -> gpd.GeoDataFrame:
    """Tell shapes of more than 180 degrees in another way."""
    if how == "beyond 180":
        return gpd.GeoDataFrame(geometry=shapes, crs=4326)
    if how == "beyond -180":
        moved = shapely.transform(shapes, lambda xy: xy - np.array([360.0, 0.0]))
        return gpd.GeoDataFrame(geometry=moved, crs=4326)
    if how == "RFC 7946":
        return gpd.GeoDataFrame(geometry=cut_at_seam(shapes), crs=4326)
    crs = pyproj.CRS(how)
    return gpd.GeoDataFrame(geometry=projected(shapes, DEGREES, crs, 1e-7), crs=crs)


@pytest.mark.parametrize("regions", ["beyond 180", "beyond -180", "RFC 7946", "EPSG:3832"])
@pytest.mark.parametrize(
    "objects", ["beyond 180", "beyond -180", "RFC 7946", "EPSG:3832", "EPSG:3857", "EPSG:32760"]
)
def test_across_the_antimeridian_each_counts_once(objects, regions):
    things, zone = told(ACROSS, objects), told(np.array([CROSSING]), regions)
    assert by_rule(things, zone) == [([4], 1), ([4], 1)]
    found = count(things, zone, rule="intersects", imaged=things.iloc[:4])
    assert (found["count"].tolist(), found.attrs["outside"]) == ([4], 1)
    # a band between parallels: its area is known
    geod = pyproj.Geod(ellps="WGS84")
    lon = np.linspace(178, 182, 4001)
    edge = np.r_[lon, lon[::-1]], np.r_[np.full(4001, -20.0), np.full(4001, -10.0)]
    km2 = abs(geod.polygon_area_perimeter(*edge)[0]) / 1e6
    assert found["region_area_km2"].iloc[0] == pytest.approx(km2, rel=1e-6)
    imaged = ellipsoid_area_m2(ACROSS[:4], 4326).sum() / 1e6
    assert found["imaged_share"].iloc[0] == pytest.approx(imaged / km2, rel=1e-4)


def test_an_edge_of_more_than_half_the_earth_is_told():
    torn = shapely.Polygon([(178, -20), (-178, -20), (-178, -10), (178, -10)])
    regions = gpd.GeoDataFrame(geometry=[torn, shapely.box(-180, -90, 180, 90)], crs=4326)
    found = count(told(ACROSS, "beyond 180"), regions)
    assert found.attrs["leaping"] == 1
    # as its numbers say: around the earth, without what lies at the antimeridian
    assert found["count"].tolist() == [1, 4]


@pytest.mark.parametrize("crs", ["EPSG:4807", "EPSG:27572"])
def test_regions_in_grads_have_their_size(crs):
    """Old French maps: until now 19 % too large, for a grad passed for a degree."""
    zone = np.array([shapely.box(600_000, 2_400_000, 610_000, 2_410_000)])
    lambert = pyproj.CRS("EPSG:27572")
    shape = zone if crs == "EPSG:27572" else projected(zone, lambert, pyproj.CRS(crs), 0.01)
    # scale of the projection near its parallel: below 1e-3
    assert ellipsoid_area_m2(shape, crs)[0] == pytest.approx(1e8, rel=3e-3)


def test_ten_thousand_regions_and_one_of_a_million_vertices(record_property):
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(100), np.arange(100)))
    cells = frame(shapely.box(500_000 + x, 5_500_000 + y, 500_001 + x, 5_500_001 + y))
    begun = time.perf_counter()
    (counts, outside), _ = by_rule(GRID_OBJECTS, cells)
    record_property("seconds_10000", time.perf_counter() - begun)
    assert (sum(counts), outside) == (100, 0)
    turn = np.linspace(0, 2 * np.pi, 1_000_001)[:-1]
    far = 0.2 + 0.01 * np.sin(5000 * turn)
    round_ = shapely.Polygon(np.c_[15 + far * np.cos(turn), 49.6 + far * np.sin(turn)])
    begun = time.perf_counter()
    found = count(GRID_OBJECTS, gpd.GeoDataFrame(geometry=[round_], crs=4326))
    record_property("seconds_million", time.perf_counter() - begun)
    assert found["count"].tolist() == [100]


@st.composite
def partitions(draw):
    """Draw a CRS, lines that cut a field into strips, and objects on it, in metres of UTM 33."""
    crs = draw(st.sampled_from(
        ["EPSG:32633", "EPSG:4326", "EPSG:3857", "EPSG:3035", "EPSG:2180", "EPSG:5514",
         "+proj=laea +lat_0=50 +lon_0=14 +datum=WGS84 +units=us-ft"]
    ))  # fmt: skip
    cuts = sorted(draw(st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True)))
    places = draw(st.lists(st.tuples(st.integers(-5, 104), st.integers(-5, 104)), min_size=1,
                           max_size=25))  # fmt: skip
    return crs, cuts, places


@settings(max_examples=25)
@given(partitions())
def test_property_a_partition_gives_each_object_to_the_strip_that_holds_it(drawn):
    crs, cuts, places = drawn
    edges = [0, *cuts, 100]
    # objects of half a metre, whose middles keep a quarter from every edge
    middles = np.array(places) + 0.5
    half = 0.25
    at = middles + np.array([500_000.0, 5_500_000.0])
    objects = frame(shapely.box(*(at - half).T, *(at + half).T))
    strips = [shapely.box(500_000 + a, 5_500_000, 500_000 + b, 5_500_100)
              for a, b in itertools.pairwise(edges)]  # fmt: skip
    shapes = np.array(strips, dtype=object)
    wanted = pyproj.CRS(crs)
    moved = shapes if wanted == UTM else projected(shapes, UTM, wanted, 1e-4)
    regions = gpd.GeoDataFrame(geometry=moved, crs=wanted)
    exact = [0] * len(strips)
    outside = 0
    for x, y in middles.tolist():
        homes = [i for i in range(len(strips)) if edges[i] < x < edges[i + 1] and 0 < y < 100]
        if homes:
            exact[homes[0]] += 1
        else:
            outside += 1
    for counts, lost in by_rule(objects, regions):
        assert counts == pytest.approx(exact, abs=1e-6)
        assert lost == pytest.approx(outside, abs=1e-6)


def test_the_counts_of_a_run_say_the_same_as_json(tmp_path, capsys):
    lattice(tmp_path)
    frame(HALVES, name=["w", "e"]).to_file(tmp_path / "r.gpkg")
    args = ["count", str(tmp_path / "objects.gpkg"), str(tmp_path / "r.gpkg"), "--json"]
    assert main(args) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["count"] for row in said["regions"]] == [50, 50]
    assert said["outside"] == 0
