"""Counts from files and to files: streams, sheets, formulas, grids on the command line."""

import doctest
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import openpyxl
import pandas as pd
import pyogrio
import pytest
import shapely
from painted import blob_scene

import geoseg.objects.cells
import geoseg.objects.count
import geoseg.objects.expected
import geoseg.objects.hierarchy
import geoseg.objects.tally
from geoseg.cli.main import main
from geoseg.errors import ConfigError, OutputError, RegionError
from geoseg.objects import lookup
from geoseg.objects.count import RULES, RegionCounter, count
from geoseg.outputs import counts as counts_module
from geoseg.outputs.counts import COUNTS_SUFFIXES, meaning_of, summary_of, write_counts
from geoseg.outputs.polygons import open_polygons
from geoseg.outputs.regions import read_imaged, read_regions
from geoseg.outputs.tables import (
    ObjectsWriter,
    empty_objects,
    objects_to_arrow,
    write_geopackage,
    write_table,
)

UTM = 32645
DOCS = Path(__file__).parents[1] / "docs"
OWN = ["--detector", "stubs:make", "--tile-size", "128", "--overlap", "32", "-j", "1"]
RNG = np.random.default_rng(1)


def houses(n=500):
    """A town as a run writes it, around (330000, 3070000)."""
    at = RNG.uniform(0, 1000, (n, 2)) + np.array([330000, 3070000])
    size = RNG.uniform(3, 15, n)
    shapes = shapely.box(*at.T, at[:, 0] + size, at[:, 1] + size)
    table = empty_objects(UTM)
    values = {
        "object_id": np.arange(n) + 1,
        "uid": [f"u{i}" for i in range(n)],
        "class": np.where(RNG.random(n) < 0.3, "shed", "house"),
        "score": RNG.uniform(0.5, 1, n),
        "area_m2": (size**2).round(3),
        "perimeter_m": 4 * size,
        "n_parts": np.ones(n, int),
        "touches_edge": np.zeros(n, bool),
        "image": ["a.tif"] * n,
    }
    return gpd.GeoDataFrame(values, geometry=shapes, crs=UTM)[table.columns]


def quarters(**columns):
    boxes = [
        shapely.box(330000 + x, 3070000 + y, 330500 + x, 3070500 + y)
        for x in (0, 500)
        for y in (0, 500)
    ]
    columns.setdefault("name", ["sw", "nw", "se", "ne"])
    return gpd.GeoDataFrame(columns, geometry=boxes, crs=UTM)


def objects_file(folder, table):
    path = folder / "objects.parquet"
    with ObjectsWriter(path, table.crs) as writer:
        writer.write(objects_to_arrow(table))
    return path


def cli(capsys, *args):
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


# ---------------------------------------------------------------- from files


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("suffix", ["own", ".gpkg", ".fgb", ".parquet", ".geojson"])
def test_a_stream_counts_what_the_table_counts(tmp_path, monkeypatch, suffix, rule):
    monkeypatch.setattr(lookup, "RASTER_FROM", 0)
    table = houses()
    path = objects_file(tmp_path, table) if suffix == "own" else tmp_path / f"objects{suffix}"
    if suffix != "own":
        write_table(path, table)
    found = open_polygons(path)
    assert (found.rows, found.table is None) == (500, suffix != ".geojson")
    counter = RegionCounter(quarters(), found.crs, rule=rule, around=found.bounds)
    found.count_into(counter)
    got, wanted = counter.result(), count(table, quarters(), rule=rule)
    for name in wanted.columns.drop("geometry"):
        if suffix == ".geojson" and rule == "area":
            # of degrees, with seven decimals
            tolerance = {"rtol": 1e-3}
        else:
            tolerance = {"rtol": 1e-4 if suffix == ".geojson" else 1e-9}
        if name == "name":
            continue
        np.testing.assert_allclose(got[name], wanted[name], err_msg=name, **tolerance)
    assert got.attrs["by_class"].keys() == {"house", "shed"}
    totals = [sums["total"] for sums in got.attrs["by_class"].values()]
    assert sum(totals) == got.attrs["total"] == 500


@pytest.mark.parametrize("suffix", ["own", ".gpkg", ".parquet"])
def test_a_file_without_objects_counts_nothing(tmp_path, suffix):
    table = houses(0)
    path = objects_file(tmp_path, table) if suffix == "own" else tmp_path / f"objects{suffix}"
    if suffix != "own":
        write_table(path, table)
    found = open_polygons(path)
    counter = RegionCounter(quarters(), found.crs, classes=["house", "shed"], around=found.bounds)
    found.count_into(counter)
    result = counter.result()
    assert result[["count", "count_shed"]].to_numpy().sum() == result.attrs["outside"] == 0
    assert result["covered_share"].tolist() == [0] * 4


def test_bounds_in_single_precision_are_not_trusted(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = objects_file(tmp_path, houses())
    file = pq.read_table(path)
    kind = pa.struct([(n, pa.float32()) for n in ("xmin", "ymin", "xmax", "ymax")])
    place = file.column_names.index("bbox")
    about = pq.read_metadata(path).metadata
    rounded = file.set_column(place, "bbox", file["bbox"].cast(kind))
    pq.write_table(rounded.replace_schema_metadata({b"geo": about[b"geo"]}), path)
    assert open_polygons(path).box is None
    counter = RegionCounter(quarters(), UTM)
    open_polygons(path).count_into(counter)
    assert counter.objects == 500


def test_a_file_that_gives_fewer_objects_than_it_says_is_told(tmp_path):
    from dataclasses import replace

    found = replace(open_polygons(objects_file(tmp_path, houses())), rows=501)
    with pytest.raises(RegionError, match="says that it has 501 objects but gave 500"):
        found.count_into(RegionCounter(quarters(), UTM))


def test_objects_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(RegionError, match=r"objects file .* does not exist"):
        open_polygons(tmp_path / "no.gpkg")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(RegionError, match="cannot be read as a vector layer"):
        open_polygons(tmp_path / "bad.parquet")
    path = write_table(tmp_path / "o.gpkg", houses(3))
    with pytest.raises(RegionError, match="no layer 'roofs'"):
        open_polygons(path, layer="roofs")


def test_a_virtual_file_is_refused_whatever_its_suffix(tmp_path):
    write_table(tmp_path / "secret.gpkg", houses(3))
    trap = tmp_path / "trap.gpkg"
    trap.write_text(
        '<OGRVRTDataSource><OGRVRTLayer name="objects"><SrcDataSource relativeToVRT="1">secret.gpkg'
        "</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    )
    with pytest.raises(RegionError, match="is a virtual file"):
        open_polygons(trap)


# ---------------------------------------------------------------- regions as people have them


def test_regions_without_a_crs_need_to_be_told_theirs(tmp_path, capsys):
    bare = tmp_path / "bare.shp"
    quarters().set_crs(None, allow_override=True).to_file(bare)
    with pytest.raises(RegionError, match=r"has no CRS.*--regions-crs EPSG:CODE"):
        read_regions(bare)
    assert read_regions(bare, crs="EPSG:32645").crs == UTM
    with pytest.raises(ConfigError, match="--regions-crs 'nope' is no CRS"):
        read_regions(bare, crs="nope")
    known = tmp_path / "known.gpkg"
    quarters().to_file(known)
    assert len(read_regions(known, crs="EPSG:32645")) == 4
    with pytest.raises(RegionError, match="says that its CRS is WGS 84 / UTM zone 45N"):
        read_regions(known, crs="EPSG:4326")
    objects = objects_file(tmp_path, houses())
    code, _, err = cli(capsys, "count", objects, bare)
    assert (code, "--regions-crs EPSG:CODE" in err) == (2, True)
    code, out, _ = cli(capsys, "count", objects, bare, "--regions-crs", "EPSG:32645", "--json")
    told = json.loads(out)
    assert (code, sum(r["count"] for r in told["regions"]) + told["outside"]) == (0, 500)


def test_odd_regions_are_counted_and_told(tmp_path, capsys):
    bow_tie = shapely.Polygon([(0, 0), (500, 500), (500, 0), (0, 500)])
    bow_tie = shapely.transform(bow_tie, lambda xy: xy + np.array([330000, 3070000]))
    west, east = quarters().geometry[0], quarters().geometry[2]
    odd = gpd.GeoDataFrame(
        {"name": ["a", "a", "b", "both"]},
        geometry=[
            shapely.MultiPolygon([west, east]),
            shapely.MultiPolygon(),
            bow_tie,
            shapely.box(330400, 3070000, 330600, 3070500),
        ],
        crs=UTM,
    )
    path = tmp_path / "odd.gpkg"
    odd.to_file(path)
    code, out, err = cli(capsys, "count", objects_file(tmp_path, houses()), path)
    assert code == 0
    # of 500,000 m2 the bow tie has 125,000 and the strip 100,000 again, 40,000 of them both
    assert err.splitlines() == [
        "3 pairs of regions overlap: 37.00% of their ground lies in more than one",
        "2 regions were invalid and have been repaired",
        "1 regions have no area, so they have no objects of their own",
        "1 regions have a name that another has already",
    ]
    assert out.splitlines()[-1].split()[:2] == ["total", "500"]


def test_thousands_of_regions_and_a_region_as_large_as_the_earth(tmp_path):
    x, y = (a.ravel() for a in np.meshgrid(np.arange(60) * 20.0, np.arange(60) * 20.0))
    cells = shapely.box(330000 + x, 3070000 + y, 330020 + x, 3070020 + y)
    table = houses(3000)
    many = count(table, gpd.GeoDataFrame(geometry=cells, crs=UTM))
    assert many["count"].sum() + many.attrs["outside"] == 3000
    assert many.attrs["overlapping"] == []
    world = gpd.GeoDataFrame(geometry=[shapely.box(-180, -90, 180, 90)], crs=4326)
    path = objects_file(tmp_path, table)
    found = open_polygons(path)
    counter = RegionCounter(world, UTM, around=found.bounds)
    found.count_into(counter)
    assert counter.result()["count"].tolist() == [3000]


# ---------------------------------------------------------------- to files

EVIL = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "plain",
    "  =x",
    "\t=y",
    'Ünïcode, "quoted"',
]


def evil():
    boxes = [shapely.box(x, 0, x + 10, 10) for x in range(0, 80, 10)]
    table = gpd.GeoDataFrame(
        {
            "name": EVIL,
            "=field": [1.5, None, -3, 4, 5, 6, 7, 8],
            "when": pd.Timestamp("2026-01-02"),
        },
        geometry=boxes,
        crs=UTM,
    )
    at = [shapely.box(x, 2, x + 2, 4) for x in (1, 1.5, 12, 100)]
    kinds = ["=kind", "roof", "roof", "roof"]
    return count(gpd.GeoDataFrame({"class": kinds}, geometry=at, crs=UTM), table)


def test_no_formula_runs_in_csv(tmp_path):
    path = write_counts(tmp_path / "counts.csv", evil())
    got = pd.read_csv(path)
    assert got["name"].tolist() == [f"'{n}" if n.strip(" ")[0] in "=+-@\t" else n for n in EVIL]
    assert "'=field" in got.columns
    # a negative number is a number
    assert got["'=field"][2] == -3
    assert got["count"].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    for line in path.read_text().splitlines():
        assert line[0] not in "=+@"


def test_no_formula_runs_in_a_sheet_and_all_is_explained(tmp_path):
    counted = evil()
    path = write_counts(tmp_path / "counts.xlsx", counted)
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["counts", "about"]
    sheet = book["counts"]
    head = [cell.value for cell in sheet[1]]
    assert head[:3] == ["name", "=field", "when"]
    assert {"count [objects]", "density_km2 [objects/km2]", "mean_area_m2 [m2]"} <= set(head)
    assert "count_=kind [objects]" in head
    assert [row[0].value for row in sheet.iter_rows(min_row=2)] == EVIL
    cells = [cell for page in book for row in page.iter_rows() for cell in row]
    assert {cell.data_type for cell in cells} <= {"inlineStr", "s", "n", "d"}
    # still text after someone has edited it
    assert sheet["A2"].quotePrefix
    assert not sheet["A6"].quotePrefix
    assert [c.value for c in sheet["B"]][1:4] == [1.5, None, -3]
    assert sheet["C2"].value.year == 2026
    column = head.index("count [objects]")
    assert [row[column].value for row in sheet.iter_rows(min_row=2)] == counted["count"].tolist()
    assert sheet.freeze_panes == "A2"
    about = [[c for c in row if c is not None] for row in book["about"].iter_rows(values_only=True)]
    assert ["objects in all", 4] in about
    assert ["objects in regions", 3] in about
    assert ["roof: outside", 1] in about
    meanings = {row[0]: row[1:] for row in about if len(row) > 1}
    for name in counted.columns.drop("geometry"):
        assert name in meanings
    assert meanings["name"][-1] == "a field of the regions as given"
    # pandas reads it as it is
    assert pd.read_excel(path)["count [objects]"].tolist() == counted["count"].tolist()


def test_sheets_hold_what_xml_cannot_and_what_is_not_finite(tmp_path):
    regions = quarters(name=["a\x00b", "x" * 40_000, None, "d"], note=[np.nan, np.inf, True, 1])
    path = write_counts(tmp_path / "c.xlsx", count(houses(3), regions))
    rows = list(openpyxl.load_workbook(path)["counts"].iter_rows(min_row=2, values_only=True))
    assert rows[0][0] == "a\ufffdb"
    assert len(rows[1][0]) == 32767
    assert rows[2][0] is None
    assert [row[1] for row in rows][:2] == [None, None]


def test_every_column_has_a_meaning():
    from geoseg.objects.count import Calibration

    one = Calibration((0.5,), (0.9,), (50.0,), (0.1,))
    regions = quarters(id=[1, 2, 3, 4], up=[None, 1, 1, 1])
    counted = count(houses(), regions, parent="up", calibration=one, imaged=regions)
    added = [c for c in counted.columns if c not in regions.columns]
    assert len(added) == 17
    for name in added:
        assert meaning_of(name, list(counted.attrs["by_class"]))[1], name
    assert meaning_of("count_of_trees", ["house"]) == ("", "")


@pytest.mark.parametrize("suffix", COUNTS_SUFFIXES)
def test_counts_go_to_every_format_and_come_back(tmp_path, capsys, suffix):
    objects, regions, output = objects_file(tmp_path, houses()), tmp_path / "r.gpkg", None
    quarters().to_file(regions)
    output = tmp_path / f"counts{suffix}"
    code, out, _ = cli(capsys, "count", objects, regions, "-o", output)
    assert code == 0
    readers = {".csv": pd.read_csv, ".xlsx": pd.read_excel, ".parquet": gpd.read_parquet}
    read = readers.get(suffix, pyogrio.read_dataframe)
    table = read(output, **({"layer": "regions"} if suffix == ".gpkg" else {}))
    column = "count [objects]" if suffix == ".xlsx" else "count"
    printed = {line.split()[0]: int(line.split()[1]) for line in out.splitlines()[1:]}
    assert dict(zip(table["name"], table[column], strict=True)).items() <= printed.items()
    assert table[column].sum() + printed["outside"] == printed["total"] == 500
    assert cli(capsys, "count", objects, regions, "-o", output)[0] == 2
    before = output.stat().st_mtime_ns
    assert cli(capsys, "count", objects, regions, "-o", output, "--overwrite")[0] == 0
    assert output.stat().st_mtime_ns > before
    assert not list(tmp_path.glob(".counts*"))


def test_a_sheet_that_cannot_be_written_is_told_before(tmp_path, monkeypatch):
    counted = count(houses(5), quarters())
    monkeypatch.setattr(counts_module, "_MOST_ROWS", 3)
    with pytest.raises(OutputError, match="4 regions are more than a sheet has rows"):
        write_counts(tmp_path / "c.xlsx", counted)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(counts_module, "find_spec", lambda _: None)
    with pytest.raises(OutputError, match="pip install openpyxl"):
        write_counts(tmp_path / "c.xlsx", counted)


def test_the_summary_adds_up_per_class_and_level():
    regions = quarters(id=[1, 2, 3, 4], up=[None, 1, 1, 3])
    lines = dict(summary_of(count(houses(), regions, parent="up")))
    assert lines["objects in regions"] + lines["objects outside"] == 500
    assert lines["house: in all"] + lines["shed: in all"] == 500
    for level in (1, 2, 3):
        text = lines[f"level {level}"]
        numbers = [float(word) for word in text.replace("=", "").split() if word.isdigit()]
        counted, _, above, outside, total = numbers
        assert counted + above + outside == total == 500


# ---------------------------------------------------------------- the command line


def test_count_in_a_grid_over_what_was_imaged(tmp_path, capsys):
    table = houses()
    objects = objects_file(tmp_path, table)
    code, out, _ = cli(capsys, "count", objects, "--grid", "hexagon:200", "--json")
    told = json.loads(out)
    assert code == 0
    assert sum(r["count"] for r in told["regions"]) == 500
    assert told["outside"] == 0
    assert told["regions"][0]["imaged_share"] is None
    # half of the town was imaged, and the file of objects says so
    seen = [quarters().geometry[0], quarters().geometry[1]]
    coverage = gpd.GeoDataFrame(
        {"status": ["done", "empty", "failed"]}, geometry=[*seen, quarters().geometry[2]], crs=UTM
    )
    gpkg = tmp_path / "o.gpkg"
    write_geopackage(gpkg, {"objects": table, "coverage": coverage})
    assert read_imaged(gpkg)["status"].tolist() == ["done", "empty"]
    code, out, _ = cli(capsys, "count", gpkg, "--grid", "square:250", "--json")
    told = json.loads(out)
    assert all(r["imaged_share"] > 0 for r in told["regions"])
    assert any(r["imaged_share"] < 1 for r in told["regions"])
    assert told["outside"] > 100
    assert sum(r["count"] for r in told["regions"]) + told["outside"] == 500
    # many cells that are in a file anyway are not for a terminal
    code, out, _ = cli(capsys, "count", gpkg, "--grid", "square:50", "-o", tmp_path / "c.csv")
    assert code == 0
    assert len(out.splitlines()) == 24
    assert len(pd.read_csv(tmp_path / "c.csv")) > 100
    assert f"... {len(pd.read_csv(tmp_path / 'c.csv')) - 20} more in the output" in out
    # the same area from a file of its own
    coverage[:2].to_file(tmp_path / "seen.geojson")
    again = cli(
        capsys,
        "count",
        gpkg,
        "--grid",
        "square:250",
        "--imaged",
        tmp_path / "seen.geojson",
        "--json",
    )
    assert [r["region"] for r in json.loads(again[1])["regions"]] == [
        r["region"] for r in told["regions"]
    ]


def test_count_takes_parents_and_a_calibration(tmp_path, capsys):
    regions = tmp_path / "r.gpkg"
    quarters(id=[1, 2, 3, 4], up=[None, 1, 1, 3]).to_file(regions)
    card = {"scores": [0.5, 1.0], "chance": [0.5, 1.0], "sizes_m2": [10], "missed": [0.1]}
    (tmp_path / "card.json").write_text(json.dumps({"quality": {"calibration": card}}))
    objects = objects_file(tmp_path, houses())
    args = ["count", objects, regions, "--parent", "up", "--id", "id"]
    code, out, _ = cli(capsys, *args, "--calibration", tmp_path / "card.json")
    assert code == 0
    assert "expected_high" in out.splitlines()[0]
    assert "level 3: " in out
    assert out.rstrip().endswith("= 500")
    code, _, err = cli(capsys, *args[:-1], "code")
    assert (code, "no 'code'" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--grid", "hexagon"], "expected hexagon:METRES"),
        (["r.gpkg", "--grid", "hexagon:500"], "two answers to one question"),
        ([], "Missing argument 'REGIONS'"),
    ],
)
def test_what_to_count_in_must_be_clear(tmp_path, capsys, args, text):
    code, _, err = cli(capsys, "count", objects_file(tmp_path, houses(3)), *args)
    assert code == 2
    assert text in err


@pytest.fixture
def painted(make_raster):
    return make_raster("painted.tif", blob_scene(2, size=300, count=40, large=0).pixels)


def test_detect_counts_in_a_grid_into_a_sheet(painted, tmp_path, capsys):
    output, sheet = tmp_path / "o.parquet", tmp_path / "c.xlsx"
    args = ["detect", painted, "-o", output, *OWN, "--grid", "hexagon:10", "--counts", sheet]
    code, out, _ = cli(capsys, *args, "--json")
    assert code == 0
    told = json.loads(out)
    counts = [r["count"] for r in told["regions"]]
    assert sum(counts) + told["outside"] == told["objects"] > 20
    assert sum(v["total"] for v in told["by_class"].values()) == told["objects"]
    assert pd.read_excel(sheet)["count [objects]"].tolist() == counts
    assert gpd.read_parquet(tmp_path / "o_regions.parquet")["count"].tolist() == counts
    assert all(r["imaged_share"] > 0 for r in told["regions"])
    # the same command finds itself finished; another grid asks for no new join
    again = json.loads(cli(capsys, *args, "--json")[1])
    assert again["already_done"]
    args[args.index("hexagon:10")] = "square:15"
    other = json.loads(cli(capsys, *args, "--rule", "area", "--json")[1])
    assert other["objects"] == told["objects"]
    assert sum(r["count"] for r in other["regions"]) + other["outside"] == pytest.approx(
        told["objects"]
    )
    assert pd.read_excel(sheet)["region"].str.contains("-s15-").all()
    table = cli(capsys, *args, "--rule", "area")[1].splitlines()
    assert table[0].split()[:2] == ["region", "objects"]
    assert any(line.startswith("outside") for line in table)
    # hundreds of cells are not for a terminal
    args[args.index("square:15")] = "square:2"
    lines = cli(capsys, *args)[1].splitlines()
    assert len(lines) < 35
    assert any("more in the output" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--grid", "circle:5"], "grid of 'circle'; expected hexagon or square"),
        (["--counts", "c.csv"], "--counts needs regions"),
        (["--grid", "square:9", "--regions", "r.gpkg"], "two answers to one question"),
        (["--grid", "square:9", "--parent", "up"], "--parent is about --regions"),
        (["--grid", "square:9", "--counts", "c.doc"], "unknown suffix '.doc'"),
    ],
)
def test_detect_refuses_counts_that_could_not_be_made(
    painted, tmp_path, capsys, monkeypatch, more, text
):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(capsys, "detect", painted, "-o", tmp_path / "o.gpkg", *OWN, *more)
    assert code == 2
    assert text in err
    assert not (tmp_path / "o.geoseg-run").exists()


def test_detect_refuses_parents_that_are_no_tree_before_it_runs(painted, tmp_path, capsys):
    regions = tmp_path / "r.gpkg"
    quarters(id=[1, 2, 3, 4], up=[2, 1, None, None]).to_file(regions)
    args = ["detect", painted, "-o", tmp_path / "o.gpkg", *OWN, "--regions", regions]
    code, _, err = cli(capsys, *args, "--parent", "up")
    assert code == 2
    assert "their own ancestors" in err
    assert not (tmp_path / "o.geoseg-run").exists()


# ---------------------------------------------------------------- what is written about it


@pytest.mark.parametrize(
    "module",
    [
        geoseg.objects.cells,
        geoseg.objects.count,
        geoseg.objects.expected,
        geoseg.objects.hierarchy,
        geoseg.objects.tally,
    ],
    ids=lambda m: m.__name__,
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_examples_of_the_counting_page_run():
    result = doctest.testfile(str(DOCS / "counting.md"), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0
