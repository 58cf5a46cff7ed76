"""Length rewards against hand calculation."""

from __future__ import annotations

import math

import pytest

from rewards.length import cosine, cosine_length, repeated, repetition, soft_overlong
from rewards.score import Text

ROW = {"gold": "4"}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (16_384, 0.0), (16_385, -1 / 4096), (18_432, -0.5), (20_480, -1.0), (20_481, -1.0), (99_999, -1.0)],
)
def test_soft_overlong_is_equation_13_of_dapo(tokens: int, expected: float) -> None:
    assert soft_overlong(20_480, 4_096)(Text("x", tokens), {}).value == pytest.approx(expected, abs=1e-12)


def test_a_cut_off_completion_is_overlong() -> None:
    assert soft_overlong(20_480, 4_096)(Text("x", 100, truncated=True), {}).value == -1.0


def test_cosine_by_hand() -> None:
    assert cosine(0, 100, 2.0, 1.0) == 2.0
    assert cosine(100, 100, 2.0, 1.0) == 1.0
    assert cosine(50, 100, 2.0, 1.0) == pytest.approx(1.5)
    assert cosine(25, 100, 2.0, 1.0) == pytest.approx(1 + (1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize(
    ("text", "tokens", "truncated", "expected"),
    [
        (r"\boxed{4}", 0, False, 2.0),
        (r"\boxed{4}", 50, False, 1.5),
        (r"\boxed{5}", 0, False, -10.0),
        (r"\boxed{5}", 50, False, -5.0),
        (r"\boxed{4}", 100, False, -10.0),
        (r"\boxed{4}", 50, True, -10.0),
    ],
)
def test_cosine_length(text: str, tokens: int, truncated: bool, expected: float) -> None:
    assert cosine_length(100)(Text(text, tokens, truncated), ROW).value == pytest.approx(expected)


def test_short_right_answers_earn_more_and_short_wrong_answers_less() -> None:
    reward = cosine_length(100)
    right = [reward(Text(r"\boxed{4}", n), ROW).value for n in range(0, 100, 10)]
    wrong = [reward(Text(r"\boxed{5}", n), ROW).value for n in range(0, 100, 10)]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c d", 2, 0.0),
        ("a b a b a b", 2, 1 - 2 / 5),  # ab ba ab ba ab
        ("a a a a", 1, 0.75),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
        ("A a", 1, 0.5),
        ("所以所以", 2, 1 - 2 / 3),
    ],
)
def test_repetition(text: str, n: int, expected: float) -> None:
    assert repeated(text, n) == pytest.approx(expected)
    assert repetition(n, penalty=2.0)(Text(text), {}).value == pytest.approx(-2 * expected)
