"""Does a completion keep the form `<think> ... </think> <answer> ... </answer>`?

DeepSeek-R1 (arXiv 2501.12948, section 2.2.2, "format rewards"). The paper names the tags and gives no formula.
Differences:
1. `strict` (0 or 1) also asks that neither part is empty and that nothing but white space stands outside of the two pairs.
2. `lenient` gives a graded share, so that a base model that never writes the whole form still gets a slope: a quarter for each
   of the four tags that stands exactly once, and never more than 3/4 unless the strict form holds.
3. A prompt template may already have opened `<think>`; with `opened = true` the completion starts behind that tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rewards.score import Reward, Sampled, Score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORM = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def fault(text: str) -> str:
    """What keeps `text` from the strict form, or "" when nothing does."""
    for tag in TAGS:
        if (n := text.count(tag)) != 1:
            return f"{n} x {tag}"
    match = _FORM.fullmatch(text)
    if match is None:
        return "tags out of order or text outside of them"
    if not match[1].strip() or not match[2].strip():
        return "an empty part"
    return ""


def share(text: str) -> float:
    """The graded value: 1 for the strict form, else a quarter for each tag that stands exactly once, at most 3/4."""
    return 1.0 if not fault(text) else min(0.75, sum(text.count(tag) == 1 for tag in TAGS) / 4)


def format_tags(mode: str = "strict", opened: bool = False) -> Reward:
    """The reward; `mode` is "strict" (0 or 1) or "lenient" (graded), `opened` says that the prompt ends in `<think>`."""
    if mode not in ("strict", "lenient"):
        raise ValueError(f'format mode {mode!r} is unknown: use "strict" or "lenient"')

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        text = "<think>" + completion.text if opened else completion.text
        why = fault(text)
        value = share(text) if mode == "lenient" else float(not why)
        return Score(value, {"format": value}, f"format: {why}" if why else "format ok")

    return reward
