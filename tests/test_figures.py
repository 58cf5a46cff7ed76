"""Figures of hand-made answers, calculated by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from eval.estimators import mean_of_questions
from eval.figures import figures, powers, right_PG, vote
from eval.records import Answered, Sampled


def sampled(answer: str, right: float | None, *, strict: float | None = 0.0, tokens: int = 10, cut: bool = False) -> Sampled:
    return Sampled(f"the answer is {answer}", tokens, cut, strict, right, answer, "")


def question(name: str, *samples: Sampled, **groups: str) -> Answered:
    return Answered("toy", name, "2+2?", "4", groups, 7, samples)


TOY = [
    question(
        "a", sampled("4", 1.0, strict=1.0), sampled("4.0", 1.0), sampled("5", 0.0), sampled("6", 0.0, cut=True), level="1"
    ),
    question("b", sampled("5", 0.0), sampled("5", 0.0), sampled("4", 1.0, tokens=50), sampled("", None), level="2"),
]


def test_figures_by_hand() -> None:
    got = figures(TOY)
    assert (got["task"], got["questions"], got["samples"], got["prompt_tokens"]) == ("toy", 2, 4, 7)
    assert got["strict"]["mean@4"]["value"] == pytest.approx(1 / 8)
    lenient = got["lenient"]
    assert lenient["mean@4"]["value"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert lenient["mean@4"]["se"] == pytest.approx(0.125)  # half the distance of two values
    assert lenient["mean@4"]["low"] == mean_of_questions([0.5, 0.25]).low
    assert lenient["pass@2"]["value"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2)
    assert lenient["pass@4"]["value"] == 1.0
    assert lenient["maj@4"]["value"] == pytest.approx((1 + 0) / 2)  # 4 and 4.0 are one answer; 5 wins the other
    # pairs of b: {5,5} {5,4}x2 {5,-}x2 {4,-}: right 2 x 1/2 + 1 of 6; of a: {4,4} {4,5}x2 {4,6}x2 {5,6}: 1 + 4 x 1/2 of 6
    assert lenient["maj@2"]["value"] == pytest.approx((2 / 6 + 3 / 6) / 2)
    assert "maj@4" not in got["strict"]
    assert got["truncated"]["value"] == pytest.approx(1 / 8) == got["no_verdict"] == got["no_answer"]
    assert (got["tokens"]["value"], got["tokens_total"]) == (pytest.approx(15), 120)
    assert got["by"]["level"]["2"]["questions"] == 1
    assert got["by"]["level"]["2"]["lenient"]["value"] == 0.25
    spread = got["spread"]["level"]
    assert (spread["high_group"], spread["low_group"], spread["value"]) == ("1", "2", 0.25)
    assert spread["deviation"] == pytest.approx(math.sqrt(2 * 0.125**2))


def test_figures_are_plain_data_and_repeat() -> None:
    assert json.dumps(figures(TOY)) == json.dumps(figures(list(TOY)))


def test_one_sample_has_an_accuracy_and_nothing_else() -> None:
    greedy = [question(str(i), sampled("4", float(i < 3), strict=float(i < 2))) for i in range(5)]
    got = figures(greedy)
    assert list(got["lenient"]) == ["mean@1"]
    assert got["lenient"]["mean@1"]["value"] == pytest.approx(0.6)
    assert got["strict"]["mean@1"]["value"] == pytest.approx(0.4)
    assert got["by"] == {} == got["spread"]


def test_a_missing_verdict_is_not_right() -> None:
    assert right_PG(TOY).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert right_PG(TOY, "strict").tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_unequal_samples_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="question c: 1 samples where a has 4"):
        figures([*TOY, question("c", sampled("4", 1.0))])
    with pytest.raises(ValueError, match="nothing to report"):
        figures([])
    with pytest.raises(ValueError, match="at least one"):
        figures([question("c")])


@pytest.mark.parametrize(
    ("one", "other"),
    [("0.5", r"\frac{1}{2}"), ("1,234", "1234"), ("x = 5", "5"), ("x+1", "1+x"), ("(C)", "C"), ("East", "east")],
)
def test_equal_answers_are_one_vote(one: str, other: str) -> None:
    assert vote(one) == vote(other) is not None


@pytest.mark.parametrize(
    ("one", "other"), [("1", "2"), ("A", "B"), ("0.33", "1/3"), ("x+1", "x-1"), ("(1,2)", "(2,1)"), ("5", "")]
)
def test_other_answers_are_other_votes(one: str, other: str) -> None:
    assert vote(one) != vote(other)


def test_any_text_can_be_voted_on() -> None:
    pieces = [
        "\\frac",
        "{",
        "}",
        "(",
        ")",
        "^",
        "9",
        "!",
        ",",
        "x",
        "=",
        "\\sqrt",
        " ",
        "$",
        "\\boxed",
        "|",
        "&",
        "é",
        "\x00",
        "[",
        "<",
        "%",
    ]
    chance = random.Random(3)
    for _ in range(3000):
        hash(vote("".join(chance.choices(pieces, k=chance.randint(0, 12)))))
    for bomb in ("9^{9^{9^{9}}}", "(" * 499, "1" * 100_000, "\\sqrt" * 99, "10!!!!!!!!!!!", "9" * 400):
        assert vote(bomb) == vote(bomb) is not None


def test_powers() -> None:
    assert [powers(k) for k in (1, 2, 5, 16)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8, 16]]
