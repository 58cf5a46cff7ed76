"""Intervals that closed forms do not give: the bootstrap, a ratio of means, the largest gap between groups. numpy only; pure.

Axes: P questions, D draws. Everything that is drawn has a seed of its own, so the same input gives the same output. What is done:
1. `bootstrap`: of the studentised mean over questions (Hall 1988), for skewed and unbounded quantities such as tokens. BCa and the
   percentile bootstrap were tried: of 30 log-normal counts they contain the mean in 91 % and 88 % of the cases, this in 93 %.
2. `ratio_of_means`: Fieller (1954): the ratios that a paired t-test does not reject. It is unbounded where the denominator may
   be 0, which a bootstrap would hide.
3. `largest_gap`: the two groups that lie furthest apart were picked because they do, so their interval is one that holds for
   all pairs at once: the 95 % quantile of the largest |difference| / SE over all pairs of normals with the groups' covariance
   (Tukey's range by simulation, for unequal groups that are independent, or the same questions answered several times).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from eval.estimators import UPPER, Estimate, mean_of_questions, t_quantile

SEED = 20_260_000
NORMAL = NormalDist()


@dataclass(frozen=True)
class Gap:
    """The groups with the highest and the lowest mean, their distance with its interval, and the chance of one as large in
    equal groups.

    >>> largest_gap({"a": [0.0, 1.0], "b": [1.0, 1.0]}).high_group
    'b'
    """

    high_group: str
    low_group: str
    value: float
    low: float
    high: float
    p: float
    groups: int


def bootstrap(values_P: ArrayLike, *, draws: int = 2000, seed: int = SEED) -> Estimate:
    """The mean of one value a question with its bootstrap-t interval. One question, or no spread, gives the value alone."""
    values = np.asarray(values_P, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"got values of shape {values.shape}; give one value a question and at least one question")
    n, mean = values.size, float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error <= 1e-12 * abs(mean):
        return Estimate(mean, mean, mean, n)
    random, drawn = np.random.default_rng(seed), np.empty(draws)
    at = max(1, 1_000_000 // n)  # draws that are held at once
    for start in range(0, draws, at):
        sets = values[random.integers(0, n, size=(min(at, draws - start), n))]
        off, own = sets.mean(axis=1) - mean, sets.std(axis=1, ddof=1) / math.sqrt(n)
        # a draw without spread says nothing about the error: the widest t that is sensible, that of two questions
        drawn[start : start + at] = np.where(own > 0, off / np.where(own > 0, own, 1.0), np.sign(off) * t_quantile(1))
    low, high = (float(np.quantile(drawn, q)) for q in (1 - UPPER, UPPER))
    return Estimate(mean, min(mean, mean - high * error), max(mean, mean - low * error), n)


def ratio_of_means(above_P: ArrayLike, below_P: ArrayLike) -> Estimate:
    """mean(above) / mean(below) over the same questions, with Fieller's interval; its ends are inf where it is unbounded.

    Raises ValueError where the lower mean is 0: there is no ratio.
    """
    above, below = np.asarray(above_P, dtype=np.float64), np.asarray(below_P, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or above.size < 2:
        raise ValueError(
            f"got values of shape {above.shape} and {below.shape}; give one value a question, the same two or more"
        )
    n, a, b = above.size, float(above.mean()), float(below.mean())
    if b == 0:
        raise ValueError("the ratio's denominator is 0 on every question; there is no ratio to report")
    covariance = np.cov(above, below) / n * t_quantile(n - 1) ** 2
    # |a - r b|^2 <= t^2 Var(a - r b), a quadratic in r: A r^2 - 2 B r + C <= 0
    first, second, third = b * b - covariance[1, 1], a * b - covariance[0, 1], a * a - covariance[0, 0]
    root = second * second - first * third
    if first <= 0 or root < 0:
        return Estimate(a / b, -math.inf, math.inf, n)
    return Estimate(a / b, (second - math.sqrt(root)) / first, (second + math.sqrt(root)) / first, n)


def largest_gap(groups: Mapping[str, ArrayLike], *, paired: bool = False, draws: int = 10_000, seed: int = SEED) -> Gap:
    """Between the highest and the lowest mean of values in [0, 1], one a question; ties go to the name that sorts first.

    Groups are independent, or, with `paired`, the same questions in the same order. Two groups at least, else ValueError. The
    standard error of a group is its interval's width, so one that agrees has one too.
    """
    if len(groups) < 2:
        raise ValueError(f"got {len(groups)} group(s): a gap needs two or more")
    names = sorted(groups)
    estimates = [mean_of_questions(groups[name]) for name in names]
    value = np.array([e.value for e in estimates])
    error = np.array([(e.high - e.low) / (2 * NORMAL.inv_cdf(UPPER)) for e in estimates])
    alike = _correlation(np.array([groups[name] for name in names], dtype=np.float64)) if paired else np.eye(len(names))
    square, both = error**2, alike * np.outer(error, error)
    apart = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * both, 1e-12))  # SE of each difference
    root = np.linalg.cholesky(alike + 1e-9 * np.eye(len(names))) if paired else alike
    drawn = np.random.default_rng(seed).standard_normal((draws, len(names))) @ root.T * error
    largest = np.zeros(draws)
    for i in range(len(names) - 1):
        largest = np.maximum(largest, (np.abs(drawn[:, i : i + 1] - drawn[:, i + 1 :]) / apart[i, i + 1 :]).max(axis=1))
    top, bottom = int(np.argmax(value)), int(np.argmin(value))
    top, bottom = (1, 0) if top == bottom else (top, bottom)
    gap, of_pair = float(value[top] - value[bottom]), float(apart[top, bottom])
    half = float(np.quantile(largest, 2 * UPPER - 1)) * of_pair
    p = (1 + int(np.count_nonzero(largest >= gap / of_pair))) / (1 + draws)
    return Gap(names[top], names[bottom], gap, max(0.0, gap - half), min(1.0, gap + half), p, len(names))


def _correlation(values_FP: np.ndarray) -> np.ndarray:
    """Of the rows over questions; a row without spread goes with none. Shrunk a little, so that equal rows still differ."""
    centred = values_FP - values_FP.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).sum(axis=1))
    scaled = centred / np.where(size > 0, size, 1.0)[:, None]
    off = 1 - 1 / (1 + values_FP.shape[1])
    return np.where(np.eye(len(values_FP), dtype=bool), 1.0, off * (scaled @ scaled.T))
