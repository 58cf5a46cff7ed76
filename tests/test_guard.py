"""What stops a run, after how long and with which reason; and what does not. (The checks on prompts: test_prompts.py; each guard in a real
run: tests/faults/test_guard_planted.py.)"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rewards.score import Score
from rl.config import Guard
from rl.guard import Stopped, Watch, check_rewards
from rl.guard_rules import RULES
from rl.guard_text import language_of, of_texts, repeated
from rl.records import Completion, Group, Prompt

HEALTHY: dict[str, Any] = {
    "reward": 0.5, "mismatch": 3e-7, "masked": 0.0, "truncated": 0.3, "zero_variance": 0.5, "length": 90.0, "entropy": 1.0,
    "repetition": 0.05, "language": 0.98, "format": 0.5, "accuracy": 0.4, "kl": 0.02, "tokens_per_s": 1000.0, "staleness_max": 0.0,
    "workers": 2.0, "disk_free": 2e9, "checkpoint_bytes": 1e9,
}  # fmt: skip
TOLERANCE = 1e-5
SLOW = {  # a value that each slow guard finds bad, beside HEALTHY
    "truncated": {"truncated": 0.9}, "zero_variance": {"zero_variance": 0.98}, "entropy": {"entropy": 0.029},
    "repetition": {"repetition": 0.51}, "language": {"language": 0.77}, "format": {"format": 0.71}, "kl": {"kl": 1.1},
    "length": {"length": 271.0}, "throughput": {"tokens_per_s": 249.0}, "workers": {"workers_lost": 1.0},
}  # fmt: skip
EDGE = {  # as far as is still allowed
    "truncated": 0.899, "zero_variance": 0.979, "entropy": 0.03, "repetition": 0.5, "language": 0.78, "kl": 1.0, "masked": 0.02,
    "mismatch": TOLERANCE, "length": 270.0, "tokens_per_s": 250.0, "format": 0.7, "disk_free": 1e9,
}  # fmt: skip


def watch(**thresholds: Any) -> Watch:
    """One that has seen a healthy first step."""
    made = Watch(Guard(**thresholds), TOLERANCE, max_staleness=1)
    assert made.check(HEALTHY) == []
    return made


def stops(of: Watch, **changes: Any) -> str:
    with pytest.raises(Stopped) as caught:
        of.check(HEALTHY | changes)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"guard {caught.value.guard}: ")
    return told


def test_every_guard_is_tested_here() -> None:
    assert set(SLOW) | {"nan", "stale", "mismatch", "masked", "disk", "hacking", "preference"} == set(
        RULES
    )  # the last: test_judge.py


def test_healthy_steps_neither_warn_nor_stop() -> None:
    assert [watch().check(HEALTHY) for _ in range(200)] == [[]] * 200
    at_the_edge = watch(patience=1)
    assert [at_the_edge.check(HEALTHY | {name: value}) for name, value in EDGE.items()] == [[]] * len(EDGE)
    assert at_the_edge.healthy


def test_numbers_that_a_step_does_not_have_stop_nothing() -> None:
    assert Watch(Guard(patience=1), TOLERANCE).check({}) == []  # a step without completions


@pytest.mark.parametrize("name", SLOW)
def test_slow_faults_warn_once_and_stop_after_patience(name: str) -> None:
    of = watch(patience=3)
    (warning,) = of.check(HEALTHY | SLOW[name])
    assert warning.startswith(f"guard {name}: ")
    assert "the run stops after 3 such steps in a row" in warning
    assert RULES[name].remedy in warning
    assert not of.healthy
    assert of.check(HEALTHY | SLOW[name]) == []
    told = stops(of, **SLOW[name])
    assert told.startswith(f"guard {name}: ")
    assert f"in 3 steps in a row. {RULES[name].remedy}" in told


@pytest.mark.parametrize("name", SLOW)
def test_one_good_step_starts_the_count_anew(name: str) -> None:
    of = watch(patience=3)
    for _ in range(4):
        said = [of.check(HEALTHY | SLOW[name]) for _ in range(2)]
        assert [len(s) for s in said] == [1, 0]
        assert of.check(HEALTHY) == []
        assert of.healthy


@pytest.mark.parametrize("name", SLOW)
def test_the_count_goes_on_after_a_resume(name: str) -> None:
    first = watch(patience=3)
    for _ in range(2):
        first.check(HEALTHY | SLOW[name])
    memory = json.loads(json.dumps(first.memory()))  # as a checkpoint keeps it
    second = Watch(Guard(patience=3), TOLERANCE, memory, max_staleness=1)
    if name == "throughput":  # what is usual on this machine must be seen first
        assert second.check(HEALTHY | SLOW[name]) == []
        assert second.healthy
    else:
        assert stops(second, **SLOW[name]).startswith(f"guard {name}: ")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mismatch": 1.1e-5}, "guard mismatch: sampler and learner disagree"),
        ({"staleness_max": 2.0}, "guard stale: a sample is of weights 2 steps old, rollout.max_staleness = 1"),
        ({"masked": 0.021}, "guard masked: 2.1% of this step's samples have no verdict (allowed 2.0%); their reasons stand in rollouts/"),
        ({"disk_free": 0.9e9}, "guard disk: the disk is nearly full: 900.0 MB are free where the run writes, the next checkpoint"),
        *(({name: math.nan}, f"guard nan: {name} of this step is nan") for name in ("mismatch", "reward", "kl", "entropy")),
        ({"loss": math.inf, "grad_norm": math.nan}, "guard nan: loss, grad_norm of this step is inf"),
    ],
)  # fmt: skip
def test_fast_faults_stop_at_once(changes: dict[str, float], told: str) -> None:
    assert told in stops(watch(), **changes)


def test_thresholds_are_the_recipes() -> None:
    assert Watch(Guard(mismatch=0.5), TOLERANCE).check(HEALTHY | {"mismatch": 0.4}) == []
    assert "allowed 0.5" in stops(Watch(Guard(mismatch=0.5), TOLERANCE), mismatch=0.6)
    assert watch(masked=1.0).check(HEALTHY | {"masked": 1.0}) == []
    assert stops(watch(truncated=0.31, patience=1), truncated=0.31).startswith("guard truncated")
    off = watch(
        truncated=2, zero_variance=2, entropy=0, repetition=2, language=2, format=2, kl=math.inf, length=math.inf, throughput=0,
        patience=1,
    )  # fmt: skip
    for name in set(SLOW) - {"workers"}:
        assert off.check(HEALTHY | SLOW[name]) == [], name


def test_stale_steps_may_differ_by_the_drift_and_no_more() -> None:
    """Then the policies are two; a step without stale samples is held to rounding, also in a run that samples ahead."""
    of = watch(drift=0.3)
    assert of.check(HEALTHY | {"staleness_max": 1.0, "mismatch": 0.3}) == []
    told = stops(of, staleness_max=1.0, mismatch=0.31)
    assert "differ by 0.31 nats in the mean (allowed 0.3)" in told
    assert "too stale for this learn.lr: lower it, or rollout.max_staleness" in told
    assert "allowed 1e-05" in stops(of, staleness_max=0.0, mismatch=0.3)
    assert "Stale weights, another temperature" in stops(of, mismatch=0.3)
    assert Watch(Guard(mismatch=0.5, drift=0.1), TOLERANCE).check(HEALTHY | {"staleness_max": 2.0, "mismatch": 0.4}) == []


def test_longer_answers_that_are_paid_for_are_no_run_away() -> None:
    of = watch(patience=1)
    assert of.check(HEALTHY | {"length": 400.0, "reward": 0.6}) == []
    slow = watch(patience=2)
    for n in range(40):  # four times as long in the end, step by step
        assert slow.check(HEALTHY | {"length": 90.0 * 1.035**n}) == []


def test_tags_with_accuracy_are_no_fault() -> None:
    assert watch(patience=1).check(HEALTHY | {"format": 1.0, "accuracy": 0.5}) == []


def probe(right: list[float], **changes: Any) -> dict[str, Any]:
    return HEALTHY | {"heldout": sum(right) / len(right), "heldout_right": right} | changes


def test_reward_that_rises_while_heldout_accuracy_falls() -> None:
    good, worse, chance = [1.0, 0.5] * 20, [0.5, 0.25] * 20, [1.0, 0.5] * 19 + [0.0, 0.5]
    of = watch(probe_every=10, patience=20)
    assert of.check(probe(good, reward=0.5)) == []
    assert of.check(probe(chance, reward=0.9)) == []  # within chance
    assert of.check(probe(worse, reward=0.1)) == []  # the reward fell with it: no hacking
    (warning,) = of.check(probe(worse, reward=0.9))
    assert "accuracy on held-out problems fell from 0.750 to 0.375" in warning
    assert "stops after 2 such probes in a row" in warning
    assert of.check(HEALTHY) == []  # steps between probes say nothing
    memory = json.loads(json.dumps(of.memory()))
    for again in (of, Watch(Guard(), TOLERANCE, memory)):
        assert "guard hacking: accuracy" in stops(again, **probe(worse, reward=0.9))


def test_rewards_that_are_no_numbers() -> None:
    def group(*values: float | None) -> Group:
        return Group(Prompt("p7", (1,), {}), (), tuple(Score(v, {}, "why") for v in values))

    assert check_rewards([group(1.0, None), group()]) is None
    with pytest.raises(Stopped, match=r"guard nan: the reward of an answer to p7 is nan \(why\)"):
        check_rewards([group(1.0), group(0.0, math.nan)])


def test_what_is_seen_in_texts() -> None:
    loop, plain = tuple([5, 6] * 20), tuple(range(40))
    assert repeated(loop) == pytest.approx(1 - 2 / 25)
    assert repeated(plain) == repeated((1, 2, 3)) == 0.0

    def group(question: str, ids: tuple[int, ...], text: str) -> Group:
        return Group(Prompt(question, (1,), {"question": question}), (Completion(ids, (0.0,) * len(ids), "stop", text, 0),))

    made = of_texts([group("How many apples?", loop, "five apples"), group("Сколько яблок?", plain, "five яблок")])
    assert made == {"repetition": pytest.approx(0.46), "language": 0.75}
    assert [language_of({"question": q}) for q in ("多少?", "いくつ?", "2+2?")] == ["zh", "ja", "en"]
    assert language_of({"question": "多少?", "language": "en"}) == "en"


def test_three_healthy_seeds_raise_no_alarm() -> None:
    """The recorded metrics of the nano recipe (the file says by which command): nothing warns. The pace is the machine's, and left out."""
    recorded = json.loads((Path(__file__).parent / "faults" / "healthy_nano.json").read_text())
    assert len(recorded["seeds"]) == 3
    for lines in recorded["seeds"].values():
        assert len(lines) >= 30
        assert lines[-1]["accuracy"] > lines[0]["accuracy"] + 0.3  # it learned
        assert sum("heldout_right" in m for m in lines) >= 4
        for patience in (Guard().patience, 2):
            of = Watch(Guard(patience=patience, throughput=0), TOLERANCE, max_staleness=0)
            assert [of.check(m) for m in lines] == [[]] * len(lines)
