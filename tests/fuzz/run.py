"""Break files by seed and number, and see what geoseg makes of them.

``python tests/fuzz/run.py --files 10000 --seed 1`` ends with 1 if one of them ended in a signal,
a hang, a traceback, an unknown exit code, or left something where it must not. The same seed and
number give the same file: ``--only 1234 --keep FOLDER`` makes one again and keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.kinds import KINDS, kind_of, make  # noqa: E402
from fuzz.server import LIMIT_S, Ended, Server  # noqa: E402


def make_seeds(folder: Path) -> None:
    """Write the sound files, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.seeds", str(folder)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "OMP_NUM_THREADS": "1"}
        | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the seeds could not be written:\n{done.stderr}")


def fuzz(
    numbers: list[int],
    seed: int,
    seeds: Path,
    work: Path,
    *,
    kind: str | None,
    limit_s: float,
    keep: Path | None,
) -> Iterator[dict[str, Any]]:
    """Run files one after the other in one server; yield what was found of each."""
    root = work / "room"
    servers: dict[bool, Server] = {}
    with ExitStack() as stack:
        for number in numbers:
            which = kind or kind_of(seed, number)
            (root / "case").mkdir(parents=True)
            case = make(which, seed, number, seeds, root / "case")
            if case.torch not in servers:
                servers[case.torch] = stack.enter_context(Server(limit_s, case.torch))
            server = servers[case.torch]
            if keep is not None and len(numbers) == 1:
                shutil.copytree(root / "case", keep / f"{which}-{number}", dirs_exist_ok=True)
            ended = server.run(root / "case", case.commands, case.outputs)
            if ended.timed_out:
                # a busy machine is no hang: it must be slow twice
                ended = server.run(root / "case", case.commands, case.outputs)
            full = ""
            if ended.findings and keep is not None:
                target = keep / f"{which}-{seed}-{number}"
                shutil.copytree(root / "case", target, dirs_exist_ok=True, symlinks=True)
                if not ended.timed_out:
                    full = _in_full(server, root, case.commands)
            yield {"seed": seed, "number": number, "kind": which, "commands": case.commands,
                   "ended": ended, "in_full": full}  # fmt: skip
            shutil.rmtree(root)


def _in_full(server: Server, root: Path, commands: Any) -> str:
    """Return what a case that went wrong says with tracebacks."""
    told = [c if c[0].startswith("call:") else ("-v", *c) for c in commands]
    return server.run(root / "case", told, ["*"]).err


def main() -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=list(KINDS), help="files of this kind only")
    parser.add_argument("--only", type=int, help="this one file")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds a file may take")
    parser.add_argument("--keep", type=Path, help="folder for what was found, and for --only")
    parser.add_argument("--seeds", type=Path, help="folder of seeds, made if it is not there")
    options = parser.parse_args()
    begun = time.monotonic()
    numbers = [*range(options.first, options.first + options.files)]
    numbers = numbers if options.only is None else [options.only]
    found: list[dict[str, Any]] = []
    totals: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    slowest: list[tuple[float, str, int]] = []
    took: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="geoseg-fuzz-") as folder:
        work = Path(folder)
        seeds = options.seeds or work / "seeds"
        if not seeds.exists():
            seeds.mkdir(parents=True)
            make_seeds(seeds)
        print(f"seeds and imports: {time.monotonic() - begun:.0f} s", file=sys.stderr)

        def share(job: int) -> None:
            for result in fuzz(
                numbers[job :: options.jobs], options.seed, seeds, work / str(job),
                kind=options.kind, limit_s=options.limit, keep=options.keep,
            ):  # fmt: skip
                ended: Ended = result["ended"]
                totals[result["kind"]] += 1
                codes.update(str(code) for code in ended.codes)
                took[result["kind"]] += ended.seconds  # type: ignore[assignment]
                slowest.append((ended.seconds, result["kind"], result["number"]))
                slowest.sort(reverse=True)
                del slowest[10:]
                if ended.findings:
                    found.append(result)
                    _say(result)
                if sum(totals.values()) % 500 == 0:
                    _progress(sum(totals.values()), len(found), begun)

        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(share, job) for job in range(options.jobs)]:
                future.result()
    seconds = time.monotonic() - begun
    if options.keep is not None and found:
        lines = [json.dumps(r | {"ended": _plain(r["ended"])}) for r in found]
        with (options.keep / "found.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    _summary(totals, codes, slowest, found, seconds, took)
    return 1 if found else 0


def _plain(ended: Ended) -> dict[str, Any]:
    return {name: getattr(ended, name) for name in ended.__slots__} | {"findings": ended.findings}


def _say(result: dict[str, Any]) -> None:
    ended: Ended = result["ended"]
    said = [line for line in (ended.err + ended.out).splitlines() if line.strip()]
    worst = [line for line in said if "internal error" in line or "cannot be judged" in line]
    print(
        f"{result['kind']} {result['number']}: {'; '.join(ended.findings)}\n"
        f"    {result['commands']}\n    {(worst or said or [''])[-1][:300]}",
        flush=True,
    )


def _progress(done: int, found: int, begun: float) -> None:
    seconds = time.monotonic() - begun
    print(f"{done} files, {found} findings, {seconds:.0f} s", file=sys.stderr, flush=True)


def _summary(
    totals: Counter[str],
    codes: Counter[str],
    slowest: list[Any],
    found: list[Any],
    seconds: float,
    took: Counter[str],
) -> None:
    bad = Counter(result["kind"] for result in found)
    for kind in KINDS:
        if totals[kind]:
            each = 1000 * took[kind] / totals[kind]
            print(f"{kind:16} {totals[kind]:6} files {bad[kind]:4} findings {each:6.0f} ms each")
    n = sum(totals.values())
    print(f"{'all':16} {n:6} files {len(found):4} findings, {seconds:.0f} s, "
          f"{1000 * seconds / max(n, 1):.0f} ms a file")  # fmt: skip
    print("exit codes:", ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())))
    print("slowest:", ", ".join(f"{kind} {no} {s:.1f} s" for s, kind, no in slowest[:5]))


if __name__ == "__main__":
    sys.exit(main())
