"""Settings of a run, and job files that hold them."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from geoseg.errors import ConfigError

DEFAULT_TILE_SIZE = 768
"""Tile side where neither user nor detector says one, px."""
PRECISIONS = ("auto", "bfloat16", "float32", "exact")
VIEWS = (1, 2, 4, 8)
DEFAULT_OVERLAP = 192
"""Overlap where neither user nor detector says one, px."""
SMALLEST_M, LARGEST_M = 0.05, 1000.0
"""Sizes of objects that make sense, m."""
DEFAULT_SUPERTILE_PX = 3072
"""Side of what one task reads on a CPU, px: some 30 MB of pixels."""


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """Everything that `geoseg detect` can be told; None means: the model card's or a default."""

    images: tuple[str, ...]
    """Files, folders, globs, ``@list.txt``, addresses, STAC items and collections."""
    output: Path | None = None
    """GeoPackage, GeoParquet, FlatGeobuf, GeoJSON or COCO JSON; None keeps the result in memory."""
    model: str = "buildings"
    """Name of a shipped model or path of a ``.safetensors`` file."""
    detector: str | None = None
    """``package.module:factory`` of the user's own detector, instead of a model."""
    tile_size: int | None = None
    """Side of a tile, px of the working grid; 32 to 8192."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share; 0 <= overlap < tile_size."""
    min_score: float | None = None
    """Score threshold, in [0, 1]."""
    gsd: float | str | None = None
    """Working metres per pixel, or 'native'."""
    bidx: tuple[int | str, ...] | None = None
    """Bands in the order that the model wants: 1-based numbers, descriptions, or colours."""
    aoi: Path | None = None
    """Vector file; only objects inside it are looked for."""
    regions: Path | None = None
    """Vector file of polygons to count in."""
    workers: int | None = None
    """Worker processes; None: one per physical core. 1 runs in this process."""
    device: str = "auto"
    """'auto', 'cpu' or 'cuda'."""
    supertile_size: int | None = None
    """Side of what one task reads, px of the working grid."""
    run_dir: Path | None = None
    """Where parts, log and manifest go; None: beside the output."""
    overwrite: bool = False
    """Replace an existing output, and a run directory of other settings."""
    dst_crs: str | None = None
    """CRS of the output; None: the first image's."""
    resolve_overlaps: bool = False
    """Cut overlaps between objects of one class; the better scored keeps the ground."""
    simplify: float = 0.25
    """Tolerance of the outlines, px of the working grid; shared walls stay shared."""
    regularize: bool = False
    """Give buildings right angles where the outline keeps an IoU of 0.9 with its original."""
    min_area: float | None = None
    """Smallest object, m2; None: the model card's."""
    fill_holes: float = 0.0
    """Largest hole that is filled, m2."""
    cross_image: bool = True
    """Give an object that overlapping images show once."""
    class_agnostic: bool = False
    """Let detections of different classes be one object; the class with most area wins."""
    on_error: str = "skip"
    """'skip' leaves out a tile that fails and goes on; 'fail' ends the run."""
    max_errors: int | None = None
    """The run ends when more tiles than this failed; None: however many."""
    until: str | None = None
    """Local time of day, such as 07:00, at which the run stops, to be resumed."""
    scheduler: str | None = None
    """Address or file of a Dask scheduler that runs already, instead of own workers."""
    insecure_cluster: bool = False
    """Accept a scheduler on plain tcp beyond this machine."""
    resource: tuple[str, ...] | None = None
    """What a worker must have, such as ('GPU=1',); with `scheduler`."""
    shard: str | None = None
    """'i/n': run only this share of the supertiles, without joining or writing the output."""
    notify: str | None = None
    """Command to run at the end."""
    grid: str | None = None
    """'hexagon:METRES' or 'square:METRES': count in cells of that size instead of `regions`."""
    counts: Path | None = None
    """CSV, XLSX or vector file that gets the counts per region, beside the output."""
    rule: str = "point"
    """'point', 'area' or 'intersects': which region an object counts in."""
    regions_crs: str | None = None
    """CRS of `regions` where their file has none."""
    parent: str | None = None
    """Field of `regions` with the id of the region that a region lies in."""
    id_field: str | None = None
    """Field of `regions` with the ids that `parent` names."""
    also: tuple[Path, ...] = ()
    """More files to write of the same objects, such as a GeoJSON beside a GeoPackage."""
    split_by: str | None = None
    """'region' or 'grid': write one file per region or cell, and an index in place of `output`."""
    split_rows: int = 1_000_000
    """Objects that a cell of the grid may hold before it is cut into four."""
    report: bool = True
    """Write report.html into the run directory at the end."""
    scale: str | None = None
    """'LOW,HIGH': values that become the ends of the model's range; 'none': pixels as they are;
    None: by the whole image's values, where they are not the model's."""
    force: bool = False
    """Run although pixel size, bands or values say that the model cannot work on the imagery."""
    asset: str | None = None
    """Name of the asset of STAC items; None: the one for eyes or data."""
    allow_vrt: bool = False
    """Open ``.vrt`` files that are plain mosaics of rasters beside or below them."""
    src_crs: str | None = None
    """CRS of images that have none."""
    views: int | None = None
    """Sides from which the network looks at each tile: 1, 2, 4 or 8 (`geoseg.models.views`); None:
    as the model's card says."""
    precision: str = "auto"
    """'auto' (bfloat16 where the device is fast at it), 'bfloat16', 'float32', or 'exact': as
    torchvision computes, to the last bits."""
    skip_empty: bool = False
    """Leave out tiles in which a look at 4 times coarser pixels finds nothing."""
    small_objects: float | str | bool | None = None
    """Size of small objects, m: sets pixel, tiles, limits and smallest area where they are not
    given; 'model' or True takes the size from the model's card. See docs/small-objects.md."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ConfigError("no images named; give files, folders, globs or addresses")
        _check_range("--tile-size", self.tile_size, 32, 8192)
        _check_range("--min-score", self.min_score, 0, 1)
        _check_range("--workers", self.workers, 1, 1024)
        _check_range("--supertile-size", self.supertile_size, 32, 65536)
        _check_range("--simplify", self.simplify, 0, 100)
        _check_range("--min-area", self.min_area, 0, 1e9)
        _check_range("--fill-holes", self.fill_holes, 0, 1e9)
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"--overlap is {self.overlap}; expected 0 or more")
        if (self.overlap or 0) >= (self.tile_size or math.inf):
            raise ConfigError(
                f"--overlap is {self.overlap} but --tile-size is {self.tile_size}; lower --overlap "
                "or raise --tile-size until 0 <= overlap < tile size"
            )
        if isinstance(self.gsd, str) and self.gsd != "native":
            raise ConfigError(f"--gsd is '{self.gsd}'; expected native or metres per pixel")
        if isinstance(self.gsd, int | float) and not 0.001 <= self.gsd <= 1000:
            raise ConfigError(f"--gsd is {self.gsd}; expected 0.001 to 1000 metres per pixel")
        parse_scale(self.scale)
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device is '{self.device}'; expected auto, cpu or cuda")
        self._check_network()
        self._check_small()
        self._check_driver()
        self._check_counting()
        self._check_outputs()
        self._check_names()

    def _check_network(self) -> None:
        """Refuse what a network cannot be run as, and what a detector of the user's cannot."""
        if self.views not in (None, *VIEWS):
            raise ConfigError(
                f"--views is {self.views}; expected one of {', '.join(map(str, VIEWS))}"
            )
        if self.views is not None and self.detector is not None:
            raise ConfigError("--views goes with a model; a detector of your own is asked once")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"--precision is '{self.precision}'; expected one of {', '.join(PRECISIONS)}"
            )
        if self.skip_empty and self.detector is not None:
            raise ConfigError("--skip-empty looks with geoseg's own models; leave it out")

    def _check_small(self) -> None:
        """Refuse a size that no object has; yes and no in words of this setting."""
        size = self.small_objects
        if isinstance(size, bool):
            # as if it had been said in other words, or not at all
            object.__setattr__(self, "small_objects", "model" if size else None)
        elif isinstance(size, str):
            if size != "model":
                raise ConfigError(
                    f"--small-objects is '{size}'; expected the size of the objects in metres, or "
                    "nothing behind it to take the model's"
                )
        elif size is not None and not SMALLEST_M <= size <= LARGEST_M:
            raise ConfigError(
                f"--small-objects is {size}; expected the size of the objects, {SMALLEST_M:g} to "
                f"{LARGEST_M:g} metres"
            )

    def _check_names(self) -> None:
        """Refuse paths that no file can have, and a command that is none."""
        written = {"--output": self.output, "--counts": self.counts}
        for option, path in (*written.items(), *(("--also", path) for path in self.also)):
            if path is not None:
                _check_written_name(option, path)
        read = {"--aoi": self.aoi, "--regions": self.regions, "--run-dir": self.run_dir}
        for option, path in read.items():
            if path is not None:
                _check_name(option, path)
        if self.notify is not None:
            try:
                words = shlex.split(self.notify)
            except ValueError as error:
                raise ConfigError(f"--notify is no command: {error}") from error
            if not words or "\0" in self.notify:
                raise ConfigError("--notify is empty or has a NUL in it; expected a command")

    @property
    def counting(self) -> bool:
        """Whether objects are counted in regions or cells."""
        return self.regions is not None or self.grid is not None

    def _check_counting(self) -> None:
        """Refuse settings of the counts that contradict each other."""
        _check_counting(self.rule, self.regions, self.grid)
        if self.counts is not None and not self.counting:
            raise ConfigError("--counts needs regions to count in; give --regions or --grid")
        of_regions = {"--regions-crs": self.regions_crs, "--parent": self.parent}
        for option, value in (of_regions | {"--id": self.id_field}).items():
            if value is not None and self.regions is None:
                raise ConfigError(f"{option} is about --regions; give those too")

    def _check_outputs(self) -> None:
        """Refuse outputs that contradict each other."""
        if self.also and self.output is None:
            raise ConfigError("--also writes more files beside the output; name that with --output")
        outputs = [self.output, *self.also, self.counts]
        places = [p.expanduser().absolute() for p in outputs if p is not None]
        for i, place in enumerate(places):
            if place in places[:i]:
                raise ConfigError(f"{place} is named twice as an output; name each file once")
        if self.split_by not in (None, "region", "grid"):
            raise ConfigError(f"--split-by is '{self.split_by}'; expected region or grid")
        if self.split_by == "region" and not self.counting:
            raise ConfigError("--split-by region needs regions; give --regions or --grid")
        if self.split_by is not None and self.output is None:
            raise ConfigError("--split-by is about files; name one with --output")
        _check_range("--split-rows", self.split_rows, 1, 1e12)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All files to write for the user, the main one first."""
        return () if self.output is None else (self.output, *self.also)

    def _check_driver(self) -> None:
        """Refuse settings of the driver that are wrong or contradict each other."""
        if self.on_error not in ("skip", "fail"):
            raise ConfigError(f"--on-error is '{self.on_error}'; expected skip or fail")
        _check_range("--max-errors", self.max_errors, 0, 1e9)
        parse_shard(self.shard)
        parse_resources(self.resource)
        if self.scheduler is None and (self.resource or self.insecure_cluster):
            option = "--resource" if self.resource else "--insecure-cluster"
            raise ConfigError(f"{option} is about a cluster of your own; name it with --scheduler")
        if self.scheduler is not None and self.workers is not None:
            raise ConfigError(
                "--workers starts workers here and --scheduler joins others; give one"
            )
        if self.shard is not None and self.output is None and self.run_dir is None:
            raise ConfigError("--shard needs --output or --run-dir: what it finds must stay")


def parse_scale(text: str | None) -> tuple[float, float] | str | None:
    """Return (low, high) of a scale such as '0,4095', or 'none'; None for None.

    Raises
    ------
    ConfigError
        If it is none.
    """
    if text is None or text == "none":
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -1e30 < low < high < 1e30:
        raise ConfigError(
            f"--scale is '{text}'; expected none, or the lower and the higher of two values such "
            "as 0,4095"
        )
    return low, high


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return (i, n) of a share such as '2/4', 1-based; None for None.

    Raises
    ------
    ConfigError
        If it is none.
    """
    if text is None:
        return None
    share, _, of = text.partition("/")
    if not (share.isdecimal() and of.isdecimal() and 1 <= int(share) <= int(of) <= 10_000):
        raise ConfigError(f"--shard is '{text}'; expected i/n such as 2/4, with 1 <= i <= n")
    return int(share), int(of)


def parse_resources(texts: tuple[str, ...] | None) -> tuple[tuple[str, float], ...]:
    """Return names and amounts of resources such as 'GPU=1'.

    Raises
    ------
    ConfigError
        If one is none.
    """
    found = []
    for text in texts or ():
        name, _, amount = text.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if not name.strip() or not 0 < value < math.inf:
            raise ConfigError(f"--resource is '{text}'; expected NAME=AMOUNT such as GPU=1")
        found.append((name.strip(), value))
    return tuple(found)


def _check_name(option: str, path: Path) -> None:
    """Refuse a path that no file can have."""
    try:
        usable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ConfigError(f"{option} is {str(path)!a}, which no file can be called")


def _check_written_name(option: str, path: Path) -> None:
    """Refuse the path of something to write that would be no file or folder of its own."""
    _check_name(option, path)
    if not path.name or path.name == "..":
        raise ConfigError(f"{option} is '{path}'; expected a name, such as out.gpkg")
    if len(os.fsencode(path.name)) > _NAME_BYTES:
        raise ConfigError(
            f"{option} has a name of {len(os.fsencode(path.name))} bytes; at most {_NAME_BYTES} "
            "leave room for what is written beside it"
        )
    if not path.name.isprintable():
        raise ConfigError(
            f"{option} is {path.name!a}; expected a name without line breaks or control characters"
        )


def _check_range(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{option} is {value}; expected {low} to {high}")


def _check_counting(rule: str, regions: Path | None, grid: str | None) -> None:
    if rule not in ("point", "area", "intersects"):
        raise ConfigError(f"--rule is '{rule}'; expected point, area or intersects")
    if regions is not None and grid is not None:
        raise ConfigError("regions and --grid are two answers to one question; give one")


@dataclass(frozen=True, slots=True)
class CountSettings:
    """Everything that `geoseg count` can be told."""

    objects: Path
    """Output of `geoseg detect`, or any vector file of polygons."""
    regions: Path | None = None
    """Vector file of polygons to count in."""
    output: Path | None = None
    """The regions with their counts: .gpkg, .parquet, .fgb, .geojson, .csv or .xlsx; None prints
    only."""
    grid: str | None = None
    """'hexagon:METRES' or 'square:METRES': count in cells of that size instead of `regions`."""
    rule: str = "point"
    """'point', 'area' or 'intersects': which region an object counts in."""
    layer: str | None = None
    """Layer of ``regions``, where it has several."""
    region_field: str | None = None
    """Field of ``regions`` that names a region."""
    regions_crs: str | None = None
    """CRS of `regions` where their file has none."""
    parent: str | None = None
    """Field of `regions` with the id of the region that a region lies in."""
    id_field: str | None = None
    """Field of `regions` with the ids that `parent` names."""
    imaged: Path | None = None
    """Polygons of what was imaged; by default the coverage in `objects`, where it has one."""
    calibration: Path | None = None
    """Model card or JSON that says how often the detector is right."""
    overwrite: bool = False
    """Replace an existing output."""

    def __post_init__(self) -> None:
        if self.regions is None and self.grid is None:
            raise ConfigError("no regions to count in; name a file of polygons, or give --grid")
        _check_counting(self.rule, self.regions, self.grid)
        if self.output is not None:
            _check_written_name("--output", self.output)
        for option, path in (("objects", self.objects), ("regions", self.regions)):
            if path is not None:
                _check_name(option, path)


MAX_TOML_BYTES = 1_000_000
"""Size that a job file or training file may have."""
_KEY_PARTS = 100
_NO_KEY = re.compile(r"""[^\w\-."' \t]""")
"""What cannot stand inside a dotted key."""
_NAME_BYTES = 180
"""A name that leaves room for what is written beside it: run directory, scratch folder."""

_TABLES: dict[str, type[DetectSettings] | type[CountSettings]] = {
    "detect": DetectSettings,
    "count": CountSettings,
}
_PATHS = (
    "output", "aoi", "objects", "regions", "run_dir", "counts", "imaged", "calibration",
)  # fmt: skip
_LISTS: dict[str, tuple[type, ...]] = {
    "images": (str,), "bidx": (int, str), "resource": (str,), "also": (str,),
}  # fmt: skip


def read_job(path: Path) -> DetectSettings | CountSettings:
    """Read a job file: one table, named for a verb, whose keys are the options of that verb.

    ``[detect]`` takes the options of `geoseg detect` and ``images``, ``[count]`` those of `geoseg
    count` with ``objects`` and ``regions``. Relative paths mean: relative to the folder of the job
    file.

    Raises
    ------
    ConfigError
        If the file is missing, is no TOML, has not one of these tables, lacks a key, or has an
        unknown key or a value of the wrong type.
    """
    tables = read_toml(path, "job file")
    if unknown := sorted(set(tables) - set(_TABLES)):
        raise ConfigError(f"{path}: unknown table [{unknown[0]}]; expected [detect] or [count]")
    found = [name for name in _TABLES if isinstance(tables.get(name), dict)]
    if len(found) != 1:
        has = "both a [detect] and a [count] table" if found else "no [detect] or [count] table"
        raise ConfigError(
            f"{path} has {has}; expected one, whose keys are the options of geoseg detect or "
            "geoseg count"
        )
    return settings_from(found[0], tables[found[0]], path)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file that somebody else may have written.

    Parameters
    ----------
    path : Path
        At most `MAX_TOML_BYTES`; a byte order mark, as Windows editors write it, is skipped.
    what : str
        What it is, for the message.

    Raises
    ------
    ConfigError
        If the file is missing, too large, no TOML, or nested so deep that reading it would take
        hours.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; name a {what} (TOML)") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); name a {what} (TOML)") from error
    if len(data) > MAX_TOML_BYTES:
        raise ConfigError(
            f"{path} has more than {MAX_TOML_BYTES:,} bytes; a {what} names images by folder or "
            "glob where there are many"
        )
    try:
        text = data.decode("utf-8-sig")
        # tomllib takes time with the square of the parts of a dotted key
        if any(part.count(".") > _KEY_PARTS for part in _NO_KEY.split(text)):
            raise ConfigError(
                f"{path} has a key of more than {_KEY_PARTS} parts; expected one or two"
            )
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deep; a {what} holds tables of values") from error
    except ValueError as error:
        # TOMLDecodeError, UnicodeDecodeError, numbers of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {str(error)[:300]}") from error


def settings_from(
    table: str, values: Mapping[str, Any], path: Path
) -> DetectSettings | CountSettings:
    """Build settings from a job file's table; see `read_job`."""
    cls = _TABLES[table]
    known = {field.name: str(field.type) for field in fields(cls)}
    out: dict[str, Any] = {}
    for given, value in values.items():
        key = given.replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key '{given}' in [{table}]; {hint}")
        out[key] = _typed(path, table, key, value, known[key])
    for field in fields(cls):
        if field.default is MISSING and field.name not in out:
            raise ConfigError(f"{path} names no {field.name}; add {field.name} = ... to [{table}]")
    if "images" in out:
        out["images"] = tuple(_beside(path, image) for image in out["images"])
    return cls(**out)


def wrong_type(cls: type, values: Mapping[str, Any]) -> str | None:
    """Say which value of a table is not what its field wants; None where all are.

    Parameters
    ----------
    cls : type
        A dataclass; numbers must be finite, lists may stand for tuples.
    values : mapping
        By the names of its fields; other keys are not looked at.
    """
    for name, kind in get_type_hints(cls).items():
        if name in values and not _is_of(values[name], kind):
            shown = repr(values[name])
            text = shown if len(shown) <= 80 else f"{shown[:80]}..."
            return f"{name} is {text}; expected {getattr(kind, '__name__', kind)}"
    return None


def _is_of(value: Any, kind: Any) -> bool:
    """Tell whether a value of JSON or TOML is what an annotation says."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or kind is NoneType:
        return kind is Any or value is None
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = (parts[0],) * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if kind in (int, float):
        return _is_number(value, kind)
    return isinstance(value, origin or kind)


def _beside(job: Path, image: str) -> str:
    """Return an image of a job file: relative paths start at the file, addresses stay."""
    if image.startswith("/vsi") or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", image):
        return image
    mark = "@" if image.startswith("@") else ""
    return f"{mark}{job.parent / image.removeprefix('@')}"


def is_number(value: Any) -> bool:
    """Tell whether a value of JSON or TOML is a finite number."""
    return _is_number(value, float)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, int):
        # larger ones numpy keeps as objects
        return not isinstance(value, bool) and abs(value) < 2**63
    return kind is float and isinstance(value, float) and math.isfinite(value)


def _names_file(key: str, value: str) -> bool:
    """Tell whether a text names a file beside the job file: it may also be a name or address."""
    if key == "scheduler":
        return "://" not in value
    return key == "model" and value.endswith(".safetensors")


def _typed(path: Path, table: str, key: str, value: Any, annotation: str) -> Any:
    """Return a TOML value as the field wants it, or say what was expected."""
    wrong = ConfigError(
        f"{path}: {key} = {value!r} in [{table}]; expected {annotation.removesuffix(' | None')}"
    )
    if any("\0" in text for text in (value if isinstance(value, list) else [value])
           if isinstance(text, str)):  # fmt: skip
        raise ConfigError(f"{path}: {key} in [{table}] holds a null character; remove it")
    if key in _LISTS:
        single = isinstance(value, str) and key in ("images", "also")
        values = [value] if single else value
        if not isinstance(values, list) or not all(type(v) in _LISTS[key] for v in values):
            raise wrong
        if key == "also":
            return tuple(path.parent / name for name in values)
        return values if key == "images" else tuple(values)
    if key in _PATHS:
        if not isinstance(value, str):
            raise wrong
        return path.parent / value
    if isinstance(value, str) and _names_file(key, value):
        return str(path.parent / value)
    allowed: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "str": (str,)}
    head = annotation.partition(" ")[0]
    types = (int, float) if head == "float" else allowed[head]
    if key in ("gsd", "small_objects"):
        types = (int, float, str) if key == "gsd" else (int, float, str, bool)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise wrong
    return value
