"""A quick look at held-out accuracy during a run, for the guard against reward hacking: the same few problems, drawn the same way.

Sampled as training samples, not greedily: what the reward is compared with must be the same distribution. The judge is the accuracy rule
(of programs: the recipe's tests), whatever else the recipe pays for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval.heldout import RIGHT, SEED
from recipes.street import Task
from rewards.scorer import InProcess, Scorer
from rl.config import Config
from rl.data import Order
from rl.records import Group, Prompt, Sampling
from rl.rollout import scored_rollout
from rl.sampler import Sampler

SAMPLES = 4  # a problem
Probe = Callable[[], list[float]]


def make_probe(config: Config, task: Task, sampler: Sampler | None, scorer: Scorer | None) -> Probe | None:
    """Accuracy on each of `guard.probe_problems` held-out problems under the weights in the sampler; None where nothing can be asked."""
    code = any(p.problem.get("kind") == "code" for p in task.heldout)
    if (
        sampler is None
        or scorer is None
        or not task.heldout
        or not config.guard.probe_every
        or (code and "code" not in config.rewards)
    ):
        return None
    options = {k: v for k, v in config.rewards.get("accuracy", {"mode": "lenient"}).items() if k not in ("weight", "gate")}
    judge = scorer if code else InProcess({"accuracy": options})
    prompts, r = chosen(task.heldout, config.guard.probe_problems), config.rollout
    sampling = Sampling(SAMPLES, r.max_tokens, r.temperature, SEED, r.top_p, r.top_k)

    def probe() -> list[float]:
        return [right(group) for group in scored_rollout(sampler, prompts, sampling, judge)]

    return probe


def chosen(heldout: Sequence[Prompt], count: int) -> list[Prompt]:
    """An even draw, the same in every run."""
    return [heldout[i] for i in sorted(Order(len(heldout), 0).take(0, min(count, len(heldout))))]


def right(group: Group) -> float:
    """The share of samples that are right; no verdict counts as not right."""
    earned = [any(s.parts.get(name) == 1.0 for name in RIGHT) for s in group.scores]
    return sum(earned) / len(earned)
