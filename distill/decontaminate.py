"""Traces out whose question, or whose text, is a test question: exactly, by words, or by 70 % of its word n-grams (eval/contamination.py).

A question and all its traces are one row and go together: a clean question with a trace that recites a test question tells that the
teacher knows the test. eval/contamination.py names for each test question one training row, the first with most of it; so rows are taken
out and it is asked again, until no test question is left of which the rest has a whole, or 70 % of its n-grams. That is the promise: the
figures of what is kept are all zero in these columns, however the n-grams of a test question are spread over rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.filter import Dropped
from distill.traces import Trace
from eval.contamination import MOST, SIZES, Contamination, contamination

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
    texts: dict[str, list[str]] = defaultdict(list)
    for trace in traces:
        texts[trace.problem] = texts[trace.problem] or [trace.question]
        texts[trace.problem].append(trace.text)
    rows = {problem: "\n".join(parts) for problem, parts in texts.items()}
    before = found = contamination(rows.items(), tests, sizes)
    reasons: dict[str, str] = {}
    while named := _named(found):
        reasons |= named
        for problem in named:
            del rows[problem]
        if not rows:
            found = [Contamination(c.task, c.n, c.questions, c.short, 0) for c in found]
            break
        found = contamination(rows.items(), tests, sizes)
    kept, dropped = list[Trace](), Dropped()
    for trace in traces:
        if trace.problem in reasons:
            dropped.add(trace, "test question", reasons[trace.problem])
        else:
            kept.append(trace)
    return Clean(kept, dropped, before, found)


def _named(found: Sequence[Contamination]) -> dict[str, str]:
    """Training questions that have too much of a test question, and what."""
    reasons: dict[str, str] = {}
    for c in found:
        for shared in c.found:
            if shared.whole or shared.share >= MOST:
                how = shared.whole or f"{shared.share:.0%} of {c.n}-grams"
                reasons.setdefault(shared.train, f"{c.task} {shared.id}: {how}")
    return reasons
