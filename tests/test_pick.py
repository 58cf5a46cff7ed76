"""Right answers of a run's rollouts, cleaned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.traces import read
from recipes import pick

GOOD = " <think> 2 and 2 is 4 </think> <answer>4</answer>"


def answer(text: str, right: float = 1.0, finish: str = "stop") -> dict[str, Any]:
    return {"text": text, "tokens": 9, "finish": finish, "parts": {"accuracy": right}}


def rollouts(folder: Path, *groups: list[dict[str, Any]]) -> Path:
    made = folder / "rollouts"
    made.mkdir()
    for step, answers in enumerate(groups, 1):
        group = {
            "step": step,
            "id": "q/1",
            "question": "2+2?",
            "gold": "4",
            "problem": {"kind": "math", "steps": 1},
            "completions": answers,
        }
        (made / f"step-{step:06d}.jsonl").write_text(json.dumps(group) + "\n")
    return made


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (GOOD, GOOD),
        (
            "Well. <think> 2 and 2  is\n\n4 </think>\n<answer> 4 </answer> User: and",
            " <think> 2 and 2 is\n4 </think> <answer>4</answer>",
        ),
        ("The answer is 4.", ""),
        ("<think> </think> <answer>4</answer>", ""),
        ("<think> a <think> b </think> <answer>4</answer>", ""),
        (" <think> x < 5, so 4 </think> <answer>4</answer>", " <think> x < 5, so 4 </think> <answer>4</answer>"),
    ],
)
def test_cleaned(text: str, wanted: str) -> None:
    assert pick.cleaned(text) == wanted


def test_only_right_whole_answers_of_the_last_steps_and_few_of_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = " <think> twice 2 </think> <answer>4</answer>"
    old = [answer(" <think> of the first step </think> <answer>4</answer>")]
    last = [
        answer(GOOD),
        answer(GOOD),
        answer(other),
        answer("<think> x </think> <answer>5</answer>", 0.0),
        answer(GOOD, finish="length"),
    ]
    folder = rollouts(tmp_path, old, [*last, answer("4"), answer(" <think> a third </think> <answer>4</answer>")])
    assert pick.main([str(folder), str(tmp_path / "out"), "--steps", "1"]) == 0
    traces = list(read(tmp_path / "out" / "traces.jsonl"))
    assert [t.text for t in traces] == [GOOD, other]
    assert (traces[0].problem, traces[0].gold, traces[0].columns) == ("q/1", "4", {"steps": 1})
    assert "2 picked" in capsys.readouterr().out
    assert pick.main([str(folder), str(tmp_path / "out"), "--steps", "2", "--per-question", "9"]) == 0
    assert len(list(read(tmp_path / "out" / "traces.jsonl"))) == 4


def test_what_is_left_of_an_answer_is_judged_again(tmp_path: Path) -> None:
    wrong, two = " <think> 2 and 3 </think> <answer>5</answer>", [answer(GOOD + " Then <think> on </think> <answer>4</answer>")]
    traces, counts = pick.pick(rollouts(tmp_path, [answer(wrong + " Wait." + GOOD), *two]), 1, 9)
    assert [t.text for t in traces] == [GOOD]
    assert counts == {"right only in what is cut off": 1, "picked": 1}


def test_a_program_is_not_run_again_so_nothing_of_its_answer_may_be_cut_off(tmp_path: Path) -> None:
    folder = rollouts(tmp_path, [answer(GOOD), answer(GOOD + " <answer>5</answer>")])
    (path,) = folder.iterdir()
    path.write_text(path.read_text().replace('"kind": "math"', '"kind": "code"').replace('"accuracy"', '"code"'))
    assert pick.pick(folder, 1, 9)[1] == {"picked": 1, "right only in what is cut off": 1}


def test_nothing_to_pick_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pick.main([str(rollouts(tmp_path, [answer("4")])), str(tmp_path / "out")]) == 2
    assert "no right answer" in capsys.readouterr().err
    assert pick.main([str(tmp_path), str(tmp_path / "out")]) == 2
