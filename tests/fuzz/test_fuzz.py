"""A few hundred broken files, the same in every run; ``make fuzz`` takes many thousands."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import tiff
from fuzz.kinds import KINDS, kind_of, make
from fuzz.mutate import mutate_bytes, mutate_tree
from fuzz.server import Ended, Server

RUN = Path(__file__).with_name("run.py")


def test_no_broken_file_brings_it_down(seeds, tmp_path):
    args = ["--files", "160", "--seed", "0", "--jobs", "2", "--seeds", str(seeds)]
    done = subprocess.run(
        [sys.executable, str(RUN), *args], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all                 160 files    0 findings" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_number_gives_the_same_file_again(seeds, tmp_path):
    for kind in ("tiff-structure", "job", "regions", "checkpoint"):
        found = []
        for copy in "ab":
            folder = tmp_path / f"{kind}-{copy}"
            folder.mkdir()
            case = make(kind, 5, 77, seeds, folder)
            files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
            found.append((case, files))
        assert found[0] == found[1]
    assert {kind_of(1, number) for number in range(2000)} == set(KINDS)


def test_files_are_broken_in_many_ways():
    files = {tiff.mutated(random.Random(number)) for number in range(200)}
    assert len(files) == 200
    assert {data[:4] for data in files} >= {b"II*\0", b"MM\0*", b"II+\0"}
    assert len({mutate_bytes(random.Random(i), bytes(range(200))) for i in range(100)}) > 95
    tree = {"a": [1, {"b": "c"}], "d": {"e": 0.5}}
    assert len({repr(mutate_tree(random.Random(i), tree)) for i in range(100)}) > 60
    assert tree == {"a": [1, {"b": "c"}], "d": {"e": 0.5}}


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        (("call:bad", "raise"), "says 'internal error'"),
        (("call:bad", "signal"), "signal SIGSEGV"),
        (("call:bad", "hang"), "hang: more than"),
        (("call:bad", "memory"), "says 'internal error'"),
        (("call:bad", "write"), "stray file: left.txt"),
        (("call:bad", "code"), "exit code 70"),
    ],
)
def test_what_must_not_be_is_found(tmp_path, command, finding, impatient):
    (tmp_path / "case").mkdir()
    ended = impatient.run(tmp_path / "case", [command])
    assert any(found.startswith(finding) for found in ended.findings), ended
    assert impatient.run(tmp_path / "case", [("--version",)]).findings == ()


@pytest.fixture(scope="module")
def impatient():
    with Server(limit_s=2.0) as server:
        yield server


def test_a_finding_is_read_from_what_a_case_did():
    fine = Ended((0, 2), 0, False, 0.1, "", "geoseg: error: no", ())
    assert fine.findings == ()
    assert Ended((1,), 0, False, 0.1, "x: cannot be judged (KeyError: 1)", "", ()).findings
    assert Ended((139,), 0, False, 0.1, "", "", ()).findings == ("exit code 139",)
