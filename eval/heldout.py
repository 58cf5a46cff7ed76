"""Accuracy of the weights in a sampler on held-out problems: greedy, sampled pass@1 and pass@k, by part and by number of steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eval.estimators import mean_at_k, mean_pass_at_k
from rewards.scorer import Scorer
from rl.records import Group, Prompt, Sampling
from rl.rollout import scored_rollout
from rl.sampler import Sampler

SEED = 20_260_000  # evaluation draws the same way in every run, whatever the run's seed
RIGHT = ("accuracy", "code")  # the parts that say that an answer, or a program, is right


def evaluate(
    sampler: Sampler, prompts: Sequence[Prompt], scorer: Scorer, *, samples: int, temperature: float, max_tokens: int
) -> dict[str, Any]:
    """The E of result.json: every figure with its 95 % interval over questions. Raises rollout.RewardFailed."""
    greedy = scored_rollout(sampler, prompts, Sampling(1, max_tokens, 0.0, SEED), scorer)
    drawn = scored_rollout(sampler, prompts, Sampling(samples, max_tokens, temperature, SEED), scorer)
    completions = [c for g in drawn for c in g.completions]
    return {
        "problems": len(prompts),
        "samples": samples,
        "temperature": temperature,
        "max_tokens": max_tokens,
        **_figures(greedy, drawn, samples),
        "format": asdict(mean_at_k(_earned(drawn, "format"))),
        "truncated": sum(c.truncated for c in completions) / len(completions),
        "mean_tokens": sum(c.tokens for c in completions) / len(completions),
        **{f"by_{column}": _by(greedy, drawn, samples, column) for column in ("part", "steps")},
        # Of each problem how many were right, so that two evaluations can be compared problem by problem.
        "right": {"greedy": _right(greedy), "pass@1": _right(drawn)},
    }


def _right(groups: Sequence[Group]) -> list[int]:
    return [int(sum(row)) for row in _earned(groups, *RIGHT)]


def _earned(groups: Sequence[Group], *names: str) -> list[list[float]]:
    """1.0 where a sample earned the whole of one of these parts, else 0.0; no verdict counts as not right here, as a user would count."""
    return [[float(any(s.parts.get(name) == 1.0 for name in names)) for s in g.scores] for g in groups]


def _figures(greedy: Sequence[Group], drawn: Sequence[Group], samples: int) -> dict[str, Any]:
    right = _earned(drawn, *RIGHT)
    return {
        "greedy": asdict(mean_at_k(_earned(greedy, *RIGHT))),
        "pass@1": asdict(mean_at_k(right)),
        f"pass@{samples}": asdict(mean_pass_at_k(right, samples)),
    }


def _by(greedy: Sequence[Group], drawn: Sequence[Group], samples: int, column: str) -> dict[str, Any]:
    at: dict[str, list[int]] = defaultdict(list)
    for i, g in enumerate(drawn):
        if column in g.prompt.problem:
            at[str(g.prompt.problem[column])].append(i)
    return {
        key: {"n": len(rows)} | _figures([greedy[i] for i in rows], [drawn[i] for i in rows], samples)
        for key, rows in sorted(at.items())
    }
