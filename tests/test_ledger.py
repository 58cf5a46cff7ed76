"""Answers on disk: whole units or none, one evaluation a folder, and the line of progress."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.ledger import Ledger, Progress, claim
from eval.records import Answered, Sampled, Settings, read_settings

UNITS = [["a", "b"], ["c", "d"], ["e"]]
ORDER = ["b", "a", "c", "e", "d"]
SETTINGS = Settings(
    "gsm8k", "gsm8k", 5, "d", "r1_zero", "t", "m", "w", "g", "v", "generate", 1, 0.0, 9, 0, "vllm", "0", "float32", "2026-11-22", "c0"
)  # fmt: skip


def one(name: str, text: str = "4") -> Answered:
    return Answered("gsm8k", name, f"{name}?", "4", {}, 3, (Sampled(text, 2, False, 1.0, 1.0, "4", "right"),))


def ledger(folder: Path) -> Ledger:
    return Ledger(folder, "gsm8k", ORDER, UNITS)


def test_the_file_is_in_the_tasks_order_and_the_same_after_any_kill(tmp_path: Path) -> None:
    whole = ledger(tmp_path / "whole")
    for unit in UNITS:
        whole.add([one(i) for i in unit])
    assert [a.id for a in whole.finish()] == ORDER
    part = tmp_path / "killed/samples/gsm8k.part"
    first = ledger(tmp_path / "killed")
    assert first.done == [False, False, False]
    first.add([one("c"), one("d")])
    lines = part.read_bytes()
    second = lines.index(b"\n") + 1
    for kept in (0, 1, second - 1, second, second + 9, len(lines) - 1, len(lines)):  # a kill may leave any beginning
        part.write_bytes(lines[:kept])
        again = ledger(tmp_path / "killed")
        assert again.done == [False, kept == len(lines), False]
        for unit, done in zip(UNITS, again.done, strict=True):
            if not done:
                again.add([one(i) for i in unit])
        again.finish()
        assert not part.exists()
        results = [(tmp_path / name / "samples/gsm8k.jsonl").read_bytes() for name in ("whole", "killed")]
        assert results[0] == results[1]


def test_a_unit_is_on_disk_when_it_was_added(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    made.add([one("a"), one("b", "zwei\u2028drei\n")])
    other = ledger(tmp_path)
    assert other.done == [True, False, False]
    assert other.answered["b"].samples[0].text == "zwei\u2028drei\n"


def test_a_folder_holds_one_evaluation(tmp_path: Path) -> None:
    assert claim(tmp_path, SETTINGS) is False
    later = replace(SETTINGS, date="2026-11-23", commit="c1")
    assert claim(tmp_path, later) is False  # goes on, under the day of the first start
    assert read_settings(tmp_path) == [SETTINGS]
    made = ledger(tmp_path)
    for unit in UNITS:
        made.add([one(i) for i in unit])
    made.finish()
    assert claim(tmp_path, later) is True
    with pytest.raises(
        ValueError, match=r"holds gsm8k under other settings \(seed 0, now 1; temperature|\(temperature 0.0, now 1.0; seed"
    ):
        claim(tmp_path, replace(SETTINGS, seed=1, temperature=1.0))
    with pytest.raises(ValueError, match="holds an evaluation of m, not of these weights of other"):
        claim(tmp_path, replace(SETTINGS, model="other", task="math"))
    claim(tmp_path, replace(SETTINGS, task="aime24"))
    assert [s.task for s in read_settings(tmp_path)] == ["aime24", "gsm8k"]


def test_bad_records_are_said_by_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation"):
        read_settings(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps([{"task": "x"}]))
    with pytest.raises(ValueError, match=r"settings.json: cannot be read: no Settings: of its fields .*'seed'.* are missing"):
        read_settings(tmp_path)
    assert Answered.from_json(one("a").to_json()) == one("a")
    for text in ("{", "[]", '{"task": "t"}', '{"unknown": 1}'):
        with pytest.raises(ValueError):
            Answered.from_json(text)


def test_the_time_to_go_counts_this_process_alone(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("gsm8k", 100, total=1000.0, done=500.0, every_s=0.0)
    progress.step(100.0)
    assert "gsm8k  60/100 questions, 0:00, 0:00 to go" in capsys.readouterr().err
    assert progress.line(progress.begun + 60).endswith("1:00, 4:00 to go")
    progress.step(300.0)
    assert progress.line(progress.begun + 8000).endswith("90/100 questions, 2:13:20, 33:20 to go")
