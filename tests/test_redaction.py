"""Secrets of addresses: in nothing that is shown or written, however a run ends."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from painted import blob_scene
from runs import TILES, command, end, environment, start
from servers import FileServer

from geoseg.imagery.inputs import find_images
from geoseg.imagery.source import describe_raster
from geoseg.jobs import events
from geoseg.redact import Access, RedactingFilter, address_of, learn_secrets, redact

USER, FIRST, SECOND, THIRD = "canaryuser", "CANARY1-p%40ss", "CANARY2sig", "CANARY3token"
CANARIES = ("CANARY1", "CANARY2", "CANARY3", "canaryuser", "p%40ss", "p@ss")


def secret_url(server: FileServer, name: str, *, sign: str = SECOND) -> str:
    return (
        f"http://{USER}:{FIRST}@127.0.0.1:{server.port}/{name}"
        f"?X-Amz-Signature={sign}&X-Amz-Date=20260101&token={THIRD}"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    scene = blob_scene(5, size=520, count=110, large=1)
    noise = np.random.default_rng(3).integers(0, 65535, (1, 520, 520)).astype(np.uint16)
    profile = {"count": 3, "height": 520, "width": 520, "dtype": "uint16", "crs": "EPSG:32633"}
    transform = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
    with rasterio.open(
        folder / "p.tif", "w", driver="GTiff", transform=transform, **profile
    ) as dst:
        dst.write(np.concatenate([scene.pixels, noise]))
    rasterio.shutil.copy(folder / "p.tif", folder / "x.tif", driver="COG", blocksize=128)
    data = (folder / "x.tif").read_bytes()
    (folder / "half.tif").write_bytes(data[: len(data) // 2])
    (folder / "page.tif").write_text("<html>no raster</html>")
    return folder


def leaks_in(*texts: bytes) -> list[str]:
    forms = [*CANARIES, *(quote(c, safe="") for c in CANARIES)]
    forms += [base64.b64encode(f"{USER}:CANARY1-p@ss".encode()).decode()]
    return [form for text in texts for form in forms if form.encode() in text]


def files_leak(folder: Path) -> list[tuple[str, list[str]]]:
    """Return the files below a folder that hold a canary, in tables also behind compression."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        texts = [path.name.encode(), path.read_bytes()]
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts.append(repr((table.schema.metadata, table.to_pydict())).encode())
        if leaks := leaks_in(*texts):
            found.append((path.name, leaks))
    return found


def run(url: str, tmp_path: Path, *more: str, workers: int = 1, verbose: bool = True, **env: str):
    args = command(url, tmp_path / "out.gpkg", "--bidx", "1,2", *more, workers=workers)
    if verbose:
        args.insert(3, "-v")
    env = {"GDAL_HTTP_RETRY_DELAY": "0.01", "GDAL_HTTP_MAX_RETRY": "1"} | env
    env |= {"GEOSEG_REMOTE_CACHE": str(tmp_path / "cache"), "CPL_DEBUG": "ON"}
    return end(start(args, **env))


def no_leak(tmp_path: Path, *texts: str) -> None:
    assert leaks_in(*(text.encode() for text in texts)) == [], texts
    assert files_leak(tmp_path) == []


# --- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "verbose"), [(1, True), (2, True), (1, False)])
def test_a_run_leaves_no_secret(folder, tmp_path, workers, verbose):
    notify = f"sh -c 'env > {tmp_path}/told.txt'"
    with FileServer(folder, login=f"{USER}:CANARY1-p@ss") as server:
        url = secret_url(server, "x.tif")
        code, out, err = run(
            url, tmp_path, "--notify", notify, "--json", "--also", str(tmp_path / "out.geojson"),
            workers=workers, verbose=verbose,
        )  # fmt: skip
        assert code == 0, err
        assert "X-Amz-Signature=CANARY2" in server.log[0][0]  # the server was told
        no_leak(tmp_path, out, err)
        assert json.loads(out)["objects"] > 50
        # the manifest knows the image by its plain name, and a fresh signature goes on
        manifest = json.loads((tmp_path / "out.geoseg-run/run.json").read_text())
        assert manifest["images"][0]["name"] == "x.tif"
        assert manifest["settings"]["images"] == [f"http://127.0.0.1:{server.port}/x.tif"]
        server.reset()
        again = secret_url(server, "x.tif", sign="CANARY2fresh")
        code, out, err = run(again, tmp_path, "--json", "--also", str(tmp_path / "out.geojson"))
        assert code == 0, err
        assert json.loads(out)["already_done"]
    no_leak(tmp_path, out, err)
    assert len(list((tmp_path / "out.geoseg-run").rglob("*.parquet"))) > 5


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize(
    ("name", "code", "match"),
    [
        ("gone.tif", 2, "no such file (404)"),
        ("half.tif", 2, "is truncated"),
        ("page.tif", 2, "is not a raster that is read here"),
    ],
)
def test_a_run_that_fails_leaves_no_secret(folder, tmp_path, name, code, match, verbose):
    with FileServer(folder) as server:
        ended, out, err = run(secret_url(server, name), tmp_path, verbose=verbose)
    assert ended == code, err
    assert match in err
    no_leak(tmp_path, out, err)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_dies_leaves_no_secret(folder, tmp_path, workers):
    with FileServer(folder) as server:
        # header and sidecars are served, then every connection breaks
        server.refuse = lambda _path, number: 0 if number <= 6 else -1
        code, out, err = run(secret_url(server, "x.tif"), tmp_path, workers=workers)
    assert code == 3, err
    assert "the connection broke" in err
    no_leak(tmp_path, out, err)
    reasons = (tmp_path / "out.geoseg-run/run.json").read_text()
    assert "the connection broke" in reasons


def test_a_stopped_run_and_its_locks_leave_no_secret(folder, tmp_path):
    with FileServer(folder) as server:
        args = command(secret_url(server, "x.tif"), tmp_path / "out.gpkg", "--bidx", "1,2")
        job = start(args, STUB_SLEEP="0.2", GEOSEG_REMOTE_CACHE=str(tmp_path / "cache"))
        deadline = time.monotonic() + 60
        while not (tmp_path / "out.geoseg-run/owner.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # a second one is told who holds the directory
        code, out, err = run(secret_url(server, "x.tif"), tmp_path)
        assert code == 2
        assert "in use by another run" in err
        no_leak(tmp_path, out, err)
        job.send_signal(signal.SIGINT)
        code, out, err = end(job)
    assert code in (0, 130)
    no_leak(tmp_path, out, err)


def test_check_plan_and_a_job_file_leave_no_secret(folder, tmp_path):
    with FileServer(folder) as server:
        url = secret_url(server, "x.tif")
        job = tmp_path / "job.toml"
        tiles = "\n".join(f"{k} = {v}" for k, v in TILES.items())
        verbs = [
            ["check", url, "--json"],
            ["check", secret_url(server, "gone.tif"), secret_url(server, "half.tif")],
            ["plan", url, "--detector", "stubs:make", "--bidx", "1,2", "--no-probe", "--json"],
            ["preview", url, str(tmp_path / "none.gpkg"), "-o", str(tmp_path / "x.png")],
            ["run", str(job)],
            ["detect", url, "-o", str(tmp_path / "y.gpkg"), "--gsd", url],
            ["detect", url.replace("http:", "/vsicurl?x=1&url=http:"), "-o", str(tmp_path / "z.gpkg")],
        ]  # fmt: skip
        text = f'[detect]\nimages = ["{url}"]\noutput = "job.gpkg"\ndetector = "stubs:make"\n'
        for verb in verbs:
            job.write_text(f"{text}bidx = [1, 2]\nworkers = 1\n{tiles}\n")
            args = [*command(Path("x"), Path("y"))[:3], "-v", *verb]
            done = subprocess.run(
                args,
                env=environment(GDAL_HTTP_RETRY_DELAY="0.01"),
                capture_output=True,
                check=False,
            )
            assert leaks_in(done.stdout, done.stderr) == [], (verb[0], done.stderr)
            job.unlink()  # it is the user's own, and holds the address
    assert (tmp_path / "job.gpkg").exists()
    assert files_leak(tmp_path) == []


# --- the parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "https://me:CANARY1@h.org/x.tif",
        "https://h.org/x.tif?sig=CANARY1",
        "https://h.org/x.tif?v=CANARY1 failed",
        "HTTP error at '/vsicurl/https://h.org/x.tif?X-Goog-Signature=CANARY1': 403",
        "/vsicurl?header_file=/x&url=https%3A%2F%2Fh.org%2Fx.tif%3Fsig%3DCANARY1",
        "https%3A%2F%2Fme%3ACANARY1%40h.org%2Fx.tif",
        "Authorization: Basic CANARY1",
        "{'Authorization': 'Bearer CANARY1'}",
        "GDAL_HTTP_HEADERS=X-Api-Key: CANARY1",
        "AWS_SECRET_ACCESS_KEY=CANARY1",
        "aws_session_token = CANARY1".replace(" = ", "="),
        "?sv=2020&se=2026&sp=r&sig=CANARY1%3D",
        "&Policy=CANARY1&Signature=CANARY1&Key-Pair-Id=CANARY1",
        "token=CANARY1",
        "AZURE_STORAGE_SAS_TOKEN=CANARY1",
        "Set-Cookie: id=CANARY1; Path=/",
        "postgresql://me:CANARY1@h.org/db",
    ],
)
def test_redact(text):
    assert "CANARY1" not in redact(text)
    assert "CANARY1" not in events.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "5/8 tiles, 12 px/s",
        "/home/ann/flight 3.tif: no such file; check the path",
        "cannot read rows 1-9, cols 0-7 of x.tif",
        "https://h.org/a/x.tif: the server has no such file (404); check the address",
        "tile (3, 4): 100 % = 5 of 5",
        "expected EPSG:32645, key is 3 px",
        "s3://bucket/key.tif",
    ],
)
def test_other_text_stays(text):
    assert redact(text) == text


def test_what_is_learnt_is_hidden_in_every_form():
    learn_secrets(["S3cret/with+signs=="])
    for form in (
        "S3cret/with+signs==",
        quote("S3cret/with+signs==", safe=""),
        "S3cret%2Fwith%2Bsigns%3D%3D",
    ):
        assert "S3cret" not in redact(f"said {form} by GDAL")


def test_secrets_of_the_environment_are_hidden(tmp_path):
    code = "from geoseg.redact import redact; print(redact('a wJalrXUtnFEMI/K7MDENG b AKIAEXAMPLE1 c'))"
    env = environment(
        AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI/K7MDENG", AWS_ACCESS_KEY_ID="AKIAEXAMPLE1"
    )
    done = subprocess.run(
        [command(Path("x"), Path("y"))[0], "-c", code], env=env, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "a *** b *** c"


def test_the_log_filter_hides_arguments_and_tracebacks(caplog):
    logger = logging.getLogger("geoseg.test")
    guard = RedactingFilter()
    logger.addFilter(guard)
    try:
        raise OSError("https://me:CANARY1@h.org/x")
    except OSError:
        logger.exception("while reading %s", "https://h.org/x?sig=CANARY1")
    finally:
        logger.removeFilter(guard)
    assert "Traceback" in caplog.text
    assert "CANARY1" not in caplog.text


def test_a_record_carries_the_way_to_a_file_without_showing_it(folder):
    with FileServer(folder) as server:
        info = describe_raster(find_images([secret_url(server, "x.tif")])[0])
    assert leaks_in(repr(info).encode(), str(info).encode(), f"{info.access}".encode()) == []
    there = "import pickle,sys; from geoseg.redact import address_of; i=pickle.load(sys.stdin.buffer); print(address_of(i.path))"
    done = subprocess.run(
        [command(Path("x"), Path("y"))[0], "-c", there],
        input=pickle.dumps(info), env=environment(), capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode().strip() == address_of(info.path)
    assert SECOND in address_of(info.path)
    assert info.access == Access(info.path, address_of(info.path))


def test_events_hide_what_lists_hold(tmp_path):
    told = events.Events(tmp_path / "e.jsonl")
    told.add("x", values=["https://h.org/x?sig=CANARY1"], about={"a": "token=CANARY1"})
    assert "CANARY1" not in (tmp_path / "e.jsonl").read_text()
