"""Checks that stop a run with a reason: on the prompts before it, on the metrics during it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rl.config import Guard
from rl.records import Prompt


class Stopped(RuntimeError):
    """The run has stopped making sense; the message says why and what to do."""


def check_prompts(prompts: Sequence[Prompt], tokenizer: Any, vocabulary: int, max_model_len: int, max_tokens: int) -> None:
    """Prompt ids against the tokenizer's own habits and the model's size. Raises ValueError.

    A BOS given twice (template and tokenizer) or not at all shifts every log-prob a little and nothing says so.
    """
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    for prompt in prompts:
        leading = next((n for n, token in enumerate(prompt.ids) if token != bos), len(prompt.ids)) if bos is not None else 0
        if leading > 1:
            raise ValueError(
                f"prompt {prompt.id} begins with {leading} BOS tokens: the template brings one and the tokenizer another"
            )
        if adds_bos and leading == 0:
            raise ValueError(
                f"prompt {prompt.id} has no BOS, but this tokenizer begins every text with one; the chat template drops it"
            )
        if not prompt.ids:
            raise ValueError(f"prompt {prompt.id} has no tokens")
        if max(prompt.ids) >= vocabulary:
            raise ValueError(
                f"prompt {prompt.id} holds token {max(prompt.ids)}, the model has {vocabulary}: tokenizer and model do not belong together"
            )
        if len(prompt.ids) + max_tokens > max_model_len:
            raise ValueError(
                f"prompt {prompt.id} ({len(prompt.ids)} tokens) and {max_tokens} new tokens exceed the model's context of {max_model_len}: "
                "lower rollout.max_tokens or drop the prompt"
            )


class Watch:
    """Looks at each step's metrics; raises Stopped. `tolerance` is the mean log-prob mismatch that precision explains."""

    def __init__(self, config: Guard, tolerance: float, memory: Mapping[str, Any] | None = None) -> None:
        self.config, self.tolerance = config, config.mismatch or tolerance
        remembered = dict(memory or {})
        self.recent = {name: deque(remembered.get(name, ()), maxlen=config.patience) for name in ("truncated", "zero_variance")}

    def memory(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {name: list(values) for name, values in self.recent.items()}

    def check(self, metrics: Mapping[str, Any]) -> None:
        """Raise Stopped when a threshold is passed: at once for mismatch and masked samples, after `patience` steps for the rest."""
        c = self.config
        stale = metrics.get("staleness_max", 0.0) > 0  # then the policies differ, and by more than rounding
        allowed = max(self.tolerance, c.drift) if stale else self.tolerance
        if not metrics.get("mismatch", 0.0) <= allowed:  # nan is no agreement
            raise Stopped(
                f"sampler and learner disagree: their log-probs of a token differ by {metrics['mismatch']:.3g} nats in the mean (allowed "
                f"{allowed:.3g}). "
                + (
                    "The rollouts are too stale for this learn.lr: lower it, or rollout.max_staleness"
                    if stale
                    else "Stale weights, another temperature, or a chat template or BOS the sampler adds"
                )
            )
        if metrics.get("masked", 0.0) > c.masked:
            raise Stopped(
                f"{metrics['masked']:.1%} of this step's samples have no verdict (allowed {c.masked:.1%}); their reasons stand in rollouts/"
            )
        for name, values in self.recent.items():
            if name in metrics:
                values.append(metrics[name])
        if self._all("truncated", c.truncated):
            raise Stopped(
                f"at least {c.truncated:.0%} of the completions were cut off in each of the last {c.patience} steps: the reward is flat "
                f"because answers do not fit. Raise rollout.max_tokens (mean length now {metrics.get('length', 0):.0f})"
            )
        if self._all("zero_variance", c.zero_variance):
            raise Stopped(
                f"at least {c.zero_variance:.0%} of the groups had one reward only in each of the last {c.patience} steps: nothing is left "
                "to learn from these prompts (all right, or all wrong). Harder or easier prompts, or a larger rollout.group"
            )

    def _all(self, name: str, threshold: float) -> bool:
        values = self.recent[name]
        return len(values) == self.config.patience and min(values) >= threshold
