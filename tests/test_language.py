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
        ("costs $3, 所以我们需要 that is $6 now", "en", 4 / 10),  # money is no formula
        ("costs $3, 所以 that is $x$ now", "en", 4 / 6),
        ("costs \\$3 所以\\$ now", "en", 2 / 4),
        ("costs $3，所以我们需要把两个加起来得到$x$ now", "en", 2 / 16),  # nor is what lies between it and a formula
        ("цена $3, и потом надо все это сложить вместе$x$", "en", 0.0),
        ("所以 $ x + y $ 是 $x_{max}$", "zh", 1.0),
        ("所以 $n$-th，$\\$5 + x$", "zh", 2 / 3),
        ("$" + "word " * 9 + "$", "zh", 0.0),
        ("六边形 $AB, BC, CD, DE, EF, FA$", "zh", 1.0),
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
