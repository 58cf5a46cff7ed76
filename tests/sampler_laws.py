"""What both samplers must hold, told once: test_sampler.py and test_sampler_vllm.py run each law on their own engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from rl.batch import Counts, pack
from rl.policy import Policy
from rl.records import Completion, Group, Prompt, Sampling
from rl.sampler import Sampler, fingerprint
from rl.sync import sync
from tests import tiny

BOUND = 1e-5  # nats, fp32 on a CPU
CPU = torch.device("cpu")


def prompts() -> list[Prompt]:
    """Of very different lengths; the two long ones fill whole blocks of an engine's prefix cache."""
    return [g.prompt for g in tiny.groups([(n, []) for n in (3, 17, 150, 9, 290, 1)], seed=11)]


def ids() -> list[tuple[int, ...]]:
    return [p.ids for p in prompts()]


def shape(sampler: Sampler) -> int:
    """n completions a prompt in order; the end-of-sequence token is the last of those that stopped and nowhere else."""
    made = sampler.generate(ids(), Sampling(n=12, max_tokens=24, seed=1))
    assert [len(completions) for completions in made] == [12] * len(ids())
    flat = [c for completions in made for c in completions]
    for c in flat:
        assert len(c.ids) == len(c.logprobs)
        assert not any(i in tiny.STOPS for i in c.ids[:-1])
        assert (c.finish == "stop") == (c.ids[-1] in tiny.STOPS)
        assert c.tokens == 24 if c.truncated else c.tokens <= 24
        assert all(lp < 0 and math.isfinite(lp) for lp in c.logprobs)
        assert c.text == tiny.tokenizer().decode(c.ids, skip_special_tokens=True)
        assert c.version == sampler.version
    assert {c.finish for c in flat} == {"stop", "length"}
    assert len({c.ids[-1] for c in flat if c.finish == "stop"}) > 2  # each of the generation config's ends counts
    assert len({c.ids for c in flat}) > 60
    return len(flat)


def seeds(sampler: Sampler) -> int:
    """The same seed repeats every completion, another one does not, and greedy does not depend on it."""

    def draw(seed: int, temperature: float = 1.0):
        return sampler.generate(ids(), Sampling(n=3, max_tokens=16, temperature=temperature, seed=seed))

    first = draw(1)
    assert draw(1) == first
    assert draw(2) != first
    greedy = draw(1, 0.0)
    assert [[c.ids for c in made] for made in draw(2, 0.0)] == [[c.ids for c in made] for made in greedy]
    assert all(len({c.ids for c in made}) == 1 for made in greedy)
    return _count(first) + _count(greedy)


def finished(sampler: Sampler) -> int:
    """`done` hears of every prompt once, with the completions that are returned, and listening changes none of them."""
    heard: dict[int, list[Completion]] = {}

    def done(index: int, completions: Sequence[Completion]) -> None:
        assert index not in heard
        heard[index] = list(completions)

    sampling = Sampling(n=5, max_tokens=16, seed=4)
    made = sampler.generate(ids(), sampling, done)
    assert [heard[i] for i in range(len(ids()))] == made
    assert sampler.generate(ids(), sampling) == made
    return _count(made)


def distribution(sampler: Sampler) -> int:
    """First tokens come as often as the plain model's softmax at this temperature says: nothing is cut off or bent.

    Pearson's statistic over the ten likeliest tokens and the rest, 2,000 draws: at 10 degrees of freedom 40 has p = 1.7e-5.
    """
    prompt, temperature, n = ids()[1], 1.7, 2000
    with torch.no_grad():
        expected_V = (tiny.plain()(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1) * n
    made = sampler.generate([prompt], Sampling(n=n, max_tokens=1, temperature=temperature, seed=3))[0]
    seen = Counter(c.ids[0] for c in made)
    top = expected_V.topk(10).indices.tolist()
    cells = [(seen[t], float(expected_V[t])) for t in top]
    cells.append((n - sum(s for s, _ in cells), n - sum(e for _, e in cells)))
    assert sum((s - e) ** 2 / e for s, e in cells) < 40
    assert len(seen) > 100
    return n


def greedy_is_arg_max(sampler: Sampler) -> int:
    model, made = tiny.plain(), sampler.generate(ids(), Sampling(n=1, max_tokens=6, temperature=0.0))
    for prompt, (c,) in zip(ids(), made, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + c.ids])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(c.ids)
    return _count(made)


def truncated(sampler: Sampler) -> int:
    """Under top-k and top-p the log-probs are those of the cut, renormalised distribution, and the learner's are the same.

    Plain calculation: the k likeliest tokens; of these, renormalised, the fewest that hold the mass p. Tokens whose mass reaches p within
    rounding are left out of the comparison.
    """
    model, policy = tiny.plain(), tiny.policy()
    for top_p, top_k, temperature in ((0.8, 0, 1.0), (1.0, 5, 0.7), (0.7, 12, 1.3)):
        sampling = Sampling(n=8, max_tokens=12, temperature=temperature, seed=7, top_p=top_p, top_k=top_k)
        made = sampler.generate(ids(), sampling)
        compared = bent = edges = 0
        for prompt, c in ((p, c) for p, completions in zip(ids(), made, strict=True) for c in completions):
            with torch.no_grad():
                logits_TV = model(torch.tensor([prompt + c.ids])).logits[0, len(prompt) - 1 : -1] / temperature
            for logits_V, token, sampled in zip(logits_TV, c.ids, c.logprobs, strict=True):
                expected, clear = _cut(logits_V, token, top_p, top_k)
                edges += not clear
                compared += clear
                bent += clear and abs(float(logits_V.log_softmax(-1)[token]) - expected) > 0.05
                assert not clear or abs(sampled - expected) <= BOUND
        assert compared > 200
        assert bent > 0.9 * compared  # the whole distribution's would have been noticed
        assert _unlike(policy, made, sampling) <= edges < 5
    greedy = Sampling(n=1, max_tokens=6, temperature=0.0)
    assert sampler.generate(ids(), replace(greedy, top_p=0.5, top_k=2)) == sampler.generate(ids(), greedy)
    return _count(made)


def _count(made: Sequence[Sequence[Completion]]) -> int:
    """How many completions a law has looked at."""
    return sum(len(completions) for completions in made)


def _cut(logits_V: torch.Tensor, token: int, top_p: float, top_k: int) -> tuple[float, bool]:
    """Log-prob of `token` after the cut; and whether no token stands on the cut's edge, where rounding decides."""
    p_V = logits_V.double().softmax(-1)
    order = p_V.argsort(descending=True)[: top_k or None].tolist()
    mass = float(p_V[order].sum())
    kept, held, clear = [], 0.0, True
    for t in order:
        if top_p < 1 and held / mass >= top_p:
            break
        kept.append(t)
        held += float(p_V[t])
        clear &= top_p == 1 or abs(held / mass - top_p) > 1e-5
    assert token in kept or not clear
    return math.log(float(p_V[token]) / held), clear


def _unlike(policy: Policy, made: Sequence[Sequence[Completion]], sampling: Sampling) -> int:
    """Tokens whose log-prob is another one in the learner's policy over packed rows."""
    given = [Group(p, tuple(c)) for p, c in zip(prompts(), made, strict=True)]
    batch = pack(given, [[0.0] * sampling.n] * len(given), loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=2048)
    with torch.no_grad():
        ours = [policy(row, sampling.temperature, sampling.top_p, sampling.top_k)[0] for row in batch.rows]
    return sum(int(((o - row.sampled_T).abs() > BOUND).sum()) for o, row in zip(ours, batch.rows, strict=True))


def log_probs_equal_the_learners_after_updates(sampler: Sampler) -> float:
    """At the start and after each of several updates, hot, cold and greedy; returns the largest difference met."""
    from rl.rollout import rollout

    learner = tiny.learner(tiny.config(learn={"lr": 3e-2}, rollout={"group": 2}))
    before = fingerprint(learner.policy.weights())
    worst = 0.0
    seen = []
    for version in range(4):
        if version:
            tiny.updates(learner, 1, prompts())
        worst = max(worst, sync(learner.policy, sampler, learner.updates, prompts(), BOUND, CPU))
        for temperature in (1.0, 0.7, 0.0):
            made = rollout(sampler, prompts(), Sampling(n=4, max_tokens=32, temperature=temperature, seed=version))
            assert {c.version for g in made for c in g.completions} == {version}
            worst = max(worst, tiny.parity(learner, made, temperature))
        seen.append([c.ids for g in made for c in g.completions])  # greedy
    assert all(a != b for a, b in pairwise(seen))  # the weights really moved
    assert all(before[n] != after for n, after in fingerprint(learner.policy.weights()).items())
    assert worst <= BOUND
    return worst


def restore(sampler: Sampler) -> None:
    """Back to the weights of the folder, so that tests do not depend on their order."""
    policy = tiny.policy()
    sync(policy, sampler, 0, prompts(), BOUND, CPU)
