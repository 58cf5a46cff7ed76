"""An engine of two ranks (tensor parallel) on a CPU: weights reach both, and what does not arrive is seen."""

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make setup` installs it")

from rl.records import Sampling
from rl.sampler_vllm import VllmSampler
from rl.sync import SyncError, sync
from tests import sampler_laws as laws
from tests import tiny

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the bounds are those of fp32 on a CPU")


def test_an_engine_of_two_ranks_follows_the_learner(monkeypatch):
    """Log-probs after an update agree; ranks that are given nothing new are named by the proof."""
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    engine = {"tensor_parallel_size": 2}
    sampler = VllmSampler(tiny.path(), tiny.tokenizer(), device=laws.CPU, max_model_len=384, engine=engine)
    learner = tiny.learner(tiny.config(learn={"lr": 3e-3}))
    try:
        tiny.updates(learner, 1, laws.prompts())
        assert sync(learner.policy, sampler, 1, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND
        made = sampler.generate(laws.ids(), Sampling(n=2, max_tokens=8, seed=1))
        assert all(c.version == 1 for completions in made for c in completions)
        tiny.updates(learner, 1, laws.prompts())
        with monkeypatch.context() as patch:
            patch.setattr(sampler.spread, "load", lambda weights: None)
            with pytest.raises(SyncError, match="did not arrive"):
                sync(learner.policy, sampler, 2, laws.prompts(), laws.BOUND, laws.CPU)
        assert sync(learner.policy, sampler, 2, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND
    finally:
        sampler.close()
