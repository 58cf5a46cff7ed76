"""The think/answer form."""

from __future__ import annotations

import pytest

from rewards.format_tags import fault, format_tags, share
from rewards.score import Text

GOOD = "<think> 1 </think> <answer> 2 </answer>"


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (GOOD, 1.0, 1.0),
        ("\n" + GOOD + "\n", 1.0, 1.0),
        ("<think>a\nb</think>\n\n<answer>2\n</answer>", 1.0, 1.0),
        ("<think>1</think><answer>2</answer>", 1.0, 1.0),
        (GOOD + " So it is 2.", 0.0, 0.75),
        ("First: " + GOOD, 0.0, 0.75),
        ("<think> 1 </think> hm <answer> 2 </answer>", 0.0, 0.75),
        ("<answer> 2 </answer> <think> 1 </think>", 0.0, 0.75),
        ("<think> <answer> 2 </answer> </think>", 0.0, 0.75),
        ("<think> </think> <answer> 2 </answer>", 0.0, 0.75),
        ("<think> 1 </think> <answer></answer>", 0.0, 0.75),
        (GOOD + GOOD, 0.0, 0.0),
        ("<think> 1 </think> <answer> 2 </answer> <answer> 3 </answer>", 0.0, 0.5),
        ("<think> 1 </think> <answer> 2", 0.0, 0.75),
        ("<think> 1", 0.0, 0.25),
        ("<answer> 2 </answer>", 0.0, 0.5),
        ("2", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_forms(text: str, strict: float, lenient: float) -> None:
    assert format_tags("strict")(Text(text), {}).value == strict
    assert format_tags("lenient")(Text(text), {}).value == lenient
    assert (fault(text) == "") is (strict == 1.0)
    assert share(text) == lenient


def test_the_prompt_may_have_opened_the_think_tag() -> None:
    text = Text(GOOD.removeprefix("<think>"))
    assert format_tags(opened=True)(text, {}).value == 1.0
    assert format_tags(opened=False)(text, {}).value == 0.0
    assert format_tags(opened=True)(Text(GOOD), {}).value == 0.0


def test_the_reason_names_the_fault() -> None:
    assert format_tags()(Text("<think> 1 </think> 2"), {}).reason == "format: 0 x <answer>"


def test_mode_is_checked() -> None:
    with pytest.raises(ValueError, match="loose"):
        format_tags("loose")
