"""The command line: what it imports, prints and returns."""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from click.testing import CliRunner

from geoseg import __version__
from geoseg.cli import main as cli_main
from geoseg.cli.main import VERBS, cli, main, set_up_logging
from geoseg.cli.show import show_json, show_table
from geoseg.errors import RegionError
from geoseg.models import registry

ROOT = Path(__file__).parents[1]
UTM = 32633


@pytest.fixture(autouse=True)
def quiet_logging():
    """Put the process's logging back: the command configures it."""
    root, ours = logging.getLogger(), logging.getLogger("geoseg")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)


def written():
    """Return the verbs whose file exists."""
    return [v for v in VERBS if (ROOT / "geoseg" / "cli" / f"{v}.py").is_file()]


def python(*arguments, **options):
    """Run Python in a process of its own, on this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def run(capsys, *arguments):
    """Run the entry point; return exit code, stdout and stderr."""
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def one_line(err):
    assert err.count("\n") == 1, err
    assert err.startswith("geoseg: ")
    return err


def squares(tmp_path, name="objects.gpkg", layer="objects", n=6, shift=0.0, **columns):
    """Write n squares of 10 m, 20 m apart, and return the path."""
    x = 500_000 + 20 * np.arange(n) + shift
    table = gpd.GeoDataFrame(
        {"score": np.linspace(0.95, 0.45, n)} | columns,
        geometry=shapely.box(x, 5_000_000, x + 10, 5_000_010),
        crs=UTM,
    )
    path = tmp_path / name
    table.to_file(path, layer=layer)
    return path


def halves(tmp_path):
    """Write two regions: one over the first three squares, one over the next two."""
    table = gpd.GeoDataFrame(
        {"name": ["west", "east [b]"]},
        geometry=[
            shapely.box(499_990, 4_999_990, 500_055, 5_000_020),
            shapely.box(500_055, 4_999_990, 500_095, 5_000_020),
        ],
        crs=UTM,
    )
    path = tmp_path / "regions.gpkg"
    table.to_file(path, layer="wards")
    return path


# The group


def test_help_names_every_verb_and_imports_none_of_the_heavy_libraries():
    code = (
        "import sys\n"
        "from geoseg.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'geopandas', 'rasterio', 'shapely', 'dask',\n"
        "         'pandas', 'pyogrio', 'scipy', 'rich'}\n"
        "loaded = sorted(heavy & set(sys.modules))\n"
        "assert not loaded, loaded\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for verb, text in VERBS.items():
        assert f"  {verb} " in done.stdout
        assert text.split()[0] in done.stdout


def test_the_help_of_a_verb_does_not_wait_for_torch():
    for verb in written():
        code = (
            "import sys\n"
            "from geoseg.cli.main import main\n"
            f"assert main([{verb!r}, '--help']) == 0\n"
            "assert 'torch' not in sys.modules\n"
        )
        done = python("-c", code)
        assert done.returncode == 0, (verb, done.stderr)


@pytest.mark.parametrize("verb", written())
def test_the_table_of_verbs_says_what_the_verb_says(verb):
    command = importlib.import_module(f"geoseg.cli.{verb}").command
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=200) == VERBS[verb]


def test_every_file_of_a_verb_is_in_the_table():
    texts = {p.stem: p.read_text("utf-8") for p in (ROOT / "geoseg" / "cli").glob("*.py")}
    files = {name for name, text in texts.items() if "\ndef command(" in text}
    assert files == set(written())
    assert len(files) >= 6


def test_the_module_runs_as_a_program():
    done = python("-m", "geoseg.cli.main", "--version")
    assert done.returncode == 0
    assert __version__ in done.stdout


# Errors and exit codes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nope"], "No such command 'nope'"),
        (["count", "a.gpkg"], "Missing argument 'REGIONS' (see geoseg count --help)"),
        (["count", "a.gpkg", "b.gpkg", "--rule", "best"], "'best' is not one of"),
        (["evaluate", "a.gpkg", "b.gpkg", "--iou", "0"], "0"),
        (["preview", "a.tif", "b.gpkg", "-o", "c.png", "--bounds", "1,2,3"], "not four numbers"),
        (["count", "a.gpkg", "b.gpkg"], "objects file a.gpkg does not exist"),
        (["count", "a.gpkg", "b.gpkg", "-o", "c.doc"], "unknown suffix '.doc'"),
        (["preview", "a.tif", "b.gpkg", "-o", "c.tif"], "expected .png"),
        (["evaluate", "a.gpkg", "b.gpkg", "--aoi-where", "x = 1"], "there is no --aoi"),
        (["models", "show", "nope"], "unknown model 'nope'"),
        (["train", "nope.toml", "-o", "run"], "nope.toml does not exist"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_2(capsys, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert text in one_line(err)
    assert not list(tmp_path.iterdir())


def test_without_a_verb_the_help_comes_and_2(capsys):
    code, _, err = run(capsys)
    assert code == 2
    assert "Verbs:" in err


def stand_in(monkeypatch, function):
    """Make `function` what the verb 'doctor' does."""
    real = importlib.import_module

    class Module:
        command = click.command("doctor")(function)

    monkeypatch.setattr(
        cli_main.importlib,
        "import_module",
        lambda name: Module if name == "geoseg.cli.doctor" else real(name),
    )


@pytest.mark.parametrize("returned", [0, 1, 3, 4])
def test_the_code_that_a_verb_returns_or_exits_with_is_the_exit_code(capsys, monkeypatch, returned):
    stand_in(monkeypatch, lambda: returned)
    assert run(capsys, "doctor")[0] == returned
    stand_in(monkeypatch, lambda: click.get_current_context().exit(returned))
    assert run(capsys, "doctor")[0] == returned


def test_errors_have_their_own_codes_and_long_messages_one_line(capsys, monkeypatch):
    def fail():
        raise RegionError("first\n  second")

    stand_in(monkeypatch, fail)
    assert run(capsys, "doctor") == (2, "", "geoseg: error: first second\n")


def test_a_verb_may_find_fault_with_its_usage(capsys, monkeypatch):
    def fail():
        raise click.UsageError("job.toml names no output")

    stand_in(monkeypatch, fail)
    said = "geoseg: error: job.toml names no output (see geoseg doctor --help)\n"
    assert run(capsys, "doctor") == (2, "", said)


def test_a_defect_is_one_line_and_the_traceback_comes_when_asked_for(capsys, monkeypatch):
    def fail():
        raise ZeroDivisionError("by zero")

    stand_in(monkeypatch, fail)
    code, _, err = run(capsys, "doctor")
    assert code == 1
    assert "internal error: ZeroDivisionError: by zero" in one_line(err)
    assert "geoseg -v VERB" in err
    for option in ("-v", "--debug"):
        code, _, err = run(capsys, option, "doctor")
        assert code == 1
        assert "Traceback" in err
        assert err.endswith("geoseg: internal error: ZeroDivisionError: by zero\n")


def test_ctrl_c_is_130(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    stand_in(monkeypatch, stop)
    code, _, err = run(capsys, "doctor")
    assert code == 130
    assert "stopped" in err


def test_a_real_interrupt_is_130():
    code = (
        "import sys, time, click\n"
        "from geoseg.cli import main as m\n"
        "@click.command()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "m.cli.add_command(wait, 'wait')\n"
        "m.VerbGroup.get_command = lambda self, ctx, name: wait\n"
        "sys.exit(m.main(['wait']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_traceback():
    code = "import sys; from geoseg.cli.main import main; sys.exit(main(['--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, {"info", "warning", "error"}),
        ({"verbose": True}, {"debug", "info", "warning", "error"}),
        ({"quiet": True}, {"error"}),
    ],
)
def test_the_log_goes_to_stderr_as_loud_as_wished(capsys, options, shown):
    set_up_logging(**options)
    logger = logging.getLogger("geoseg.jobs")
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("it is %s", f"<{level}>")
    logging.getLogger("rasterio").debug("<theirs>")
    said = capsys.readouterr()
    assert said.out == ""
    assert {w for w in ("debug", "info", "warning", "error") if f"<{w}>" in said.err} == shown
    assert "<theirs>" not in said.err
    assert ("warning: it is <warning>" in said.err) == ("warning" in shown)


# Tables and JSON


def test_a_table_in_a_pipe_is_aligned_text(capsys):
    show_table(["name", "n"], [["a", 5], ["long\nname", None]], totals=[["all", 105]])
    assert capsys.readouterr().out.splitlines() == [
        "name         n",
        "a            5",
        "long name    -",
        "all        105",
    ]


def test_a_table_on_a_terminal_keeps_what_looks_like_markup(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table(["name", "n"], [["[red]x[/red]", 1.5]], totals=[["all", 1.5]])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "1.500" in out
    assert "all" in out


def test_json_has_no_nan(capsys):
    show_json({"a": float("nan"), "b": [1.5, float("inf"), {"c": (1, "é")}]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [1.5, None, {"c": [1, "é"]}]}


# count


def test_count_prints_regions_outside_and_total(capsys, tmp_path):
    code, out, err = run(capsys, "count", squares(tmp_path), halves(tmp_path))
    assert (code, err) == (0, "")
    rows = [line.split()[: 3 if "[b]" in line else 2] for line in out.splitlines()]
    assert rows == [
        ["region", "count"],
        ["west", "3"],
        ["east", "[b]", "2"],
        ["outside", "1"],
        ["total", "6"],
    ]


def test_count_writes_what_it_prints(capsys, tmp_path):
    objects, regions = squares(tmp_path), halves(tmp_path)
    for suffix in (".gpkg", ".csv", ".geojson"):
        output = tmp_path / f"counts{suffix}"
        code, out, _ = run(capsys, "count", objects, regions, "-o", output, "--json")
        assert code == 0
        told = json.loads(out)
        assert (told["total"], told["outside"], told["rule"]) == (6, 1, "point")
        assert [(r["region"], r["count"]) for r in told["regions"]] == [
            ("west", 3),
            ("east [b]", 2),
        ]
        assert told["regions"][0]["imaged_share"] is None
        table = gpd.read_file(output)
        assert table["name"].tolist() == ["west", "east [b]"]
        assert table["count"].astype(int).tolist() == [3, 2]
        code, _, err = run(capsys, "count", objects, regions, "-o", output)
        assert code == 2
        assert "--overwrite" in one_line(err)
        assert run(capsys, "count", objects, regions, "-o", output, "--overwrite")[0] == 0


def test_count_takes_a_rule_a_layer_and_a_field(capsys, tmp_path):
    # shifted by 8 m, the third square is split 7:3 between the two regions
    objects, regions = squares(tmp_path, shift=8.0), halves(tmp_path)
    code, out, _ = run(
        capsys, "count", objects, regions, "--rule", "area", "--layer", "wards", "--json"
    )
    assert code == 0
    assert [r["count"] for r in json.loads(out)["regions"]] == pytest.approx([2.7, 2.0])
    code, _, err = run(capsys, "count", objects, regions, "--layer", "nope")
    assert code == 2
    assert "no layer 'nope'" in err
    code, _, err = run(capsys, "count", objects, regions, "--region-field", "ward")
    assert code == 2
    assert "no field 'ward'" in err
    code, _, err = run(capsys, "count", objects, regions, "--rule", "intersects")
    assert code == 0
    assert "1 objects lie in more than one region" in err


# evaluate


def test_evaluate_gives_the_figures(capsys, tmp_path):
    # shifted by 2 m: IoU 8 / 12; the truth lacks the first square of the objects
    objects = squares(tmp_path, shift=2.0)
    truth = squares(tmp_path, "truth.gpkg", "truth", kind=["a"] + ["b"] * 5)
    code, out, _ = run(capsys, "evaluate", objects, truth, "--where", "kind = 'b'", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["tp"], told["fp"], told["fn"]) == (5, 1, 0)
    assert told["mean_iou"] == pytest.approx(8 / 12, abs=1e-3)
    code, out, _ = run(capsys, "evaluate", objects, truth, "--iou", "0.7")
    assert code == 0
    whole, by_size = out.split("\n\n")
    assert dict(line.split() for line in whole.splitlines())["tp"] == "0"
    assert by_size.splitlines()[0].startswith("by size")
    told = json.loads(run(capsys, "evaluate", objects, truth, "--min-score", "0.7", "--json")[1])
    assert (told["tp"], told["fp"], told["fn"]) == (3, 0, 3)


def test_evaluate_takes_it_apart(capsys, tmp_path):
    kinds = {"class": ["boat"] * 5 + ["car"]}
    objects = squares(tmp_path, shift=2.0, **kinds)
    truth = squares(tmp_path, "truth.gpkg", "truth", **{"class": ["boat"] * 6})
    judged, curves = str(tmp_path / "judged.gpkg"), str(tmp_path / "curves.png")
    args = ["evaluate", objects, truth, "--regions", halves(tmp_path), "--sizes", "50"]
    args += ["-o", judged, "--curves", curves]
    code, out, _ = run(capsys, *args, "--by-class")
    assert code == 0
    confused = out.split("what was taken for what")[1].splitlines()
    assert confused[1].split() == ["boat", "car", "(nothing)"]
    assert confused[2].split() == ["boat", "5", "1", "0"]
    code, out, _ = run(capsys, *args, "--overwrite", "--json")
    assert code == 0
    told = json.loads(out)
    assert [row["to_m2"] for row in told["by_size"]] == [None]
    assert told["by_region"] == {"regions": 2, "bias": 0, "mae": 0, "rmse": 0, "mae_share": 0}
    assert "confusion" not in told
    layers = {str(name) for name, _ in pyogrio.list_layers(judged)}
    assert {"right", "false", "missed", "regions"} <= layers
    assert Path(curves).stat().st_size > 5000
    code, _, err = run(capsys, *args)
    assert code == 2
    assert "exists" in one_line(err)
    code, _, err = run(capsys, "evaluate", objects, truth, "--sizes", "a,b")
    assert code == 2
    assert "--sizes is a,b; expected areas in m2" in one_line(err)


def test_evaluate_inside_an_aoi(capsys, tmp_path):
    objects = squares(tmp_path)
    truth = squares(tmp_path, "truth.gpkg", "truth")
    options = ["--aoi", halves(tmp_path), "--aoi-where", "name = 'west'"]
    code, out, _ = run(capsys, "evaluate", objects, truth, *options, "--json")
    assert code == 0
    assert json.loads(out)["n_truth"] == 3
    code, _, err = run(capsys, "evaluate", objects, truth, *options[:2], "--aoi-where", "nope = 1")
    assert code == 2
    assert "AOI file" in one_line(err)
    assert "where nope = 1" in err
    assert "expected a condition on its fields" in err


# preview


def test_preview_draws(capsys, tmp_path, make_raster):
    image = make_raster(pixels=np.full((3, 400, 600), 90, np.uint8))
    objects = tmp_path / "objects.gpkg"
    box = shapely.box(500_010, 5_499_970, 500_020, 5_499_980)
    gpd.GeoDataFrame({"class": ["x"]}, geometry=[box], crs=UTM).to_file(objects, layer="objects")
    whole, part = tmp_path / "whole.png", tmp_path / "part.png"
    code, out, _ = run(capsys, "preview", image, objects, "-o", whole, "--max-px", "300")
    assert (code, out) == (0, f"{whole}\n")
    bounds = "500009,5499969,500021,5499981"
    regions = ["--regions", objects, "--truth", objects]
    code, _, _ = run(capsys, "preview", image, objects, "-o", part, "--bounds", bounds, *regions)
    assert code == 0
    assert png_size(whole) == (300, 200)
    # 120 px, enlarged as much as we do
    assert png_size(part) == (480, 480)
    code, _, err = run(capsys, "preview", image, objects, "-o", part)
    assert code == 2
    assert "--overwrite" in one_line(err)
    code, _, err = run(
        capsys, "preview", image, objects, "-o", tmp_path / "no.png", "--bounds", "0,0,9,9"
    )
    assert code == 2
    assert "lie off image.tif" in one_line(err)
    assert not (tmp_path / "no.png").exists()


def png_size(path):
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")


# models


def test_models_without_any(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    code, out, _ = run(capsys, "models")
    assert code == 0
    # those with a name remain: their weights come from elsewhere
    assert "maskrcnn_resnet50_fpn" in out
    assert "shipped" not in out
    assert not any(
        "path" in m and m["path"] for m in json.loads(run(capsys, "models", "--json")[1])
    )


CARD = {
    "name": "roofs",
    "classes": ["house", "shed"],
    "gsd_m": 0.13,
    "architecture": {"backbone": "tiny", "fpn": {"channels": 64}},
    "licence": "CC BY 4.0",
    "quality": {"f1": 0.7},
}


def test_models_lists_and_shows(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    (tmp_path / "roofs.safetensors").write_bytes(bytes(2_500_000))
    (tmp_path / "roofs.json").write_text(json.dumps(CARD), encoding="utf-8")
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "roofs" in out
    assert "house, shed" in out
    assert "2.500" in out
    (listed,) = [m for m in json.loads(run(capsys, "models", "--json")[1]) if m["name"] == "roofs"]
    assert listed["classes"] == ["house", "shed"]
    assert listed["path"] == str(tmp_path / "roofs.safetensors")
    code, out, _ = run(capsys, "models", "show", "roofs")
    assert code == 0
    assert "house, shed" in out
    assert "    channels  64" in out
    told = json.loads(run(capsys, "models", "show", tmp_path / "roofs.safetensors", "--json")[1])
    assert told["gsd_m"] == 0.13
    (tmp_path / "roofs.json").unlink()
    assert run(capsys, "models")[0] == 2


def test_shipped_models_have_cards(capsys):
    code, out, err = run(capsys, "models", "--json")
    assert code == 0, err
    names = {card["name"] for card in json.loads(out)}
    assert set(registry.shipped_models()) < names
    assert {"maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn"} < names


# train


def test_train_hands_its_options_over(tmp_path, monkeypatch):
    training = pytest.importorskip("geoseg.jobs.training")
    from geoseg.learning.train import read_training_file

    path = tmp_path / "some.toml"
    path.write_text(
        '[train]\nclasses = ["a"]\ngsd_m = 0.1\n[[sites]]\nimage = "a"\nlabels = "b"\naoi = "c"\n'
    )
    assert read_training_file(path).settings.batch == 4
    called = []
    monkeypatch.setattr(
        training,
        "run_training",
        lambda *a, **k: called.append((*a, k)) or tmp_path / "model.safetensors",
    )
    arguments = ["train", str(path), "-o", str(tmp_path), "--device", "cpu", "--stop-after", "7"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    options = called[0][-1]
    assert called[0][:-1] == (path, tmp_path, "cpu")
    assert options["max_steps"] == 7
    assert done.stdout == f"{tmp_path / 'model.safetensors'}\n"
