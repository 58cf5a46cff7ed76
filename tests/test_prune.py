"""A student's start: whole, it is the model; smaller, it has what mattered most."""

from __future__ import annotations

import pytest
import torch

from recipes.nano.prune import importance, prune
from rl.policy import ROOT, load_model, load_tokenizer
from rl.prompts import render

BASE = str(ROOT / "recipes/nano/base")


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    return [
        render(f"Ben has {n} pens and buys {n + 2} more. How many are that?", "r1_zero", load_tokenizer(BASE)) for n in (3, 14)
    ]


@torch.no_grad()
def test_nothing_taken_away_it_is_the_model(prompts: list[tuple[int, ...]]) -> None:
    model = load_model(BASE, dtype=torch.float32, attention="sdpa")
    ids = torch.tensor([prompts[0]])
    whole = prune(model, prompts, [0, 1, 2, 3], 384)
    assert torch.equal(whole(input_ids=ids).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_the_neurons_that_are_kept_are_the_largest(prompts: list[tuple[int, ...]]) -> None:
    model = load_model(BASE, dtype=torch.float32, attention="sdpa")
    small = prune(model, prompts, [0, 3], 100)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    size = importance(model, prompts)[3]
    kept = size.topk(100).indices.sort().values
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight[kept])
    assert torch.equal(small.model.layers[1].self_attn.q_proj.weight, model.model.layers[3].self_attn.q_proj.weight)
    assert size[kept].min() >= size.sort().values[-101]
    with pytest.raises(ValueError, match="has 4 layers"):
        prune(model, prompts, [0, 4], 100)
