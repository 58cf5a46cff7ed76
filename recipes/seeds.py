"""One recipe under several seeds -> the table for recipes/README.md: `python -m recipes.seeds recipes/zero_nano.toml 0 1 2 [-- overrides]`.

Each seed is a run of its own in runs/NAME-seedN (a finished one is read, not repeated). Means over seeds with 95 % t-intervals;
before -> after, by part and by number of steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.estimators import interval_of_seeds
from rl import config as configs

FIGURES = ("greedy", "pass@1", "pass@16")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.seeds", description="Run a recipe under several seeds.")
    parser.add_argument("recipe")
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="key.sub=value", help="overrides for every seed")
    parser.add_argument("--out", default="runs", help="folder of the runs")
    args = parser.parse_args(argv)
    try:
        name = configs.load(args.recipe, args.set).name
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = []
    for seed in args.seeds:
        folder = Path(args.out) / f"{name}-seed{seed}"
        if not (folder / "result.json").exists():
            command = [sys.executable, "-m", "recipes.run", args.recipe, *args.set, f"run.seed={seed}", f"run.out={folder}"]
            if code := subprocess.run(command).returncode:
                return code
        results.append(json.loads((folder / "result.json").read_text()))
    print(table(results))
    return 0


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row for all problems, one a part, one a number of steps; and the minutes."""
    rows = [_row("all", results, ())]
    for column in ("by_part", "by_steps"):
        rows += [_row(f"{column[3:]} {key}", results, (column, key)) for key in results[0]["after"].get(column, {})]
    head = "| held-out problems | " + " | ".join(f"{f} before → after | gain" for f in FIGURES) + " |"
    minutes = ", ".join(f"{r['minutes']['total']:.1f}" for r in results)
    return "\n".join(
        [
            "",
            head,
            "|" + " --- |" * (1 + 2 * len(FIGURES)),
            *rows,
            "",
            f"minutes: {minutes}; seeds {[r['seed'] for r in results]}",
        ]
    )


def _row(label: str, results: Sequence[dict[str, Any]], path: Sequence[str]) -> str:
    cells = [label]
    for figure in FIGURES:
        before, after = ([_at(r[when], (*path, figure, "value")) for r in results] for when in ("before", "after"))
        gains = [a - b for a, b in zip(after, before, strict=True)]
        mean = sum(before) / len(before)
        gain = interval_of_seeds(gains) if len(gains) > 1 else None
        spread = f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if gain else ""
        cells += [f"{100 * mean:.1f} → {100 * sum(after) / len(after):.1f}", f"{100 * sum(gains) / len(gains):+.1f}{spread}"]
    return "| " + " | ".join(cells) + " |"


def _at(tree: Any, path: Sequence[str]) -> float:
    for key in path:
        tree = tree[key]
    return tree


if __name__ == "__main__":
    sys.exit(main())
