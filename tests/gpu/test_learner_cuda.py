"""The learner's parts as a GPU runs them: inductor's layers, compiled passes over logits, shared heads, small moments, 4-bit bases."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from rl import adapters
from rl.attention import PACKED, _shared_heads
from rl.batch import Counts, pack
from rl.config import Learn, Lora
from rl.logprobs import Cut, token_logprobs
from rl.optim import make_optimizer
from rl.policy import Policy, graphs_compiled, load_model
from tests import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPES = [(20, [30, 44, 17]), (33, [60, 5]), (9, [71, 12, 40, 8])]


def rows(seed=0):
    shapes = [(prompt + seed, [n + 3 * seed for n in lengths]) for prompt, lengths in SHAPES]
    groups = tiny.groups(shapes, seed)
    advantages = [[1.0] * len(g.completions) for g in groups]
    batch = pack(groups, advantages, loss="dapo", counts=Counts(9, 287), max_tokens=80, row_tokens=150)
    return [row.to("cuda") for row in batch.rows]


def scored(policy, made):
    policy.zero_grad()
    found = []
    for row in made:
        with torch.autocast("cuda", torch.bfloat16):
            logprobs_T, entropy_T = policy(row, 0.8)
        (logprobs_T * torch.linspace(-1, 2, len(logprobs_T), device="cuda")).sum().backward()
        found += [logprobs_T.detach(), entropy_T]
    return torch.cat(found), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize(("lean", "share"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_compiled_layers_equal_plain_ones_up_to_bf16(lean, share):
    torch._dynamo.reset()
    model = tiny.make(tiny._config("qwen3"), num_hidden_layers=4, layer_types=["full_attention"] * 4)
    model.set_attn_implementation(PACKED)
    policy = Policy(model.to("cuda")).train()
    if share:
        policy.checkpoint_layers(share)
    want = scored(policy, rows())
    policy.compile_layers(lean=lean)
    before = graphs_compiled()
    got = scored(policy, rows())
    once = graphs_compiled()
    scored(policy, rows(seed=1))
    assert once - before <= 3  # the layers, the statistics, the slopes
    assert graphs_compiled() == once  # other rows, no new graph
    torch.testing.assert_close(got[0], want[0], atol=0.2, rtol=0.02)
    assert torch.nn.functional.cosine_similarity(got[1], want[1], dim=0) > 0.999


def test_how_heads_are_shared_is_known():
    found = _shared_heads(torch.device("cuda"))
    print(f"heads: {found}")
    assert found in ("option", "native", "repeat")


@pytest.mark.parametrize("cut", [Cut(), Cut(0.7, top_k=50, top_p=0.9)], ids=str)
def test_compiled_passes_over_logits_equal_plain_ones(cut):
    draw = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(3000, 256, device="cuda", dtype=torch.bfloat16, generator=draw)
    weight = torch.randn(20_000, 256, device="cuda", generator=draw) * 0.2
    targets = torch.randint(0, 20_000, (3000,), device="cuda", generator=draw)
    found = []
    for compiled in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprobs_T, entropy_T = token_logprobs(h, w, None, targets, cut, compiled)
        (logprobs_T * torch.linspace(-1, 1, 3000, device="cuda")).sum().backward()
        found.append((logprobs_T.detach(), entropy_T, h.grad.float(), w.grad))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm()


@pytest.mark.parametrize("kind", ["adamw", "adamw8"])
def test_moments_in_the_hosts_memory_give_the_same_update(kind):
    weights = []
    for offload in (False, True):
        model = tiny.policy().to("cuda")
        optimizer = make_optimizer(model.parameters(), dataclasses.replace(Learn(lr=1e-3), optimizer=kind, offload=offload))
        for seed in range(3):
            scored(model, rows(seed))
            optimizer.step()
        moments = [v for s in optimizer.state.values() for n, v in s.items() if n.startswith("exp_avg")]
        assert all(v.is_cuda != offload for v in moments)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_qlora_trains_adapters_over_four_bits():
    device = torch.device("cuda")
    model = load_model(tiny.path(), dtype=torch.bfloat16, quantization=adapters.four_bits(device))
    adapters.attach(model, Lora(rank=4), tiny.path())
    policy = Policy(model).to(device).train()
    found, _ = scored(policy, rows())
    assert found.isfinite().all()
    assert {n for n, p in policy.named_parameters() if p.grad is not None} == {
        n for n, _ in policy.named_parameters() if "lora_" in n
    }
    sent = dict(policy.weights(torch.bfloat16))
    assert {n: w.shape for n, w in sent.items()} == {n: p.shape for n, p in tiny.policy().model.named_parameters()}
    plain = Policy(load_model(tiny.path(), dtype=torch.bfloat16)).to(device)
    with torch.no_grad():
        for name, p in plain.model.named_parameters():
            p.copy_(sent[name])
        with torch.autocast("cuda", torch.bfloat16):
            ours, theirs = policy(rows()[0], 0.8)[0], plain(rows()[0], 0.8)[0]
    assert (ours - theirs).abs().mean() < 0.05
