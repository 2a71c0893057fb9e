"""Output files: complete, typed, styled, and never at the price of the old one."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from itertools import pairwise
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

from geoseg.errors import OutputError, RegionError
from geoseg.outputs import geopackage, layers, objects_file, publish
from geoseg.outputs.counts import write_counts
from geoseg.outputs.style import class_colours, default_styles, style_objects
from geoseg.outputs.tables import (
    OBJECT_DTYPES,
    OBJECT_SCHEMA,
    ObjectsWriter,
    check_output,
    describe_objects,
    empty_objects,
    iter_objects,
    objects_from_arrow,
    objects_to_arrow,
    read_vector,
    write_geopackage,
    write_objects,
    write_table,
)

UTM = 32645


def some_objects(n=3, kind="building"):
    return gpd.GeoDataFrame(
        {
            "object_id": np.arange(1, n + 1),
            "uid": [f"u{i}" for i in range(n)],
            "class": [kind] * n,
            "score": np.full(n, 0.9, np.float32),
            "area_m2": np.full(n, 100.0),
            "perimeter_m": np.full(n, 40.0),
            "n_parts": np.ones(n, np.int64),
            "touches_edge": np.zeros(n, bool),
            "image": ["a.tif"] * n,
        },
        geometry=[shapely.box(500000 + 20 * i, 0, 500010 + 20 * i, 10) for i in range(n)],
        crs=UTM,
    )


def some_regions():
    regions = gpd.GeoDataFrame(
        {"ward": ["A & B", None], "count": [2, 1]},
        geometry=[shapely.box(499000, 0, 500030, 50), shapely.box(500030, 0, 501000, 50)],
        crs=UTM,
    )
    regions.attrs["region_field"] = "ward"
    return regions


def sql(path, query):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def in_child(code, *arguments, kill=True):
    """Run code in a process of its own (locks of one process do not hold within it)."""
    ending = "\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n" if kill else ""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code) + ending, *arguments], check=False
    )
    assert done.returncode == (-9 if kill else 0)


def only_file(folder):
    """Return the one file there; fails if a temporary one was left."""
    (path,) = folder.iterdir()
    return path


# ---------------------------------------------------------------- GeoPackage


def test_geopackage_has_all_layers_types_and_crs(tmp_path):
    path = write_geopackage(
        tmp_path / "town.gpkg",
        {"objects": some_objects(), "regions": some_regions()},
        metadata={"model": "buildings-v1", "manifest": {"tiles": 12, "note": "<é>"}},
    )
    assert only_file(tmp_path) == path
    info = pyogrio.read_info(path, layer="objects")
    assert info["features"] == 3
    assert info["geometry_type"] == "Polygon"
    assert info["crs"] == f"EPSG:{UTM}"
    kinds = dict(zip(info["fields"], info["dtypes"], strict=True))
    expected = {k: "object" if v == "str" else v for k, v in OBJECT_DTYPES.items()}
    assert kinds == expected
    assert info["dataset_metadata"] == {
        "model": "buildings-v1",
        "manifest": '{"tiles": 12, "note": "<\\u00e9>"}',
    }
    back = read_vector(path, layer="objects", what="objects")
    assert back["score"].tolist() == [0.9] * 3
    assert back.geometry.geom_equals(some_objects().geometry).all()
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    assert sql(path, "SELECT data_type FROM gpkg_contents WHERE table_name='layer_styles'") == [
        ("attributes",)
    ]
    assert dict(pyogrio.list_layers(path))["layer_styles"] is None


def test_empty_objects_are_a_valid_layer_with_all_columns(tmp_path):
    for suffix in (".gpkg", ".fgb", ".parquet"):
        path = write_table(tmp_path / f"none{suffix}", empty_objects(UTM))
        back = read_vector(path, layer="objects" if suffix == ".gpkg" else None, what="objects")
        assert len(back) == 0
        assert back.crs == UTM
        assert [c for c in back.columns if c != "geometry"] == list(OBJECT_DTYPES)
        assert back["object_id"].dtype == np.int64
        assert back["n_parts"].dtype == np.int32
        assert back["touches_edge"].dtype == bool
        if suffix != ".parquet":
            assert pyogrio.read_info(path, layer=0)["geometry_type"] == "Polygon"
    path = write_table(tmp_path / "none.geojson", empty_objects(UTM))
    assert len(gpd.read_file(path)) == 0


def test_multipolygons_and_missing_geometry_are_kept(tmp_path):
    table = gpd.GeoDataFrame(
        {"a": [1, 2, 3]},
        geometry=[
            shapely.box(0, 0, 1, 1),
            shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(3, 3, 4, 4)]),
            None,
        ],
        crs=UTM,
    )
    path = write_geopackage(tmp_path / "m.gpkg", {"zones": table})
    assert pyogrio.read_info(path, layer="zones")["geometry_type"] == "MultiPolygon"
    back = read_vector(path)
    assert back.geometry.area.fillna(0).tolist() == [1, 2, 0]


def test_fields_of_the_user_with_awkward_names_survive(tmp_path):
    table = gpd.GeoDataFrame(
        [[1.5, "x", 1, 2, 3]],
        columns=["fid", "geom", "Name", "name", 'say "it"'],
        geometry=[shapely.box(0, 0, 1, 1)],
        crs=UTM,
    )
    path = write_geopackage(tmp_path / "n.gpkg", {'odd "layer"': table})
    back = read_vector(path)
    assert back.columns.tolist() == ["fid", "geom", "Name", "name_2", 'say "it"', "geometry"]
    assert back.iloc[0, :5].tolist() == [1.5, "x", 1, 2, 3]


def test_a_layer_without_crs_is_refused_and_nothing_is_left(tmp_path):
    nowhere = some_objects().set_crs(None, allow_override=True)
    with pytest.raises(OutputError, match="layer 'objects' has no CRS"):
        write_geopackage(tmp_path / "x.gpkg", {"objects": nowhere})
    with pytest.raises(OutputError, match="at least one"):
        write_geopackage(tmp_path / "x.gpkg", {})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- styles


def test_styles_are_well_formed_whatever_the_classes_are_called(tmp_path):
    evil = ["<script>alert(1)</script>", 'a"b', "x & y", "häuser"]
    objects = some_objects(4).assign(**{"class": evil})
    path = write_geopackage(tmp_path / "s.gpkg", {"objects": objects, "regions": some_regions()})
    rows = sql(
        path, "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
    )
    assert [r[:3] for r in rows] == [("objects", "geom", 1), ("regions", "geom", 1)]
    root = ElementTree.fromstring(rows[0][3])
    values = [c.get("value") for c in root.iter("category")]
    assert values == [*sorted(evil), ""]
    symbols = [s.get("name") for s in root.iter("symbol")]
    assert symbols == [c.get("symbol") for c in root.iter("category")]
    first = next(root.iter("symbol")).find("layer/Option")
    options = {o.get("name"): o.get("value") for o in first}
    assert options["outline_color"] == "255,127,14,255"
    assert options["style"] == "solid"
    regions = ElementTree.fromstring(rows[1][3])
    assert regions.get("labelsEnabled") == "1"
    (text,) = regions.iter("text-style")
    assert text.get("fieldName") == 'concat("ward", \'\\n\', "count")'


def test_styles_can_be_given_or_left_out(tmp_path):
    plain = write_geopackage(tmp_path / "p.gpkg", {"objects": some_objects()}, styles={})
    assert pyogrio.list_layers(plain)[:, 0].tolist() == ["objects"]
    own = write_geopackage(
        tmp_path / "o.gpkg", {"objects": some_objects()}, styles={"objects": "<q/>"}
    )
    assert sql(own, "SELECT styleQML FROM layer_styles") == [("<q/>",)]


def test_colours_depend_on_the_classes_only_and_differ():
    names = [f"class {i:02}" for i in range(30)]
    colours = class_colours(reversed(names))
    assert colours == class_colours(names)
    assert len(set(colours.values())) == 30
    assert all(0 <= v <= 255 for colour in colours.values() for v in colour)


def test_a_region_label_uses_what_there_is():
    regions = some_regions()
    unnamed = default_styles({"regions": regions.drop(columns="ward")})["regions"]
    assert '"ward"' not in unnamed.to_qml()
    bare = default_styles({"regions": regions[["geometry"]]})["regions"].to_qml()
    assert 'labelsEnabled="0"' in bare
    coverage = gpd.GeoDataFrame({"status": ["done"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=UTM)
    assert "failed" in default_styles({"coverage": coverage})["coverage"].to_qml()
    assert 'value="roof"' in style_objects(["roof"]).to_qml()


# ---------------------------------------------------------------- publishing


def test_an_existing_output_needs_overwrite(tmp_path):
    path = write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        write_geopackage(path, {"objects": some_objects(5)})
    assert path.read_bytes() == before
    write_geopackage(path, {"objects": some_objects(5)}, overwrite=True)
    assert only_file(tmp_path) == path
    assert len(read_vector(path, layer="objects")) == 5


@pytest.mark.parametrize("broken", ["write_layer", "_finish", "fsync"])
def test_a_run_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, broken):
    path = write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(geopackage, broken, fail)
    with pytest.raises(OutputError, match=r"No space left on device.*MB are free"):
        write_geopackage(path, {"objects": some_objects(5)}, overwrite=True)
    assert path.read_bytes() == before
    assert only_file(tmp_path) == path


def test_rows_that_went_missing_are_noticed(tmp_path, monkeypatch):
    whole = geopackage.write_layer
    monkeypatch.setattr(
        geopackage, "write_layer", lambda p, n, t, **o: whole(p, n, t.iloc[1:], **o)
    )
    with pytest.raises(OutputError, match="2 rows instead of 3"):
        write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    assert list(tmp_path.iterdir()) == []


HOT = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode=" + sys.argv[2])
database.execute("PRAGMA cache_size=1")
database.execute("CREATE TABLE filler (x)")
database.execute("BEGIN")
database.executemany("INSERT INTO filler VALUES (?)", [("y" * 500,)] * 2000)
if sys.argv[2] == "wal":
    database.execute("COMMIT")
"""


@pytest.mark.parametrize(("mode", "sidecar"), [("delete", "-journal"), ("wal", "-wal")])
def test_the_journal_of_a_killed_writer_does_not_touch_the_new_file(tmp_path, mode, sidecar):
    path = write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    in_child(HOT, str(path), mode)
    assert path.with_name(path.name + sidecar).stat().st_size > 0
    write_geopackage(path, {"objects": some_objects(5)}, overwrite=True)
    assert only_file(tmp_path) == path
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    assert sql(path, "SELECT count(*) FROM objects") == [(5,)]


HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode=" + sys.argv[2])
database.execute("BEGIN IMMEDIATE")
database.execute("SELECT count(*) FROM objects").fetchall()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_locked_output_is_kept_and_the_new_file_lies_beside(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(publish, "LOCK_WAIT_S", 0.2)
    path = write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD,
            str(path),
            mode,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError, match=r"was not replaced: database is locked.*complete"):
            write_geopackage(path, {"objects": some_objects(5)}, overwrite=True)
        holder.stdin.close()
    (kept,) = [p for p in tmp_path.iterdir() if p.name.startswith("a.2")]
    assert len(read_vector(kept, layer="objects")) == 5
    assert sql(path, "SELECT count(*) FROM objects") == [(3,)]
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_a_journal_without_its_database_is_refused(tmp_path):
    (tmp_path / "a.gpkg-journal").write_bytes(b"left over")
    with pytest.raises(OutputError, match=r"a\.gpkg-journal lies in"):
        write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.gpkg-journal"]


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.gpkg"
    finish = geopackage._finish

    def finish_late(*args):
        finish(*args)
        path.write_text("somebody else's")

    monkeypatch.setattr(geopackage, "_finish", finish_late)
    with pytest.raises(OutputError, match="appeared while it was being made"):
        write_geopackage(path, {"objects": some_objects(3)})
    assert path.read_text() == "somebody else's"
    (kept,) = [p for p in tmp_path.iterdir() if p != path]
    assert len(read_vector(kept, layer="objects")) == 3


def test_a_file_that_is_no_database_can_be_overwritten(tmp_path):
    path = tmp_path / "a.gpkg"
    path.write_text("not a database")
    write_geopackage(path, {"objects": some_objects(3)}, overwrite=True)
    assert len(read_vector(path, layer="objects")) == 3


# ---------------------------------------------------------------- other formats


def test_geoparquet_has_a_bbox_and_zstd(tmp_path):
    path = write_table(tmp_path / "o.parquet", some_objects())
    file = pq.ParquetFile(path)
    assert b'"version": "1.1.0"' in file.metadata.metadata[b"geo"]
    assert b'"covering"' in file.metadata.metadata[b"geo"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert read_vector(path).crs == UTM


def test_geojson_is_in_degrees(tmp_path):
    path = write_table(tmp_path / "o.geojson", some_objects())
    back = read_vector(path)
    assert back.crs == 4326
    assert back.total_bounds == pytest.approx([87.0, 0.0, 87.000449, 0.0000904], abs=1e-6)
    assert len(back) == 3


@pytest.mark.parametrize("suffix", [".fgb", ".parquet", ".geojson", ".gpkg"])
def test_every_format_refuses_to_replace_unasked(tmp_path, suffix):
    path = write_table(tmp_path / f"o{suffix}", some_objects(2))
    with pytest.raises(OutputError, match="exists"):
        write_table(path, some_objects(4))
    write_table(path, some_objects(4), overwrite=True)
    assert len(read_vector(path, layer="objects" if suffix == ".gpkg" else None)) == 4
    assert only_file(tmp_path) == path


def test_check_output_refuses_early(tmp_path):
    assert check_output(tmp_path / "x.GPKG") == tmp_path / "x.GPKG"
    with pytest.raises(OutputError, match=r"unknown suffix '.shp'; expected one of .gpkg"):
        check_output(tmp_path / "x.shp")
    with pytest.raises(OutputError, match="does not exist; create it"):
        check_output(tmp_path / "no" / "x.gpkg")
    (tmp_path / "d.gpkg").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "d.gpkg", overwrite=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "x.gpkg")


# ---------------------------------------------------------------- reading


def test_read_vector_says_what_is_wrong(tmp_path):
    with pytest.raises(RegionError, match=r"AOI file .*none.gpkg does not exist"):
        read_vector(tmp_path / "none.gpkg", what="AOI")
    junk = tmp_path / "junk.geojson"
    junk.write_text("this is no JSON")
    with pytest.raises(RegionError, match=r"regions file .* cannot be read as a vector layer"):
        read_vector(junk)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1")
    with pytest.raises(RegionError, match="cannot be read"):
        read_vector(cut)
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(RegionError, match=r"truth file .* holds no features"):
        read_vector(empty, what="truth")


def test_read_vector_refuses_no_crs_and_no_polygons(tmp_path):
    polygon = gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)])
    with pytest.warns(UserWarning, match="crs"):
        pyogrio.write_dataframe(polygon, tmp_path / "nocrs.gpkg")
    with pytest.raises(RegionError, match=r"has no CRS.*ogr2ogr"):
        read_vector(tmp_path / "nocrs.gpkg")
    points = gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(0, 0)], crs=UTM)
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(RegionError, match="holds no polygons, only: Point"):
        read_vector(tmp_path / "points.gpkg")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(RegionError, match="cannot be read"):
        read_vector(tmp_path / "plain.parquet")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RegionError, match=r"cannot be read as a vector layer.*give a GeoPackage"):
        read_vector(tmp_path / "t.csv")
    pyogrio.write_dataframe(pd.DataFrame({"a": [1]}), tmp_path / "t.gpkg")
    with pytest.raises(RegionError, match="has no geometry"):
        read_vector(tmp_path / "t.gpkg")


def test_read_vector_does_not_guess_between_layers(tmp_path):
    path = write_geopackage(
        tmp_path / "a.gpkg", {"objects": some_objects(), "wards": some_regions()}
    )
    with pytest.raises(RegionError, match=r"several layers \(objects, wards, layer_styles\)"):
        read_vector(path)
    assert len(read_vector(path, what="objects")) == 3
    assert len(read_vector(path, layer="wards")) == 2
    with pytest.raises(RegionError, match="no layer 'ward'; it has: objects"):
        read_vector(path, layer="ward")


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
def test_read_vector_takes_a_condition(tmp_path, suffix):
    path = write_table(tmp_path / f"objects{suffix}", some_objects(5))
    got = read_vector(path, what="objects", where="object_id > 3 AND class = 'building'")
    assert sorted(got["object_id"]) == [4, 5]
    # nothing left is fine for objects, but regions would count nothing
    assert len(read_vector(path, what="objects", where="object_id > 9")) == 0
    with pytest.raises(RegionError, match="holds no features where object_id > 9"):
        read_vector(path, what="truth", where="object_id > 9")
    for wrong in ("nope = 1", "object_id >", "'"):
        with pytest.raises(RegionError, match="expected a condition on its fields"):
            read_vector(path, what="objects", where=wrong)


def test_read_vector_says_that_geoparquet_takes_no_condition(tmp_path):
    path = write_table(tmp_path / "objects.parquet", some_objects())
    with pytest.raises(RegionError, match="GeoParquet, which takes no condition"):
        read_vector(path, what="objects", where="object_id > 1")


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".fgb", ".geojson"])
def test_counts_come_back_from_every_format(tmp_path, suffix):
    path = write_counts(tmp_path / f"counts{suffix}", some_regions())
    got = read_vector(path)
    # FlatGeobuf sorts its rows by place
    assert dict(zip(got["ward"].fillna("-"), got["count"], strict=True)) == {"A & B": 2, "-": 1}


def test_counts_as_csv(tmp_path):
    path = write_counts(tmp_path / "counts.csv", some_regions())
    assert path.read_bytes() == b"ward,count\nA & B,2\n,1\n"
    with pytest.raises(OutputError, match="overwrite"):
        write_counts(path, some_regions())
    write_counts(path, some_regions().iloc[:1], overwrite=True)
    assert path.read_bytes() == b"ward,count\nA & B,2\n"
    assert only_file(tmp_path) == path


def test_a_csv_is_no_place_for_objects(tmp_path):
    with pytest.raises(OutputError, match=r"suffix '.csv'"):
        write_table(tmp_path / "objects.csv", some_objects())


def test_the_gpkg_of_counts_remembers_how_they_were_made(tmp_path):
    regions = some_regions()
    regions.attrs |= {"rule": "point", "total": 4, "outside": 1}
    path = write_counts(tmp_path / "counts.gpkg", regions)
    notes = "".join(row[0] for row in sql(path, "SELECT metadata FROM gpkg_metadata"))
    assert "point" in notes
    assert "outside" in notes
    (qml,) = sql(path, "SELECT styleQML FROM layer_styles WHERE f_table_name = 'regions'")
    assert "ward" in qml[0]


def test_a_virtual_file_under_another_name_is_refused(tmp_path):
    target = write_table(tmp_path / "secret.fgb", some_objects())
    (tmp_path / "regions.geojson").write_text(
        "<OGRVRTDataSource><OGRVRTLayer name='objects'>"
        f"<SrcDataSource>{target}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    )
    with pytest.raises(RegionError, match="virtual file"):
        read_vector(tmp_path / "regions.geojson")
    (tmp_path / "regions.vrt").write_text((tmp_path / "regions.geojson").read_text())
    with pytest.raises(RegionError, match="virtual file"):
        read_vector(tmp_path / "regions.vrt")


# ---------------------------------------------------------------- streams


def many_objects(n=500, crs=UTM):
    """Objects with holes, some of several parts, of two classes, touching the edge now and then."""
    at = np.arange(n)
    x, y = 500000.0 + 30 * (at % 25), 3000000.0 + 30 * (at // 25)
    boxes = shapely.difference(
        shapely.box(x, y, x + 20, y + 10 + at % 7), shapely.box(x + 4, y + 4, x + 6, y + 6)
    )
    table = gpd.GeoDataFrame(
        {
            "object_id": at + 1,
            "uid": [f"{i:016x}" for i in at * 7919],
            "class": np.where(at % 3 == 0, "tree", "häuser"),
            "score": (0.5 + at / (2 * n)).round(6),
            "area_m2": shapely.area(boxes).round(3),
            "perimeter_m": shapely.length(boxes).round(3),
            "n_parts": np.ones(n, np.int32),
            "touches_edge": at % 50 == 0,
            "image": np.where(at % 2 == 0, "a.tif", "b.tif"),
        },
        geometry=boxes,
        crs=UTM,
    )
    return table.astype(OBJECT_DTYPES).to_crs(crs)


def stream(path, table, cuts=()):
    """Write a table as a stream of tables that end at the cuts."""
    ends = [0, *cuts, len(table)]
    with ObjectsWriter(path, table.crs) as writer:
        for start, end in pairwise(ends):
            writer.write(objects_to_arrow(table.iloc[start:end]))
    assert writer.rows == len(table)
    return path


@pytest.fixture
def small_groups(monkeypatch):
    for module in (objects_file, layers):
        monkeypatch.setattr(module, "GROUP_ROWS", 64)


def test_a_stream_comes_back_as_it_went(tmp_path, small_groups):
    table = many_objects()
    path = stream(tmp_path / "o.parquet", table, cuts=(1, 1, 70, 333))
    assert only_file(tmp_path) == path
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [64] * 7 + [52]
    parts = list(iter_objects(path, rows=100))
    assert max(map(len, parts)) <= 100
    back = pd.concat(parts)
    pd.testing.assert_frame_equal(pd.DataFrame(back), pd.DataFrame(table), check_index_type=False)
    assert back.crs == table.crs
    info = describe_objects(path)
    assert (info.rows, info.crs, info.geometry_types) == (500, table.crs, ("Polygon",))
    assert info.bounds == tuple(table.total_bounds)


def test_the_stream_is_geoparquet(tmp_path, small_groups):
    table = many_objects()
    path = stream(tmp_path / "o.parquet", table)
    back = gpd.read_parquet(path)
    pd.testing.assert_frame_equal(pd.DataFrame(back), pd.DataFrame(table))
    left, bottom, _, _ = table.total_bounds
    window = (left, bottom, left + 100, bottom + 50)
    few = gpd.read_parquet(path, bbox=window)
    assert (
        few["object_id"].tolist()
        == table.cx[window[0] : window[2], window[1] : window[3]]["object_id"].tolist()
    )
    file = pq.ParquetFile(path)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    # the box of each row, by which a reader skips row groups
    bbox = pd.DataFrame(pq.read_table(path, columns=["bbox"])["bbox"].to_pylist())
    np.testing.assert_array_equal(bbox.to_numpy(), table.bounds.to_numpy())
    # the same footer as of a whole table, but for who wrote it
    whole = write_table(tmp_path / "whole.parquet", table)
    keys = [json.loads(pq.read_metadata(p).metadata[b"geo"]) for p in (path, whole)]
    keys[1].pop("creator")
    assert keys[0] == keys[1]


def test_the_same_rows_give_the_same_bytes_however_they_come(tmp_path, small_groups):
    table = many_objects()
    one = stream(tmp_path / "1.parquet", table).read_bytes()
    assert stream(tmp_path / "2.parquet", table, cuts=(3, 64, 65, 200, 499)).read_bytes() == one
    assert stream(tmp_path / "3.parquet", table.iloc[::-1]).read_bytes() != one


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path, small_groups):
    path = stream(tmp_path / "o.parquet", many_objects(10))
    before = path.read_bytes()

    def tables_that_stop(error):
        with ObjectsWriter(path, UTM) as writer:
            writer.write(objects_to_arrow(many_objects(300)))
            assert len(list(tmp_path.iterdir())) == 2
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            tables_that_stop(error)
        assert path.read_bytes() == before
        assert only_file(tmp_path) == path
    with pytest.raises(OutputError, match="cannot be written"):
        ObjectsWriter(tmp_path / "missing" / "o.parquet", UTM).__enter__()


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    path = tmp_path / "o.parquet"
    in_child(
        """
        import sys
        from geoseg.outputs.tables import ObjectsWriter
        writer = ObjectsWriter(sys.argv[1], 32645)
        writer.__enter__()
        """,
        str(path),
    )
    assert only_file(tmp_path) != path
    stream(path, many_objects(10))
    assert only_file(tmp_path) == path


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path, monkeypatch):
    path = stream(tmp_path / "o.parquet", many_objects(10))
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for owner, broken in ((objects_file, "fsync"), (ObjectsWriter, "_write_group")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, broken, fail)
            with pytest.raises(OutputError, match=r"No space left.*MB are free"):
                stream(path, many_objects(20))
        assert path.read_bytes() == before
        assert only_file(tmp_path) == path


def test_tables_that_are_no_objects_are_refused(tmp_path):
    good = objects_to_arrow(many_objects(3))
    points = pa.array(shapely.to_wkb(shapely.points([1.0, 2, 3], 4.0)))
    bad = {
        "has no uid; expected the columns object_id, uid": good.drop_columns(["uid"]),
        "also colour": good.append_column("colour", pa.array([1, 2, 3])),
        "other types .*touches_edge bool": good.set_column(0, "object_id", pa.array(["a"] * 3)),
        "no polygon": good.set_column(9, "geometry", points),
        "or none": good.set_column(9, "geometry", pa.nulls(3, pa.binary())),
    }
    for message, table in bad.items():
        with (
            pytest.raises(OutputError, match=message),
            ObjectsWriter(tmp_path / "o.parquet", UTM) as writer,
        ):
            writer.write(table)
        assert list(tmp_path.iterdir()) == []


def test_columns_may_come_in_any_order_and_as_large_types(tmp_path):
    good = objects_to_arrow(many_objects(3))
    large = good.select(good.column_names[::-1]).set_column(
        0, "geometry", good["geometry"].cast(pa.large_binary())
    )
    with ObjectsWriter(tmp_path / "o.parquet", UTM) as writer:
        writer.write(large)
    (part,) = iter_objects(tmp_path / "o.parquet")
    pd.testing.assert_frame_equal(pd.DataFrame(part), pd.DataFrame(many_objects(3)))
    assert objects_from_arrow(good, UTM).equals(part)
    assert good.schema == OBJECT_SCHEMA


def test_what_is_no_file_of_objects_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"cannot be read.*run the job again"):
        list(iter_objects(tmp_path / "missing.parquet"))
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(OutputError, match="cannot be read"):
        describe_objects(tmp_path / "text.parquet")
    other = write_table(tmp_path / "regions.parquet", some_regions())
    for suffix in (".gpkg", ".parquet", ".fgb", ".geojson"):
        with pytest.raises(OutputError, match="is no file of objects"):
            write_objects(tmp_path / f"o{suffix}", other)
    assert {p.name for p in tmp_path.iterdir()} == {"text.parquet", "regions.parquet"}


def several_parts(table):
    """Make every ninth object a MultiPolygon."""
    table = table.copy()
    polygons = table.geometry.to_numpy()
    for i in range(0, len(table), 9):
        x, y = shapely.get_coordinates(polygons[i])[0]
        polygons[i] = shapely.MultiPolygon([polygons[i], shapely.box(x + 90, y, x + 91, y + 1)])
    return table.set_geometry(gpd.GeoSeries(polygons, crs=table.crs))


def dump(path):
    """All that a database says, but for when it was said."""
    with closing(sqlite3.connect(path)) as database:
        master = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        said = {"": sorted(master, key=str)}
        for kind, name, *_ in master:
            # the tree's own tables may be balanced otherwise
            if kind != "table" or name.startswith("rtree_objects_geom_"):
                continue
            cursor = database.execute(f'SELECT * FROM "{name}"')
            keep = [
                i
                for i, (column, *_) in enumerate(cursor.description)
                if column not in {"last_change", "update_time", "timestamp"}
            ]
            said[name] = [tuple(row[i] for i in keep) for row in cursor]
        if "rtree_objects_geom" in said:
            said["rtree_objects_geom"].sort()
    return said


@pytest.mark.parametrize("case", ["polygons", "parts", "one", "none", "no code"])
def test_the_streamed_geopackage_is_that_of_the_whole_table(tmp_path, small_groups, case):
    table = {
        "polygons": many_objects,
        "parts": lambda: several_parts(many_objects()),
        "one": lambda: many_objects(1),
        "none": lambda: empty_objects(UTM),
        "no code": lambda: many_objects(70, crs="+proj=tmerc +lon_0=87.5 +k=0.9999 +ellps=GRS80"),
    }[case]()
    source = stream(tmp_path / "o.parquet", table, cuts=() if len(table) < 2 else (1, 30))
    others = {"regions": some_regions(), "coverage": some_regions().assign(status="done")}
    notes = {"model": "m", "images": ["a.tif"]}
    got = write_objects(tmp_path / "got.gpkg", source, others, metadata=notes)
    want = write_geopackage(tmp_path / "want.gpkg", {"objects": table} | others, metadata=notes)
    assert {p.name for p in tmp_path.iterdir()} == {"o.parquet", "got.gpkg", "want.gpkg"}
    got_all, want_all = dump(got), dump(want)
    assert got_all.keys() == want_all.keys()
    for name in want_all:
        assert got_all[name] == want_all[name], name
    assert len(got_all["objects"]) == len(table)
    assert len(got_all["rtree_objects_geom"]) == len(table)
    infos = [pyogrio.read_info(p, layer="objects") for p in (got, want)]
    assert infos[0]["dtypes"].tolist() == infos[1]["dtypes"].tolist()
    assert infos[0]["dtypes"][7] == "bool"
    assert infos[0]["total_bounds"] == infos[1]["total_bounds"]
    assert infos[0]["geometry_type"] == ("MultiPolygon" if case == "parts" else "Polygon")
    assert sql(got, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("suffix", [".fgb", ".geojson", ".parquet"])
@pytest.mark.parametrize("case", ["polygons", "parts", "none"])
def test_the_streamed_table_is_that_of_the_whole_table(tmp_path, small_groups, suffix, case):
    table = {
        "polygons": many_objects,
        "parts": lambda: several_parts(many_objects()),
        "none": lambda: empty_objects(UTM),
    }[case]()
    source = stream(tmp_path / "o.parquet", table)
    # the layer's name is in the file
    (tmp_path / "want").mkdir()
    got = write_objects(tmp_path / f"objects{suffix}", source)
    want = write_table(tmp_path / "want" / f"objects{suffix}", table)
    if suffix == ".parquet":
        # in another order, on purpose
        whole = pd.DataFrame(gpd.read_parquet(want))
        back = pd.DataFrame(gpd.read_parquet(got)).sort_values("object_id", ignore_index=True)
        pd.testing.assert_frame_equal(back, whole)
    else:
        assert got.read_bytes() == want.read_bytes()
        assert len(pyogrio.read_dataframe(got)) == len(table)


def test_only_a_geopackage_has_room_for_other_layers(tmp_path):
    source = stream(tmp_path / "o.parquet", many_objects(3))
    with pytest.raises(OutputError, match="room for one layer, not for regions beside objects"):
        write_objects(tmp_path / "o.fgb", source, {"regions": some_regions()})
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        write_objects(source, source)
    assert only_file(tmp_path) == source


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("lost"), RuntimeError),
        (KeyboardInterrupt("stop"), KeyboardInterrupt),
        (OSError(5, "Input/output error"), OutputError),
        (pa.ArrowInvalid("corrupt page"), OutputError),
    ],
)
def test_a_stream_that_breaks_leaves_the_old_file_and_no_litter(
    tmp_path, monkeypatch, small_groups, suffix, error, raised
):
    source = stream(tmp_path / "o.parquet", many_objects())
    path = write_objects(tmp_path / f"old{suffix}", source)
    before = path.read_bytes()
    whole = layers.iter_tables

    def broken(*args):
        for i, table in enumerate(whole(*args)):
            if i == 3:
                raise error
            yield table

    monkeypatch.setattr(layers, "iter_tables", broken)
    with pytest.raises(raised, match=str(error).split("] ")[-1]):
        write_objects(path, source, overwrite=True)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"o.parquet", path.name}
    monkeypatch.undo()
    write_objects(path, source, overwrite=True)
    assert len(read_vector(path, layer="objects", what="objects")) == 500


def test_rows_that_a_stream_lost_are_noticed(tmp_path, monkeypatch, small_groups):
    source = stream(tmp_path / "o.parquet", many_objects())
    whole = layers.iter_tables
    monkeypatch.setattr(layers, "iter_tables", lambda *a: (t.slice(1) for t in whole(*a)))
    with pytest.raises(OutputError, match="492 rows instead of 500"):
        write_objects(tmp_path / "o.gpkg", source)
    assert only_file(tmp_path) == source


def test_a_locked_output_of_a_stream_is_kept_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "LOCK_WAIT_S", 0.2)
    source = stream(tmp_path / "o.parquet", many_objects(5))
    path = write_objects(tmp_path / "a.gpkg", source)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), "delete"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError, match="was not replaced: database is locked"):
            write_objects(path, source, overwrite=True)
        holder.stdin.close()
    (kept,) = [p for p in tmp_path.iterdir() if p.name.startswith("a.2")]
    assert len(read_vector(kept, layer="objects")) == 5


MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa, shapely
from geoseg.outputs.tables import ObjectsWriter, iter_objects, write_objects

folder, n = sys.argv[1], int(sys.argv[2])
circle = shapely.to_wkb(shapely.buffer(shapely.points(500000, 0), 5, quad_segs=12))
with ObjectsWriter(folder + "/o.parquet", 32645) as writer:
    for start in range(0, n, 40_000):
        ids = np.arange(start + 1, start + 40_001)
        one = np.ones(len(ids))
        writer.write(pa.table({
            "object_id": ids, "uid": [f"{i:016x}" for i in ids * 7919], "class": ["a"] * len(ids),
            "score": one, "area_m2": one, "perimeter_m": one, "n_parts": one.astype("int32"),
            "touches_edge": one > 2, "image": ["a.tif"] * len(ids), "geometry": [circle] * len(ids),
        }))
write_objects(folder + "/o.gpkg", folder + "/o.parquet")
write_objects(folder + "/o.fgb", folder + "/o.parquet")
assert sum(map(len, iter_objects(folder + "/o.parquet"))) == n
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_objects(tmp_path):
    peaks = []
    for n in (200_000, 1_000_000):
        folder = tmp_path / str(n)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(folder), str(n)],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(float(done.stdout))
    # the file's WKB alone is 630 MB more; the spatial indices of GDAL take some 70 bytes a row
    assert peaks[1] - peaks[0] < 200
