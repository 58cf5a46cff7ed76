"""Bootstrap, Fieller and the largest gap: closed forms, known answers and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.intervals import bootstrap, largest_gap, ratio_of_means


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(10, 2, 400)
    got = bootstrap(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == (pytest.approx(got.value - half, abs=0.03), pytest.approx(got.value + half, abs=0.03))
    assert bootstrap(values) == got != bootstrap(values, seed=1)


def test_bootstrap_leans_where_the_data_lean() -> None:
    values = np.random.default_rng(1).lognormal(0, 1.2, 80)
    got = bootstrap(values)
    assert got.high - got.value > 1.3 * (got.value - got.low)  # a symmetric interval would not


def test_bootstrap_covers_token_counts() -> None:
    """Skewed, and cut at a budget; 1,000 draws of 100 questions."""
    random = np.random.default_rng(3)
    truth = float(np.minimum(random.lognormal(5, 0.8, 2_000_000), 512).mean())
    found = [bootstrap(np.minimum(random.lognormal(5, 0.8, 100), 512), draws=500) for _ in range(1000)]
    assert abs(np.mean([e.low <= truth <= e.high for e in found]) - 0.95) <= 0.02


def test_bootstrap_without_spread_and_without_data() -> None:
    got = bootstrap([3.0] * 5)
    assert (got.value, got.low, got.high) == (3, 3, 3)
    assert bootstrap([3.0]).high == 3
    rare = bootstrap([3.0] * 9 + [4.0])
    assert 3 > rare.low > 1
    assert 4 < rare.high < 6
    with pytest.raises(ValueError, match="at least one question"):
        bootstrap([])


def test_fieller_by_hand() -> None:
    # above (1, 3), below (2, 2): no variance below, so it is the t interval of above, halved: 2/2 -+ 12.7062 * 1 / 2
    got = ratio_of_means([1, 3], [2, 2])
    assert (got.value, got.low, got.high) == (1, pytest.approx(1 - 6.3531, abs=1e-4), pytest.approx(1 + 6.3531, abs=1e-4))
    assert ratio_of_means([10, 11, 12], [20, 22, 24]).high == pytest.approx(0.5)  # always half: no doubt


def test_fieller_is_unbounded_where_the_denominator_may_be_nothing() -> None:
    got = ratio_of_means([1, 0, 1, 1], [1, 0, 0, 0])
    assert (got.low, got.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="no ratio"):
        ratio_of_means([1, 1], [0, 0])
    with pytest.raises(ValueError, match="two or more"):
        ratio_of_means([1], [1])


def test_fieller_covers_the_ratio() -> None:
    """A student that keeps 0.7 of its teacher's answers and finds some of its own; 2,000 draws."""
    random = np.random.default_rng(4)
    teacher = random.random((2000, 300)) < 0.5
    student = np.where(teacher, random.random(teacher.shape) < 0.7, random.random(teacher.shape) < 0.1)
    truth = (0.5 * 0.7 + 0.5 * 0.1) / 0.5
    found = [ratio_of_means(s, t) for s, t in zip(student, teacher, strict=True)]
    assert abs(np.mean([e.low <= truth <= e.high for e in found]) - 0.95) <= 0.015


def test_largest_gap_names_the_groups() -> None:
    got = largest_gap({"b": [1.0] * 40, "a": [0.0] * 40, "c": [0.5] * 40})
    assert (got.high_group, got.low_group, got.value, got.groups) == ("b", "a", 1.0, 3)
    assert got.p < 0.001
    assert got.low > 0.5
    assert got.high == 1.0
    even = largest_gap({"x": [0.5, 0.5], "y": [0.5, 0.5]})
    assert (even.value, even.low) == (0, 0)
    assert even.p == pytest.approx(1)
    with pytest.raises(ValueError, match="two or more"):
        largest_gap({"x": [1.0]})


def test_largest_gap_of_two_groups_is_no_correction() -> None:
    chance = np.random.default_rng(5)
    got = largest_gap({"x": chance.random(500) < 0.6, "y": chance.random(500) < 0.5})
    half = 1.96 * math.hypot(math.sqrt(0.24 / 500), math.sqrt(0.25 / 500))
    assert got.high - got.value == pytest.approx(half, rel=0.05)


def test_picking_the_largest_of_equal_groups_is_no_discovery() -> None:
    """20 groups of 100 questions, all alike: the corrected interval excludes 0 in at most 5 % of 400 draws, a plain one nearly always."""
    chance = np.random.default_rng(6)
    found = [largest_gap({str(g): chance.random(100) < 0.4 for g in range(20)}, draws=1000) for _ in range(400)]
    assert np.mean([g.low > 0 for g in found]) <= 0.07
    assert np.mean([g.p <= 0.05 for g in found]) <= 0.07
    assert np.mean([g.value > 1.96 * math.sqrt(2 * 0.24 / 100) for g in found]) > 0.8


def test_largest_gap_of_the_same_questions() -> None:
    """Three models on the same questions: what they share does not blur the gap; the plain reading would be twice as wide."""
    chance = np.random.default_rng(7)
    hard = chance.random(400)
    models = {
        name: (hard + chance.normal(0, 0.1, 400) < level).astype(float) for name, level in (("a", 0.5), ("b", 0.5), ("c", 0.56))
    }
    together, apart = largest_gap(models, paired=True), largest_gap(models)
    assert together.value == apart.value > 0.03
    assert together.high - together.value < 0.7 * (apart.high - apart.value)
    assert together.p < 0.05 < apart.p
    same = largest_gap(dict.fromkeys("xyz", models["a"]), paired=True)
    assert (same.value, same.low) == (0, 0)
    assert same.p == pytest.approx(1)


def test_largest_gap_of_two_models_is_the_paired_interval() -> None:
    chance = np.random.default_rng(8)
    a = (chance.random(500) < 0.5).astype(float)
    b = np.where(chance.random(500) < 0.8, a, chance.random(500) < 0.6).astype(float)
    got, error = largest_gap({"a": a, "b": b}, paired=True), (b - a).std(ddof=1) / 500**0.5
    assert got.high - got.value == pytest.approx(1.96 * error, rel=0.06)
