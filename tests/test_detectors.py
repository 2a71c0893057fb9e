"""The detectors of workflows/: each finds what is painted, through the whole run."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import geoseg
import geoseg.errors
from geoseg.cli.main import main
from geoseg.objects.vectorize import vectorize
from geoseg.records import Instances, Tile
from geoseg.scenes.town import render_town

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflows"))

from detectors import onnx_yolo  # noqa: E402
from detectors.coloured_roofs import ColouredRoofs  # noqa: E402
from detectors.segment_anything import BoxPrompts, PointPrompts, cut_out, grid_points  # noqa: E402

GROUND = (96, 120, 70)
RED, BLUE, GREY = (190, 60, 55), (40, 90, 200), (150, 152, 155)
SIZE = 300
# x0, y0, x1, y1, colour: off the grid of tiles, some across the seams of 128 px tiles; those of one
# colour are farther apart than the model below looks around
RECTANGLES = [
    (13, 17, 51, 43, RED),
    (110, 21, 143, 59, RED),
    (219, 30, 260, 51, RED),
    (33, 101, 70, 139, BLUE),
    (121, 118, 158, 150, RED),
    (205, 111, 243, 149, BLUE),
    (26, 215, 65, 240, RED),
    (117, 203, 150, 241, RED),
    (214, 207, 253, 246, BLUE),
]
NAMES = {RED: "red roof", BLUE: "blue roof"}
SMALL_TILES = ["--tile-size", "128", "--overlap", "48", "-j", "1"]


def paint(rectangles, size: int = SIZE, noise: int = 0) -> np.ndarray:
    image = np.empty((3, size, size), np.uint8)
    image[:] = np.array(GROUND, np.uint8)[:, None, None]
    for x0, y0, x1, y1, colour in rectangles:
        image[:, y0:y1, x0:x1] = np.array(colour)[:, None, None]
    if noise:
        rng = np.random.default_rng(5)
        image = np.clip(image + rng.integers(-noise, noise + 1, image.shape), 0, 255)
    return image.astype(np.uint8)


def map_of(gsd: float) -> Affine:
    return Affine(gsd, 0.0, 500_000.0, 0.0, -gsd, 5_500_000.0)


def in_px(objects: gpd.GeoDataFrame, gsd: float) -> np.ndarray:
    """Return the outlines in px of the raster."""
    inverse = ~map_of(gsd)
    return shapely.transform(
        objects.geometry.to_numpy(), lambda xy: np.column_stack(inverse @ (xy[:, 0], xy[:, 1]))
    )


def detect(image: Path, folder: Path, *args: str) -> gpd.GeoDataFrame:
    """Run the command and return the objects that it wrote."""
    output = folder / "objects.gpkg"
    assert main(["detect", str(image), "-o", str(output), "--overwrite", *args]) == 0
    return pyogrio.read_dataframe(output, layer="objects")


def check_rectangles(objects, gsd: float, *, rectangles=RECTANGLES, off: float, iou: float) -> None:
    """Each rectangle is found once, at its place, under its name, and nothing else is."""
    outlines = in_px(objects, gsd)
    truth = np.array([shapely.box(*r[:4]) for r in rectangles])
    assert len(outlines) == len(truth)
    at = shapely.distance(shapely.centroid(truth)[:, None], shapely.centroid(outlines)[None])
    partner = at.argmin(axis=1)
    assert sorted(partner) == list(range(len(truth)))
    assert at.min(axis=1).max() < off
    found = outlines[partner]
    shared = shapely.area(shapely.intersection(truth, found))
    assert (shared / shapely.area(shapely.union(truth, found))).min() > iou
    if "class" in objects:
        assert objects["class"].to_numpy()[partner].tolist() == [NAMES[r[4]] for r in rectangles]


# --- the rule --------------------------------------------------------------------------------

RULE = ["--detector", "detectors.coloured_roofs:make"]


@pytest.mark.parametrize(
    ("gsd", "off", "iou"),
    [
        (0.13, 0.05, 0.99),  # at its own pixels the outlines are exact, but for the noise
        (0.10, 0.65, 0.9),  # resampled: half a pixel of 13 cm
    ],
)
def test_coloured_roofs_finds_painted_roofs(gsd, off, iou, make_raster, tmp_path):
    grey = (70, 30, 95, 60, GREY)
    small = (180, 70, 186, 76, RED)  # 0.6 m2
    pixels = paint([*RECTANGLES, grey, small], noise=6)
    image = make_raster(pixels=pixels, transform=map_of(gsd))
    objects = detect(image, tmp_path, *RULE, *SMALL_TILES)
    check_rectangles(objects, gsd, off=off, iou=iou)
    assert objects["score"].between(0.5, 1).all()


def test_coloured_roofs_of_a_town_are_roofs(tmp_path):
    town = render_town(tmp_path, width_px=800, height_px=800, seed=9)
    objects = detect(town.image, tmp_path, *RULE, "-j", "1")
    buildings = pyogrio.read_dataframe(town.footprints).union_all()
    outlines = objects.geometry.to_numpy()
    assert len(outlines) >= 20
    on = shapely.area(shapely.intersection(outlines, buildings)) / shapely.area(outlines)
    # some things are blue or red and stand on the ground
    assert (on > 0.8).mean() > 0.9


def test_the_command_of_the_docs(make_raster, tmp_path):
    # as the docs say: with the folder on PYTHONPATH, and two workers that find it too
    image = make_raster(pixels=paint(RECTANGLES), transform=map_of(0.13))
    output = tmp_path / "roofs.gpkg"
    code = "import sys; sys.path.pop(0); from geoseg.cli.main import main; sys.exit(main())"
    args = ["detect", str(image), "-o", str(output), *RULE, "--supertile-size", "150"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args, "--tile-size", "128", "-j", "2"],
        env={"PYTHONPATH": f"{ROOT / 'workflows'}:{ROOT}", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check_rectangles(pyogrio.read_dataframe(output, layer="objects"), 0.13, off=0.05, iou=0.99)


def test_the_rule_scores_by_colour_and_takes_16_bits():
    pale = (190, 155, 150)  # leads by 35 of 255
    image = paint([(10, 10, 60, 60, RED), (80, 80, 130, 130, pale)], size=160)
    rule = ColouredRoofs()
    (found,) = rule(image[None])
    assert found.boxes.tolist() == [[10, 10, 60, 60], [80, 80, 130, 130]]
    expected = 0.5 + 0.5 * (35 / 255 - 0.1) / 0.1
    assert found.scores.tolist() == [1.0, pytest.approx(expected, abs=1e-4)]
    (deep,) = rule(image[None].astype(np.uint16) * 257)
    assert deep.boxes.tolist() == found.boxes.tolist()
    with pytest.raises(TypeError, match="expected uint8 or uint16"):
        rule(image[None].astype(np.float32))


@pytest.mark.parametrize(
    "wrong",
    [{"margin": 0}, {"margin": 0.3}, {"sure_margin": 1}, {"min_area_m2": -1}, {"gsd_m": 0}],
)
def test_the_rule_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is|and {next(iter(wrong))}"):
        ColouredRoofs(**wrong)


def test_the_python_call_with_other_parameters(make_raster):
    image = make_raster(pixels=paint(RECTANGLES), transform=map_of(0.13))
    areas = [(r[2] - r[0]) * (r[3] - r[1]) * 0.13**2 for r in RECTANGLES]
    limit = float(np.median(areas))
    rule = ColouredRoofs(min_area_m2=limit + 0.01)
    objects = geoseg.detect(image, detector=rule, workers=1)
    assert len(objects) == sum(area > limit + 0.01 for area in areas)


class Boxes(ColouredRoofs):
    """Knows no masks: says so as docs/detectors.md does, and gives logits where told to."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor

    def __call__(self, tiles):
        return [
            Instances(
                f.boxes, f.scores * self.factor, f.labels, np.ones((len(f), 28, 28), np.float32)
            )
            for f in super().__call__(tiles)
        ]


def test_a_detector_without_masks_gives_boxes(make_raster):
    image = make_raster(pixels=paint(RECTANGLES), transform=map_of(0.13))
    objects = geoseg.detect(image, detector=Boxes(), tile_size=128, overlap=48, workers=1)
    check_rectangles(objects, 0.13, off=0.01, iou=0.999)
    with pytest.raises(geoseg.errors.TileError, match=r"detect: Instances.scores leaves \[0, 1\]"):
        geoseg.detect(image, detector=Boxes(factor=7), workers=1)


# --- YOLO: decoding, without any model -------------------------------------------------------


def predict(rows, k: int = 2) -> np.ndarray:
    """Return predictions (4 + 2 + k, n) of (box, score of class 0, of class 1, coefficients)."""
    out = np.zeros((4 + 2 + k, len(rows)), np.float32)
    for i, ((x0, y0, x1, y1), a, b, weights) in enumerate(rows):
        out[:4, i] = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        out[4:6, i] = a, b
        out[6:, i] = weights
    return out


def decode(rows, tile=(64, 64), prototypes=None, **settings) -> Instances:
    if prototypes is None:
        prototypes = np.full((2, 16, 16), 8, np.float32)
    return onnx_yolo.decode(
        predict(rows),
        prototypes,
        n_classes=2,
        input_shape=(64, 64),
        tile_shape=tile,
        **settings,
    )


def test_decoding_drops_doubles_by_class_and_sorts_by_score():
    found = decode(
        [
            ((10, 10, 30, 30), 0.6, 0, (1, 0)),
            ((11, 10, 31, 30), 0.9, 0, (1, 0)),  # the same, better
            ((10, 10, 30, 30), 0.1, 0.7, (1, 0)),  # another class
            ((40, 40, 50, 52), 0.8, 0, (1, 0)),
            ((20, 40, 30, 52), 0.04, 0, (1, 0)),  # below the floor
            ((5, 5, 5, 9), 0.9, 0, (1, 0)),  # no width
            ((50, 5, 60, 9), np.nan, 0, (1, 0)),
        ]
    )
    assert found.boxes.tolist() == [[11, 10, 31, 30], [40, 40, 50, 52], [10, 10, 30, 30]]
    assert found.labels.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7], rtol=1e-6)
    assert not found.saturated


def test_boxes_that_the_tile_cuts_are_compared_whole():
    # a third of each is the same, but of what the tile of 40 px shows nearly all
    rows = [((20, 5, 60, 15), 0.9, 0, (1, 0)), ((21, 5, 125, 15), 0.8, 0, (1, 0))]
    found = decode(rows, tile=(40, 40))
    assert found.boxes.tolist() == [[20, 5, 40, 15], [21, 5, 40, 15]]


def test_decoding_keeps_to_the_tile_and_says_when_it_is_full():
    rows = [((x, 5, x + 6, 11), 0.9 - x / 100, 0, (1, 0)) for x in (0, 10, 20, 30, 44)]
    found = decode(rows, tile=(40, 40), max_detections=4)
    # the fifth lies in the border beside the tile
    assert found.boxes[:, 2].tolist() == [6, 16, 26, 36]
    assert not found.saturated
    full = decode(rows, tile=(40, 40), max_detections=3)
    assert len(full) == 3
    assert full.saturated


def test_masks_are_outlined_to_a_fraction_of_a_pixel():
    # prototypes of 4 px that hold the distance to a circle, around which the box is loose
    x, y, radius = 33.3, 29.1, 17.0
    centres = (np.arange(16) + 0.5) * 4
    distance = radius - np.hypot(centres[None] - x, centres[:, None] - y)
    prototypes = np.stack([distance, np.zeros_like(distance)]).astype(np.float32)
    box = (x - radius - 3, y - radius - 2, x + radius + 1, y + radius + 4)
    found = decode([(box, 0.9, 0, (1, 5))], prototypes=prototypes)
    window = geoseg.records.Window(0, 0, 64, 64)
    tile = Tile(index=(0, 0), core=window, window=window)
    (outline,) = vectorize(found, tile, tile_row=0, raster_shape=(64, 64)).polygons
    circle = shapely.Point(x, y).buffer(radius)
    assert shapely.hausdorff_distance(outline.exterior, circle.exterior) < 0.75
    assert outline.area == pytest.approx(circle.area, rel=0.02)


@given(
    st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0.5, 30), st.floats(0.5, 30)),
    st.integers(0, 9),
)
def test_masks_are_samples_of_the_whole_picture(box, seed):
    x0, y0, w, h = box
    x1, y1 = min(x0 + w, 64), min(y0 + h, 48)
    y0 = min(y0, y1 - 0.5)
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(3, 12, 16)).astype(np.float32)
    weights = rng.normal(size=3).astype(np.float32)
    mask = onnx_yolo.mask_of(
        weights, prototypes, np.array([x0, y0, x1, y1], np.float32), (4.0, 4.0)
    )
    rows, columns = mask.shape
    ys = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows
    xs = x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns
    logits = ndimage.map_coordinates(
        np.einsum("k,khw->hw", weights, prototypes),
        np.meshgrid(ys / 4 - 0.5, xs / 4 - 0.5, indexing="ij"),
        order=1,
        mode="nearest",
    )
    np.testing.assert_allclose(mask, 1 / (1 + np.exp(-logits)), atol=2e-4)


def test_names_are_read_and_never_run(tmp_path):
    assert onnx_yolo.parse_names("{0: 'roof', 1: \"bird's nest\"}") == ("roof", "bird's nest")
    assert onnx_yolo.parse_names("['roof', 'tree']") == ("roof", "tree")
    proof = tmp_path / "ran"
    for text in (
        f"__import__('pathlib').Path({str(proof)!r}).touch()",
        "",
        "{}",
        "{1: 'roof'}",
        "{0: 'roof', 2: 'tree'}",
        "7",
    ):
        with pytest.raises(ValueError, match="the metadata's names are"):
            onnx_yolo.parse_names(text)
    assert not proof.exists()


def test_tiles_are_bordered_and_never_resized():
    form = onnx_yolo.Form(("a",), 64, 96, 64, 32, np.float32)
    image = np.ones((3, 40, 50), np.float32)
    padded = onnx_yolo.pad_to_input(image, form)
    assert padded.shape == (3, 64, 96)
    assert (padded[:, :40, :50] == 1).all()
    assert padded[:, 40:].max() == padded[:, :, 50:].max() == pytest.approx(114 / 255)
    with pytest.raises(ValueError, match="give --tile-size 64 or less"):
        onnx_yolo.pad_to_input(np.ones((3, 65, 65), np.float32), form)
    anything = onnx_yolo.Form(("a",), 0, 0, 640, 32, np.float32)
    assert onnx_yolo.pad_to_input(image, anything).shape == (3, 64, 64)


def test_pixels_are_scaled_as_said():
    assert onnx_yolo.scaled(np.array([0, 255], np.uint8), None).tolist() == [0, 1]
    assert onnx_yolo.scaled(np.array([0, 2000, 9000], np.uint16), 4000).tolist() == [0, 0.5, 1]
    with pytest.raises(TypeError, match="full_scale="):
        onnx_yolo.scaled(np.zeros(3, np.uint16), None)


def test_other_exports_are_refused():
    with pytest.raises(ValueError, match="export with nms=False"):
        onnx_yolo.split_outputs([np.zeros((1, 300, 38)), np.zeros((1, 32, 16, 16))], 2)


def test_a_missing_onnxruntime_or_model_is_said(tmp_path, monkeypatch, capfd, make_raster):
    image = str(make_raster(pixels=paint([])))
    args = [
        "detect",
        image,
        "-o",
        str(tmp_path / "o.gpkg"),
        "--detector",
        "detectors.onnx_yolo:make",
    ]
    monkeypatch.delenv(onnx_yolo.MODEL_VARIABLE, raising=False)
    assert main(args) == 2
    assert "set GEOSEG_YOLO_MODEL=" in capfd.readouterr().err
    model = tmp_path / "model.onnx"
    monkeypatch.setenv(onnx_yolo.MODEL_VARIABLE, str(model))
    assert main(args) == 2
    assert "model.onnx does not exist" in capfd.readouterr().err
    model.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(args) == 2
    assert "run: pip install onnxruntime" in capfd.readouterr().err


# --- YOLO: a model file ----------------------------------------------------------------------

SIDE, CELL, REACH = 128, 8, 44
ABOUT = {
    "task": "segment",
    "stride": "32",
    "imgsz": f"[{SIDE}, {SIDE}]",
    "names": "{0: 'red roof', 1: 'blue roof'}",
}


class Graph:
    """Writes an ONNX graph node by node."""

    def __init__(self, onnx):
        self.helper, self.numpy = onnx.helper, onnx.numpy_helper
        self.nodes, self.constants = [], []

    def constant(self, values, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.numpy.from_array(np.asarray(values, dtype), name))
        return name

    def __call__(self, kind: str, *inputs, name: str | None = None, **attributes) -> str:
        name = name or f"n{len(self.nodes)}"
        given = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self.nodes.append(self.helper.make_node(kind, given, [name], **attributes))
        return name


def write_model(onnx, path: Path, *, about=ABOUT, open_size: bool = False) -> Path:
    """Write a model that sees red and blue things and predicts their bounds and masks.

    Each cell of 8 px looks 44 px around for the bounds of what has the colour of its own pixels, as
    a trained network would from its features; all cells of an object thus report it.
    """
    g = Graph(onnx)
    red, blue = (
        g("Slice", "images", *(g.constant([v], np.int64) for v in (band, band + 1, 1)))
        for band in (0, 2)
    )
    scores, boxes, weights, prototypes = [], [], [], []
    for high, low in ((red, blue), (blue, red)):
        seen = g("And", g("Greater", high, 0.7), g("Less", low, 0.4))
        mask = g("Cast", seen, to=onnx.TensorProto.FLOAT)
        cell = g("AveragePool", mask, kernel_shape=[CELL] * 2, strides=[CELL] * 2)
        scores.append(g("Mul", cell, 0.9))
        boxes.append(bounds(g, mask))
        weights.append(g("Cast", g("Greater", cell, 0.0), to=onnx.TensorProto.FLOAT))
        quarter = g("AveragePool", mask, kernel_shape=[4, 4], strides=[4, 4])
        prototypes.append(g("Sub", g("Mul", quarter, 20.0), 10.0))
    first = g("GreaterOrEqual", *scores)
    box = [g("Where", first, a, b) for a, b in zip(*boxes, strict=True)]
    rows = g("Concat", *box, *scores, *weights, axis=1)
    flat = g("Reshape", rows, g.constant([1, 8, -1], np.int64))
    pads = g.constant([0, 0, 0, 0, 30, 0], np.int64)
    g("Pad", flat, pads, name="output0")
    pads = g.constant([0, 0, 0, 0, 0, 30, 0, 0], np.int64)
    g("Pad", g("Concat", *prototypes, axis=1), pads, name="output1")
    sides = ["height", "width"] if open_size else [SIDE, SIDE]
    outputs = {"output0": [1, 36 + 2, "anchors"], "output1": [1, 32, "rows", "columns"]}
    value, floats = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        g.nodes,
        "seen",
        [value("images", floats, [1, 3, *sides])],
        [value(name, floats, shape) for name, shape in outputs.items()],
        g.constants,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def bounds(g: Graph, mask: str) -> list[str]:
    """Return centre x, centre y, width and height of what a mask shows around each cell."""
    pool = {
        "kernel_shape": [CELL + 2 * REACH] * 2,
        "strides": [CELL] * 2,
        "pads": [REACH] * 4,
    }
    ones = g("Add", g("Mul", mask, 0.0), 1.0)
    centres, sizes = [], []
    for axis in (3, 2):
        # right or lower sides of the pixels, and their left or upper ones counted from the end
        ends = g("CumSum", ones, g.constant(axis, np.int64))
        side = g("ReduceMax", ends, keepdims=1)
        back = g("Sub", g("Add", side, 1.0), ends)
        high = g("MaxPool", g("Mul", mask, ends), **pool)
        low = g("Sub", side, g("MaxPool", g("Mul", mask, back), **pool))
        centres.append(g("Mul", g("Add", low, high), 0.5))
        sizes.append(g("Sub", high, low))
    return [*centres, *sizes]


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: onnx)")
    return pytest.importorskip("onnx", reason="onnx, which writes the model, is not installed")


VIVID_RED, VIVID_BLUE = (220, 40, 40), (40, 60, 230)
VIVID = [(*r[:4], VIVID_RED if r[4] == RED else VIVID_BLUE) for r in RECTANGLES]


def test_onnx_yolo_finds_painted_roofs(onnx, make_raster, tmp_path, monkeypatch):
    monkeypatch.setenv(onnx_yolo.MODEL_VARIABLE, str(write_model(onnx, tmp_path / "m.onnx")))
    image = make_raster(pixels=paint(VIVID))
    # tile size and overlap are the model's
    objects = detect(image, tmp_path, "--detector", "detectors.onnx_yolo:make", "-j", "1")
    check_rectangles(objects, 0.1, off=0.5, iou=0.9)
    assert (objects["score"] > 0.85).all()


def test_onnx_yolo_in_tiles_smaller_than_its_input(onnx, make_raster, tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from functools import partial\nfrom detectors.onnx_yolo import make\n"
        f"roofs = partial(make, {str(tmp_path / 'm.onnx')!r}, gsd_m=0.1, min_score=0.5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_model(onnx, tmp_path / "m.onnx")
    image = make_raster(pixels=paint(VIVID))
    args = ["--detector", "my_models:roofs", "--tile-size", "100", "--overlap", "48", "-j", "1"]
    check_rectangles(detect(image, tmp_path, *args), 0.1, off=0.5, iou=0.9)


def test_onnx_yolo_refuses_tiles_larger_than_its_input(
    onnx, make_raster, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv(onnx_yolo.MODEL_VARIABLE, str(write_model(onnx, tmp_path / "m.onnx")))
    image = make_raster(pixels=paint(VIVID))
    args = ["-o", str(tmp_path / "o.gpkg"), "--detector", "detectors.onnx_yolo:make"]
    assert main(["detect", str(image), *args, "--tile-size", "256", "-j", "1"]) == 3
    assert "give --tile-size 128 or less" in capfd.readouterr().err


def test_onnx_yolo_is_full_and_looks_again(onnx, make_raster, tmp_path):
    path = write_model(onnx, tmp_path / "m.onnx", open_size=True)
    image = make_raster(pixels=paint(VIVID))
    capped = onnx_yolo.make(path, max_detections=4)
    # a tile of 256 px shows more than four roofs, its quarters do not
    objects = geoseg.detect(image, detector=capped, tile_size=256, overlap=64, workers=1)
    check_rectangles(objects, 0.1, off=0.5, iou=0.9)
    (note,) = objects.attrs["notes"]
    assert "were run in quarters" in note


def test_onnx_yolo_travels_and_takes_any_size(onnx, tmp_path, monkeypatch):
    path = write_model(onnx, tmp_path / "m.onnx", open_size=True)
    monkeypatch.setenv(onnx_yolo.GSD_VARIABLE, "0.25")
    detector = onnx_yolo.make(path)
    assert detector.classes == ("red roof", "blue roof")
    assert (detector.tile_size, detector.gsd_m) == (SIDE, 0.25)
    tile = paint([(9, 7, 40, 30, VIVID_RED), (130, 80, 150, 117, VIVID_BLUE)], size=150)
    (there,) = pickle.loads(pickle.dumps(detector))(tile[None])
    (here,) = detector(tile[None])
    found = {tuple(box): label for box, label in zip(here.boxes.tolist(), here.labels, strict=True)}
    assert found == {(9, 7, 40, 30): 0, (130, 80, 150, 117): 1}
    np.testing.assert_array_equal(here.boxes, there.boxes)
    for one, other in zip(here.masks, there.masks, strict=True):
        np.testing.assert_array_equal(one, other)
    assert onnx_yolo.make(path, nms_iou=0.5).fingerprint != detector.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "detect"}, "export a -seg model"),
        ({"names": "open('x')"}, "is no literal"),
        ({"names": "{0: 'roof'}"}, "for 1 classes"),
    ],
)
def test_onnx_models_of_another_form(change, message, onnx, tmp_path):
    path = write_model(onnx, tmp_path / "m.onnx", about=ABOUT | change)
    with pytest.raises(ValueError, match=re.escape(message)):
        onnx_yolo.make(path)(paint([], size=SIDE)[None])


# --- prompts ---------------------------------------------------------------------------------


class Flood:
    """A predictor with SAM's calls: floods what has the colour of the pixel that is asked for.

    Of three masks the second is the object; the first is its upper half, the third everything.
    """

    def __init__(self):
        self.calls = 0

    def set_image(self, image: np.ndarray) -> None:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        code = image.astype(np.int64) @ [65536, 256, 1]
        self.pieces = np.zeros(code.shape, int)
        for value in np.unique(code):
            labels, _ = ndimage.label(code == value)
            self.pieces[labels > 0] = labels[labels > 0] + self.pieces.max()

    def predict(self, point_coords=None, point_labels=None, box=None, *, multimask_output=True):
        self.calls += 1
        if box is not None:
            assert point_coords is None
            assert box.shape == (4,)
            x, y = (box[:2] + box[2:]) / 2
        else:
            assert point_labels.tolist() == [1]
            x, y = point_coords[0]
        whole = self.pieces == self.pieces[int(y), int(x)]
        part = whole & (np.cumsum(whole, axis=0) <= whole.sum(axis=0).max() // 2)
        masks = np.stack([part, whole, np.ones_like(whole)]).astype(np.float32)
        # the estimate may lie a little above 1, as SAM's does
        qualities = np.array([0.7, 1.01, 0.6], np.float32)
        if not multimask_output:
            masks, qualities = masks[1:2], qualities[1:2]
        return masks, qualities, masks


MY_SAM = """
from test_detectors import Flood
from detectors.coloured_roofs import ColouredRoofs
from detectors.segment_anything import BoxPrompts, PointPrompts


def points():
    return PointPrompts(Flood(), fingerprint="flood", spacing_px=20, class_name="roof", gsd_m=0.1)


def boxes():
    return BoxPrompts(Flood(), ColouredRoofs(gsd_m=0.1), fingerprint="flood")
"""


@pytest.fixture
def my_sam(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_sam.py").write_text(MY_SAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_sam", raising=False)


def test_points_find_painted_roofs(my_sam, make_raster, tmp_path):
    image = make_raster(pixels=paint(RECTANGLES))
    objects = detect(image, tmp_path, "--detector", "my_sam:points", *SMALL_TILES)
    assert set(objects["class"]) == {"roof"}
    check_rectangles(objects.drop(columns="class"), 0.1, off=0.05, iou=0.99)
    assert (objects["score"] == 1).all()


def test_boxes_find_painted_roofs(my_sam, make_raster, tmp_path):
    image = make_raster(pixels=paint(RECTANGLES))
    objects = detect(image, tmp_path, "--detector", "my_sam:boxes", *SMALL_TILES)
    check_rectangles(objects, 0.1, off=0.05, iou=0.99)


def test_points_ask_once_for_an_object_and_leave_out_ground_and_crumbs():
    # 16 points 20 px apart: 9 on a large roof, 1 on a crumb, the rest on the ground
    image = paint([(5, 5, 55, 55, RED), (68, 68, 73, 73, BLUE)], size=80)
    flood = Flood()
    detector = PointPrompts(flood, fingerprint="f", spacing_px=20, max_area_share=0.45)
    (found,) = detector(image[None])
    assert found.boxes.tolist() == [[5, 5, 55, 55]]
    assert flood.calls == 16 - 8
    small = PointPrompts(flood, fingerprint="f", spacing_px=20, max_area_share=0.45, min_area_px=9)
    (found,) = small(image[None])
    assert found.boxes.tolist() == [[5, 5, 55, 55], [68, 68, 73, 73]]
    strict = PointPrompts(flood, fingerprint="f", spacing_px=20, max_area_share=0.1)
    assert len(strict(image[None])[0]) == 0
    assert len({detector.fingerprint, small.fingerprint, strict.fingerprint}) == 3
    with pytest.raises(TypeError, match="uint8"):
        detector(image[None].astype(np.uint16))


class Loose(ColouredRoofs):
    """Finds roofs, but boxes them 3 px off and says of the mask no more than that."""

    fingerprint = "loose"

    def __call__(self, tiles):
        return [
            Instances(
                f.boxes + np.float32(3), f.scores, f.labels, np.ones((len(f), 4, 4), np.float32)
            )
            for f in super().__call__(tiles)
        ]


def test_boxes_are_drawn_anew_or_kept():
    image = paint([(20, 30, 70, 80, RED), (90, 20, 120, 60, BLUE)], size=140)
    prompter = Loose()
    fine = BoxPrompts(Flood(), prompter, fingerprint="f")
    assert fine.classes == prompter.classes
    assert (fine.tile_size, fine.gsd_m, fine.min_score) == (1024, 0.13, 0.5)
    (found,) = fine(image[None])
    assert found.boxes.tolist() == [[20, 30, 70, 80], [90, 20, 120, 60]]
    assert found.labels.tolist() == [0, 1]
    assert [m.shape for m in found.masks] == [(50, 50), (40, 30)]
    (kept,) = BoxPrompts(Flood(), prompter, fingerprint="f", min_quality=1.1)(image[None])
    assert kept.boxes.tolist() == [[23, 33, 73, 83], [93, 23, 123, 63]]
    assert [m.shape for m in kept.masks] == [(4, 4), (4, 4)]
    (none,) = fine(paint([], size=140)[None])
    assert len(none) == 0


def test_points_cover_the_tile_and_stray_pixels_stay_out():
    points = grid_points((100, 70), 32)
    assert len(points) == 3 * 2
    assert points.min(axis=0).tolist() == [17.5, pytest.approx(100 / 6)]
    mask = np.zeros((40, 40), bool)
    mask[10:20, 12:25] = True
    mask[39, 39] = True
    box, piece = cut_out(mask)
    assert box == (12, 10, 25, 20)
    assert piece.shape == (10, 13)
    assert piece.all()
