"""Paired tests against brute force and published values; their interval in a simulation."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from eval.paired import difference_interval, holm, mcnemar, paired, sign_flips


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0 == mcnemar(4, 4)
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar(10, 2) == mcnemar(2, 10)
    assert mcnemar(700, 800) == pytest.approx(2 * sum(comb(1500, i) for i in range(701)) / 2**1500)


def test_sign_flips_are_all_sign_flips() -> None:
    random = np.random.default_rng(2)
    for _ in range(50):
        steps = random.integers(-4, 5, size=int(random.integers(1, 9)))
        sums = [abs(sum(s * d for s, d in zip(signs, steps, strict=True))) for signs in product((1, -1), repeat=len(steps))]
        assert sign_flips(steps) == pytest.approx(np.mean([s >= abs(steps.sum()) for s in sums]), abs=1e-12)


def test_sign_flips_of_single_answers_are_mcnemar() -> None:
    for won, lost in ((3, 1), (20, 9), (600, 700)):
        assert sign_flips([1] * won + [-1] * lost + [0] * 5) == pytest.approx(mcnemar(won, lost), rel=1e-9)


def test_paired_by_hand() -> None:
    got = paired([[0], [0], [1], [1], [0]], [[1], [1], [1], [0], [1]])
    assert (got.difference, got.won, got.lost, got.n, got.test) == (pytest.approx(0.4), 3, 1, 5, "McNemar")
    assert got.p == pytest.approx(2 * (1 + 4) / 16)
    # 4 of 5 differ by 1, so does the added pair: variance ((4 + 2) / 7 - (2 / 7)^2) / 6; t(6) = 2.4469
    assert got.low == pytest.approx(0.4 - 2.446912 * ((6 / 7 - 4 / 49) / 6) ** 0.5, abs=1e-6)
    several = paired([[0, 1], [0, 0]], [[1, 1], [1, 1]])
    assert (several.difference, several.test, several.p) == (0.75, "sign flips", 0.5)
    swapped = paired([[1, 1], [1, 1]], [[0, 1], [0, 0]])
    assert (swapped.difference, swapped.low, swapped.high) == (-0.75, -several.high, -several.low)


def test_no_difference_has_a_width() -> None:
    got = paired([[1]] * 40, [[1]] * 40)
    assert (got.difference, got.p, got.won, got.lost) == (0, 1.0, 0, 0)
    assert 0.05 < got.high < 0.1
    assert got.low == -got.high


def test_tables_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="same questions and samples"):
        paired([[1]], [[1], [0]])
    with pytest.raises(ValueError, match="0 or 1"):
        paired([[0.5]], [[1]])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_mcnemar_keeps_its_level() -> None:
    """Two models that are alike: at most 5 % of the p-values are below 0.05."""
    random = np.random.default_rng(1)
    differing = random.binomial(500, 0.2, size=2000)
    won = random.binomial(differing, 0.5)
    assert 0.03 < np.mean([mcnemar(int(w), int(d - w)) <= 0.05 for w, d in zip(won, differing, strict=True)]) <= 0.055


@pytest.mark.parametrize(("questions", "samples", "gain"), [(1319, 1, 0.03), (500, 4, 0.05), (500, 16, 0.0)])
def test_the_difference_is_covered_in_95_percent(questions: int, samples: int, gain: float) -> None:
    random = np.random.default_rng(samples)
    hard = random.beta(0.6, 0.9, size=(2000, questions))
    better = np.where(random.random(hard.shape) < 0.5, random.beta(0.6, 0.9, size=hard.shape), hard)
    better = np.where(random.random(hard.shape) < gain / 0.6, 1.0, better)  # a mean of 0.4 rises by gain
    gains = (random.binomial(samples, better) - random.binomial(samples, hard)) / samples
    ends = np.array([difference_interval(row) for row in gains])
    assert abs(np.mean((ends[:, 0] <= gain) & (gain <= ends[:, 1])) - 0.95) <= 0.015
