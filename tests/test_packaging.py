"""What is handed out: wheel and sdist hold what they must, and the wheel works outside the checkout.

The wheel goes into a virtual environment of its own that borrows the dependencies of the one that
runs the tests: a ``.pth`` file appends their folder to the search path. So nothing of 6 GB is
downloaded, and geoseg itself can come from nowhere but the wheel.
"""

from __future__ import annotations

import email
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path, PurePosixPath

import geopandas as gpd
import pytest
import yaml

import geoseg

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODEL = "geoseg/models/weights/buildings.safetensors"
LARGEST = 500_000
"""Bytes of a file that is not the model."""


def call(*arguments: object, **options) -> str:
    done = subprocess.run(
        [str(a) for a in arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> dict[str, str]:
    """An environment in which hatchling can be imported; fetched where it is not installed."""
    if importlib.util.find_spec("hatchling"):
        return dict(os.environ)
    folder = tmp_path_factory.mktemp("backend")
    wanted = "hatchling>=1.27"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), wanted]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        pytest.skip(f"{wanted} is not installed and pip cannot fetch it")
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def dist(backend, tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT, env=backend)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_package_model_and_licences_and_nothing_else(dist):
    with zipfile.ZipFile(dist[0]) as wheel:
        sizes = {i.filename: i.file_size for i in wheel.infolist()}
        info = f"geoseg-{geoseg.__version__}.dist-info"
        about = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        points = wheel.read(f"{info}/entry_points.txt").decode()
    source = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "geoseg").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {MODEL, "geoseg/py.typed", "geoseg/models/weights/buildings.json"} < source
    assert {name for name in sizes if not name.startswith(info)} == source
    for licence in ("LICENSE", "NOTICE", "LICENSES/Apache-2.0.txt"):
        assert f"{info}/licenses/{licence}" in sizes
    assert about["License-Expression"] == "MIT"
    assert about["Version"] == geoseg.__version__
    assert about["Requires-Python"] == ">=3.11"
    assert "geoseg = geoseg.cli.main:entry" in points
    assert "geoseg = geoseg.cli.rio:plugin" in points
    assert sizes[MODEL] > 10_000_000
    assert max(size for name, size in sizes.items() if name != MODEL) < LARGEST


def test_the_sdist_holds_what_builds_tests_and_explains(dist, backend, tmp_path):
    with tarfile.open(dist[1]) as archive:
        members = {
            str(PurePosixPath(*PurePosixPath(m.name).parts[1:])): m.size
            for m in archive.getmembers()
            if m.isfile()
        }
    wanted = ["pyproject.toml", "Makefile", "constraints.txt", "CITATION.cff", "NOTICE", MODEL]
    wanted += ["tests/conftest.py", "docs/index.md", "workflows/overnight.toml", "LICENSE"]
    assert set(wanted) <= set(members)
    assert not [m for m in members if re.search(r"__pycache__|\.venv|\.tif$|\.gpkg$", m)]
    assert max(size for name, size in members.items() if name != MODEL) < LARGEST
    assert dist[1].stat().st_size < 20_000_000
    # a wheel made of it is the same
    call(
        *(sys.executable, "-m", "pip", "wheel", dist[1], "--no-deps", "--no-build-isolation"),
        *("-q", "-w", tmp_path),
        env=backend,
    )
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(dist[0]) as first, zipfile.ZipFile(again) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {
            i.filename: i.CRC for i in second.infolist()
        }


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment with nothing but the wheel of its own."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    call(
        *(sys.executable, "-m", "pip", "--python", python, "install", "-q"),
        *("--no-deps", "--no-index", dist[0]),
    )
    own = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # lines of a .pth are appended: what the wheel brought comes first; the other environment's own
    # .pth files, such as that of an editable install, are not followed
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    options = {"cwd": tmp_path, "env": environment}
    program, python = installed / "geoseg", installed / "python"
    place = Path(call(python, "-c", "import geoseg; print(geoseg.__file__)", **options).strip())
    assert place.is_relative_to(installed.parent)
    assert call(program, "--version", **options).split()[-1] == geoseg.__version__
    assert "detect" in call(program, "--help", **options)
    assert "buildings" in call(program, "models", **options)
    assert "torch" in call(program, "doctor", **options)
    rio = "from rasterio.rio.main import main_group; main_group(prog_name='rio')"
    assert re.search(r"^  geoseg ", call(python, "-c", rio, "--help", **options), re.MULTILINE)
    assert "Usage: geoseg" in call(python, "-c", rio, "geoseg", "--help", **options)
    call(program, "demo", "town", "--size", "640", "--seed", "5", "--render-only", **options)
    said = call(program, "detect", "town/town.tif", "-o", "found.gpkg", "-j", "1", **options)
    found = gpd.read_file(tmp_path / "found.gpkg", layer="objects")
    assert len(found) > 5
    assert f"{len(found)} objects in" in said


@pytest.mark.slow
def test_types_reach_the_user_of_the_wheel(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "theirs.py").write_text(
        "import geoseg\n"
        "reveal_type(geoseg.Instances.empty().scores)\n"
        "reveal_type(geoseg.open_run('x').state)\n"
        "geoseg.open_run(3)\n"
    )
    cache = ["--cache-dir", str(tmp_path / "cache")]
    check = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), *cache]
    done = subprocess.run(
        [*check, "--ignore-missing-imports", "theirs.py"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")},
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout
    assert 'theirs.py:2: note: Revealed type is "numpy.ndarray' in told
    assert 'theirs.py:3: note: Revealed type is "str"' in told
    assert "theirs.py:4: error: Argument 1" in told
    assert "Found 1 error" in told


# What says who made it

CFF_KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
    "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
    "references", "repository", "repository-artifact", "repository-code", "title", "type", "url",
    "version",
}  # fmt: skip
"""Keys of the Citation File Format 1.2.0, https://doi.org/10.5281/zenodo.5171937."""
REFERENCE_TYPES = {"article", "book", "conference-paper", "data", "software", "report", "thesis"}
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "orcid", "affiliation",
          "email", "website", "alias"}  # fmt: skip
ENTITY = {"name", "website", "email", "orcid", "address", "city", "country", "alias"}


def check_authors(authors):
    assert authors
    for author in authors:
        keys = set(author)
        assert ("name" in keys and keys <= ENTITY) or ("family-names" in keys and keys <= PERSON), (
            author
        )


def test_citation_is_valid_and_of_this_version():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(told) <= CFF_KEYS
    assert {"cff-version", "message", "title", "authors"} <= set(told)
    assert told["cff-version"] == "1.2.0"
    assert told["type"] in ("software", "dataset")
    assert told["version"] == geoseg.__version__ == PROJECT["version"]
    assert told["license"] == PROJECT["license"] == "MIT"
    assert all(isinstance(word, str) for word in told["keywords"])
    check_authors(told["authors"])
    for reference in told["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert reference["type"] in REFERENCE_TYPES
        assert re.fullmatch(r"10\.\d{4,9}/\S+", reference["doi"])
        assert isinstance(reference["year"], int)
        check_authors(reference["authors"])


def test_credits_name_every_source_of_the_model():
    from geoseg.models.registry import find_card

    card = find_card("buildings")
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "credits.md").read_text(encoding="utf-8")
    for name in ("OpenAerialMap", "OpenStreetMap", "fAIr", "EfficientNet-Lite0"):
        assert name in " ".join(card.credits)
        assert name in notice
        assert name in page
    for licence in ("CC BY 4.0", "ODbL 1.0"):
        assert licence in card.licence
        assert licence in notice
        assert licence in page
    assert "Apache License" in (ROOT / "LICENSES" / "Apache-2.0.txt").read_text(encoding="utf-8")


def test_changes_begin_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert heads[0] == geoseg.__version__
    assert len(heads) == len(set(heads))
    assert set(re.findall(r"^### (.*)", text, re.MULTILINE)) <= {
        "Breaking", "Added", "Changed", "Fixed", "Removed",
    }  # fmt: skip
