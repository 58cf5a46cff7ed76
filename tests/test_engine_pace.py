"""The shortcut in vLLM's scheduler: the same samples, with a fraction of the calls. Also where the cache is too small for all samples."""

from __future__ import annotations

import pytest
import torch

from rl import engine_pace
from rl.records import Sampling
from rl.sampler_vllm import VllmSampler
from tests import tiny

PROMPTS = [tiny.tokenizer().encode(text) for text in tiny.SENTENCES]
SAMPLING = Sampling(n=4, max_tokens=48, seed=3)
BLOCKS = 14  # of 32 tokens each: fewer than the sixteen samples need


@pytest.fixture(scope="module")
def runs():
    """(completions, calls of allocate_slots for one token, preemptions) without and with the shortcut."""
    found, usual = [], engine_pace.quicken
    for quicken in (lambda llm: True, usual):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(engine_pace, "quicken", lambda llm, f=quicken: counted(llm, f))
            sampler = VllmSampler(
                tiny.path(), tiny.tokenizer(), device=torch.device("cpu"), max_model_len=256,
                engine={"num_gpu_blocks_override": BLOCKS, "block_size": 32},
            )  # fmt: skip
        sampler.stops = ()
        made = sampler.generate(PROMPTS, SAMPLING)
        counts = sampler.llm.counts
        found.append((made, counts["single"], counts["preempted"]))
        sampler.close()
    return found


def counted(llm, quicken):
    """Counts below the shortcut."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    manager, preempt = scheduler.kv_cache_manager, scheduler._preempt_request
    inner, llm.counts = manager.allocate_slots, {"single": 0, "preempted": 0}

    def allocate_slots(request, num_new_tokens, **others):
        llm.counts["single"] += num_new_tokens == 1
        return inner(request, num_new_tokens, **others)

    def preempted(*args, **kwargs):
        llm.counts["preempted"] += 1
        return preempt(*args, **kwargs)

    manager.allocate_slots, scheduler._preempt_request = allocate_slots, preempted
    assert quicken(llm)
    return True


def test_the_same_samples(runs):
    (plain, _, _), (quick, _, _) = runs
    assert [[c.ids for c in group] for group in plain] == [[c.ids for c in group] for group in quick]
    ours = torch.tensor([p for group in quick for c in group for p in c.logprobs])
    assert torch.allclose(ours, torch.tensor([p for group in plain for c in group for p in c.logprobs]), atol=1e-5)


def test_samples_were_put_off_for_want_of_room(runs):
    assert all(preempted > 0 for _, _, preempted in runs)


def test_one_call_in_a_block(runs):
    (_, plain, _), (_, quick, _) = runs
    assert 0 < quick < plain / 5
