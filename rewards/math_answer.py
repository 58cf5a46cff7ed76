r"""Is the answer right? Rule-based accuracy of DeepSeek-R1-Zero (arXiv 2501.12948, section 2.2.2): 1 or 0.

First version: numbers and normalised strings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from rewards.math_extract import extract
from rewards.math_number import number
from rewards.score import Reward, Sampled, Score

MAX_LENGTH = 10_000  # characters of an answer


def _plain(text: str) -> str:
    return re.sub(r"\s+|\$|\\!|\\,|\\;|\\left|\\right", "", text).rstrip(".").replace("dfrac", "frac").replace("tfrac", "frac")


@lru_cache(maxsize=4096)
def _gold(gold: str) -> tuple[str, Any]:
    text = extract(gold, "lenient") or gold.strip()
    return text, number(text)


def check_gold(gold: str) -> None:
    """Raises ValueError when `gold` is not an answer that can be graded against."""
    if not isinstance(gold, str) or not gold.strip():
        raise ValueError(f"gold {gold!r} is empty or no text: every problem needs its answer as text")


def equal(answer: str, gold: str) -> bool:
    """Whether `answer` means the same as `gold`."""
    if len(answer) > MAX_LENGTH:
        return False
    text, value = _gold(gold)
    if value is not None and (mine := number(answer)) is not None:
        return mine == value
    return _plain(answer) == _plain(text)


def accuracy(mode: str = "lenient") -> Reward:
    """The reward: 1.0 if the committed answer equals `problem["gold"]`, else 0.0."""
    if mode not in ("strict", "lenient"):
        raise ValueError(f'accuracy mode {mode!r} is unknown: use "strict" or "lenient"')

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        gold = problem["gold"]
        answer = extract(completion.text, mode)
        if answer is None:
            return Score(0.0, {"accuracy": 0.0}, "no answer")
        if equal(answer, gold):
            return Score(1.0, {"accuracy": 1.0}, f"right: {answer[:40]}")
        return Score(0.0, {"accuracy": 0.0}, f"wrong: {answer[:40]}, gold {gold[:40]}")

    return reward
