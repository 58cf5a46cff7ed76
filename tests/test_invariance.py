"""One gradient, however the work is cut up (HOUSE, manner 7): rows, packing, order, split groups, minibatches; for every loss.

The gradient is taken from the real learner's step, where the optimiser would get it. Two are taken of each step: at the weights that
the old log-probs come from (ratio 1), and, in a second inner epoch, at weights moved by fixed noise (ratios on both sides of the clip).
The model is float64 (logits and loss stay fp32), so that what differs is not the rounding of sums: in fp32 it is up to 2e-6.
"""

import random
from dataclasses import replace

import pytest
import torch

from rl.batch import count, pack
from rl.logprobs import CHUNK_ELEMENTS
from rl.loss import AGGREGATE, policy_loss
from tests import tiny

SHAPES = [(5, [3, 7, 1, 9]), (9, [4, 4, 12, 2]), (2, [11, 6, 2, 2]), (21, [1, 8, 3, 5])]
ADVANTAGES = [[1.5, -0.5, 0.25, -1.25], [0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, None, 0.5], [0.7, -0.7, 0.7, -0.7]]
MAX_TOKENS = 12
BOUND = 1e-6  # of the gradient's norm
LOSSES = list(AGGREGATE)


@pytest.fixture(scope="module")
def groups():
    """Sampled log-probs lie near the learner's, so that the importance correction is at work and only sometimes at its cap."""
    made = tiny.groups(SHAPES, finish=lambda g: "length" if g == 1 else "stop")
    model, draw = tiny.plain(), random.Random(3)
    out = []
    for group in made:
        with torch.no_grad():
            logprobs, _ = tiny.padded(model, group)
        completions = tuple(
            replace(c, logprobs=tuple(x + draw.gauss(0, 0.3) for x in lp.tolist()))
            for c, lp in zip(group.completions, logprobs, strict=True)
        )
        out.append(replace(group, completions=completions))
    return out


def settings(loss, overlong, row_tokens=64, **algorithm):
    changes = {"loss": loss, "overlong": overlong, "kl": 0.1, "importance_cap": 1.3, "clip_high": 0.28, "inner_epochs": 2}
    return tiny.config(
        algorithm=changes | algorithm,
        learn={"row_tokens": row_tokens, "max_grad_norm": 1e9},  # unclipped
        rollout={"temperature": 0.8},
    )


def noise(module, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.01)


def taken(config, groups, advantages=ADVANTAGES):
    """The gradients of one step, one an update; each epoch starts at fixed weights."""
    learner = tiny.learner(config)
    learner.policy.double()
    learner.reference.double()
    found = []
    a = config.algorithm

    def step():
        found.append(tiny.gradients(learner.policy))
        if len(found) == a.minibatches:
            noise(learner.policy)

    learner.optimizer.step = step
    noise(learner.reference, seed=1)  # so that the KL term has a gradient
    metrics = learner.step(groups, advantages, MAX_TOKENS)
    assert len(found) == a.minibatches * a.inner_epochs
    assert metrics["clip_high"] > 0
    return found


@pytest.fixture(scope="module")
def whole(groups):
    """The gradients to be held against, by loss and overlong: one row for all."""
    cache = {}

    def get(loss, overlong):
        if (loss, overlong) not in cache:
            cache[loss, overlong] = taken(settings(loss, overlong, row_tokens=4096), groups)
        return cache[loss, overlong]

    return get


def apart(found, expected):
    """The largest distance of two runs' gradients, update by update."""
    return max(tiny.distance(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


every = pytest.mark.parametrize(("loss", "overlong"), [(loss, o) for loss in LOSSES for o in ("keep", "mask")])


@every
def test_accumulation_split(groups, whole, loss, overlong):
    for row_tokens in (1, 23, 48):
        assert apart(taken(settings(loss, overlong, row_tokens), groups), whole(loss, overlong)) < BOUND


@every
def test_order_of_groups_and_within_groups(groups, whole, loss, overlong):
    draw = random.Random(7)
    pairs = list(zip(groups, ADVANTAGES, strict=True))
    draw.shuffle(pairs)
    shuffled, advantages = [], []
    for group, adv_G in pairs:
        order = draw.sample(range(4), 4)
        shuffled.append(replace(group, completions=tuple(group.completions[i] for i in order)))
        advantages.append([adv_G[i] for i in order])
    assert [g.prompt.id for g in shuffled] != [g.prompt.id for g in groups]
    for row_tokens in (48, 4096):
        assert apart(taken(settings(loss, overlong, row_tokens), shuffled, advantages), whole(loss, overlong)) < BOUND


@every
def test_packing_against_padding(groups, whole, loss, overlong):
    """Each sample through the plain padded forward pass of an untouched model; only the loss formula is shared."""
    config = settings(loss, overlong)
    model, reference = tiny.plain().double(), tiny.plain().double()
    noise(reference, seed=1)
    counts = count(groups, ADVANTAGES, overlong)
    samples = []
    for group, adv_G in zip(groups, ADVANTAGES, strict=True):
        for i, adv in enumerate(adv_G):
            one = replace(group, completions=group.completions[i : i + 1])
            (row,) = pack([one], [[adv]], loss=loss, counts=counts, max_tokens=MAX_TOKENS, row_tokens=1, overlong=overlong).rows
            with torch.no_grad():
                (old_T,), (ref_T,) = (tiny.padded(m, one, 0.8)[0] for m in (model, reference))
            assert old_T.dtype == torch.float64
            samples.append((group, i, replace(row, old_T=old_T, ref_T=ref_T)))
    found = []
    for epoch in range(2):
        if epoch:
            noise(tiny.Policy(model))
        model.zero_grad()
        for group, i, row in samples:
            logprobs_T = tiny.padded(model, group, 0.8)[0][i]
            a = config.algorithm
            loss_sum, _ = policy_loss(
                loss, logprobs_T, row, clip_low=a.clip_low, clip_high=a.clip_high, kl_coef=a.kl, tis_cap=a.importance_cap
            )
            loss_sum.backward()
        found.append({f"model.{n}": g for n, g in tiny.gradients(model).items()})
    assert apart(found, whole(loss, overlong)) < BOUND


@every
def test_minibatches_add_up(groups, whole, loss, overlong):
    """At fixed weights the whole batch's gradient is the mean of the minibatches', by what their loss is a mean over."""
    found = taken(settings(loss, overlong, minibatches=2), groups)
    parts = [count(groups[i : i + 2], ADVANTAGES[i : i + 2], overlong) for i in (0, 2)]
    sizes = [p.tokens if AGGREGATE[loss] == "token" else p.samples for p in parts]
    for expected, pair in zip(whole(loss, overlong), (found[:2], found[2:]), strict=True):
        mean = {n: sum(s * g[n] for s, g in zip(sizes, pair, strict=True)) / sum(sizes) for n in expected}
        assert tiny.distance(mean, expected) < BOUND
        assert tiny.distance(pair[0], expected) > 0.1  # the halves themselves differ


@pytest.mark.parametrize("loss", LOSSES)
def test_a_masked_sample_changes_nothing_whatever_it_holds(groups, whole, loss):
    """No verdict and overlong: leaving the sample out, or filling it with other tokens, gives the same gradient."""
    keep = [[i for i, a in enumerate(adv_G) if a is not None and i != 1] for adv_G in ADVANTAGES]
    left = [replace(g, completions=tuple(g.completions[i] for i in k)) for g, k in zip(groups, keep, strict=True)]
    advantages = [[adv_G[i] for i in k] for adv_G, k in zip(ADVANTAGES, keep, strict=True)]
    assert apart(taken(settings(loss, "mask"), left, advantages), whole(loss, "mask")) < BOUND
    wild = []
    for g in groups:
        bad = replace(g.completions[1], ids=(77,) * 5, logprobs=(float("nan"),) * 5)
        wild.append(replace(g, completions=(g.completions[0], bad, *g.completions[2:])))
    assert apart(taken(settings(loss, "mask"), wild), whole(loss, "mask")) < BOUND


def test_the_losses_and_masks_are_not_all_the_same_gradient(whole):
    """What is held equal above could differ."""
    seen = [whole(loss, overlong) for loss in LOSSES for overlong in ("keep", "mask")]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert tiny.distance(a[1], b[1]) > 1e-3


def test_gradient_checkpointing(groups, whole):
    config = settings("grpo", "keep")
    assert (
        apart(taken(replace(config, model=replace(config.model, gradient_checkpointing=True)), groups), whole("grpo", "keep"))
        < BOUND
    )


def test_chunked_head(groups, whole, monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 7 * tiny.VOCABULARY)
    assert apart(taken(settings("grpo", "keep"), groups), whole("grpo", "keep")) < BOUND
