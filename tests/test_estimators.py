"""Closed forms, brute force and a coverage simulation for eval/estimators.py."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest

from eval.estimators import (
    Estimate,
    interval_of_seeds,
    maj_at_k,
    mean_at_k,
    mean_of_questions,
    mean_pass_at_k,
    pass_at_k,
    standard_error,
    t_quantile,
    wilson,
)

# questions, samples, true accuracy, allowed distance from 95 % (1 %, and half a percent of 2,000 draws; 30 questions reach less)
COVERAGE = [(1319, 4, 0.05, 0.015), (1319, 1, 0.5, 0.015), (500, 4, 0.3, 0.015), (500, 16, 0.95, 0.015), (30, 64, 0.2, 0.02)]


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
    # mean 0.4, variance 0.08, so 0.08 / 0.24 = 1/3 of a trial's; two questions speak: (4 / 3 + 8) / (4 + 8) = 7/9, and
    # 2 / (7/9) = 18/7 effective trials; t(1) = 12.7062, t^2 = 161.4476
    n = 18 / 7
    centre, root = (0.4 + 161.4476 / (2 * n)) / (1 + 161.4476 / n), (0.24 / n + 161.4476 / (4 * n * n)) ** 0.5
    half = 12.7062 / (1 + 161.4476 / n) * root
    got = mean_of_questions([0.2, 0.6])
    assert (got.low, got.high) == (pytest.approx(centre - half, abs=1e-5), pytest.approx(centre + half, abs=1e-5))


def test_questions_of_one_sample_give_wilsons_interval() -> None:
    values = [1.0] * 130 + [0.0] * 370
    plain, clustered = wilson(130, 500), mean_of_questions(values)
    assert clustered == plain


def test_samples_of_one_question_are_not_counted_as_independent() -> None:
    correct_PG = np.repeat([[1], [0], [0], [1], [0]] * 20, 16, axis=1)  # 16 copies of the same verdict
    got = mean_at_k(correct_PG)
    assert got.high - got.low == pytest.approx(wilson(40, 100).high - wilson(40, 100).low, rel=0.02)
    assert got.high - got.low > 3 * (wilson(640, 1600).high - wilson(640, 1600).low)


def test_intervals_keep_a_width_and_stay_in_range() -> None:
    for value, width in ((0.0, 0.05), (0.5, 0.01), (1.0, 0.05)):
        got = mean_of_questions([value] * 50)
        assert 0 <= got.low <= value <= got.high <= 1
        assert got.high - got.low > width
    assert mean_of_questions([0.25]) == Estimate(0.25, 0.0, 1.0, 1)
    with pytest.raises(ValueError, match="outside"):
        mean_of_questions([0.5, 1.5])
    with pytest.raises(ValueError):
        mean_of_questions([])


def test_one_question_that_speaks_is_not_taken_for_hundreds_of_trials() -> None:
    """30 questions of 64 samples: none right must not be less certain than one right sample in one question."""
    nothing, little = mean_of_questions([0.0] * 30), mean_of_questions([1 / 64] + [0.0] * 29)
    assert nothing.high == pytest.approx(1.959964**2 / (30 + 1.959964**2), abs=1e-6)
    assert 0.95 * nothing.high < little.high < 1.25 * nothing.high


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_maj_at_k_is_the_mean_over_subsets_and_tie_breaks(n: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(30):
        answers = [None if a == 0 else f"a{a}" for a in random.integers(0, 5, n)]
        right = [1.0 if a == "a1" else 0.0 for a in answers]
        for k in range(1, n + 1):
            won = []
            for chosen in combinations(range(n), k):
                votes = Counter(answers[i] for i in chosen if answers[i] is not None)
                tied = [a for a, c in votes.items() if c == max(votes.values())]
                won.append(sum(a == "a1" for a in tied) / max(1, len(tied)))
            assert maj_at_k(answers, right, k) == pytest.approx(sum(won) / len(won), abs=1e-12)


def test_maj_at_1_is_the_mean_and_nobodys_vote_is_wrong() -> None:
    assert maj_at_k(["1", "2", "1", None], [1, 0, 1, 0], 1) == pytest.approx(0.5)
    assert maj_at_k([None, None], [0, 0], 2) == 0.0
    assert maj_at_k(["x", "x", "y"], [1, 0, 0], 3) == 0.5  # one answer, two verdicts: its share counts
    assert maj_at_k(["r"] * 33 + ["w"] * 31, [1] * 33 + [0] * 31, 32) == pytest.approx(  # hypergeometric by hand
        sum(comb(33, j) * comb(31, 32 - j) * (1.0 if j > 16 else 0.5) for j in range(16, 33)) / comb(64, 32), rel=1e-12
    )
    with pytest.raises(ValueError, match="maj@3"):
        maj_at_k(["1", "2"], [1, 0], 3)
    with pytest.raises(ValueError, match="one verdict a sample"):
        maj_at_k(["1", "2"], [1], 1)


def test_standard_error_is_of_the_questions() -> None:
    assert standard_error([0.0, 1.0, 0.5, 0.5]) == pytest.approx((0.5 / 3) ** 0.5 / 2)
    assert np.isnan(standard_error([0.3]))


@pytest.mark.parametrize(("questions", "samples", "chance", "within"), COVERAGE)
def test_intervals_cover_the_truth_in_95_percent(questions: int, samples: int, chance: float, within: float) -> None:
    """2,000 draws of questions that differ in difficulty (Beta), correlated samples of each; bench/coverage.py has them all."""
    random = np.random.default_rng(questions + samples)
    difficulty = random.beta(chance, 1 - chance, size=(2000, questions))  # intra-class correlation 0.5
    estimates = [mean_of_questions(row) for row in random.binomial(samples, difficulty) / samples]
    assert abs(np.mean([e.low <= chance <= e.high for e in estimates]) - 0.95) <= within
    if questions > 30:  # and the misses are on both sides
        assert np.mean([e.high < chance for e in estimates]) < 0.04 > np.mean([e.low > chance for e in estimates])
