"""Multiple choice by log-likelihood, as lm-evaluation-harness 0.4 does it: the letter whose log-prob after the prompt is largest.

What is done as there: the continuation is " A", and its tokens are those that stand behind the prompt's when both are tokenised together;
its log-prob is the sum over these tokens; prompt and continuation are cut from the left to the model's context plus one, the last
token being target only. What differs is the order of work: a subject's prompts begin alike (description and examples), so they are laid
into packed rows where that beginning stands once (rl/attention.py), and all letters are read at the positions they share.
Axes: see rl/records.py; a question's choices are C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.answer import answered
from eval.last_layer import Packed, Reader
from eval.ledger import Ledger
from eval.records import Sampled
from eval.tasks import LETTERS
from rl.data import Row
from rl.records import Span

ROW_TOKENS = 8_192  # positions of a packed row
TEXTS = 256  # tokenised in one call
DIGITS = 6  # of the log-probs kept: what follows differs with the batch

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Query:
    """One token's log-prob: predicted at position `source` of its window."""

    question: int
    choice: int
    source: int
    target: int


@dataclass(frozen=True)
class Window:
    """Token ids of one forward pass, with what is read from it."""

    ids: Ids
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Piece:
    """Windows of one or more whole questions; their first `shared` tokens are the same in all of them."""

    shared: int
    windows: tuple[Window, ...]
    questions: tuple[int, ...]

    @property
    def positions(self) -> int:
        """As attention sees them: windows are padded to the longest."""
        return self.shared + len(self.windows) * (max(len(s.ids) for s in self.windows) - self.shared)


def continuations(contexts: Sequence[str], tokenizer: Any) -> list[Ids]:
    """The tokens of " A" to " D" behind a prompt; every prompt ends alike, so the first one shows them for all."""
    alone = tokenizer(contexts[0])["input_ids"]
    found = []
    for letter in LETTERS:
        whole = tokenizer(f"{contexts[0]} {letter}")["input_ids"]
        found.append(tuple(whole[len(alone) :]))
    if not all(found):
        raise ValueError(
            "this tokenizer has no tokens of their own for the letters: log-likelihood of the letters is not defined"
        )
    return found


def tokenised(texts: Sequence[str], tokenizer: Any) -> list[Ids]:
    """Token ids of each text. A few texts at a time and each id one object: the whole of MMLU is some 20 million tokens."""
    same: dict[int, int] = {}
    return [
        tuple(same.setdefault(token, token) for token in ids)
        for n in range(0, len(texts), TEXTS)
        for ids in tokenizer(list(texts[n : n + TEXTS]))["input_ids"]
    ]


def windows(question: int, context: Ids, choices: Sequence[Ids], limit: int) -> list[Window]:
    """What has to be computed for one question: choices that see the same tokens are read from one window.

    `limit`: the model's context. A choice of more than one token that had to be cut sees fewer tokens of the prompt than the others.

    >>> [s.ids for s in windows(0, (7, 8), [(1,), (2, 3)], 9)], [s.ids for s in windows(0, (7, 8), [(1,), (2, 3)], 2)]
    ([(7, 8, 2)], [(8, 2), (7, 8)])
    """
    made: list[tuple[Ids, list[Query]]] = []
    for c in sorted(
        range(len(choices)), key=lambda c: (-len(choices[c]), c)
    ):  # the longest first: shorter ones may be within it
        target = choices[c]
        ids = (context + target[:-1])[-limit:]
        at = next((i for i, (have, _) in enumerate(made) if have[: len(ids)] == ids), None)
        if at is None:
            at = len(made)
            made.append((ids, []))
        first = len(ids) - len(target)
        made[at][1].extend(Query(question, c, first + i, token) for i, token in enumerate(target))
    return [Window(ids, tuple(queries)) for ids, queries in made]


def pieces(contexts: Sequence[Ids], choices: Sequence[Ids], subjects: Sequence[str], limit: int) -> list[Piece]:
    """Questions of a subject side by side behind their common beginning; those that are cut share none and stand alone."""
    longest = max(map(len, choices))
    by_subject: dict[str, list[int]] = {}
    made: list[Piece] = []
    for i, (context, subject) in enumerate(zip(contexts, subjects, strict=True)):
        if len(context) + longest - 1 > limit:
            made += [Piece(len(s.ids) - 1, (s,), (i,)) for s in windows(i, context, choices, limit)]
        else:
            by_subject.setdefault(subject, []).append(i)
    for members in by_subject.values():
        ids = [contexts[i] for i in members]
        shared = min(_common(min(ids), max(ids)), min(map(len, ids)) - 1)
        members.sort(key=lambda i: (len(contexts[i]), i))  # of like length together: little padding
        made += _filled(members, contexts, choices, shared, limit)
    return made


def _common(one: Ids, other: Ids) -> int:
    """How many tokens they begin with alike; of the first and the last of sorted sequences: how many all do."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _filled(members: Sequence[int], contexts: Sequence[Ids], choices: Sequence[Ids], shared: int, limit: int) -> list[Piece]:
    """Pieces of at most ROW_TOKENS positions."""
    made: list[Piece] = []
    for i in members:
        own = tuple(windows(i, contexts[i], choices, limit))
        piece = Piece(shared, own, (i,))
        if made and shared:
            grown = Piece(shared, made[-1].windows + own, made[-1].questions + (i,))
            if grown.positions <= ROW_TOKENS:
                made[-1] = grown
                continue
        made.append(piece if shared else Piece(len(own[0].ids) - 1, own, (i,)))
    return made


def units(made: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that make one row: up to ROW_TOKENS positions, a question's pieces never apart."""
    rows: list[list[Piece]] = []
    room = 0
    for piece in made:
        same = bool(rows) and rows[-1][-1].questions == piece.questions
        if not same and (not rows or room < piece.positions):
            rows.append([])
            room = ROW_TOKENS
        rows[-1].append(piece)
        room -= piece.positions
    return rows


def packed(unit: Sequence[Piece]) -> tuple[Packed, list[Query]]:
    """The row that scores a unit, and its queries in the order of the row's targets."""
    ids: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    sources: list[int] = []
    queries: list[Query] = []
    for piece in unit:
        begin, shared = len(ids), piece.shared
        ids += piece.windows[0].ids[:shared]
        positions += range(shared)
        for window in piece.windows:
            start = len(ids)
            ids += window.ids[shared:]
            positions += range(shared, len(window.ids))
            spans.append(Span(start, len(ids), begin, begin + shared))
            sources += [q.source - shared + start if q.source >= shared else begin + q.source for q in window.queries]
            queries += window.queries
    return Packed(ids, positions, spans, sources, [q.target for q in queries]), queries


def scored(unit: Sequence[Piece], reader: Reader) -> dict[int, list[float]]:
    """Log-probs (nats) of each choice, by question."""
    row, queries = packed(unit)
    sums = {q.question: [0.0] * (1 + max(x.choice for x in queries)) for q in queries}
    for q, logprob in zip(queries, reader(row), strict=True):
        sums[q.question][q.choice] += logprob
    return {i: [round(value, DIGITS) for value in values] for i, values in sums.items()}


class Plan:
    """All questions of a task, cut into units. `cut`: how many prompts lost their beginning."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, limit: int) -> None:
        self.rows = rows
        texts = [row["plain"] for row in rows]
        self.contexts = tokenised(texts, tokenizer)
        choices = continuations(texts, tokenizer)
        self.cut = sum(len(c) + max(map(len, choices)) - 1 > limit for c in self.contexts)
        self.units = units(pieces(self.contexts, choices, [row["subject"] for row in rows], limit))
        self.limit = limit

    def ids(self) -> list[list[str]]:
        """The questions of each unit."""
        return [
            [self.rows[i]["id"] for i in dict.fromkeys(q for piece in unit for q in piece.questions)] for unit in self.units
        ]

    def work(self) -> list[float]:
        """Positions of each unit."""
        return [float(sum(piece.positions for piece in unit)) for unit in self.units]


def choose(task: str, plan: Plan, reader: Reader, ledger: Ledger, step: Callable[[float], None]) -> None:
    """Score the units that `ledger` does not hold; `step(x)`: so many positions more are done."""
    for n, (unit, work) in enumerate(zip(plan.units, plan.work(), strict=True)):
        if ledger.done[n]:
            continue
        choices = scored(unit, reader)
        ledger.add(
            [_answered(task, plan.rows[i], min(len(plan.contexts[i]), plan.limit), values) for i, values in choices.items()]
        )
        step(work)


def _answered(task: str, row: Mapping[str, Any], prompt_tokens: int, choices: Sequence[float]) -> Any:
    letter = LETTERS[max(range(len(choices)), key=choices.__getitem__)]  # of equals the first
    right = float(letter == row["gold"])
    reason = f"{'right' if right else 'wrong'}: {letter}" + ("" if right else f", gold {row['gold']}")
    return answered(task, dict(row), prompt_tokens, [Sampled(letter, 0, False, right, right, letter, reason)], choices)
