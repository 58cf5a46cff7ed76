"""Language consistency by script."""

from __future__ import annotations

import pytest

from rewards.language import language, share
from rewards.score import Text


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("The sum of both is five", "en", 1.0),
        ("the sum 所以", "en", 0.5),  # 2 words, 2 characters
        ("所以答案是五", "zh", 1.0),
        ("所以 the 答案", "zh", 0.8),
        ("答えは五です", "ja", 1.0),
        ("Ответ пять", "ru", 1.0),
        ("Ответ is пять", "ru", 2 / 3),
        ("답은 다섯", "ko", 1.0),
        ("größer als fünf", "de", 1.0),
        ("1 + 1 = 2", "en", 1.0),  # no words
        ("", "zh", 1.0),
        ("so $x_{所以} = \\text{五}$ holds", "en", 1.0),  # a formula is no language
        ("所以 `print(x)` ```python\nfor x in y: pass\n```", "zh", 1.0),
        (r"所以 \frac{a}{b}", "zh", 1.0),
        ("don't re-do it", "en", 1.0),
    ],
)
def test_share(text: str, code: str, expected: float) -> None:
    assert share(text, code) == pytest.approx(expected)


def test_only_the_chain_of_thought_is_judged() -> None:
    text = Text("<think>all of it in English</think> <answer>答案是五</answer>")
    assert language("en")(text, {}).value == 1.0
    assert language("zh")(text, {}).value == 0.0


def test_an_unclosed_chain_of_thought_is_judged_to_its_end() -> None:
    assert language("en")(Text("<think>half of 所以"), {}).value == 0.5


def test_a_problem_may_name_its_language() -> None:
    assert language("en")(Text("答案是五"), {"language": "zh"}).value == 1.0
    with pytest.raises(ValueError, match="tlh"):
        language("en")(Text("x"), {"language": "tlh"})
