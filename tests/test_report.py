"""metrics.jsonl and rollouts survive kills and resumes; the console line never fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rewards.score import Score
from rl.records import Completion, Group, Prompt
from rl.report import Journal, console_line, read_jsonl, rollout_files

FULL = {
    "step": 120, "reward": 0.5234, "reward_std": 0.412, "accuracy": 0.487, "format": 0.931, "length": 1312.7, "truncated": 0.02,
    "zero_variance": 0.251, "kl": 0.00123, "entropy": 0.421, "clip_low": 0.004, "clip_high": 0.009, "mismatch_max": 3.1e-6,
    "tokens_per_s": 41234.0, "seconds_rollout": 31.21, "seconds_reward": 0.14, "seconds_learn": 22.31, "seconds_sync": 0.02,
    "eta_s": 7325.0,
}  # fmt: skip


def group(text: str = "<answer> 4 </answer>", reward: float | None = 1.0) -> Group:
    prompt = Prompt("q/1", (7, 8), {"id": "q/1", "question": "2+2?", "gold": "4", "kind": "math", "steps": 1, "part": "seen"})
    first = Completion((5, 9, 2), (-0.1, -0.7, -0.01), "stop", text, version=3)
    second = Completion((5, 9), (-0.1, -0.7), "length", "I", version=3)
    return Group(
        prompt, (first, second), (Score(reward, {"accuracy": 1.0}, "right: 4"), Score(0.0, {"accuracy": 0.0}, "no answer"))
    )


def decode(ids: tuple[int, ...]) -> str:
    return f"prompt of {len(ids)}"


def test_a_step_is_one_line_on_disk_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "run")
    journal.step({"step": 1, "reward": np.float32(0.5), "by_steps": {"1": 0.75, "2": np.float64(0.25)}, "loss": float("nan")})
    assert json.loads(journal.path.read_text()) == {"step": 1, "reward": 0.5, "by_steps": {"1": 0.75, "2": 0.25}, "loss": None}
    journal.step({"step": 2, "kl": float("inf"), "loss": np.float32("nan"), "lr": np.array(1e-6)})
    assert list(read_jsonl(journal.path))[1] == {"step": 2, "kl": None, "loss": None, "lr": 1e-6}
    assert [m["step"] for m in read_jsonl(journal.path)] == [1, 2]
    journal.close()


def test_a_new_run_never_overwrites_an_old_one(tmp_path: Path) -> None:
    Journal(tmp_path).step({"step": 1})
    with pytest.raises(ValueError, match="--resume"):
        Journal(tmp_path)
    assert [m["step"] for m in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


def test_resume_cuts_the_torn_line_and_later_steps(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(1, 6):
        journal.step({"step": step, "reward": step / 10})
        journal.rollouts(step, [group()], [[1.0, -1.0]], decode)
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"step": 6, "rew')  # killed here
    assert [m["step"] for m in read_jsonl(journal.path)] == [1, 2, 3, 4, 5]
    again = Journal(tmp_path, resumed_step=3)
    again.step({"step": 4, "reward": 0.9})
    assert [(m["step"], m["reward"]) for m in read_jsonl(journal.path)] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.9)]
    assert list(rollout_files(tmp_path)) == [1, 2, 3]


def test_resume_at_the_last_step_only_drops_the_torn_line(tmp_path: Path) -> None:
    Journal(tmp_path).step({"step": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2}')  # whole JSON, but its end of line is missing: it may be a cut {"step": 2}
    Journal(tmp_path, resumed_step=2).step({"step": 3})
    assert [m["step"] for m in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_jsonl(path))


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom rl.report import Journal\nj = Journal(sys.argv[1])\nstep = 0\n"
        "while True:\n    step += 1\n    j.step({'step': step, 'pad': 'x' * 3000})\n    print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    with process, process.stdout:
        seen = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        seen += [int(line) for line in process.stdout]
    steps = [m["step"] for m in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= seen[-1]  # a step that was reported is on disk


def test_rollouts_hold_all_that_a_reader_needs(tmp_path: Path) -> None:
    path = Journal(tmp_path).rollouts(12, [group(), group(reward=None)], [[0.7, -0.7], [None, 0.0]], decode)
    assert path == tmp_path / "rollouts" / "step-000012.jsonl"
    first, second = read_jsonl(path)
    assert first["problem"] == {"id": "q/1", "kind": "math", "steps": 1, "part": "seen"}
    assert {k: first[k] for k in ("step", "id", "question", "gold", "prompt")} == {
        "step": 12, "id": "q/1", "question": "2+2?", "gold": "4", "prompt": "prompt of 2",
    }  # fmt: skip
    assert first["completions"][0] == {
        "text": "<answer> 4 </answer>", "tokens": 3, "finish": "stop", "version": 3, "reward": 1.0,
        "parts": {"accuracy": 1.0}, "reason": "right: 4", "advantage": 0.7,
    }  # fmt: skip
    assert first["completions"][1]["finish"] == "length"
    assert second["completions"][0]["reward"] is None
    assert second["completions"][0]["advantage"] is None


@pytest.mark.parametrize(
    "text", ["two\u2028lines\x85here\nand\r\nthere", "lone \ud83d surrogate", 'quote " and \\ and \x00', "水 ± 🙂"]
)
def test_any_text_survives_as_one_line(tmp_path: Path, text: str) -> None:
    path = Journal(tmp_path).rollouts(1, [group(text)], [[0.0, 0.0]], decode)
    assert path.read_bytes().count(b"\n") == 1
    assert next(read_jsonl(path))["completions"][0]["text"] == text


def test_rollouts_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ValueError):  # one advantage too few for the group
        journal.rollouts(1, [group(), group()], [[0.0, 0.0], [0.0]], decode)
    assert rollout_files(tmp_path) == {}
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here: a full disk cannot be tried")
    (tmp_path / "rollouts" / "step-000001.jsonl.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        journal.rollouts(1, [group()], [[0.0, 0.0]], decode)
    assert list((tmp_path / "rollouts").iterdir()) == []


def test_console_line_of_a_whole_step() -> None:
    line = console_line(FULL, 120, 10400)
    assert line == (
        "  120/10400 reward 0.523±0.41 acc 0.487 fmt 0.93 len 1313 trunc 2% zerovar 25% kl 1.2e-03 ent 0.42 clip 1.3% mis 3e-06"
        " 41.2k tok/s 31.2/0.1/22.3/0.0 s eta 2:02:05"
    )
    assert len(line) <= 165


def test_console_line_shows_what_is_missing() -> None:
    empty = console_line({}, 1, 40)
    assert empty == (" 1/40 reward -±- acc - fmt - len - trunc - zerovar - kl - ent - clip - mis - - tok/s -/-/-/- s eta -")
    for key in FULL:
        assert console_line({k: v for k, v in FULL.items() if k != key}, 1, 2)
        assert console_line(FULL | {key: None}, 1, 2)
        assert console_line(FULL | {key: float("nan")}, 1, 2)
    assert "clip 0.9%" in console_line({"clip_high": 0.009}, 1, 2)
