"""Job files, model cards, weights, vector files and names that mean harm."""

from __future__ import annotations

import http.server
import json
import os
import sqlite3
import stat
import struct
import threading
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from runs import NORTH_UP, UTM, job_over
from safetensors.torch import save_file
from stubs import Bright

from geoseg.cli.main import main
from geoseg.config import read_job, read_toml
from geoseg.errors import ConfigError, LabelError, ModelError, RegionError, printable
from geoseg.imagery.vector_files import why_not_opened
from geoseg.jobs.pipeline import run_detect
from geoseg.learning.labels import _read_layer
from geoseg.models.card import load_card_and_weights, read_card
from geoseg.outputs.polygons import open_polygons
from geoseg.outputs.reading import read_vector

# ---------------------------------------------------------------- job files

JOB = '[detect]\nimages = "image.tif"\noutput = "out.gpkg"\n'
BAD_JOBS = {
    "huge tile": ("tile_size = 1000000000000", "expected 32 to 8192"),
    "negative tile": ("tile_size = -1", "expected 32 to 8192"),
    "nan": ("min_score = nan", "expected 0 to 1"),
    "inf": ("min_area = inf", "expected 0 to"),
    "1e400": ("gsd = 1e400", "expected 0.001 to 1000"),
    "bool for int": ("overlap = true", "expected int"),
    "bool for float": ("simplify = true", "expected float"),
    "date": ("overlap = 1979-05-27", "expected int"),
    "table": ("tile_size = {a = 1}", "expected int"),
    "bands": ("bidx = [true]", r"expected tuple\[int"),
    "unknown key": ("tile_sise = 1", "did you mean 'tile_size'"),
    "twice": ('images = "b.tif"', "Cannot overwrite a value"),
    "deep": (f"bidx = {'[' * 5_000}{']' * 5_000}", "nested too deep"),
    "dotted": (f"{'a.' * 50_000}b = 1", "key of more than 100 parts"),
    "dotted table": (f"[{'a.' * 50_000}b]", "key of more than 100 parts"),
    "quoted dots": ('"a" . ' * 5_000 + "b = 1", "key of more than 100 parts"),
    "digits": (f"max_errors = {'9' * 5_000}", "4300 digits"),
    "size": ("#" + "x" * 1_100_000, "more than 1,000,000 bytes"),
    "no command": ('notify = ""', "--notify is empty"),
    "open quote": ('notify = "say \'"', "--notify is no command"),
    "nul": ('run_dir = "a\\u0000"', "run_dir in .detect. holds a null character"),
    "nul regions": ('regions = "a\\u0000"', "regions in .detect. holds a null character"),
    "long also": (f'also = "{"x" * 300}.fgb"', "300 bytes|304 bytes"),
    "newline": ('also = "a\\nb.fgb"', "without line breaks"),
    "escape": ('also = "\\u001b[2Ja.fgb"', "without line breaks or control"),
    "no name": ('also = "/"', "expected a name"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_job_files_with_absurd_values_are_refused_at_once(tmp_path, name, capsys):
    line, message = BAD_JOBS[name]
    (tmp_path / "job.toml").write_text(f"{JOB}{line}\n")
    with pytest.raises(ConfigError, match=message):
        read_job(tmp_path / "job.toml")
    assert main(["run", str(tmp_path / "job.toml")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said[:-1].isprintable()
    assert len(said) < 1_500


@pytest.mark.parametrize("data", [b"\xff\xfe[\0d\0", b"\0" * 100, b"[detect]\nimages = '\xff'\n"])
def test_job_files_that_are_no_text_are_refused(tmp_path, data):
    (tmp_path / "job.toml").write_bytes(data)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_job(tmp_path / "job.toml")


def test_a_byte_order_mark_is_skipped_and_a_folder_is_no_job(tmp_path):
    (tmp_path / "job.toml").write_bytes(b"\xef\xbb\xbf" + JOB.encode())
    assert read_job(tmp_path / "job.toml").output == tmp_path / "out.gpkg"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path, "training file")


def test_a_hundred_megabytes_of_job_are_not_read(tmp_path):
    with (tmp_path / "job.toml").open("wb") as out:
        out.truncate(100_000_000_000)
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        read_job(tmp_path / "job.toml")


# ---------------------------------------------------------------- cards and weights

CARD = {"name": "roofs", "classes": ["roof"], "gsd_m": 0.1, "architecture": {"family": "x"}}
BAD_CARDS = {
    "classes": ("roof", "classes is 'roof'; expected tuple"),
    "gsd_m": (float("nan"), "gsd_m is nan; expected float"),
    "architecture": ({"fpn": [{"channels": 10**9}]}, "channels = 1000000000; at most 4096"),
    "bands": ([], "mean has|std has|3 numbers|expected"),
    "value_range": ([0, float("inf")], r"value_range is \(0, inf\); expected tuple"),
    "mean": ([1, 2], "mean has 2 numbers for 3 bands"),
    "std": ([0, 1, 1], "expected numbers above 0"),
    "tile_size": (10**12, "tile_size is 1000000000000; expected 32 to 8192"),
    "overlap": (-1, "overlap is -1"),
    "min_score": ("high", "min_score is 'high'; expected float"),
    "max_detections": (10**15, "expected 1 to 100000"),
    "proposals": (True, "proposals is True; expected int"),
    "credits": ([1], "expected tuple"),
    "training": ([], "training is"),
    "card_version": (99, "expected 1 to 1"),
    "rpn_nms_iou": (None, "rpn_nms_iou is None; expected float"),
    "nope": (1, "unknown keys"),
}


@pytest.mark.parametrize("field", BAD_CARDS)
def test_cards_with_absurd_values_are_refused(tmp_path, field):
    value, message = BAD_CARDS[field]
    more = {"mean": [0, 0, 0]} if field == "bands" else {}
    (tmp_path / "a.json").write_text(json.dumps(CARD | more | {field: value}))
    with pytest.raises(ModelError, match=message):
        read_card(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 10_000, '{"name": ' * 5_000, "null", "", " " * 5_000_000]
)
def test_cards_that_are_no_cards_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ModelError, match=r"not valid JSON|not a model card|it is no card"):
        read_card(tmp_path / "a.safetensors")


def weights_file(path: Path, header: bytes, n: int | None = None, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if n is None else n) + header + body)
    path.with_suffix(".json").write_text(json.dumps(CARD))
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


BAD_WEIGHTS = {
    "giant header": (b"{}", 1 << 62, b""),
    "header beyond the file": (b"{}", 10_000, b""),
    "no JSON": (b"{{{{", None, b""),
    "hole": (entry(offsets=(8, 12)), None, bytes(12)),
    "past the end": (entry(offsets=(0, 400), shape=(100,)), None, bytes(4)),
    "shape does not fit": (entry(shape=(100,)), None, bytes(4)),
    "shape overflows": (entry(shape=(1 << 62, 1 << 62)), None, bytes(4)),
    "negative": (entry(shape=(-1,)), None, bytes(4)),
    "unknown type": (entry(dtype="OBJ"), None, bytes(4)),
    "nan": (entry(), None, struct.pack("<f", float("nan"))),
    "deep": (b'{"a":' * 10_000, None, b""),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_with_hostile_headers_are_refused(tmp_path, name):
    path = weights_file(tmp_path / "a.safetensors", *BAD_WEIGHTS[name])
    with pytest.raises(ModelError, match=r"not a readable safetensors file|not finite"):
        load_card_and_weights(path)


def test_weights_of_another_network_are_refused(tmp_path, capsys, make_raster):
    path = tmp_path / "a.safetensors"
    save_file({"backbone.x": torch.zeros(3)}, path)
    path.with_suffix(".json").write_text(json.dumps(CARD | {"architecture": {"family": "nope"}}))
    out = str(tmp_path / "o.gpkg")
    assert main(["detect", str(make_raster()), "--model", str(path), "-o", out, "-j", "1"]) == 2
    said = capsys.readouterr().err
    assert "internal error" not in said
    assert "Traceback" not in said


# ---------------------------------------------------------------- vector files


@pytest.fixture
def asked():
    """Return the address of a server and what it was asked for."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", seen
    server.shutdown()
    server.server_close()
    thread.join()


SQUARE = {"type": "Polygon", "coordinates": [[[15, 49], [15.1, 49], [15.1, 49.1], [15, 49]]]}
FEATURE = {"type": "Feature", "properties": {"name": "a"}, "geometry": SQUARE}


def collection(**more) -> str:
    return json.dumps({"type": "FeatureCollection", **more, "features": [FEATURE]})


def link(address: str, kind: str = "link") -> dict:
    return {"type": kind, "properties": {"href": address, "url": address, "type": "ogcwkt"}}


TRAPS = {
    "link": lambda at: collection(crs=link(at)),
    "url": lambda at: collection(crs=link(at, "URL")),
    "escaped": lambda at: (
        collection(crs=link(at)).replace('"crs"', '"\\u0063r\\u0053"')
        .replace('"link"', '"l\\u0069nk"').replace('"href"', '"hr\\u0065f"')
        .replace('"url"', '"\\u0075rl"')
    ),
    "quotes": lambda at: collection(crs=link(at)).replace('"crs"', "'crs'"),
    "comment": lambda at: collection(crs=link(at)).replace('"crs":', '"crs"/**/:'),
    "padded": lambda at: collection(crs=link(at)).replace('"crs": {', '"crs": {' + " " * 9_000),
    "vrt": lambda at: (
        f'<OGRVRTDataSource><OGRVRTLayer name="x"><SrcDataSource>{at}y.geojson</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    ),
    "wfs": lambda at: f"<OGRWFSDataSource><URL>{at}wfs</URL></OGRWFSDataSource>",
    "gml": lambda at: (
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
        '<ogr:FeatureCollection xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="http://ogr.maptools.org/ {at}x.xsd" '
        'xmlns:ogr="http://ogr.maptools.org/"/>'
    ),
    "csv": lambda at: 'WKT,a\n"POLYGON((0 0,1 0,1 1,0 0))",1\n',
    "kml": lambda at: f'<kml><NetworkLink><href>{at}</href></NetworkLink></kml>',
    "address": lambda at: f"{at}wfs?service=WFS",
    "zip": lambda at: "PK\x03\x04",
    "empty": lambda at: "",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_files_that_name_other_places_are_refused_and_nothing_is_fetched(tmp_path, name, asked):
    address, seen = asked
    path = tmp_path / "regions.geojson"
    path.write_text(TRAPS[name](address))
    with pytest.raises(RegionError, match=r"regions.geojson"):
        read_vector(path)
    with pytest.raises(LabelError, match=r"regions.geojson"):
        _read_layer(path, None)
    with pytest.raises(RegionError):
        open_polygons(path)
    assert seen == []


def test_honest_files_with_a_crs_or_a_field_of_that_name_are_read(tmp_path):
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    path = tmp_path / "regions.geojson"
    path.write_text(collection(crs=named))
    assert len(read_vector(path)) == 1
    path.write_text(collection().replace('"name": "a"', '"crs": "link", "href": "http://x"'))
    assert read_vector(path)["href"].tolist() == ["http://x"]
    for suffix in ("shp", "fgb", "gpkg"):
        file = tmp_path / f"regions.{suffix}"
        gpd.read_file(path).to_file(file)
        assert why_not_opened(file) is None
        assert len(read_vector(file)) == 1


def test_a_shapefile_without_its_table_has_its_shapes(tmp_path):
    gpd.GeoDataFrame(geometry=[shapely.box(15, 49, 16, 50)], crs=4326).to_file(tmp_path / "a.shp")
    (tmp_path / "a.dbf").unlink()
    assert len(read_vector(tmp_path / "a.shp")) == 1


def test_layers_that_are_queries_are_refused(tmp_path):
    """A view can run for ever, a trigger cannot: nothing is written into what is read."""
    path = tmp_path / "regions.gpkg"
    gpd.GeoDataFrame({"n": [1]}, geometry=[shapely.box(15, 49, 16, 50)], crs=4326).to_file(
        path, layer="regions"
    )
    before = path.read_bytes()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE hit (a)")
        database.execute(
            "CREATE TRIGGER t AFTER UPDATE ON gpkg_contents BEGIN INSERT INTO hit VALUES (1); END"
        )
    assert len(read_vector(path)) == 1
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM hit").fetchone() == (0,)
    path.write_bytes(before)
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE regions RENAME TO real")
        database.execute(
            "CREATE VIEW regions AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
            " SELECT n.x AS fid, r.geom, r.n FROM n, real AS r"
        )
    with pytest.raises(RegionError, match="a query or virtual table, which may run for ever"):
        read_vector(path)


def test_databases_that_are_no_geopackage_are_refused(tmp_path):
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("CREATE TABLE t (a)")
    with pytest.raises(RegionError, match="database but no GeoPackage"):
        read_vector(tmp_path / "a.sqlite")


BAD_SHAPES = {
    "null": None,
    "nan": {"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 0], [1, 1], [0, 0]]]},
    "huge": {"type": "Polygon", "coordinates": [[[0, 0], [1e308, 1e308], [0, 1e308], [0, 0]]]},
    "open": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]},
    "two points": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0]]]},
    "no ring": {"type": "Polygon", "coordinates": []},
    "text": {"type": "Polygon", "coordinates": [[["a", "b"], [1, 0], [1, 1], ["a", "b"]]]},
    "unknown": {"type": "Pentagon", "coordinates": []},
    "point": {"type": "Point", "coordinates": [15, 49]},
    "nested": json.loads(
        '{"type":"GeometryCollection","geometries":[' * 20 + json.dumps(SQUARE) + "]}" * 20
    ),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_regions_of_bad_shape_end_in_a_count_or_a_message(tmp_path, name, capsys):
    """Beside a good region the bad one counts nothing; alone it is refused or counts 0."""
    objects = tmp_path / "objects.geojson"
    objects.write_text(collection())
    bad = FEATURE | {"geometry": BAD_SHAPES[name]}
    for others in ([], [FEATURE]):
        regions = tmp_path / "regions.geojson"
        regions.write_text(json.dumps({"type": "FeatureCollection", "features": [*others, bad]}))
        code = main(["count", str(objects), str(regions), "--json"])
        out, err = capsys.readouterr()
        assert code in (0, 2), err
        assert "Traceback" not in err
        assert "internal error" not in err
        if code == 0:
            assert len(json.loads(out)["regions"]) == len(others) + 1


# ---------------------------------------------------------------- names

NAMES = ["a b", "a\nb", "\x1b[31mred", "कुटी", "a:b", "<script>", "';DROP", "x" * 150, "-o", "%2e"]
HOSTILE_CLASSES = (
    "</script><script>window.hacked=1</script>", "'; DROP TABLE objects; --", "=cmd|'/C calc'!A0",
    "@SUM(1)", "../../x", "x" * 900, "%s{0}${x}", "\u202egnp", "-- ", "NULL",
)  # fmt: skip


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of everything below a folder."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in folder.rglob("*")
        if not p.is_dir()
    }


class Named(Bright):
    """Finds bright pieces, and calls them what it likes."""

    fingerprint = "named"

    def __init__(self, classes):
        self.classes = classes

    def find(self, mask):
        found = super().find(mask)
        found.labels[:] = np.arange(len(found)) % len(self.classes)
        return found


@pytest.fixture
def spots(make_raster):
    """Return a function that writes a raster of bright squares."""
    pixels = np.full((3, 100, 200), 10, np.uint8)
    for i in range(10):
        pixels[:, 20 + 40 * (i % 2) : 34 + 40 * (i % 2), 10 + 18 * i : 22 + 18 * i] = 200
    return lambda name: make_raster(name, pixels, transform=NORTH_UP, crs=UTM)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_images_are_called_nothing_is_written_elsewhere(tmp_path, name, spots, capsys):
    """Two of one name in different folders, and the output beside."""
    (tmp_path / "out").mkdir()
    images = [spots(f"in/{sub}/{name}.tif") for sub in ("1", "2")]
    before = tree(tmp_path)
    out = tmp_path / "out" / "o.gpkg"
    settings = job_over(images[0], output=out, also=(out.with_suffix(".geojson"),))
    settings = type(settings)(
        **{f: getattr(settings, f) for f in settings.__slots__}
        | {"images": tuple(map(str, images)), "cross_image": False}
    )
    found = run_detect(settings, Bright())
    assert (found.exit_code, found.n_objects) == (0, 20)
    after = tree(tmp_path)
    fresh = {path.split("/")[0] + "/" + path.split("/")[1] for path in set(after) - set(before)}
    assert fresh == {"out/o.gpkg", "out/o.geojson", "out/o.geoseg-run"}
    assert all(after[path] == mark for path, mark in before.items())
    assert main(["check", *map(str, images)]) == 0
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet", ".fgb", ".coco.json"])
def test_class_names_come_back_as_they_were_from_every_format(tmp_path, spots, suffix):
    out = tmp_path / f"o{suffix}"
    whole = {"tile_size": 224, "supertile_size": 224}
    found = run_detect(job_over(spots("a.tif"), output=out, **whole), Named(HOSTILE_CLASSES))
    assert found.exit_code == 0
    if suffix == ".coco.json":
        coco = json.loads(out.read_text())
        names = {c["id"]: c["name"] for c in coco["categories"]}
        seen = {names[a["category_id"]] for a in coco["annotations"]}
    else:
        read = gpd.read_parquet if suffix == ".parquet" else gpd.read_file
        table = read(out, **({"layer": "objects"} if suffix == ".gpkg" else {}))
        seen = set(table["class"])
    assert seen == set(HOSTILE_CLASSES)
    page = next(tmp_path.glob("*.geoseg-run/report.html")).read_text()
    assert "<script>window.hacked" not in page
    if suffix == ".gpkg":
        with sqlite3.connect(out) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_class_names_run_nothing_in_a_terminal_or_a_notebook(tmp_path, spots, capsys):
    found = run_detect(
        job_over(spots("a.tif"), output=tmp_path / "o.gpkg"), Named(("<b>x</b>", "\u202eevil"))
    )
    assert found.exit_code == 0
    import geoseg

    assert "<b>x</b>" not in geoseg.open_run(tmp_path / "o.geoseg-run")._repr_html_()
    main(["count", str(tmp_path / "o.gpkg"), "--grid", "square:10"])
    assert "\u202e" not in capsys.readouterr().out


def test_text_is_printable():
    assert printable("a\x1b[2J\n\u202e\udc80") == "a\\x1b[2J\\n\\u202e\\udc80"
    assert printable("a\nb", keep="\n") == "a\nb"
    assert printable("कुटी 🏠") == "कुटी 🏠"


# ---------------------------------------------------------------- links and permissions


@pytest.mark.parametrize("inside", ["parts", "tiles", "joins", "run.json", "objects.parquet"])
def test_links_inside_a_run_directory_are_not_followed(tmp_path, spots, inside):
    """Clearing away what a killed writer left would empty somebody's folder."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / ".profile").write_text("mine")
    out = tmp_path / "o.gpkg"
    run_detect(job_over(spots("a.tif"), output=out), Bright())
    place = tmp_path / "o.geoseg-run" / inside
    if place.is_dir():
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(target if "." not in inside else target / ".profile")
    with pytest.raises(ConfigError, match="is a link to"):
        run_detect(job_over(tmp_path / "a.tif", output=out, overwrite=True), Bright())
    assert (target / ".profile").read_text() == "mine"
    assert [p.name for p in target.iterdir()] == [".profile"]


def test_an_output_that_is_a_link_is_replaced_and_its_target_stays(tmp_path, spots):
    target = tmp_path / "precious.gpkg"
    target.write_text("mine")
    out = tmp_path / "out" / "o.gpkg"
    out.parent.mkdir()
    out.symlink_to(target)
    run_detect(job_over(spots("a.tif"), output=out, overwrite=True), Bright())
    assert target.read_text() == "mine"
    assert not out.is_symlink()
    assert len(gpd.read_file(out, layer="objects")) == 10


def test_a_run_directory_may_be_a_link_to_a_larger_disk(tmp_path, spots):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    out = tmp_path / "o.gpkg"
    found = run_detect(job_over(spots("a.tif"), output=out, run_dir=tmp_path / "run"), Bright())
    assert found.exit_code == 0
    assert (tmp_path / "disk" / "run.json").is_file()


def test_nothing_that_is_written_can_be_changed_by_others(tmp_path, spots):
    before = os.umask(0o022)
    try:
        run_detect(job_over(spots("a.tif"), output=tmp_path / "out.gpkg"), Bright())
    finally:
        os.umask(before)
    written = [tmp_path / "out.gpkg", *(tmp_path / "out.geoseg-run").rglob("*")]
    assert len(written) > 5
    loose = [p for p in written if p.lstat().st_mode & (stat.S_IWOTH | stat.S_IWGRP)]
    assert loose == []
