"""Settings of a run, and job files that hold them."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from geoseg.errors import ConfigError

DEFAULT_TILE_SIZE = 768
"""Tile side where neither user nor detector says one, px."""
DEFAULT_OVERLAP = 192
"""Overlap where neither user nor detector says one, px."""
DEFAULT_SUPERTILE_PX = 3072
"""Side of what one task reads on a CPU, px: some 30 MB of pixels."""


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """Everything that `geoseg detect` can be told; None means: the model card's or a default."""

    images: tuple[str, ...]
    """Files, folders or globs."""
    output: Path | None = None
    """GeoPackage, GeoParquet, FlatGeobuf or GeoJSON; None keeps the result in memory."""
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
    bidx: tuple[int, ...] | None = None
    """1-based bands in the order that the model wants."""
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
    min_area: float = 0.0
    """Smallest object, m2."""
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
    report: bool = True
    """Write report.html into the run directory at the end."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ConfigError("no images named; give files, folders or globs")
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
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device is '{self.device}'; expected auto, cpu or cuda")
        self._check_driver()

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


def _check_range(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{option} is {value}; expected {low} to {high}")


_PATHS = ("output", "aoi", "regions", "run_dir")
_LISTS = {"images": str, "bidx": int, "resource": str}


def read_job(path: Path) -> DetectSettings:
    """Read a job file: one ``[detect]`` table whose keys are the options of `geoseg detect`.

    Relative paths mean: relative to the folder of the job file.

    Raises
    ------
    ConfigError
        If the file is missing, is no TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; name a job file (TOML)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if unknown := sorted(set(table) - {"detect"}):
        raise ConfigError(f"{path}: unknown table [{unknown[0]}]; expected [detect]")
    if not isinstance(table.get("detect"), dict):
        raise ConfigError(
            f"{path} has no [detect] table; its keys are the options of geoseg detect"
        )
    return settings_from(table["detect"], path)


def settings_from(values: Mapping[str, Any], path: Path) -> DetectSettings:
    """Build settings from a job file's table; see `read_job`."""
    known = {field.name: str(field.type) for field in fields(DetectSettings)}
    out: dict[str, Any] = {}
    for given, value in values.items():
        key = given.replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key '{given}' in [detect]; {hint}")
        out[key] = _typed(path, key, value, known[key])
    folder = path.parent
    if "images" in out:
        out["images"] = tuple(str(folder / image) for image in out["images"])
    return DetectSettings(**({"images": ()} | out))


def _names_file(key: str, value: str) -> bool:
    """Tell whether a text names a file beside the job file: it may also be a name or address."""
    if key == "scheduler":
        return "://" not in value
    return key == "model" and value.endswith(".safetensors")


def _typed(path: Path, key: str, value: Any, annotation: str) -> Any:
    """Return a TOML value as the field wants it, or say what was expected."""
    wrong = ConfigError(
        f"{path}: {key} = {value!r} in [detect]; expected {annotation.removesuffix(' | None')}"
    )
    if key in _LISTS:
        values = [value] if isinstance(value, str) and key == "images" else value
        if not isinstance(values, list) or not all(type(v) is _LISTS[key] for v in values):
            raise wrong
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
    if key == "gsd":
        types = (int, float, str)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise wrong
    return value
