"""Sampled answers: graded strictly and leniently, in units that do not depend on each other, kept as they are finished."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from eval import answer
from eval.answer import CodeGrader, Draw, MathGrader, cut, generate, grader, prompts, sampled, unit_seed, units
from eval.ledger import Ledger
from eval.records import Answered, read_samples
from eval.tasks import TASKS, load
from rewards.score import Score, Text
from rl.policy import load_tokenizer
from rl.records import Completion, Prompt, Sampling
from rl.sampler import Done

MATH = {"id": "q", "question": "2+2?", "gold": "4", "kind": "math", "groups": {}}


def graded(text: str, marked: str = "") -> tuple[float | None, float | None, str]:
    score = MathGrader(marked).submit(Text(text), MATH).result()
    found = sampled(Text(text), score, MATH)
    return found.strict, found.lenient, found.answer


def test_strict_and_lenient_side_by_side() -> None:
    assert graded("<think>2+2</think> <answer>4</answer>") == (1.0, 1.0, "4")
    assert graded("The answer is 4.") == (0.0, 1.0, "4")
    assert graded(r"so \boxed{5}") == (0.0, 0.0, "5")
    assert graded("four") == (0.0, 0.0, "")
    assert graded("2 + 2 = 4\n#### 4\n\nand so on", marked="####") == (1.0, 1.0, "4")
    assert graded("The answer is 4.", marked="####") == (0.0, 1.0, "4")
    assert graded("#### ", marked="####")[0] == 0.0


def test_an_answer_ends_before_the_next_question() -> None:
    text = " 2 + 2 = 4\n#### 4\n\nQuestion: 1+1?\nAnswer: 2\n#### 2"
    done = cut(Text(text, 40, True), ("Question:",))
    assert (done.text, done.tokens, done.truncated) == (" 2 + 2 = 4\n#### 4\n\n", 40, False)
    assert cut(Text(text, 40, True), ("Exercise:",)) == Text(text, 40, True)


def test_no_verdict_is_no_zero() -> None:
    found = sampled(Text("x"), Score(None, {}, "no sandbox"), MATH)
    assert (found.strict, found.lenient, found.reason) == (None, None, "no sandbox")


def test_programs_are_run_against_their_tests(data_root: Path) -> None:
    row = load("humaneval", str(data_root), limit=1)[0]
    with closing(grader(TASKS["humaneval"], [row])) as grade:
        assert isinstance(grade, CodeGrader)
        texts = [
            Text(f"```python\n{row['program']}\n```"),
            Text("```python\ndef has_close_elements(n, t):\n    return False\n```"),
        ]
        pending = [grade.submit(text, row) for text in texts]
        right, wrong = (sampled(text, p.result(), row) for text, p in zip(texts, pending, strict=True))
    assert (right.strict, right.lenient, right.reason) == (1.0, 1.0, "pass")
    assert (wrong.strict, wrong.lenient) == (0.0, 0.0)
    assert wrong.answer.endswith("return False\n")


def test_prompts_are_cut_from_the_left(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    rows = [MATH, MATH | {"id": "r", "question": "and " * 400 + "2+2?"}]
    made, shortened = prompts(rows, "r1_zero", tokenizer, 300)
    whole, none = prompts(rows, "r1_zero", tokenizer, 9999)
    assert (shortened, none) == (1, 0)
    assert made[0].ids == whole[0].ids
    assert made[1].ids == whole[1].ids[-300:]
    plain, _ = prompts([MATH | {"plain": "Q: 2+2?\nA:"}, MATH], "plain", tokenizer, 300)
    assert [tokenizer.decode(p.ids) for p in plain] == ["Q: 2+2?\nA:", "2+2?"]


class Dice:
    """Answers by the call's seed; `calls` are those made; dies in the call `dies_in`."""

    version, dtype = 0, torch.float32

    def __init__(self, dies_in: int = -1) -> None:
        self.calls: list[tuple[list[int], Sampling]] = []
        self.dies_in = dies_in

    def generate(self, asked: Sequence[Sequence[int]], sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        self.calls.append(([ids[0] for ids in asked], sampling))
        draw = random.Random(sampling.seed)
        made = [[self._one(draw) for _ in range(sampling.n)] for _ in asked]
        for i in reversed(range(len(made))):
            if len(self.calls) == self.dies_in and i == 0:
                raise KeyboardInterrupt
            if done:
                done(i, made[i])
        return made

    def _one(self, draw: random.Random) -> Completion:
        return Completion((1, 2), (-1.0, -1.0), draw.choice(["stop", "length"]), f"<answer>{draw.randrange(3, 6)}</answer>", 0)


def asked(count: int = 10) -> list[Prompt]:
    return [Prompt(f"q{i}", (i, 7), MATH | {"id": f"q{i}", "groups": {"part": str(i % 2)}}) for i in range(count)]


def run(
    folder: Path, sampler: Dice, step: Callable[[float], None] = lambda x: None, seed: int = 0, k: int = 4
) -> list[Answered]:
    some = asked()
    ledger = Ledger(folder, "gsm8k", [p.id for p in some], [[p.id for p in unit] for unit in units(some, k)])
    generate("gsm8k", TASKS["gsm8k"], some, Draw(k, 1.0, 0.9, 32, seed), sampler, MathGrader(), ledger, step)
    return ledger.finish()


def test_units_have_seeds_of_their_own_and_go_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "SEQUENCES", 13)  # three questions of four samples
    steps: list[float] = []
    whole = Dice()
    made = run(tmp_path / "whole", whole, steps.append)
    assert [ids for ids, _ in whole.calls] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [s for _, s in whole.calls] == [Sampling(4, 32, 1.0, unit_seed(0, "gsm8k", n), 0.9) for n in range(4)]
    assert len({s.seed for _, s in whole.calls}) == 4
    assert sum(steps) == pytest.approx(10)
    assert len(steps) == 40  # each sample as it is finished
    assert (made[3].prompt_tokens, made[3].groups, len(made[3].samples)) == (2, {"part": "1"}, 4)
    assert {s.strict for a in made for s in a.samples} == {0.0, 1.0}

    killed, again = Dice(dies_in=3), Dice()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed)
    run(tmp_path / "killed", again)
    assert [ids for ids, _ in again.calls] == [[6, 7, 8], [9]]
    assert (tmp_path / "killed/samples/gsm8k.jsonl").read_bytes() == (tmp_path / "whole/samples/gsm8k.jsonl").read_bytes()
    assert read_samples(tmp_path / "killed", "gsm8k") == made
    assert run(tmp_path / "other", Dice(), seed=1) != made


def test_at_least_one_question_a_unit() -> None:
    assert [len(unit) for unit in units(range(3), 4096)] == [1, 1, 1]
    assert len({unit_seed(s, t, n) for s in range(3) for t in ("a", "b") for n in range(3)}) == 18
    assert 0 <= unit_seed(0, "gsm8k", 0) < 2**31
