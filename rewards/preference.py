"""A preference model as a reward: the second RL stage of DeepSeek-R1 (arXiv 2501.12948, section 2.3.4).

The paper scores general data with learned reward models: helpfulness on the final summary only, harmlessness on the whole response.
This file is the hook for a model of your own; one that recipes/reward_model.py trained is named by its folder and judges in batches
(rl/judge.py). Differences:
1. The model is any Python callable `(question, response) -> float`; `model = "module:function"` names it in a recipe. How it
   computes (in this process, batched, on another host) is its own business, so no protocol is fixed here.
2. The score is `scale * model(...) + shift`, clipped to [low, high], because learned rewards have no bounds of their own.
3. A call that raises gives no verdict (value None): the sample is masked and counted, never a zero.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from rewards.score import Reward, Sampled, Score

Model = Callable[[str, str], float]


def preference(
    model: str | Model,
    part: str = "all",
    scale: float = 1.0,
    shift: float = 0.0,
    low: float = -5.0,
    high: float = 5.0,
) -> Reward:
    """The reward; `part` "all" judges the whole response, "answer" what follows `</think>` (helpfulness in the paper)."""
    if part not in ("all", "answer"):
        raise ValueError(f'preference part {part!r} is unknown: use "all" or "answer"')
    if not low < high:
        raise ValueError(f"preference low {low} and high {high}: low < high must hold")
    judge = named(model) if isinstance(model, str) else model

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        text = completion.text.rpartition("</think>")[2].strip() if part == "answer" else completion.text
        try:
            raw = float(judge(problem["question"], text))
        except Exception as error:  # a model's failure is infrastructure, whatever it raised
            return Score(None, {}, f"no preference: {type(error).__name__}: {str(error)[:80]}")
        if math.isnan(raw):
            return Score(None, {}, "no preference: not a number")
        value = min(high, max(low, scale * raw + shift))
        return Score(value, {"preference": value}, f"preference {raw:.3g}")

    return reward


def named(name: str) -> Callable[..., Any]:
    """The callable that `module:function` names; ValueError where there is none."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"{name!r} names no function: write module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported ({error}): is the module on the path, and the name right?") from error
    if not callable(found):
        raise ValueError(f"{name!r} is no function but a {type(found).__name__}")
    return found
