"""Weights to the sampler with the proof: whatever is stale, half sent or computed otherwise stops the run with its name.

The transformers sampler is used here; the same over vLLM, with its two traps, is in test_sampler_vllm.py.
"""

import pytest
import torch

from rl.sampler import TransformersSampler, fingerprint
from rl.sync import SyncError, canary, different, prove, sync
from tests import sampler_laws as laws
from tests import tiny

STALE = [
    "model.embed_tokens.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_norm.weight",
    "model.norm.weight",
]


@pytest.fixture(scope="module")
def learner():
    """Three real updates away from the folder's weights."""
    made = tiny.learner(tiny.config(learn={"lr": 3e-3}))
    tiny.updates(made, 3, laws.prompts())
    return made


@pytest.fixture
def sampler():
    made = TransformersSampler(tiny.path(), tiny.tokenizer(), device=laws.CPU)
    yield made
    made.close()


def test_an_update_arrives(learner, sampler):
    with pytest.raises(SyncError, match="weights 0, the learner at 3"):
        prove(learner.policy, sampler, 3, laws.prompts(), laws.BOUND, laws.CPU)
    difference = sync(learner.policy, sampler, 3, laws.prompts(), laws.BOUND, laws.CPU)
    assert 0 <= difference <= laws.BOUND
    assert sampler.version == 3
    assert sampler.fingerprint() == fingerprint(learner.policy.weights())
    assert prove(learner.policy, sampler, 3, laws.prompts(), laws.BOUND, laws.CPU) == difference


@pytest.mark.parametrize("name", STALE)
def test_one_stale_weight_stops_the_run_and_is_named(learner, sampler, monkeypatch, name):
    real, old = sampler.load, dict(sampler.model.named_parameters())[name].clone()
    monkeypatch.setattr(
        sampler, "load", lambda weights, version: real([(n, old if n == name else w) for n, w in weights], version)
    )
    with pytest.raises(SyncError, match="did not arrive whole") as caught:
        sync(learner.policy, sampler, 3, laws.prompts(), laws.BOUND, laws.CPU)
    assert [n for n in STALE if n in str(caught.value)] == [name]


def test_one_changed_bit_is_noticed_that_no_log_prob_shows(learner, sampler):
    sampler.load(learner.policy.weights(), 3)
    weight = sampler.model.model.norm.weight
    with torch.no_grad():
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert canary(learner.policy, sampler, laws.prompts(), laws.CPU) <= laws.BOUND
    with pytest.raises(SyncError, match=r"model\.norm\.weight"):
        prove(learner.policy, sampler, 3, laws.prompts(), laws.BOUND, laws.CPU)


def test_the_right_weights_computed_otherwise_fail_on_the_canaries(learner, sampler):
    """Two weights of one shape swapped have the same total; another temperature or mask has the very same weights."""
    sampler.load(learner.policy.weights(), 3)
    sampler.model.base_model.layers[0].self_attn.scaling *= 0.9
    with pytest.raises(SyncError, match=r"differ from the learner's by .* canary"):
        prove(learner.policy, sampler, 3, laws.prompts(), 1e-4, laws.CPU)


def test_a_log_prob_that_is_nan_is_not_within_tolerance(learner, sampler, monkeypatch):
    sampler.load(learner.policy.weights(), 3)
    monkeypatch.setattr("rl.sync.canary", lambda *_: float("nan"))
    with pytest.raises(SyncError, match="nan"):
        prove(learner.policy, sampler, 3, laws.prompts(), laws.BOUND, laws.CPU)


def test_a_fused_weight_is_named_by_its_module():
    ours = {"l.0.attn.q_proj.weight": 1, "l.0.attn.k_proj.weight": 2, "l.0.mlp.gate_proj.weight": 5, "norm.weight": 9}
    theirs = {"l.0.attn.qk_proj.weight": 3, "l.0.mlp.gate_up_proj.weight": 6, "norm.weight": 9}
    assert different(ours, theirs) == ["l.0.mlp"]
    assert different(ours, theirs | {"norm.weight": 8}) == ["l.0.mlp", "norm.weight"]
    assert different(ours, ours) == []
