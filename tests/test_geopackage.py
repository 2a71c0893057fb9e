"""GeoPackages as the standard wants them, as QGIS opens them, and what they say of themselves."""

import json
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
from layered import ODD_CLASSES, UTM, file_of, nothing, town, wards

from geoseg.outputs.fields import LAYERS, describe_fields, fields_markdown
from geoseg.outputs.style import (
    MAX_CLASSES,
    SCORE_STEPS,
    default_styles,
    style_objects,
    style_regions,
)
from geoseg.outputs.tables import write_geopackage, write_objects, write_table

SYSTEM_PYTHON = "/usr/bin/python3"
VALIDATOR = "osgeo_utils.samples.validate_gpkg"
DOCS = Path(__file__).parents[1] / "docs"


def system_has(module):
    """Tell whether Debian's Python has a module (GDAL's and QGIS's are not for this one)."""
    if not Path(SYSTEM_PYTHON).exists():
        return False
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return (
        subprocess.run([SYSTEM_PYTHON, "-c", code], check=False, capture_output=True).returncode
        == 0
    )


def sql(path, query, *values):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query, values).fetchall()


def coverage():
    table = town(6, holes=False, many=False)[["geometry"]]
    table["status"] = ["done", "empty", "nodata", "outside", "failed", "done"]
    table["reason"] = ["", "", "", "", "disk <full>", ""]
    table["tiles"] = 9
    return table


def everything(folder, objects=None, name="town.gpkg", **options):
    """A GeoPackage with all that a run writes."""
    source = file_of(folder / "source.parquet", town() if objects is None else objects)
    others = {"regions": wards(), "coverage": coverage()}
    documents = {"run": {"settings": {"min_score": 0.5}, "é": [1]}, "credits": "OSM\nfriends"}
    return write_objects(
        folder / name, source, others, metadata={"model": "m"}, documents=documents, **options
    )


CASES = {
    "all": everything,
    "none": lambda folder: everything(folder, nothing()),
    "odd classes": lambda folder: everything(folder, town(classes=ODD_CLASSES)),
    "no code": lambda folder: everything(folder, town(crs="+proj=laea +lat_0=27 +lon_0=85")),
    "degrees": lambda folder: everything(folder, town(crs=4326, at=(85.0, 27.0, 0.0003))),
    "one table": lambda folder: write_table(folder / "one.gpkg", wards(), layer="regions"),
    "bare": lambda folder: write_geopackage(folder / "b.gpkg", {"zones": wards()}, styles={}),
    "px": lambda folder: write_table(
        folder / "px.gpkg", town().set_crs(None, allow_override=True), pixels=True
    ),
}


@pytest.fixture(params=CASES)
def package(request, tmp_path):
    return CASES[request.param](tmp_path)


@pytest.mark.skipif(
    not system_has(VALIDATOR.partition(".")[0]),
    reason="GDAL's validate_gpkg.py is not installed (Debian: python3-gdal)",
)
def test_the_validator_finds_nothing(package):
    done = subprocess.run(
        [SYSTEM_PYTHON, "-m", VALIDATOR, "--extra", "--warning-as-error", str(package)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_standard_asks(package):
    raw = package.read_bytes()
    assert raw[:16] == b"SQLite format 3\0"
    # requirement 2: application id, and the version as decimal digits
    assert raw[68:72] == b"GPKG"
    assert int.from_bytes(raw[60:64], "big") == 10300
    assert sql(package, "PRAGMA integrity_check") == [("ok",)]
    assert sql(package, "PRAGMA foreign_key_check") == []
    contents = sql(package, "SELECT table_name, data_type, srs_id, last_change FROM gpkg_contents")
    tables = {row[0] for row in sql(package, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    known = {row[0] for row in sql(package, "SELECT srs_id FROM gpkg_spatial_ref_sys")}
    assert known >= {-1, 0, 4326}
    extensions = sql(package, "SELECT table_name, column_name, extension_name FROM gpkg_extensions")
    for name, kind, srs, changed in contents:
        assert name in tables
        assert srs in known
        # requirement 15: ISO 8601 in UTC, to the millisecond
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", changed)
        columns = sql(package, 'SELECT name, type, "notnull", pk FROM pragma_table_info(?)', name)
        # requirement 29: an integer primary key
        assert [c[1] for c in columns if c[3]] == ["INTEGER"]
        if kind != "features":
            assert (name, kind) == ("layer_styles", "attributes")
            continue
        ((column, geometry, own, z, m),) = sql(
            package,
            "SELECT column_name, geometry_type_name, srs_id, z, m FROM gpkg_geometry_columns "
            "WHERE table_name = ?",
            name,
        )
        assert (own, z, m) == (srs, 0, 0)
        assert (column, geometry) in [(c[0], c[1]) for c in columns]
        assert (name, column, "gpkg_rtree_index") in extensions
        assert f"rtree_{name}_{column}" in tables
        n, indexed = (
            sql(package, f'SELECT count(*) FROM "{table}"')[0][0]
            for table in (name, f"rtree_{name}_{column}")
        )
        assert n == indexed
        info = pyogrio.read_info(package, layer=name, force_total_bounds=True)
        (extent,) = sql(
            package,
            "SELECT min_x, min_y, max_x, max_y FROM gpkg_contents WHERE table_name = ?",
            name,
        )
        assert extent == ((None,) * 4 if n == 0 else pytest.approx(info["total_bounds"]))
    for table, _, extension in extensions:
        assert table in tables
        assert extension in {"gpkg_rtree_index", "gpkg_schema", "gpkg_metadata"}
    # every table of an extension is registered, and each is there for a reason
    registered = {(t, e) for t, _, e in extensions}
    for extension in ("gpkg_schema", "gpkg_metadata"):
        for table in tables & {"gpkg_data_columns", "gpkg_data_column_constraints"}:
            assert extension != "gpkg_schema" or (table, extension) in registered
        for table in tables & {"gpkg_metadata", "gpkg_metadata_reference"}:
            assert extension != "gpkg_metadata" or (table, extension) in registered


# ---------------------------------------------------------------- dictionary and documents


def test_fields_have_titles_meanings_and_units(tmp_path):
    path = everything(tmp_path)
    rows = sql(
        path, "SELECT table_name, column_name, name, title, description FROM gpkg_data_columns"
    )
    found = {(table, column): rest for table, column, *rest in rows}
    assert found["objects", "area_m2"] == [
        "Area (m²)",
        "Area (m²)",
        "Area on the ellipsoid, whatever the CRS of the file. Unit: m².",
    ]
    assert {c for t, c in found if t == "objects"} == {f.name for f in LAYERS["objects"]}
    # a field of the user has no entry, and needs none
    assert {c for t, c in found if t == "regions"} == {"count", "density_km2"}
    assert ("coverage", "status") in found
    description = sql(path, "SELECT description FROM gpkg_contents WHERE table_name = 'objects'")
    assert description == [("one polygon per object on the ground",)]


def test_columns_of_classes_and_of_nobody_are_described_or_left(tmp_path):
    table = wards().assign(**{"count_roof & co": 1, "count_": 2, "covered_share": 0.5, "Count": 9})
    names = [f.name for f in describe_fields("regions", table.columns)]
    assert names == ["count", "density_km2", "count_roof & co", "covered_share"]
    path = write_geopackage(tmp_path / "r.gpkg", {"regions": table})
    rows = dict(sql(path, "SELECT column_name, title FROM gpkg_data_columns"))
    assert rows["count_roof & co"] == "Count of roof & co"
    assert describe_fields("whatever", ["a", "count"]) == []
    # of the user's own layer, before ours
    assert describe_fields("regions", ["count_households", "ward"]) == []


def test_the_documentation_has_the_dictionary():
    page = (DOCS / "outputs.md").read_text(encoding="utf-8")
    for layer in ("objects", "regions", "coverage", "files"):
        assert fields_markdown(layer) in page, (
            f"print(fields_markdown({layer!r})) into docs/outputs.md"
        )


def test_documents_are_kept_beside_the_notes_of_gdal(tmp_path):
    path = everything(tmp_path)
    rows = sql(
        path,
        "SELECT md_standard_uri, mime_type, metadata, reference_scope FROM gpkg_metadata "
        "JOIN gpkg_metadata_reference ON md_file_id = id WHERE md_standard_uri LIKE 'urn:%'",
    )
    kept = {uri: (mime, text) for uri, mime, text, scope in rows if scope == "geopackage"}
    assert kept.keys() == {"urn:x-geoseg:run", "urn:x-geoseg:credits"}
    assert kept["urn:x-geoseg:run"][0] == "application/json"
    assert json.loads(kept["urn:x-geoseg:run"][1]) == {"settings": {"min_score": 0.5}, "é": [1]}
    assert kept["urn:x-geoseg:credits"] == ("text/plain", "OSM\nfriends")
    assert pyogrio.read_info(path, layer="objects")["dataset_metadata"]["model"] == "m"
    alone = write_geopackage(tmp_path / "d.gpkg", {"zones": wards()}, documents={"a": [1]})
    assert sql(alone, "SELECT count(*) FROM gpkg_metadata") == [(1,)]


# ---------------------------------------------------------------- styles


def test_objects_are_coloured_by_class_where_there_are_several_else_by_score():
    by_score = default_styles({"objects": town(5)})["objects"]
    assert by_score.field == "score"
    assert [step.range for step in by_score.steps] == [(a, b) for a, b, _ in SCORE_STEPS]
    by_class = default_styles({"objects": town(5, classes=("a", "b"))})["objects"]
    assert by_class.field == "class"
    assert [step.value for step in by_class.steps] == ["a", "b", None]
    names = [f"c{i}" for i in range(MAX_CLASSES + 1)]
    assert default_styles({"objects": town(100, classes=names)})["objects"].field == "score"
    assert default_styles({"objects": nothing()})["objects"].field == "score"
    assert by_class.aliases["area_m2"] == "Area (m²)"


def test_regions_are_shaded_by_density_in_steps_that_hold_all():
    values = np.array([0.0, 12.34567, 1234.5, 88, 40, 500, np.nan, 7, 3, 300])
    style = style_regions(["name", "count"], density=values)
    ranges = [step.range for step in style.steps]
    assert len(ranges) == 5
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert ranges[0][0] <= 0 <= 1234.5 <= ranges[-1][1]
    held = [sum(a <= v <= b for a, b in ranges) for v in values if np.isfinite(v)]
    assert min(held) == 1
    assert len({step.symbol.fill for step in style.steps}) == 5
    for flat in ([], [3.0], [3.0, 3.0], [np.nan]):
        assert style_regions(density=flat).field is None
    tiny = style_regions(density=[0.3, 0.1, -2e-9, 1e-12])
    assert tiny.steps[0].range[0] <= -2e-9 < 0.3 <= tiny.steps[-1].range[1]


def test_styles_are_well_formed_in_both_languages(tmp_path):
    odd = (*ODD_CLASSES, "\x0bvertical", "a\nb")
    path = everything(tmp_path, town(classes=odd))
    rows = sql(path, "SELECT f_table_name, styleQML, styleSLD FROM layer_styles")
    assert [row[0] for row in rows] == ["objects", "regions", "coverage"]
    for _, qml, sld in rows:
        ElementTree.fromstring(qml)
        ElementTree.fromstring(sld)
    qml, sld = (ElementTree.fromstring(text) for text in rows[0][1:])
    values = {c.get("value") for c in qml.iter("category")}
    assert set(ODD_CLASSES) < values
    literals = {one.text or "" for one in sld.iter("{http://www.opengis.net/ogc}Literal")}
    assert set(ODD_CLASSES) <= literals
    colours = [s.text for s in sld.iter("{http://www.opengis.net/se}SvgParameter")]
    assert "#ff7f0e" in colours


def test_ten_thousand_classes_make_no_legend_of_ten_thousand_rows(tmp_path):
    source = file_of(
        tmp_path / "s.parquet", town(10_000, classes=[f"c {i}" for i in range(10_000)])
    )
    path = write_objects(tmp_path / "o.gpkg", source)
    (size,) = sql(path, "SELECT length(styleQML) FROM layer_styles")[0]
    assert size < 20_000
    # who wants it can have it
    assert style_objects([f"c {i}" for i in range(10_000)]).to_qml().count("<category ") == 10_001


QGIS = """
import json, os, sys
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
from qgis.core import (
    QgsApplication, QgsMapRendererSequentialJob, QgsMapSettings, QgsSettings, QgsVectorLayer,
    QgsExpressionContextUtils, QgsExpressionContext,
)

application = QgsApplication([], False)
application.initQgis()
# QGIS turns the journal over with each first and last connection to a file; three layers that come
# and go while others are drawn sometimes find it locked
QgsSettings().setValue("qgis/walForSqlite3", False)
path, folder = sys.argv[1:3]
said = {}
layers = {n: QgsVectorLayer(f"{path}|layername={n}", n, "ogr") for n in sys.argv[3:]}
for name, layer in layers.items():
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setOutputSize(QSize(400, 300))
    settings.setDestinationCrs(layer.crs())
    extent = layer.extent()
    extent.grow(5)
    settings.setExtent(extent)
    settings.setBackgroundColor(QColor(0, 0, 0))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    image.save(f"{folder}/{name}.png")
    renderer = layer.renderer()
    kind = renderer.type()
    rows = []
    if kind == "categorizedSymbol":
        rows = [[c.value(), c.symbol().symbolLayer(0).strokeColor().name()]
                for c in renderer.categories()]
    if kind == "graduatedSymbol":
        rows = [[r.lowerValue(), r.upperValue()] for r in renderer.ranges()]
    said[name] = {
        "valid": layer.isValid(), "renderer": kind, "rows": rows, "n": layer.featureCount(),
        "labels": layer.labelsEnabled(), "crs": layer.crs().authid(),
        "field": renderer.classAttribute() if rows else None,
        "titles": {f.name(): layer.attributeDisplayName(i) for i, f in enumerate(layer.fields())},
    }
    said[name]["sld"] = layer.loadSldStyle(f"{folder}/{name}.sld")[1]
    said[name]["sld_renderer"] = layer.renderer().type()
    said[name]["sld_rules"] = (
        len(layer.renderer().rootRule().children())
        if layer.renderer().type() == "RuleRenderer" else 0
    )
print("SAID" + json.dumps(said), flush=True)
# QGIS does not survive its own end with layers about
os._exit(0)
"""


def colours_of(picture):
    from PIL import Image

    with Image.open(picture) as image:
        counts = image.convert("RGB").getcolors(1_000_000)
    return {colour: n for n, colour in counts}


@pytest.mark.skipif(not system_has("qgis"), reason="PyQGIS is not installed (Debian: python3-qgis)")
def test_qgis_opens_it_styled_with_titles(tmp_path):
    objects = town(200, classes=("roof", "tree", 'it\'s "a" car'), holes=True)
    path = everything(tmp_path, objects)
    for name, sld in sql(path, "SELECT f_table_name, styleSLD FROM layer_styles"):
        (tmp_path / f"{name}.sld").write_text(sld, encoding="utf-8")
    layers = ["objects", "regions", "coverage"]
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", QGIS, str(path), str(tmp_path), *layers],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.split("SAID")[1])
    assert all(said[name]["valid"] for name in layers)
    found = said["objects"]
    assert (found["renderer"], found["field"]) == ("categorizedSymbol", "class")
    assert (found["n"], found["crs"]) == (200, f"EPSG:{UTM}")
    assert found["rows"] == [
        ['it\'s "a" car', "#ff7f0e"],
        ["roof", "#eb3caa"],
        ["tree", "#78c828"],
        ["", "#808080"],
    ]
    assert found["titles"]["area_m2"] == "Area (m²)"
    assert found["titles"]["object_id"] == "Number"
    colours = colours_of(tmp_path / "objects.png")
    assert all(colours.get(c, 0) > 20 for c in ((255, 127, 14), (235, 60, 170), (120, 200, 40)))
    regions = said["regions"]
    assert (regions["renderer"], regions["labels"]) == ("graduatedSymbol", True)
    assert regions["titles"]["density_km2"] == "Density (1/km²)"
    assert regions["titles"]["mine"] == "mine"
    # four shades of fill, each with more than a line's pixels
    assert sum(n > 3000 for n in colours_of(tmp_path / "regions.png").values()) >= 4
    assert said["coverage"]["rows"][4] == ["failed", "#d22828"]
    assert colours_of(tmp_path / "coverage.png")[210, 40, 40] > 20
    for name, rules in (("objects", 4), ("regions", 4), ("coverage", 6)):
        assert said[name]["sld"] is True
        assert said[name]["sld_renderer"] == "RuleRenderer"
        assert said[name]["sld_rules"] >= rules
