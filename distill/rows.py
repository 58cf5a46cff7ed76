"""Traces -> token ids -> packed rows, so many an update. Nothing is cut: a trace that does not fit is dropped with a counted reason.

A sample is the prompt's ids (rl/prompts.py, as a sampler would be asked) and those of the trace and the end-of-sequence token; the loss is
on the latter alone. An update learns from exactly `batch` samples in the order of rl.data.Order (epoch after epoch, each a permutation of
its own, no remainder dropped); they are packed into the same number of rows in every update, a multiple of the ranks, longest first into
the emptiest row. So an update is one optimiser step over a fixed number of rows, whatever the lengths, and on however many ranks.
What all prompts begin with (the template) stands once in a row and every sample attends to it: the same loss for less work.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.filter import Dropped
from distill.traces import CLOSE, OPEN, Trace
from rl.data import Order
from rl.prompts import render

IGNORED = -100  # of labels: no loss there


@dataclass(frozen=True)
class Samples:
    """All samples in one array: sample i is ids[starts[i]:starts[i + 1]], the first prompts[i] of them its prompt."""

    ids: np.ndarray  # int32
    starts: np.ndarray  # int64, one more than samples
    prompts: np.ndarray  # int32
    shared: int = (
        0  # tokens with which all prompts begin, at least one less than the shortest prompt: these stand once in a row
    )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def targets(self) -> int:
        """Tokens with a loss, all samples together."""
        return int(self.lengths.sum() - self.prompts.sum())

    def sample(self, i: int) -> tuple[list[int], int]:
        """Ids, and how many of them are the prompt's."""
        return self.ids[self.starts[i] : self.starts[i + 1]].tolist(), int(self.prompts[i])


def encode(traces: Sequence[Trace], tokenizer: Any, template: str, context: int, prompt: int) -> tuple[Samples, Dropped]:
    """Samples of at most `context` tokens, their prompts of at most `prompt`. Raises ValueError when none is left, or a text is none."""
    dropped, flat, lengths, prompts = Dropped(), list[np.ndarray](), list[int](), list[int]()
    opened = _opened(tokenizer, template)
    for trace in traces:
        _check(trace)
        if trace.system and template != "chat":
            dropped.add(trace, "system message", f"template {template!r} has no place for one")
            continue
        asked = _prompt(trace, template, tokenizer)
        ids = [*asked, *tokenizer(_completion(trace.text, template, opened), add_special_tokens=False)["input_ids"]]
        ids.append(tokenizer.eos_token_id)
        if len(asked) > prompt or len(ids) > context:
            what = f"a prompt of {len(asked)} tokens, more than {prompt}" if len(asked) > prompt else f"{len(ids)} tokens"
            dropped.add(trace, "over-long", f"{what}; data.context = {context}")
            continue
        flat.append(np.array(ids, np.int32))
        lengths.append(len(ids))
        prompts.append(len(asked))
    if not flat:
        raise ValueError(f"no trace is left to learn from: all {len(traces)} were dropped ({told(dropped)})")
    shared = _shared([ids[:n] for ids, n in zip(flat, prompts, strict=True)])
    return Samples(np.concatenate(flat), np.cumsum([0, *lengths]), np.array(prompts, np.int32), shared), dropped


def _check(trace: Trace) -> None:
    for name in ("system", "question", "text"):
        try:
            str(getattr(trace, name)).encode()
        except UnicodeEncodeError as error:  # a tokenizer would not take it
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(
                f"trace {trace.id!r}: its {name} has half of a character ({half} alone, at {error.start}): mend it or remove the trace"
            ) from None


def _shared(prompts: Sequence[np.ndarray]) -> int:
    """The last token of each prompt stays its own: it predicts the trace's first."""
    first, common = prompts[0], min(map(len, prompts)) - 1
    for other in prompts:
        differ = np.flatnonzero(first[:common] != other[:common])
        common = int(differ[0]) if len(differ) else common
    return common


def told(dropped: Dropped) -> str:
    """`12 wrong, 3 over-long`."""
    return ", ".join(f"{n:,} {name}" for name, n in dropped.counts.most_common()) or "none"


def updates(samples: int, batch: int, epochs: float) -> int:
    """Updates of a run; the last one is filled from the epoch after it. Raises ValueError where a batch is more than there is."""
    if samples < batch:
        raise ValueError(
            f"{samples} traces are fewer than learn.batch = {batch}: an update would have some of them twice; lower it to at most {samples}"
        )
    return max(1, -(-round(samples * epochs) // batch))


def plan(samples: Samples, count: int, batch: int, row_tokens: int, ranks: int, seed: int) -> tuple[list[list[int]], int]:
    """(rows, rows of an update): the samples of each row, update after update; rows of an update are consecutive.

    Raises ValueError for a sample that is longer than a row. At most `row_tokens` positions a row; every row has a sample.
    """
    lengths: np.ndarray = samples.lengths - samples.shared
    row_tokens -= samples.shared
    if lengths.max() > row_tokens:
        raise ValueError(f"a sample of {lengths.max()} tokens does not fit into learn.row_tokens = {row_tokens}")
    order = Order(len(lengths), seed)
    taken = [order.take(update * batch, batch) for update in range(count)]
    most = max(_rows_needed([int(lengths[i]) for i in chosen], row_tokens) for chosen in taken)
    rows = -(-most // ranks) * ranks
    if rows > batch:
        raise ValueError(f"learn.batch = {batch} is less than a row for each of {ranks} ranks: raise it to at least {rows}")
    packed: list[list[int]] = []
    for chosen in taken:
        packed += _spread(chosen, lengths, rows, row_tokens)
    return packed, rows


def _rows_needed(lengths: list[int], room: int) -> int:
    """By longest first into the emptiest of so many rows: the least number for which that fits."""
    rows = -(-sum(lengths) // room)
    while not _fits(lengths, rows, room):
        rows += 1
    return rows


def _fits(lengths: list[int], rows: int, room: int) -> bool:
    heap = [0] * rows
    for length in sorted(lengths, reverse=True):
        if heap[0] + length > room:
            return False
        heapq.heapreplace(heap, heap[0] + length)
    return True


def _spread(samples: Sequence[int], lengths: np.ndarray, rows: int, room: int) -> list[list[int]]:
    heap: list[tuple[int, int]] = [(0, row) for row in range(rows)]
    made: list[list[int]] = [[] for _ in range(rows)]
    for i in sorted(samples, key=lambda i: (-int(lengths[i]), i)):
        used, row = heap[0]
        assert used + int(lengths[i]) <= room, "more rows never need more room"
        made[row].append(i)
        heapq.heapreplace(heap, (used + int(lengths[i]), row))
    return made


def _prompt(trace: Trace, template: str, tokenizer: Any) -> tuple[int, ...]:
    """As a sampler is asked; general data, and rows with a system message, without the one that asks for reasoning."""
    if template == "chat" and (trace.system or trace.kind == "general"):
        first = [{"role": "system", "content": trace.system}] if trace.system else []
        turns = [*first, {"role": "user", "content": trace.question}]
        return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])
    return render(trace.question, template, tokenizer)


def _opened(tokenizer: Any, template: str) -> bool:
    """Whether the chat template has opened <think> already."""
    return template == "chat" and tokenizer.decode(render("?", template, tokenizer)).rstrip().endswith(OPEN)


def _completion(text: str, template: str, opened: bool) -> str:
    """The trace as it follows the prompt. R1-Zero's ends in "Assistant:", so a space comes first; a chat template's in a line break.

    Where the prompt has opened the reasoning, a text without any closes it first: the answer must not stand inside.
    """
    if template == "chat":
        text = text.lstrip()
        if not opened:
            return text
        return text.removeprefix(OPEN).lstrip("\n") if CLOSE in text else f"\n{CLOSE}\n\n{text}"
    return text if text[:1].isspace() else " " + text
