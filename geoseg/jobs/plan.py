"""Before anything runs: every setting known and checked, without reading a pixel."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import geopandas as gpd
import numpy as np
import pyproj
import shapely

import geoseg
from geoseg.config import (
    DEFAULT_OVERLAP,
    DEFAULT_SUPERTILE_PX,
    DEFAULT_TILE_SIZE,
    DetectSettings,
    parse_scale,
)
from geoseg.errors import ConfigError, ModelError, OutputError, SourceError
from geoseg.imagery.check import check_images, sight_of
from geoseg.imagery.georef import (
    WorkingGrid,
    polygons_to_crs,
    polygons_to_pixels,
    reproject_polygons,
    working_grid,
)
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.inputs import find_images
from geoseg.imagery.placing import check_target, choose_crs, horizontal
from geoseg.imagery.radiometry import (
    Expectation,
    Finding,
    Scaling,
    Sight,
    judge,
    plan_scaling,
    wants_statistics,
)
from geoseg.imagery.source import describe_raster, parse_crs, select_bands
from geoseg.jobs.guard import undisturbed
from geoseg.jobs.ledger import digest
from geoseg.jobs.supertile import DetectorSpec
from geoseg.models.card import ModelCard, file_sha256
from geoseg.models.detector import check_detector, load_detector
from geoseg.models.registry import find_card, find_model
from geoseg.models.small import LIMITS, SmallSettings, settings_for
from geoseg.objects.cells import GridSpec
from geoseg.objects.count import RegionCounter, polygonal
from geoseg.outputs.counts import check_counts_output
from geoseg.outputs.formats import COCO_SUFFIX, OBJECT_SUFFIXES, check_output, stem_of, suffix_of
from geoseg.outputs.regions import calibration_from, read_regions
from geoseg.outputs.split import check_split
from geoseg.outputs.tables import read_vector
from geoseg.records import RasterInfo

if TYPE_CHECKING:
    from types import ModuleType

    from geoseg.models.detector import Detector


_NOTES_OF_A_KIND = 5
"""A job of ten thousand sheets may have as many remarks; nobody reads them."""
log = logging.getLogger(__name__)
_LOOKED_AT = 200
"""So many of the images that need no scale are looked at before a run, spread over all."""
_VALUES_LOOKED_AT = 3_000_000
"""Pixels times bands read of each of these; a scale is made of more."""


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How one image is worked through."""

    info: RasterInfo
    grid: WorkingGrid
    tiles: TileGrid
    bands: tuple[int, ...]
    aoi: shapely.Geometry | None
    """Area of interest, grid px."""
    sight: Sight | None = None
    """What was seen of its pixels; None where the detector says nothing of what it expects."""
    scaling: Scaling | None = None
    """How its pixels are scaled for the detector; None: as they are."""
    findings: tuple[Finding, ...] = ()
    """What its result may suffer from."""
    small: SmallSettings | None = None
    """What --small-objects chose for it."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run whose every setting is known and checked.

    Pixels were read only for a detector that says which it expects, and few of them.
    """

    settings: DetectSettings
    """As the user gave them, but with the smallest object that the card recommends."""
    images: tuple[ImagePlan, ...]
    detector: DetectorSpec
    classes: tuple[str, ...]
    crs: pyproj.CRS
    """CRS of the output."""
    regions: gpd.GeoDataFrame | None
    key: str
    """Hash of everything that decides the parts."""
    about_model: dict[str, Any]
    crs_notes: tuple[str, ...] = ()
    """What the user should know before the run: of a rough datum shift, for instance."""
    expected: Expectation | None = None
    """What the detector says of the imagery it wants."""

    @property
    def scores(self) -> dict[str, float]:
        """The score threshold of each class."""
        spec = self.detector
        each = spec.class_scores or (spec.min_score,) * len(self.classes)
        return dict(zip(self.classes, each, strict=True))

    @property
    def n_supertiles(self) -> int:
        """Supertiles of all images."""
        return sum(image.tiles.n_supertiles for image in self.images)

    def notes(self, *levels: str) -> list[str]:
        """Return what the preflight found, a line for all images that it says the same of."""
        images_of: dict[str, dict[str, list[str]]] = {}
        for image in self.images:
            for finding in image.findings:
                if finding.level in levels:
                    texts = images_of.setdefault(finding.kind, {})
                    texts.setdefault(finding.text, []).append(Path(image.info.path).name)
        notes = []
        for kind, texts in images_of.items():
            told = list(texts.items())
            notes += [
                f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
                for text, names in told[:_NOTES_OF_A_KIND]
            ]
            if rest := sum(len(names) for _, names in told[_NOTES_OF_A_KIND:]):
                notes.append(
                    f"{rest} more images have notes like these ({kind}); geoseg check --statistics "
                    "lists them"
                )
        return notes


def plan_run(settings: DetectSettings, detector: Detector | None = None) -> RunPlan:
    """Check everything that can be checked without weights and with a glance at the pixels.

    Raises
    ------
    GeosegError
        With exit code 2: what is wrong, what was expected, what to do.
    """
    _check_paths(settings)
    dst = None if settings.dst_crs is None else choose_crs(settings.dst_crs)
    regions = None
    if settings.regions is not None:
        regions = read_regions(settings.regions, crs=settings.regions_crs)
    if settings.grid is not None:
        GridSpec.parse(settings.grid)
    aoi = None if settings.aoi is None else read_vector(settings.aoi, what="AOI")
    if settings.src_crs is not None:
        parse_crs(settings.src_crs)
    paths = find_images(settings.images, asset=settings.asset, allow_vrt=settings.allow_vrt)
    if problems := check_images(paths, src_crs=settings.src_crs):
        more = f" (and {len(problems) - 1} more images)" if len(problems) > 1 else ""
        raise SourceError(f"{problems[0]}{more}")
    # a user's factory may load weights: all that needs no detector is checked before
    about = _about_detector(settings, detector)
    size_m = _object_size(settings, about)
    images = tuple(_plan_image(path, settings, about, size_m, aoi) for path in paths)
    settings = _with_smallest_area(settings, images)
    expected = _expectation(about)
    images = _preflight(settings, images, expected)
    crs = dst or horizontal(pyproj.CRS.from_wkt(images[0].info.crs_wkt))
    notes = check_target([image.info for image in images], crs)
    for note in notes:
        log.warning("%s", note)
    if regions is not None:
        # whether it can count is known before the night
        RegionCounter(regions, crs, parent=settings.parent, id_field=settings.id_field)
    calibration_from(about["manifest"], f"the card of {about['manifest']['name']}")
    if settings.device == "cuda":
        from geoseg.models.inference import choose_device

        choose_device("cuda")
    spec = replace(_detector_spec(settings, detector, about), limits=_limits(images, about))
    key = _key(settings, spec, images, about["fingerprint"])
    if settings.min_area is None:
        settings = replace(settings, min_area=about["min_area_m2"])
    return RunPlan(
        settings,
        images,
        spec,
        about["classes"],
        crs,
        regions,
        key,
        about["manifest"],
        notes,
        expected,
    )


def _key(
    settings: DetectSettings, spec: DetectorSpec, images: Sequence[ImagePlan], fingerprint: Any
) -> str:
    """Return what tells parts of one run from those of another; see `geoseg.jobs.ledger`."""
    return digest(
        geoseg.__version__,
        fingerprint,
        spec.min_score,
        settings.class_agnostic,
        [
            (i.info.fingerprint, asdict(i.tiles), tuple(i.grid.transform)[:6], i.bands,
             None if i.aoi is None else _sha256(i.aoi.wkb),
             *(() if i.scaling is None else (i.scaling.to_dict(),)))
            for i in images
        ],
        *_unusual(settings),
        *([spec.limits] if spec.limits else ()),
        *([f"{spec.views} views"] if spec.views > 1 else []),
        *([spec.class_scores] if spec.class_scores else []),
    )  # fmt: skip


def _tile_sizes(
    settings: DetectSettings, about: dict[str, Any], small: SmallSettings | None
) -> tuple[int, int, int]:
    """Return tile, overlap and supertile, px.

    What the user gave, else what small objects want, else the detector's.
    """
    tile = settings.tile_size or about["tile_size"]
    overlap = settings.overlap
    if small is not None:
        tile, overlap = small.tile_size, small.overlap
    elif overlap is None:
        overlap = min(about["overlap"], tile // 4)
    return tile, overlap, settings.supertile_size or max(DEFAULT_SUPERTILE_PX, tile)


def _object_size(settings: DetectSettings, about: dict[str, Any]) -> float | None:
    """Return the size of small objects, m: the user's, else the card's; None without the switch.

    Raises
    ------
    ConfigError
        If the card is asked and does not say.
    """
    if settings.small_objects != "model":
        return None if settings.small_objects is None else float(settings.small_objects)
    if about["object_size_m"] is None:
        raise ConfigError(
            f"{about['manifest']['name']} does not say how large its objects are (object_size_m); "
            "give the size in metres: --small-objects 3"
        )
    return float(about["object_size_m"])


def _small_settings(
    settings: DetectSettings, about: dict[str, Any], info: RasterInfo, size_m: float
) -> SmallSettings:
    """Return what the size of small objects sets for an image; what the user gave wins."""
    given = info.gsd_m if settings.gsd == "native" else settings.gsd
    chosen = settings_for(
        size_m,
        image_gsd_m=info.gsd_m,
        model_gsd_m=about["gsd_m"],
        card={name: about[name] for name in ("tile_size", "overlap")} | about["limits"],
        gsd_m=None if given is None else float(given),
        tile_size=settings.tile_size,
        overlap=settings.overlap,
    )
    return replace(
        chosen, min_area_m2=chosen.min_area_m2 if settings.min_area is None else settings.min_area
    )


def _with_smallest_area(settings: DetectSettings, images: Sequence[ImagePlan]) -> DetectSettings:
    """Return the settings with the smallest area that small objects have, where none is given."""
    areas = [image.small.min_area_m2 for image in images if image.small is not None]
    return (
        replace(settings, min_area=min(areas)) if areas and settings.min_area is None else settings
    )


def _limits(images: Sequence[ImagePlan], about: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return a network's limits that are not its card's: for all images the widest."""
    chosen = [image.small.limits for image in images if image.small is not None]
    if not chosen or not about["limits"]:
        return ()
    widest = {
        name: (min if name in ("rpn_min_size", "min_side_px") else max)(c[name] for c in chosen)
        for name in chosen[0]
    }
    return tuple(sorted(widest.items()))


def _unusual(settings: DetectSettings) -> list[Any]:
    """Return settings that change what is found, where they are not the defaults."""
    found: list[Any] = [] if settings.precision == "auto" else [settings.precision]
    return [*found, "skip_empty"] if settings.skip_empty else found


def _check_paths(settings: DetectSettings) -> None:
    """Refuse an output that cannot be written or that would replace what the run reads."""
    check = check_written if settings.split_by is None else check_split
    outputs = [check(path, settings.overwrite) for path in settings.outputs]
    if settings.counting:
        outputs += [
            check_output(path, settings.overwrite) for path in counts_paths(settings.outputs)
        ]
    if settings.counts is not None:
        outputs.append(check_counts_output(settings.counts, settings.overwrite))
    for output in outputs:
        if outputs.count(output) > 1:
            raise OutputError(f"{output} would be written twice; give the outputs other names")
    for option, path in (("--regions", settings.regions), ("--aoi", settings.aoi)):
        for output in outputs:
            if path is not None and path.exists() and output.exists() and output.samefile(path):
                raise OutputError(f"output {output} is also the {option} file; name another output")


def _about_detector(settings: DetectSettings, detector: Detector | None) -> dict[str, Any]:
    """Collect what the detector says of itself, without loading weights."""
    if detector is None and settings.detector is None:
        card, path = find_card(settings.model), find_model(settings.model)
        return {
            "classes": card.classes,
            "bands": len(card.bands),
            "names": card.bands,
            "dtype": card.dtype,
            "value_range": card.value_range,
            "gsd_m": card.gsd_m,
            "tile_size": card.tile_size,
            "overlap": card.overlap,
            "min_score": card.min_score,
            "object_size_m": card.object_size_m,
            "limits": {name: getattr(card, name) for name in LIMITS},
            "class_scores": dict(card.class_scores),
            "min_area_m2": card.min_area_m2,
            "views": card.views,
            "fingerprint": [file_sha256(path), *_of_card(card)],
            "manifest": {
                "name": card.name,
                "licence": card.licence,
                "credits": list(card.credits),
                "quality": dict(card.quality),
                "description": card.description,
                "boxes_only": not card.has_masks,
                "min_score": card.min_score,
                **{k: v for k in _TUNED if (v := getattr(card, k))},
                **({"views": card.views} if card.views > 1 else {}),
            },
        }
    return _about_own(settings, detector)


_TUNED = ("class_scores", "min_area_m2", "calibration")
"""What tuning adds to a card; cards without it tell of runs as they always did."""


def _of_card(card: ModelCard) -> list[Any]:
    """Return what of a card, besides thresholds, decides what is found, where it is not usual.

    Somebody may tune a model between a run and its resumption: parts of both must never mix.
    """
    usual = {f.name: f.default for f in fields(ModelCard)}
    deciding = (
        "nms_iou", "max_detections", "proposals", "rpn_pre_nms", "rpn_nms_iou", "rpn_min_size",
        "rpn_by_logit", "strict_score", "min_side_px",
    )  # fmt: skip
    return [(name, v) for name in deciding if (v := getattr(card, name)) != usual[name]]


def _about_own(settings: DetectSettings, detector: Detector | None) -> dict[str, Any]:
    """Collect what the user's own detector says of itself."""
    # it need not be what it promises
    with undisturbed():
        made: Any = load_detector(str(settings.detector)) if detector is None else detector
    if not callable(made) or not getattr(made, "classes", None):
        raise ModelError(
            f"detector is {made!r}; expected a callable with classes: tuple[str, ...] "
            "(geoseg.Detector), or 'package.module:factory'"
        )
    name = settings.detector or type(made).__qualname__
    check_detector(made, f"detector {name}")
    bands = getattr(made, "bands", None)
    return {
        "classes": tuple(made.classes),
        "bands": len(bands) if bands else None,
        "names": tuple(map(str, bands)) if bands else (),
        **_declared_pixels(made, name),
        "gsd_m": getattr(made, "gsd_m", None),
        "tile_size": getattr(made, "tile_size", DEFAULT_TILE_SIZE),
        "overlap": getattr(made, "overlap", DEFAULT_OVERLAP),
        "min_score": getattr(made, "min_score", 0.0),
        "class_scores": {},
        "min_area_m2": 0.0,
        "views": 1,
        "fingerprint": getattr(made, "fingerprint", None) or _fingerprint(made, name),
        "object_size_m": getattr(made, "object_size_m", None),
        # its limits are its own business
        "limits": {},
        "manifest": {"name": name, "min_score": getattr(made, "min_score", 0.0)},
    }


def _declared_pixels(detector: Any, name: str) -> dict[str, Any]:
    """Return the pixel type and range that a detector asks for; None and None: what comes."""
    dtype, value_range = (getattr(detector, key, None) for key in ("dtype", "value_range"))
    try:
        if dtype is not None:
            dtype = np.dtype(dtype).name
            if value_range is None and np.dtype(dtype).kind in "iu":
                value_range = (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if value_range is not None:
            low, high = map(float, value_range)
            value_range = (low, high)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"detector {name}: dtype is {dtype!r} and value_range {value_range!r}; expected the "
            "name of a numpy type and (lowest, highest)"
        ) from error
    wrong = value_range is not None and not -np.inf < value_range[0] < value_range[1] < np.inf
    if wrong or (value_range is None and dtype is not None):
        raise ModelError(
            f"detector {name}: value_range is {value_range}; expected (lowest, highest) of the "
            f"pixels it wants, such as (0, 1){f' of {dtype}' if dtype else ''}"
        )
    return {"dtype": dtype, "value_range": value_range}


def _fingerprint(detector: Detector, name: str) -> list[str]:
    """Tell detectors apart that do not say who they are: by their source and their state.

    Otherwise a changed detector would be served the parts of its former self.
    """
    parts = [name]
    module = inspect.getmodule(detector)
    # typed in a console it has no source; state may hold what has no bytes
    with contextlib.suppress(Exception):
        parts.append(_sha256(inspect.getsource(cast("ModuleType", module)).encode()))
    with contextlib.suppress(Exception):
        parts.append(_sha256(pickle.dumps(vars(detector))))
    return parts


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _detector_spec(
    settings: DetectSettings, detector: Detector | None, about: dict[str, Any]
) -> DetectorSpec:
    own = detector is not None or settings.detector is not None
    scores = [about["class_scores"].get(name, about["min_score"]) for name in about["classes"]]
    if settings.min_score is not None:
        # what the user says holds for all classes
        scores = [settings.min_score]
    return DetectorSpec(
        model=None if own else str(find_model(settings.model)),
        factory=None if detector is not None else settings.detector,
        given=detector,
        device=settings.device,
        min_score=min(scores),
        threads=1,
        precision=settings.precision,
        views=about["views"] if settings.views is None else settings.views,
        class_scores=tuple(scores) if len(set(scores)) > 1 else (),
    )


def _expectation(about: dict[str, Any]) -> Expectation:
    """Return what a detector expects of imagery."""
    return Expectation(
        model=about["manifest"]["name"],
        gsd_m=about["gsd_m"],
        bands=about["bands"] or 0,
        dtype=about["dtype"],
        value_range=about["value_range"],
        names=about["names"],
    )


def _preflight(
    settings: DetectSettings, images: Sequence[ImagePlan], expected: Expectation
) -> tuple[ImagePlan, ...]:
    """Look at the images as the detector will see them: scale them, and say what is in the way.

    Raises
    ------
    ConfigError
        If ``--scale`` is given for a detector that says nothing of its range.
    SourceError
        If the detector cannot work on an image, or no image shows anything; not with ``--force``.
    """
    scale = parse_scale(settings.scale)
    if scale is not None and expected.value_range is None:
        raise ConfigError(
            f"--scale needs to know what {expected.model} wants; give the detector an attribute "
            "value_range = (lowest, highest), or let it scale what comes"
        )
    sights = _sights(settings, images, expected)
    scalings = plan_scaling(sights, expected, scale)
    planned = tuple(
        replace(
            image,
            sight=sight,
            scaling=scaling,
            findings=(
                *image.findings,
                *judge(sight, expected, scaling, scale=settings.scale or ""),
            ),
        )
        for image, sight, scaling in zip(images, sights, scalings, strict=True)
    )
    if not settings.force:
        _refuse(planned)
    return planned


def _sights(
    settings: DetectSettings, images: Sequence[ImagePlan], expected: Expectation
) -> list[Sight]:
    """Look at all images that may need a scale, and at some of the others."""
    easy = [i for i, p in enumerate(images) if not wants_statistics(p.info.dtype, expected)]
    step = max(1, -(-len(easy) // _LOOKED_AT))
    skipped = {i for n, i in enumerate(easy) if n % step or expected.value_range is None}
    return [
        sight_of(
            image.info,
            image.bands,
            statistics=number not in skipped,
            values=_VALUES_LOOKED_AT if number in easy else None,
            working_gsd_m=image.grid.gsd_m,
            bands_chosen=settings.bidx is not None,
        )
        for number, image in enumerate(images)
    ]


def _refuse(images: Sequence[ImagePlan]) -> None:
    """Raise what a run would waste its night on."""
    refused = [
        (image, finding)
        for image in images
        for finding in image.findings
        if finding.level == "refuse" and finding.kind != "blank"
    ]
    blank = [
        (image, finding)
        for image in images
        for finding in image.findings
        if finding.kind == "blank"
    ]
    # one black sheet of many is worth a word, no more
    if len(blank) == len(images):
        refused += blank
    if refused:
        image, finding = refused[0]
        others = len({image.info.path for image, _ in refused}) - 1
        more = f" (and {others} more images)" if others else ""
        force = "" if "--force" in finding.text else "; --force runs it anyway"
        raise SourceError(f"{Path(image.info.path).name}: {finding.text}{force}{more}")


def _plan_image(
    path: str,
    settings: DetectSettings,
    about: dict[str, Any],
    size_m: float | None,
    aoi: gpd.GeoDataFrame | None,
) -> ImagePlan:
    info = describe_raster(path, src_crs=settings.src_crs)
    small = None if size_m is None else _small_settings(settings, about, info, size_m)
    gsd = about["gsd_m"] if settings.gsd is None else settings.gsd
    if small is not None and settings.gsd is None:
        gsd = small.gsd_m
    grid = working_grid(info, None if gsd is None or gsd == "native" else float(gsd))
    colours = info.bands - (info.alpha_band is not None)
    wanted = about["bands"] or (len(settings.bidx) if settings.bidx else colours)
    bands = select_bands(info, settings.bidx, wanted)
    tile_size, overlap, supertile = _tile_sizes(settings, about, small)
    area = None if aoi is None else _aoi_px(aoi, info, grid)
    tiles = TileGrid(grid.height, grid.width, tile_size, overlap, supertile)
    said = () if small is None else (small.as_line(network=bool(about["limits"])),)
    told = tuple(Finding("small", text, level="info") for text in said)
    return ImagePlan(info, grid, tiles, bands, area, findings=told, small=small)


def _aoi_px(aoi: gpd.GeoDataFrame, info: RasterInfo, grid: WorkingGrid) -> shapely.Geometry:
    """Bring an AOI to grid px, after cutting it to the surroundings of the image.

    A projected CRS has no place for what lies on the other side of the earth, and bends the long
    edges of a country beyond recognition.
    """
    h, w = grid.height, grid.width
    around = shapely.segmentize(shapely.box(-w / 8, -h / 8, w * 9 / 8, h * 9 / 8), max(h, w) / 16)
    wkt = aoi.crs.to_wkt()
    frame = reproject_polygons(polygons_to_crs([around], grid.transform), info.crs_wkt, wkt)[0]
    polygons, _ = polygonal(aoi.geometry.array)
    near, _ = polygonal(shapely.intersection(polygons, shapely.box(*shapely.bounds(frame))))
    return shapely.union_all(polygons_to_pixels(near, wkt, info.crs_wkt, grid.transform))


def counts_path(output: Path) -> Path | None:
    """Return where counts go beside an output that has no layers; None where it has, or no room."""
    suffix = suffix_of(output)
    if suffix in (".gpkg", COCO_SUFFIX):
        return None
    return output.with_name(f"{stem_of(output)}_regions{output.suffix}")


def counts_paths(outputs: Sequence[Path]) -> list[Path]:
    """Return where counts go beside outputs."""
    return [path for path in map(counts_path, outputs) if path is not None]


def check_written(path: Path, overwrite: bool) -> Path:
    """Refuse a file for objects that could not be written; see `check_output`."""
    return check_output(path, overwrite, suffixes=OBJECT_SUFFIXES)


def part_key(plan: RunPlan, image: int, index: tuple[int, int]) -> str:
    """Return the name of the part of one supertile of one image."""
    return digest(plan.key, image, index)
