"""Closed forms, brute force and a coverage simulation for eval/estimators.py."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from eval.estimators import (
    Estimate,
    interval_of_seeds,
    mean_at_k,
    mean_of_questions,
    mean_pass_at_k,
    pass_at_k,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 3), (7, 7)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, c: int) -> None:
    right = [1] * c + [0] * (n - c)
    for k in range(1, n + 1):
        subsets = list(combinations(right, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-14)


def test_pass_at_k_is_unbiased_where_the_plug_in_is_not() -> None:
    p, n, k = 0.15, 6, 4
    chances = [float(np.prod([(n - i) / (i + 1) for i in range(c)])) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(chances) == pytest.approx(1)
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chances)) == pytest.approx(truth, abs=1e-12)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chances)) < truth - 0.02


def test_pass_at_k_does_not_overflow() -> None:
    assert pass_at_k(20_000, 1, 10_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_the_impossible(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"give|take"):
        pass_at_k(n, c, k)


def test_means_over_questions() -> None:
    correct_PG = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert mean_at_k(correct_PG).value == pytest.approx((0.5 + 0 + 1 + 0.25) / 4)
    assert mean_pass_at_k(correct_PG, 1).value == pytest.approx(mean_at_k(correct_PG).value)
    assert mean_pass_at_k(correct_PG, 2).value == pytest.approx((5 / 6 + 0 + 1 + 0.5) / 4)
    assert mean_pass_at_k(correct_PG, 4).value == 0.75
    assert mean_pass_at_k(correct_PG, 4).n == 4
    assert mean_at_k(np.array(correct_PG, dtype=bool)) == mean_at_k(correct_PG)


@pytest.mark.parametrize("bad", [[], [[]], [1, 0], [[0.5, 1.0]], [[float("nan")]]])
def test_correctness_must_be_a_table_of_verdicts(bad: list[object]) -> None:
    with pytest.raises(ValueError):
        mean_at_k(bad)


def test_wilson_by_hand() -> None:
    # 8 of 10 with z = 1.959964: (0.8 + z^2/20) / (1 + z^2/10) -+ z / (1 + z^2/10) * sqrt(0.016 + z^2/400)
    got = wilson(8, 10)
    assert (got.value, got.n) == (0.8, 10)
    assert (got.low, got.high) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))
    assert wilson(0, 20).low == 0.0
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 20).high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6)
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)
    with pytest.raises(ValueError):
        wilson(0, 0)


def test_t_quantiles_against_the_printed_table() -> None:
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 30: 2.0423, 120: 1.9799}
    for freedom, value in table.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=6e-5), freedom
    assert t_quantile(10_001) == pytest.approx(1.95996, abs=3e-4)


def test_interval_of_seeds_by_hand() -> None:
    got = interval_of_seeds([0.30, 0.34, 0.38])  # half = 4.302653 * 0.04 / sqrt(3)
    assert got.value == pytest.approx(0.34)
    assert got.n == 3
    assert got.high - got.value == pytest.approx(0.0993655, abs=1e-6) == got.value - got.low
    assert interval_of_seeds([2.0, 4.0]).high == pytest.approx(3 + 12.7062, abs=1e-4)
    with pytest.raises(ValueError, match="two or more"):
        interval_of_seeds([0.3])


def test_mean_of_two_questions_by_hand() -> None:
    # mean 0.4, variance 0.08, SE^2 0.04, so 0.4 * 0.6 / 0.04 = 6 effective trials; t(1) = 12.7062, t^2 = 161.4476
    centre, root = (0.4 + 161.4476 / 12) / (1 + 161.4476 / 6), (0.24 / 6 + 161.4476 / 144) ** 0.5
    half = 12.7062 / (1 + 161.4476 / 6) * root
    got = mean_of_questions([0.2, 0.6])
    assert (got.low, got.high) == (pytest.approx(centre - half, abs=1e-5), pytest.approx(centre + half, abs=1e-5))


def test_questions_of_one_sample_give_wilsons_interval() -> None:
    values = [1.0] * 130 + [0.0] * 370
    plain, clustered = wilson(130, 500), mean_of_questions(values)
    assert clustered.value == plain.value
    assert clustered.low == pytest.approx(plain.low, abs=2e-4)
    assert clustered.high == pytest.approx(plain.high, abs=2e-4)


def test_samples_of_one_question_are_not_counted_as_independent() -> None:
    correct_PG = np.repeat([[1], [0], [0], [1], [0]] * 20, 16, axis=1)  # 16 copies of the same verdict
    got = mean_at_k(correct_PG)
    assert got.high - got.low == pytest.approx(wilson(40, 100).high - wilson(40, 100).low, rel=0.02)
    assert got.high - got.low > 3 * (wilson(640, 1600).high - wilson(640, 1600).low)


def test_intervals_keep_a_width_and_stay_in_range() -> None:
    for value in (0.0, 0.5, 1.0):
        got = mean_of_questions([value] * 50)
        assert 0 <= got.low <= value <= got.high <= 1
        assert got.high - got.low > 0.05
    assert mean_of_questions([0.25]) == Estimate(0.25, 0.0, 1.0, 1)
    with pytest.raises(ValueError, match="outside"):
        mean_of_questions([0.5, 1.5])
    with pytest.raises(ValueError):
        mean_of_questions([])


@pytest.mark.parametrize(("a", "b"), [(0.6, 1.4), (0.3, 3.0)])
def test_coverage_is_95_percent(a: float, b: float) -> None:
    """Questions differ in difficulty (Beta), 8 samples each: the interval covers the true mean in 95 % +- 1 % of the trials."""
    random, trials, questions = np.random.default_rng(5), 8000, 150
    chances = random.beta(a, b, size=(trials, questions))
    means = random.binomial(8, chances) / 8
    estimates = [mean_of_questions(row) for row in means]
    covered = np.mean([e.low <= a / (a + b) <= e.high for e in estimates])
    assert 0.94 <= covered <= 0.96
