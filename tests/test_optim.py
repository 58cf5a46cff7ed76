"""AdamW with small moments: equal to torch's where nothing is rounded, unbiased where it is; what bf16 weights lose."""

import copy
import dataclasses

import pytest
import torch

from rl import optim
from rl.config import Learn
from rl.optim import SmallAdamW, make_optimizer, pack, unpack


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Embedding(64, 32), torch.nn.Flatten(), torch.nn.Linear(96, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)
    )


def batches(steps):
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (64, 3), generator=draw) for _ in range(steps)]


def trained(model, optimizer, steps):
    """Losses of learning (a b + c) mod 64."""
    losses = []
    for x in batches(steps):
        loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] * x[:, 1] + x[:, 2]) % 64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def learn(**changes):
    return dataclasses.replace(Learn(lr=3e-3, weight_decay=0.01, betas=(0.9, 0.99)), **changes)


def test_offloaded_moments_give_torchs_own_update_bit_for_bit(monkeypatch):
    monkeypatch.setattr(optim, "SLICE", 700)  # several slices a matrix, the last one short
    ours, theirs = net(), net()
    trained(ours, make_optimizer(ours.parameters(), learn(offload=True)), 5)
    trained(theirs, make_optimizer(theirs.parameters(), learn()), 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_eight_bits_learn_as_well_as_32():
    losses = {}
    for kind in ("adamw", "adamw8"):
        model = net()
        losses[kind] = trained(model, make_optimizer(model.parameters(), learn(optimizer=kind)), 300)
    ours, theirs = (sum(losses[k][-50:]) / 50 for k in ("adamw8", "adamw"))
    start = losses["adamw"][0]
    assert theirs < 0.9 * start  # it learned something
    assert abs(ours - theirs) < 0.02 * (start - theirs)


def test_eight_bits_are_two_bytes_a_parameter():
    model = torch.nn.Linear(1024, 256)
    optimizer = make_optimizer(model.parameters(), learn(optimizer="adamw8"))
    trained_bytes = 0
    model(torch.randn(3, 1024)).sum().backward()
    optimizer.step()
    for value in optimizer.state[model.weight].values():
        trained_bytes += value.numel() * value.element_size()
    assert trained_bytes == 1024 * 256 * 2 + 2 * 256 * 4 * 4 + 4  # codes, maxima of 4 blocks a row, the counter
    assert optimizer.state[model.bias]["exp_avg"].dtype == torch.float32  # a vector


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_is_unbiased_and_within_a_code(signed):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 300, generator=draw) * torch.logspace(-3, 0, 300)
    x = x if signed else x.abs()
    mean = torch.zeros_like(x)
    for _ in range(400):
        codes, top = pack(x, signed, draw)
        assert (codes.shape, top.shape) == (x.shape, (4, 2))
        again = unpack(codes, top, signed)
        mean += again / 400
        levels = 127 if signed else 255
        ceiling = top.repeat_interleave(optim.BLOCK, -1)[:, :300]
        code = (x.abs() / ceiling) ** (1 / 3) * levels
        gap = ((code.floor() + 1) ** 3 - code.floor() ** 3) / levels**3 * ceiling
        assert ((again - x).abs() <= gap * 1.01 + 1e-12).all()
    assert ((mean - x).abs() <= gap * 0.2 + 1e-12).all()  # 0.5 gap / sqrt(400) is one standard error


def test_what_is_zero_stays_zero_and_a_second_moment_above_zero_does_not_become_it():
    draw = torch.Generator().manual_seed(0)
    x = torch.zeros(2, 600)
    x[0, :300] = 1e-12
    x[0, 0] = 1.0
    again = unpack(*pack(x, False, draw), False)
    assert ((again > 0) == (x > 0)).all()
    again = unpack(*pack(-x, True, draw), True)
    assert (again[x == 0] == 0).all()
    assert (again <= 0).all()


def test_the_draw_depends_on_step_and_parameter_alone():
    """A run that is resumed with copies of weights and moments goes on bit for bit, whatever else drew random numbers."""
    model = net()
    optimizer = make_optimizer(model.parameters(), learn(optimizer="adamw8"))
    trained(model, optimizer, 3)
    other = copy.deepcopy(model)
    resumed = make_optimizer(other.parameters(), learn(optimizer="adamw8"))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        resumed.state[b] = {name: value.clone() for name, value in optimizer.state[a].items()}
    torch.manual_seed(99)
    trained(other, resumed, 2)
    trained(model, optimizer, 2)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_what_is_trained_is_in_the_optimiser():
    model = net()
    model[0].requires_grad_(False)
    for kind in (learn(), learn(optimizer="adamw8")):
        assert len(make_optimizer(model.parameters(), kind).param_groups[0]["params"]) == 4
    assert not isinstance(make_optimizer(model.parameters(), learn()), SmallAdamW)


def test_pure_bf16_loses_nearly_every_update_at_a_rate_of_1e_6():
    """Weights of size 0.02 in bf16 lie 6e-5 to 1.2e-4 apart: a step of 1e-6 is rounded away, and fifty of them too."""
    rate = learn(lr=1e-6, weight_decay=0.0)
    moved, along = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = net()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(0))
        model.to(dtype)
        before = [p.detach().clone() for p in model.parameters()]
        trained(model, make_optimizer(model.parameters(), rate), 50)
        steps = [(p.detach() - b).float() for p, b in zip(model.parameters(), before, strict=True)]
        moved[dtype] = sum(int((s != 0).sum()) for s in steps) / sum(s.numel() for s in steps)
        along[dtype] = torch.cat([s.flatten() for s in steps])
    assert moved[torch.float32] > 0.99
    assert moved[torch.bfloat16] < 0.1
    kept = float(along[torch.bfloat16] @ along[torch.float32] / along[torch.float32].square().sum())
    assert kept < 0.5  # of the movement, what is left of it in bf16
