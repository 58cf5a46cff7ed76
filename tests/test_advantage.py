"""Advantages by hand: every mean and deviation is written out."""

import math
import random

import pytest

from rl.advantage import ADVANTAGES, group_mean, group_std, leave_one_out, zero_variance


def test_group_std_by_hand():
    # mean 2; squares 1, 1, 4, 4 -> variance 10 / 3 (n - 1), std 1.825741858...; + 1e-4
    std = math.sqrt(10 / 3)
    assert std == pytest.approx(1.8257418583505538)
    expected = [-1 / 1.8258418583505538, 1 / 1.8258418583505538, -2 / 1.8258418583505538, 2 / 1.8258418583505538]
    assert group_std([1.0, 3.0, 0.0, 4.0]) == pytest.approx(expected, abs=1e-15)


def test_group_std_is_the_unbiased_one():
    # two samples 0 and 1: unbiased std sqrt(1/2) = 0.7071 -> 0.5 / 0.7072068; the biased one, 0.5, would give 0.9998
    assert group_std([0.0, 1.0]) == pytest.approx([-0.7070067953, 0.7070067953], abs=1e-9)


def test_group_mean_by_hand():
    assert group_mean([1.0, 3.0, 0.0, 4.0]) == [-1.0, 1.0, -2.0, 2.0]


def test_leave_one_out_by_hand():
    # means of the others: 7/3, 5/3, 8/3, 4/3
    assert leave_one_out([1.0, 3.0, 0.0, 4.0]) == pytest.approx([-4 / 3, 4 / 3, -8 / 3, 8 / 3], abs=1e-15)


def test_leave_one_out_is_group_mean_rescaled():
    rewards = [0.2, 1.7, -0.3, 0.9, 1.1]
    assert leave_one_out(rewards) == pytest.approx([a * 5 / 4 for a in group_mean(rewards)], abs=1e-15)


def test_masked_samples_stay_out_of_the_statistics():
    # over 1 and 4 only: mean 2.5, variance 4.5, std 2.1213203436
    assert group_mean([None, 1.0, None, 4.0]) == [None, -1.5, None, 1.5]
    assert group_std([None, 1.0, None, 4.0]) == pytest.approx([None, -1.5 / 2.1214203436, None, 1.5 / 2.1214203436], abs=1e-10)
    assert leave_one_out([None, 1.0, None, 4.0]) == [None, -3.0, None, 3.0]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_that_say_nothing_get_exact_zeros(name):
    advantage = ADVANTAGES[name]
    assert advantage([]) == []
    assert advantage([None, None]) == [None, None]
    assert advantage([None, 1.0]) == [None, 0.0]
    assert advantage([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]  # 0.1 * 3 / 3 is not 0.1 in floating point
    assert advantage([1.2, None, 1.0 + 0.1 + 0.1]) == [0.0, None, 0.0]  # one value, summed in two ways


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_sum_to_zero_and_follow_the_order_of_the_group(name):
    rng = random.Random(0)
    rewards = [rng.random() for _ in range(16)]
    advantages = ADVANTAGES[name](rewards)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-12)
    order = rng.sample(range(16), 16)
    assert ADVANTAGES[name]([rewards[i] for i in order]) == [advantages[i] for i in order]  # to the last bit


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(name, bad):
    with pytest.raises(ValueError, match="not all finite"):
        ADVANTAGES[name]([0.0, bad, 1.0])


def test_zero_variance():
    assert zero_variance([1.0, 1.0, None])
    assert zero_variance([0.3, 0.1 + 0.2])
    assert zero_variance([1.0, None])
    assert zero_variance([])
    assert not zero_variance([1.0, 0.999])
