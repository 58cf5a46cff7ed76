"""The preference hook."""

from __future__ import annotations

import pytest

from rewards.preference import preference
from rewards.score import Text

ROW = {"question": "Hello?"}
TEXT = Text("<think>hm</think> Hello.")


def seen(question: str, response: str) -> float:
    return len(question) + len(response) / 100


def broken(question: str, response: str) -> float:
    raise ConnectionError("the model is away")


def test_the_whole_response_or_the_answer_only() -> None:
    assert preference(seen, high=10)(TEXT, ROW).value == pytest.approx(6.24)
    assert preference(seen, part="answer", high=10)(TEXT, ROW).value == pytest.approx(6.06)


def test_scaled_shifted_clipped() -> None:
    assert preference(seen, scale=0.5, shift=-1.0)(TEXT, ROW).value == pytest.approx(2.12)
    assert preference(seen)(TEXT, ROW).value == 5.0
    assert preference(seen, scale=-1.0)(TEXT, ROW).value == -5.0


def test_named_in_a_recipe() -> None:
    assert preference(f"{__name__}:seen")(TEXT, ROW).value == 5.0


def test_a_failure_is_no_zero() -> None:
    score = preference(broken)(TEXT, ROW)
    assert score.value is None
    assert score.reason == "no preference: ConnectionError: the model is away"
    assert preference(lambda q, r: float("nan"))(TEXT, ROW).value is None
