"""The registry and the weighted sum: parts stay visible, gates hold, a part without a verdict masks the sample."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import pytest

from rewards.combine import REWARDS, build
from rewards.score import Score, Text

ROW = {"id": "a", "question": "2+2?", "gold": "4", "kind": "math"}
RIGHT = Text("<think>2+2=4</think> <answer>4</answer>", tokens=12)
WRONG = Text("<think>2+2=5</think> <answer>5</answer>", tokens=12)
BARE = Text("the answer is 4", tokens=4)


def recipe(text: str) -> Mapping[str, Any]:
    return tomllib.loads(text)["rewards"]


def test_parts_are_logged_before_weights() -> None:
    reward = build(recipe("[rewards.accuracy]\nweight = 2.0\n[rewards.format]\nweight = 0.5"))
    assert reward(RIGHT, ROW) == Score(2.5, {"accuracy": 1.0, "format": 1.0}, "right: 4; format ok")
    assert reward(WRONG, ROW) == Score(0.5, {"accuracy": 0.0, "format": 1.0}, "wrong: 5, gold 4; format ok")
    assert reward(BARE, ROW).value == 2.0
    assert reward(BARE, ROW).parts == {"accuracy": 1.0, "format": 0.0}


def test_a_gated_part_counts_only_when_its_gate_is_one() -> None:
    reward = build(recipe('[rewards.accuracy]\n[rewards.format]\nweight = 0.5\ngate = "accuracy"'))
    assert reward(RIGHT, ROW).value == 1.5
    score = reward(WRONG, ROW)
    assert score.value == 0.0
    assert score.parts == {"accuracy": 0.0, "format": 1.0}  # still visible


def none(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    return [None for _ in completions]


def test_a_part_without_verdict_masks_the_sample_unless_it_has_no_weight() -> None:
    name = f'[rewards."{__name__}:none"]'
    score = build(recipe(f"[rewards.accuracy]\n{name}"))(RIGHT, ROW)
    assert score.value is None
    assert score.parts == {"accuracy": 1.0}
    assert build(recipe(f"[rewards.accuracy]\n{name}\nweight = 0.0"))(RIGHT, ROW).value == 1.0


def test_a_gate_without_verdict_masks_the_sample() -> None:
    name = f"{__name__}:none"
    spec = {"accuracy": {"gate": name}, name: {"weight": 0.0}}
    assert build(spec)(RIGHT, ROW).value is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rewards.acuracy]", "did you mean 'accuracy'"),
        ("[rewards.soft_overlng]\nlimit=1", "did you mean 'soft_overlong'"),
        ("[rewards.accuracy]\nmoed = 'strict'", "did you mean 'mode'"),
        ("[rewards.accuracy]\nwieght = 1.0", "did you mean 'weight'"),
        ("[rewards.accuracy]\nmode = 'strikt'", "strikt"),
        ("[rewards.accuracy]\nweight = 'high'", "must be a number"),
        ("[rewards.accuracy]\ngate = 'format'", "must name another reward"),
        ("[rewards.accuracy]\ngate = 'accuracy'", "must name another reward"),
        ("[rewards]\naccuracy = 1", "must be a table"),
        ("[rewards]", "no rewards"),
        ("[rewards.'no_such_module:f']", "cannot be imported"),
        ("[rewards.'rewards.score:nothing']", "cannot be imported"),
        ("[rewards.'rewards.score:']", "module:function"),
        ("[rewards.soft_overlong]\nlimit = 10\ncache = 20", "cache"),
        ("[rewards.repetition]\nn = 0", "n >= 1"),
        ("[rewards.language]\ntarget = 'xx'", "xx"),
        ("[rewards.preference]\nmodel = 'rewards.score:Text'\npart = 'some'", "part"),
        ("[rewards.code]\nparital = true", "did you mean 'partial'"),
        ("[rewards.soft_overlong]\nlimit = 10", "cache"),
    ],
)
def test_mistakes_in_a_recipe_are_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(recipe(text))


def test_every_reward_of_the_registry_can_be_built() -> None:
    needed: dict[str, dict[str, Any]] = {
        "soft_overlong": {"limit": 100, "cache": 20},
        "cosine_length": {"limit": 100},
        "preference": {"model": lambda question, response: 0.5},
    }
    for name in sorted(set(REWARDS) - {"code"}):
        score = build({name: needed.get(name, {})})(RIGHT, ROW)
        assert set(score.parts) == {name}
        assert score.value == score.parts[name]
