"""The last layer at some positions alone: the same log-probs as the whole model, for every family, less work."""

from __future__ import annotations

import random

import pytest
import torch

from eval.last_layer import Packed, Reader, asked
from rl.policy import load_model
from rl.records import Span
from tests import tiny

CPU = torch.device("cpu")


def row(seed: int = 0) -> Packed:
    """Two prompts, one with two completions; read from the prompts' ends, from within one of them and from completions."""
    draw = random.Random(seed)
    ids = [draw.randrange(2, tiny.VOCABULARY) for _ in range(40)]
    spans = (Span(12, 20, 0, 12), Span(20, 23, 0, 12), Span(38, 40, 23, 38))
    positions = [*range(12), *range(12, 20), *range(12, 15), *range(15), 15, 16]
    sources = [11, 5, 19, 12, 22, 37, 39, 11]
    return Packed(ids, positions, spans, sources, [draw.randrange(2, tiny.VOCABULARY) for _ in sources])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_as_the_whole_model_gives_them(family: str) -> None:
    packed, path = row(), tiny.path(family)
    model = load_model(path, dtype=torch.float32, attention="sdpa")
    reader = Reader(path, CPU)
    assert reader.mlp is not None
    found = reader(packed)
    for source, target, logprob in zip(packed.sources, packed.targets, found, strict=True):
        span = next(s for s in packed.spans if s.start <= source < s.stop or s.prompt_start <= source < s.prompt_stop)
        seen = packed.ids[span.prompt_start : min(source + 1, span.prompt_stop)]
        seen = [*seen, *packed.ids[span.start : source + 1]] if source >= span.start else seen
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([seen])).logits[0, -1].log_softmax(-1)[target]
        assert logprob == pytest.approx(float(wanted), abs=1e-4)


def test_the_feed_forward_part_sees_what_is_asked_alone() -> None:
    reader, seen = Reader(tiny.path(), CPU), []
    assert reader.mlp is not None
    reader.mlp.inner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    trimmed = reader(row())
    assert seen == [7]  # of 40 positions
    reader.mlp.positions_N, reader.mlp = None, None
    assert reader(row()) == pytest.approx(trimmed, abs=1e-5)
    assert seen == [7, 40]


def test_what_a_position_attends_to() -> None:
    mask_NL = asked(row().spans, torch.tensor([5, 11, 19, 20, 39]), 40, 1).mask_NL
    wanted = [range(6), range(12), range(20), [*range(12), 20], range(23, 40)]
    assert [mask.nonzero().flatten().tolist() for mask in mask_NL] == [list(w) for w in wanted]
