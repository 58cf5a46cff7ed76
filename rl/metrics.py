"""Numbers of one step from its scored groups: what the console line, metrics.jsonl and the guards read. Plain floats."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rl.advantage import zero_variance
from rl.records import Completion, Group


def of_groups(groups: Sequence[Group]) -> dict[str, Any]:
    """Reward mean and std, every part under its name, lengths (tokens), shares truncated / zero-variance / masked; accuracy by steps."""
    pairs = [(c, s) for g in groups for c, s in zip(g.completions, g.scores, strict=True)]
    valued = [s for _, s in pairs if s.value is not None]
    rewards = [s.value for s in valued if s.value is not None]
    lengths = [c.tokens for c, _ in pairs]
    mean = _mean(rewards)
    parts: dict[str, list[float]] = defaultdict(list)
    for s in valued:
        for name, value in s.parts.items():
            parts[name].append(value)
    named = {(n if n in ("accuracy", "format") else f"part/{n}"): _mean(v) for n, v in parts.items()}
    return {
        "reward": mean,
        "reward_std": math.sqrt(_mean([(r - mean) ** 2 for r in rewards])),
        **named,
        "length": _mean(lengths),
        "length_max": max(lengths),
        "truncated": _mean([c.truncated for c, _ in pairs]),
        "zero_variance": _mean([zero_variance(g.rewards) for g in groups]),
        "masked": 1 - len(valued) / len(pairs),
        "tokens": sum(lengths),
        "by_steps": by(groups, "steps", lambda c, s: s.parts.get("accuracy")),
    }


def by(groups: Sequence[Group], column: str, value: Callable[[Completion, Any], float | None]) -> dict[str, float]:
    """Means of `value` over the completions, by a column of the problems; empty where the data has no such column."""
    seen: dict[str, list[float]] = defaultdict(list)
    for g in groups:
        if column not in g.prompt.problem:
            continue
        for c, s in zip(g.completions, g.scores, strict=True):
            if (x := value(c, s)) is not None:
                seen[str(g.prompt.problem[column])].append(x)
    return {k: _mean(v) for k, v in sorted(seen.items())}


class Clock:
    """Seconds by phase: `with clock("rollout"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[f"seconds_{phase}"] += time.perf_counter() - start

    def total(self) -> float:
        return time.perf_counter() - self._start


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
