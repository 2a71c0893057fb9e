"""The recipes of workflows/cluster, started as they stand; results are those of one process."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from distributed import Client
from hosts import hosts, ip, why_not, with_programs
from painted import blob_scene
from runs import (
    NORTH_UP,
    ROOT,
    TILES,
    UTM,
    calls,
    command,
    end,
    environment,
    events_of,
    finish,
    parts_of,
    start,
    table,
    wait_for,
)
from slurm import queue, slurm, why_no_slurm
from stubs import Stub

import geoseg
from geoseg.cli.detect import command as detect
from geoseg.config import DetectSettings
from geoseg.jobs.pipeline import run_detect

CLUSTER = ROOT / "workflows" / "cluster"
needs_hosts = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
needs_slurm = pytest.mark.skipif(bool(why_no_slurm()), reason=why_no_slurm() or "-")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")


@pytest.fixture
def image(make_raster) -> Path:
    scene = blob_scene(5, size=520, count=110, large=1)
    return make_raster("painted.tif", scene.pixels, transform=NORTH_UP, crs=UTM)


@pytest.fixture
def whole(image, tmp_path) -> list[tuple]:
    output = tmp_path / "whole.gpkg"
    run_detect(DetectSettings(images=(str(image),), output=output, workers=1, **TILES), Stub())
    return table(output)


# --- plain: several hosts ---------------------------------------------------------------------


@needs_hosts
def test_hosts_are_removed_when_a_test_fails(tmp_path):
    before = ip("netns", "list")
    sleepers = []
    with pytest.raises(RuntimeError, match="a test that fails"):
        fail_among_hosts(tmp_path, sleepers)
    assert [process.returncode for process in sleepers] == [-signal.SIGKILL]
    assert ip("netns", "list") == before


def fail_among_hosts(folder: Path, sleepers: list[subprocess.Popen]) -> None:
    with hosts(folder, 2) as (one, two):
        sleepers.append(one.start("sleep", "600"))
        wait_for(lambda: str(sleepers[0].pid) in ip("netns", "pids", one.name).split())
        # each has its own address, and reaches the other
        check = two.start("bash", "-c", f"exec 3<>/dev/tcp/{one.address}/9")
        assert check.wait(30) != 0
        assert "Connection refused" in two.log.read_text()
        raise RuntimeError("a test that fails")


@needs_hosts
def test_plain_recipe_on_three_hosts(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    with hosts(tmp_path, 3) as (head, *others):
        address = f"tcp://{head.address}:8786"
        head.start(CLUSTER / "plain" / "scheduler.sh", head.address)
        for host in others:
            host.start(
                CLUSTER / "plain" / "worker.sh", address, host.address,
                STUB_CALLS=str(tmp_path / f"{host.name}.calls"), STUB_SLEEP="0.1",
            )  # fmt: skip
        args = command(image, output, "--scheduler", address, workers=None)
        refused = head.start(*args)
        assert refused.wait(60) == 2
        assert "is plain tcp" in head.log.read_text()
        for host in others:
            wait_for(lambda host=host: len(host.listening()) == 2)
        run = head.start(*args, "--insecure-cluster")
        assert run.wait(180) == 0, head.log.read_text()
        # the recipe's ports, on the recipe's addresses, and no others
        assert head.listening() == {(head.address, 8786)}
        for host in others:
            assert host.listening() == {(host.address, 40000), (host.address, 40100)}
    assert table(output) == whole
    assert all(calls(tmp_path / f"{host.name}.calls") > 0 for host in others)


@needs_hosts
@pytest.mark.slow  # until the connection counts as dead, the better part of two minutes
def test_a_host_that_loses_its_network(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    with hosts(tmp_path, 3) as (head, *others):
        address = f"tcp://{head.address}:8786"
        head.start(CLUSTER / "plain" / "scheduler.sh", head.address)
        for host in others:
            host.start(CLUSTER / "plain" / "worker.sh", address, host.address, STUB_SLEEP="0.5")
            wait_for(lambda host=host: len(host.listening()) == 2)
        args = command(image, output, "--scheduler", address, "--insecure-cluster", workers=None)
        run = head.start(*args)
        wait_for(lambda: parts_of(output))
        others[0].cut_off()
        begun = time.monotonic()
        assert run.wait(300) == 0, head.log.read_text()
        print(f"went on after {time.monotonic() - begun:.0f} s")
    assert table(output) == whole
    assert [e["worker"] for e in events_of(output) if e["event"] == "worker lost"]


# --- TLS --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a script of the recipes on this machine; all end with the test."""
    started = []

    def start_script(*args: str | Path, **env: str) -> subprocess.Popen:
        with (tmp_path / "scripts.log").open("a") as log:
            process = subprocess.Popen(
                list(map(str, args)), env=environment(**with_programs(env)), stdout=log,
                stderr=log, cwd=tmp_path, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield start_script
    # workers before their scheduler, which they would miss
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def make_certificates(folder: Path) -> dict[str, str]:
    script = CLUSTER / "tls" / "certificates.sh"
    done = subprocess.run([script, folder], capture_output=True, text=True, check=True)
    assert f"export DASK_CONFIG={folder}" in done.stdout
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    return {"DASK_CONFIG": str(folder)}


def scheduler_of(file: Path) -> str:
    wait_for(lambda: file.exists() and file.stat().st_size > 0)
    return json.loads(file.read_text())["address"]


@needs_openssl
def test_tls(image, whole, run, tmp_path):
    settings = make_certificates(tmp_path / "certificates")
    file, output = tmp_path / "scheduler.json", tmp_path / "o.gpkg"
    run(
        CLUSTER / "plain" / "scheduler.sh", "127.0.0.1", "--port", "0", "--scheduler-file", file,
        PROTOCOL="tls", **settings,
    )  # fmt: skip
    address = scheduler_of(file)
    assert address.startswith("tls://127.0.0.1:")
    ports = ("--worker-port", "0", "--nanny-port", "0")
    run(CLUSTER / "plain" / "worker.sh", address, "127.0.0.1", *ports, **settings)
    args = command(image, output, "--scheduler", address, workers=None)
    # without certificates, with those of another cluster, and unencrypted: nobody is let in
    status, _, err = finish(args)
    assert status == 2
    assert "needs certificates, and Dask's settings name none; export DASK_CONFIG" in err
    others = make_certificates(tmp_path / "others")
    status, _, err = finish(args, **others)
    assert status == 1
    assert "check that it runs, with certificates of the same folder" in err
    gone = tmp_path / "others" / "cluster.key"
    gone.unlink()
    status, _, err = finish(args, **others)
    assert status == 2
    assert "the certificates that Dask's settings name cannot be used" in err
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        Client(address.replace("tls", "tcp"), timeout=3, set_as_default=False)
    assert not parts_of(output)
    # with them it works
    status, _, err = finish(args, **settings)
    assert status == 0, err
    assert table(output) == whole


@needs_openssl
def test_certificates_are_not_made_twice(tmp_path):
    make_certificates(tmp_path / "certificates")
    before = (tmp_path / "certificates" / "cluster.key").read_bytes()
    script = CLUSTER / "tls" / "certificates.sh"
    again = subprocess.run(
        [script, tmp_path / "certificates"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "has a key already; name a new folder" in again.stderr
    assert (tmp_path / "certificates" / "cluster.key").read_bytes() == before


@pytest.mark.parametrize(
    "script", ["plain/scheduler.sh", "plain/worker.sh", "tls/certificates.sh", "slurm/shards.sh"]
)
def test_scripts_say_how_they_are_used(script):
    done = subprocess.run([CLUSTER / script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{Path(script).name} " in done.stderr


# --- SLURM ------------------------------------------------------------------------------------


def night(tmp_path: Path, *more: str | Path) -> list[str]:
    script = CLUSTER / "slurm" / "night.py"
    ours = ["--partition", "night", "--interface", "lo", "--shared", tmp_path / "shared"]
    return [sys.executable, *map(str, [script, *ours, *more])]


def test_slurm_job_script(tmp_path):
    pytest.importorskip("dask_jobqueue")
    more = (
        "--cores",
        "8",
        "--memory",
        "32GiB",
        "--walltime",
        "02:30:00",
        "--account",
        "maps",
        "--show",
    )
    status, out, err = finish(night(tmp_path, *more))
    assert status == 0, err
    heading = {line.removeprefix("#SBATCH ") for line in out.splitlines() if "#SBATCH" in line}
    assert heading >= {
        "-J geoseg", "-p night", "-A maps", "-n 1", "--cpus-per-task=8", "--mem=32G", "-t 02:30:00"
    }  # fmt: skip
    worker = out.splitlines()[-2]
    for option in (
        "distributed.cli.dask_worker tls://127.0.0.1:", "--nworkers 8", "--nthreads 2", "--nanny",
        "--memory-limit 4.00GiB", "--lifetime 8640s", "--interface lo", "--tls-key ",
        "--dashboard-address 127.0.0.1:0",
    ):  # fmt: skip
        assert option in worker
    assert "--resources" not in worker
    status, out, err = finish(night(tmp_path, "--gpu", "--show"))
    assert status == 0, err
    assert "#SBATCH --gres=gpu:1" in out
    assert "--nthreads 2" in out
    assert "--resources GPU=1" in out
    assert "--nworkers" not in out
    status, _, err = finish(night(tmp_path, "--shared", tmp_path / "a folder", "--show"))
    assert status == 2
    assert "--shared must have no blanks" in err
    # nothing that lets anybody in is left lying about
    assert not list((tmp_path / "shared").glob(".dask*"))


@needs_slurm
def test_slurm_night(image, whole, tmp_path):
    pytest.importorskip("dask_jobqueue")
    output = tmp_path / "o.gpkg"
    options = command(image, output, workers=None)[4:]
    args = night(tmp_path, "--jobs", "1", "--cores", "1", "--memory", "2GB", "--", *options)
    with slurm(tmp_path / "slurm") as env:
        run = start(args, STUB_SLEEP="0.2", SLURM_CONF=env["SLURM_CONF"])
        wait_for(lambda: parts_of(output) or run.poll() is not None)
        assert run.poll() is None, run.communicate()
        first = queue(env)
        assert [line.split()[1:] for line in first] == [["RUNNING", "geoseg"]]
        # the only job goes, as at its walltime: another one comes in its place
        subprocess.run(["scancel", first[0].split()[0]], env=env, check=True)
        status, _, err = end(run, 180)
        assert status == 0, err
        wait_for(lambda: not queue(env))
    assert table(output) == whole
    happened = [event["event"] for event in events_of(output)]
    assert "worker lost" in happened
    assert "worker came" in happened


@needs_slurm
def test_slurm_shards_without_a_cluster(image, whole, tmp_path):
    output = tmp_path / "o.gpkg"
    programs = tmp_path / "programs"
    programs.mkdir()
    geoseg = programs / "geoseg"
    geoseg.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m geoseg.cli.main \"$@\"\n")
    geoseg.chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    options = command(image, output)[4:]
    script = [CLUSTER / "slurm" / "shards.sh", "3", "--mem", "1G", "--output", tmp_path / "%j.log"]
    with slurm(tmp_path / "slurm") as env:
        settings = environment(PATH=path, SLURM_CONF=env["SLURM_CONF"])
        done = subprocess.run([*script, "--", *options], env=settings, cwd=tmp_path, check=True)
        assert done.returncode == 0
        assert any("geoseg-join" in line for line in queue(env))
        wait_for(lambda: not queue(env), 180)
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert output.exists(), logs
    assert table(output) == whole
    shares = {event["shard"] for event in events_of(output) if "shard" in event}
    assert shares == {"1/3", "2/3", "3/3"}


# --- Kubernetes -------------------------------------------------------------------------------

KUBERNETES = CLUSTER / "kubernetes"


def manifests() -> dict[tuple[str, str], dict]:
    """Return what the manifests describe, by kind and name."""
    found = {}
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for item in yaml.safe_load_all(path.read_text()):
            name = item["metadata"].get("name") or item["metadata"]["generateName"]
            found[item["kind"], name] = item
    return found


def pods(found: dict[tuple[str, str], dict]) -> dict[str, dict]:
    """Return the pod templates by name; that of the Job is ``run``."""
    return {
        item["metadata"].get("name", "run"): item["spec"]["template"]
        for item in found.values()
        if "template" in item["spec"]
    }


def test_manifests_fit_together():
    found = manifests()
    assert {kind for kind, _ in found} == {
        "Deployment", "Job", "NetworkPolicy", "PersistentVolumeClaim", "Service"
    }  # fmt: skip
    templates = pods(found)
    assert set(templates) == {"geoseg-scheduler", "geoseg-worker", "geoseg-worker-gpu", "run"}
    claims = {name for kind, name in found if kind == "PersistentVolumeClaim"}
    for name, template in templates.items():
        (container,) = template["spec"]["containers"]
        assert container["image"] == f"geoseg:{geoseg.__version__}"
        assert shutil.which(container["command"][0], path=with_programs({})["PATH"])
        # what is mounted is there, and comes from what is made beside it
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["tls"] == "/tls"
        assert volumes["tls"]["secret"]["secretName"] == "geoseg-tls"
        # the pods are of one group, which the keys are readable for
        assert volumes["tls"]["secret"]["defaultMode"] == 0o440
        assert template["spec"]["securityContext"]["fsGroup"] == 1000
        assert {"name": "DASK_CONFIG", "value": "/tls"} in container["env"]
        if name != "geoseg-scheduler":
            assert mounts["data"] == "/data"
            assert volumes["data"]["persistentVolumeClaim"]["claimName"] in claims
    for (kind, name), item in found.items():
        if kind == "Deployment":
            assert item["spec"]["selector"]["matchLabels"] == templates[name]["metadata"]["labels"]
    service = found["Service", "geoseg-scheduler"]["spec"]
    assert service["selector"] == templates["geoseg-scheduler"]["metadata"]["labels"]
    policy = found["NetworkPolicy", "geoseg"]["spec"]["podSelector"]["matchLabels"]
    assert all(policy.items() <= t["metadata"]["labels"].items() for t in templates.values())


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
@pytest.mark.parametrize("name", ["cluster.yaml", "workers-gpu.yaml", "run.yaml"])
def test_manifests_have_no_field_that_kubernetes_does_not_know(name):
    for item in yaml.safe_load_all((KUBERNETES / name).read_text()):
        if "template" not in item["spec"]:
            continue
        # kubectl reads the object as what it is; what it does not know falls away
        said = subprocess.run(
            ["kubectl", "set", "image", "--local", "-f", "-", "*=another", "-o", "json"],
            input=yaml.safe_dump(item), capture_output=True, text=True, check=True,
        )  # fmt: skip
        item["spec"]["template"]["spec"]["containers"][0]["image"] = "another"
        assert missing(item, json.loads(said.stdout)) == []


def missing(mine: object, theirs: object, at: str = "") -> list[str]:
    """Return where something of mine is not, or not the same, in theirs."""
    if isinstance(mine, dict):
        if not isinstance(theirs, dict):
            return [at]
        return [m for k, v in mine.items() for m in missing(v, theirs.get(k), f"{at}.{k}")]
    if isinstance(mine, list):
        if not isinstance(theirs, list) or len(mine) != len(theirs):
            return [at]
        return [m for i, v in enumerate(mine) for m in missing(v, theirs[i], f"{at}[{i}]")]
    return [] if mine == theirs else [at]


def test_dockerfile():
    text = (KUBERNETES / "Dockerfile").read_text()
    lines = text.replace("\\\n", "").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [word for kind, rest in steps if kind == "COPY" for word in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    installs = [rest for kind, rest in steps if kind == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]
    pinned = (ROOT / "constraints.txt").read_text()
    for name in ("torch==", "torchvision==", "rasterio==", "dask==", "distributed=="):
        assert f"\n{name}" in pinned
    assert ["USER", "1000:1000"] in steps
    assert f"geoseg:{geoseg.__version__} " in text


@needs_openssl
def test_containers_work_together(image, whole, run, tmp_path):
    templates = pods(manifests())
    data, file = tmp_path / "data", tmp_path / "scheduler.json"
    (data / "images").mkdir(parents=True)
    image.rename(data / "images" / image.name)
    make_certificates(tmp_path / "tls")
    # what a cluster would put there
    here = {"/data": str(data), "/tls": str(tmp_path / "tls"), "$(POD_IP)": "127.0.0.1"}

    def container(name: str) -> tuple[list[str], dict[str, str]]:
        (only,) = templates[name]["spec"]["containers"]
        env = {e["name"]: e["value"] for e in only["env"] if "value" in e}
        return [put(word) for word in only["command"]], {k: put(v) for k, v in env.items()}

    def put(word: str) -> str:
        for was, now in here.items():
            word = word.replace(was, now)
        return word

    here["--port=8786"] = "--port=0"
    args, env = container("geoseg-scheduler")
    run(*args, "--scheduler-file", file, **env)
    here["geoseg-scheduler:8786"] = scheduler_of(file).removeprefix("tls://")
    for name in ("geoseg-worker", "geoseg-worker-gpu"):
        args, env = container(name)
        run(*args, **env)
    args, env = container("run")
    program = [sys.executable, "-m", "geoseg.cli.main"] if args[0] == "geoseg" else args[:1]
    args = [*program, *args[1:], *stub_options()]
    status, _, err = finish(args, **env)
    assert status == 0, err
    assert "joining tls://127.0.0.1:" in err
    assert table(data / "buildings.gpkg") == whole
    # those with a GPU alone, two supertiles at once
    args = [word for word in args if not word.startswith("--output=")]
    status, _, err = finish([*args, f"--output={data / 'gpu.gpkg'}", "--resource=GPU=0.5"], **env)
    assert status == 0, err
    assert table(data / "gpu.gpkg") == whole


def stub_options() -> list[str]:
    """Return the options that let geoseg detect work on the painted image."""
    return command(Path(), Path(), workers=None)[7:]


# --- the page about it ------------------------------------------------------------------------


def test_the_page_names_what_is_there():
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in re.findall(r"workflows/cluster/[\w./-]+", page):
        assert (ROOT / name).exists(), name
    options = {option for param in detect.params for option in param.opts}
    commands = " ".join(line for line in page.splitlines() if "geoseg detect" in line)
    used = set(re.findall(r"--[a-z-]+", commands))
    assert used
    assert used <= options


def test_the_page_quotes_what_is_said():
    page = (ROOT / "docs" / "cluster.md").read_text()
    rows = page.partition("| message |")[2].partition("\n\n")[0].splitlines()[2:]
    quoted = [row.split("`")[1] for row in rows]
    assert len(quoted) >= 15
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "geoseg").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = [node.value for node in nodes if isinstance(node.value, str)]
    for message in quoted:
        assert any(message in text for text in said), message
