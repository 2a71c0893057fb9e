"""Output files: complete, typed, styled, and never at the price of the old one."""

import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely

from geoseg.errors import OutputError, RegionError
from geoseg.outputs import tables
from geoseg.outputs.style import class_colours, default_styles, style_objects
from geoseg.outputs.tables import (
    OBJECT_DTYPES,
    check_output,
    empty_objects,
    read_vector,
    write_counts,
    write_geopackage,
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
    assert '"ward"' not in default_styles({"regions": regions.drop(columns="ward")})["regions"]
    bare = default_styles({"regions": regions[["geometry"]]})["regions"]
    assert 'labelsEnabled="0"' in bare
    coverage = gpd.GeoDataFrame({"status": ["done"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=UTM)
    assert "failed" in default_styles({"coverage": coverage})["coverage"]
    assert 'value="roof"' in style_objects(["roof"])


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


@pytest.mark.parametrize("broken", ["_write_layer", "_finish", "_fsync"])
def test_a_run_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, broken):
    path = write_geopackage(tmp_path / "a.gpkg", {"objects": some_objects(3)})
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, broken, fail)
    with pytest.raises(OutputError, match=r"No space left on device.*MB are free"):
        write_geopackage(path, {"objects": some_objects(5)}, overwrite=True)
    assert path.read_bytes() == before
    assert only_file(tmp_path) == path


def test_rows_that_went_missing_are_noticed(tmp_path, monkeypatch):
    whole = tables._write_layer
    monkeypatch.setattr(tables, "_write_layer", lambda p, n, t, **o: whole(p, n, t.iloc[1:], **o))
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
    monkeypatch.setattr(tables, "LOCK_WAIT_S", 0.2)
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
    finish = tables._finish

    def finish_late(*args):
        finish(*args)
        path.write_text("somebody else's")

    monkeypatch.setattr(tables, "_finish", finish_late)
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
    import pyarrow.parquet as pq

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
    with pytest.raises(RegionError, match="has no geometry"):
        read_vector(tmp_path / "t.csv")


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
