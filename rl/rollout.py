"""Prompts -> groups -> scored groups; and groups to and from a file, so that each half of a run works alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rewards.score import Score
from rewards.scorer import Pending, RewardError, Scorer
from rl.metrics import Clock
from rl.records import Completion, Group, Prompt, Sampling
from rl.sampler import Sampler


class RewardFailed(RuntimeError):
    """A reward raised: a bug or a bad row, which must be seen. `groups` are whole, but what it raised on has no value."""

    def __init__(self, why: str, groups: list[Group]) -> None:
        super().__init__(why)
        self.groups = groups


def rollout(sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
    """`sampling.n` completions for each prompt, unscored."""
    made = sampler.generate([p.ids for p in prompts], sampling)
    return [Group(p, tuple(completions)) for p, completions in zip(prompts, made, strict=True)]


def scored_rollout(
    sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling, scorer: Scorer, clock: Clock | None = None,
    more: Callable[[Sequence[Pending]], Sequence[Prompt]] | None = None,
) -> list[Group]:  # fmt: skip
    """The same with scores: a prompt's completions go to the scorer as soon as they are finished, while others are still sampled.

    `more` sees the scores to come of each finished group and may name further prompts, whose groups follow those of `prompts`.
    The clock's "rollout" is the sampling, its "reward" what was waited for scores after it. Raises RewardFailed.
    """
    clock, every = clock or Clock(), list(prompts)
    pending: dict[int, list[Pending]] = {}

    def done(index: int, completions: Sequence[Completion]) -> list[tuple[int, ...]]:
        pending[index] = [scorer.submit(c, every[index].problem) for c in completions]
        new = more(pending[index]) if more else ()
        every.extend(new)
        return [p.ids for p in new]

    with clock("rollout"):
        made = sampler.generate([p.ids for p in prompts], sampling, done)
    failed: list[str] = []
    with clock("reward"):
        groups = [
            Group(p, tuple(completions), tuple(_wait(score, failed) for score in pending[i]))
            for i, (p, completions) in enumerate(zip(every, made, strict=True))
        ]
    if failed:
        raise RewardFailed(f"a reward raised on {len(failed)} of the samples, first in {failed[0]}", groups)
    return groups


def _wait(pending: Pending, failed: list[str]) -> Score:
    try:
        return pending.result()
    except RewardError as error:
        failed.append(str(error))
        return Score(None, {}, f"reward raised: {error}"[:300])


def dump(groups: Sequence[Group], step: int) -> Iterator[str]:
    """One JSON line a group, with everything a learner needs."""
    for group in groups:
        yield json.dumps({"step": step} | asdict(group), ensure_ascii=False, default=_as_text)


def _as_text(experts: np.ndarray) -> dict[str, Any]:
    return {"shape": experts.shape, "int16": base64.b64encode(experts.astype("<i2").tobytes()).decode()}


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


def _experts(tree: dict[str, Any] | None) -> np.ndarray | None:
    return None if tree is None else np.frombuffer(base64.b64decode(tree["int16"]), "<i2").reshape(tree["shape"])


def _group(tree: dict[str, Any]) -> Group:
    p = tree["prompt"]
    completions = tuple(
        Completion(
            tuple(c["ids"]),
            tuple(c["logprobs"]),
            c["finish"],
            c["text"],
            c["version"],
            tuple((i, v) for i, v in c["switches"]),
            _experts(c.get("experts")),
        )
        for c in tree["completions"]
    )
    if any(len(c.ids) != len(c.logprobs) for c in completions):
        raise ValueError("a completion has not one log-prob a token")
    return Group(
        Prompt(p["id"], tuple(p["ids"]), p["problem"]),
        completions,
        tuple(Score(s["value"], s["parts"], s["reason"]) for s in tree["scores"]),
    )
