"""GeoParquet in Hilbert order, COCO JSON, and results in several files."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from layered import ODD_CLASSES, UTM, file_of, nothing, objects_at, town, wards
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from geoseg.errors import OutputError
from geoseg.objects.count import count
from geoseg.outputs import coco, objects_file, sorting, split
from geoseg.outputs.coco import run_lengths
from geoseg.outputs.sorting import hilbert_keys, iter_sorted
from geoseg.outputs.split import check_split, safe_name, split_folder, write_split
from geoseg.outputs.tables import describe_objects, iter_objects, write_objects

NORTH_UP = Affine(0.5, 0, 499_990, 0, -0.5, 3_000_320)


@pytest.fixture
def small(monkeypatch):
    """Row groups and buckets so small that a few hundred objects fill many."""
    monkeypatch.setattr(objects_file, "GROUP_ROWS", 50)
    monkeypatch.setattr(sorting, "GROUP_ROWS", 50)
    monkeypatch.setattr(sorting, "BUCKET_ROWS", 120)


def scattered(n=1000):
    rng = np.random.default_rng(2)
    x, y = rng.uniform(500_000, 540_000, n), rng.uniform(3_000_000, 3_020_000, n)
    return objects_at(x, y)


# ---------------------------------------------------------------- GeoParquet


def test_geoparquet_is_in_hilbert_order_with_bounds_by_which_groups_are_skipped(tmp_path, small):
    table = scattered()
    source = file_of(tmp_path / "s.parquet", table)
    path = write_objects(tmp_path / "o.parquet", source)
    assert {p.name for p in tmp_path.iterdir()} == {"s.parquet", "o.parquet"}
    file = pq.ParquetFile(path)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"]["geometry"]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert column["encoding"] == "WKB"
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS(UTM)
    assert column["bbox"] == table.total_bounds.tolist()
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    assert [g.num_rows for g in groups] == [50] * 20
    assert {g.column(i).compression for g in groups for i in range(g.num_columns)} == {"ZSTD"}
    # each group covers little: a window of a hundredth meets few of them
    names = [groups[0].column(i).path_in_schema for i in range(groups[0].num_columns)]
    boxes = np.array(
        [
            [
                g.column(names.index("bbox.xmin")).statistics.min,
                g.column(names.index("bbox.ymin")).statistics.min,
                g.column(names.index("bbox.xmax")).statistics.max,
                g.column(names.index("bbox.ymax")).statistics.max,
            ]
            for g in groups
        ]
    )
    whole = (table.total_bounds[2:] - table.total_bounds[:2]).prod()
    share = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / whole
    assert share.mean() < 0.1
    window = (510_000, 3_005_000, 514_000, 3_007_000)
    met = shapely.intersects(shapely.box(*boxes.T), shapely.box(*window)).sum()
    assert 1 <= met <= 5
    few = gpd.read_parquet(path, bbox=window)
    want = table.cx[window[0] : window[2], window[1] : window[3]]
    assert sorted(few["object_id"]) == want["object_id"].tolist()
    back = gpd.read_parquet(path).sort_values("object_id", ignore_index=True)
    pd.testing.assert_frame_equal(pd.DataFrame(back), pd.DataFrame(table))


def test_the_order_does_not_depend_on_the_buckets(tmp_path, monkeypatch):
    source = file_of(tmp_path / "s.parquet", scattered(700))
    whole = write_objects(tmp_path / "1.parquet", source).read_bytes()
    monkeypatch.setattr(sorting, "BUCKET_ROWS", 33)
    assert write_objects(tmp_path / "2.parquet", source).read_bytes() == whole
    assert len(hilbert_keys(source)) == 700


def test_sorting_is_stable_and_complete(tmp_path, small):
    source = file_of(tmp_path / "s.parquet", town(500))
    keys = np.arange(500) % 7
    got = pa.concat_tables(iter_sorted(source, keys, tmp_path))["object_id"].to_numpy()
    want = np.argsort(keys, kind="stable") + 1
    assert got.tolist() == want.tolist()
    assert only(tmp_path) == source
    none = file_of(tmp_path / "n.parquet", nothing())
    assert list(iter_sorted(none, np.zeros(0, np.int64), tmp_path)) == []


def only(folder):
    (path,) = folder.iterdir()
    return path


# ---------------------------------------------------------------- COCO


def image(name="a.tif", transform=NORTH_UP, crs=UTM, width=1400, height=700):
    """What write_coco reads of a RasterInfo."""
    return SimpleNamespace(
        path=f"/data/{name}",
        transform=transform,
        crs_wkt=pyproj.CRS(crs).to_wkt(),
        width=width,
        height=height,
    )


def load(path):
    """Open with pycocotools, and check what every reader relies on."""
    found = COCO(str(path))
    for a in found.anns.values():
        assert a["image_id"] in found.imgs
        assert a["category_id"] in found.cats
        picture = found.imgs[a["image_id"]]
        x, y, w, h = a["bbox"]
        assert min(x, y) >= 0
        assert x + w <= picture["width"] + 0.01
        assert y + h <= picture["height"] + 0.01
    return found


ROTATED = Affine.translation(499_990, 3_000_320) @ Affine.rotation(-30) @ Affine.scale(0.5, -0.5)


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (NORTH_UP, UTM),
        (ROTATED, UTM),
        (Affine(0.5, 0, 499_990, 0, 0.5, 2_999_990), UTM),
        (Affine(0.5, 0, 9_684_000 - 1, 0, -0.5, 3_138_000), 3857),
    ],
)
def test_coco_has_the_outlines_in_px_of_the_image(tmp_path, transform, crs):
    table = town(60)
    if crs == 3857:
        left, _, _, top = table.to_crs(crs).total_bounds
        transform = Affine(0.5, 0, left - 5, 0, -0.5, top + 5)
    info = image(transform=transform, crs=crs, width=3000, height=3000)
    if transform is ROTATED:
        shift = Affine.translation(-200, -200)
        info.transform = ROTATED @ shift
    path = write_objects(
        tmp_path / "o.coco.json", file_of(tmp_path / "s.parquet", table), images=[info],
        classes=["building", "never seen"], metadata={"model": "m", "licence": "CC BY"},
    )  # fmt: skip
    found = load(path)
    assert [c["name"] for c in found.cats.values()] == ["building", "never seen"]
    assert sorted(found.anns) == table["object_id"].tolist()
    assert found.dataset["info"]["model"] == "m"
    assert found.dataset["licenses"][0]["name"] == "CC BY"
    (picture,) = found.imgs.values()
    assert picture["file_name"] == "a.tif"
    assert picture["geo"]["crs"] == f"EPSG:{crs}"
    assert Affine(*picture["geo"]["transform"]) == info.transform
    # back on the ground, apart from the code under test
    to_ground = pyproj.Transformer.from_crs(crs, UTM, always_xy=True).transform
    for row, polygon in zip(table["object_id"], table.geometry, strict=True):
        a = found.anns[row]
        assert a["score"] == table["score"][row - 1]
        parts = shapely.get_parts(polygon)
        holed = any(p.interiors for p in parts)
        assert isinstance(a["segmentation"], dict) == holed
        px_area = polygon.area / 0.25 * (1 if crs == UTM else a["area"] / (polygon.area / 0.25))
        assert a["area"] == pytest.approx(px_area, rel=1e-3)
        drawn = coco_mask.area(found.annToRLE(a))
        assert drawn == pytest.approx(a["area"], rel=0.3)
        if holed:
            continue
        rings = [np.reshape(ring, (-1, 2)) for ring in a["segmentation"]]
        assert len(rings) == len(parts)
        pieces = []
        for ring in rings:
            x, y = picture["geo"]["transform"][:3], picture["geo"]["transform"][3:]
            ground = [
                to_ground(c * x[0] + r * x[1] + x[2], c * y[0] + r * y[1] + y[2]) for c, r in ring
            ]
            pieces.append(shapely.Polygon(ground))
        assert shapely.hausdorff_distance(shapely.union_all(pieces), polygon) < 0.02


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(8)
    for _ in range(200):
        h, w = rng.integers(1, 60, 2)
        center = rng.uniform(-5, 65, 2)
        shape = shapely.Point(center).buffer(rng.uniform(0.3, 30))
        inner = shape.length / 7 * rng.uniform(0, 0.9)
        shape = shapely.difference(shape, shapely.Point(center).buffer(inner))
        got = run_lengths(shape, int(h), int(w))
        rows, cols = np.mgrid[:h, :w] + 0.5
        inside = shapely.contains_xy(shape, cols.ravel(), rows.ravel()).reshape(h, w)
        want = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
        assert got["size"] == want["size"]
        decoded = coco_mask.decode(got)
        # centres on the outline itself may fall to either side
        assert np.abs(decoded.astype(int) - inside).sum() <= 0.02 * inside.sum() + 1
        again = coco_mask.encode(np.asfortranarray(decoded))
        assert got["counts"] == again["counts"].decode()


def test_run_lengths_draw_only_the_surroundings():
    shape = shapely.box(20_000, 30_000, 20_010, 30_010)
    got = run_lengths(shape, 60_000, 60_000)
    assert coco_mask.area(got) == 100
    assert coco_mask.toBbox(got).tolist() == [20_000, 30_000, 10, 10]


def test_holes_in_images_too_large_for_run_lengths_become_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "_RLE_LIMIT", 1000)
    table = town(30)
    path = write_objects(
        tmp_path / "o.coco.json", file_of(tmp_path / "s.parquet", table), images=[image()]
    )
    found = load(path)
    for a, polygon in zip(found.anns.values(), table.geometry, strict=True):
        pieces = [shapely.Polygon(np.reshape(r, (-1, 2))) for r in a["segmentation"]]
        assert sum(p.area for p in pieces) == pytest.approx(polygon.area / 0.25, rel=1e-3)
        assert shapely.union_all(pieces).area == pytest.approx(polygon.area / 0.25, rel=1e-3)


def test_a_hole_in_what_is_smaller_than_a_px_leaves_an_outline(tmp_path):
    ring = shapely.difference(
        shapely.box(500_000.02, 3e6 + 0.02, 500_000.2, 3e6 + 0.2),
        shapely.box(500_000.06, 3e6 + 0.06, 500_000.1, 3e6 + 0.1),
    )
    table = town(1).set_geometry(gpd.GeoSeries([ring], crs=UTM))
    source = file_of(tmp_path / "s.parquet", table)
    (a,) = load(write_objects(tmp_path / "o.coco.json", source, images=[image()])).anns.values()
    assert len(a["segmentation"]) >= 2
    assert run_lengths(ring, 4, 4) == {"size": [4, 4], "counts": "`0"}


def test_objects_beyond_the_image_are_cut_and_images_of_one_name_told_apart(tmp_path):
    table = town(40)
    left = image(width=620, height=700)
    right = image(transform=NORTH_UP @ Affine.translation(620, 0), width=780)
    source = file_of(tmp_path / "s.parquet", table)
    found = load(write_objects(tmp_path / "o.coco.json", source, images=[left, right]))
    middle = table.geometry.bounds[["minx", "maxx"]].mean(axis=1)
    want = np.where(middle <= 499_990 + 310, 1, 2)
    assert [a["image_id"] for a in found.anns.values()] == want.tolist()
    with pytest.raises(OutputError, match=r"found in a\.tif, but .* for b\.tif"):
        write_objects(tmp_path / "p.coco.json", source, images=[image("b.tif")])
    with pytest.raises(OutputError, match="for no image"):
        write_objects(tmp_path / "p.coco.json", source)
    assert not (tmp_path / "p.coco.json").exists()


@pytest.mark.parametrize("classes", [(), ODD_CLASSES, [f"c{i}" for i in range(10_000)]])
def test_coco_of_nothing_and_of_odd_classes(tmp_path, classes):
    table = town(max(len(classes), 1), classes=classes or ("x",)) if classes else nothing()
    if len(table) > 100:
        info = image(
            width=5000, height=40_000, transform=Affine(0.5, 0, 499_990, 0, -0.5, 3_016_000)
        )
    else:
        info = image()
    path = write_objects(
        tmp_path / "o.coco.json", file_of(tmp_path / "s.parquet", table), images=[info]
    )
    found = load(path)
    assert len(found.anns) == len(table)
    assert {c["name"] for c in found.cats.values()} == set(classes)
    assert len(found.imgs) == 1


# ---------------------------------------------------------------- several files


def read(path):
    if path.name.endswith(".coco.json"):
        return {a["object_id"] for a in json.loads(path.read_text())["annotations"]}
    if path.suffix == ".parquet":
        return gpd.read_parquet(path)
    return gpd.read_file(path, layer="objects" if path.suffix == ".gpkg" else 0)


def index_of(path):
    if path.suffix == ".gpkg":
        return gpd.read_file(path, layer="files")
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".fgb", ".geojson"])
def test_one_file_per_region_holds_what_is_counted_there(tmp_path, small, suffix):
    table = town(400)
    source = file_of(tmp_path / "s.parquet", table)
    regions = wards(5)[["ward", "geometry"]]
    regions.attrs["region_field"] = "ward"
    path = write_split(tmp_path / f"town{suffix}", source, "region", regions=regions)
    index = index_of(path).sort_values("region", ignore_index=True)
    counted = count(table, regions)
    assert counted.attrs["outside"] == 0
    assert counted["count"].tolist()[4] == 0
    assert index["objects"].tolist() == counted["count"].tolist()
    assert index["name"].tolist() == regions["ward"].tolist()
    # no file where nothing is
    assert pd.isna(index["file"][4])
    seen = []
    for file, n, size in zip(index["file"], index["objects"], index["bytes"], strict=True):
        if n:
            part = read(tmp_path / file)
            assert len(part) == n
            assert (tmp_path / file).stat().st_size == size
            assert Path(file).parts == (f"town_{suffix[1:]}", Path(file).name)
            seen += part["object_id"].tolist()
    assert sorted(seen) == table["object_id"].tolist()
    folder = tmp_path / f"town_{suffix[1:]}"
    assert len(list(folder.iterdir())) == 5
    with (folder / "index.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["objects"]) for row in rows] == index["objects"].tolist()
    assert {p.name for p in tmp_path.iterdir()} == {"s.parquet", path.name, folder.name}


def test_what_lies_in_no_region_is_outside_and_in_two_with_the_first(tmp_path, small):
    table = town(300)
    regions = wards(3)
    x = shapely.bounds(regions.geometry.to_numpy())[:, 0]
    regions["geometry"] = shapely.box(x, 3_000_100, x + 250, 3_001_000)
    for crs in (UTM, 4326, 3857):
        folder = tmp_path / str(crs)
        folder.mkdir()
        there = regions.to_crs(crs)
        there.attrs = regions.attrs
        source = file_of(folder / "s.parquet", table)
        index = index_of(write_split(folder / "t.gpkg", source, "region", regions=there))
        counted = count(table, there)
        assert index["region"].tolist() == [0, 1, 2, 3]
        assert index["name"][0] == "outside"
        assert index["objects"].tolist() == [counted.attrs["outside"], *counted["count"]]
        assert counted.attrs["outside"] > 0


def test_cells_of_the_grid_are_cut_until_they_are_small(tmp_path, small):
    table = scattered(900)
    source = file_of(tmp_path / "s.parquet", table)
    path = write_split(tmp_path / "t.fgb", source, "grid", rows=60)
    index = index_of(path)
    assert index["objects"].sum() == 900
    assert index["objects"].max() <= 60
    assert 900 / 60 <= len(index) < 100
    ids = []
    for file, cell in zip(index["file"], index.geometry, strict=True):
        part = read(tmp_path / file)
        ids += part["object_id"].tolist()
        b = part.geometry.bounds
        middle = shapely.points((b.minx + b.maxx) / 2, (b.miny + b.maxy) / 2)
        assert shapely.intersects(middle, shapely.buffer(cell, 1e-6)).all()
    assert sorted(ids) == table["object_id"].tolist()
    # the cells do not overlap
    areas = shapely.area(index.geometry.to_numpy())
    assert shapely.union_all(index.geometry.to_numpy()).area == pytest.approx(areas.sum())
    one = write_split(tmp_path / "one.fgb", source, "grid")
    assert index_of(one)["file"].tolist() == ["one_fgb/q.fgb"]


def test_a_split_of_nothing_is_an_index_of_nothing(tmp_path):
    source = file_of(tmp_path / "s.parquet", nothing())
    path = write_split(tmp_path / "g.gpkg", source, "grid")
    assert pyogrio.read_info(path, layer="files")["features"] == 0
    path = write_split(tmp_path / "r.gpkg", source, "region", regions=wards(3))
    assert index_of(path)["objects"].tolist() == [0, 0, 0]
    # thousands at one place cannot be told apart
    place = objects_at(np.full(50, 500_000.0), np.full(50, 3e6), many=False)
    path = write_split(tmp_path / "p.gpkg", file_of(tmp_path / "p.parquet", place), "grid", rows=5)
    assert index_of(path)["objects"].sum() == 50


def test_coco_can_be_split_too(tmp_path):
    source = file_of(tmp_path / "s.parquet", town(200))
    path = write_split(
        tmp_path / "t.coco.json", source, "region", regions=wards(4), images=[image()]
    )
    files = json.loads(path.read_text())["files"]
    assert sum(one["objects"] for one in files) == 200
    ids = [a for one in files if one["file"] for a in load(tmp_path / one["file"]).anns]
    assert sorted(ids) == list(range(1, 201))


ODD_NAMES = [
    "../../etc/passwd", "..", ".", "", "a:b", "A:B", "CON", "x" * 300, "कुटी \u202eevil", "🏠",
    "a/b", "a\\b", "a\nb", "Ä", "A\u0308", " ", "-rf", "~", "*?", "name.", "ﬁ",
]  # fmt: skip


def test_names_of_files_are_safe_whatever_regions_are_called(tmp_path):
    names = ODD_NAMES * 2
    regions = wards(len(names), names=names)
    x = 499_990 + 15.0 * np.arange(len(names))
    regions["geometry"] = shapely.box(x, 2_999_000, x + 15, 3_001_000)
    source = file_of(tmp_path / "s.parquet", town(400))
    path = write_split(tmp_path / "t.fgb", source, "region", regions=regions)
    index = index_of(path)
    files = index["file"].dropna()
    assert index["objects"].sum() == 400
    assert index["name"].tolist() == names
    folder = tmp_path / "t_fgb"
    for file in files:
        name = file.removeprefix("t_fgb/")
        assert Path(file).parts == ("t_fgb", name)
        assert len(name.encode()) <= 100
        assert not set(name) & set('<>:"/\\|?*\u202e\x00\n')
        assert name[0].isdigit()
        assert name.endswith(".fgb")
        assert (folder / name).is_file()
    assert len({f.casefold() for f in files}) == len(files)
    assert {p.name for p in tmp_path.iterdir()} == {"s.parquet", "t.fgb", "t_fgb"}
    assert safe_name("a\x00b\x7f") == ["a_b"]
    assert safe_name("Kathmandu Ward No. 32") == ["Kathmandu_Ward_No_32"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path):
    source = file_of(tmp_path / "s.parquet", town(60))
    path = tmp_path / "t.gpkg"
    folder = split_folder(path)
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        check_split(path)
    with pytest.raises(OutputError, match="holds other things"):
        write_split(path, source, "grid", overwrite=True)
    assert (folder / "precious.txt").read_text() == "mine"
    (folder / "precious.txt").unlink()
    write_split(path, source, "grid", overwrite=True)
    before = (folder / "index.csv").read_bytes()
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        write_split(path, source, "grid")
    write_split(path, source, "region", regions=wards(4), overwrite=True)
    assert (folder / "index.csv").read_bytes() != before
    assert not (folder / "q.gpkg").exists()
    with pytest.raises(OutputError, match="split by 'region' without regions"):
        write_split(path, source, "region", overwrite=True)


def test_a_split_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    source = file_of(tmp_path / "s.parquet", town(60))
    path = write_split(tmp_path / "t.gpkg", source, "grid")
    before = {p: p.read_bytes() for p in [path, *split_folder(path).iterdir()]}
    whole = split.write_objects

    def failing(target, part, **options):
        if target.stem.startswith("0002"):
            raise OSError(28, "No space left on device")
        return whole(target, part, **options)

    monkeypatch.setattr(split, "write_objects", failing)
    with pytest.raises(OutputError, match="No space left"):
        write_split(path, source, "region", regions=wards(4), overwrite=True)
    # objects that get lost on the way are noticed
    monkeypatch.setattr(split, "write_objects", whole)
    described = split.describe_objects
    monkeypatch.setattr(
        split,
        "describe_objects",
        lambda p: described(p) if p == source else _less(described(p)),
    )
    with pytest.raises(OutputError, match="60 objects became"):
        write_split(path, source, "region", regions=wards(4), overwrite=True)
    assert {p: p.read_bytes() for p in [path, *split_folder(path).iterdir()]} == before
    assert {p.name for p in tmp_path.iterdir()} == {"s.parquet", "t.gpkg", "t_gpkg"}


def _less(info):
    return type(info)(info.rows - 1, info.crs, info.bounds, info.geometry_types)


def test_a_stream_of_a_split_file_reads_back(tmp_path, small):
    source = file_of(tmp_path / "s.parquet", town(300))
    write_split(tmp_path / "t.parquet", source, "region", regions=wards(4))
    files = sorted((tmp_path / "t_parquet").glob("*.parquet"))
    assert sum(describe_objects(f).rows for f in files) == 300
    assert sum(len(part) for f in files for part in iter_objects(f)) == 300
