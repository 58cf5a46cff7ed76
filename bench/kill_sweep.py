"""kill -9 at random moments of a run, then --resume: is the end, bit for bit, the one of a run that nobody disturbed?

    python -m bench.kill_sweep recipes/zero_nano.toml [key=value ...] [--kills 20] [--seed 0] [--out DIR]

The moments take turns between rollout, reward, learn, sync and checkpoint, each at a random step and a random part of its usual time. What
is printed as the phase is where the process was when it died, which it notes in a file that outlives it. Equal means: metrics without
clocks, every answer and its scores, the last weights, the held-out figures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = {  # what a run is in while it is in this function
    "rollout": ("rl.feed", "scored_rollout"),
    "reward": ("rewards.scorer", "InProcess.submit"),
    "learn": ("rl.learn", "Learner.step"),
    "sync": ("rl.train", "sync"),
    "checkpoint": ("rl.checkpoint", "save"),
}
CLOCKS = ("seconds", "eta_s", "tokens_per_s", "reward_ms")
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["recipes.run"])


@dataclass(frozen=True)
class Kill:
    """SIGKILL `delay` seconds after the `nth` entry (from 0) into `phase`."""

    phase: str
    nth: int
    delay: float


class Noted:
    """Marks in a folder which phase the process is in, and how long each took; kills it where it is told to."""

    def __init__(self, folder: Path, kill: Kill | None) -> None:
        self.file = (folder / "phase").open("w", buffering=1)
        self.kill, self.inside, self.entries = kill, ["between"], dict.fromkeys(PHASES, 0)
        self.took: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for phase, (module, name) in PHASES.items():
            owner, _, attribute = name.rpartition(".")
            holder = importlib.import_module(module)
            holder = getattr(holder, owner) if owner else holder
            setattr(holder, attribute, self.around(phase, getattr(holder, attribute)))

    def around(self, phase: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            self.enter(phase)
            begun = time.monotonic()
            try:
                return real(*args, **options)
            finally:
                self.took[phase].append(time.monotonic() - begun)
                self.inside.pop()
                self.mark()

        return noted

    def enter(self, phase: str) -> None:
        self.inside.append(phase)
        self.mark()
        due = self.kill and phase == self.kill.phase and self.entries[phase] == self.kill.nth
        self.entries[phase] += 1
        if due and self.kill and (phase == "reward" or not self.kill.delay):  # a reward is over before a timer would be set up
            os.kill(os.getpid(), signal.SIGKILL)
        elif due and self.kill:
            threading.Timer(self.kill.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def mark(self) -> None:
        self.file.seek(0)
        self.file.write(f"{self.inside[-1]:<20}\n")


def _child(folder: Path, args: Sequence[str], kill: Kill | None) -> None:
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    import torch

    from recipes import run as door

    torch.set_num_threads(1)
    noted = Noted(folder, kill)
    code = door.main(list(args))
    (folder / "took.json").write_text(json.dumps(noted.took))
    sys.stdout.flush()
    os._exit(code)


def run(folder: Path, args: Sequence[str], kill: Kill | None = None) -> int:
    """The recipe's door in a process of its own; what it says lies in said.txt. Returns its exit code, -9 when it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    process = _SERVER.Process(target=_child, args=(folder, args, kill))
    process.start()
    process.join()
    return process.exitcode or 0


def plan(took: dict[str, list[float]], kills: int, seed: int) -> list[Kill]:
    """Random moments, the phases in turn."""
    draw, phases = random.Random(seed), [p for p in PHASES if took[p]]
    chosen = [phases[i % len(phases)] for i in range(kills)]
    return [Kill(p, draw.randrange(len(took[p])), draw.random() * statistics.median(took[p])) for p in chosen]


def contents(out: Path) -> dict[str, Any]:
    """Everything that a finished run leaves and no clock wrote."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"metrics": [{k: v for k, v in m.items() if not k.startswith(CLOCKS)} for m in lines]}
    files = [*out.glob("rollouts/*.jsonl"), *out.glob("final/*.safetensors"), *out.glob("before.json"), *out.glob("after.json")]
    return found | {str(f.relative_to(out)): f.read_bytes() for f in files}


def killed(folder: Path, args: Sequence[str], kill: Kill) -> tuple[str, str, int]:
    """One run that is killed and resumed until it is done: where it died, what the resume said, the exit code."""
    command = [*args, f"run.out={folder / 'run'}"]
    if (code := run(folder, command, kill)) != -signal.SIGKILL:
        return "not killed", "", code
    died = (folder / "phase").read_text().strip()
    code = run(folder, [*command, "--resume"])
    said = [line for line in (folder / "said.txt").read_text().splitlines() if line.startswith(("resumed after", "error"))]
    return died, " ".join(said), code


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kill_sweep", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: a temporary folder")
    args = parser.parse_intermixed_args()
    started, equal = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="kill-sweep-") as temporary:
        folder = args.out or Path(temporary)
        command = [args.recipe, *args.overrides]
        if run(folder / "whole", [*command, f"run.out={folder / 'whole' / 'run'}"]):
            raise SystemExit((folder / "whole" / "said.txt").read_text()[-2000:])
        wanted = contents(folder / "whole" / "run")
        took = json.loads((folder / "whole" / "took.json").read_text())
        print("| # | aimed at | died in | resume | equal to the undisturbed run |\n| --- | --- | --- | --- | --- |", flush=True)
        for i, kill in enumerate(plan(took, args.kills, args.seed), 1):
            died, said, code = killed(folder / str(i), command, kill)
            same = code == 0 and died != "not killed" and contents(folder / str(i) / "run") == wanted
            equal += same
            aimed = f"{kill.phase} {kill.nth + 1} + {1000 * kill.delay:.1f} ms"
            print(f"| {i} | {aimed} | {died} | {said} | {'yes' if same else f'NO (exit code {code})'} |", flush=True)
    print(f"\n{equal} of {args.kills} equal bit for bit; {(time.monotonic() - started) / 60:.1f} minutes")
    return int(equal < args.kills)


if __name__ == "__main__":
    sys.exit(main())
