"""The doctor: explanations for what breaks, and a broken torchvision in a real process."""

import json
import os
from pathlib import Path

import pytest

from geoseg import doctor
from geoseg.cli.main import main
from geoseg.doctor import (
    PROBES,
    Finding,
    Probe,
    as_dict,
    diagnose,
    explain_pair,
    fitting_torchvision,
    gpu_finding,
    pair_findings,
    probe,
)

NMS = "RuntimeError: operator torchvision::nms does not exist"


def torch_probe(version="2.14.1", **values):
    return Probe({"version": version, "package": version, "cuda_build": "13.0"} | values)


def write_broken_torchvision(folder: Path, version: str) -> None:
    """Write a torchvision that fails as one that was built for another torch does."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    meta = folder / f"torchvision-{version}.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torchvision\nVersion: {version}\n"
    )


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        ("2.10.0", "==0.25.*"),
        ("2.11.0+cu128", "==0.26.*"),
        ("2.13.0+cpu", "==0.28.*"),
        # from here on torchvision keeps to torch's stable interface
        ("2.14.1", ">=0.29"),
        ("2.20.0", ">=0.29"),
    ],
)
def test_which_torchvision_fits(torch, expected):
    assert fitting_torchvision(torch) == expected


@pytest.mark.parametrize(
    ("torch", "vision", "expected"),
    [
        # another release
        ("2.11.0", "0.29.1", "was not built for torch 2.11.0, which wants torchvision==0.26.*"),
        ("2.14.1", "0.26.0", "was not built for torch 2.14.1, which wants torchvision>=0.29"),
        # fitting releases of two indexes
        ("2.13.0+cpu", "0.28.0", "torch is a CPU build and torchvision PyPI's build"),
        ("2.13.0+cu128", "0.28.0+cpu", "torch is a build for cu128 and torchvision a CPU build"),
        # nothing to be seen from the versions
        ("2.14.1", "0.30.0", "the versions fit, so one of the two is damaged"),
        ("2.11.0", "", "install it: pip install 'torchvision==0.26.*'"),
    ],
)
def test_a_broken_pair_is_explained(torch, vision, expected):
    assert expected in explain_pair(torch, vision)


def test_the_advice_names_versions_that_pip_can_find():
    assert "'torch==2.13.0' 'torchvision==0.28.*'" in explain_pair("2.13.0+cpu", "0.28.0")


def test_pairs():
    fine = pair_findings(torch_probe(), Probe({"version": "0.29.1"}))
    assert [f.status for f in fine] == ["ok", "ok"]
    old = pair_findings(torch_probe("2.9.0"), Probe({"version": "0.24.0"}))
    assert old[1].status == "note"
    assert "older than geoseg supports" in old[1].advice
    broken = pair_findings(torch_probe("2.13.0+cpu"), Probe({"version": "0.28.0"}, NMS))
    assert [f.status for f in broken] == ["ok", "broken"]
    assert NMS in broken[1].value
    assert "different indexes" in broken[1].advice
    # a torchvision that fails because torch does is not blamed
    error = "ImportError: libcudart.so.13: cannot open shared object file"
    missing = pair_findings(Probe({}, error), Probe({"version": "0.29.1"}, error))
    assert [f.status for f in missing] == ["broken", "broken"]
    assert missing[1].advice == "see torch"


def test_a_broken_torchvision_is_found_in_its_own_process(tmp_path, monkeypatch, capsys):
    # older than any torch that geoseg runs with
    write_broken_torchvision(tmp_path, "0.20.0")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    only = {name: PROBES[name] for name in ("torch", "torchvision")}
    monkeypatch.setattr(doctor, "PROBES", only)
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    by_name = {finding["name"]: finding for finding in told["findings"]}
    assert by_name["torch"]["status"] == "ok"
    assert by_name["torchvision"]["status"] == "broken"
    assert by_name["torchvision"]["value"] == f"0.20.0: {NMS}"
    assert "torchvision 0.20.0 was not built for torch" in by_name["torchvision"]["advice"]


def test_this_installation_is_fine(capsys):
    findings = diagnose()
    assert [f for f in findings if f.status == "broken"] == []
    by_name = {f.name: f for f in findings}
    assert set(PROBES) <= set(by_name)
    assert "GDAL" in by_name["rasterio"].value
    assert "GDAL" in by_name["pyogrio"].value
    assert "PROJ" in by_name["pyproj"].value
    assert "GEOS" in by_name["shapely"].value


def test_the_command_prints_findings_and_advice(monkeypatch, capsys):
    findings = [Finding("torch", "2.14.1"), Finding("GPU", "none", "note", "no driver")]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok      torch  2.14.1",
        "note    GPU    none",
        "               -> no driver",
    ]
    findings.append(Finding("pyproj", "3.7: no database", "broken", "unset PROJ_LIB"))
    assert main(["doctor"]) == 1
    assert "BROKEN  pyproj" in capsys.readouterr().out
    assert as_dict(findings)["ok"] is False


def test_a_probe_tells_how_it_failed(tmp_path, monkeypatch):
    assert probe("say(a=1); say(b=[2])") == Probe({"a": 1, "b": [2]})
    assert probe("say(a=1); raise ValueError('bad')") == Probe({"a": 1}, "ValueError: bad")
    died = probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert died.error == "it died with SIGSEGV"
    # nor does a file in the current folder pass for a library
    (tmp_path / "shapely.py").write_text("raise RuntimeError('not me')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert probe(PROBES["shapely"]).error is None
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.2)
    assert "no answer" in (probe("import time; time.sleep(30)").error or "")


def test_a_library_without_its_data_names_the_variable(monkeypatch):
    monkeypatch.setenv("PROJ_DATA", "/nowhere")
    finding = doctor._library("pyproj", Probe({"version": "3.7"}, "ProjError: no database"))
    assert finding.status == "broken"
    assert finding.advice.startswith("PROJ_DATA may point to")
    missing = doctor._library("timm", Probe({}, "ModuleNotFoundError: No module named 'timm'"))
    assert missing.advice == "pip install --force-reinstall timm"


GPU = [["NVIDIA H200", 150_000_000_000]]


@pytest.mark.parametrize(
    ("values", "status", "text"),
    [
        ({"gpus": GPU, "gpu_works": True}, "ok", "NVIDIA H200 (140 GiB), CUDA 13.0"),
        ({"gpus": GPU, "gpu_error": "no kernel image"}, "broken", "--device cpu: no kernel image"),
        ({"cuda_build": None}, "note", "built without CUDA"),
        ({"gpus": []}, "note", ""),
    ],
)
def test_a_gpu_is_named_or_its_absence_explained(monkeypatch, values, status, text):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = gpu_finding(torch_probe(**values))
    assert finding.status == status
    assert text in f"{finding.value} {finding.advice}"
    assert finding.advice or status == "ok"


def test_a_hidden_gpu_is_explained(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in gpu_finding(torch_probe()).advice
    assert gpu_finding(Probe({}, "ImportError")).status == "note"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu sse avx512_bf16 amx_bf16\n", True),
        ("flags\t\t: fpu sse avx2\n", False),
        ("Features\t: fp asimd bf16\n", True),
        ("Processor: unknown\n", None),
    ],
)
def test_bfloat16_of_a_cpu(tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\n" + text)
    assert doctor._has_bf16(path) is expected
    assert doctor._has_bf16(tmp_path / "none") is None


def test_little_memory_and_disk_are_noted(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("2000000000\n")
    assert doctor._first_int(limit) == 2_000_000_000
    limit.write_text("max\n")
    assert doctor._first_int(limit) is None
    monkeypatch.setattr(doctor, "_first_int", lambda path: 2_000_000_000)
    assert doctor._memory() == Finding("memory", "2.0 GB", "note", "run with --workers 1")
    assert doctor._disk(tmp_path).name == "free disk"
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    assert doctor._disk(tmp_path).status == "note"
