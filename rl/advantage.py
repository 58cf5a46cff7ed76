"""Rewards of one group -> advantages of its completions. Plain floats, no torch.

  group_std      A_i = (r_i - mean(r)) / (std(r) + 1e-4)        GRPO, DeepSeekMath (arXiv 2402.03300), section 4.1.2
  group_mean     A_i = r_i - mean(r)                            Dr. GRPO (arXiv 2503.20783), section 3.2
  leave_one_out  A_i = r_i - mean(r_j, j != i)                  RLOO (arXiv 2402.14740), section 3.2

What differs from the papers:
 1. 1e-4 is added to the standard deviation, and that is the unbiased one (n - 1), as TRL does; DeepSeekMath names neither.
 2. A reward of None (no verdict was possible) stays out of mean, deviation and n, and its advantage is None.
 3. A group that says nothing (fewer than two verdicts, or all equal) gets exactly 0.0; RLOO is undefined for one sample.
 4. Sums are exactly rounded, so the order of a group's completions changes no bit of any advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Rewards = Sequence[float | None]

STD_EPSILON = 1e-4  # keeps the quotient finite; far below the spread of any group whose rewards disagree
EQUAL_WITHIN = 1e-8  # weighted sums of equal parts may differ by rounding


def group_std(rewards_G: Rewards) -> list[float | None]:
    """(r - mean) / (std + 1e-4), std unbiased.

    >>> [a and round(a, 4) for a in group_std([1.0, None, 0.0])]
    [0.707, None, -0.707]
    """
    values = _verdicts(rewards_G)
    if zero_variance(rewards_G):
        return _each(rewards_G, lambda r: 0.0)
    mean = _mean(values)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in values) / (len(values) - 1))
    return _each(rewards_G, lambda r: (r - mean) / (std + STD_EPSILON))


def group_mean(rewards_G: Rewards) -> list[float | None]:
    """r - mean.

    >>> group_mean([1.0, None, 0.0])
    [0.5, None, -0.5]
    """
    values = _verdicts(rewards_G)
    if zero_variance(rewards_G):
        return _each(rewards_G, lambda r: 0.0)
    mean = _mean(values)
    return _each(rewards_G, lambda r: r - mean)


def leave_one_out(rewards_G: Rewards) -> list[float | None]:
    """r - mean of the others, which is n / (n - 1) times `group_mean`.

    >>> leave_one_out([1.0, None, 0.0])
    [1.0, None, -1.0]
    """
    values = _verdicts(rewards_G)
    if zero_variance(rewards_G):
        return _each(rewards_G, lambda r: 0.0)
    total = math.fsum(values)
    return _each(rewards_G, lambda r: r - (total - r) / (len(values) - 1))


def one_each(rewards_G: Rewards) -> list[float | None]:
    """1.0 for every completion, verdict or not: a teacher puts its own in place of each, token by token (teacher.py).

    >>> one_each([0.0, None])
    [1.0, 1.0]
    """
    return [1.0 for _ in rewards_G]


def zero_variance(rewards_G: Rewards) -> bool:
    """Whether the group teaches nothing: fewer than two verdicts, or all equal.

    >>> zero_variance([1.0, None, 1.0]), zero_variance([1.0, 0.0])
    (True, False)
    """
    values = _verdicts(rewards_G)
    return len(values) < 2 or max(values) - min(values) <= EQUAL_WITHIN


ADVANTAGES: dict[str, Callable[[Rewards], list[float | None]]] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
}


def _verdicts(rewards_G: Rewards) -> list[float]:
    values = [r for r in rewards_G if r is not None]
    if not all(math.isfinite(r) for r in values):
        raise ValueError(f"rewards {list(rewards_G)} are not all finite; a reward without a verdict returns Score(None)")
    return values


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _each(rewards_G: Rewards, advantage: Callable[[float], float]) -> list[float | None]:
    return [None if r is None else advantage(r) for r in rewards_G]
