"""What is broken and which command looks at it: a case is a function of (kind, seed, number)."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

from fuzz import tiff
from fuzz.mutate import (
    NUMBERS,
    TEXTS,
    mutate_bytes,
    mutate_tree,
    nested,
    odd_value,
    to_json,
    to_toml,
)
from geoseg.config import CountSettings, DetectSettings

RUN_ARGS = ("--detector", "fuzz.targets:detector", "-j", "1", "--device", "cpu")
Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """Commands to run in the case's folder, and what they may write there."""

    commands: tuple[Command, ...]
    outputs: tuple[str, ...] = ()
    torch: bool = False
    """Whether the commands need torch."""


Make = Callable[[random.Random, Path, Path], Case]


def _pick(rng: random.Random, folder: Path, *suffixes: str) -> Path:
    found = [p for p in sorted(folder.iterdir()) if p.suffix in suffixes and p.is_file()]
    return rng.choice(found)


# --- rasters ---------------------------------------------------------------------------------

_DETECT = (("out.gpkg", "out.geoseg-run/*"), ("out.geojson", "out.geoseg-run/*"))


def _look_at_raster(rng: random.Random, name: str, *more: Command) -> Case:
    extra: list[str] = []
    if rng.random() < 0.5:
        extra.append("--read")
    if rng.random() < 0.4:
        extra.append("--statistics")
    if rng.random() < 0.2:
        extra.append("--json")
    commands: list[Command] = [("check", name, *extra)]
    outputs: tuple[str, ...] = ()
    if rng.random() < 0.08:
        commands.append(("plan", name, "--no-probe", *RUN_ARGS))
    if rng.random() < 0.03:
        outputs = rng.choice(_DETECT)
        commands.append(("detect", name, "-o", outputs[0], *RUN_ARGS, "--no-report"))
    return Case((*commands, *more), outputs)


def tiff_structure(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A TIFF whose directory lies."""
    (folder / "a.tif").write_bytes(tiff.mutated(rng))
    return _look_at_raster(rng, "a.tif")


def tiff_bytes(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A GeoTIFF or COG with broken bytes."""
    source = _pick(rng, seeds / "rasters", ".tif")
    other = _pick(rng, seeds / "rasters", ".tif").read_bytes()
    (folder / "a.tif").write_bytes(mutate_bytes(rng, source.read_bytes(), other))
    return _look_at_raster(rng, "a.tif")


def picture_bytes(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A JPEG 2000, PNG or JPEG file, or what lies beside it."""
    source = _pick(rng, seeds / "rasters", ".jp2", ".png", ".jpg")
    name = f"a{source.suffix}"
    data = source.read_bytes()
    beside = {
        f"{name}.aux.xml": source.with_name(f"{source.name}.aux.xml"),
        f"a.{source.suffix[1]}gw": source.with_name(f"plain.{source.suffix[1]}gw"),
    }
    broken = rng.choice((name, name, name, *beside))
    if broken == name:
        data = mutate_bytes(rng, data, _pick(rng, seeds / "rasters", ".png", ".jpg").read_bytes())
    (folder / name).write_bytes(data)
    for target, path in beside.items():
        if path.is_file():
            content = path.read_bytes()
            (folder / target).write_bytes(
                mutate_bytes(rng, content) if broken == target else content
            )
    return _look_at_raster(rng, name)


_WORLDS = (b"0.1\n0\n0\n-0.1\n500000\n5500000\n", b"nan\n0\n0\n-0.1\n1\n1\n", b"1e999\n" * 6, b"0\n" * 6,
           b"0.1\r0\r0\r-0.1\r5\r5", b"\xff\xfe0\0.\0")  # fmt: skip
_AUX = (
    b"<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>5e5,0.1,0,5.5e6,0,-0.1</GeoTransform></PAMDataset>",
    b'<PAMDataset><SRS>PROJCS["x"</SRS></PAMDataset>',
    b"<PAMDataset><GeoTransform>nan,inf,1e999,0,0,0</GeoTransform></PAMDataset>",
    (
        b'<PAMDataset><PAMRasterBand band="1"><NoDataValue>nan</NoDataValue><ColorInterp>Alpha</ColorInterp>'
        b"</PAMRasterBand></PAMDataset>"
    ),
    (
        b'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/etc/passwd</MDI></Metadata>'
        b"</PAMDataset>"
    ),
    b'<PAMDataset><PAMRasterBand band="99999999"><Scale>x</Scale></PAMRasterBand></PAMDataset>',
    (
        b'<PAMDataset><GCPList Projection="EPSG:4326"><GCP Id="" Pixel="nan" Line="0" X="0" Y="0"/></GCPList>'
        b"</PAMDataset>"
    ),
    b"<PAMDataset>" + b"<a>" * 300,
)


def beside_tiff(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A sound TIFF with a broken .msk, .ovr, .aux.xml, world file or .prj beside it."""
    rasters = seeds / "rasters"
    (folder / "a.tif").write_bytes((rasters / "besides.tif").read_bytes())
    kind = rng.choice(("msk", "ovr", "msk.ovr", "aux.xml", "tfw", "prj", "MSK"))
    source = {"msk": "besides.tif.msk", "ovr": "besides.tif.ovr"}.get(kind, "besides.tif.msk")
    if kind in ("aux.xml", "tfw", "prj"):
        data = rng.choice(_AUX if kind == "aux.xml" else _WORLDS)
        data = mutate_bytes(rng, data) if rng.random() < 0.7 else data
    elif rng.random() < 0.4:
        data = tiff.mutated(rng)
    else:
        data = mutate_bytes(rng, (rasters / source).read_bytes())
    name = {"tfw": "a.tfw", "prj": "a.prj"}.get(kind, f"a.tif.{kind}")
    (folder / name).write_bytes(data)
    return _look_at_raster(rng, "a.tif")


# --- job files -------------------------------------------------------------------------------

_UNSAFE = {"scheduler", "notify", "until", "run_dir"}
"""Settings that reach beyond the case: a cluster, a command, a clock, a folder."""
_DETECT_KEYS = sorted({f.name for f in fields(DetectSettings)} - _UNSAFE)
_COUNT_KEYS = sorted(f.name for f in fields(CountSettings))
_VALUES: dict[str, tuple[Any, ...]] = {
    "images": (["a.tif"], ["."], ["*.tif"], ["a.tif", "a.tif"], ["a.tif", "b.tif"], [], ["\0"], "a.tif",
               ["/vsicurl/x"], ["~nobody/x"], ["**/" * 3 + "*"], ["[", "a.tif"]),
    "output": ("out.gpkg", "out.parquet", "out.fgb", "out.geojson", "out.coco.json", "out", "out.xyz",
               "out.gpkg/", "", ".", "out\0.gpkg", "out" * 90 + ".gpkg", "out.GPKG"),
    "also": (["out2.geojson"], ["out.gpkg"], ["out2.parquet", "out2.fgb"], "out2.geojson"),
    "counts": ("out3.csv", "out3.xlsx", "out3.gpkg", "out.gpkg", ""),
    "regions": ("regions.geojson", "a.tif", "none.gpkg", ".", "job.toml", "", "\0"),
    "aoi": ("regions.geojson", "a.tif", "none.gpkg", "", "job.toml"),
    "objects": ("objects.geojson", "regions.geojson", "a.tif", "none.gpkg", "", "."),
    "imaged": ("regions.geojson", "objects.geojson", ""),
    "calibration": ("calibration.json", "job.toml", "a.tif", "", "."),
    "grid": ("square:1", "hexagon:1", "square:0", "square:-1", "square:nan", "square:1e-9", "circle:3",
             "square:inf", "hexagon:1e300", "square", ":", "square:0.0001"),
    "rule": ("point", "area", "intersects", "none"),
    "gsd": ("native", 0.1, 0.2, 0.05, 0.0001, 1000, 1e-9, "nan", float("nan"), 30.0),
    "tile_size": (32, 33, 64, 31, 8192, 8193, 2**31, 0, -1),
    "overlap": (0, 8, 31, 32, -1, 2**40),
    "supertile_size": (32, 64, 65536, 65537, 0, 40),
    "workers": (1, 0, -1, 10**6),
    "min_score": (0, 0.5, 1, 1.1, -0.0, float("nan")),
    "bidx": ([1, 2, 3], [1], [3, 3, 3], [0], [99], [], [1, 1, 1, 1, 1]),
    "device": ("cpu", "auto", "tpu"),
    "model": ("buildings", "none", "x.safetensors", "calibration.json", "", "@", "timm:@x", "buildings@x"),
    "detector": ("fuzz.targets:detector", "fuzz.targets", "fuzz.targets:nothing", "os:getcwd", ":", "",
                 "no.such:thing", "a b:c", "fuzz.targets:detector:x", "..x:y", "\0:x"),
    "dst_crs": ("EPSG:4326", "EPSG:3857", "EPSG:0", "", "nan", "+proj=longlat", "+proj=nothing",
                "EPSG:32701", "EPSG:2193", "+proj=geos +h=1", "OGC:CRS84", "EPSG:5514", "EPSG:4978",
                "+proj=ortho +lat_0=-80", "EPSG:5773", "{}", "GEOGCS["),
    "regions_crs": ("EPSG:4326", "EPSG:0", "x"),
    "simplify": (0, 0.25, 100, 101, float("nan")),
    "min_area": (0, 1e9, -1, float("inf"), 1),
    "fill_holes": (0, 1, 1e9, -1),
    "on_error": ("skip", "fail", "x"),
    "max_errors": (0, 1, -1, 10**12),
    "resource": (["GPU=1"], ["x"], []),
    "shard": ("1/2", "2/1", "0/0", "1/1", "x", "1/2/3", "9999999999999999999/1"),
    "split_by": ("region", "grid", "x"),
    "split_rows": (1, 0, 2, 10**6),
    "parent": ("parent", "id", "name", "none", "geometry"),
    "id_field": ("id", "parent", "name", "geometry"),
    "region_field": ("name", "id", "none", "geometry"),
    "layer": ("regions", "x", "", "regions.geojson"),
}  # fmt: skip


def job_file(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A job file: keys and values of any kind over sound files."""
    for name in ("regions.geojson", "objects.geojson", "calibration.json"):
        shutil.copyfile(seeds / "vectors" / name, folder / name)
    shutil.copyfile(seeds / "rasters" / "stripes.tif", folder / "a.tif")
    detect = rng.random() < 0.7
    table: dict[str, Any] = (
        {"images": ["a.tif"], "output": "out.gpkg", "detector": "fuzz.targets:detector",
         "workers": 1, "device": "cpu", "report": rng.random() < 0.1}
        if detect
        else {"objects": "objects.geojson", "regions": "regions.geojson"}
    )  # fmt: skip
    keys = _DETECT_KEYS if detect else _COUNT_KEYS
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        key = rng.choice(keys)
        if rng.random() < 0.75 and key in _VALUES:
            table[key] = rng.choice(_VALUES[key])
        else:
            table[key] = odd_value(rng)
    if type(table.get("workers")) is int and 1 < table["workers"] <= 1024:
        table["workers"] = 1
    tables: dict[str, Any] = {"detect" if detect else "count": table}
    if rng.random() < 0.1:
        tables = mutate_tree(rng, tables, (*keys, "detect", "count", "images"))
        tables = tables if isinstance(tables, dict) else {"detect": tables}
        _tame(tables)
    if rng.random() < 0.03:
        tables["x"] = nested(rng)
    (folder / "job.toml").write_bytes(
        mutate_bytes(rng, to_toml(rng, tables)) if rng.random() < 0.1 else to_toml(rng, tables)
    )
    verb = ("run", "job.toml", *rng.choice(((), (), ("--json",), ("--overwrite",))))
    # outputs of any name are the job's own will; the inputs and what lies outside are not
    needs = not (isinstance(tables.get("detect"), dict) and "detector" in tables["detect"])
    return Case((verb,), ("*",), torch=detect and needs)


def _tame(tables: dict[str, Any]) -> None:
    """Take out what reaches beyond the case."""
    for table in tables.values():
        if isinstance(table, dict):
            for key in list(table):
                if str(key).replace("-", "_") in _UNSAFE or (
                    key == "workers" and table[key] not in (0, 1, -1)
                ):
                    del table[key]


# --- regions, objects, labels ----------------------------------------------------------------

_SUFFIXES = (
    ".geojson",
    ".geojson",
    ".geojson",
    ".gpkg",
    ".gpkg",
    ".fgb",
    ".parquet",
    ".shp",
    ".shp",
)
_GEO_KEYS = ("type", "features", "geometry", "coordinates", "properties", "crs", "bbox", "geometries",
             "Polygon", "MultiPolygon", "Point", "GeometryCollection", "FeatureCollection")  # fmt: skip


def _break_geojson(rng: random.Random, data: bytes) -> bytes:
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        action = rng.randrange(8)
        features = tree["features"]
        if action == 0:
            _break_ring(rng, features)
        elif action == 1:
            rng.choice(features)["geometry"] = _odd_geometry(rng)
        elif action == 2:
            rng.choice(features)["properties"][
                rng.choice((*TEXTS, "count", "class", "score", "id"))
            ] = odd_value(rng)
        elif action == 3:
            tree["crs"] = rng.choice((
                None, {}, {"type": "name", "properties": {"name": rng.choice(TEXTS)}}, 5,
                {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}},
                {"type": "link", "properties": {"href": "http://127.0.0.1:9/x", "type": "proj4"}},
            ))  # fmt: skip
        elif action == 4:
            tree["features"] = features * rng.choice((0, 2, 30))
            if not tree["features"]:
                break
        elif action == 5:
            for feature in features:
                feature["properties"]["name"] = rng.choice(TEXTS)
        else:
            tree = mutate_tree(rng, tree, _GEO_KEYS)
            break
    return to_json(rng, tree)


def _break_ring(rng: random.Random, features: list[Any]) -> None:
    geometry = rng.choice(features).get("geometry")
    if not isinstance(geometry, dict) or not geometry.get("coordinates"):
        return
    ring = geometry["coordinates"]
    while (
        isinstance(ring, list)
        and ring
        and isinstance(ring[0], list)
        and isinstance(ring[0][0] if ring[0] else None, list)
    ):
        ring = ring[0]
    action = rng.randrange(7)
    if action == 0:
        rng.shuffle(ring)
    elif action == 1:
        ring[:] = ring[: rng.randrange(4)]
    elif action == 2:
        ring[rng.randrange(len(ring))] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
    elif action == 3:
        ring[rng.randrange(len(ring))] = rng.choice(([], [1], [1, 2, 3, 4, 5], None, "x", {}))
    elif action == 4:
        for point in ring:
            point[0] = rng.choice((179.9999, -179.9999, 0, 500_000, 15))
    elif action == 5:
        scale = rng.choice((0, 1e-9, 10, 1e6, -1))
        ring[:] = [[x * scale, y * scale] for x, y, *_ in ring]
    else:
        ring += ring[::-1] * rng.choice((1, 20))


def _odd_geometry(rng: random.Random) -> Any:
    square = [[15, 49.6], [15.001, 49.6], [15.001, 49.601], [15, 49.6]]
    return rng.choice((
        None, {}, {"type": "Point", "coordinates": [15, 49]}, {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]}, {"type": "MultiPolygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [square, square]},
        {"type": "MultiPolygon", "coordinates": [[square], [square]]},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [square]}]},
        {"type": "Polygon", "coordinates": [[[x, y, 1e300] for x, y in square]]},
        {"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [1e300, 1e300], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[179, 10], [-179, 10], [-179, 11], [179, 11], [179, 10]]]},
        {"type": "LineString", "coordinates": square}, {"type": "Curve", "coordinates": square},
        {"type": "Polygon", "coordinates": nested(rng)},
    ))  # fmt: skip


def _break_vector(rng: random.Random, seeds: Path, folder: Path, stem: str, name: str) -> str:
    """Write a broken vector file of some format; return its name."""
    suffix = rng.choice(_SUFFIXES)
    source = seeds / "vectors" / f"{stem}{suffix}"
    data = source.read_bytes()
    if suffix == ".shp":
        parts = [p for p in sorted(source.parent.glob(f"{stem}.*")) if p.suffix in
                 (".shp", ".shx", ".dbf", ".prj", ".cpg")]  # fmt: skip
        broken = rng.choice(parts)
        for part in parts:
            content = part.read_bytes()
            if part == broken:
                if rng.random() < 0.1 and part.suffix != ".shp":
                    continue
                content = mutate_bytes(rng, content)
            (folder / f"{name}{part.suffix}").write_bytes(content)
    elif suffix == ".geojson" and rng.random() < 0.85:
        (folder / f"{name}{suffix}").write_bytes(_break_geojson(rng, data))
    elif suffix == ".gpkg" and rng.random() < 0.7:
        (folder / f"{name}{suffix}").write_bytes(_break_database(rng, data))
    else:
        (folder / f"{name}{suffix}").write_bytes(mutate_bytes(rng, data))
    return f"{name}{suffix}"


def _break_database(rng: random.Random, data: bytes) -> bytes:
    """Break pages of a GeoPackage, or what its tables say."""
    if rng.random() < 0.5:
        out = bytearray(data)
        page = int.from_bytes(out[16:18], "big") or 4096
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(out) // page) * page
            out[at : at + page] = mutate_bytes(rng, bytes(out[at : at + page]))[:page].ljust(
                page, b"\0"
            )
        return bytes(out)
    import sqlite3
    import tempfile

    odd = rng.choice(("''", "NULL", "'x'", "-1", "0", "4326", "99999", "1e300", "x'00'", "'nan'"))
    table, column = rng.choice((
        ("gpkg_contents", "srs_id"), ("gpkg_contents", "data_type"), ("gpkg_contents", "table_name"),
        ("gpkg_contents", "min_x"), ("gpkg_geometry_columns", "geometry_type_name"),
        ("gpkg_geometry_columns", "column_name"), ("gpkg_geometry_columns", "srs_id"),
        ("gpkg_geometry_columns", "z"), ("gpkg_spatial_ref_sys", "definition"),
        ("gpkg_spatial_ref_sys", "organization_coordsys_id"), ("*", "geom"), ("*", "name"), ("*", "class"),
        ("*", "score"), ("*", "id"),
    ))  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".gpkg") as file:
        Path(file.name).write_bytes(data)
        base = sqlite3.connect(file.name)
        if table == "*":
            table = base.execute("SELECT table_name FROM gpkg_contents").fetchone()[0]
            # the triggers of the spatial index call functions that only GDAL knows
            for (trigger,) in base.execute(
                "SELECT name FROM sqlite_master WHERE type='trigger'"
            ).fetchall():
                base.execute(f'DROP TRIGGER "{trigger}"')
        value = f"x'{_odd_wkb(rng).hex()}'" if column == "geom" else odd
        try:
            where = "" if rng.random() < 0.5 else " WHERE rowid = 1"
            base.execute("PRAGMA ignore_check_constraints = 1")
            base.execute(f"UPDATE {table} SET {column} = {value}{where}")
            base.commit()
        except sqlite3.Error:
            pass
        base.close()
        return Path(file.name).read_bytes()


def _odd_wkb(rng: random.Random) -> bytes:
    """Return a geometry as a GeoPackage has it, broken."""
    head = b"GP\0\1" + (32633).to_bytes(4, "little")
    ring = b"".join(
        __import__("struct").pack("<dd", x, y)
        for x, y in ((5e5, 5.5e6), (5e5 + 1, 5.5e6), (5e5 + 1, 5.5e6 - 1), (5e5, 5.5e6))
    )
    kind = rng.choice((3, 3, 6, 7, 1, 10, 17, 1003, 3003, 2**31 + 3, 2**32 - 1))
    rings, points = (
        rng.choice((1, 1, 0, 2**31 - 1, 2**32 - 1)),
        rng.choice((4, 4, 0, 3, 2**28, 2**32 - 1)),
    )
    body = b"\1" + b"".join(v.to_bytes(4, "little") for v in (kind, rings, points)) + ring
    return mutate_bytes(rng, head + body) if rng.random() < 0.5 else head + body


_GRID = ("--grid", "square:5")


def regions(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """Regions to count in."""
    name = _break_vector(rng, seeds, folder, "regions", "r")
    suffix = rng.choice((".gpkg", ".geojson", ".parquet", ".fgb"))
    shutil.copyfile(seeds / "vectors" / f"objects{suffix}", folder / f"o{suffix}")
    command = ["count", f"o{suffix}", name, "--rule", rng.choice(("point", "area", "intersects"))]
    if rng.random() < 0.3:
        command += ["--parent", "parent", "--id", rng.choice(("id", "name"))]
    if rng.random() < 0.2:
        command += ["--regions-crs", "EPSG:32633"]
    if rng.random() < 0.2:
        command += ["--region-field", rng.choice(("name", "id"))]
    output = rng.choice(
        (None, None, "out.gpkg", "out.csv", "out.xlsx", "out.geojson", "out.parquet")
    )
    if output:
        command += ["-o", output]
    if rng.random() < 0.2:
        command += ["--json"]
    return Case((tuple(command),), (output,) if output else ())


def objects(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """Objects that are counted, compared, and what was imaged."""
    name = _break_vector(rng, seeds, folder, "objects", "o")
    for sound in ("regions.geojson", "objects.gpkg"):
        shutil.copyfile(seeds / "vectors" / sound, folder / sound)
    rule = ("--rule", rng.choice(("point", "area", "intersects")))
    outputs = ("out.gpkg",)
    return Case(
        rng.choice((
            (("count", name, "regions.geojson", *rule),),
            (("count", name, *_GRID, *rule),),
            (("count", "objects.gpkg", "regions.geojson", "--imaged", name),),
            (("evaluate", name, "objects.gpkg"),),
            (("evaluate", "objects.gpkg", name, "--aoi", "regions.geojson"),),
            (("compare", name, "objects.gpkg", "-o", "out.gpkg"),),
        )),
        outputs,
    )  # fmt: skip


def area_of_interest(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """AOI and regions of a run."""
    name = _break_vector(rng, seeds, folder, "regions", "r")
    shutil.copyfile(seeds / "rasters" / "stripes.tif", folder / "a.tif")
    option = rng.choice(("--aoi", "--regions"))
    outputs = rng.choice(_DETECT)
    if rng.random() < 0.7:
        return Case((("plan", "a.tif", "--no-probe", *RUN_ARGS, option, name),))
    more = ("out_regions.geojson",) if outputs[0] == "out.geojson" else ()
    command = ("detect", "a.tif", "-o", outputs[0], *RUN_ARGS, option, name, "--no-report")
    return Case((command,), (*outputs, *more))


def labels(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """Training files and what they name."""
    what = rng.choice(("labels", "aoi", "file", "file"))
    shutil.copyfile(seeds / "rasters" / "stripes.tif", folder / "a.tif")
    names = {"labels": "objects.gpkg", "aoi": "regions.geojson"}
    if what != "file":
        names[what] = _break_vector(rng, seeds, folder, names[what].partition(".")[0], "x")
    for name in names.values():
        if not (folder / name).exists():
            shutil.copyfile(seeds / "vectors" / name, folder / name)
    tables: dict[str, Any] = {
        "train": {"classes": ["thing", "other"], "gsd_m": 0.1, "chip_px": 32, "seed": 1},
        "augmentation": {},
        "sites": [{"image": "a.tif", **names, "class_field": "class", "weight": 1.0,
                   "where": "score > 0", "aoi_part": [0.0, 0.0, 1.0, 1.0], "name": "here"}],
        "card": {"name": "x"},
    }  # fmt: skip
    del tables["augmentation"]
    if what == "file":
        keys = ("steps", "batch", "chip_px", "architecture", "augmentation", "start", "frozen", "lr",
                "aoi_where", "weight", "gsd_m", "classes", "image", "labels", "aoi", "card", "sites")  # fmt: skip
        tables = mutate_tree(rng, tables, keys)
        tables = tables if isinstance(tables, dict) else {"train": tables}
    (folder / "train.toml").write_bytes(to_toml(rng, tables))
    return Case((("call:labels", "train.toml"),), torch=True)


# --- models ----------------------------------------------------------------------------------


def _small_archive(rng: random.Random, data: bytes) -> bytes:
    """Break the members of a zip, keeping the zip sound."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        broken = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == broken:
                if rng.random() < 0.2:
                    continue
                content = mutate_bytes(rng, content)
            new.writestr(name, content)
            if rng.random() < 0.02:
                new.writestr(rng.choice(("../x", "/etc/x", name, "x" * 500)), content)
    return out.getvalue()


def checkpoint(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A .pth or .pkl file with broken bytes, sound configuration."""
    models = seeds / "models"
    shutil.copyfile(models / "config.yaml", folder / "config.yaml")
    source = rng.choice(("few.pth", "few.pth", "few.pkl", "few.pkl", "few.pkl", "model.pth"))
    data = (models / source).read_bytes()
    name = f"m{Path(source).suffix}"
    if source == "few.pth" and rng.random() < 0.6:
        data = _small_archive(rng, data)
    else:
        data = mutate_bytes(rng, data)
    (folder / name).write_bytes(data)
    how = rng.random()
    if how < 0.6:
        convert = ("convert", name, "--config", "config.yaml", "-o", "out.safetensors")
        return Case((convert,), ("out.safetensors", "out.json"), torch=True)
    if how < 0.8 and name == "m.pth":
        return Case((("models", "show", name),), torch=True)
    return Case((("call:load", name, "config.yaml"),), torch=True)


def safetensors(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A model of ours: broken weights file or broken card."""
    models = seeds / "models"
    card = json.loads((models / "model.json").read_bytes())
    head = None
    if rng.random() < 0.6:
        card = mutate_tree(rng, card, tuple(card))
        if rng.random() < 0.5:
            tree = json.loads((models / "model.json").read_bytes())
            tree["architecture"] = mutate_tree(
                rng, tree["architecture"], tuple(tree["architecture"])
            )
            card = tree
    else:
        head = rng.random()
    (folder / "m.json").write_bytes(to_json(rng, card))
    if head is None:
        (folder / "m.safetensors").symlink_to(models / "model.safetensors")
    else:
        data = (models / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        if head < 0.5:
            tree = mutate_tree(rng, json.loads(data[8 : 8 + size]))
            text = to_json(rng, tree)
            data = len(text).to_bytes(8, "little") + text + data[8 + size :]
        else:
            data = mutate_bytes(rng, data)
        (folder / "m.safetensors").write_bytes(data)
    command: Command
    command, outputs = rng.choice((
        (("models", "show", "m.safetensors"), ()),
        (("call:load", "m.safetensors"), ()),
        (("convert", "m.safetensors", "-o", "out.safetensors"), ("out.safetensors", "out.json")),
        (("models", "show", "m.safetensors", "--stac"), ()),
    ))  # fmt: skip
    return Case((command,), outputs, torch=True)


_YAML = ("!!python/object/apply:os.system [x]", "&a [*a]", "a: &a [1,1]\nb: [*a, *a]", "{" * 2000, "? ? ?",
         "_BASE_: config.yaml", "_BASE_: ../../x", "- 1", "\t", "x: 1e999", "%YAML 9.9", "a: !!binary x",
         "d: 2001-99-99", "MODEL: 5", "[" * 5000, "MODEL: {RESNETS: {DEPTH: 10000000000}}", "'")  # fmt: skip


def configuration(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A configuration of Detectron2, over a sound checkpoint."""
    import yaml

    models = seeds / "models"
    tree = yaml.safe_load((models / "config.yaml").read_text(encoding="utf-8"))
    keys = (
        "_BASE_",
        "MODEL",
        "RESNETS",
        "DEPTH",
        "VERSION",
        "MASK_ON",
        "NAME",
        "NORM",
        "NUM_CLASSES",
    )
    try:
        text = yaml.safe_dump(mutate_tree(rng, tree, keys))
    except yaml.YAMLError:
        text = yaml.safe_dump(tree)
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 1))):
        lines = data.split(b"\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(_YAML).encode())
        data = b"\n".join(lines)
    if rng.random() < 0.2:
        data = mutate_bytes(rng, data)
    (folder / "config.yaml").write_bytes(data)
    (folder / "m.pth").symlink_to(models / "model.pth")
    convert = ("convert", "m.pth", "--config", "config.yaml", "-o", "out.safetensors")
    return Case((convert,), ("out.safetensors", "out.json"), torch=True)


def calibration(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A calibration of counts."""
    tree = json.loads((seeds / "vectors" / "calibration.json").read_bytes())
    if rng.random() < 0.3:
        tree = rng.choice(({"quality": {"calibration": tree}}, {"thing": tree, "other": tree}))
    keys = ("quality", "calibration", "scores", "chance", "missed", "sizes_m2")
    (folder / "c.json").write_bytes(to_json(rng, mutate_tree(rng, tree, keys)))
    for name in ("regions.geojson", "objects.geojson"):
        shutil.copyfile(seeds / "vectors" / name, folder / name)
    return Case((("count", "objects.geojson", "regions.geojson", "--calibration", "c.json"),))


# --- runs ------------------------------------------------------------------------------------


def run_directory(rng: random.Random, seeds: Path, folder: Path) -> Case:
    """A run that is reported, opened or gone on with."""
    shutil.copytree(seeds / "run", folder, dirs_exist_ok=True)
    directory = folder / "out.geoseg-run"
    for _ in range(rng.choice((1, 1, 2))):
        broken = rng.choice([p for p in sorted(directory.rglob("*")) if p.is_file()])
        if rng.random() < 0.45 and (directory / "run.json").exists():
            broken = directory / "run.json"
        if rng.random() < 0.08:
            broken.unlink()
        elif broken.name == "run.json" and rng.random() < 0.85:
            try:
                tree = json.loads(broken.read_bytes())
            except (ValueError, RecursionError):
                continue
            keys = tuple(tree) if isinstance(tree, dict) else ()
            broken.write_bytes(to_json(rng, mutate_tree(rng, tree, keys)))
        elif broken.name == "events.jsonl" and rng.random() < 0.5:
            lines = broken.read_bytes().splitlines() or [b"{}"]
            at = rng.randrange(len(lines))
            lines[at] = to_json(rng, odd_value(rng))
            broken.write_bytes(b"\n".join(lines))
        else:
            broken.write_bytes(mutate_bytes(rng, broken.read_bytes()))
    again = ("detect", "image.tif", "-o", "out.gpkg", *RUN_ARGS, "--regions", "regions.geojson",
             "--supertile-size", "40")  # fmt: skip
    outputs = ("out.geoseg-run/*", "out.gpkg")
    # all this may be written by the same command, and is
    return rng.choice((
        Case((("report", "out.geoseg-run"),), outputs),
        Case((("report", "out.geoseg-run"),), outputs),
        Case((("call:run", "out.geoseg-run"),)),
        Case((("call:run", "out.gpkg"),)),
        Case((("evaluate", "out.gpkg", "out.gpkg", "--run-dir", "out.geoseg-run"),)),
        Case(((*again, *rng.choice(((), ("--overwrite",)))),), outputs),
    ))  # fmt: skip


KINDS: dict[str, tuple[float, Make]] = {
    "tiff-structure": (0.38, tiff_structure),
    "tiff-bytes": (0.12, tiff_bytes),
    "pictures": (0.08, picture_bytes),
    "beside-tiff": (0.07, beside_tiff),
    "job": (0.08, job_file),
    "regions": (0.07, regions),
    "objects": (0.05, objects),
    "aoi": (0.02, area_of_interest),
    "labels": (0.03, labels),
    "checkpoint": (0.03, checkpoint),
    "safetensors": (0.02, safetensors),
    "configuration": (0.01, configuration),
    "calibration": (0.01, calibration),
    "run-directory": (0.03, run_directory),
}
"""Name to share of the files, and how one is made."""


def kind_of(seed: int, number: int) -> str:
    """Return the kind of a file."""
    names = list(KINDS)
    return random.Random(f"{seed}:{number}").choices(names, [KINDS[n][0] for n in names])[0]


def make(kind: str, seed: int, number: int, seeds: Path, folder: Path) -> Case:
    """Write file `number` of a kind into an empty folder."""
    return KINDS[kind][1](random.Random(f"{seed}:{kind}:{number}"), seeds, folder)
