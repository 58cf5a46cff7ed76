"""The numbers of a step, by hand on two groups of two."""

from __future__ import annotations

import math
import time
from contextlib import suppress

import pytest

from rewards.score import Score
from rl.metrics import Clock, by, of_groups
from rl.records import Completion, Group, Prompt


def completion(tokens: int, finish: str = "stop") -> Completion:
    return Completion(tuple(range(tokens)), (-0.5,) * tokens, finish, "", 0)


def score(value: float | None, accuracy: float = 0.0, format: float = 0.0, **parts: float) -> Score:
    return Score(value, {} if value is None else {"accuracy": accuracy, "format": format, **parts})


GROUPS = [
    Group(
        Prompt("a", (1,), {"id": "a", "steps": 2}),
        (completion(4), completion(10, "length")),
        (score(1.1, 1.0, 1.0, language=0.5), score(0.0, language=0.25)),
    ),
    Group(Prompt("b", (1, 2), {"id": "b", "steps": 10}), (completion(1), completion(5)), (score(0.1, 0.0, 1.0), score(None))),
]


def test_by_hand() -> None:
    m = of_groups(GROUPS)
    mean = (1.1 + 0.0 + 0.1) / 3
    assert m["reward"] == pytest.approx(0.4)
    assert m["reward_std"] == pytest.approx(math.sqrt(sum((r - mean) ** 2 for r in (1.1, 0.0, 0.1)) / 3))
    assert m["accuracy"] == pytest.approx(1 / 3)
    assert m["format"] == pytest.approx(2 / 3)
    assert m["part/language"] == pytest.approx(0.375)  # over the samples that have it
    assert (m["length"], m["length_max"], m["tokens"]) == (5.0, 10, 20)
    assert (m["truncated"], m["masked"]) == (0.25, 0.25)
    assert m["zero_variance"] == 0.5  # of b's two samples one has a verdict: nothing to compare
    assert m["by_steps"] == {"10": 0.0, "2": 0.5}


def test_a_missing_verdict_is_no_zero() -> None:
    m = of_groups([Group(Prompt("a", (1,), {}), (completion(1), completion(1)), (score(1.0, 1.0), score(None)))])
    assert (m["reward"], m["accuracy"], m["masked"]) == (1.0, 1.0, 0.5)
    assert m["by_steps"] == {}


def test_a_step_without_any_verdict_has_numbers_still() -> None:
    m = of_groups([Group(Prompt("a", (1,), {}), (completion(1), completion(1)), (score(None), score(None)))])
    assert (m["reward"], m["reward_std"], m["masked"], m["zero_variance"]) == (0.0, 0.0, 1.0, 1.0)


def test_by_a_column_of_the_problems() -> None:
    assert by(GROUPS, "steps", lambda c, s: float(c.tokens)) == {"2": 7.0, "10": 3.0}
    assert by(GROUPS, "no such column", lambda c, s: 1.0) == {}


def test_the_clock_adds_up_phases_and_survives_errors() -> None:
    clock = Clock()
    for _ in range(2):
        with clock("learn"):
            time.sleep(0.02)
    with suppress(ZeroDivisionError), clock("reward"):
        time.sleep(0.01)
        _ = 1 / 0
    assert list(clock.seconds) == ["seconds_learn", "seconds_reward"]
    assert 0.04 <= clock.seconds["seconds_learn"] < 1
    assert clock.seconds["seconds_reward"] >= 0.01
    assert clock.total() >= sum(clock.seconds.values())
