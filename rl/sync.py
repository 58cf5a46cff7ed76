"""Policy weights -> sampler, with the proof that they arrived. With LoRA in the engine (engine_lora.py) the adapter alone is sent.

After every update two things must hold for every engine, or the run stops:
 1. the sampler's weights, frozen ones and adapter too, have the learner's fingerprint, bit for bit (a stale or half-loaded weight
    changes it);
 2. on canary prompts, the sampler's log-probs equal the learner's within `tolerance` (a stale prefix cache, another attention mask
    or another dtype changes them). The canaries are the same prompts each time, so a cache that survived would be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rl import adapters
from rl.batch import Counts, pack
from rl.engine_lora import adapter_prints
from rl.policy import Policy
from rl.records import Prompt, Sampling
from rl.rollout import rollout
from rl.sampler import Sampler, WorkerLost, fingerprint

CANARY_TOKENS = 8
_FROZEN: WeakKeyDictionary[nn.Module, dict[torch.dtype, dict[str, int]]] = WeakKeyDictionary()  # fingerprints below adapters


class SyncError(RuntimeError):
    """The sampler does not generate from the learner's weights."""


def sync(
    policy: Policy, sampler: Sampler, version: int, canaries: Sequence[Prompt], tolerance: float, device: torch.device
) -> float:
    """Send the weights, prove that they arrived; returns the canaries' largest log-prob difference (nats)."""
    alone = adapter_alone(policy, sampler)
    weights = adapters.scaled(policy.model, policy.adapter(), sampler.dtype) if alone else policy.weights(sampler.dtype)
    sampler.load(weights, version)
    return prove(policy, sampler, version, canaries, tolerance, device)


def prove(
    policy: Policy, sampler: Sampler, version: int, canaries: Sequence[Prompt], tolerance: float, device: torch.device
) -> float:
    """The two checks above, on every engine there is; raises SyncError with the reason and the engine's name."""
    ours, worst = expected(policy, sampler), 0.0
    for name, replica in sampler.replicas():
        try:
            worst = max(worst, _prove(policy, name, replica, ours, version, canaries, tolerance, device))
        except WorkerLost:
            continue  # it is counted and replaced where it is missed
    return worst


def adapter_alone(policy: Policy, sampler: Sampler) -> bool:
    """Whether the engines hold the frozen base themselves and take the adapter."""
    return adapters.attached(policy.model) and sampler.adapter


def expected(policy: Policy, sampler: Sampler) -> dict[str, int]:
    """The learner's fingerprint of everything the engines should hold."""
    if not adapter_alone(policy, sampler):
        return fingerprint(policy.weights(sampler.dtype))
    # The base never changes, and where it is sharded each look would gather it.
    base = _FROZEN.setdefault(policy.model, {})
    if sampler.dtype not in base:
        base[sampler.dtype] = fingerprint(adapters.frozen(policy.model, policy.fetch, sampler.dtype))
    return base[sampler.dtype] | adapter_prints(adapters.scaled(policy.model, policy.adapter(), sampler.dtype))


def _prove(
    policy: Policy, name: str, sampler: Sampler, ours: Mapping[str, int], version: int, canaries: Sequence[Prompt],
    tolerance: float, device: torch.device,
) -> float:  # fmt: skip
    theirs = sampler.fingerprint()
    if sampler.version != version:
        raise SyncError(f"{name} is at weights {sampler.version}, the learner at {version}")
    if (sum(ours.values()) - sum(theirs.values())) % (1 << 64):
        raise SyncError(f"weights {version} did not arrive whole in {name}: {', '.join(different(ours, theirs)[:8])}")
    difference = canary(policy, sampler, canaries, device)
    if not difference <= tolerance:
        raise SyncError(
            f"after weights {version} the log-probs of {name} differ from the learner's by {difference:.2g} nats on the canary prompts "
            f"(allowed {tolerance:.2g}): a stale prefix cache, or another attention, dtype or temperature in the engine"
        )
    return difference


def different(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[str]:
    """Names whose fingerprints differ; where the engine fuses weights (qkv_proj), the module that they belong to."""
    sums: Counter[str] = Counter()
    for part, sign in ((ours, 1), (theirs, -1)):
        for name, value in part.items():
            both = name in ours and name in theirs
            sums[name if both else ".".join(name.split(".")[:-2])] += sign * value
    return [name for name, value in sums.items() if value % (1 << 64)]


@torch.no_grad()
def canary(policy: Policy, sampler: Sampler, canaries: Sequence[Prompt], device: torch.device) -> float:
    """Largest |log-prob difference| over greedy continuations of the canary prompts."""
    sampling = Sampling(n=1, max_tokens=CANARY_TOKENS, temperature=0.0, experts=policy.routing is not None)
    groups = rollout(sampler, canaries, sampling)
    flat = [[0.0]] * len(groups)
    batch = pack(groups, flat, loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=4096)
    worst = 0.0
    for row in batch.rows:
        row = row.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logprobs_T, _ = policy(row, 1.0)
        worst = max(worst, (logprobs_T - row.sampled_T).abs().max().item())
    return worst
