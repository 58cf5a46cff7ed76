"""Questions -> sampled and graded answers, in units that are the same after a kill.

A unit is so many questions that SEQUENCES samples are in the engine together; its seed comes from the evaluation's seed, the task and
the unit's number, and the engine's prefix cache is off, so that what a unit draws does not depend on what was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eval.ledger import Ledger
from eval.records import Answered, Sampled
from eval.tasks import Task
from rewards.code_extract import extract_code
from rewards.math_answer import accuracy
from rewards.math_extract import extract
from rewards.score import Sampled as Finished
from rewards.score import Score, Text
from rewards.scorer import Pending
from rewards.workers import RewardPool
from rl.data import Row
from rl.prompts import render
from rl.records import Prompt, Sampling
from rl.rollout import scored_rollout
from rl.sampler import Sampler

SEQUENCES = 1024  # samples of a unit
CODE_PROCESSES = 2
CODE = {"wall_s": 12.0, "budget_s": 15.0}  # twice what training gives: MBPP's slowest own solution takes 6 s on a busy machine
CODE_WALL_S = 60.0  # seconds for one program with all its tests, retries after faults of the sandbox included
MODES = ("strict", "lenient")


@dataclass(frozen=True)
class Draw:
    """How a task is sampled: `Draw(k=4, temperature=1.0, top_p=1.0, max_tokens=512, seed=0)`."""

    k: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class Grader(Protocol):
    """A scorer whose score has the parts "strict" and "lenient", each absent where no verdict was possible."""

    def submit(self, completion: Finished, problem: Mapping[str, Any]) -> Pending: ...
    def close(self) -> None: ...


class _Later:
    def __init__(self, result: Callable[[], Score]) -> None:
        self.result = result

    def done(self) -> bool:
        return True


class MathGrader:
    """The accuracy reward as strict and as lenient extraction read an answer. `marked`: see tasks.Task."""

    def __init__(self, marked: str = "") -> None:
        self.rewards, self.marked = {mode: accuracy(mode) for mode in MODES}, marked

    def submit(self, completion: Finished, problem: Mapping[str, Any]) -> Pending:
        return _Later(lambda: self._score(completion, problem))

    def _score(self, completion: Finished, problem: Mapping[str, Any]) -> Score:
        asked = completion
        if self.marked:
            _, mark, rest = completion.text.rpartition(self.marked)
            asked = Text(f"<answer>{rest.strip().splitlines()[0]}</answer>" if mark and rest.strip() else "")
        lenient, strict = self.rewards["lenient"](completion, problem), self.rewards["strict"](asked, problem)
        parts = {mode: s.value for mode, s in (("strict", strict), ("lenient", lenient)) if s.value is not None}
        return Score(lenient.value, parts, lenient.reason)

    def close(self) -> None:
        pass


class CodeGrader:
    """All tests pass in the sandbox: one verdict under both names. Raises ValueError where this host has no sandbox."""

    def __init__(self) -> None:
        self.pool = RewardPool({"code": CODE}, CODE_PROCESSES, CODE_WALL_S)

    def submit(self, completion: Finished, problem: Mapping[str, Any]) -> Pending:
        pending = self.pool.submit(completion, problem)
        return _Later(lambda: self._score(pending.result()))

    def _score(self, score: Score) -> Score:
        parts = {} if score.value is None else dict.fromkeys(MODES, score.value)
        return Score(score.value, parts, score.reason)

    def close(self) -> None:
        self.pool.close()


def grader(entry: Task, rows: Sequence[Row]) -> Grader:
    """What grades these rows."""
    return CodeGrader() if rows[0]["kind"] == "code" else MathGrader(entry.marked)


class Watched:
    """The grader as a rollout's scorer: answers are cut at `until` first, and `seen` is called for each that is finished."""

    def __init__(self, inner: Grader, until: Sequence[str], seen: Callable[[], None]) -> None:
        self.inner, self.until, self.seen = inner, until, seen

    def submit(self, completion: Finished, problem: Mapping[str, Any]) -> Pending:
        self.seen()
        return self.inner.submit(cut(completion, self.until), problem)


def cut(completion: Finished, until: Sequence[str]) -> Finished:
    """The answer up to the first of the strings `until`: what a base model goes on with after it is the next question."""
    stops = [at for stop in until if (at := completion.text.find(stop)) >= 0]
    return Text(completion.text[: min(stops)], completion.tokens, False) if stops else completion


def sampled(completion: Finished, score: Score, row: Row) -> Sampled:
    """One graded answer as it is kept."""
    if row["kind"] == "code":
        answer = extract_code(completion.text, str(row.get("prompt") or ""), str(row.get("entry_point") or ""))
    else:
        answer = extract(completion.text) or ""
    strict, lenient = (score.parts.get(mode) for mode in MODES)
    return Sampled(completion.text, completion.tokens, completion.truncated, strict, lenient, answer, score.reason)


def answered(task: str, row: Row, prompt_tokens: int, samples: Sequence[Sampled], choices: Sequence[float] = ()) -> Answered:
    return Answered(task, row["id"], row["question"], row["gold"], row["groups"], prompt_tokens, tuple(samples), tuple(choices))


def prompts(rows: Sequence[Row], template: str, tokenizer: Any, room: int) -> tuple[list[Prompt], int]:
    """Rows -> prompts of at most `room` tokens, and how many had to be cut for that: from the left, as lm-evaluation-harness does."""
    made, shortened = [], 0
    for row in rows:
        if template == "plain":
            ids = tuple(tokenizer(row.get("plain") or row["question"])["input_ids"])
        else:
            ids = render(row["question"], template, tokenizer)
        shortened += len(ids) > room
        made.append(Prompt(row["id"], ids[-room:], row))
    return made, shortened


def units(rows: Sequence[Any], k: int) -> list[Sequence[Any]]:
    """Questions that are sampled together."""
    size = max(1, SEQUENCES // k)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def unit_seed(seed: int, task: str, unit: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{task}/{unit}".encode()).digest()[:4], "big") >> 1


def generate(
    name: str, entry: Task, asked: Sequence[Prompt], draw: Draw, sampler: Sampler, grade: Grader, ledger: Ledger,
    step: Callable[[float], None],
) -> None:  # fmt: skip
    """Sample and grade the units that `ledger` does not hold; `step(x)`: so many more are finished. Raises rollout.RewardFailed."""
    for n, unit in enumerate(units(asked, draw.k)):
        if ledger.done[n]:
            continue
        sampling = Sampling(draw.k, draw.max_tokens, draw.temperature, unit_seed(draw.seed, name, n), draw.top_p)
        scorer: Any = Watched(grade, entry.until, lambda: step(1 / draw.k))
        ledger.add(
            [
                answered(
                    name, dict(g.prompt.problem), len(g.prompt.ids),
                    [sampled(cut(c, entry.until), s, dict(g.prompt.problem)) for c, s in zip(g.completions, g.scores, strict=True)],
                )
                for g in scored_rollout(sampler, unit, sampling, scorer)
            ]
        )  # fmt: skip
