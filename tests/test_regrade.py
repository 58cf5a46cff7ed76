"""Stored completions from anywhere: their columns, how they are matched, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.records import read_samples, read_settings
from eval.regrade import match, regrade, texts
from eval.tasks import load

ROWS = [{"id": f"t/{i}", "question": f"{i}+1?", "gold": str(i + 1), "kind": "math", "groups": {"part": "x"}} for i in range(3)]


def stored(folder: Path, lines: list[dict]) -> str:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def verdicts(folder: Path, lines: list[dict], field: str = "", out: str = "out") -> list[list[float | None]]:
    graded = regrade("gsm8k", stored(folder, lines), field, ROWS, folder / out)
    assert read_samples(folder / out, "gsm8k") == graded
    assert [a.id for a in graded] == ["t/0", "t/1", "t/2"]
    return [[s.lenient for s in a.samples] for a in graded]


def test_by_order_by_id_and_by_document(tmp_path: Path) -> None:
    answers = ["The answer is 1.", "<answer>2</answer>", "The answer is 9."]
    wanted = [[1.0], [1.0], [0.0]]
    assert verdicts(tmp_path, [{"completion": a} for a in answers], out="a") == wanted
    turned = [2, 0, 1]
    assert verdicts(tmp_path, [{"id": f"t/{i}", "mine": answers[i]} for i in turned], "mine", "b") == wanted
    assert verdicts(tmp_path, [{"doc_id": i, "resps": [[answers[i]]]} for i in turned], out="c") == wanted
    assert [a.samples[0].strict for a in read_samples(tmp_path / "a", "gsm8k")] == [0.0, 1.0, 0.0]


def test_several_completions_and_our_own_files(tmp_path: Path) -> None:
    lines = [{"completions": ["The answer is 1.", "no"]}, {"completions": ["no", "#### 2"]}, {"completions": ["no", "no"]}]
    assert verdicts(tmp_path, lines) == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    own = [json.loads(line) for line in (tmp_path / "out/samples/gsm8k.jsonl").read_text().splitlines()]
    own[0]["samples"][0] |= {"tokens": 7, "truncated": True}
    assert verdicts(tmp_path, own, out="again") == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    first = read_samples(tmp_path / "again", "gsm8k")[0].samples[0]
    assert (first.tokens, first.truncated) == (7, True)


def test_the_settings_say_what_was_graded(tmp_path: Path) -> None:
    verdicts(tmp_path, [{"text": "The answer is 1."}] * 3)
    (s,) = read_settings(tmp_path / "out")
    assert (s.mode, s.samples, s.engine, s.rows) == ("regrade", 1, "none", 3)
    assert s.model.endswith("answers.jsonl")
    assert len(s.model_hash) == len(s.grader_version) == 64
    with pytest.raises(ValueError, match="choose another OUT"):
        verdicts(tmp_path, [{"text": "The answer is 2."}] * 3)


@pytest.mark.parametrize(
    ("lines", "field", "said"),
    [
        ([], "", "no lines"),
        ([{"question": "?"}] * 3, "", "line 1: no completion in it .*--field"),
        ([{"text": "a"}] * 3, "other", "line 1: no completion in it .looked for other"),
        ([{"text": "a"}] * 2, "", "1 of 3 questions have no completion .first: t/2"),
        ([{"text": "a"}] * 4, "", "line 4: it answers no question of the task .3 questions"),
        ([{"text": "a", "id": "t/0"}] * 2, "", "line 2: question t/0 was answered in line 1 already"),
        ([{"text": "a", "id": "t/0"}, {"text": "a", "id": "u/1"}], "", "line 2: it answers no question"),
        ([{"text": ["a"]}, {"text": ["a", "b"]}, {"text": "a"}], "", "line 2: 2 completions where line 1 has 1"),
        ([{"text": 7}] * 3, "", "line 1: text holds int; a completion is a text"),
    ],
)
def test_what_cannot_be_graded_is_said(tmp_path: Path, lines: list[dict], field: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        regrade("gsm8k", stored(tmp_path, lines), field, ROWS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_log_likelihood_has_no_completions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mmlu is answered by log-likelihood"):
        regrade("mmlu", stored(tmp_path, [{"text": "A"}]), "", ROWS, tmp_path)


def test_forms_of_a_completion() -> None:
    assert [t.text for t in texts({"resps": [["a"], ["b"]]}, "", 1)] == ["a", "b"]
    assert [t.text for t in texts({"resps": [["a", "b"]]}, "", 1)] == ["a", "b"]
    assert [t.text for t in texts({"outputs": [{"text": "a"}]}, "", 1)] == ["a"]
    assert match(ROWS, [{"id": "other"}] * 3, "f") == [0, 1, 2]  # ids of somebody else's


def test_gold_solutions_of_gsm8k_are_all_right(data_root: Path, tmp_path: Path) -> None:
    raw = [json.loads(line) for line in (data_root / "gsm8k/test.jsonl").read_text().splitlines()]
    graded = regrade("gsm8k", stored(tmp_path, raw), "answer", load("gsm8k", str(data_root)), tmp_path / "out")
    assert [a.id for a in graded if a.samples[0].lenient != 1.0] == []
