"""Ways to break bytes, trees and text; all that is random comes from the generator given."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

INTEGERS = (
    0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536,
    2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
"""Numbers at which something changes."""
NUMBERS = (
    0, -1, 1, 0.5, -0.0, 1e-300, 1e-9, 1e9, 1e18, -1e18, 1e300, 2**31, -(2**31), 2**53, 2**63, 10**30,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "a", "\0", "\n", "'", '"', "../../x", "/etc/passwd", "%s%n{}", "nan", "1e999", "-1",
    "EPSG:4326", "EPSG:0", "EPSG:99999999", "geometry", "x" * 300, "\u202e\u0000\ud7ff", "🏠",
    "'; DROP TABLE objects; --", "<script>", "=1+1",
)  # fmt: skip


def near(rng: random.Random, value: int, size: int = 0) -> int:
    """Return a number that may hurt where `value` stood."""
    choices = [rng.choice(INTEGERS), value + rng.choice((-1, 1)), value * rng.choice((2, 10, 1000)),
               value ^ (1 << rng.randrange(32)), rng.randrange(2**16), size, max(size - 1, 0),
               size + 1, rng.randrange(size + 1)]  # fmt: skip
    return max(rng.choice(choices), 0)


# --- bytes -----------------------------------------------------------------------------------


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[_at(rng, data)] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 16))):
        data[_at(rng, data)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def _number(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((1, 2, 4, 8))
    at = _at(rng, data)
    value = rng.choice(INTEGERS) % 256**size
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[_at(rng, data) :]


def _remove(rng: random.Random, data: bytearray) -> None:
    at = _at(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 16, 256))]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = _at(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 256)))


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = _at(rng, data)
    piece = data[at : at + rng.choice((1, 4, 16, 256))]
    data[at:at] = piece * rng.choice((1, 3, 100))


def _blank(rng: random.Random, data: bytearray) -> None:
    at = _at(rng, data)
    end = min(at + rng.choice((4, 64, 1024)), len(data))
    data[at:end] = bytes([rng.choice((0, 255))]) * (end - at)


def _swap(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((1, 4, 12, 64, 512))
    a, b = sorted((_at(rng, data), _at(rng, data)))
    if a + size <= b and b + size <= len(data):
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _at(rng: random.Random, data: bytearray) -> int:
    """Return a place, mostly near the ends, where formats keep what steers them."""
    n = len(data)
    if n == 0:
        data.append(0)
        return 0
    where = rng.random()
    if where < 0.35:
        return rng.randrange(min(n, 64))
    if where < 0.6:
        return rng.randrange(min(n, 1024))
    if where < 0.75:
        return n - 1 - rng.randrange(min(n, 512))
    return rng.randrange(n)


_BYTES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _flip, _set, _number, _number, _cut, _remove, _insert, _repeat, _blank, _swap,
)  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Break bytes in one to four ways; `other` may be spliced in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if other and rng.random() < 0.08:
            out[_at(rng, out) :] = other[rng.randrange(len(other)) :]
        else:
            rng.choice(_BYTES)(rng, out)
    return bytes(out)


# --- trees (JSON, TOML, YAML) ----------------------------------------------------------------

Path_ = tuple[Any, ...]


def places(tree: Any, before: Path_ = ()) -> list[Path_]:
    """Return the way to each value of a tree."""
    found = [before]
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += places(value, (*before, key))
    elif isinstance(tree, list):
        # long lists are alike
        for i, value in enumerate(tree[:12]):
            found += places(value, (*before, i))
    return found


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of any kind."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind in (0, 1):
        return rng.choice(NUMBERS)
    if kind in (2, 3):
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice((True, False))
    if kind == 5:
        return None
    if kind == 6:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(TEXTS): odd_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    return rng.choice(([], {}, [[]], [[[]]], [None], [{}], {"": {}}))


def mutate_tree(rng: random.Random, tree: Any, keys: Sequence[str] = ()) -> Any:
    """Break a tree of tables, lists and values in one to four places; `keys` may be added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _mutate_once(rng, tree, keys)
    return tree


def _mutate_once(rng: random.Random, tree: Any, keys: Sequence[str]) -> Any:
    way = rng.choice(places(tree))
    if not way:
        return odd_value(rng) if rng.random() < 0.1 else _mutate_inside(rng, tree, keys)
    parent = tree
    for step in way[:-1]:
        parent = parent[step]
    last, old = way[-1], parent[way[-1]]
    action = rng.randrange(7)
    if action == 0:
        del parent[last]
    elif action == 1 and isinstance(parent, list):
        parent[last:last] = [copy.deepcopy(old)] * rng.choice((1, 2, 50))
    elif action == 2 and isinstance(parent, dict):
        parent[rng.choice((*keys, *TEXTS))] = parent.pop(last)
    elif action == 3:
        parent[last] = rng.choice(([old], {"x": old}, str(old)))
    elif action == 4 and isinstance(old, int | float):
        parent[last] = rng.choice((*NUMBERS, -old, old + 1, old * 1000))
    elif action == 5 and isinstance(old, str):
        parent[last] = rng.choice((old[:-1], old + old, old.upper(), old + "\0", old[::-1]))
    else:
        parent[last] = _mutate_inside(rng, old, keys)
    return tree


def _mutate_inside(rng: random.Random, value: Any, keys: Sequence[str]) -> Any:
    """Return another value in its place: of the same kind, or of any."""
    if isinstance(value, dict) and rng.random() < 0.7:
        return value | {rng.choice((*keys, *TEXTS)): odd_value(rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        return rng.choice((value[::-1], value[:1], value + value, sorted(value, key=str)))
    return odd_value(rng)


def nested(rng: random.Random) -> Any:
    """Return a list in a list in a list."""
    out: Any = []
    for _ in range(rng.choice((50, 150, 300))):
        out = [out]
    return out


def to_json(rng: random.Random, tree: Any) -> bytes:
    """Write a tree as JSON, with the numbers that JSON does not have; sometimes broken text."""
    data = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.04:
        deep = rng.choice((200, 5_000, 100_000))
        data = data.replace(b"[", b"[" * deep, 1)
    if rng.random() < 0.15:
        data = mutate_bytes(rng, data)
    return data


# --- TOML ------------------------------------------------------------------------------------


def to_toml(rng: random.Random, tables: dict[str, Any]) -> bytes:
    """Write tables of values as TOML; what TOML has no word for becomes text."""
    lines = []
    for name, table in tables.items():
        for part in table if isinstance(table, list) else [table]:
            if not isinstance(part, dict):
                lines.insert(0, f"{_key(name)} = {_toml(part)}")
                continue
            head = f"[[{_key(name)}]]" if isinstance(table, list) else f"[{_key(name)}]"
            lines += [head, *(f"{_key(k)} = {_toml(v)}" for k, v in part.items())]
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
        at = rng.randrange(len(lines) + 1)
        odd = rng.choice((
            "a.b.c = 1", "a = 1979-05-27T07:32:00Z", "x = [1, 2", "= 3", "[a.b", "'''", "\t\0",
            "y = " + "[" * rng.choice((100, 3_000)), "z = {" * rng.choice((2, 900)), "é = 1",
            "n = 0x" + "f" * 40, "n = " + "9" * rng.choice((20, 5_000)), "t = 25:61:00",
            'u = "\\uD800"', "[detect]", "[count]", "images = 'x'", "d = 9999-99-99", "m = +nan",
        ))  # fmt: skip
        lines.insert(at, odd)
    if lines and rng.random() < 0.1:
        lines.append(rng.choice(lines))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _key(name: Any) -> str:
    text = str(name)
    return (
        text
        if text.replace("_", "").replace("-", "").isalnum() and text.isascii()
        else (json.dumps(text))
    )


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
