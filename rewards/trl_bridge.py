"""TRL's reward functions here, and ours there.

TRL's protocol (1.16, `GRPOTrainer(reward_funcs=...)`): `f(prompts, completions, completion_ids=..., **columns) -> list[float | None]`,
one entry a sample; with conversational data a completion is a list of messages, `[{"role": "assistant", "content": ...}]`.
Differences:
1. Here a function of TRL's protocol is called for one sample at a time, so functions that compare the samples of a batch with each
   other cannot be used.
2. TRL does not tell a reward function whether a completion was cut off, so `truncated` is always false in `as_trl`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rewards.preference import named
from rewards.score import Reward, Sampled, Score, Text

TrlFunction = Callable[..., list[float | None]]


def from_trl(name: str, chat: bool = True, columns: Mapping[str, str] | None = None, **options: Any) -> Reward:
    """A TRL reward function as one of ours.

    `name` is `module:function`. `chat`: completions as messages (what TRL's own functions read) or as strings. `columns` gives the
    function columns under other names, e.g. `{solution = "gold"}` for `trl.rewards:accuracy_reward`. With further options the name
    is a factory and is called with them first, e.g. `trl.rewards:get_soft_overlong_punishment`.
    """
    function = named(name)
    if options:
        try:
            inspect.signature(function).bind(**options)
        except TypeError as error:
            raise ValueError(f"rewards.{name!r} cannot be made with {sorted(options)}: {error}") from error
        function = function(**options)
    renamed = dict(columns or {})

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        row = {**problem, **{new: problem[old] for new, old in renamed.items()}}
        question, text = row.get("question", ""), completion.text
        prompt = [{"role": "user", "content": question}] if chat else question
        answer = [{"role": "assistant", "content": text}] if chat else text
        reserved = ("prompts", "completions", "completion_ids")
        batch = {key: [value] for key, value in row.items() if key not in reserved}
        ids = list(getattr(completion, "ids", None) or range(completion.tokens))
        values = function(prompts=[prompt], completions=[answer], completion_ids=[ids], **batch)
        if len(values) != 1:
            raise ValueError(f"{name!r} returned {len(values)} values for one sample: a reward function returns one for each")
        value = None if values[0] is None else float(values[0])
        return Score(value, {} if value is None else {name: value}, f"{name.partition(':')[2]} {value}")

    return reward


def as_trl(reward: Reward, name: str) -> TrlFunction:
    """One of ours as a TRL reward function called `name` (TRL logs it under that); columns become the problem's fields."""

    def function(prompts: list[Any], completions: list[Any], completion_ids: Any = None, **columns: Any) -> list[float | None]:
        rows = {k: v for k, v in columns.items() if isinstance(v, (list, tuple)) and len(v) == len(completions)}
        values = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            problem = {"question": _content(prompt, "user"), **{key: column[i] for key, column in rows.items()}}
            tokens = len(completion_ids[i]) if completion_ids is not None else 0
            values.append(reward(Text(_content(completion, "assistant"), tokens), problem).value)
        return values

    function.__name__ = name
    return function


def _content(messages: Any, role: str) -> str:
    """The text of a completion or prompt, which is a string or a list of messages: the last message of that role."""
    if isinstance(messages, str):
        return messages
    contents = [m["content"] for m in messages if m.get("role") == role]
    last = contents[-1] if contents else ""
    return last if isinstance(last, str) else "".join(part.get("text", "") for part in last)
