"""What to look for in a finished or interrupted run: the ways in which GRPO goes wrong quietly, each judged from its numbers.

"First" and "last" are means over the first and the last fifth of the steps. The limits are rules of thumb, given in the text;
a finding is a reason to read the curve, never a verdict. Learning shows in held-out accuracy; reward alone proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.report_plots import number, percent

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Finding:
    """`state` is "fine", "look" or "unknown"; e.g. Finding("look", "Truncation", "12.0 % of the last completions ...")."""

    state: str
    title: str
    text: str


def findings(metrics: Metrics, result: Mapping[str, Any]) -> list[Finding]:
    """Every check, in the order of what to read first."""
    return [
        _reward_without_learning(metrics, result),
        _sharpened_only(result),
        _format_without_accuracy(metrics),
        _truncation(metrics),
        _entropy(metrics),
        _mismatch(metrics),
        _zero_variance(metrics),
        _not_finite(metrics),
    ]


def value_of(measures: Mapping[str, Any], *path: str) -> float | None:
    """The number at measures[a][b]..., or None where a key is missing or holds something else."""
    node: Any = measures
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return float(node) if isinstance(node, int | float) and not isinstance(node, bool) and math.isfinite(node) else None


def ends(metrics: Metrics, key: str) -> tuple[float, float] | None:
    """(first, last): the means of `key` over the first and the last fifth of its steps; None without two steps of it."""
    values = [v for m in metrics if (v := value_of(m, key)) is not None]
    if len(values) < 2:
        return None
    fifth = math.ceil(len(values) / 5)
    return math.fsum(values[:fifth]) / fifth, math.fsum(values[-fifth:]) / fifth


def _reward_without_learning(metrics: Metrics, result: Mapping[str, Any]) -> Finding:
    title = "Reward without learning"
    reward = ends(metrics, "reward")
    before, after = value_of(result, "before", "pass@1", "value"), value_of(result, "after", "pass@1", "value")
    if reward is None or before is None or after is None:
        return Finding("unknown", title, "needs two steps with a reward and held-out results from before and after.")
    low, high = value_of(result, "after", "pass@1", "low"), value_of(result, "before", "pass@1", "high")
    rose = reward[1] > reward[0]
    gained = low > high if low is not None and high is not None else after > before
    told = f"Reward {number(reward[0])} → {number(reward[1])}, held-out pass@1 {percent(before)} → {percent(after)}"
    if rose and not gained:
        return Finding(
            "look", title, f"{told}: the reward rose, but held-out accuracy did not leave its interval. Read the best rollouts."
        )
    if not rose:
        return Finding("look", title, f"{told}: the reward did not rise.")
    return Finding("fine", title, f"{told}: both rose, and the 95 % intervals do not overlap.")


def _sharpened_only(result: Mapping[str, Any]) -> Finding:
    before, after = result.get("before") or {}, result.get("after") or {}
    key = next((k for k in before if k.startswith("pass@") and k != "pass@1" and k in after), None)
    title = "Sharper, but not better"
    first, last = (value_of(before, key, "value"), value_of(after, key, "value")) if key else (None, None)
    if key is None or first is None or last is None:
        return Finding("unknown", title, "needs pass@k from before and after.")
    low = value_of(before, key, "low")
    told = f"{key} {percent(first)} → {percent(last)}"
    if last < (first if low is None else low):
        return Finding(
            "look", title, f"{told}: answers that the base could reach are lost; the distribution was sharpened, not widened."
        )
    return Finding("fine", title, f"{told}: what the base could reach with many samples was kept.")


def _format_without_accuracy(metrics: Metrics) -> Finding:
    title, form, right = "Format without accuracy", ends(metrics, "format"), ends(metrics, "accuracy")
    if form is None or right is None:
        return Finding("unknown", title, "needs the format and accuracy parts of the reward.")
    told = f"Format {percent(form[0])} → {percent(form[1])}, training accuracy {percent(right[0])} → {percent(right[1])}"
    if form[1] - form[0] > 0.1 and right[1] - right[0] < 0.02:
        return Finding("look", title, f"{told}: only the tags were learned (format +10 points, accuracy under +2).")
    return Finding("fine", title, f"{told}.")


def _truncation(metrics: Metrics) -> Finding:
    share = ends(metrics, "truncated")
    if share is None:
        return Finding("unknown", "Truncation", "needs the share of truncated completions.")
    told = f"{percent(share[0])} of completions hit the token limit at first, {percent(share[1])} at last"
    if max(share) > 0.1:
        return Finding(
            "look", "Truncation", f"{told} (limit here 10 %): raise rollout.max_tokens, or read why they do not end."
        )
    return Finding("fine", "Truncation", f"{told} (limit here 10 %).")


def _entropy(metrics: Metrics) -> Finding:
    nats = ends(metrics, "entropy")
    if nats is None:
        return Finding("unknown", "Entropy", "needs the entropy of the policy.")
    told = f"{number(nats[0])} → {number(nats[1])} nats a token"
    if nats[1] < 0.1 * nats[0]:
        return Finding(
            "look",
            "Entropy",
            f"{told}: collapsed below a tenth; groups agree and exploration ends (raise clip_high or kl, or lower lr).",
        )
    if nats[1] > 2 * nats[0] and nats[1] > 1:
        return Finding(
            "look", "Entropy", f"{told}: more than doubled; the policy drifts towards noise (lower the learning rate)."
        )
    return Finding("fine", "Entropy", f"{told}; collapse would be below a tenth of the start.")


def _mismatch(metrics: Metrics) -> Finding:
    title, size = "Sampler against learner", ends(metrics, "mismatch")
    if size is None:
        return Finding("unknown", title, "needs the difference of the two log-probs.")
    worst = max((v for m in metrics if (v := value_of(m, "mismatch_max")) is not None), default=None)
    told = f"mean |Δ log-prob| {number(size[0])} → {number(size[1])}" + (
        f", largest {number(worst)}" if worst is not None else ""
    )
    if max(size) > 0.05:
        return Finding(
            "look",
            title,
            f"{told}: above 0.05 the two are not one policy; look for stale weights, a stale prefix cache or precision.",
        )
    if size[1] > 10 * size[0] and size[1] > 1e-3:
        return Finding("look", title, f"{told}: it grew tenfold; weights may not arrive at the sampler.")
    return Finding("fine", title, f"{told}; fp32 gives about 1e-6, bf16 about 1e-2.")


def _zero_variance(metrics: Metrics) -> Finding:
    title, share = "Groups that teach nothing", ends(metrics, "zero_variance")
    if share is None:
        return Finding("unknown", title, "needs the share of zero-variance groups.")
    told = f"{percent(share[0])} of groups had one reward only at first, {percent(share[1])} at last"
    if max(share) > 0.5:
        return Finding(
            "look",
            title,
            f"{told}: more than half of the sampling is wasted; choose harder or easier problems, or a larger group.",
        )
    return Finding("fine", title, f"{told} (limit here 50 %).")


def _not_finite(metrics: Metrics) -> Finding:
    title, keys = "Numbers that are none", ("loss", "grad_norm", "kl", "reward")
    bad = [m.get("step") for m in metrics if any(k in m and value_of(m, k) is None for k in keys)]
    if not metrics:
        return Finding("unknown", title, "no step was recorded.")
    if bad:
        listed = ", ".join(map(str, bad[:5])) + (" …" if len(bad) > 5 else "")
        return Finding("look", title, f"loss, gradient, KL or reward was NaN or infinite in {len(bad)} step(s): {listed}.")
    return Finding("fine", title, f"loss, gradient, KL and reward were finite in all {len(metrics)} steps.")
