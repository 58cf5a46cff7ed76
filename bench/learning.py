"""Do two learners learn alike? Runs of one recipe under the same seeds, one folder each way, compared seed by seed.

    python -m recipes.seeds recipes/zero_nano.toml 0 1 2 --out runs/own
    python -m recipes.seeds recipes/zero_nano.toml 0 1 2 --set learner=trl --out runs/trl
    python -m bench.learning runs/own runs/trl [--last 5] [--out learning.png]

A seed's runs meet the same questions in the same order and sample anew. The table has each way's mean over seeds with its range, and the
mean difference (second - first) with a 95 % t-interval over the seeds: an interval with 0 in it is no difference that these runs can
show. The plot has the reward and the accuracy of every step: lines are means over seeds, bands their range.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from eval.estimators import interval_of_seeds
from rl.report import read_jsonl


def runs(folder: Path) -> dict[int, dict[str, Any]]:
    """The finished runs below `folder` (NAME-seedN) by seed: their steps, and result.json. Raises ValueError without any."""
    found = {}
    for result in sorted(folder.glob("*-seed*/result.json")):
        seed = int(re.sub(r".*-seed", "", result.parent.name))
        found[seed] = {"steps": list(read_jsonl(result.parent / "metrics.jsonl")), "result": json.loads(result.read_text())}
    if not found:
        raise ValueError(
            f"{folder}: no finished run NAME-seedN in it; make some with python -m recipes.seeds ... --out {folder}"
        )
    return found


def figures(run: dict[str, Any], last: int) -> dict[str, float]:
    """What a run is compared by; accuracies as shares."""
    steps, after = run["steps"], run["result"]["after"] or {}
    parts = {"all steps": steps, f"last {last} steps": steps[-last:]}
    found = {
        f"{n}, {where}": statistics.fmean(s[n] for s in part) for n in ("reward", "accuracy") for where, part in parts.items()
    }
    found |= {f"held out, {k}": after[k]["value"] for k in after if k == "greedy" or k.startswith("pass@")}
    return found | {"minutes of training": run["result"]["minutes"]["train"]}


def table(first: dict[int, Any], second: dict[int, Any], names: tuple[str, str], last: int) -> str:
    """Markdown; only seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise ValueError(f"seeds in both folders: {seeds}; an interval over seeds needs two or more")
    a, b = ([figures(way[s], last) for s in seeds] for way in (first, second))
    lines = [f"| {len(seeds)} seeds | {names[0]} | {names[1]} | difference |", "| --- | --- | --- | --- |"]
    for name in a[0]:
        ours, theirs = [f[name] for f in a], [f[name] for f in b]
        gap = interval_of_seeds([y - x for x, y in zip(ours, theirs, strict=True)])
        cells = [f"{statistics.fmean(v):.3f} [{min(v):.3f}, {max(v):.3f}]" for v in (ours, theirs)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] |")
    return "\n".join(lines)


def plot(ways: dict[str, dict[int, Any]], path: Path) -> None:
    """Reward and accuracy of each step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(axes, ("reward", "accuracy"), strict=True):
        for (way, seeds), colour in zip(ways.items(), ("#4477aa", "#ee6677"), strict=False):
            curves = list(zip(*([s[name] for s in run["steps"]] for run in seeds.values()), strict=True))
            steps = range(1, len(curves) + 1)
            axis.plot(steps, [statistics.fmean(c) for c in curves], color=colour, label=f"{way}, mean of {len(seeds)} seeds")
            axis.fill_between(steps, [min(c) for c in curves], [max(c) for c in curves], color=colour, alpha=0.2, linewidth=0)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(name, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="lower right", fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description="Two ways to learn, seed by seed.")
    parser.add_argument("first", type=Path, help="folder of runs, named as the way is")
    parser.add_argument("second", type=Path)
    parser.add_argument("--last", type=int, default=5, help="steps at the end that are looked at alone")
    parser.add_argument("--out", type=Path, default=Path("learning.png"))
    args = parser.parse_args()
    names = (args.first.name, args.second.name)
    try:
        ways = dict(zip(names, (runs(args.first), runs(args.second)), strict=True))
        print(table(*ways.values(), names, args.last))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plot(ways, args.out)
    print(f"plot {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
