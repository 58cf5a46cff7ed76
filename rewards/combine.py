"""Rewards by name, and a weighted sum of them in which every part stays visible.

A recipe's table, one entry a reward:

    [rewards.accuracy]
    weight = 1.0
    mode = "lenient"         # every other key is an option of that reward

    [rewards.format]
    weight = 0.1
    gate = "accuracy"        # counts only in samples where that part is 1
    kinds = ["math"]         # only problems of these kinds are judged by it; left out: all

    [rewards."my_rewards:brevity"]   # a TRL reward function: module:function

`value` is the sum of weight x part; `parts` holds each part's raw value under its own name, before weight and gate.
A part that could not be judged (None) makes the whole value None unless its weight is 0: the sample is then masked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rewards.code_tests import code_reward
from rewards.format_tags import format_tags
from rewards.language import language
from rewards.length import cosine_length, repetition, soft_overlong
from rewards.math_answer import accuracy
from rewards.preference import preference
from rewards.score import Reward, Sampled, Score

REWARDS: dict[str, Callable[..., Reward]] = {
    "accuracy": accuracy,
    "format": format_tags,
    "language": language,
    "repetition": repetition,
    "soft_overlong": soft_overlong,
    "cosine_length": cosine_length,
    "preference": preference,
    "code": code_reward,
}


@dataclass(frozen=True)
class Part:
    """One entry of the table, built: `Part("format", 0.1, "accuracy", reward)`."""

    name: str
    weight: float
    gate: str | None
    reward: Reward
    kinds: tuple[str, ...] | None = None


def build(spec: Mapping[str, Mapping[str, Any]]) -> Reward:
    """The reward of a recipe's `[rewards]` table; ValueError for an unknown name, option or gate."""
    built = parts(spec)
    return lambda completion, problem: combine(built, completion, problem)


def parts(spec: Mapping[str, Mapping[str, Any]]) -> tuple[Part, ...]:
    """The table's entries, built; ValueError as `build`."""
    if not spec:
        raise ValueError("no rewards given: a recipe needs at least one, e.g. [rewards.accuracy] weight = 1.0")
    return tuple(_part(name, options, spec) for name, options in spec.items())


def combine(parts: tuple[Part, ...], completion: Sampled, problem: Mapping[str, Any]) -> Score:
    """Runs every part and adds them up."""
    parts = tuple(p for p in parts if p.kinds is None or problem.get("kind") in p.kinds)
    scores = {part.name: part.reward(completion, problem) for part in parts}
    raw = {name: score.value for name, score in scores.items() if score.value is not None}
    reason = "; ".join(score.reason for score in scores.values() if score.reason)
    total = 0.0
    for part in parts:
        if part.weight == 0.0:
            continue
        if part.gate is not None:
            if part.gate not in raw:
                return Score(None, raw, reason)
            if raw[part.gate] != 1.0:
                continue
        if part.name not in raw:
            return Score(None, raw, reason)
        total += part.weight * raw[part.name]
    return Score(total, raw, reason)


def _part(name: str, entry: Mapping[str, Any], spec: Mapping[str, Any]) -> Part:
    if not isinstance(entry, Mapping):
        raise ValueError(f"rewards.{name} is {entry!r}: it must be a table, e.g. [rewards.{name}] weight = 1.0")
    options = dict(entry)
    weight, gate, kinds = options.pop("weight", 1.0), options.pop("gate", None), options.pop("kinds", None)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"rewards.{name}.weight is {weight!r}: it must be a number")
    if kinds is not None and not (isinstance(kinds, list | tuple) and kinds and all(isinstance(k, str) for k in kinds)):
        raise ValueError(f'rewards.{name}.kinds is {kinds!r}: it must list kinds of problems, e.g. ["math", "code"]')
    kinds = None if kinds is None else tuple(kinds)
    if gate is not None and (gate == name or gate not in spec):
        others = [n for n in spec if n != name]
        raise ValueError(f"rewards.{name}.gate is {gate!r}: it must name another reward of this recipe, one of {others}")
    if ":" in name:
        from rewards.trl_bridge import from_trl

        return Part(name, float(weight), gate, from_trl(name, **options), kinds)
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}{_nearest(name, REWARDS)}; there are {sorted(REWARDS)} and module:function")
    factory = REWARDS[name]
    parameters = inspect.signature(factory).parameters
    names = list(parameters)
    for option in options:
        if option not in names:
            known = ["weight", "gate", "kinds", *names]
            raise ValueError(f"rewards.{name} has no option {option!r}{_nearest(option, known)}; it takes {known}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if missing:
        raise ValueError(f"rewards.{name} needs {' and '.join(missing)}: write it below [rewards.{name}]")
    return Part(name, float(weight), gate, factory(**options), kinds)


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
