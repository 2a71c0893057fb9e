"""Pixels of any type reach a model as it knows them; what cannot work is said before, and after."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import cases_radiometry as painted
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from cases import check, run_case
from eightbit import AnyRange, EightBit, Fractions

import geoseg
from geoseg.cli.main import main
from geoseg.config import DetectSettings, parse_scale, read_job
from geoseg.errors import ConfigError, ModelError, SourceError
from geoseg.imagery.check import check_image, read_statistics, sight_of
from geoseg.imagery.radiometry import (
    PROBABILITIES,
    BandStatistics,
    Expectation,
    Scaling,
    Sight,
    band_name,
    fits,
    judge,
    plan_scaling,
    quantile,
    share_outside,
    without_fill,
)
from geoseg.imagery.source import describe_raster
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.plan import plan_run
from geoseg.models.registry import load_model, shipped_models

ROOFS = Expectation("roofs", 0.1, 3, names=("red", "green", "blue"))


def same_objects(found: gpd.GeoDataFrame, truth: gpd.GeoDataFrame) -> None:
    """Compare objects with what was painted: count, place within 0.5 px, area within 2 %."""
    found = found.to_crs(truth.crs)
    assert len(found) == len(truth)
    distance = shapely.distance(
        shapely.centroid(truth.geometry.array)[:, None],
        shapely.centroid(found.geometry.array)[None],
    )
    partner = distance.argmin(axis=1)
    assert sorted(partner) == list(range(len(truth)))
    assert distance.min(axis=1).max() < 0.5 * painted.PIXEL
    areas = shapely.area(found.geometry.array)[partner]
    np.testing.assert_allclose(areas, shapely.area(truth.geometry.array), rtol=0.02)


def image(folder: Path, name: str = "image.tif", convert=lambda v: v, dtype="uint8", **written):
    painted.write(folder / name, convert(painted.scene()), dtype, **written)
    return str(folder / name)


def run(images: str | tuple[str, ...], detector=None, **settings):
    images = (images,) if isinstance(images, str) else images
    return run_detect(
        DetectSettings(images=images, **({"workers": 1} | settings)), detector or EightBit()
    )


def sight(path: str, bands: tuple[int, ...] = (1, 2, 3), **known) -> Sight:
    return sight_of(describe_raster(path), bands, statistics=True, **known)


# -- every case through the command line ------------------------------------------------------


@pytest.mark.parametrize("case", painted.CASES, ids=lambda case: case.name)
def test_case(case, tmp_path):
    outcome = run_case(case, tmp_path)
    check(case, outcome)
    truth = case.make(tmp_path).truth
    if case in painted.FOUND:
        same_objects(outcome.objects, truth)
    if case in painted.EMPTY:
        assert len(outcome.objects) == 0
    if case in painted.REFUSED:
        assert outcome.objects is None


def test_no_two_cases_share_a_name():
    names = [case.name for case in painted.CASES]
    assert len(set(names)) == len(names)


# -- statistics -------------------------------------------------------------------------------


def band(values: np.ndarray, number: int = 1, invalid: float = 0.0) -> BandStatistics:
    """Return the statistics of values, by numpy."""
    values = np.asarray(values, float)
    shown, fill = without_fill(values)
    return BandStatistics(
        number, values.min(), values.max(), values.mean(), invalid, 0.0, 0.0, values.std(),
        tuple(np.quantile(shown, PROBABILITIES)), fill,
    )  # fmt: skip


def test_statistics_are_those_of_the_pixels(make_raster):
    rng = np.random.default_rng(1)
    pixels = rng.gamma(3, 400, (3, 200, 300)).astype(np.uint16)
    info = describe_raster(make_raster("deep.tif", pixels))
    bands, source = read_statistics(info, (3, 1, 3))
    assert source == "all pixels"
    assert [b.band for b in bands] == [3, 1, 3]
    for got, of in zip(bands, pixels[[2, 0, 2]].astype(float), strict=True):
        assert got.std == pytest.approx(of.std(), rel=1e-4)
        assert (got.quantiles[0], got.quantiles[-1]) == (of.min(), of.max())
        assert quantile([got], 0.02) == pytest.approx(np.percentile(of, 2), abs=3)
        assert quantile([got], 0.98) == pytest.approx(np.percentile(of, 98), abs=6)
    assert read_statistics(info, (3, 1, 3))[0] == bands


def test_percentiles_of_several_bands_are_those_of_all_their_pixels():
    rng = np.random.default_rng(2)
    parts = [rng.normal(mean, 30, n) for mean, n in [(100, 40_000), (300, 10_000), (220, 5_000)]]
    bands = [band(part) for part in parts]
    weights = [len(part) for part in parts]
    everything = np.concatenate(parts)
    for share in (0.02, 0.5, 0.98):
        wanted = np.quantile(everything, share)
        assert quantile(bands, share, weights) == pytest.approx(wanted, abs=2)


def test_a_border_that_nobody_declared_decides_nothing():
    rng = np.random.default_rng(3)
    ground = rng.normal(1500, 200, 50_000)
    assert quantile([band(np.r_[np.zeros(30_000), ground])], 0.02) == pytest.approx(
        np.quantile(ground, 0.02), rel=0.01
    )
    # a few black pixels are part of the picture
    few = np.r_[np.zeros(200), ground]
    assert quantile([band(few)], 0.02) == pytest.approx(np.quantile(few, 0.02), rel=0.01)


def test_what_lies_outside_a_range():
    bands = [band(np.linspace(0, 1000, 10_001))]
    assert share_outside(bands, 0, 1000) == 0
    assert share_outside(bands, 100, 800) == pytest.approx(0.3, abs=1e-3)
    assert share_outside(bands, -5, 50) == pytest.approx(0.95, abs=1e-3)
    assert share_outside(bands, 2000, 3000) == 1


def test_a_damaged_file_is_looked_at_where_it_can_be(make_raster):
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = make_raster(height=256, width=256, **options)
    info = describe_raster(path)
    with rasterio.open(path) as src:
        offset, size = (
            int(src.get_tag_item(f"{k}_1_1", "TIFF", bidx=1))
            for k in ("BLOCK_OFFSET", "BLOCK_SIZE")
        )
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = b"\xff" * size
    path.write_bytes(data)
    bands, _ = read_statistics(info, (1, 2, 3), skip_damaged=True)
    assert all(b.quantiles for b in bands)


# -- which scale ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype", "wanted", "fit"),
    [
        ((0, 255), "uint8", ("uint8", (0, 255)), True),
        ((3, 9), "uint8", ("uint8", (0, 255)), True),  # dark, but 8 bits: left to the user
        ((0, 255), "uint16", ("uint8", (0, 255)), True),  # 8 bits in 16
        ((0, 256), "uint16", ("uint8", (0, 255)), False),
        ((0, 10), "uint16", ("uint8", (0, 255)), False),  # hardly any of the range
        ((-1, 200), "int16", ("uint8", (0, 255)), False),
        ((0, 1), "float32", ("uint8", (0, 255)), False),
        ((0, 255), "float32", ("uint8", (0, 255)), True),
        ((0, 1), "float32", ("float32", (0, 1)), True),
        ((0, 10_000), "float32", ("float32", (0, 1)), False),
        ((0, 255), "uint8", ("float32", (0, 1)), False),
        ((0, 65_535), "uint16", ("uint16", (0, 65_535)), True),
        ((0, 3_000), "uint16", ("uint16", (0, 65_535)), False),  # 12 bits for a model of 16
        ((0, 99_999), "uint16", (None, None), True),  # nothing asked for
    ],
)
def test_which_values_a_model_knows(values, dtype, wanted, fit):
    expected = replace(ROOFS, dtype=wanted[0], value_range=wanted[1])
    assert fits([band(np.linspace(*values, 5_000))], dtype, expected) is fit


def a_sight(low: float, high: float, dtype: str = "uint16", side: int = 100) -> Sight:
    info = describe_raster.__globals__["RasterInfo"](
        "x.tif", "", None, side, side, 3, dtype, None, "none", (1, side), 0.1, ""
    )
    values = np.linspace(low, high, 20_001)
    return Sight(info, (1, 2, 3), statistics=(band(values),) * 3, source="all pixels")


def test_one_image_is_scaled_into_the_middle_of_the_range():
    (scaling,) = plan_scaling([a_sight(1000, 2000)], ROOFS)
    assert (scaling.low, scaling.high) == pytest.approx((1020, 1980))
    assert (scaling.to_low, scaling.to_high) == (25.5, 229.5)
    assert (scaling.dtype, scaling.value_range) == ("uint8", (0, 255))


def test_sheets_of_one_type_share_a_scale():
    sheets = [
        a_sight(0, 1000),
        a_sight(0, 2000, side=300),
        a_sight(0, 60_000),
        a_sight(0, 1, "float32"),
    ]
    first, second, bright, fractions = plan_scaling(sheets, ROOFS)
    assert first == second
    # the larger sheet has nine times the pixels
    assert first.high == pytest.approx(
        np.quantile(np.r_[np.linspace(0, 1000, 1_000), np.linspace(0, 2000, 9_000)], 0.98), rel=0.01
    )
    assert "2 images together" in first.how
    # another kind of imagery: 30 times as bright
    assert bright.high == pytest.approx(0.98 * 60_000, rel=0.01)
    assert fractions.high == pytest.approx(0.98, rel=0.01)
    # whatever else is in the job, and in whatever order
    assert plan_scaling(sheets[::-1], ROOFS)[::-1] == [first, second, bright, fractions]


def test_eight_bits_keep_their_black_and_white():
    expected = replace(ROOFS, dtype="float32", value_range=(0, 1))
    (scaling,) = plan_scaling([a_sight(30, 90, "uint8")], expected)
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    valid = np.ones((1, 3), bool)
    np.testing.assert_allclose(scaling.apply(pixels, valid), [[[0, 0.2, 1]]], rtol=1e-6)


def test_what_the_user_says_holds():
    sheets = [a_sight(0, 1000), a_sight(0, 255, "uint8")]
    deep, plain = plan_scaling(sheets, ROOFS, "none")
    # what a detector says it takes is what it gets
    assert (deep.keeps_values, deep.dtype, plain) == (True, "uint8", None)
    for scaling in plan_scaling(sheets, ROOFS, (10.0, 500.0)):
        assert (scaling.low, scaling.high, scaling.to_low, scaling.to_high) == (10, 500, 0, 255)


def test_a_scale_for_one_value_divides_by_nothing():
    (scaling,) = plan_scaling([a_sight(700, 700)], ROOFS)
    assert scaling.high > scaling.low


def test_pixels_are_rounded_cut_off_and_invalid_ones_stay_0():
    scaling = Scaling(100, 300, 25.5, 229.5, (0, 255), "uint8")
    pixels = np.array([[[[0, 100, 200, 300, 9999]]]], np.uint16)
    valid = np.array([[[True, True, True, True, False]]])
    assert scaling.apply(pixels, valid).tolist() == [[[[0, 26, 128, 230, 0]]]]
    below = scaling.apply(pixels.astype(np.int16) - 5000, valid)
    assert (below.dtype, below.max()) == (np.uint8, 0)
    assert pickle.loads(pickle.dumps(scaling)) == scaling


def test_float_pixels_far_from_0_keep_their_detail():
    scaling = Scaling(1e6, 1e6 + 16, 0, 255, (0, 255), "uint8")
    pixels = np.linspace(1e6, 1e6 + 16, 17, dtype=np.float32)[None, None]
    got = scaling.apply(pixels, np.ones((1, 17), bool))
    np.testing.assert_array_equal(got[0, 0], np.rint(np.arange(17) * 255 / 16))


# -- the same for every tile, worker and resume ------------------------------------------------


def test_no_tile_has_a_scale_of_its_own(tmp_path):
    deep = image(tmp_path, convert=lambda v: v * 17, dtype="uint16")
    whole = run(deep, tile_size=320, overlap=0)
    tiles = run(deep, tile_size=64, overlap=16, supertile_size=100)
    same_objects(whole.objects, painted.truth())
    # the right half is ground alone: stretched by itself, its noise would be full of roofs
    same_objects(tiles.objects, painted.truth())
    assert sum(tiles.supertiles.values()) > 4


def test_two_workers_scale_alike(tmp_path):
    deep = image(tmp_path, convert=lambda v: v / 255, dtype="float32")
    alone = run(deep, tile_size=64, overlap=16, supertile_size=100)
    both = run(deep, tile_size=64, overlap=16, supertile_size=100, workers=2)
    assert both.objects.drop(columns="geometry").equals(alone.objects.drop(columns="geometry"))


def test_the_run_tells_its_numbers(tmp_path, caplog):
    deep = image(tmp_path, convert=lambda v: v * 17, dtype="uint16")
    with caplog.at_level("INFO", logger="geoseg"):
        result = run(deep, output=tmp_path / "out.gpkg")
    manifest = json.loads((tmp_path / "out.geoseg-run" / "run.json").read_text())
    (of_image,) = manifest["images"]
    scaling = of_image["scaling"]
    assert scaling["to"] == [25.5, 229.5]
    assert scaling["from"][0] == pytest.approx(17 * np.percentile(painted.scene(), 2), rel=0.05)
    assert of_image["statistics"][0]["max"] == 17 * painted.scene()[0].max()
    line = f"image.tif: uint16 pixels are scaled: {scaling['from'][0]:.6g} to"
    assert sum(line in note for note in result.notes) == 1
    assert sum(line in record.message for record in caplog.records) == 1
    assert line in result.report.read_text()
    # what is as it was leaves no trace in the key: old runs go on
    plain = run(image(tmp_path, "plain.tif"), output=tmp_path / "plain.gpkg")
    manifest = json.loads((tmp_path / "plain.geoseg-run" / "run.json").read_text())
    assert manifest["images"][0]["scaling"] is None
    assert not any("scaled" in note for note in plain.notes)


def test_parts_of_another_scale_are_not_mixed_in(tmp_path):
    deep = image(tmp_path, convert=lambda v: v * 17, dtype="uint16")
    settings = {"output": tmp_path / "out.gpkg"}
    first = run(deep, **settings)
    again = run(deep, **settings)
    assert (again.already_done, again.n_objects) == (True, 4)
    key = plan_run(DetectSettings(images=(deep,)), EightBit()).key
    assert plan_run(DetectSettings(images=(deep,)), EightBit()).key == key
    other = DetectSettings(images=(deep,), scale="0,70000")
    assert plan_run(other, EightBit()).key != key
    with pytest.raises(ConfigError, match="other"):
        run(deep, scale="0,70000", run_dir=tmp_path / "out.geoseg-run", output=tmp_path / "b.gpkg")
    changed = run(deep, scale="0,70000", overwrite=True, **settings)
    assert (first.n_objects, changed.n_objects) == (4, 0)


def test_sheets_that_overlap_show_an_object_alike(tmp_path):
    left = image(tmp_path, "left.tif", lambda v: (v * 17)[:, :, :180], "uint16")
    shift = 60
    pixels = painted.scene()[:, :, shift:] * 17
    right = tmp_path / "right.tif"
    with rasterio.open(
        right, "w", driver="GTiff", dtype="uint16", count=3, crs=painted.CRS, height=300,
        width=300 - shift, photometric="RGB",
        transform=rasterio.Affine(0.1, 0, painted.LEFT + 0.1 * shift, 0, -0.1, painted.TOP),
    ) as dst:  # fmt: skip
        dst.write(pixels.astype(np.uint16))
    plan = plan_run(DetectSettings(images=(left, str(right))), EightBit())
    assert plan.images[0].scaling == plan.images[1].scaling
    same_objects(run((left, str(right))).objects, painted.truth())


# -- what detectors say of themselves ---------------------------------------------------------


def test_a_detector_that_says_nothing_gets_pixels_as_they_are(tmp_path):
    seen = []

    class Watching(AnyRange):
        def __call__(self, tiles):
            seen.append((tiles.dtype, tiles.max()))
            return super().__call__(tiles)

    pixels = painted.scene() * 17
    run(image(tmp_path, convert=lambda v: v * 17, dtype="uint16"), Watching())
    assert {dtype for dtype, _ in seen} == {np.dtype("uint16")}
    assert max(most for _, most in seen) == pixels.max()


def test_a_detector_may_ask_for_fractions(tmp_path):
    for name, convert, dtype in [
        ("a.tif", lambda v: v, "uint8"),
        ("b.tif", lambda v: v * 257, "uint16"),
    ]:
        found = run(image(tmp_path, name, convert, dtype), Fractions()).objects
        same_objects(found, painted.truth())


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"dtype": "uint9"}, "expected the name of a numpy type"),
        ({"dtype": None, "value_range": (1,)}, "expected the name of a numpy type"),
        ({"value_range": (255, 0)}, "value_range is .255.0, 0.0.; expected .lowest, highest."),
        ({"value_range": (0, float("nan"))}, "expected .lowest, highest."),
        ({"dtype": "float32", "value_range": None}, "such as .0, 1. of float32"),
    ],
)
def test_a_detector_that_contradicts_itself(tmp_path, attributes, message):
    detector = EightBit()
    for name, value in attributes.items():
        setattr(detector, name, value)
    with pytest.raises(ModelError, match=message):
        run(image(tmp_path), detector)


def test_a_type_is_a_range(tmp_path):
    detector = EightBit()
    detector.value_range = None
    found = run(image(tmp_path, convert=lambda v: v * 17, dtype="uint16"), detector).objects
    same_objects(found, painted.truth())


@pytest.mark.parametrize("text", ["", "1", "5,5", "9,1", "a,b", "1,2,3", "nan,4", "0,inf", "None"])
def test_scales_that_are_none(text):
    with pytest.raises(ConfigError, match="--scale is"):
        parse_scale(text)


def test_a_job_file_sets_the_scale(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text('[detect]\nimages = ["a.tif"]\nscale = "100,4000"\nforce = true\n')
    settings = read_job(job)
    assert (parse_scale(settings.scale), settings.force) == ((100.0, 4000.0), True)


def test_a_pair_sets_the_scale_in_python(tmp_path):
    deep = image(tmp_path, convert=lambda v: v * 17, dtype="uint16")
    pair = geoseg.detect(deep, detector=EightBit(), scale=(0, 4335.0), workers=1)
    same_objects(pair, painted.truth())
    assert any("0 to 4335 become 0 to 255" in note for note in pair.attrs["notes"])
    none = geoseg.detect(deep, detector=EightBit(), scale="none", workers=1)
    assert any("values reach" in note for note in none.attrs["notes"])


# -- before the night -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("color", "description", "name"),
    [
        ("red", None, "red"),
        ("gray", "Band 3: Blue (490 nm)", "blue"),
        ("undefined", "nir", "near infrared"),
        ("undefined", "near-infrared", "near infrared"),
        ("undefined", "NIR2", "near infrared"),
        ("undefined", "Red Edge 1", "red edge"),
        ("red", "near_infrared", "near infrared"),  # what a person wrote outweighs a default
        ("undefined", "infrared", "near infrared"),
        ("undefined", "reduced", ""),
        ("alpha", None, ""),
    ],
)
def test_what_bands_are_called(color, description, name):
    assert band_name(color, description) == name


def test_check_plan_and_detect_say_the_same(tmp_path, capsys):
    path = image(tmp_path, convert=lambda v: v[::-1] * 17, dtype="uint16", tagged=False)
    settings = DetectSettings(images=(path,))
    plan = plan_run(settings, EightBit())
    texts = [finding.text for finding in plan.images[0].findings]
    assert len(texts) == 2
    expected = replace(ROOFS, model="EightBit")
    assert [t for t in check_image(path, expected, statistics=True).notes if t in texts] == texts
    args = ["plan", path, "--no-probe", "--detector", "eightbit:make"]
    assert main(args) == 0
    said = capsys.readouterr().out
    for text in texts:
        assert text in said, text
    result = run(path)
    for text in texts:
        assert any(text in note for note in result.notes)


def test_check_says_what_detect_would_refuse(tmp_path):
    path = image(tmp_path, pixel=0.6)
    report = check_image(path, replace(ROOFS, model="EightBit"))
    with pytest.raises(SourceError) as refused:
        run(path)
    (problem,) = report.problems
    assert problem in str(refused.value)
    assert report.state == "unusable"


def test_the_header_alone_says_that_pixels_will_be_scaled(tmp_path):
    path = image(tmp_path, convert=lambda v: v * 17, dtype="uint16")
    assert any("geoseg detect scales them" in n for n in check_image(path, ROOFS).notes)


def test_one_black_sheet_of_two_stops_nothing(tmp_path):
    good = image(tmp_path, "good.tif")
    black = image(tmp_path, "black.tif", lambda v: v * 0)
    result = run((good, black))
    same_objects(result.objects, painted.truth())
    assert any("black.tif: 100% of the valid pixels" in note for note in result.notes)
    with pytest.raises(SourceError, match=r"all bands.*--force runs it anyway"):
        run(black)


def test_many_remarks_are_few_lines(tmp_path):
    dark = [image(tmp_path, f"{i}.tif", lambda v, i=i: v / (30 + i), nodata=0.0) for i in range(8)]
    plan = plan_run(DetectSettings(images=tuple(dark)), EightBit())
    notes = plan.notes("warn")
    assert len(notes) == 6
    assert notes[-1].startswith("3 more images have notes like these (flat)")


def test_land_in_its_colours_is_no_hint(tmp_path):
    assert judge(sight(image(tmp_path, tagged=False)), ROOFS) == []
    swapped = sight(image(tmp_path, "b.tif", lambda v: v[::-1], tagged=False))
    assert [f.kind for f in judge(swapped, ROOFS)] == ["colour"]
    # grey is no colour, and tags are believed
    grey = sight(image(tmp_path, "c.tif", lambda v: np.repeat(v[:1], 3, axis=0), tagged=False))
    assert judge(grey, ROOFS) == []
    assert judge(sight(image(tmp_path, "d.tif", lambda v: v[::-1])), ROOFS) == []


def test_detectors_that_say_nothing_are_not_kept_waiting(tmp_path, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("pixels were read")

    monkeypatch.setattr("geoseg.imagery.check.read_statistics", never)
    plan_run(DetectSettings(images=(image(tmp_path),)), AnyRange())


# -- after an empty night ---------------------------------------------------------------------


def test_an_empty_result_is_explained_everywhere(tmp_path, capsys):
    path, output = image(tmp_path), tmp_path / "out.gpkg"
    args = ["detect", path, "-o", str(output), "--detector", "eightbit:make", "-j", "1"]
    assert main([*args, "--min-score", "0.95", "--json"]) == 0
    said = capsys.readouterr()
    values = json.loads(said.out)
    assert values["why_nothing"][0]["kind"] == "threshold"
    assert "why that may be" in said.err
    assert "give --min-score 0.5" in said.err
    run_dir = output.with_name("out.geoseg-run")
    manifest = json.loads((run_dir / "run.json").read_text())
    assert manifest["why_nothing"] == values["why_nothing"]
    assert "give --min-score 0.5" in (run_dir / "report.html").read_text()
    # it says the same when it is asked again, from the parts
    assert main([*args, "--min-score", "0.95", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["already_done"], again["why_nothing"]) == (True, values["why_nothing"])
    # and does what it says
    assert main([*args, "--min-score", "0.5", "--overwrite", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["objects"], values["why_nothing"]) == (4, [])


def test_failed_tiles_come_first(tmp_path):
    class Failing(EightBit):
        def __call__(self, tiles):
            raise ValueError("no")

    result = run(image(tmp_path), Failing())
    assert result.exit_code == 3
    assert result.why_nothing[0].kind == "failed"


def test_scores_below_the_threshold_survive_a_salvage(tmp_path):
    class Once(EightBit):
        """Fails on the tile with the left upper roof, and is not sure of the others."""

        def __call__(self, tiles):
            if (tiles[:, 0, 40, 40] > 150).any() and tiles.shape[0] > 0:
                raise ValueError("no")
            return super().__call__(np.where(tiles > 150, 160, tiles).astype(np.uint8))

    result = run(image(tmp_path), Once())
    assert [c.kind for c in result.why_nothing[:2]] == ["failed", "score"]


@pytest.mark.skipif("buildings" not in shipped_models(), reason="no model is shipped")
def test_the_shipped_model_tells_what_it_left_out():
    rng = np.random.default_rng(0)
    tiles = rng.integers(60, 120, (1, 3, 256, 256)).astype(np.uint8)
    tiles[:, :, 60:120, 60:130] = 220
    detector = load_model("buildings", device="cpu")
    assert (detector.dtype, detector.value_range) == ("uint8", (0, 255))
    (low,) = load_model("buildings", device="cpu", min_score=0.02)(tiles)
    best = float(low.scores.max())
    assert 0.02 < best < 1
    (found,) = load_model("buildings", device="cpu", min_score=min(best + 0.01, 1))(tiles)
    assert len(found) == 0
    # before boxes are compared with each other: the best of all is there
    assert found.best_below == pytest.approx(best, abs=1e-4)
    assert found.n_below >= 1
