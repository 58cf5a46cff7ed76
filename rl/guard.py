"""Checks that stop a run with a reason: on the prompts before it, on the metrics during it (what each looks at: guard_rules.py).

A step that a guard finds bad is a warning; `guard.patience` of them in a row stop the run. What makes further steps worthless (numbers
that are none, samples that are not the policy's, a full disk) stops it at once. The run then leaves a checkpoint, and the reason names
its guard.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rl.config import Guard
from rl.guard_rules import RECENT, RULES, START, Seen
from rl.records import Group, Prompt


class Stopped(RuntimeError):
    """The run has stopped making sense; the message says why and what to do. `guard` is the name of what stopped it, "" for none."""

    guard = ""

    def __init__(self, why: str, guard: str = "") -> None:
        self.guard = guard or type(self).guard
        super().__init__(f"guard {self.guard}: {why}" if self.guard else why)


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


def check_rewards(groups: Sequence[Group]) -> None:
    """Every reward is a number, or None for no verdict. Raises Stopped."""
    for group in groups:
        for score in group.scores:
            if score.value is not None and not math.isfinite(score.value):
                raise Stopped(
                    f"the reward of an answer to {group.prompt.id} is {score.value} ({score.reason}): mend the reward", "nan"
                )


class Watch:
    """Looks at each step's metrics; raises Stopped.

    `tolerance` is the mean log-prob mismatch (nats) that precision explains, `max_staleness` the recipe's bound (steps); `memory` is what
    a checkpoint kept.
    """

    def __init__(
        self, config: Guard, tolerance: float, memory: Mapping[str, Any] | None = None, max_staleness: float = math.inf
    ) -> None:
        self.config, self.tolerance, self.max_staleness = config, config.mismatch or tolerance, max_staleness
        m = memory or {}
        self.streaks: dict[str, int] = dict(m.get("streaks", {}))  # bad steps in a row, by guard
        self.start: dict[str, float] = dict(m.get("start", {}))  # what the run began with
        kept = m.get("recent", {})
        self.recent = {name: deque[float](kept.get(name, ()), maxlen=config.patience) for name in RECENT}
        self.best: dict[str, Any] = dict(m.get("best", {}))  # the probe with the highest held-out accuracy
        self.rollbacks: int = m.get("rollbacks", 0)

    def memory(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON types. Not the pace: a resumed run may be on another machine."""
        recent = {name: list(values) for name, values in self.recent.items() if name != "tokens_per_s"}
        streaks = {name: n for name, n in self.streaks.items() if n and name != "throughput"}
        return {"streaks": streaks, "start": self.start, "recent": recent, "best": self.best, "rollbacks": self.rollbacks}

    def check(self, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings of a step, each once in a row of bad steps. Raises Stopped: at once, or after `patience` bad steps in a row."""
        seen, said = Seen(metrics, self), list[str]()
        fine = True
        for name, rule in RULES.items():
            why = rule.judge(seen)
            if why is None:  # this step has not what the guard looks at
                continue
            if why and rule.at_once:
                raise Stopped(why, name)
            self.streaks[name] = self.streaks.get(name, 0) + 1 if why else 0
            fine = fine and not why
            patience = rule.patience(self.config)
            if self.streaks[name] >= patience:
                times = f", in {patience} {rule.unit}s in a row" if patience > 1 else ""
                raise Stopped(f"{why}{times}. {rule.remedy}", name)
            if self.streaks[name] == 1:
                said.append(f"guard {name}: {why}; the run stops after {patience} such {rule.unit}s in a row. {rule.remedy}")
        self._remember(metrics, seen, fine)
        return said

    @property
    def healthy(self) -> bool:
        """No guard finds anything wrong with the last step."""
        return not any(self.streaks.values())

    def _remember(self, metrics: Mapping[str, Any], seen: Seen, fine: bool) -> None:
        for name in START:
            if name in metrics:
                self.start.setdefault(name, metrics[name])
        for name, values in self.recent.items():
            if fine and name in metrics:  # what is bad is not what the next step is held against
                values.append(metrics[name])
        if "heldout_right" in metrics and (not self.best or seen.now["heldout"] > self.best["heldout"]):
            right = list(metrics["heldout_right"])
            self.best = {"heldout": metrics["heldout"], "right": right, "reward": seen.level("reward")}
