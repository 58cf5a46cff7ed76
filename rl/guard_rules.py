"""What each guard looks at in a step's metrics, and when it finds it bad. Thresholds are the recipe's [guard] table.

A level is judged against an absolute threshold, against the run's first step (what must not be lost over the whole run) or against the
median of the last `guard.patience` good steps (what must not jump). A rule answers None where the step has not what it looks at, "" where
that is fine, and else what is wrong, in numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rl.config import Guard

if TYPE_CHECKING:
    from rl.guard import Watch

PREFERENCE = ("preference_drift", "preference_rest", "preference_tokens")
START = ("entropy", "language", "format", "accuracy", *PREFERENCE)  # kept of the first step that has them
RECENT = ("length", "reward", "tokens_per_s")  # kept of the last good steps
NOTICED = 0.02  # a rise of reward or accuracy below it is none
NOTICED_FALL = 0.1  # of the other rewards, in their own weights
PAID_LENGTH, TIE = 1.3, 0.4  # times the first length, and a correlation within groups: from both on, length is what is paid for


class Seen:
    """A step's metrics beside what came before."""

    def __init__(self, now: Mapping[str, Any], watch: Watch) -> None:
        self.now, self.watch, self.config = now, watch, watch.config

    def pair(self, name: str) -> tuple[float, float] | None:
        """(first step's, this step's) value; None in the first one, or where it is missing."""
        return (self.watch.start[name], self.now[name]) if name in self.watch.start and name in self.now else None

    def usual(self, name: str) -> float | None:
        """The median over the last good steps; None before there are any."""
        return median(self.watch.recent[name]) if self.watch.recent[name] else None

    def level(self, name: str) -> float | None:
        """The median over the last good steps and this one: one lucky step does not lift it."""
        values = [*self.watch.recent[name], *([self.now[name]] if name in self.now else [])]
        return median(values) if values else None


@dataclass(frozen=True)
class Rule:
    """One guard. `remedy` is a sentence; at-once rules bring their own in the reason."""

    judge: Callable[[Seen], str | None]
    remedy: str = ""
    at_once: bool = False
    unit: str = "step"  # "probe": judged only in steps with a held-out probe

    def patience(self, config: Guard) -> int:
        """Bad steps (or probes) in a row that stop the run."""
        return config.patience if self.unit == "step" else max(1, math.ceil(config.patience / max(1, config.probe_every)))


def _nan(s: Seen) -> str | None:
    bad = [k for k, v in s.now.items() if isinstance(v, float) and not math.isfinite(v)]
    if not bad:
        return ""
    return f"{', '.join(bad)} of this step is {s.now[bad[0]]}: learn.lr is too high, or a reward or the data is broken"


def _mismatch(s: Seen) -> str | None:
    """Raw: before the importance correction caps anything."""
    if "mismatch" not in s.now:
        return None
    stale = s.now.get("staleness_max", 0.0) > 0  # then the policies differ, and by more than rounding
    allowed = max(s.watch.tolerance, s.config.drift) if stale else s.watch.tolerance
    if s.now["mismatch"] <= allowed:  # nan is no agreement
        return ""
    return (
        f"sampler and learner disagree: their log-probs of a token differ by {s.now['mismatch']:.3g} nats in the mean (allowed "
        f"{allowed:.3g}). "
        + (
            "The rollouts are too stale for this learn.lr: lower it, or rollout.max_staleness"
            if stale
            else "Stale weights, another temperature, or a chat template or BOS the sampler adds"
        )
    )


def _stale(s: Seen) -> str | None:
    if "staleness_max" not in s.now:
        return None
    age, bound = s.now["staleness_max"], s.watch.max_staleness
    return "" if age <= bound else (
        f"a sample is of weights {age:g} steps old, rollout.max_staleness = {bound:g}: the sampler did not take the learner's weights"
    )  # fmt: skip


def _masked(s: Seen) -> str | None:
    share = s.now.get("masked", 0.0)
    return "" if share <= s.config.masked else (
        f"{share:.1%} of this step's samples have no verdict (allowed {s.config.masked:.1%}); their reasons stand in rollouts/"
    )  # fmt: skip


def _disk(s: Seen) -> str | None:
    if "disk_free" not in s.now:
        return None
    free, wanted = s.now["disk_free"], s.config.disk * s.now["checkpoint_bytes"]
    return "" if free >= wanted else (
        f"the disk is nearly full: {free / 1e6:,.1f} MB are free where the run writes, the next checkpoint takes "
        f"{s.now['checkpoint_bytes'] / 1e6:,.1f} MB: free space, then go on with --resume"
    )  # fmt: skip


def _truncated(s: Seen) -> str | None:
    share = s.now.get("truncated")
    return None if share is None else "" if share < s.config.truncated else (
        f"{share:.0%} of the completions were cut off (allowed below {s.config.truncated:.0%}; mean length {s.now.get('length', 0):.0f}): "
        "the reward is flat because answers do not fit"
    )  # fmt: skip


def _zero_variance(s: Seen) -> str | None:
    share = None if "reverse_kl" in s.now else s.now.get("zero_variance")  # a teacher judges each token
    return None if share is None else "" if share < s.config.zero_variance else (
        f"{share:.0%} of the groups had one reward only (allowed below {s.config.zero_variance:.0%}): nothing is left to learn from these "
        "prompts (all right, or all wrong)"
    )  # fmt: skip


def _entropy(s: Seen) -> str | None:
    if not (both := s.pair("entropy")):
        return None
    first, now = both
    return "" if now >= s.config.entropy * first else (
        f"entropy {first:.3g} → {now:.3g} nats a token, below {s.config.entropy:g} of the first step's: groups agree, exploration ends"
    )  # fmt: skip


def _repetition(s: Seen) -> str | None:
    share = s.now.get("repetition")
    return None if share is None else "" if share <= s.config.repetition else (
        f"{share:.0%} of what is sampled repeats itself within its answer (allowed {s.config.repetition:.0%})"
    )  # fmt: skip


def _language(s: Seen) -> str | None:
    if not (both := s.pair("language")):
        return None
    first, now = both
    return "" if first - now <= s.config.language else (
        f"words in the script of the question {first:.0%} → {now:.0%} of the answers' (allowed: {s.config.language:.0%} fewer)"
    )  # fmt: skip


def _format(s: Seen) -> str | None:
    form, right = s.pair("format"), s.pair("accuracy")
    if not form or not right:
        return None
    learned = form[1] - form[0] > s.config.format and right[1] - right[0] < NOTICED
    return "" if not learned else (
        f"the format reward rose from {form[0]:.2f} to {form[1]:.2f}, accuracy from {right[0]:.3f} to {right[1]:.3f}: only tags are learned"
    )  # fmt: skip


def _kl(s: Seen) -> str | None:
    nats = s.now.get("kl")
    return None if nats is None else "" if nats <= s.config.kl else (
        f"the policy is {nats:.3g} nats a token away from its reference (allowed {s.config.kl:g})"
    )  # fmt: skip


def _length(s: Seen) -> str | None:
    """Longer answers that are paid for are what R1-Zero is about; longer ones that are not are a run-away."""
    usual, reward = s.usual("length"), s.usual("reward")
    if usual is None or reward is None or "length" not in s.now:
        return None
    away = s.now["length"] > s.config.length * usual and s.now["reward"] < reward + NOTICED
    return "" if not away else (
        f"answers of {s.now['length']:.0f} tokens, {s.now['length'] / usual:.1f} times the usual {usual:.0f}, and no more reward "
        f"({reward:.3f} → {s.now['reward']:.3f})"
    )  # fmt: skip


def _throughput(s: Seen) -> str | None:
    usual = s.usual("tokens_per_s")
    if usual is None or "tokens_per_s" not in s.now:
        return None
    now = s.now["tokens_per_s"]
    return "" if now >= s.config.throughput * usual else (
        f"{now:,.0f} tokens/s, usually {usual:,.0f} (allowed: not below {s.config.throughput:g} of it)"
    )  # fmt: skip


def _workers(s: Seen) -> str | None:
    if "workers" not in s.now:
        return None
    lost = s.now.get("workers_lost", 0.0)
    return "" if not lost else f"{lost:.0f} rollout workers were lost in this step, {s.now['workers']:.0f} are left"


def _hacking(s: Seen) -> str | None:
    """The same problems as at the best probe, paired: a fall beyond chance while the reward did not fall."""
    best, now, reward = s.watch.best, s.now.get("heldout_right"), s.level("reward")
    if not best or now is None or reward is None or len(now) != len(best["right"]):
        return None
    falls = [b - n for b, n in zip(best["right"], now, strict=True)]
    mean = math.fsum(falls) / len(falls)
    spread = math.sqrt(math.fsum((f - mean) ** 2 for f in falls) / max(1, len(falls) - 1) / len(falls))
    hacked = mean > s.config.hacking * spread and mean > 0 and min(reward, s.now["reward"]) >= best["reward"]
    return "" if not hacked else (
        f"accuracy on held-out problems fell from {best['heldout']:.3f} to {s.now['heldout']:.3f} "
        f"({mean / spread if spread else math.inf:.1f} standard errors), while the reward went from {best['reward']:.3f} to "
        f"{s.now['reward']:.3f}: "
        "it pays for something else"
    )  # fmt: skip


def _preference(s: Seen) -> str | None:
    """A model of preferences is only as good as the answers it was trained on: what it pays for beside them is not what is wanted."""
    if not (drift := s.pair("preference_drift")):
        return None
    signs = []
    if (far := s.now["preference_drift"]) > s.config.preference:
        signs.append(f"its scores are {far:.1f} standard deviations above the answers it was trained on")
    if drift[1] - drift[0] > NOTICED:
        tokens, rest, tie = s.pair("preference_tokens"), s.pair("preference_rest"), s.now.get("preference_length", 0.0)
        if tokens and tokens[1] > PAID_LENGTH * tokens[0] and tie > TIE:
            signs.append(f"it pays for length ({tokens[0]:.0f} → {tokens[1]:.0f} tokens, correlation {tie:.2f})")
        if rest and rest[1] < rest[0] - NOTICED_FALL:
            signs.append(f"the other rewards of its answers fell from {rest[0]:.2f} to {rest[1]:.2f}")
    share = s.now.get("preference_share", 0.0)
    return "" if not signs else (
        f"the preference model's score went from {drift[0]:+.2f} to {drift[1]:+.2f} with {share:.0%} of the reward's variance: "
        + "; ".join(signs)
    )  # fmt: skip


LOWER = "Lower learn.lr, or set algorithm.kl"
RULES: dict[str, Rule] = {
    "nan": Rule(_nan, at_once=True),
    "stale": Rule(_stale, at_once=True),
    "mismatch": Rule(_mismatch, at_once=True),
    "masked": Rule(_masked, at_once=True),
    "disk": Rule(_disk, at_once=True),
    "truncated": Rule(_truncated, "Raise rollout.max_tokens"),
    "zero_variance": Rule(_zero_variance, "Harder or easier prompts, or a larger rollout.group"),
    "entropy": Rule(_entropy, f"Raise algorithm.clip_high. {LOWER}"),
    "repetition": Rule(_repetition, f"Read rollouts/; [rewards.repetition] or rollout.stop_loops help. {LOWER}"),
    "language": Rule(_language, f"Read rollouts/; [rewards.language] helps. {LOWER}"),
    "format": Rule(
        _format, "Lower the weight of rewards.format, or easier prompts; is the grader right (reasons in rollouts/)?"
    ),
    "kl": Rule(_kl, "Lower learn.lr, or raise algorithm.kl"),
    "length": Rule(_length, "Read rollouts/; [rewards.soft_overlong] helps. " + LOWER),
    "hacking": Rule(_hacking, "Read the best-paid answers in rollouts/ and mend the reward", unit="probe"),
    "preference": Rule(
        _preference,
        "Read the best-paid answers in rollouts/; lower the weight of rewards.preference, or train its model on answers like these. "
        + LOWER,
    ),
    "throughput": Rule(_throughput, "Look at the host, its other tenants, and seconds_* in metrics.jsonl"),
    "workers": Rule(_workers, "Look at what ends them (the lines above), or lower rollout.workers"),
}
