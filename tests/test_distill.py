"""The door for traces: teacher to data card on a tiny model, and given files; killed or not, the same files."""

from __future__ import annotations

import json
from pathlib import Path

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
