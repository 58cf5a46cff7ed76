"""The test sets: real rows, their golds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import tasks
from eval.tasks import TASKS, last_box, load
from rewards.score import Score
from rl import data

ROWS = {
    "gsm8k": 1319, "gsm8k_8shot": 1319, "math500": 500, "math": 5000, "aime24": 30, "aime25": 30, "amc23": 40, "minerva_math": 272,
    "olympiadbench": 675, "mmlu": 14042, "mmlu_cot": 14042, "humaneval": 164, "mbpp": 500,
}  # fmt: skip


def test_every_task_but_the_generated_one_has_files_and_a_hub_name() -> None:
    assert set(TASKS) == {*ROWS, "nano"}
    assert all(entry.file and entry.hub[0].count("/") == 1 for name, entry in TASKS.items() if name != "nano")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_all_rows_load_and_every_gold_is_right_against_itself(name: str, data_root: Path) -> None:
    rows = load(name, str(data_root))
    assert len(rows) == ROWS[name]
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["question"].strip() and isinstance(row["groups"], dict) for row in rows)
    assert all(set(TASKS[name].groups) == set(row["groups"]) for row in rows)
    assert load(name, str(data_root), limit=7) == [rows[i * len(rows) // 7] for i in range(7)]  # an even draw, in order


def test_mmlu_is_asked_as_the_harness_asks(data_root: Path) -> None:
    row = load("mmlu", str(data_root))[0]
    lines = row["plain"].split("\n")
    assert lines[0] == "The following are multiple choice questions (with answers) about abstract algebra."
    assert lines[1:8] == [
        "",
        "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.",
        "A. 0",
        "B. 1",
        "C. 2",
        "D. 3",
        "Answer: B",
    ]
    assert lines.count("") == 6
    assert row["plain"].endswith("sqrt(18)) over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:")
    assert (row["gold"], row["groups"]) == ("B", {"subject": "abstract_algebra"})


def test_eight_shots_come_from_the_training_part(data_root: Path) -> None:
    row = load("gsm8k_8shot", str(data_root), limit=1)[0]
    assert row["plain"].count("Question: ") == 9
    assert row["plain"].count("#### ") == 8
    assert row["plain"].startswith("Question: Natalia sold clips")
    assert row["plain"].endswith(f"Question: {row['question']}\nAnswer:")


def test_no_solution_enters_a_row_of_mathematics(data_root: Path) -> None:
    for name in ("gsm8k", "math", "aime24"):
        assert set(load(name, str(data_root), limit=1)[0]) <= {
            "id", "unique_id", "question", "gold", "kind", "groups", "steps", "type", "level",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{15\frac{39}{40}} = \boxed{\frac{639}{40}}", r"\frac{639}{40}"),
        (r"thus $x = \boxed 7$. Note {this}", "7"),
        ("no box {1}", ""),
        (r"\boxed{1", ""),
    ],
)
def test_the_last_box(solution: str, gold: str) -> None:
    assert last_box(solution) == gold


def write(folder: Path, name: str, rows: list[dict]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("task", "file", "row", "said"),
    [
        (
            "aime24",
            "competition/aime24.jsonl",
            {"id": "a-7", "problem": "?", "expected_answer": "\\frac{1}{"},
            "row a-7: .*gold",
        ),
        (
            "math",
            "math/test.jsonl",
            {"problem": "?", "level": 1, "type": "x", "solution": "none"},
            "row math/0: gold '' is empty",
        ),
        ("gsm8k", "gsm8k/test.jsonl", {"question": "1+1?", "answer": "2"}, "'1\\+1\\?' has no '#### gold' line"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", None, "no such file"),
        ("mmlu", "none", None, "no .csv files; set --data"),
    ],
)
def test_a_bad_row_fails_the_load_by_name(tmp_path: Path, task: str, file: str, row: dict | None, said: str) -> None:
    if row:
        write(tmp_path, file, [row])
    with pytest.raises(ValueError, match=f"^task {task}: .*{said}"):
        load(task, str(tmp_path))


def test_a_gold_that_is_not_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "competition/amc23.jsonl", [{"id": 1, "question": "?", "answer": "12"}])
    assert load("amc23", str(tmp_path))[0]["id"] == "amc23/1"
    monkeypatch.setattr(tasks, "accuracy", lambda mode: lambda completion, problem: Score(0.0))
    with pytest.raises(ValueError, match="row amc23/1: its gold '12' is not graded as right against itself"):
        load("amc23", str(tmp_path))


def test_the_hub_gives_the_same_rows_in_its_own_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(name: str, config: str | None, split: str) -> list[dict]:
        asked.append((name, config, split))
        return [{"question": " Which? ", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 2}]

    monkeypatch.setattr(data, "read_hub", hub)
    (row,) = load("mmlu")
    assert asked == [("cais/mmlu", "all", "test"), ("cais/mmlu", "all", "dev")]
    assert row["plain"].endswith(
        "about anatomy.\n\nWhich?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\nWhich?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert (row["gold"], row["id"]) == ("C", "mmlu/anatomy/0")


def test_a_file_is_a_task_and_a_generated_set_is_handed_in(tmp_path: Path) -> None:
    write(tmp_path, "german.jsonl", [{"question": "Was ist 1+1?", "gold": "2", "language": "de"}])
    name = str(tmp_path / "german.jsonl")
    assert load(name)[0]["groups"] == {"language": "de"}
    assert (tasks.short(name), tasks.short("gsm8k")) == ("german", "gsm8k")
    with pytest.raises(ValueError, match=r"task nano: .*make eval"):
        load("nano")
    made = {
        "nano": lambda split: [{"id": "n", "question": f"{split}?", "gold": "1", "kind": "math", "part": "seen", "steps": 2}]
    }
    assert load("nano", sources=made)[0]["groups"] == {"part": "seen", "steps": "2"}
    with pytest.raises(ValueError, match="task 'gsm' is not known"):
        load("gsm")
    write(tmp_path, "twice.jsonl", [{"id": "a", "question": "?", "gold": "2"}] * 2)
    with pytest.raises(ValueError, match="two rows have the id a"):
        load(str(tmp_path / "twice.jsonl"))


def test_the_digest_is_over_every_row() -> None:
    rows = [{"id": "a", "gold": "1"}, {"id": "b", "gold": "2"}]
    assert tasks.digest(rows) == tasks.digest([{"gold": "1", "id": "a"}, {"gold": "2", "id": "b"}])
    assert tasks.digest(rows) != tasks.digest(rows[:1])
    assert tasks.digest(rows) != tasks.digest([rows[0], {"id": "b", "gold": "3"}])
