"""Losses by hand: two samples, five tokens, numbers that are written out; every gradient is an analytic one.

          sample 0 (A = 1)    sample 1 (A = -2)
ratio     1.5   0.5           1.1   0.5   1.5       exp(lp - old)
clip 0.2, 0.28:
policy    -1.28 -0.5          2.2   1.6   3.0       -min(r A, clip(r) A)
d/d lp    0     -0.5          2.2   0     3.0       -r A, or 0 where clipped: once above, once below
"""

import dataclasses
import math

import pytest
import torch

from rl.loss import AGGREGATE, LOSSES, kl_k3, policy_loss, token_weights
from rl.records import Row

RATIO = [1.5, 0.5, 1.1, 0.5, 1.5]
OLD = [-1.0, -2.0, -0.5, -3.0, -0.25]
LOGPROBS = [old + math.log(ratio) for old, ratio in zip(OLD, RATIO, strict=True)]
POLICY = [-1.28, -0.5, 2.2, 1.6, 3.0]
POLICY_GRAD = [0.0, -0.5, 2.2, 0.0, 3.0]
LENGTHS = [2, 3]
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
OFF = {"kl_coef": 0.0, "tis_cap": None}
SAMPLE = [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6]  # 1 / (2 samples * length)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def row(weights, *, old=OLD, sampled=OLD, ref=None, advantages=(1.0, 1.0, -2.0, -2.0, -2.0), lengths=tuple(LENGTHS)):
    """A row of which a loss reads the token axis; what only the model reads is empty."""
    none = torch.empty(0, dtype=torch.int64)
    lengths_S = torch.tensor(lengths)
    return Row(
        ids_L=none,
        positions_L=none,
        spans=(),
        sources_T=none,
        targets_T=none,
        samples_T=torch.repeat_interleave(torch.arange(len(lengths)), lengths_S),
        lengths_S=lengths_S,
        advantages_T=f64(advantages),
        sampled_T=f64(sampled),
        weights_T=f64(weights),
        old_T=None if old is None else f64(old),
        ref_T=None if ref is None else f64(ref),
    )


def run(name, a_row, *, logprobs=LOGPROBS, **settings):
    """Loss, gradient by the log-probs, metrics as floats."""
    logprobs_T = f64(logprobs).requires_grad_()
    loss, metrics = policy_loss(name, logprobs_T, a_row, **{**CLIP, **OFF, **settings})
    assert loss.shape == ()
    assert all(m.shape == () and not m.requires_grad for m in metrics.values())
    (grad_T,) = torch.autograd.grad(loss, logprobs_T)
    return loss.item(), grad_T.tolist(), {key: m.item() for key, m in metrics.items()}


def near(expected):
    return pytest.approx(expected, abs=1e-12, rel=0)


def weighted(weights, values):
    return [w * v for w, v in zip(weights, values, strict=True)]


# The policy terms


def test_the_table_above_token_by_token():
    terms = LOSSES["grpo"](
        f64(LOGPROBS), f64(OLD), f64([1, 1, -2, -2, -2]), torch.tensor([0, 0, 1, 1, 1]), torch.tensor(LENGTHS), **CLIP
    )
    assert terms.ratio_T.tolist() == near(RATIO)
    assert terms.loss_T.tolist() == near(POLICY)
    assert terms.low_T.tolist() == [False, False, False, True, False]
    assert terms.high_T.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "weights", "loss"),
    [
        ("grpo", SAMPLE, -1.78 / 4 + 6.8 / 6),  # mean of the samples' means: (-0.89 + 2.2666...) / 2
        ("dapo", [1 / 5] * 5, 5.02 / 5),
        ("dr_grpo", [1 / 20] * 5, 5.02 / 20),  # 2 samples * a budget of 10
    ],
)
def test_clipped_losses_by_hand(name, weights, loss):
    per_sample = token_weights(AGGREGATE[name], LENGTHS, samples=2, tokens=5, max_tokens=10)
    assert [w for w, length in zip(per_sample, LENGTHS, strict=True) for _ in range(length)] == near(weights)
    got, grad, metrics = run(name, row(weights))
    assert got == near(loss)
    assert grad == near(weighted(weights, POLICY_GRAD))
    assert metrics == near(
        {"tokens": 5, "ratio": 5.1, "clip_low": 1, "clip_high": 1, "tis": 5, "mismatch_abs": 0, "mismatch_max": 0}
    )


def test_gspo_by_hand():
    # s = sqrt(1.5 * 0.5) = sqrt(0.75) and cbrt(1.1 * 0.5 * 1.5) = cbrt(0.825): neither is clipped
    s0, s1 = 0.8660254037844386, 0.9378887276834518
    assert (s0**2, s1**3) == near((0.75, 0.825))
    loss, grad, metrics = run("gspo", row(SAMPLE))
    assert loss == near((-s0 + 2 * s1) / 2)
    # d s / d lp_t = s / length: -A s / (samples * length)
    assert grad == near([-s0 / 4, -s0 / 4, 2 * s1 / 6, 2 * s1 / 6, 2 * s1 / 6])
    assert metrics["ratio"] == near(2 * s0 + 3 * s1)
    assert (metrics["clip_low"], metrics["clip_high"]) == (0, 0)


def test_gspo_clips_a_sample_as_a_whole():
    # clip_low 0.05: s1 = 0.9379 < 0.95 with A < 0 -> loss 2 * 0.95 and no gradient; s0 = 0.866 with A > 0 keeps its own
    s0 = math.sqrt(0.75)
    loss, grad, metrics = run("gspo", row(SAMPLE), clip_low=0.05)
    assert loss == near((-s0 + 1.9) / 2)
    assert grad == near([-s0 / 4, -s0 / 4, 0, 0, 0])
    assert (metrics["clip_low"], metrics["clip_high"]) == (3, 0)


def test_cispo_by_hand():
    # min(r, 1.28) = 1.28, 0.5, 1.1, 0.5, 1.28: bounded above only; no token loses its gradient
    bounded = [1.28, 0.5, 1.1, 0.5, 1.28]
    weights = [1 / 5] * 5
    loss, grad, metrics = run("cispo", row(weights))
    assert grad == near([-1.28 / 5, -0.5 / 5, 2.2 / 5, 1.0 / 5, 2.56 / 5])
    advantages = [1, 1, -2, -2, -2]
    assert loss == near(sum(-b * a * lp / 5 for b, a, lp in zip(bounded, advantages, LOGPROBS, strict=True)))
    assert (metrics["clip_low"], metrics["clip_high"], metrics["ratio"]) == near((0, 2, 5.1))


def test_clip_higher_moves_the_upper_bound_only():
    # 1 + 0.6 > 1.5: the first token is free again, its loss -1.5 and gradient -1.5 / 5; 0.5 < 0.8 stays clipped
    loss, grad, metrics = run("dapo", row([1 / 5] * 5), clip_high=0.6)
    assert loss == near((5.02 + 1.28 - 1.5) / 5)
    assert grad == near(weighted([1 / 5] * 5, [-1.5, *POLICY_GRAD[1:]]))
    assert (metrics["clip_low"], metrics["clip_high"]) == (1, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_the_gradient_is_reinforce(name):
    # without old log-probs the ratio is 1 and every loss has the gradient -w A
    loss, grad, metrics = run(name, row(SAMPLE, old=None, sampled=LOGPROBS))
    assert grad == near([-1 / 4, -1 / 4, 2 / 6, 2 / 6, 2 / 6])
    if name != "cispo":
        assert loss == near(-0.5 + 1.0)
    assert metrics["ratio"] == near(5)
    assert metrics["clip_low"] == metrics["clip_high"] == metrics["mismatch_max"] == 0


# KL and the sampler's correction


def test_k3_by_hand():
    # ref / policy = 2, 1/2, 1: 2 - ln 2 - 1, 1/2 + ln 2 - 1, 0; gradient 1 - ref / policy
    logprobs_T = f64([-1.0, -1.0, -1.0]).requires_grad_()
    kl_T = kl_k3(logprobs_T, f64([-1.0 + math.log(2), -1.0 - math.log(2), -1.0]))
    assert kl_T.tolist() == near([0.3068528194400547, 0.1931471805599453, 0.0])
    (grad_T,) = torch.autograd.grad(kl_T.sum(), logprobs_T)
    assert grad_T.tolist() == near([-1.0, 0.5, 0.0])


REF = [lp + math.log(x) for lp, x in zip(LOGPROBS, [2, 0.5, 1, 4, 0.25], strict=True)]
KL = [1 - math.log(2), math.log(2) - 0.5, 0.0, 3 - math.log(4), math.log(4) - 0.75]
KL_GRAD = [-1.0, 0.5, 0.0, -3.0, 0.75]


def test_kl_is_added_where_the_policy_is_clipped_too():
    loss, grad, metrics = run("grpo", row(SAMPLE, ref=REF), kl_coef=0.1)
    assert loss == near(sum(weighted(SAMPLE, [p + 0.1 * k for p, k in zip(POLICY, KL, strict=True)])))
    assert grad == near(weighted(SAMPLE, [p + 0.1 * k for p, k in zip(POLICY_GRAD, KL_GRAD, strict=True)]))
    assert metrics["kl"] == near(1 - 0.5 + 3 - 0.75)  # the logarithms cancel


def test_kl_is_reported_at_coefficient_zero_and_left_out_without_reference():
    plain = run("grpo", row(SAMPLE))
    loss, grad, metrics = run("grpo", row(SAMPLE, ref=REF))
    assert (loss, grad) == (plain[0], plain[1])
    assert metrics["kl"] == near(2.75)
    assert "kl" not in plain[2]
    with pytest.raises(ValueError, match="no reference log-probs"):
        run("grpo", row(SAMPLE), kl_coef=0.1)


# exp(old - sampled)
MISMATCH = [1.0, 4.0, 0.5, 1.0, 3.0]
SAMPLED = [old - math.log(m) for old, m in zip(OLD, MISMATCH, strict=True)]
TIS = [1.0, 2.0, 0.5, 1.0, 2.0]  # truncated at 2


@pytest.mark.parametrize("name", LOSSES)
def test_truncated_importance_weight_by_hand(name):
    base = LOSSES[name](
        f64(LOGPROBS), f64(OLD), f64([1, 1, -2, -2, -2]), torch.tensor([0, 0, 1, 1, 1]), torch.tensor(LENGTHS), **CLIP
    )
    loss, grad, metrics = run(name, row(SAMPLE, sampled=SAMPLED), tis_cap=2.0)
    assert loss == near(sum(w * t * p for w, t, p in zip(SAMPLE, TIS, base.loss_T.tolist(), strict=True)))
    if name == "gspo":  # each token's weight scales the sample's one ratio: -A s mean(tis) / (samples * length)
        s0, s1 = math.sqrt(0.75), 0.825 ** (1 / 3)
        assert grad == near([-s0 * 1.5 / 4] * 2 + [2 * s1 * (3.5 / 3) / 6] * 3)
    else:
        own = [-1.28, -0.5, 2.2, 1.0, 2.56] if name == "cispo" else POLICY_GRAD
        assert grad == near([w * t * g for w, t, g in zip(SAMPLE, TIS, own, strict=True)])
    assert metrics["tis"] == near(6.5)
    assert metrics["mismatch_abs"] == near(math.log(4 * 2 * 3))  # raw: the 4 and the 3 are not truncated
    assert metrics["mismatch_max"] == near(math.log(4))


def test_the_correction_leaves_kl_alone_and_is_off_by_none():
    loss, grad, _ = run("grpo", row(SAMPLE, sampled=SAMPLED, ref=REF), tis_cap=2.0, kl_coef=0.1)
    assert loss == near(sum(w * (t * p + 0.1 * k) for w, t, p, k in zip(SAMPLE, TIS, POLICY, KL, strict=True)))
    assert grad == near([w * (t * p + 0.1 * k) for w, t, p, k in zip(SAMPLE, TIS, POLICY_GRAD, KL_GRAD, strict=True)])
    off = run("grpo", row(SAMPLE, sampled=SAMPLED))
    assert off[:2] == run("grpo", row(SAMPLE))[:2]
    assert off[2]["tis"] == 5
    assert off[2]["mismatch_abs"] == near(math.log(24))


def test_on_policy_the_correction_compares_with_the_current_logprobs_and_has_no_gradient():
    sampled = [lp - math.log(m) for lp, m in zip(LOGPROBS, MISMATCH, strict=True)]
    _, grad, metrics = run("grpo", row(SAMPLE, old=None, sampled=sampled), tis_cap=2.0)
    assert grad == near([-w * t * a for w, t, a in zip(SAMPLE, TIS, [1, 1, -2, -2, -2], strict=True)])
    assert metrics["mismatch_abs"] == near(math.log(24))


# Masks, splits, order, shapes


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_sample_is_inert_whatever_it_holds(name):
    settings = {"kl_coef": 0.1, "tis_cap": 2.0}
    loss, grad, metrics = run(name, row(SAMPLE, sampled=SAMPLED, ref=REF), **settings)
    nan = [math.nan, -math.inf]
    masked = row(
        [*SAMPLE, 0.0, 0.0],
        old=OLD + nan,
        sampled=SAMPLED + nan,
        ref=REF + nan,
        advantages=(1.0, 1.0, -2.0, -2.0, -2.0, *nan),
        lengths=(2, 3, 2),
    )
    got, got_grad, got_metrics = run(name, masked, logprobs=LOGPROBS + nan, **settings)
    assert got == near(loss)
    assert got_grad == near([*grad, 0.0, 0.0])
    assert got_metrics == near(metrics)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_masked_samples_only_is_zero(name):
    loss, grad, metrics = run(name, row([0.0] * 5, ref=REF, sampled=SAMPLED), kl_coef=0.1, tis_cap=2.0)
    assert loss == 0
    assert grad == [0.0] * 5
    assert set(metrics.values()) == {0}


def random_samples(seed=0, samples=6):
    """Per sample: length, advantage, and log-probs of policy, old, sampler and reference, far enough apart to clip."""
    torch.manual_seed(seed)
    for length in torch.randint(1, 9, (samples,)).tolist():
        old = -2 * torch.rand(length, dtype=torch.float64)
        others = [(old + 0.4 * torch.randn(length, dtype=torch.float64)).tolist() for _ in range(3)]
        yield length, torch.randn(()).item(), others[0], old.tolist(), others[1], others[2]


def row_of(name, samples, everything):
    lengths = [s[0] for s in samples]
    counts = {"samples": len(everything), "tokens": sum(s[0] for s in everything), "max_tokens": 12}
    flat = [[x for s in samples for x in s[i]] for i in range(2, 6)]
    per_sample = token_weights(AGGREGATE[name], lengths, **counts)
    a_row = row(
        [w for w, length in zip(per_sample, lengths, strict=True) for _ in range(length)],
        old=flat[1],
        sampled=flat[2],
        ref=flat[3],
        advantages=[s[1] for s in samples for _ in range(s[0])],
        lengths=tuple(lengths),
    )
    return a_row, flat[0]


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_split_in_two_has_the_same_loss_gradient_and_metrics(name):
    everything = list(random_samples())
    settings = {"kl_coef": 0.05, "tis_cap": 1.3}
    whole, logprobs = row_of(name, everything, everything)
    loss, grad, metrics = run(name, whole, logprobs=logprobs, **settings)
    if name != "gspo":
        assert metrics["clip_high"] > 0
    parts = []
    for part in (everything[:2], everything[2:]):
        a_row, logprobs = row_of(name, part, everything)
        parts.append(run(name, a_row, logprobs=logprobs, **settings))
    assert parts[0][0] + parts[1][0] == near(loss)
    assert parts[0][1] + parts[1][1] == near(grad)
    worst = max(p[2].pop("mismatch_max") for p in parts)
    assert worst == metrics.pop("mismatch_max")
    assert {key: parts[0][2][key] + parts[1][2][key] for key in metrics} == near(metrics)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_samples_does_not_matter(name):
    samples = list(random_samples(seed=1))
    order = [3, 0, 5, 1, 4, 2]
    a_row, logprobs = row_of(name, samples, samples)
    loss, grad, _ = run(name, a_row, logprobs=logprobs)
    b_row, logprobs = row_of(name, [samples[i] for i in order], samples)
    b_loss, b_grad, _ = run(name, b_row, logprobs=logprobs)
    assert b_loss == near(loss)
    lengths = [s[0] for s in samples]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    assert b_grad == near([g for i in order for g in grad[starts[i] : starts[i] + lengths[i]]])


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_gradient_is_the_derivative_of_the_loss(name):
    samples = list(random_samples(seed=2))
    a_row, logprobs = row_of(name, samples, samples)
    settings = {**CLIP, "kl_coef": 0.1, "tis_cap": 1.3}
    assert torch.autograd.gradcheck(lambda x: policy_loss(name, x, a_row, **settings)[0], f64(logprobs).requires_grad_())


@pytest.mark.parametrize("field", ["old_T", "ref_T", "sampled_T", "advantages_T", "weights_T", "samples_T"])
@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1,), (4,), ()])
def test_broadcasting_is_refused(field, shape):
    good = row(SAMPLE, ref=REF)
    bad = dataclasses.replace(good, **{field: torch.zeros(shape, dtype=getattr(good, field).dtype)})
    with pytest.raises(ValueError, match=f"shapes differ.*{field}"):
        policy_loss("grpo", f64(LOGPROBS), bad, **CLIP, **OFF)


def test_other_shapes_and_types_are_refused():
    good = row(SAMPLE)
    with pytest.raises(ValueError, match="shapes differ"):
        policy_loss("grpo", f64([LOGPROBS]), good, **CLIP, **OFF)
    with pytest.raises(ValueError, match="one axis, S"):
        policy_loss("gspo", f64(LOGPROBS), dataclasses.replace(good, lengths_S=good.lengths_S[:, None]), **CLIP, **OFF)
    with pytest.raises(ValueError, match="too coarse"):
        policy_loss("grpo", f64(LOGPROBS).bfloat16(), good, **CLIP, **OFF)
    with pytest.raises(ValueError, match="shapes differ"):
        kl_k3(f64([-1.0, -2.0]), f64([[-1.0], [-2.0]]))
    with pytest.raises(ValueError, match="'ppo' is unknown: use one of grpo, dr_grpo, dapo, gspo, cispo"):
        policy_loss("ppo", f64(LOGPROBS), good, **CLIP, **OFF)


# The weights


def test_token_weights_by_hand():
    counts = {"samples": 4, "tokens": 20, "max_tokens": 50}
    assert token_weights("sample", [2, 5, 8], **counts) == [1 / 8, 1 / 20, 1 / 32]
    assert token_weights("token", [2, 5, 8], **counts) == [1 / 20] * 3
    assert token_weights("budget", [2, 5, 8], **counts) == [1 / 200] * 3
    assert set(AGGREGATE) == set(LOSSES)


def test_token_weights_of_a_whole_step_give_means():
    # a loss of 1 at every token: a mean over samples or tokens is 1, a budget half used 0.5
    lengths = [2, 5, 8]
    for aggregate, mean in {"sample": 1.0, "token": 1.0, "budget": 0.5}.items():
        weights = token_weights(aggregate, lengths, samples=3, tokens=15, max_tokens=10)
        assert sum(weighted(weights, lengths)) == near(mean)


def test_token_weights_refuse_nonsense():
    with pytest.raises(ValueError, match="'mean' is unknown: use sample, token or budget"):
        token_weights("mean", [1], samples=1, tokens=1, max_tokens=1)
    with pytest.raises(ValueError, match="samples is 0"):
        token_weights("sample", [1], samples=0, tokens=1, max_tokens=1)
    with pytest.raises(ValueError, match="empty completion"):
        token_weights("sample", [1, 0], samples=2, tokens=1, max_tokens=1)
