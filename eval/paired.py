"""Two models on the same questions: the difference, its interval and its p-value. Pure; numpy only.

Axes: P questions, G samples of a question. What is done:
1. p-values are exact tests of "each question is answered alike by both": every question's difference could as well have had the
   other sign. For one 0/1 answer a question that is McNemar's test with the binomial distribution; for G samples the same with the
   distribution of all sign flips, by convolution. It is two-sided.
2. The interval is Student's t over the questions' differences after adding two questions that differ by +s and -s (for 0/1
   answers s = 1: Agresti and Min 2005, Bonett and Price 2012), but centred at the mean. s^2 is the differences' mean square where
   many questions differ, and 1 where none does, with the weights of point 3 in eval/estimators.py.
3. `holm`: Holm (1979), for several comparisons at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from eval.estimators import FEW, t_quantile


@dataclass(frozen=True)
class Paired:
    """B minus A, in mean accuracy.

    >>> paired([[0], [0], [0]], [[1], [1], [0]])
    Paired(difference=0.6667, low=-0.4439, high=1, p=0.5, won=2, lost=0, n=3, test='McNemar')
    """

    difference: float
    low: float
    high: float
    p: float
    won: int  # questions that B answers more often right than A
    lost: int
    n: int
    test: str

    def __repr__(self) -> str:
        numbers = f"difference={self.difference:.4g}, low={self.low:.4g}, high={self.high:.4g}, p={self.p:.4g}"
        return f"Paired({numbers}, won={self.won}, lost={self.lost}, n={self.n}, test={self.test!r})"


def paired(right_a_PG: ArrayLike, right_b_PG: ArrayLike) -> Paired:
    """The accuracy of B minus that of A on the same questions, G samples each, 0/1. Raises ValueError for tables that do not pair."""
    a, b = np.asarray(right_a_PG, dtype=np.float64), np.asarray(right_b_PG, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"got correctness of shape {a.shape} and {b.shape}; give the same questions and samples for both")
    if not bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("correctness must be 0 or 1 for every sample")
    samples = a.shape[1]
    steps = (b.sum(axis=1) - a.sum(axis=1)).astype(np.int64)
    won, lost = int((steps > 0).sum()), int((steps < 0).sum())
    low, high = difference_interval(steps / samples)
    single = bool((np.abs(steps) <= 1).all()) and samples == 1
    p = mcnemar(won, lost) if single else sign_flips(steps)
    return Paired(float(steps.mean() / samples), low, high, p, won, lost, len(steps), "McNemar" if single else "sign flips")


def difference_interval(differences_P: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of the mean of differences in [-1, 1]; see point 2 above."""
    d = np.asarray(differences_P, dtype=np.float64)
    n, squares, speak = d.size, float((d * d).sum()), float(np.count_nonzero(d))
    added = (speak * squares + FEW) / (speak**2 + FEW)
    variance = ((squares + 2 * added) / (n + 2) - (float(d.sum()) / (n + 2)) ** 2) / (n + 1)
    half, mean = t_quantile(n + 1) * math.sqrt(variance), float(d.mean())
    return max(-1.0, mean - half), min(1.0, mean + half)


def mcnemar(won: int, lost: int) -> float:
    """The exact two-sided p-value of `won` against `lost` questions: a fair coin for each (McNemar 1947).

    >>> mcnemar(5, 0), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    n, few = won + lost, min(won, lost)
    tail, term = 0, 1
    for i in range(few + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, float(2 * tail / 2**n)) if n else 1.0


def sign_flips(steps_P: ArrayLike) -> float:
    """The share of all 2^P choices of signs for which |sum| is at least the observed one. Whole numbers; to about 1e-15.

    >>> sign_flips([2, 1, 0]), sign_flips([1, 1, 1, 1, 1])
    (0.5, 0.0625)
    """
    steps = np.asarray(steps_P, dtype=np.int64)
    sizes = np.abs(steps[steps != 0])
    if not sizes.size:
        return 1.0
    # half the sum moves from 0 to `sizes.sum()` as signs turn positive: chance[i] of the positive ones adding up to i
    chance = np.zeros(int(sizes.sum()) + 1)
    chance[0], reached = 1.0, 0
    for size in np.sort(sizes):
        size = int(size)
        new = chance[: reached + size + 1] / 2
        new[size:] += chance[: reached + 1] / 2
        reached += size
        chance[: reached + 1] = new
    far = abs(int(steps.sum()))
    return min(1.0, float(chance[np.abs(2 * np.arange(reached + 1) - reached) >= far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, highest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
