"""The learning rate of one update, as a pure function of its number: nothing to save, nothing to restore.

With t the update's number (0 .. total - 1), w the warm-up updates and p = (t - w) / (total - w):
  warm-up   base * (t + 1) / w                                            for t < w: the first update is not wasted on rate 0
  constant  base
  linear    base * (1 - (1 - f) * p)                                      f = final_ratio
  cosine    base * (f + (1 - f) * (1 + cos(pi * p)) / 2)                  SGDR (arXiv 1608.03983), eq. 5, no restarts
  steps     base * factor ** (number of milestones <= t)
p would reach 1, and the rate base * f, at update `total`, the one after the last: so no update has rate 0 either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

KINDS = ("constant", "cosine", "linear", "steps")


def learning_rate(
    step: int,
    *,
    kind: str,
    base: float,
    total: int,
    warmup: int,
    final_ratio: float = 0.0,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
) -> float:
    """The rate of update `step` (from 0) of `total`; see the head of the file. ValueError for settings that make no sense.

    >>> [round(learning_rate(t, kind="linear", base=1.0, total=6, warmup=2), 2) for t in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    _check(step, kind, base, total, warmup, final_ratio, milestones, factor)
    if step < warmup:
        return base * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    if kind == "linear":
        return base * (1 - (1 - final_ratio) * progress)
    if kind == "cosine":
        return base * (final_ratio + (1 - final_ratio) * (1 + math.cos(math.pi * progress)) / 2)
    if kind == "steps":
        return base * factor ** sum(m <= step for m in milestones)
    return base


def _check(
    step: int, kind: str, base: float, total: int, warmup: int, final_ratio: float, milestones: Sequence[int], factor: float
) -> None:
    if kind not in KINDS:
        raise ValueError(f"learning-rate schedule {kind!r} is unknown: use one of {', '.join(KINDS)}")
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"learning rate {base} cannot teach: give a positive number")
    if total < 1:
        raise ValueError(f"a schedule over {total} updates has no rate to give: total must be at least 1")
    if not 0 <= warmup <= total:
        raise ValueError(f"warm-up of {warmup} updates does not fit into {total}: give 0 to {total}")
    if not 0 <= step < total:
        raise ValueError(f"update {step} is outside the schedule's 0 to {total - 1}: raise total or stop earlier")
    if not 0 <= final_ratio <= 1:
        raise ValueError(f"final_ratio {final_ratio} is not a share of the base rate: give 0 to 1")
    if final_ratio and kind not in ("cosine", "linear"):
        raise ValueError(
            f"final_ratio {final_ratio} means nothing to a {kind!r} schedule: leave it out, or use cosine or linear"
        )
    if (kind == "steps") != bool(milestones):
        told = (
            "needs milestones, the updates at which the rate falls" if kind == "steps" else "has no milestones: leave them out"
        )
        raise ValueError(f"a {kind!r} schedule {told}; given {list(milestones)}")
    if list(milestones) != sorted(set(milestones)) or any(not warmup <= m < total for m in milestones):
        raise ValueError(f"milestones {list(milestones)} must rise, from the warm-up's end ({warmup}) to below total ({total})")
    if not 0 < factor <= 1:
        raise ValueError(f"factor {factor} would not lower the rate at a milestone: give a number above 0 and up to 1")
