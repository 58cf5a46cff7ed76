"""result.json and the last line of a run: before and after with intervals, minutes, seed, versions, commit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.paired import difference_interval
from eval.provenance import commit, versions
from rl.config import Config


def write_json(path: Path, tree: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # the disk is full
        temporary.unlink(missing_ok=True)
        raise


def result(
    config: Config,
    steps: int,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    minutes: Mapping[str, float],
    sandbox: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The tree of result.json. `sandbox`: the tier that programs ran in, None where none did."""
    return {
        "name": config.name,
        "seed": config.run.seed,
        "model": config.model.path,
        "data": {"train": config.data.train, "heldout": config.data.heldout},
        "steps": steps,
        "minutes": {k: round(v, 2) for k, v in minutes.items()},
        "versions": versions(),
        "commit": commit(),
        "sandbox": sandbox,
        "gained": gained(before, after),
        "before": before,
        "after": after,
    }


def gained(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """After minus before on the same problems, paired: `difference`, its 95 % interval `low`, `high`, and its standard error `se`.

    Of greedy and sampled accuracy; empty where evaluations do not tell problem by problem, or not of the same draws.
    """
    told: dict[str, dict[str, float]] = {}
    if not (before and after and before.get("right") and after.get("right")) or before["samples"] != after["samples"]:
        return told
    for name, samples in (("greedy", 1), ("pass@1", after["samples"])):
        old, new = (np.asarray(e["right"][name], dtype=np.float64) / samples for e in (before, after))
        if len(old) != len(new) or len(old) < 2:
            return {}
        low, high = difference_interval(new - old)
        told[name] = {
            "difference": float((new - old).mean()), "low": low, "high": high,
            "se": float((new - old).std(ddof=1) / len(old) ** 0.5),
        }  # fmt: skip
    return told


def figures(e: Mapping[str, Any]) -> str:
    """`greedy 0.312 [0.27, 0.35], sampled pass@1 ...` of one evaluation."""
    return ", ".join(f"{label} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for label, m in _measures(e))


def line(tree: Mapping[str, Any]) -> str:
    """The run's last word: `zero_nano, 500 held-out problems: greedy 0.31 -> 0.78 [0.74, 0.81], ...`."""
    before, after = tree.get("before"), tree.get("after")
    if not (before and after):
        return f"{tree['name']}: {tree['steps']} steps done; no held-out evaluation (data.heldout, evaluate.problems)"
    parts = [
        f"{label} {old['value']:.3f} -> {new['value']:.3f} [{new['low']:.3f}, {new['high']:.3f}]"
        for (label, old), (_, new) in zip(_measures(before), _measures(after), strict=True)
    ]
    parts += [
        f"{'sampled ' * (label != 'greedy')}{label} {m['difference']:+.3f} [{m['low']:+.3f}, {m['high']:+.3f}] paired"
        for label, m in (tree.get("gained") or {}).items()
    ]
    minutes, seed = tree["minutes"]["total"], tree["seed"]
    return f"{tree['name']}, {after['problems']} held-out problems: {', '.join(parts)}; {minutes:.1f} minutes, seed {seed}"


def _measures(e: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    return [("sampled pass@1" if k == "pass@1" else k, m) for k, m in e.items() if k == "greedy" or k.startswith("pass@")]
