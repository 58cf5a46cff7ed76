"""The door for traces: teacher to data card on a tiny model, and given files; killed or not, the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.traces import read
from recipes import distill as door
from rl.policy import ROOT

RECIPE = str(ROOT / "recipes/traces_nano.toml")
CLEAN = "A boat has {} red oars and three white ones below its deck. How many oars is that?"
TEST = "How many of the twelve sheep does the shepherd count in the evening when exactly nine of them have left him?"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "test_questions.jsonl"
    path.write_text(json.dumps({"id": "t0", "question": TEST, "gold": "3"}) + "\n")
    return path


def test_a_teachers_traces(tiny: str, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of random weights writes nothing that could be kept: every trace is dropped and the run says so, in one line."""
    out = tmp_path / "out"
    arguments = [
        RECIPE, f"model.path={tiny}", "rollout.sampler=transformers", "rollout.max_tokens=6", "data.limit=5", "run.shard=2",
        f"run.out={out}", f"data.tests={questions}", "rollout.group=2",
    ]  # fmt: skip
    assert door.main(arguments) == 2
    assert "no trace is left of 10" in capsys.readouterr().err
    made = [p.read_bytes() for p in sorted((out / "traces").glob("*.jsonl"))]
    assert len(made) == 3
    (out / "traces" / "00001.jsonl").unlink()
    door.main(arguments)
    assert [p.read_bytes() for p in sorted((out / "traces").glob("*.jsonl"))] == made
    assert door.main([*arguments, "rollout.temperature=0.5"]) == 2
    assert "made otherwise" in capsys.readouterr().err


def test_other_weights_under_the_teachers_path_are_refused(
    tiny: str, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And other options of its engine: old shards and new ones would be of two teachers."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny, model)
    arguments = [
        RECIPE, f"model.path={model}", "rollout.sampler=transformers", "rollout.max_tokens=4", "data.limit=2", "run.shard=1",
        f"run.out={out}", f"data.tests={questions}", "rollout.group=1",
    ]  # fmt: skip

    def said(*more: str) -> str:
        assert door.main([*arguments, *more]) == 2
        return capsys.readouterr().err

    assert "no trace is left" in said()
    weights = model / "model.safetensors"
    held = weights.read_bytes()
    other = held[:-4] + bytes([held[-4] ^ 1]) + held[-3:]  # the last bit of a number
    weights.write_bytes(other)
    assert "made otherwise (teacher: " in said()
    weights.write_bytes(held)
    (out / "traces" / "00001.jsonl").unlink()
    assert "no trace is left" in said()
    for option in ("rollout.engine.dtype=float16", "rollout.stop_loops=8"):
        told = said(option)
        assert "made otherwise (teacher: " in told
        assert told.count("\n") == 1
    shutil.rmtree(out / "traces")
    weights.write_bytes(other)
    assert "no trace is left" in said()  # nothing of the other teacher is there any more


def answered(question: str, gold: int, think: str = "we count them all", **more: Any) -> str:
    text = rf"<think>{think}</think> It is \boxed{{{gold}}}"
    return json.dumps({"question": question, "gold": str(gold), "response": text} | more) + "\n"


def given(folder: Path, **files: str) -> str:
    """Files of the name traces.jsonl, each in a folder of its own, as data.traces wants them."""
    for name, lines in files.items():
        (folder / name).mkdir()
        (folder / name / "traces.jsonl").write_text(lines)
    return f"data.traces={[str(folder / name / 'traces.jsonl') for name in files]}"


def test_test_sets_of_one_file_name_are_all_looked_at(tmp_path: Path, questions: Path) -> None:
    other = tmp_path / "other" / questions.name
    other.parent.mkdir()
    other.write_text(json.dumps({"id": "o0", "question": TEST.replace("sheep", "geese and hens"), "gold": "3"}) + "\n")
    asked = [json.loads(path.read_text())["question"] for path in (questions, other)]
    traces = given(tmp_path, a="".join(answered(q, 3) for q in (*asked, CLEAN.format(1))))
    out = tmp_path / "out"
    common = [RECIPE, "data.train=", traces, f"run.out={out}", "filter.form=think"]
    assert door.main([*common, f"data.tests={[str(questions), str(other)]}"]) == 0
    assert [t.question for t in read(out / "kept.jsonl")] == [CLEAN.format(1)]
    told = json.loads((out / "statistics.json").read_text())["tests_before"]
    assert [(c["task"], c["whole"]) for c in told if c["n"] == 8] == [(str(questions), 1), (str(other), 1)]


def test_questions_that_share_an_id_are_told_apart(tmp_path: Path, questions: Path) -> None:
    """By number, in order; one question of several files stays one."""
    first = answered(CLEAN.format(4), 7, problem_id="0", id="0") + answered(CLEAN.format(5), 8, problem_id="1", id="1")
    second = answered(CLEAN.format(6), 9, problem_id="0", id="0") + answered(TEST, 3, problem_id="1", id="1")
    third = answered(CLEAN.format(7), 10, problem_id="0", id="0") + answered(
        CLEAN.format(4), 7, "four, and then three", problem_id="0"
    )
    odd = answered(CLEAN.format(8), 11, problem_id="2/0", id="2/0")
    out = tmp_path / "out"
    arguments = [
        RECIPE, "data.train=", given(tmp_path, a=first, b=second, c=third, d=odd), f"run.out={out}", f"data.tests={questions}",
        "filter.form=think", "filter.per_question=1",
    ]  # fmt: skip
    assert door.main(arguments) == 0
    kept = [(t.id, t.problem, t.question) for t in read(out / "kept.jsonl")]
    ids = ("0", "1", "2/0", "3/0", "2/2/0")
    assert kept == [(own, own, CLEAN.format(n)) for own, n in zip(ids, (4, 5, 6, 7, 8), strict=True)]
    gone = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [(g["problem"], g["dropped"]) for g in gone] == [("0", "per question"), ("2/1", "test question")]


def test_nothing_but_test_questions_is_said(tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [RECIPE, "data.train=", given(tmp_path, a=answered(TEST, 3)), f"data.tests={questions}", "filter.form=think"]
    assert door.main([*arguments, f"run.out={out}"]) == 2
    told = capsys.readouterr().err
    assert told == "error: no trace is left of 1: dropped {'test question': 1}; see the [filter] table and data.tests\n"
    assert not (out / "kept.jsonl").exists()


def test_given_traces_are_filtered_decontaminated_and_shown(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "question": CLEAN.format(i),
            "reasoning_content": f"{i} and three make {i + 3}",
            "content": rf"\boxed{{{i + 3}}}",
            "answer": str(i + 3),
        }
        for i in range(4)
    ]
    rows.append(rows[0] | {"answer": "99"})
    rows.append(rows[0] | {"question": TEST, "content": r"\boxed{3}", "answer": "3"})
    given, out = tmp_path / "given.jsonl", tmp_path / "out"
    given.write_text("".join(json.dumps(r) + "\n" for r in rows))
    arguments = [
        RECIPE, "data.train=", f"data.traces={given}", f"data.tests={questions}", f"run.out={out}", "filter.form=think",
    ]  # fmt: skip
    assert door.main(arguments) == 0
    assert "kept     4 of 6" in capsys.readouterr().out
    assert [t.id for t in read(out / "kept.jsonl")] == [f"given/{i}" for i in range(4)]
    gone = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert {(g["id"], g["dropped"]) for g in gone} == {("given/4", "wrong"), ("given/5", "test question")}
    told = json.loads((out / "statistics.json").read_text())
    assert (told["traces"], told["kept"], told["tests_after"][0]["most"]) == (6, 4, 0)
    assert (out / "card.html").read_text().count('class="trace"') == 6
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    assert door.main(arguments) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == files


def test_input_that_cannot_be_used_is_one_line(tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([RECIPE, "data.train=", f"data.traces={tmp_path}/none.jsonl", f"data.tests={questions}"]) == 2
    assert door.main([RECIPE, "filter.langage=en"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no such file" in lines[0]
    assert "did you mean filter.language?" in lines[1]
