"""Rollout workers over vLLM, each engine in a process of its own: new weights in the middle of samples, and its faults by name."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make setup` installs it")

from rl.ahead import versions
from rl.batch import Counts, pack
from rl.policy import Policy
from rl.records import Group, Sampling
from rl.rollout import rollout
from rl.sampler import WorkerLost
from rl.sync import SyncError, sync
from rl.workers import Pool
from tests import sampler_laws as laws
from tests import tiny
from tests import tiny_pool as pools

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the bounds are those of fp32 on a CPU")


@pytest.fixture(scope="module")
def learner():
    """Three real updates away from the folder's weights."""
    made = tiny.learner(tiny.config(learn={"lr": 3e-3}))
    tiny.updates(made, 3, laws.prompts())
    return made


def logprobs(policy: Policy, group: Group) -> Sequence[torch.Tensor]:
    """The learner's log-probs of each completion's tokens."""
    batch = pack([group], [[0.0] * len(group.completions)], loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=1 << 16)
    with torch.no_grad():
        flat = torch.cat([policy(row, 1.0)[0] for row in batch.rows])
    return flat.split([c.tokens for c in group.completions])


def worst(groups: Sequence[Group], policies: dict[int, Policy]) -> float:
    """The largest difference of a token's log-prob to that of the policy which is said to have sampled it."""
    found = 0.0
    for group in groups:
        theirs = {v: logprobs(p, group) for v, p in policies.items()}
        for k, c in enumerate(group.completions):
            start = 0
            for version, count in versions(c):
                ours = torch.tensor(c.logprobs[start : start + count])
                found = max(found, float((ours - theirs[version][k][start : start + count]).abs().max()))
                start += count
    return found


def interrupted(pool: Pool, learner) -> list[Group]:
    """Groups whose samples were under way when the learner's weights, version 3, came after those of the folder."""
    sync(tiny.policy(), pool, 0, laws.prompts(), laws.BOUND, laws.CPU)
    prompts, made, begun, proven = laws.prompts(), [], threading.Event(), threading.Event()

    def done(index, completions):
        """Another prompt for every finished one, so that samples are under way whenever the weights come."""
        begun.set()
        if proven.is_set():
            return None
        prompts.append(prompts[index])
        return [prompts[index].ids]

    def generate() -> None:
        groups = pool.generate(laws.ids(), Sampling(n=8, max_tokens=60, seed=1), done)
        made.extend(Group(p, tuple(g)) for p, g in zip(prompts, groups, strict=True))

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        assert begun.wait(120)
        # Load and proof, canaries and all, in the middle.
        assert sync(learner.policy, pool, 3, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND
    finally:
        proven.set()
        thread.join()
    assert len(made) > 6
    assert {len(g.completions) for g in made} == {8}
    return made


def test_samples_go_on_under_new_weights(learner):
    pool, old = pools.pool(1, scripted="", of=pools.spec("vllm")), tiny.policy()
    try:
        made = interrupted(pool, learner)
        flat = [c for g in made for c in g.completions]
        assert {c.version for c in flat} == {0, 3}
        assert {(c.version, *[v for _, v in c.switches]) for c in flat if c.switches} == {(0, 3)}
        assert worst(made, {0: old, 3: learner.policy}) <= laws.BOUND
        assert worst(made, {0: old, 3: old}) > 1e-2  # the bound above can tell the policies apart
        again = rollout(pool, laws.prompts(), Sampling(n=2, max_tokens=16, seed=2))
        assert tiny.parity(learner, again, 1.0) <= laws.BOUND
    finally:
        pool.close()


def test_samples_begin_again_and_a_stale_cache_and_a_second_bos_are_named(learner):
    """One engine for three stories: a start takes many seconds."""
    pool = pools.pool(1, {0: "load:cache"}, scripted="", of=pools.spec("vllm", restart=True))
    try:
        made = interrupted(pool, learner)
        assert {(c.version, c.switches) for g in made for c in g.completions} == {(0, ()), (3, ())}
        assert worst(made, {0: tiny.policy(), 3: learner.policy}) <= laws.BOUND
        with pytest.raises(SyncError, match=r"log-probs of worker 0.0 differ .*: a stale prefix cache"):
            sync(tiny.policy(), pool, 4, laws.prompts(), 1e-4, laws.CPU)
        ((_, worker),) = pool.replicas()
        with pytest.raises(
            WorkerLost, match=r"worker 0.0: RuntimeError: vLLM generates from other prompt ids than it was given"
        ):
            worker.generate([(329, 7, 8)], Sampling(n=1, max_tokens=4))  # where the fault puts a BOS
    finally:
        pool.close()
