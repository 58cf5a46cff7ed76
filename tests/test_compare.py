"""Comparisons of stored evaluations: by hand, aligned by question, and refused where they did not measure the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from eval.compare import compare, main
from eval.paired import holm, mcnemar
from eval.records import Answered, Sampled, Settings, write_samples, write_settings

SETTINGS = Settings(
    task="toy", data="toy.jsonl", rows=6, data_hash="d" * 64, template="r1_zero", template_hash="t" * 64, model="runs/base",
    model_hash="m" * 64, grader="rewards/math_answer", grader_version="g" * 64, mode="generate", samples=1, temperature=0.0,
    max_tokens=64, seed=0, engine="vllm", engine_version="0.31", dtype="float32", date="2026-11-22", commit="c",
)  # fmt: skip


def made(folder: Path, right: str, *, shuffle: int = 0, **changed) -> Path:
    """An evaluation whose questions are right (1) or wrong (0); each has (its place + 1) tokens, twice that in the folder `b`."""
    settings = replace(SETTINGS, model=f"runs/{folder.name}", model_hash=(folder.name[0] * 64), **changed)
    times = 2 if folder.name == "b" else 1
    answered = [
        Answered(settings.task, f"q{i}", f"question {i}", "4", {"subject": "even" if i % 2 == 0 else "odd"}, 9,
                 (Sampled("4", times * (i + 1), False, float(r), float(r), "4", ""),))
        for i, r in enumerate(map(int, right))
    ]  # fmt: skip
    random.Random(shuffle).shuffle(answered) if shuffle else None
    write_settings(folder, [settings])
    write_samples(folder, settings.task, answered)
    return folder


def test_two_models_by_hand(tmp_path: Path) -> None:
    got = compare([made(tmp_path / "a", "110000"), made(tmp_path / "b", "101111", shuffle=3)])
    assert (got["base"], got["notes"]) == ("a", [])
    toy = got["tasks"]["toy"]
    assert (toy["questions"], toy["samples"], toy["gap"]) == (6, 1, None)
    assert toy["models"]["a"]["lenient"]["value"] == pytest.approx(2 / 6)
    (c,) = toy["comparisons"]
    assert c["model"] == "b"
    assert c["lenient"]["difference"] == pytest.approx(3 / 6)
    assert c["lenient"]["p"] == mcnemar(4, 1) == c["lenient"]["p_holm"]
    assert (c["won_ids"], c["lost_ids"]) == (["q2", "q3", "q4", "q5"], ["q1"])  # in the base's order, whatever the other's
    assert c["retention"]["value"] == pytest.approx(2.5)
    assert (c["tokens"]["difference"], c["tokens"]["ratio"]["value"]) == (pytest.approx(3.5), pytest.approx(2.0))
    even, odd = c["by"]["subject"]["even"], c["by"]["subject"]["odd"]
    assert (even["questions"], even["base"], even["other"], even["won"], even["lost"]) == (3, pytest.approx(1 / 3), 1.0, 2, 0)
    assert [even["p_holm"], odd["p_holm"]] == holm([even["p"], odd["p"]])
    assert toy["models"]["a"]["spread"]["subject"]["value"] == 0


def test_the_first_question_comes_from_the_first_folder(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", "110000", shuffle=5), made(tmp_path / "b", "101111")
    assert compare([one, other])["tasks"]["toy"]["comparisons"][0]["lenient"]["won"] == 4


def test_several_models_are_corrected_together(tmp_path: Path) -> None:
    rights = {"a": "0" * 40, "b": "1" * 8 + "0" * 32, "e": "1" * 6 + "0" * 34}
    got = compare([made(tmp_path / name, right, rows=40) for name, right in rights.items()])
    b, e = got["tasks"]["toy"]["comparisons"]
    assert (b["lenient"]["p"], e["lenient"]["p"]) == (mcnemar(8, 0), mcnemar(6, 0))
    assert [b["lenient"]["p_holm"], e["lenient"]["p_holm"]] == holm([mcnemar(8, 0), mcnemar(6, 0)])
    assert b["retention"] is None  # the base has nothing to retain
    gap = got["tasks"]["toy"]["gap"]
    assert (gap["high_group"], gap["low_group"], gap["groups"]) == ("b", "a", 3)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data_hash": "e" * 64}, "data hash differs (dddddddddddd... and eeeeeeeeeeee...)"),
        ({"template": "chat"}, "template differs (r1_zero and chat)"),
        ({"template_hash": "e" * 64}, "template hash differs"),
        ({"grader": "other"}, "grader differs"),
        ({"grader_version": "e" * 64}, "grader's version differs"),
        ({"temperature": 0.6}, "temperature differs (0.0 and 0.6)"),
        ({"top_p": 0.9}, "top_p differs"),
        ({"max_tokens": 128}, "max_tokens differs (64 and 128)"),
        ({"samples": 4}, "samples a question differs (1 and 4)"),
        ({"mode": "regrade"}, "mode differs"),
        ({"rows": 7}, "number of questions differs"),
    ],
)
def test_what_did_not_measure_the_same_is_refused_by_name(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    folders = [made(tmp_path / "a", "110000"), made(tmp_path / "b", "110000", **changed)]
    with pytest.raises(ValueError, match="toy: a and b cannot be compared") as error:
        compare(folders)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_other_questions_are_refused_by_name(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", "110000"), made(tmp_path / "b", "110000")
    path = other / "samples" / "toy.jsonl"
    text = path.read_text()
    path.write_text(text.replace("question 3", "question three"))
    with pytest.raises(ValueError, match="question q3 of a is another in b"):
        compare([one, other])
    path.write_text("".join(text.splitlines(keepends=True)[:5]))
    with pytest.raises(ValueError, match="question q5 of a is missing in b"):
        compare([one, other])


def test_what_may_differ_is_noted(tmp_path: Path) -> None:
    notes = compare([made(tmp_path / "a", "10"), made(tmp_path / "b", "01", seed=7, dtype="bfloat16")])["notes"]
    assert notes == ["toy: seed differs: 0 in a, 7 in b", "toy: dtype differs: float32 in a, bfloat16 in b"]


def test_one_model_under_two_templates_compares_the_templates(tmp_path: Path) -> None:
    got = compare([made(tmp_path / "a1", "1100"), made(tmp_path / "a2", "1010", template="chat", template_hash="u" * 64)])
    assert "toy: template differs: r1_zero in a1, chat in a2" in got["notes"]
    assert "toy: a1 and a2 are the same model" in got["notes"]
    with pytest.raises(ValueError, match="temperature differs"):
        compare([tmp_path / "a1", made(tmp_path / "a3", "1010", temperature=1.0)])


def test_folders_that_hold_nothing_in_common(tmp_path: Path) -> None:
    one = made(tmp_path / "a", "10")
    with pytest.raises(ValueError, match=r"no task was evaluated in all folders \(a: toy; b: other\)"):
        compare([one, made(tmp_path / "b", "01", task="other")])
    with pytest.raises(ValueError, match="two or more"):
        compare([one])
    with pytest.raises(ValueError, match="named twice"):
        compare([one, str(one)])
    with pytest.raises(ValueError, match="no evaluation"):
        compare([one, tmp_path / "none"])


def test_the_command_writes_a_report_that_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(made(tmp_path / "a", "110000" * 10, rows=60)), str(made(tmp_path / "b", "101111" * 10, rows=60))]
    assert main([*folders, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    report, results = (tmp_path / "out" / name for name in ("report.md", "results.json"))
    before = report.read_bytes(), results.read_bytes()
    assert "| toy | b | 83.3% (" in printed
    text = report.read_text()
    assert printed.strip() in text or printed.splitlines()[2] in text
    assert "Questions won (40): q2, q3, q4" in text
    assert "and 20 more in results.json" in text
    assert "| even | 30 |" in text
    assert json.loads(results.read_text())["tasks"]["toy"]["comparisons"][0]["lenient"]["won"] == 40
    assert main([*folders, "--out", str(tmp_path / "out")]) == 0
    assert (report.read_bytes(), results.read_bytes()) == before
    capsys.readouterr()
    assert main([folders[0], str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()
