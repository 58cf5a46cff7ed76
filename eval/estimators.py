"""Estimates of accuracy with 95 % intervals over questions or over seeds. Pure functions; numpy only.

Axes: P questions, G samples of a question. `correct_PG` is an array of 0/1 (bool, int or float), one row a question.

The questions of a test set are the sample that an interval speaks about, so a question is one cluster: its G samples are
averaged first, and the spread between questions gives the interval. What is done, and how it differs from the papers:
1. pass@k follows Chen et al. 2021 (arXiv 2107.03374, eq. 1), 1 - C(n-c, k) / C(n, k), as a product, which does not overflow.
2. The interval of a mean of clusters is Wilson's (1927) with the number of trials replaced by the effective one, p(1-p)/SE^2,
   and the normal quantile by Student's t with P-1 degrees of freedom (as Dean and Pagano 2015 do for surveys). It stays
   within [0, 1] and has a width where all agree. Where every question's value is 0 or 1 it is Wilson's itself.
3. The design effect p(1-p)/P over SE^2 is measured badly where few questions differ from 0 (or from 1): one right sample in 30
   questions of 64 would count as hundreds of trials. It is drawn towards 1, where a question counts as one trial, with a weight
   chosen by simulation (`FEW`); with 100 questions that speak nothing is left of it. bench/coverage.py shows what that reaches.
4. maj@k: the most frequent answer of k; a tie is broken at random, in expectation. For k below the n samples taken it is the
   mean over all C(n, k) subsets, computed exactly by generating functions, as pass@k is; nothing is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

UPPER = 0.975  # quantile of a two-sided 95 % interval
FEW = 8.0  # see point 3: the square of the number of questions at which the design effect is half measured, half assumed


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval and the number of independent units behind it (questions or seeds).

    >>> wilson(8, 10)
    Estimate(value=0.8, low=0.4902, high=0.9433, n=10)
    """

    value: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        return f"Estimate(value={self.value:.4g}, low={self.low:.4g}, high={self.high:.4g}, n={self.n})"


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k samples drawn from n, of which c are right, hold a right one: 1 - C(n-c, k) / C(n, k).

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} right answers among {n} samples cannot be; give 0 <= c <= n")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples a question; take at least {k} samples or a smaller k")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def mean_pass_at_k(correct_PG: ArrayLike, k: int) -> Estimate:
    """pass@k averaged over questions. With k = G a question counts 1 when any of its samples is right."""
    right_PG = _checked(correct_PG)
    samples = right_PG.shape[1]
    return mean_of_questions([pass_at_k(samples, int(c), k) for c in right_PG.sum(axis=1)])


def mean_at_k(correct_PG: ArrayLike) -> Estimate:
    """mean@G: the share of right samples, averaged over questions (sampled pass@1; greedy accuracy where G is 1)."""
    return mean_of_questions(_checked(correct_PG).mean(axis=1))


def maj_at_k(answers: Sequence[Hashable], right: Sequence[float], k: int) -> float:
    """The chance that the majority of k samples, drawn from these without replacement, is right; ties broken at random.

    `answers` are what is voted on, one a sample, equal where they mean the same; None has no vote (no answer was found), and
    where nobody votes the result is wrong. `right` holds each sample's verdict.

    >>> maj_at_k(["4", "4", "5", "6"], [1, 1, 0, 0], k=4), maj_at_k(["4", "5"], [1, 0], k=2)
    (1.0, 0.5)
    """
    n = len(answers)
    if n != len(right):
        raise ValueError(f"{n} answers with {len(right)} verdicts: give one verdict a sample")
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} cannot be estimated from {n} samples a question; take at least {k} samples or a smaller k")
    votes: dict[Hashable, list[float]] = {}
    for answer, verdict in zip(answers, right, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(float(verdict))
    classes = sorted((len(v), math.fsum(v) / len(v)) for v in votes.values())
    return _majority(tuple(classes), n - sum(size for size, _ in classes), k)


@lru_cache(maxsize=65536)
def _majority(classes: tuple[tuple[int, float], ...], silent: int, k: int) -> float:
    """`classes`: (votes, share right) of each answer; `silent` samples have no vote."""
    n = silent + sum(size for size, _ in classes)
    if k == n:
        most = max((size for size, _ in classes), default=0)
        tied = [share for size, share in classes if size == most]
        return math.fsum(tied) / max(1, len(tied))
    total = math.fsum(
        share * math.comb(size, j) * _others(tuple(s for i, (s, _) in enumerate(classes) if i != at), silent, j, k - j)
        for at, (size, share) in enumerate(classes)
        if share
        for j in range(1, min(size, k) + 1)
    )
    return min(1.0, total / math.comb(n, k))


@lru_cache(maxsize=65536)
def _others(sizes: tuple[int, ...], silent: int, j: int, rest: int) -> float:
    """Ways to draw `rest` samples from the other answers, none more often than j times, each way times 1 / (1 + answers tied at j).

    1 / (1 + T) is the integral of y^T over [0, 1], and Gauss-Legendre nodes integrate these polynomials exactly: at each node y
    an answer with s votes is the polynomial sum_{i<j} C(s, i) x^i + y C(s, j) x^j, and the coefficient of x^rest is wanted.
    """
    nodes, weights = np.polynomial.legendre.leggauss(rest // (2 * j) + 1)
    y = (nodes + 1) / 2
    ways = np.zeros((len(y), rest + 1))  # [node, samples drawn]
    ways[:, : silent + 1] = [math.comb(silent, i) for i in range(min(silent, rest) + 1)]
    for size in sizes:
        new = ways.copy()
        for i in range(1, min(size, j, rest) + 1):
            new[:, i:] += ways[:, : rest + 1 - i] * math.comb(size, i) * (y[:, None] if i == j else 1.0)
        ways = new
    return float(weights @ ways[:, rest]) / 2


def standard_error(values_P: ArrayLike) -> float:
    """Of the mean of one value a question: the samples of a question are one cluster. One question alone: nan."""
    values = np.asarray(values_P, dtype=np.float64)
    return float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan


def wilson(successes: int, n: int) -> Estimate:
    """A plain proportion of n independent trials with Wilson's score interval."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials are no proportion; give 0 <= successes <= n and n >= 1")
    return Estimate(successes / n, *_score_interval(successes / n, n, NormalDist().inv_cdf(UPPER)), n)


def mean_of_questions(values_P: ArrayLike) -> Estimate:
    """The mean of one value in [0, 1] a question, with the interval of point 2 above. One question alone: [0, 1]."""
    values = np.asarray(values_P, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"got values of shape {values.shape}; give one value a question and at least one question")
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise ValueError("a value lies outside [0, 1] or is not a number; give one proportion a question")
    n, mean = values.size, float(values.mean())
    if n == 1:
        return Estimate(mean, 0.0, 1.0, 1)
    if bool(np.isin(values, (0.0, 1.0)).all()):  # the mean says what the variance is: no t
        return wilson(round(mean * n), n)
    return Estimate(mean, *_score_interval(mean, n / _design_effect(values, mean), t_quantile(n - 1)), n)


def _design_effect(values: np.ndarray, mean: float) -> float:
    """Variance of the mean over that of as many independent 0/1 trials as there are questions; points 2 and 3 above."""
    alone = mean * (1 - mean)  # above 0: some value is neither 0 nor 1
    speak = float(min(np.count_nonzero(values), np.count_nonzero(values < 1)))
    return (speak**2 * float(values.var(ddof=1)) / alone + FEW) / (speak**2 + FEW)


def interval_of_seeds(values: Sequence[float]) -> Estimate:
    """The mean over seeds with Student's t interval; two seeds at least."""
    if len(values) < 2:
        raise ValueError(f"got {len(values)} seed(s): an interval over seeds needs two or more; run more seeds")
    return student(values)


def student(values: Sequence[float]) -> Estimate:
    """The mean with Student's t interval; not clipped, for any quantity. One value alone has no interval: its ends are infinite."""
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]), -math.inf, math.inf, n)
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(n - 1) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


@cache
def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with a whole number of degrees of freedom, to 1e-9, by bisection.

    >>> round(t_quantile(2), 4)
    4.3027
    """
    if freedom < 1:
        raise ValueError(f"Student's t with {freedom} degrees of freedom is not defined; give two values or more")
    low, high = 0.0, 13.0  # 12.706 for one degree of freedom is the largest
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * UPPER - 1 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) by the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sin, cos = math.sin(angle), math.cos(angle)
    if freedom % 2:
        i = np.arange(1, (freedom - 1) // 2)  # cos + 2/3 cos^3 + 2*4/(3*5) cos^5 + ...
        terms = cos * np.cumprod(np.concatenate([[1.0], cos * cos * 2 * i / (2 * i + 1)])) if freedom > 1 else np.zeros(1)
        return 2 / math.pi * (angle + sin * float(terms.sum()))
    i = np.arange(1, freedom // 2)  # 1 + 1/2 cos^2 + 1*3/(2*4) cos^4 + ...
    return sin * float(np.cumprod(np.concatenate([[1.0], cos * cos * (2 * i - 1) / (2 * i)])).sum())


def _score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval: the proportions that a score test with critical value z does not reject."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def _checked(correct_PG: ArrayLike) -> np.ndarray:
    right_PG = np.asarray(correct_PG, dtype=np.float64)
    if right_PG.ndim != 2 or 0 in right_PG.shape:
        raise ValueError(f"got correctness of shape {right_PG.shape}; give [questions, samples] with at least one of each")
    if not bool(np.isin(right_PG, (0.0, 1.0)).all()):
        raise ValueError("correctness must be 0 or 1 for every sample; a sample without a verdict cannot be counted")
    return right_PG
