"""Look at an installation: what is there, whether it works, and what to do where it does not.

Every library is tried in a process of its own: a broken one may die without an exception, and two
that carry the same C library may disturb each other.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import geoseg

Status = Literal["ok", "note", "broken"]

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 10)
MIN_TORCHVISION = (0, 25)
STABLE_TORCHVISION = (0, 29)
"""From here torchvision no longer belongs to one torch; it wants at least `STABLE_TORCH`."""
STABLE_TORCH = (2, 14)
PAIR_STEP = 15
"""torchvision 0.N + 15 was built for torch 2.N, from 0.15 and 2.0 on."""
LOW_DISK_GB = 5.0
LOW_MEMORY_GB = 4.0
PROBE_TIMEOUT_S = 180

PROBES = {
    "torch": """
import importlib.metadata
import torch
say(package=importlib.metadata.version("torch"))
say(version=torch.__version__, cuda_build=torch.version.cuda, threads=torch.get_num_threads())
if torch.version.cuda:
    try:
        torch.cuda.init()
        say(gpus=[[torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]
                  for i in range(torch.cuda.device_count())])
        torch.ones(8, device="cuda").sum().item()
        say(gpu_works=True)
    except Exception as error:
        say(gpu_error=str(error).strip() or type(error).__name__)
""",
    "torchvision": """
import importlib.metadata
say(version=importlib.metadata.version("torchvision"))
import torchvision
say(version=torchvision.__version__)
import torch
from torchvision.ops import nms
kept = nms(torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 4.]]), torch.tensor([.9, .8]), 0.5)
assert kept.tolist() == [0], f"nms kept {kept.tolist()} of two equal boxes"
""",
    "rasterio": """
import rasterio
say(version=rasterio.__version__, GDAL=rasterio.__gdal_version__)
from rasterio.crs import CRS
assert CRS.from_epsg(32633).to_epsg() == 32633
""",
    "pyogrio": """
import pyogrio
say(version=pyogrio.__version__, GDAL=pyogrio.__gdal_version_string__)
assert "GPKG" in pyogrio.list_drivers(), "it cannot write GeoPackages"
""",
    "pyproj": """
import pyproj
say(version=pyproj.__version__, PROJ=pyproj.proj_version_str)
x, y = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(15, 0)
assert abs(x - 500000) < 1e-3, f"15 E 0 N came out at {x}, {y} in UTM 33N"
""",
    "shapely": """
import shapely
say(version=shapely.__version__, GEOS=shapely.geos_version_string)
assert shapely.box(0, 0, 1, 1).area == 1
""",
    "geopandas": "import geopandas; say(version=geopandas.__version__)",
    "numpy": "import numpy; say(version=numpy.__version__)",
    "dask": "import dask, distributed; say(version=dask.__version__)",
    "timm": "import timm; say(version=timm.__version__)",
}
"""What is run to try a library; ``say`` hands values back."""

_SAY = """
import json
def say(**values):
    print(json.dumps(values), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What trying a library gave."""

    values: Mapping[str, Any]
    """What it told, as far as it came."""
    error: str | None = None
    """Why it does not work, one line; None where it does."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    """What was looked at."""
    value: str
    """What was found."""
    status: Status = "ok"
    """'note': works, but worth knowing; 'broken': geoseg will not run."""
    advice: str = ""
    """What to do, where there is anything to do."""


def diagnose(folder: Path | None = None) -> list[Finding]:
    """Try everything that geoseg needs; takes some seconds.

    Parameters
    ----------
    folder : Path, optional
        Where outputs will go, for the free space; by default the current folder.

    Returns
    -------
    list of Finding
        geoseg works if none is 'broken'.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        probes = dict(zip(PROBES, pool.map(probe, PROBES.values()), strict=True))
    torch, vision = probes.pop("torch"), probes.pop("torchvision")
    return [
        Finding("geoseg", geoseg.__version__),
        _python(),
        *pair_findings(torch, vision),
        gpu_finding(torch),
        *(_library(name, result) for name, result in probes.items()),
        _cpu(torch),
        _memory(),
        _disk(Path.cwd() if folder is None else folder),
    ]


def probe(code: str) -> Probe:
    """Run Python code in a process of its own and collect what it says.

    Parameters
    ----------
    code : str
        May call ``say(name=value, ...)``, any number of times.

    Returns
    -------
    Probe
        With the last line of the error, or the signal, if it failed.
    """
    # -P: a file called torch.py in the current folder is not torch
    command = [sys.executable, "-P", "-c", _SAY + code]
    try:
        done = subprocess.run(  # noqa: S603  # our own code, no shell
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Probe({}, f"no answer within {PROBE_TIMEOUT_S} s")
    values: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            values |= json.loads(line)
    if done.returncode == 0:
        return Probe(values)
    if done.returncode < 0:
        return Probe(values, f"it died with {signal.Signals(-done.returncode).name}")
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return Probe(values, said[-1] if said else f"it ended with code {done.returncode}")


def pair_findings(torch: Probe, vision: Probe) -> list[Finding]:
    """Tell whether torch and torchvision work, and fit each other."""
    found = [_library("torch", torch), _library("torchvision", vision)]
    if torch.error:
        advice = (
            "torch must work first: pip install --force-reinstall torch torchvision "
            "(both in one command)"
        )
        return [
            Finding("torch", found[0].value, "broken", advice),
            Finding("torchvision", found[1].value, found[1].status, "see torch"),
        ]
    # the package's version tells the index that it came from; torch.__version__ has +cu130 always
    ours, theirs = str(torch.values["package"]), str(vision.values.get("version", ""))
    if vision.error:
        return [
            found[0],
            Finding("torchvision", found[1].value, "broken", explain_pair(ours, theirs)),
        ]
    if release(ours) < MIN_TORCH or release(theirs) < MIN_TORCHVISION:
        advice = "older than geoseg supports: pip install -U 'torch>=2.10' 'torchvision>=0.25'"
        return [found[0], Finding("torchvision", found[1].value, "note", advice)]
    return found


def explain_pair(torch: str, vision: str) -> str:
    """Say why torchvision fails to import although torch works, and what to do.

    Parameters
    ----------
    torch, vision : str
        Versions as the packages tell them, such as '2.13.0+cpu'; vision empty if not installed.

    Returns
    -------
    str
        One line.

    References
    ----------
    pytorch/vision issues 9077 and 9085: ``operator torchvision::nms does not exist``.
    """
    wanted = fitting_torchvision(torch)
    command = f"pip install --force-reinstall 'torch=={public(torch)}' 'torchvision{wanted}'"
    if not vision:
        return f"install it: pip install 'torchvision{wanted}', from the index that torch came from"
    if not _fits(torch, vision):
        return (
            f"torchvision {vision} was not built for torch {torch}, which wants "
            f"torchvision{wanted}; reinstall both together: {command}"
        )
    builds = [_build(version) for version in (torch, vision)]
    if builds[0] != builds[1]:
        return (
            f"the versions fit, but torch is {builds[0]} and torchvision {builds[1]}: they came "
            "from different indexes. Install both in one command from one index (for CPU builds "
            f"give PyTorch's CPU index as --index-url): {command}"
        )
    return (
        "the versions fit, so one of the two is damaged or built for something else (CPU or "
        f"CUDA); reinstall both in one command from one index: {command}"
    )


def fitting_torchvision(torch: str) -> str:
    """Return the requirement on torchvision that fits a version of torch.

    Examples
    --------
    >>> fitting_torchvision("2.11.0+cu128"), fitting_torchvision("2.14.1")
    ('==0.26.*', '>=0.29')
    """
    major, minor = release(torch)
    if (major, minor) >= STABLE_TORCH:
        return f">={STABLE_TORCHVISION[0]}.{STABLE_TORCHVISION[1]}"
    return f"==0.{minor + PAIR_STEP}.*"


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; (0, 0) where there are none."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def public(version: str) -> str:
    """Return a version without what tells the build: '2.13.0' of '2.13.0+cpu'."""
    return version.partition("+")[0]


def gpu_finding(torch: Probe) -> Finding:
    """Tell which GPUs torch can use, and why it sees none. geoseg also works without."""
    if torch.error:
        return Finding("GPU", "unknown: torch does not work", "note")
    gpus: Sequence[tuple[str, int]] = torch.values.get("gpus", [])
    error: str | None = torch.values.get("gpu_error")
    names = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in gpus)
    if gpus and error is None:
        return Finding("GPU", f"{names}, CUDA {torch.values['cuda_build']}")
    if gpus and error is not None:
        # broken, because --device auto would choose it and fail
        advice = f"install a torch built for it, or run with --device cpu: {_one_line(error)}"
        return Finding("GPU", f"{names}, but it does not compute", "broken", advice)
    return Finding("GPU", "none: the CPU is used", "note", _why_no_gpu(torch, error))


def _why_no_gpu(torch: Probe, error: str | None) -> str:
    """Say why torch sees no GPU."""
    if torch.values.get("cuda_build") is None:
        return f"torch {torch.values['version']} is built without CUDA"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        return f"CUDA_VISIBLE_DEVICES is '{value}', which may hide it"
    if not Path("/dev/nvidiactl").exists() and sys.platform == "linux":
        return "no NVIDIA driver is loaded; if the machine has such a GPU, install the driver"
    return _one_line(error) if error else "torch counts no CUDA device"


def _library(name: str, result: Probe) -> Finding:
    """Tell a library's version and those of the C libraries that it carries."""
    inner = [f"{k} {v}" for k, v in result.values.items() if k in ("GDAL", "PROJ", "GEOS")]
    value = " ".join([str(result.values.get("version", "not found"))] + [f"({v})" for v in inner])
    if result.error is None:
        return Finding(name, value)
    value = f"{value}: {_one_line(result.error)}"
    search = [v for v in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if v in os.environ]
    if search and "No module" not in result.error:
        advice = f"{' and '.join(search)} may point to files of another installation: unset it"
    else:
        advice = f"pip install --force-reinstall {name}"
    return Finding(name, value, "broken", advice)


def _python() -> Finding:
    """Tell Python's version and the system."""
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        return Finding("Python", value, "broken", "geoseg needs Python 3.11 or newer")
    return Finding("Python", value)


def _cpu(torch: Probe) -> Finding:
    """Tell cores, torch's threads and whether the CPU computes bfloat16 by itself."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    threads = torch.values.get("threads")
    parts = [f"{cores} logical cores"]
    if threads:
        parts.append(f"{threads} torch threads")
    bf16 = _has_bf16()
    if bf16 is not None:
        parts.append("bfloat16 in hardware" if bf16 else "no bfloat16 in hardware")
    return Finding("CPU", ", ".join(parts))


def _has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Tell whether the CPU multiplies bfloat16; None where the system does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return (
        None if flags is None else bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[1].split()))
    )


def _memory() -> Finding:
    """Tell how much memory there is, of the machine or of the container."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "unknown", "note")
    limit = _first_int(Path("/sys/fs/cgroup/memory.max"))
    total = total if limit is None else min(total, limit)
    gb = total / 1e9
    if gb < LOW_MEMORY_GB:
        return Finding("memory", f"{gb:.1f} GB", "note", "run with --workers 1")
    return Finding("memory", f"{gb:.1f} GB")


def _first_int(path: Path) -> int | None:
    """Return the number that a file of the system holds; None for 'max', or without the file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _disk(folder: Path) -> Finding:
    """Tell how much space is free where outputs go."""
    gb = shutil.disk_usage(folder).free / 1e9
    low = gb < LOW_DISK_GB
    advice = "a night's run may need more: parts, output and pictures lie beside the output"
    return Finding("free disk", f"{gb:,.1f} GB in {folder}", "note" if low else "ok", advice * low)


def _fits(torch: str, vision: str) -> bool:
    """Tell whether the two versions are meant for each other."""
    if release(torch) >= STABLE_TORCH:
        return release(vision) >= STABLE_TORCHVISION
    return release(vision) == (0, release(torch)[1] + PAIR_STEP)


def _build(version: str) -> str:
    """Name the build of a version by what follows its plus sign."""
    build = version.partition("+")[2]
    if build == "cpu":
        return "a CPU build"
    return f"a build for {build}" if build else "PyPI's build"


def _one_line(text: str) -> str:
    """Return the first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def as_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return a diagnosis for JSON: ``ok`` and the findings."""
    return {
        "ok": all(finding.status != "broken" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
