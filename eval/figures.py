"""The figures of one task from its graded answers: accuracy strict and lenient, pass@k, maj@k, mean@k, truncation, tokens, by group.

A sample without a verdict counts as not right, as a user would count it, and their share is a figure of its own. Every accuracy
has its standard error and 95 % interval, both clustered by question. For log-likelihood tasks there is one sample, the chosen letter.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from eval.estimators import maj_at_k, mean_of_questions, pass_at_k, standard_error
from eval.intervals import bootstrap, largest_gap
from eval.records import Answered, Sampled
from rewards.math_answer import read, spelling
from rewards.math_eval import exact
from rewards.math_number import number
from rewards.math_tree import canonical

Verdict = Literal["strict", "lenient"]
LONG = 500  # characters; a longer answer (a program, a sentence) is voted on as it is spelled
VERDICTS: tuple[Verdict, ...] = ("strict", "lenient")


def figures(answered: Sequence[Answered]) -> dict[str, Any]:
    """All figures of a task, plain data. Raises ValueError for no questions, or questions with different numbers of samples.

    An accuracy is {"value", "se", "low", "high", "n"}; `by[column][group]` has the questions' number and both means, and
    `spread[column]` the largest gap between groups, corrected for having been picked.
    """
    k = samples_of(answered)
    right = {verdict: right_PG(answered, verdict) for verdict in VERDICTS}
    drawn = [s for a in answered for s in a.samples]
    tokens_P = [sum(s.tokens for s in a.samples) / k for a in answered]
    return {
        "task": answered[0].task,
        "questions": len(answered),
        "samples": k,
        **{verdict: _accuracies(answered, right[verdict], verdict) for verdict in VERDICTS},
        "no_verdict": sum(s.lenient is None for s in drawn) / len(drawn),
        "no_answer": sum(not s.answer for s in drawn) / len(drawn),
        "truncated": estimate([sum(s.truncated for s in a.samples) / k for a in answered]),
        "tokens": asdict(bootstrap(tokens_P)) | {"se": standard_error(tokens_P)},
        "tokens_total": sum(s.tokens for s in drawn),
        "prompt_tokens": sum(a.prompt_tokens for a in answered) / len(answered),
        "by": _by(answered, right),
        "spread": spread(answered, right["lenient"]),
    }


def samples_of(answered: Sequence[Answered]) -> int:
    """k, the same for every question."""
    if not answered:
        raise ValueError("no answered questions: there is nothing to report; was the evaluation finished?")
    k = len(answered[0].samples)
    for a in answered:
        if len(a.samples) != k or k == 0:
            raise ValueError(
                f"{a.task}, question {a.id}: {len(a.samples)} samples where {answered[0].id} has {k}; every question needs as many, "
                "at least one: finish the evaluation, or leave the question out"
            )
    return k


def right_PG(answered: Sequence[Answered], verdict: Verdict = "lenient") -> np.ndarray:
    """1.0 where a sample is right, one row a question; no verdict is 0.0."""
    samples_of(answered)
    return np.array([[float(getattr(s, verdict) == 1.0) for s in a.samples] for a in answered])


@lru_cache(maxsize=65536)
def vote(answer: str) -> Hashable:
    r"""What an answer is counted as in a majority vote: equal for answers that are the same number or formula; None has no vote.

    The gold plays no part. Letters of choices and words are counted by their spelling.

    >>> vote("0.5") == vote(r"\frac{1}{2}"), vote("(x+1)") == vote("1+x"), vote("  ")
    (True, True, None)
    """
    if not answer.strip():
        return None
    if (value := number(answer)) is not None:
        return value
    trees, _ = read(answer) if len(answer) <= LONG else ((), "")
    if not trees:
        return spelling(answer) or " ".join(answer.split())
    tree = trees[0]
    if tree[0] == "rel" and tree[1] == ("=",) and tree[2][0][0] == "sym":
        tree = tree[2][1]  # x = 5
    value = exact(tree)
    return canonical(tree) if value is None else value


def votes(samples: Sequence[Sampled]) -> list[Hashable]:
    return [vote(s.answer) for s in samples]


def powers(k: int) -> list[int]:
    """1, 2, 4, ... and k: the numbers of samples that pass@ and maj@ are shown for.

    >>> powers(6)
    [1, 2, 4, 6]
    """
    return [*(2**i for i in range(k.bit_length()) if 2**i < k), k]


def estimate(values_P: Sequence[float]) -> dict[str, Any]:
    found = asdict(mean_of_questions(np.clip(values_P, 0.0, 1.0)))
    return {"value": found.pop("value"), "se": standard_error(values_P), **found}


def _accuracies(answered: Sequence[Answered], right: np.ndarray, verdict: Verdict) -> dict[str, Any]:
    k = right.shape[1]
    found = {f"mean@{k}": estimate(right.mean(axis=1).tolist())}
    if k == 1:
        return found
    for j in powers(k)[1:]:
        found[f"pass@{j}"] = estimate([pass_at_k(k, int(c), j) for c in right.sum(axis=1)])
    if verdict == "lenient":  # a vote counts the answers that lenient extraction found
        ballots = [votes(a.samples) for a in answered]
        for j in powers(k)[1:]:
            won = [maj_at_k(b, row, j) for b, row in zip(ballots, right.tolist(), strict=True)]
            found[f"maj@{j}"] = estimate(won)
    return found


def members(answered: Sequence[Answered]) -> dict[str, dict[str, list[int]]]:
    """column -> group -> the positions of its questions, sorted by name; columns with at least two groups."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, a in enumerate(answered):
        for column, group in a.groups.items():
            found[column][str(group)].append(i)
    return {column: dict(sorted(groups.items())) for column, groups in sorted(found.items()) if len(groups) > 1}


def _by(answered: Sequence[Answered], right: Mapping[Verdict, np.ndarray]) -> dict[str, Any]:
    return {
        column: {
            group: {"questions": len(rows)} | {v: estimate(right[v][rows].mean(axis=1).tolist()) for v in VERDICTS}
            for group, rows in groups.items()
        }
        for column, groups in members(answered).items()
    }


def spread(answered: Sequence[Answered], right: np.ndarray) -> dict[str, Any]:
    """The largest gap of every column, and the standard deviation of the groups' means around their mean."""
    found: dict[str, Any] = {}
    for column, groups in members(answered).items():
        values = {group: right[rows].mean(axis=1) for group, rows in groups.items()}
        means = [float(v.mean()) for v in values.values()]
        centre = math.fsum(means) / len(means)
        deviation = math.sqrt(math.fsum((m - centre) ** 2 for m in means) / (len(means) - 1))
        found[column] = asdict(largest_gap(values)) | {"deviation": deviation}
    return found
