"""Figures of eval/heldout.py by hand, over a sampler that answers from a table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from eval.estimators import mean_at_k, mean_pass_at_k
from eval.heldout import SEED, evaluate
from rewards import combine
from rewards.score import Score
from rewards.scorer import InProcess
from rl.records import Completion, Prompt, Sampling
from rl.sampler import Done

SCORER = InProcess({"accuracy": {"weight": 1.0}, "format": {"weight": 0.1}})


class Table:
    """Answers by prompt and draw: `answers[id][i]`; greedy gives the first."""

    version, dtype = 0, torch.float32

    def __init__(self, answers: dict[int, list[str]], cut: bool = False) -> None:
        self.answers, self.cut, self.asked = answers, cut, []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, done: Done | None = None
    ) -> list[list[Completion]]:
        self.asked.append(sampling)
        made = [[self._one(self.answers[ids[0]][i]) for i in range(sampling.n)] for ids in prompts]
        for i in reversed(range(len(made))):  # any order will do
            assert done
            done(i, made[i])
        return made

    def _one(self, answer: str) -> Completion:
        text = answer if answer.startswith("bare") else f"<think>so</think> <answer>{answer}</answer>"
        return Completion((1,) * len(answer), (-1.0,) * len(answer), "length" if self.cut else "stop", text, 0)


def prompts() -> list[Prompt]:
    rows = [("4", "seen", 1), ("5", "seen", 2), ("6", "unseen", 2)]
    return [
        Prompt(str(i), (i,), {"id": str(i), "question": "?", "gold": gold, "kind": "math", "part": part, "steps": steps})
        for i, (gold, part, steps) in enumerate(rows)
    ]


ANSWERS = {0: ["4", "4", "4", "7"], 1: ["9", "9", "5", "9"], 2: ["6", "9", "bare", "9"]}


def run(**options):
    sampler = Table(ANSWERS, **options)
    return evaluate(sampler, prompts(), SCORER, samples=4, temperature=0.7, max_tokens=50), sampler


def test_by_hand() -> None:
    e, _ = run()
    assert (e["problems"], e["samples"], e["temperature"], e["max_tokens"]) == (3, 4, 0.7, 50)
    assert e["greedy"]["value"] == pytest.approx(2 / 3)
    assert e["pass@1"]["value"] == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3)
    assert e["pass@4"]["value"] == 1.0  # each was right once in four
    assert e["format"]["value"] == pytest.approx(11 / 12)
    assert (e["truncated"], e["mean_tokens"]) == (0.0, pytest.approx((11 + 4) / 12))
    assert e["right"] == {"greedy": [1, 0, 1], "pass@1": [3, 1, 1]}
    assert run(cut=True)[0]["truncated"] == 1.0


def test_intervals_are_the_estimators() -> None:
    e, _ = run()
    right = [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert e["pass@1"] == vars(mean_at_k(right))
    assert e["pass@4"] == vars(mean_pass_at_k(right, 4))
    assert e["pass@1"]["low"] < e["pass@1"]["value"] < e["pass@1"]["high"]


def test_by_part_and_by_steps() -> None:
    e, _ = run()
    assert {k: (m["n"], m["greedy"]["value"], m["pass@1"]["value"]) for k, m in e["by_part"].items()} == {
        "seen": (2, 0.5, 0.5),
        "unseen": (1, 1.0, 0.25),
    }
    assert {k: (m["n"], m["pass@4"]["value"]) for k, m in e["by_steps"].items()} == {"1": (1, 1.0), "2": (2, 1.0)}
    bare = [Prompt("0", (0,), {"gold": "4", "kind": "math", "question": "?"})]
    plain = evaluate(Table(ANSWERS), bare, SCORER, samples=2, temperature=1.0, max_tokens=5)
    assert (plain["by_part"], plain["by_steps"]) == ({}, {})


def test_it_draws_the_same_way_in_every_run() -> None:
    _, sampler = run()
    assert sampler.asked == [Sampling(1, 50, 0.0, SEED), Sampling(4, 50, 0.7, SEED)]


def test_one_sample_a_problem() -> None:
    e = evaluate(Table(ANSWERS), prompts(), SCORER, samples=1, temperature=1.0, max_tokens=5)
    assert e["pass@1"]["value"] == pytest.approx(2 / 3)


def test_no_verdict_counts_as_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(combine.REWARDS, "accuracy", lambda: lambda completion, problem: Score(None, {}, "no grader"))
    e = evaluate(Table(ANSWERS), prompts(), InProcess({"accuracy": {}}), samples=4, temperature=1.0, max_tokens=5)
    assert (e["greedy"]["value"], e["pass@1"]["value"], e["pass@4"]["value"]) == (0.0, 0.0, 0.0)


def test_a_program_that_passes_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(combine.REWARDS, "code", lambda: lambda c, p: Score(1.0 if "4" in c.text else 0.5))
    e = evaluate(Table(ANSWERS), prompts(), InProcess({"code": {}}), samples=4, temperature=1.0, max_tokens=5)
    assert (e["greedy"]["value"], e["pass@1"]["value"]) == (pytest.approx(1 / 3), pytest.approx(1 / 4))  # a half is not right
