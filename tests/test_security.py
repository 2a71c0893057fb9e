"""SECURITY.md names tests, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from geoseg.imagery.limits import _KNOBS, Limits

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def named_in(path: Path) -> set[str]:
    """Return the names of the test functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    named = NAMED.findall(PAGE)
    assert len(named) > 20
    known = {file: named_in(ROOT / "tests" / file) for file, _ in named}
    assert [f"{file}::{test}" for file, test in named if test not in known[file]] == []


def test_every_claim_names_a_test():
    claims = [
        line
        for part in PAGE.split("## What is defended")[1].split("## What is not defended")[:1]
        for line in part.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| claim |"))
    ]
    assert len(claims) > 10
    assert [claim for claim in claims if not NAMED.search(claim)] == []


def test_the_limits_are_those_of_the_code():
    most = Limits()
    settings = PAGE.split("## Settings")[1]
    for variable, field in _KNOBS.items():
        assert f"| `{variable}` | {getattr(most, field):,} |" in settings
    for value in (
        f"{most.max_side_px:,} px", f"{most.max_bands:,} bands", f"{most.max_blocks:,} blocks",
        f"{most.max_directories:,} directories", f"{most.max_overviews} overviews",
        f"{most.max_tag_mb} MB", f"{most.max_gcps:,} control", f"1 : {most.max_ratio:,}",
        f"more than {most.ratio_from_mb} MB",
    ):  # fmt: skip
        assert value in settings, value
