"""Predicted against measured: `python -m bench.plan_check fit.json`, a file that bench/fit_step.py wrote on a GPU.

The plan is made anew with the planner as it is now, for the card of the measurement. Promise: memory within 10 %, time within 25 %.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.fit_step import prediction
from rl import config as configs

PROMISED = {"torch_gib": 10.0, "learn_s": 25.0}  # per cent


def compare(found: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """By quantity: planned, measured, and how far the plan is off in per cent of what was measured."""
    from transformers import AutoConfig

    tree = dict(found["where"]["shape"])
    planned = prediction(
        configs.from_dict(found["config"]), AutoConfig.for_model(tree.pop("model_type"), **tree), found["where"]
    )
    return {
        name: (planned[name], found[name], 100 * (planned[name] / found[name] - 1))
        for name in ("torch_gib", "card_gib", "learn_s")
        if found.get(name)
    }


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m bench.plan_check fit.json", file=sys.stderr)
        return 2
    kept = True
    for found in json.loads(Path(argv[0]).read_text()):
        if "learn_s" not in found:
            print(f"{found['case']:<14} not measured: {found.get('error', 'no reason left')}")
            continue
        for name, (planned, measured, off) in compare(found).items():
            within = name not in PROMISED or abs(off) <= PROMISED[name]
            kept &= within
            mark = "" if within else "  MISSED"
            print(f"{found['case']:<14} {name:<10} planned {planned:8.2f}  measured {measured:8.2f}  {off:+6.1f} %{mark}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
