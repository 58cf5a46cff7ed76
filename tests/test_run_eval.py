"""The door of the evaluation, with a real model: what it leaves, going on after kill -9, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import run as door
from eval.records import read_samples, read_settings
from eval.run import main


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 12 problems: three units of four where 256 samples are drawn of each."""
    path = tmp_path_factory.mktemp("questions") / "sums.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"What is {i}+1?", "gold": str(i + 1), "part": str(i % 3)}) + "\n" for i in range(12))
    )
    return str(path)


def command(model: str, questions: str, out: Path) -> list[str]:
    sampling = ["--k", "256", "--max-tokens", "3", "--template", "plain", "--engine", "transformers"]
    return ["--model", model, "--tasks", questions, *sampling, "--out", str(out)]


def test_kill_nine_and_again_gives_the_same_files(tiny: str, questions: str, tmp_path: Path, root: Path) -> None:
    part = tmp_path / "killed/samples/sums.part"
    child = subprocess.Popen(
        [sys.executable, "-m", "eval.run", *command(tiny, questions, tmp_path / "killed")], cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while child.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if child.returncode != 0:  # it may have been quicker
        assert child.returncode == -signal.SIGKILL
        assert len(part.read_text().splitlines()) in (4, 8, 12)
    assert main(command(tiny, questions, tmp_path / "killed")) == 0
    assert main(command(tiny, questions, tmp_path / "whole")) == 0
    names = sorted(p.relative_to(tmp_path / "whole").as_posix() for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert {"settings.json", "samples/sums.jsonl"} <= set(names)
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not part.exists()
    answered = read_samples(tmp_path / "whole", "sums")
    assert [len(a.samples) for a in answered] == [256] * 12
    assert answered[5].groups == {"part": "2"}
    assert all(1 <= s.tokens <= 3 for a in answered for s in a.samples)
    (s,) = read_settings(tmp_path / "whole")
    assert (s.task, s.rows, s.samples, s.temperature, s.max_tokens, s.template) == ("sums", 12, 256, 1.0, 3, "plain")
    assert (s.mode, s.engine, s.dtype, s.extra) == ("generate", "transformers", "float32", {"prompts_cut": 0})
    assert all(len(h) == 64 for h in (s.data_hash, s.template_hash, s.model_hash, s.grader_version))


def test_log_likelihood_and_sampling_in_one_folder(
    tiny: str, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model", tiny, "--data", str(data_root), "--out", str(tmp_path), "--engine", "transformers", "--max-tokens", "4"]
    assert main([*args, "--tasks", "mmlu,aime24", "--limit", "3"]) == 0
    said = capsys.readouterr().out
    assert "aime24: 3 questions x 1: lenient 0.0000" in said
    assert "mmlu: 3 questions x 1: accuracy 0." in said
    mmlu = next(s for s in read_settings(tmp_path) if s.task == "mmlu")
    assert (mmlu.mode, mmlu.samples, mmlu.engine, mmlu.extra["shots"]) == ("loglikelihood", 1, "torch", 5)
    assert all(len(a.choices) == 4 and a.prompt_tokens > 100 for a in read_samples(tmp_path, "mmlu"))
    before = (tmp_path / "samples/mmlu.jsonl").read_bytes()
    assert main([*args, "--tasks", "aime24,mmlu", "--limit", "3"]) == 0
    assert capsys.readouterr().out.count("answered already") == 2
    assert (tmp_path / "samples/mmlu.jsonl").read_bytes() == before
    assert main([*args, "--tasks", "mmlu", "--limit", "4"]) == 2
    assert "holds mmlu under other settings (rows 3, now 4" in capsys.readouterr().err


def test_stored_completions_need_no_model(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "--task",
        "gsm8k",
        "--completions",
        str(data_root / "gsm8k/test.jsonl"),
        "--field",
        "answer",
        "--data",
        str(data_root),
    ]
    assert main([*args, "--out", str(tmp_path)]) == 0
    assert "gsm8k: 1319 questions x 1: lenient 1.0000 [0.99" in capsys.readouterr().out
    assert read_settings(tmp_path)[0].mode == "regrade"


def test_overlap_with_the_training_set_is_told_before_the_score(
    questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "Other things"}\n{"text": "What is 3+1? It is 4."}\n')
    (tmp_path / "answers.jsonl").write_text('{"text": "The answer is 1."}\n' * 12)
    args = ["--task", questions, "--completions", str(tmp_path / "answers.jsonl"), "--train", str(tmp_path / "train.jsonl")]
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.index("sums/3") < said.index("sums: 12 questions x 1")
    assert json.loads((tmp_path / "out/contamination.json").read_text())[0]["task"] == "sums"


def test_the_audit_runs_programs(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tasks", "humaneval,mbpp,gsm8k", "--audit", "--limit", "4", "--data", str(data_root)]) == 0
    said = capsys.readouterr().out
    for name in ("humaneval", "mbpp", "gsm8k"):
        assert f"{name}: 4 of 4 golds are right against themselves" in said
    rows = door.tasks.load("mbpp", str(data_root), limit=2)
    rows[1]["program"] = "def nothing():\n    pass\n"
    assert door.audit("mbpp", rows) == 2
    assert f"mbpp: 1 of 2 golds are right against themselves\n  {rows[1]['id']}: fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tasks", " , ", "--model", "m"], "--tasks is empty: name some of gsm8k, "),
        (["--tasks", "gsm8k"], "give one of --model .* --completions .* and --audit"),
        (["--tasks", "gsm8k", "--model", "m", "--audit"], "give one of --model"),
        (["--tasks", "gsm8k,math", "--completions", "f.jsonl"], "answers to one task: name one, not 2"),
        (["--tasks", "gsm8k", "--model", "m", "--k", "0"], "--k 0: must be at least 1"),
        (["--tasks", "gsm8k", "--model", "m", "--max-tokens", "-1"], "--max-tokens -1: must be at least 0"),
        (["--tasks", "gsm8k", "--model", "m", "--k", "4", "--temperature", "0"], "would draw the same answer 4 times"),
        (["--tasks", "gsm8k", "--model", "m", "--top-p", "0"], "top-p above 0"),
        (["--tasks", "nano", "--model", "m"], "task nano: its questions are generated: run it as `make eval`"),
        (["--tasks", "gsm8k", "--model", "m", "--data", "nowhere"], "task gsm8k: nowhere/gsm8k/test.jsonl: no such file; set --data"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert main(args) == 2
    told = capsys.readouterr().err
    assert re.match(f"error: .*{said}", told), told
    assert told.count("\n") == 1


def test_recipes_hand_in_what_they_generate(tmp_path: Path, tiny: str) -> None:
    from recipes.street import SOURCES

    args = [
        "--model",
        tiny,
        "--tasks",
        "nano",
        "--limit",
        "2",
        "--engine",
        "transformers",
        "--max-tokens",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(args, SOURCES) == 0
    assert [set(a.groups) for a in read_samples(tmp_path, "nano")] == [{"part", "steps"}] * 2
