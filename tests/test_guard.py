"""What stops a run, after how long and with which reason; and what does not. (The checks on prompts: test_prompts.py.)"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rl.config import Guard
from rl.guard import Stopped, Watch

HEALTHY = {"mismatch": 3e-7, "masked": 0.0, "truncated": 0.3, "zero_variance": 0.5, "length": 90.0}
TOLERANCE = 1e-5


def feed(watch: Watch, steps: int, **changes: Any) -> None:
    for _ in range(steps):
        watch.check(HEALTHY | changes)


def stops(watch: Watch, **changes: Any) -> str:
    with pytest.raises(Stopped) as caught:
        watch.check(HEALTHY | changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_healthy_steps_never_stop_a_run() -> None:
    feed(Watch(Guard(), TOLERANCE), 200)
    # At the edge of every threshold, but not over it.
    feed(Watch(Guard(), TOLERANCE), 200, mismatch=TOLERANCE, masked=0.02, truncated=0.899, zero_variance=0.979)


def test_numbers_that_a_step_does_not_have_stop_nothing() -> None:
    watch = Watch(Guard(patience=1), TOLERANCE)
    watch.check({})  # a step without completions


@pytest.mark.parametrize(
    ("name", "bad", "told"),
    [
        (
            "truncated",
            0.9,
            r"at least 90% of the completions were cut off in each of the last 5 steps.*Raise rollout.max_tokens",
        ),
        ("truncated", 1.0, r"mean length now 90"),
        ("zero_variance", 0.98, r"at least 98% of the groups had one reward only in each of the last 5 steps.*rollout.group"),
        ("zero_variance", 1.0, r"nothing is left to learn"),
    ],
)
def test_slow_faults_stop_after_patience(name: str, bad: float, told: str) -> None:
    watch = Watch(Guard(patience=5), TOLERANCE)
    feed(watch, 4, **{name: bad})
    assert re.search(told, stops(watch, **{name: bad}))


@pytest.mark.parametrize("name", ["truncated", "zero_variance"])
def test_one_good_step_starts_the_count_anew(name: str) -> None:
    watch = Watch(Guard(patience=3), TOLERANCE)
    for _ in range(5):
        feed(watch, 2, **{name: 1.0})
        feed(watch, 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mismatch": 1.1e-5}, "sampler and learner disagree"),
        ({"mismatch": float("nan")}, "differ by nan"),
        ({"masked": 0.021}, "2.1% of this step's samples have no verdict (allowed 2.0%); their reasons stand in rollouts/"),
    ],
)
def test_fast_faults_stop_at_once(changes: dict[str, float], told: str) -> None:
    assert told in stops(Watch(Guard(), TOLERANCE), **changes)


def test_thresholds_are_the_recipes() -> None:
    feed(Watch(Guard(mismatch=0.5), TOLERANCE), 1, mismatch=0.4)
    assert "allowed 0.5" in stops(Watch(Guard(mismatch=0.5), TOLERANCE), mismatch=0.6)
    feed(Watch(Guard(masked=1.0), TOLERANCE), 1, masked=1.0)
    assert stops(Watch(Guard(truncated=0.2, patience=1), TOLERANCE))
    assert stops(Watch(Guard(zero_variance=0.4, patience=1), TOLERANCE))


@pytest.mark.parametrize("name", ["truncated", "zero_variance"])
def test_the_count_goes_on_after_a_resume(name: str) -> None:
    first = Watch(Guard(patience=5), TOLERANCE)
    feed(first, 3, **{name: 1.0})
    memory = json.loads(json.dumps(first.memory()))  # as a checkpoint keeps it
    second = Watch(Guard(patience=5), TOLERANCE, memory)
    feed(second, 1, **{name: 1.0})
    assert stops(second, **{name: 1.0})
    assert second.memory() == {"truncated": second.memory()["truncated"], "zero_variance": second.memory()["zero_variance"]}
    assert len(second.memory()[name]) == 5  # no more than it needs


def test_stale_steps_may_differ_by_the_drift_and_no_more() -> None:
    """Then the policies are two; a step without stale samples is held to rounding, also in a run that samples ahead."""
    watch = Watch(Guard(drift=0.3), TOLERANCE)
    feed(watch, 3, staleness_max=1.0, mismatch=0.3)
    told = stops(watch, staleness_max=1.0, mismatch=0.31)
    assert "differ by 0.31 nats in the mean (allowed 0.3)" in told
    assert "too stale for this learn.lr: lower it, or rollout.max_staleness" in told
    assert "allowed 1e-05" in stops(watch, staleness_max=0.0, mismatch=0.3)
    assert "Stale weights, another temperature" in stops(watch, mismatch=0.3)
    assert "differ by nan" in stops(watch, staleness_max=1.0, mismatch=float("nan"))


def test_the_drift_never_tightens_the_tolerance() -> None:
    feed(Watch(Guard(mismatch=0.5, drift=0.1), TOLERANCE), 1, staleness_max=2.0, mismatch=0.4)
