"""A mixture of experts with latent attention in vLLM, the real engine in this process: experts told, weights that arrive, log-probs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make setup` installs it")

from rl import engine_experts
from rl.batch import Counts, pack
from rl.records import Sampling
from rl.rollout import rollout
from rl.sampler_vllm import VllmSampler
from rl.sync import SyncError, prove, sync
from tests import sampler_laws as laws
from tests import tiny

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the bounds are those of fp32 on a CPU")
FAMILY = "deepseek"


@pytest.fixture(scope="module")
def engine():
    made = VllmSampler(tiny.path(FAMILY), tiny.tokenizer(), device=laws.CPU, max_model_len=384, experts=True)
    yield made
    made.close()


@pytest.fixture
def learner(engine):
    """A learner at the folder's weights, and the engine too."""
    made = tiny.learner(tiny.config(learn={"lr": 3e-3, "balance_rate": 0.01}), FAMILY)
    sync(made.policy, engine, 0, laws.prompts(), 1e-4, laws.CPU)
    return made


@pytest.mark.parametrize("law", [laws.shape, laws.seeds, laws.finished], ids=lambda law: law.__name__)
def test_law(engine, learner, law) -> None:
    assert law(engine) > 0  # completions it looked at


def test_weights_biases_and_experts_arrive_update_by_update(engine, learner) -> None:
    for update in range(1, 4):
        made = rollout(engine, laws.prompts(), Sampling(n=4, max_tokens=24, seed=update, experts=True))
        numbers = learner.step(made, [[1.0, -1.0, 0.5, -0.5]] * len(made), 24)
        assert numbers["mismatch_max"] < laws.BOUND
        assert numbers["routing_agreement"] > 0.999
        assert sync(learner.policy, engine, update, laws.prompts(), 1e-4, laws.CPU) < laws.BOUND


def test_every_position_has_the_experts_that_the_model_chooses(engine, learner) -> None:
    """Prompts of 1 to 290 tokens and samples of many lengths in one batch: rows of steps are given to the right requests."""
    made = rollout(engine, laws.prompts(), Sampling(n=6, max_tokens=24, seed=3, experts=True))
    assert len({c.tokens for g in made for c in g.completions}) > 4
    zeros = [[0.0] * 6] * len(made)
    for row in pack(made, zeros, loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=2048).rows:
        learner.policy(replace(row, experts_LMK=None), 1.0)
        told_L = row.experts_LMK[:, 0, 0] >= 0
        assert int((~told_L).sum()) == len(row.spans)
        ours, theirs = learner.policy.routing.chosen()[told_L].sort(-1).values, row.experts_LMK[told_L].long().sort(-1).values
        assert (ours == theirs).float().mean() > 0.999


def test_nobody_asked(engine, learner) -> None:
    assert all(c.experts is None for made in engine.generate(laws.ids(), Sampling(n=2, max_tokens=4)) for c in made)


def test_new_weights_under_samples_that_go_on(engine, learner) -> None:
    """Positions that are computed anew have the experts of their last computation; none is without."""
    steps = 0

    def between() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            engine.load(learner.policy.weights(engine.dtype), 1)

    engine.between = between
    try:
        (made,) = engine.generate([laws.ids()[2]], Sampling(n=4, max_tokens=16, seed=1, experts=True))
    finally:
        engine.between = lambda: None
    assert any(c.switches for c in made)
    for c in made:
        assert c.experts.shape == (len(laws.ids()[2]) + c.tokens - 1, 2, 2)
        assert c.experts.min() >= 0


def test_a_stale_bias_or_expert_is_seen(engine, learner) -> None:
    for name in ("e_score_correction_bias", "w13_weight"):
        parameter = next(p for n, p in engine.llm.apply_model(_named)[0] if n.endswith(name))
        parameter.data.flatten()[3] += 0.01
        with pytest.raises(SyncError, match="did not arrive"):
            prove(learner.policy, engine, 0, laws.prompts(), 1e-4, laws.CPU)
        sync(learner.policy, engine, 0, laws.prompts(), 1e-4, laws.CPU)


def _named(model):
    return list(model.named_parameters())


def test_experts_matrices_are_taken_apart_as_a_checkpoint_names_them() -> None:
    fused = torch.arange(2 * 4 * 3).view(2, 4, 3)
    weights = [("l.mlp.experts.gate_up_proj", fused), ("l.mlp.experts.down_proj", fused), ("l.mlp.gate.weight", fused[0])]
    apart = dict(engine_experts.apart(weights))
    assert list(apart) == [
        "l.mlp.experts.0.gate_proj.weight", "l.mlp.experts.0.up_proj.weight", "l.mlp.experts.1.gate_proj.weight",
        "l.mlp.experts.1.up_proj.weight", "l.mlp.experts.0.down_proj.weight", "l.mlp.experts.1.down_proj.weight", "l.mlp.gate.weight",
    ]  # fmt: skip
    assert apart["l.mlp.experts.1.up_proj.weight"].equal(fused[1, 2:])
    assert apart["l.mlp.experts.0.down_proj.weight"].equal(fused[0])


def test_pieces_are_put_where_they_belong() -> None:
    def rows(*numbers: int) -> np.ndarray:
        return np.array(numbers, np.int16)[:, None, None]

    made = engine_experts.assembled([(0, rows(1, 2)), (3, rows(4)), (1, rows(9, 8, 7, 6))], 4)
    assert made.ravel().tolist() == [1, 9, 8, 7]  # the last computation counts, what is beyond the end does not
    assert engine_experts.assembled([(1, rows(5))], 3).ravel().tolist() == [-1, 5, -1]
    assert engine_experts.assembled([], 3) is None
