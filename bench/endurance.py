"""A long run on a bad day: a worker is killed every so many steps, the whole run ended and resumed every so many. Does anything grow?

    python -m bench.endurance recipes/zero_nano.toml [key=value ...] [--steps 1000 --kill-every 50 --restart-every 200] [--out DIR]
    python -m bench.endurance ... --undisturbed           the same run left alone, to compare the end with

Restarts take turns between SIGTERM (saves, exits 0) and SIGKILL. After each step it notes the memory, open files and processes of the
learner and of what it started, and the size of the run's folder; the table compares the first and the last quarter of the steps, each
counted from the third step after a start. Prints the held-out figures of the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTLED = 3  # steps after a start until memory is what the run needs


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def workers(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [p for p in family(pid) if b"rl.worker_child" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return []


def mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def look(pid: int, folder: Path) -> dict[str, float]:
    """What the run holds now."""
    all_, hands = family(pid), workers(pid)
    files = [f.stat().st_size for f in folder.rglob("*") if f.is_file()]
    return {
        "learner MiB": mib(pid),
        "worker MiB, largest": max((mib(p) for p in hands), default=0.0),
        "open files of the learner": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": len(all_),
        "workers": len(hands),
        "MiB in /dev/shm": sum(f.stat().st_size for f in Path("/dev/shm").rglob("*") if f.is_file()) / 2**20,
        "checkpoints MiB": sum(f.stat().st_size for f in (folder / "checkpoints").rglob("*") if f.is_file()) / 2**20,
        "files but for rollouts": len(files) - sum(1 for _ in (folder / "rollouts").glob("*")),
    }


def steps_done(folder: Path) -> int:
    try:
        return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("a") as to:
        child = subprocess.Popen(command, stdout=to, stderr=subprocess.STDOUT)
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()


def season(
    command: list[str], folder: Path, args: argparse.Namespace, notes: list[dict[str, Any]], chance: random.Random
) -> bool:
    """From a start to the next restart, or the end; whether the run is over."""
    began = steps_done(folder)
    until = (began // args.restart_every + 1) * args.restart_every
    with running(command + (["--resume"] if began else []), folder.with_suffix(".log")) as child:
        seen = began
        while child.poll() is None:
            time.sleep(0.05)
            now = steps_done(folder)
            if now == seen:
                continue
            seen = now
            with contextlib.suppress(OSError):  # it may be ending
                notes.append({"step": now, "since": now - began, **look(child.pid, folder)})
            if args.undisturbed:
                continue
            if until <= now < args.steps:
                child.send_signal(signal.SIGKILL if (until // args.restart_every) % 2 else signal.SIGTERM)
                child.wait()
                return False
            if now % args.kill_every == 0 and now < args.steps and (there := workers(child.pid)):
                os.kill(chance.choice(there), signal.SIGKILL)
        if child.returncode:
            raise SystemExit(f"the run ended with {child.returncode} after step {seen}: see {folder.with_suffix('.log')}")
    return True


def table(notes: list[dict[str, Any]], steps: int) -> str:
    """Medians of the first and the last quarter."""
    settled = [n for n in notes if n["since"] >= SETTLED]
    first = [n for n in settled if n["step"] <= steps / 4]
    last = [n for n in settled if n["step"] > 3 * steps / 4]
    lines = [f"{'':28} {'first quarter':>14} {'last quarter':>14} {'most':>10}"]
    for what in [w for w in settled[0] if w not in ("step", "since")]:
        a, b = (statistics.median(n[what] for n in part) for part in (first, last))
        lines.append(f"{what:28} {a:14.1f} {b:14.1f} {max(n[what] for n in settled):10.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.endurance")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--kill-every", type=int, default=50)
    parser.add_argument("--restart-every", type=int, default=200)
    parser.add_argument("--undisturbed", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/endurance"))
    args = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "recipes.run",
        args.recipe,
        f"run.out={args.out}",
        f"run.steps={args.steps}",
        *args.overrides,
    ]
    notes, chance, started = list[dict[str, Any]](), random.Random(0), time.time()
    starts = 1
    while not season(command, args.out, args, notes, chance):
        starts += 1
    metrics = [json.loads(line) for line in (args.out / "metrics.jsonl").read_text().splitlines()]
    lost = sum(m.get("workers_lost", 0) for m in metrics)
    print(f"{len(metrics)} steps, {starts} starts, {lost:.0f} workers lost, {(time.time() - started) / 60:.0f} minutes")
    assert [m["step"] for m in metrics] == list(range(1, args.steps + 1)), "a step is missing or there twice"
    print(table(notes, args.steps))
    result = json.loads((args.out / "after.json").read_text())
    print(
        "  ".join(
            f"{k} {result[k]['value']:.3f} [{result[k]['low']:.3f}, {result[k]['high']:.3f}]" for k in ("greedy", "pass@1")
        )
    )
    args.out.with_suffix(".json").write_text(json.dumps(notes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
