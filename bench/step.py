"""Whole GRPO steps on the hardware at hand: this project in turn, one step ahead, and TRL's GRPOTrainer, on the same prompts and lengths.

    python -m bench.step MODEL [--ways turn,ahead,trl,trl-tuned] [--steps 6] [--prompts 64 --group 8 --tokens 512] [--out FOLDER]

MODEL: see bench/model.py for random weights. Each way is a run of its own through its own front door (`recipes.run`, GRPOTrainer), one
after the other; the first step warms up and is left out. Prints medians with ranges and ratios, writes step.json and step.png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rl.policy import ROOT
from rl.prompts import R1_ZERO

PHASES = ("seconds", "seconds_rollout", "seconds_learn", "seconds_sync")
WARM = 1  # steps left out

WAYS: dict[str, list[str]] = {
    "turn": [],
    "sleep": ["rollout.sleep=true"],
    "ahead": ["rollout.placement=processes", "rollout.max_staleness=1"],
    "ahead-own-gpu": ["rollout.placement=processes", "rollout.max_staleness=1", "rollout.devices=[1]"],
    "turn-own-gpu": ["rollout.placement=processes", "rollout.devices=[1]"],
    "turn-two": ["rollout.placement=processes", "rollout.workers=2"],
    "two-workers": ["rollout.placement=processes", "rollout.workers=2", "rollout.max_staleness=1"],
    "trl": [],
    "trl-tuned": ["--tuned"],
}


def questions(folder: Path, count: int) -> tuple[Path, Path]:
    """The same prompts as rows for our door and as text for TRL."""
    draw, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyz "
    rows = ["".join(draw.choice(letters) for _ in range(draw.randint(150, 220))).strip() for _ in range(count)]
    ours, theirs = folder / "questions.jsonl", folder / "prompts.jsonl"
    ours.write_text("".join(json.dumps({"id": f"q{i}", "question": q, "gold": "7"}) + "\n" for i, q in enumerate(rows)))
    theirs.write_text("".join(json.dumps({"prompt": R1_ZERO.format(question=q)}) + "\n" for q in rows))
    return ours, theirs


def command(
    way: str, args: argparse.Namespace, folder: Path, ours: Path, theirs: Path, door: str = "recipes.run"
) -> tuple[list[str], Path]:
    """What to run, and the file its steps will stand in. `door` is the module that runs our recipe."""
    if way.startswith("trl"):
        out = folder / f"{way}.jsonl"
        run = [sys.executable, "-m", "bench.trl_peer", args.model, str(theirs), str(out), f"--steps={args.steps}"]
        run += [f"--prompts-a-step={args.prompts}", f"--group={args.group}", f"--tokens={args.tokens}", f"--micro={args.micro}"]
        return run + [f"--memory={args.memory}", f"--ends={ends(args.model)}", *WAYS[way]], out
    out = folder / way
    run = [sys.executable, "-m", door, "recipes/zero_gsm8k.toml", f"model.path={args.model}", f"run.out={out}"]
    run += [f"run.steps={args.steps}", "run.save_every=0", f"data.train={ours}", "data.heldout=", "evaluate.problems=0"]
    run += [f"rollout.prompts={args.prompts}", f"rollout.group={args.group}", f"rollout.max_tokens={args.tokens}"]
    run += [f"rollout.engine={{gpu_memory_utilization={args.memory}}}", "guard.patience=1000", *WAYS[way], *args.set]
    return run, out / "metrics.jsonl"


def ends(model: str) -> str:
    """Ids that end a completion besides the tokenizer's own (bench/model.py --mean-length)."""
    try:
        found = json.loads((Path(model) / "generation_config.json").read_text())["eos_token_id"]
    except (OSError, KeyError):
        return ""
    return json.dumps(found) if isinstance(found, list) else ""


class Memory:
    """The most memory the first GPU had in use, as nvidia-smi sees it (all processes), GiB."""

    def __init__(self) -> None:
        self.peak, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.over.wait(0.5):
            try:
                said = subprocess.run(ask, capture_output=True, text=True, timeout=10)
                self.peak = max(self.peak, float(said.stdout.split()[0]) / 1024)
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                return

    def end(self) -> float:
        self.over.set()
        return self.peak


def measure(way: str, args: argparse.Namespace, folder: Path, ours: Path, theirs: Path) -> dict[str, Any]:
    """Run one way; its medians and ranges."""
    run, out = command(way, args, folder, ours, theirs)
    memory = Memory()
    with (folder / f"{way}.log").open("w") as log:
        code = subprocess.run(
            run, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=args.limit, env=os.environ
        ).returncode
    peak = memory.end()
    if code or not out.exists():
        tail = " | ".join((folder / f"{way}.log").read_text().splitlines()[-3:])
        return {"way": way, "failed": f"exit {code}: {tail[:500]}"}
    steps = [json.loads(line) for line in out.read_text().splitlines()][WARM:]
    result: dict[str, Any] = {"way": way, "steps": len(steps), "device_gib": peak, "command": " ".join(run)}
    return result | medians(steps)


def medians(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of what the steps have of it."""
    found = {}
    for phase in (*PHASES, "seconds_sampling", "tokens", "peak_gib"):
        values = [s[phase] for s in steps if phase in s]
        if values:
            found[phase] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return found


def table(results: list[dict[str, Any]]) -> str:
    """One line a way; ratios against the first."""
    lines = [
        f"{'way':14} {'step s':>22} {'rollout':>8} {'learn':>8} {'sync':>6} {'tokens/s':>9} {'device GiB':>10} {'speed':>7}"
    ]
    base = next((r["seconds"]["median"] / r["tokens"]["median"] for r in results if "failed" not in r), 1.0)
    for r in results:
        if "failed" in r:
            lines.append(f"{r['way']:14} failed: {r['failed']}")
            continue
        s, per = r["seconds"], r["seconds"]["median"] / r["tokens"]["median"]
        span = f"{s['median']:.2f} [{s['low']:.2f}, {s['high']:.2f}]"
        parts = [r.get(p, {}).get("median", float("nan")) for p in PHASES[1:]]
        phases = f"{parts[0]:8.2f} {parts[1]:8.2f} {parts[2]:6.2f}"
        lines.append(f"{r['way']:14} {span:>22} {phases} {1 / per:9.0f} {r['device_gib']:10.1f} {base / per:6.2f}x")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a step by phase, one bar a way."""
    import matplotlib.pyplot as plt

    good = [r for r in results if "failed" not in r]
    figure, axis = plt.subplots(figsize=(8, 0.6 * len(good) + 1.2), layout="constrained")
    left = [0.0] * len(good)
    for phase in PHASES[1:]:
        widths = [r.get(phase, {}).get("median", 0.0) for r in good]
        axis.barh([r["way"] for r in good], widths, left=left, label=phase.removeprefix("seconds_"))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.plot([r["seconds"]["median"] for r in good], [r["way"] for r in good], "k|", markersize=18, label="whole step")
    axis.invert_yaxis()
    axis.set_xlabel("seconds a step, median")
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=["turn", "ahead", "trl", "trl-tuned"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--micro", type=int, default=32, help="TRL: samples a micro-batch")
    parser.add_argument("--memory", type=float, default=0.4, help="share of the GPU's memory for vLLM")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each way")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for our recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-step"))
    args = parser.parse_args()
    if unknown := [w for w in args.ways if w not in WAYS]:
        print(f"error: --ways {unknown[0]}: known are {', '.join(WAYS)}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    ours, theirs = questions(args.out, args.prompts * args.steps)
    results = []
    for way in args.ways:
        try:
            results.append(measure(way, args, args.out, ours, theirs))
        except subprocess.TimeoutExpired:
            results.append({"way": way, "failed": f"longer than {args.limit:g} s"})
        (args.out / "step.json").write_text(json.dumps(results, indent=1) + "\n")
        print(table(results[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(results))
    plot(results, args.out / "step.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
