"""Rewards in this process: the same scores as the reward itself, times by hand, errors that name their owner."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import combine
from rewards.combine import build
from rewards.score import Score, Text
from rewards.scorer import InProcess, Latency, RewardError, needs_pool

SPEC: dict[str, Any] = {"accuracy": {}, "format": {"weight": 0.1, "gate": "accuracy"}, "repetition": {"weight": 0.5, "n": 2}}
ROW = {"id": "r", "question": "2+2?", "gold": "4", "kind": "math"}
TEXTS = [f"<think>x</think> <answer>{i % 3 + 3}</answer>" for i in range(6)] + ["no no no no no no no no", ""]


def test_scores_are_those_of_the_reward() -> None:
    reward = build(SPEC)
    with InProcess(SPEC) as scorer:
        pending = [scorer.submit(Text(t, tokens=9), ROW) for t in TEXTS]
        scores = [p.result() for p in pending]
    assert scores == [reward(Text(t, tokens=9), ROW) for t in TEXTS]
    assert len({s.value for s in scores}) > 2


def test_nothing_is_scored_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setitem(combine.REWARDS, "spy", lambda: lambda c, p: called.append(c.text) or Score(1.0))
    scorer = InProcess({"spy": {}})
    pending = [scorer.submit(Text(t), ROW) for t in "ab"]
    assert called == []
    assert [p.result().value for p in pending] == [1.0, 1.0]
    assert called == ["a", "b"]


def test_stats_are_those_since_the_last_call() -> None:
    scorer = InProcess(SPEC)
    assert scorer.stats() == {}
    scorer.submit(Text(TEXTS[0]), ROW).result()
    stats = scorer.stats()
    assert set(stats) == {f"reward_ms_p{q}/{name}" for q in (50, 99) for name in (*SPEC, "all")}
    assert all(value > 0 for value in stats.values())
    assert stats["reward_ms_p50/all"] == pytest.approx(sum(stats[f"reward_ms_p50/{name}"] for name in SPEC))
    assert scorer.stats() == {}


def test_percentiles_by_hand() -> None:
    latency = Latency()
    for n in range(100, 0, -1):
        latency.add({"a": n / 1000})
    latency.add({"b": 0.5})
    assert latency.take() == {
        "reward_ms_p50/a": 51.0,
        "reward_ms_p99/a": 100.0,
        "reward_ms_p50/b": 500.0,
        "reward_ms_p99/b": 500.0,
    }
    assert latency.take() == {}


def test_a_raise_names_reward_problem_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(combine.REWARDS, "broken", lambda: lambda c, p: p["units"])
    pending = InProcess({"accuracy": {}, "broken": {}}).submit(Text("4"), ROW)
    with pytest.raises(RewardError, match=r"^broken of r: KeyError: 'units'$"):
        pending.result()
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        InProcess({"acuracy": {}})


def test_who_needs_a_pool() -> None:
    assert [name for name in (*combine.REWARDS, "my_rewards:f") if needs_pool(name)] == ["preference", "code", "my_rewards:f"]
