"""The learner: AdamW by hand, clipping, old and reference log-probs, the schedule, and what stops an update."""

import math
from dataclasses import replace

import pytest
import torch

from rl.batch import count, pack
from rl.learn import accelerator
from rl.loss import policy_loss
from rl.schedule import learning_rate
from tests import tiny

SHAPES = [(5, [3, 7]), (9, [4, 4]), (2, [6, 2]), (4, [5, 1])]
ADVANTAGES = [[1.0, -1.0], [0.5, -0.5], [-1.5, 1.5], [0.0, 2.0]]
MAX_TOKENS = 8


def weights_of(module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def spy(monkeypatch):
    """Every call of the loss: (row, log-probs as they went in)."""
    calls = []

    def recorded(name, logprobs_T, row, **options):
        calls.append((row, logprobs_T.detach().clone()))
        return policy_loss(name, logprobs_T, row, **options)

    monkeypatch.setattr("rl.learn.policy_loss", recorded)
    return calls


def test_three_adamw_updates_by_hand():
    """Loshchilov and Hutter's update (arXiv 1711.05101, algorithm 2), gradients clipped by their norm, with bias correction."""
    lr, (b1, b2), decay, limit = 3e-3, (0.8, 0.95), 0.1, 0.1
    config = tiny.config(learn={"lr": lr, "betas": (b1, b2), "weight_decay": decay, "max_grad_norm": limit})
    groups = tiny.groups(SHAPES)
    learner, mine = tiny.learner(config), tiny.policy()
    (row,) = pack(
        groups, ADVANTAGES, loss="grpo", counts=count(groups, ADVANTAGES), max_tokens=MAX_TOKENS, row_tokens=8192
    ).rows  # fmt: skip
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in mine.named_parameters()}
    for t in (1, 2, 3):
        metrics = learner.step(groups, ADVANTAGES, MAX_TOKENS)
        mine.zero_grad()
        loss, _ = policy_loss("grpo", mine(row, 1.0)[0], row, clip_low=0.2, clip_high=0.2, kl_coef=0.0, tis_cap=2.0)
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in mine.parameters()))
        assert norm > limit
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
        with torch.no_grad():
            for name, p in mine.named_parameters():
                g = p.grad * limit / norm
                m, v = moments[name]
                m.mul_(b1).add_(g, alpha=1 - b1)
                v.mul_(b2).add_(g * g, alpha=1 - b2)
                p.mul_(1 - lr * decay)
                p.sub_(lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8))
        for name, p in learner.policy.named_parameters():
            # An element whose gradient is rounding noise moves by up to lr all the same, hence the norm and a bound by lr.
            torch.testing.assert_close(p, mine.get_parameter(name), rtol=0, atol=lr / 20)
        assert tiny.distance(weights_of(learner.policy), weights_of(mine)) < 1e-6
    assert learner.updates == 3
    assert all(p.grad is None for p in learner.policy.parameters())


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_gradients_are_clipped_by_their_norm_and_the_norm_before_is_reported(limit):
    learner = tiny.learner(tiny.config(learn={"max_grad_norm": limit}))
    seen = []
    learner.optimizer.step = lambda: seen.append(tiny.gradients(learner.policy))
    metrics = learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in seen[0].values()))
    assert metrics["grad_norm"] > 0.1
    assert norm == pytest.approx(min(limit, metrics["grad_norm"]), rel=1e-4)


def test_one_update_a_rollout_needs_no_second_forward_pass(monkeypatch):
    calls = spy(monkeypatch)
    metrics = tiny.learner(tiny.config()).step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)
    ((row, _),) = calls
    assert row.old_T is None
    assert row.ref_T is None
    assert metrics["ratio"] == 1.0
    assert "kl" not in metrics


def test_old_log_probs_are_those_before_the_first_update(monkeypatch):
    calls = spy(monkeypatch)
    learner = tiny.learner(tiny.config(algorithm={"minibatches": 2, "inner_epochs": 2}, learn={"lr": 1e-2}))
    before = tiny.policy()
    metrics = learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)
    assert learner.updates == 4
    assert [len(row.spans) for row, _ in calls] == [4, 4, 4, 4]
    for row, _ in calls:
        with torch.no_grad():
            torch.testing.assert_close(row.old_T, before(row, 1.0)[0], rtol=0, atol=1e-6)
    distances = [float((logprobs_T - row.old_T).abs().max()) for row, logprobs_T in calls]
    assert distances[0] == 0.0  # ratio exactly 1 in the first update
    assert min(distances[1:]) > 1e-2  # and not in the later ones, of either minibatch
    assert metrics["ratio"] != pytest.approx(1.0, abs=1e-3)
    assert torch.equal(calls[0][0].old_T, calls[2][0].old_T)


def test_no_group_is_left_over_where_minibatches_do_not_divide(monkeypatch):
    calls = spy(monkeypatch)
    learner = tiny.learner(tiny.config(algorithm={"minibatches": 3}))
    learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)
    seen = [tuple(row.targets_T.tolist()) for row, _ in calls]
    assert sum(len(s) for s in seen) == 32
    assert learner.updates == 3


def test_kl_is_against_the_reference_which_stays_until_it_is_replaced(monkeypatch):
    calls = spy(monkeypatch)
    learner = tiny.learner(tiny.config(algorithm={"kl": 0.05}, learn={"lr": 1e-2}))
    groups, start = tiny.groups(SHAPES), weights_of(learner.reference)
    assert learner.step(groups, ADVANTAGES, MAX_TOKENS)["kl"] == 0.0  # the reference is the policy
    metrics = learner.step(groups, ADVANTAGES, MAX_TOKENS)
    row, logprobs_T = calls[-1]
    with torch.no_grad():
        ref_T = tiny.policy()(row, 1.0)[0]
    torch.testing.assert_close(row.ref_T, ref_T, rtol=0, atol=1e-6)
    k3 = float(((ref_T - logprobs_T).exp() - (ref_T - logprobs_T) - 1).mean())
    assert metrics["kl"] == pytest.approx(k3, rel=1e-4)
    assert k3 > 1e-3
    assert all(torch.equal(w, start[n]) for n, w in learner.reference.named_parameters())
    assert not any(p.requires_grad for p in learner.reference.parameters())
    learner.replace_reference()
    assert all(torch.equal(w, learner.policy.get_parameter(n)) for n, w in learner.reference.named_parameters())
    assert learner.step(groups, ADVANTAGES, MAX_TOKENS)["kl"] == 0.0
    assert not torch.equal(learner.reference.model.lm_head.weight, learner.policy.model.lm_head.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_a_number_stops_the_run_before_the_weights_change(bad):
    learner = tiny.learner(tiny.config(learn={"lr": 1e-2}))
    learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)
    before, moments = weights_of(learner.policy), repr(learner.optimizer.state_dict())
    with pytest.raises(FloatingPointError, match=r"update 2 is (nan|inf): the weights are untouched"):
        learner.step(tiny.groups(SHAPES), [[bad, 1.0], *ADVANTAGES[1:]], MAX_TOKENS)
    assert all(torch.equal(w, before[n]) for n, w in learner.policy.named_parameters())
    assert repr(learner.optimizer.state_dict()) == moments
    assert learner.updates == 1
    assert all(p.grad is None for p in learner.policy.parameters())  # or a run that went back would add to it
    assert learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)["grad_norm"] > 0


def test_gradients_that_accelerate_would_divide_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="gradient_accumulation_steps = 4: an update is cut into rows"):
        accelerator(tiny.config(), tmp_path)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_the_loss_is_normalised_by_the_unmasked_counts_of_the_whole_update(loss):
    """At ratio 1, no KL and no correction the loss is -sum w A: worked out here from lengths alone, over several rows."""
    config = tiny.config(algorithm={"loss": loss, "overlong": "mask", "importance_cap": 0.0}, learn={"row_tokens": 12})
    groups = tiny.groups(SHAPES, finish=lambda g: "stop")
    cut = replace(groups[2].completions[1], finish="length")
    groups[2] = replace(groups[2], completions=(groups[2].completions[0], cut))
    advantages = [[None, -1.0], *ADVANTAGES[1:]]
    kept = [(7, -1.0), (4, 0.5), (4, -0.5), (6, -1.5), (5, 0.0), (1, 2.0)]  # length, advantage
    expected = {
        "grpo": -sum(a for _, a in kept) / 6,
        "dapo": -sum(n * a for n, a in kept) / 27,
        "dr_grpo": -sum(n * a for n, a in kept) / (6 * MAX_TOKENS),
    }[loss]
    assert tiny.learner(config).step(groups, advantages, MAX_TOKENS)["loss"] == pytest.approx(expected, rel=1e-5)


def test_metrics_are_means_over_unmasked_tokens():
    groups = tiny.groups(SHAPES)
    advantages = [[None, -1.0], *ADVANTAGES[1:]]
    metrics = tiny.learner(tiny.config(learn={"row_tokens": 12})).step(groups, advantages, MAX_TOKENS)
    model, entropies, mismatches = tiny.plain(), [], []
    for group, adv_G in zip(groups, advantages, strict=True):
        with torch.no_grad():
            for c, a, lp, e in zip(group.completions, adv_G, *tiny.padded(model, group), strict=True):
                if a is not None:
                    entropies += e.tolist()
                    mismatches += (lp - torch.tensor(c.logprobs)).abs().tolist()
    assert metrics["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert metrics["mismatch"] == pytest.approx(sum(mismatches) / len(mismatches), rel=1e-5)
    assert metrics["mismatch_max"] == pytest.approx(max(mismatches), rel=1e-5)


def test_a_step_of_which_nothing_is_left_moves_nothing():
    learner = tiny.learner(tiny.config(learn={"lr": 1e-2}))
    before = weights_of(learner.policy)
    metrics = learner.step(tiny.groups(SHAPES), [[None, None]] * 4, MAX_TOKENS)
    assert metrics["loss"] == 0.0
    assert metrics["grad_norm"] == 0.0
    assert all(math.isfinite(v) for v in metrics.values())
    assert all(torch.equal(w, before[n]) for n, w in learner.policy.named_parameters())


def test_the_schedule_reaches_the_optimiser():
    config = tiny.config(
        run={"steps": 3},
        algorithm={"minibatches": 2},
        learn={"lr": 1e-3, "schedule": "linear", "warmup": 2, "final_ratio": 0.1},
    )
    learner = tiny.learner(config)
    rates = []
    real = learner.optimizer.step
    learner.optimizer.step = lambda: rates.append(learner.optimizer.param_groups[0]["lr"]) or real()
    reported = [learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)["lr"] for _ in range(4)]
    expected = [learning_rate(t, kind="linear", base=1e-3, total=6, warmup=2, final_ratio=0.1) for t in range(6)]
    assert rates == [*expected, expected[-1], expected[-1]]  # beyond the end: the last rate
    assert reported == [expected[1], expected[3], expected[5], expected[5]]


def test_a_rate_of_1e_6_moves_fp32_masters_where_bf16_would_stand_still():
    learner = tiny.learner(tiny.config(learn={"lr": 1e-6}))
    assert {p.dtype for p in learner.policy.parameters()} == {torch.float32}
    before = weights_of(learner.policy)
    learner.step(tiny.groups(SHAPES), ADVANTAGES, MAX_TOKENS)
    moved = coarse = total = 0
    for name, weight in learner.policy.named_parameters():
        step = weight.detach() - before[name]
        moved += int((step != 0).sum())
        coarse += int((before[name].bfloat16() + step.bfloat16() != before[name].bfloat16()).sum())
        total += weight.numel()
    assert moved > 0.9 * total
    assert coarse < 0.01 * total


def test_gradient_checkpointing_is_switched_on():
    config = tiny.config(model={"gradient_checkpointing": True})
    assert tiny.learner(config).policy.model.is_gradient_checkpointing
    assert not tiny.learner(tiny.config()).policy.model.is_gradient_checkpointing
