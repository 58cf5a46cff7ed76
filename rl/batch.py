"""Groups -> packed rows. Tensors start here, and so do the global counts that a loss is normalised with.

In a row every group lays its prompt down once and its completions after it; each completion's tokens carry the positions that
follow the prompt. What a completion may attend to is said by its Span, not by a mask of pad ids: there is no padding at all.
Axes: see records.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rl.loss import AGGREGATE, token_weights
from rl.records import Batch, Completion, Group, Prompt, Row, Span


@dataclass(frozen=True)
class Sample:
    """One completion on its way into a row."""

    prompt: Prompt
    completion: Completion
    advantage: float
    weight: float  # of each of its tokens in the step's loss; 0 = masked


@dataclass(frozen=True)
class Counts:
    """What a step's loss is normalised by: unmasked samples and their tokens, over all ranks."""

    samples: int
    tokens: int


def kept(completion: Completion, advantage: float | None, overlong: str) -> bool:
    """Whether a completion carries gradient: it has a verdict, and was not cut off where `overlong` masks that."""
    return advantage is not None and not (overlong == "mask" and completion.truncated)


def count(groups: Iterable[Group], advantages: Iterable[Sequence[float | None]], overlong: str = "keep") -> Counts:
    """This rank's share of the counts; the caller adds up the ranks."""
    lengths = [
        c.tokens
        for group, adv_G in zip(groups, advantages, strict=True)
        for c, a in zip(group.completions, adv_G, strict=True)
        if kept(c, a, overlong)
    ]
    return Counts(len(lengths), sum(lengths))


def pack(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float | None]],
    *,
    loss: str,
    counts: Counts,
    max_tokens: int,
    row_tokens: int,
    overlong: str = "keep",
    ranks: int = 1,
) -> Batch:
    """Groups with their advantages (one list of G each) -> a Batch of rows of at most `row_tokens` positions.

    A group longer than a row is split over rows, its prompt repeated; a single completion longer than a row gets one of its own. For
    several ranks the rows are of nearly one length, and as many for each.
    """
    each: list[list[Sample]] = []  # of a group
    for group, adv_G in zip(groups, advantages, strict=True):
        samples = []
        for c, a in zip(group.completions, adv_G, strict=True):
            weight = 0.0
            if kept(c, a, overlong):
                weight = token_weights(
                    AGGREGATE[loss], [c.tokens], samples=counts.samples, tokens=counts.tokens, max_tokens=max_tokens
                )[0]
            samples.append(Sample(group.prompt, c, a or 0.0, weight))
        each.append(samples)
    rows = _fill([piece for samples in each for piece in _split(samples, row_tokens)], row_tokens)
    if ranks > 1:
        rows = _spread(each, rows, row_tokens, ranks)
    return Batch(tuple(_row(r) for r in rows), counts.samples, counts.tokens)


def _size(piece: Sequence[Sample]) -> int:
    return len(piece[0].prompt.ids) + sum(s.completion.tokens for s in piece)


def _split(samples: list[Sample], row_tokens: int) -> list[list[Sample]]:
    pieces: list[list[Sample]] = []
    for sample in samples:
        if pieces and _size(pieces[-1]) + sample.completion.tokens <= row_tokens:
            pieces[-1].append(sample)
        else:
            pieces.append([sample])
    return pieces


def _fill(pieces: list[list[Sample]], row_tokens: int) -> list[list[list[Sample]]]:
    """First-fit decreasing: few rows, each within its budget, in an order that depends on the sizes alone."""
    rows: list[list[list[Sample]]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=_size, reverse=True):
        size = _size(piece)
        at = next((i for i, free in enumerate(room) if free >= size), None)
        if at is None:
            rows.append([piece])
            room.append(row_tokens - size)
        else:
            rows[at].append(piece)
            room[at] -= size
    return rows


def _spread(each: list[list[Sample]], rows: list[list[list[Sample]]], row_tokens: int, ranks: int) -> list[list[list[Sample]]]:
    """The same samples over a multiple of `ranks` rows, each piece into the row that has least; `rows` where that does not fit."""
    number = -(-len(rows) // ranks) * ranks
    pieces = [piece for row in rows for piece in row]
    if len(pieces) < number:  # only then smaller pieces: each has its prompt
        most = -(-sum(map(_size, pieces)) // number)
        pieces = [piece for samples in each for piece in _split(samples, most + len(samples[0].prompt.ids))]
    even: list[list[list[Sample]]] = [[] for _ in range(number)]
    load = [0] * number
    for piece in sorted(pieces, key=_size, reverse=True):
        least = load.index(min(load))
        even[least].append(piece)
        load[least] += _size(piece)
    fits = max(load) <= max([row_tokens, *map(_size, pieces)])
    return [row for row in even if row] if fits else rows


def _row(pieces: list[list[Sample]]) -> Row:
    ids: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    sources: list[int] = []
    targets: list[int] = []
    samples: list[Sample] = []
    for piece in pieces:
        prompt_start, prompt = len(ids), piece[0].prompt.ids
        ids += prompt
        positions += range(len(prompt))
        prompt_stop = len(ids)
        for sample in piece:
            tokens = sample.completion.ids
            start = len(ids)
            # The first token is predicted at the prompt's last position, each further one at its predecessor's.
            sources += [prompt_stop - 1, *range(start, start + len(tokens) - 1)]
            targets += tokens
            ids += tokens
            positions += range(len(prompt), len(prompt) + len(tokens))
            spans.append(Span(start, len(ids), prompt_start, prompt_stop))
            samples.append(sample)
    lengths_S = torch.tensor([s.completion.tokens for s in samples])

    def spread(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32).repeat_interleave(lengths_S)

    return Row(
        ids_L=torch.tensor(ids),
        positions_L=torch.tensor(positions),
        spans=tuple(spans),
        sources_T=torch.tensor(sources),
        targets_T=torch.tensor(targets),
        samples_T=torch.arange(len(samples)).repeat_interleave(lengths_S),
        lengths_S=lengths_S,
        advantages_T=spread(s.advantage for s in samples),
        sampled_T=torch.tensor([x for s in samples for x in s.completion.logprobs], dtype=torch.float32),
        weights_T=spread(s.weight for s in samples),
        experts_LMK=_experts(pieces),
    )


def _experts(pieces: list[list[Sample]]) -> torch.Tensor | None:
    """The sampler's experts at each position of a row; -1 where it told none. None where it told nothing at all.

    A prompt stands in the row once: its experts are those of the first of its samples that has some.
    """
    shapes = {c.experts.shape[1:] for piece in pieces for s in piece if (c := s.completion).experts is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise ValueError(f"samples of one row name experts of different models: {sorted(shapes)} (layers, experts of a token)")
    shape = next(iter(shapes))
    parts = []
    for piece in pieces:
        prompt = len(piece[0].prompt.ids)
        told = [_told(s, prompt, shape) for s in piece]
        first = next((i for i, s in enumerate(piece) if s.completion.experts is not None), 0)
        parts += [told[first][:prompt], *(t[prompt:] for t in told)]
    return torch.from_numpy(np.concatenate(parts))


def _told(sample: Sample, prompt: int, shape: tuple[int, ...]) -> np.ndarray:
    """A sample's experts by position, [prompt + tokens, ...]: the last token never went through the sampler."""
    positions = prompt + sample.completion.tokens
    told: np.ndarray = np.full((positions, *shape), -1, np.int16)
    experts = sample.completion.experts
    if experts is not None:
        if len(experts) != positions - 1:
            raise ValueError(
                f"a sample of {prompt} + {sample.completion.tokens} tokens names experts of {len(experts)} positions, not of "
                f"{positions - 1}: they do not belong to it"
            )
        told[:-1] = experts
    return told


def with_logprobs(row: Row, *, old_T: torch.Tensor | None = None, ref_T: torch.Tensor | None = None) -> Row:
    """The row with the learner's log-probs before the update and the reference model's, where they are needed."""
    return replace(row, old_T=old_T if old_T is not None else row.old_T, ref_T=ref_T if ref_T is not None else row.ref_T)
