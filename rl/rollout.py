"""Prompts -> groups -> scored groups; and groups to and from a file, so that each half of a run works alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rewards.score import Reward, Score
from rl.records import Completion, Group, Prompt, Sampling
from rl.sampler import Sampler


def rollout(sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
    """`sampling.n` completions for each prompt, unscored."""
    made = sampler.generate([p.ids for p in prompts], sampling)
    return [Group(p, tuple(completions)) for p, completions in zip(prompts, made, strict=True)]


def score(groups: Sequence[Group], reward: Reward) -> list[Group]:
    """The groups with a Score for each completion. A reward that fails masks its sample and says why; it never pays 0."""
    return [replace(g, scores=tuple(_judged(reward, c, g.prompt.problem) for c in g.completions)) for g in groups]


def _judged(reward: Reward, completion: Completion, problem: Any) -> Score:
    try:
        return reward(completion, problem)
    except Exception as error:  # a reward is a user's code; what it raises is data with a reason
        return Score(None, {}, f"reward failed: {type(error).__name__}: {error}"[:300])


def dump(groups: Sequence[Group], step: int) -> Iterator[str]:
    """One JSON line a group, with everything a learner needs."""
    for group in groups:
        yield json.dumps({"step": step} | asdict(group), ensure_ascii=False)


def load(path: str | Path) -> list[tuple[int, list[Group]]]:
    """The groups of a file written by `dump`, step by step in their order; ValueError names the first bad line."""
    steps: dict[int, list[Group]] = {}
    try:
        # Not splitlines: a text may hold U+2028 or U+0085, which JSON does not escape.
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--replay {path}: cannot be read: {error}") from None
    if lines == [""]:
        raise ValueError(f"--replay {path}: no groups in it")
    for n, line in enumerate(lines, 1):
        try:
            tree = json.loads(line)
            steps.setdefault(tree["step"], []).append(_group(tree))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--replay {path}, line {n}: not a group written by --only rollout ({error!r})") from None
    return sorted(steps.items())


def _group(tree: dict[str, Any]) -> Group:
    p = tree["prompt"]
    completions = tuple(
        Completion(tuple(c["ids"]), tuple(c["logprobs"]), c["finish"], c["text"], c["version"]) for c in tree["completions"]
    )
    if any(len(c.ids) != len(c.logprobs) for c in completions):
        raise ValueError("a completion has not one log-prob a token")
    return Group(
        Prompt(p["id"], tuple(p["ids"]), p["problem"]),
        completions,
        tuple(Score(s["value"], s["parts"], s["reason"]) for s in tree["scores"]),
    )
