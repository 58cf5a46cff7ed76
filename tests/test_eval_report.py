"""The files of an evaluation's report: contamination before the score, everything to repeat it, the same bytes for the same answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval.contamination import Contamination, Shared, enter
from eval.evaluate import Options, evaluate
from eval.records import Sampled, write_settings
from eval.report import main, read, write
from eval.report_words import facts, label, ordered, remarks
from eval.tasks import load
from tests.stored_eval import MMLU, SETTINGS, generated, letters, stored

FILES = ("results.json", "report.md", "report.html")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stored(tmp_path / "one", (generated(), letters()), SETTINGS, MMLU)


def overlap(*ids: str) -> list[Contamination]:
    found = tuple(Shared(i, 1.0, "exact", "train/7", "question number zero") for i in ids)
    return [Contamination("gsm8k", 8, 120, 2, 7473, found), Contamination("gsm8k", 13, 120, 30, 7473, ())]


def test_the_same_answers_give_the_same_bytes_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "two"
    shutil.copytree(folder, other)
    assert write(folder) == folder / "report.html"
    write(other)
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
        assert str(tmp_path) not in (folder / name).read_text()
    write(folder)  # again over itself
    assert (folder / "report.html").read_bytes() == (other / "report.html").read_bytes()


def test_the_same_command_and_seed_give_the_same_files(tiny: str, tmp_path: Path) -> None:
    """Sampled twice by a real model, from question to page; another seed gives another page."""
    rows = [{"question": f"What is {i}+{i}?", "gold": str(2 * i), "subject": "ab"[i % 2]} for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = str(tmp_path / "sums.jsonl")
    pages = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        evaluate({task: load(task)}, Options(tiny, 2, 1.0, max_tokens=12, seed=seed, engine="transformers"), tmp_path / name)
        write(tmp_path / name)
        pages.append({file: (tmp_path / name / file).read_bytes() for file in (*FILES, "settings.json", "samples/sums.jsonl")})
    assert pages[0] == pages[1]
    assert all(pages[0][file] != pages[2][file] for file in pages[0])


@pytest.mark.parametrize("name", FILES)
def test_every_report_says_how_it_was_made(folder: Path, name: str) -> None:
    write(folder)
    text = (folder / name).read_text()
    for fact in (
        "3d" * 6,
        "7e" * 6,
        "rewards/math_answer",
        "6a" * 6,
        "vllm",
        "0.31.0",
        "2026-11-22",
        "0123456789ab",
        "r1_zero",
    ):
        assert fact in text, fact
    if name != "results.json":
        assert "4 a question, temperature 1, top-p 1, up to 256 tokens" in text
        assert "3 prompts are longer than the model takes" in text
    assert json.loads((folder / "results.json").read_text())["settings"]["gsm8k"]["seed"] == 5


def test_contamination_stands_before_the_score(folder: Path) -> None:
    enter(folder, overlap("gsm8k/test/0", "gsm8k/test/1"), ["train.jsonl"])
    found = read(folder)
    kept = [a for a in found.answered["gsm8k"] if a.id not in ("gsm8k/test/0", "gsm8k/test/1")]
    right = [s.lenient for a in kept for s in a.samples]
    assert found.clean["gsm8k"]["value"] == pytest.approx(sum(right) / len(right))
    assert (found.clean["gsm8k"]["left_out"], found.clean["gsm8k"]["n"]) == (2, 118)
    write(folder)
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert markdown.index("gsm8k: of 120 questions 2 of which") < markdown.index("| gsm8k |")
    assert "gsm8k without those 2: lenient" in markdown
    assert "train.jsonl, 7473 rows" in markdown
    assert (
        page.index("Training questions in the test sets") < page.index("question number zero") < page.index("<h2>Accuracy</h2>")
    )
    assert "not looked for" not in page
    results = json.loads((folder / "results.json").read_text())
    assert results["figures"]["gsm8k"]["without_contaminated"]["left_out"] == 2
    assert [row["most"] for row in results["contamination"]] == [2, 0]


def test_where_nobody_looked_it_says_so(folder: Path) -> None:
    write(folder)
    assert "not looked for" in (folder / "report.html").read_text()
    assert "not looked for: name what the model was trained on" in (folder / "report.md").read_text()


def test_what_is_entered_for_one_task_leaves_the_others(folder: Path) -> None:
    enter(folder, overlap("gsm8k/test/0"), ["train.jsonl"])
    enter(folder, [Contamination("mmlu", 8, 90, 0, 10, ())], ["other.jsonl"])
    assert [(row["task"], row["n"], row["training"]) for row in read(folder).overlap] == [
        ("gsm8k", 8, ["train.jsonl"]), ("gsm8k", 13, ["train.jsonl"]), ("mmlu", 8, ["other.jsonl"]),
    ]  # fmt: skip
    (folder / "contamination.json").write_text('[{"task": "mmlu"}]')
    with pytest.raises(ValueError, match=r"contamination.json is damaged"):
        read(folder)


def test_report_md_is_short_and_has_the_figures(folder: Path) -> None:
    write(folder)
    lines = (folder / "report.md").read_text().splitlines()
    assert len(lines) < 40
    gsm8k = next(line for line in lines if line.startswith("| gsm8k |")).split(" | ")
    right = [s.lenient for a in generated() for s in a.samples]
    assert gsm8k[1:3] == ["120", "4"]
    assert gsm8k[4].startswith(f"{100 * sum(right) / len(right):.1f} % [")
    assert next(line for line in lines if line.startswith("| mmlu |")).endswith("| - | - | - | - |")
    assert any("Largest gap by steps: steps " in line for line in lines)
    assert any(line.startswith("- gsm8k, rules first: they decide ") for line in lines)


def test_an_unfinished_task_is_left_out(folder: Path) -> None:
    write_settings(folder, [SETTINGS, MMLU, replace(SETTINGS, task="math500")])
    assert list(read(folder).figures) == ["gsm8k", "mmlu"]
    assert list(read(folder, tasks=["mmlu"]).figures) == ["mmlu"]


def test_bad_folders_get_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    write_settings(tmp_path / "begun", [SETTINGS])
    assert main([str(tmp_path / "begun")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "no settings.json" in said[0]
    assert "no task was answered in full" in said[1]
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"report {folder / 'report.html'}\n"


def test_one_question_and_no_verdict(tmp_path: Path) -> None:
    row = replace(generated(1, 1)[0], samples=(Sampled("?", 3, False, None, None, "", "the sandbox was lost"),))
    folder = stored(tmp_path / "one", ([row],), replace(SETTINGS, samples=1, temperature=0.0))
    write(folder)
    assert "100 % of the samples got no verdict" in (folder / "report.md").read_text()
    assert json.loads((folder / "results.json").read_text())["results"]["gsm8k"]["exact_match_stderr,lenient"] == "N/A"


def test_facts_name_the_tasks_where_they_differ() -> None:
    assert facts([SETTINGS])["Seed"] == "5"
    got = facts([SETTINGS, MMLU, replace(SETTINGS, task="math500")])
    assert (
        got["Samples"]
        == "gsm8k, math500: 4 a question, temperature 1, top-p 1, up to 256 tokens; mmlu: log-likelihood of the letters"
    )
    assert got["Model"] == "runs/zero/final"
    assert "Completions" in facts([replace(SETTINGS, mode="regrade")])
    assert facts([replace(SETTINGS, samples=1, temperature=0.0)])["Samples"] == "1 a question, greedy, up to 256 tokens"


def test_words() -> None:
    assert [label(m) for m in ("Qwen/Qwen2.5-0.5B", "/a/b/c", "model", "/")] == ["Qwen/Qwen2.5-0.5B", "b/c", "model", "/"]
    assert ordered({"10": 1, "9": 3, "2": 2}, lambda v: v) == ["2", "9", "10"]
    assert ordered({"Level 2": 1, "Level 10": 3}, lambda v: v) == ["Level 2", "Level 10"]
    assert ordered({"a": 1, "b": 3, "c 4": 2}, lambda v: v) == ["b", "c 4", "a"]
    assert remarks("t", SETTINGS, {"no_verdict": 0.0}) == []
