"""Rollout workers with a real engine (transformers): the same tokens as in this process, and weights that arrive, provably.

The same over vLLM, with what only an engine of its kind can get wrong: test_rl_workers_vllm.py.
"""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from rl.records import Sampling
from rl.rollout import rollout
from rl.sampler import TransformersSampler, fingerprint
from rl.sync import SyncError, prove, sync
from rl.workers import PoolStopped, of_share, share
from tests import sampler_laws as laws
from tests import tiny
from tests import tiny_pool as pools

SAMPLING = Sampling(n=3, max_tokens=16, seed=7)
SKIPPED = "model.layers.1.mlp.up_proj.weight"  # by load:skips


@pytest.fixture(scope="module")
def learner():
    """Three real updates away from the folder's weights."""
    made = tiny.learner(tiny.config(learn={"lr": 3e-3}))
    tiny.updates(made, 3, laws.prompts())
    return made


@pytest.fixture(scope="module")
def pool():
    made = pools.pool(2, scripted="", of=pools.spec())
    yield made
    made.close()


def in_process(prompts, weights=None):
    """What one sampler after the other gives for the pool's shares, in this process."""
    made = {}
    shares = share([(i, len(p)) for i, p in enumerate(prompts)], 2)
    for number, part in enumerate(shares):
        sampler = TransformersSampler(tiny.path(), tiny.tokenizer(), device=laws.CPU)
        if weights:
            sampler.load(weights, 3)
        completions = sampler.generate([prompts[i] for i in part], of_share(SAMPLING, number))
        made |= dict(zip(part, completions, strict=True))
    return [made[i] for i in range(len(prompts))]


def as_float32(groups):
    """Log-probs as the frames carry them; TransformersSampler's own are float32 already."""
    return [[(c.ids, torch.tensor(c.logprobs).tolist(), c.finish, c.text, c.version) for c in group] for group in groups]


def test_the_same_tokens_as_in_this_process(pool, learner):
    laws.restore(pool)
    before = pool.generate(laws.ids(), SAMPLING)
    assert as_float32(before) == as_float32(in_process(laws.ids()))
    assert pool.generate(laws.ids(), SAMPLING) == before
    sync(learner.policy, pool, 3, laws.prompts(), laws.BOUND, laws.CPU)
    after = pool.generate(laws.ids(), SAMPLING)
    assert as_float32(after) == as_float32(in_process(laws.ids(), list(learner.policy.weights())))
    assert after != before


@pytest.mark.parametrize("law", [laws.shape, laws.seeds, laws.finished, laws.greedy_is_arg_max], ids=lambda law: law.__name__)
def test_law(pool, law):
    laws.restore(pool)
    assert law(pool) > 0


def test_log_probs_equal_the_learners_after_updates(pool, record_property):
    largest = laws.log_probs_equal_the_learners_after_updates(pool)
    assert largest <= laws.BOUND
    record_property("largest_difference", largest)


def test_canaries_while_another_thread_generates(pool, learner):
    laws.restore(pool)
    sync(learner.policy, pool, 3, laws.prompts(), laws.BOUND, laws.CPU)
    results = []
    many = Sampling(n=32, max_tokens=48, seed=1)
    thread = threading.Thread(target=lambda: results.extend(rollout(pool, laws.prompts() * 2, many)))
    thread.start()
    proofs = 0
    while thread.is_alive():
        prove(learner.policy, pool, 3, laws.prompts(), laws.BOUND, laws.CPU)
        proofs += 1
    assert proofs
    assert [len(g.completions) for g in results] == [32] * 12
    assert tiny.parity(learner, results, 1.0) <= laws.BOUND


def test_a_worker_with_a_fault_in_its_weights_stops_the_run_by_name(learner):
    faulty = pools.pool(1, {0: "load:by_version"}, scripted="", of=pools.spec())
    canaries = laws.prompts()
    try:
        with pytest.raises(SyncError, match=f"^weights 3 did not arrive whole in worker 0.0: {SKIPPED}$"):
            sync(learner.policy, faulty, 3, canaries, laws.BOUND, laws.CPU)
        with pytest.raises(SyncError, match=r"^worker 0.0 is at weights 3, the learner at 4$"):
            sync(learner.policy, faulty, 4, canaries, laws.BOUND, laws.CPU)
        with pytest.raises(SyncError, match=r"log-probs of worker 0.0 differ from the learner's by .* on the canary prompts"):
            sync(learner.policy, faulty, 5, canaries, 1e-4, laws.CPU)  # right weights, a BOS before each prompt
        assert sync(learner.policy, faulty, 6, canaries, laws.BOUND, laws.CPU) <= laws.BOUND
    finally:
        faulty.close()


def test_killed_in_the_middle_and_replaced_with_proof(pool, learner):
    laws.restore(pool)
    pool.stats()
    number, heard = pools.pid(pool.active[1]), []
    os.kill(number, signal.SIGSTOP)  # or it might be through with its share before it is killed

    def done(index, completions):
        if not heard:
            os.kill(number, signal.SIGKILL)
        heard.append(index)

    made = pool.generate(laws.ids() * 4, SAMPLING, done)
    assert [len(group) for group in made] == [3] * 24
    assert sorted(heard) == list(range(24))
    counts = pool.stats()
    assert (counts["workers"], counts["workers_lost"]) == (1.0, 1.0)
    assert counts["groups_lost"] == 12
    pool.coming[1].result()
    assert sync(learner.policy, pool, 3, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND
    assert [name for name, _ in pool.replicas()] == ["worker 0.0", "worker 1.1"]
    total = sum(fingerprint(learner.policy.weights()).values())
    assert all(sum(w.fingerprint().values()) == total for _, w in pool.replicas())
    groups = rollout(pool, laws.prompts(), SAMPLING)
    assert tiny.parity(learner, groups, 1.0) <= laws.BOUND
    assert pool.stats() == {"workers": 2.0, "workers_new": 1.0}


def test_the_weights_of_another_model_stop_the_run(pool):
    """Last, for it ends the module's pool. Of the same vocabulary, so that only the weights can tell."""
    with pytest.raises(PoolStopped, match=r"weights 4: a worker did not take .*: worker 0.0: (KeyError|RuntimeError): "):
        sync(tiny.policy("llama"), pool, 4, laws.prompts(), laws.BOUND, laws.CPU)
