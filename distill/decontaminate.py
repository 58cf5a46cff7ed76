"""Traces out whose question, or whose text, is a test question: exactly, by words, or by 70 % of its word n-grams (eval/contamination.py).

A question and all its traces, with their system messages, are one row and go together: a clean question with a trace that recites a test
question tells that the teacher knows the test. Questions that share an id are rows of their own. The promise: of what is kept no test
question is there as a whole, and of none 70 % of the n-grams are, however they are spread over rows. So that few rows go for it, those go
that hold a test question's rarest n-grams, until less than 70 % are left: whoever holds it whole, or 70 % of it alone, is among them; a
turn of phrase that many rows share is left to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.filter import Dropped
from distill.traces import Trace
from eval.contamination import MOST, SIZES, Contamination, contamination, held_whole, holders

Tests = Mapping[str, Sequence[tuple[str, str]]]  # test set -> (id, question)


@dataclass(frozen=True)
class Clean:
    """What is left, what was taken out, and the figures before and after."""

    kept: list[Trace]
    dropped: Dropped
    before: list[Contamination]
    after: list[Contamination]


def decontaminate(traces: Sequence[Trace], tests: Tests, sizes: Sequence[int] = SIZES) -> Clean:
    """Raises ValueError for no test set, an empty one, or no traces."""
    if not tests:
        raise ValueError("no test set was named: nothing would be looked for")
    texts: dict[tuple[str, str], list[str]] = {}
    for trace in traces:
        parts = texts.setdefault((trace.problem, trace.question), [trace.question])
        parts += [part for part in (trace.system,) if part and part not in parts] + [trace.text]
    rows = [(problem, "\n".join(parts)) for (problem, _), parts in texts.items()]
    before, found = contamination(rows, tests, sizes), _reasons(rows, tests, sizes)
    reasons = {key: found[number] for number, key in enumerate(texts) if number in found}
    left = [row for number, row in enumerate(rows) if number not in found]
    after = contamination(left, tests, sizes) if left else [Contamination(c.task, c.n, c.questions, c.short, 0) for c in before]
    assert not any(c.most for c in after), "what held 70 % of a test question is out"
    kept, dropped = list[Trace](), Dropped()
    for trace in traces:
        if reason := reasons.get((trace.problem, trace.question)):
            dropped.add(trace, "test question", reason)
        else:
            kept.append(trace)
    return Clean(kept, dropped, before, after)


def _reasons(rows: Sequence[tuple[str, str]], tests: Tests, sizes: Sequence[int]) -> dict[int, str]:
    """Numbers of the rows that have too much of a test question, and what."""
    reasons: dict[int, str] = {}
    gone: np.ndarray = np.zeros(len(rows), dtype=bool)
    for task, number, n, holders_of in holders(rows, tests, sizes):
        left = sorted((held[~gone[held]] for held in holders_of), key=len)
        present = sum(len(held) > 0 for held in left)
        allowed = max(k for k in range(present + 1) if k == 0 or k / len(left) < MOST)
        if present == allowed:
            continue
        own, (id, question) = np.bincount(np.concatenate(left)) / len(left), tests[task][number]
        for row in np.unique(np.concatenate(left[: len(left) - allowed])).tolist():
            together = "" if own[row] >= MOST else f", {present / len(left):.0%} with other rows"
            how = held_whole(question, rows[row][1]) or f"{own[row]:.0%} of {n}-grams{together}"
            reasons[row] = f"{task} {id}: {how}"
            gone[row] = True
    return reasons
