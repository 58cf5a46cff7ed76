r"""Rewards that look at length and repetition: DAPO's soft overlong punishment, the cosine length reward, n-gram repetition.

Soft overlong punishment, DAPO (arXiv 2503.14476, eq. 13), y the completion, L_max = `limit`, L_cache = `cache`:
    0                                  if |y| <= L_max - L_cache
    (L_max - L_cache - |y|) / L_cache  if L_max - L_cache < |y| <= L_max
    -1                                 if L_max < |y|
Differences: 1. A completion cut off at its token budget gets -1 also when `limit` was set above that budget.

Cosine length reward, Yeo et al. 2025 (arXiv 2502.03373, eq. 1), t tokens of T = `limit`:
    CosFn(t, T, a, b) = b + (a - b) (1 + cos(t pi / T)) / 2      (a at t = 0, b at t = T)
    right: CosFn(t, T, right_short, right_long), wrong: CosFn(t, T, wrong_short, wrong_long), t >= T: `exceeded`
Differences: 2. Whether the answer is right is judged by `math_answer.accuracy`, so this reward replaces accuracy and does not add
to it; a cut-off completion counts as t >= T.

Repetition, the n-gram penalty of the same paper (section 4.3; also Demystify-Long-CoT's code), here as a share:
    -penalty * (1 - distinct n-grams / all n-grams)
Differences: 3. n-grams are of words, not tokens, so that no tokenizer is needed; characters for text without spaces. A text shorter
than n words gets 0. 4. The penalty is one number for the sample; the paper puts it on the repeated tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from rewards.math_answer import accuracy
from rewards.score import Reward, Sampled, Score

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def soft_overlong(limit: int, cache: int) -> Reward:
    """DAPO's punishment in [-1, 0]; `limit` and `cache` in tokens (the paper: 20,480 and 4,096)."""
    if not 0 < cache <= limit:
        raise ValueError(f"soft_overlong cache {cache} and limit {limit}: 0 < cache <= limit must hold, both in tokens")

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        free = limit - cache
        tokens = completion.tokens
        over = completion.truncated or tokens > limit
        value = -1.0 if over else 0.0 if tokens <= free else (free - tokens) / cache
        return Score(value, {"soft_overlong": value}, f"{tokens} of {limit} tokens" if value else "")

    return reward


def cosine(tokens: int, limit: int, start: float, end: float) -> float:
    """CosFn: `start` at 0 tokens, `end` at `limit`."""
    return end + (start - end) * (1 + math.cos(tokens * math.pi / limit)) / 2


def cosine_length(
    limit: int,
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
    mode: str = "lenient",
) -> Reward:
    """The cosine reward with the paper's values by default; `limit` in tokens, `mode` as in accuracy."""
    if limit <= 0:
        raise ValueError(f"cosine_length limit {limit} must be positive: the most tokens of a completion")
    judge = accuracy(mode)

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        verdict = judge(completion, problem)
        if completion.truncated or completion.tokens >= limit:
            value = exceeded
        elif verdict.value == 1.0:
            value = cosine(completion.tokens, limit, right_short, right_long)
        else:
            value = cosine(completion.tokens, limit, wrong_short, wrong_long)
        return Score(value, {"cosine_length": value}, f"{verdict.reason}, {completion.tokens} tokens")

    return reward


def repeated(text: str, n: int) -> float:
    """1 - distinct n-grams / all n-grams, in [0, 1).

    >>> repeated("a b a b a b", 2)
    0.6
    """
    words = _WORD.findall(text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(n: int = 20, penalty: float = 1.0) -> Reward:
    """The n-gram penalty in [-penalty, 0]; n in words (the paper: 40 tokens)."""
    if n < 1 or penalty < 0:
        raise ValueError(
            f"repetition n {n} and penalty {penalty}: n >= 1 and penalty >= 0 must hold (the value is -penalty x share)"
        )

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        part = repeated(completion.text, n)
        value = -penalty * part if part else 0.0
        return Score(value, {"repetition": value}, f"{part:.0%} of {n}-grams repeated" if part else "")

    return reward
