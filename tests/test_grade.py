"""`python -m rewards.grade`: verdicts, bad lines, audit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(root: Path, lines: list[Any], *flags: str) -> subprocess.CompletedProcess[str]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    command = [sys.executable, "-m", "rewards.grade", "--kind", "math", *flags]
    return subprocess.run(command, input=text + "\n", capture_output=True, text=True, cwd=root, timeout=120, check=False)


CASES = [
    {"id": "bare", "gold": "1/2", "answer": "0.5"},
    {"id": "boxed", "gold": "$\\frac{1}{2}$", "answer": "so it is $\\boxed{\\frac{2}{4}}$."},
    {"id": "tagged", "gold": "4", "answer": "<think>5</think><answer>4</answer>"},
    {"id": "gsm8k", "gold": "3 + 1 = 4\n#### 4", "answer": "#### 4"},
    {"id": "prose", "gold": "4", "answer": "There must be 4 of them left."},
    {"id": "formula", "gold": "$x^2$", "answer": "It follows that $f(x) = x^2$."},
    {"id": "number", "gold": 4, "answer": "\\boxed{4}"},
    {"id": "near", "gold": "3.8e35", "answer": "3.83e35", "tolerance": 0.01},
    {"id": "wrong", "gold": "4", "answer": "\\boxed{5}"},
    {"id": "code", "gold": "0", "answer": "None or 0"},
    {"id": "empty", "gold": "4", "answer": ""},
]


def test_verdicts(root: Path) -> None:
    done = run(root, CASES)
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["id"] for f in found] == [case["id"] for case in CASES]
    assert {f["id"]: f["score"] for f in found} == {
        case["id"]: float(case["id"] not in ("wrong", "code", "empty")) for case in CASES
    }
    assert {f["verdict"] for f in found} == {"right", "wrong"}
    assert all(set(f) == {"id", "score", "verdict", "reason", "ms"} and f["ms"] >= 0 for f in found)


def test_bad_lines_are_reported_by_number_and_the_others_graded(root: Path) -> None:
    lines = [
        CASES[0],
        "{not json",
        {"id": 1},
        "",
        "[1]",
        {"id": 2, "gold": "\\frac{1}{", "answer": "1"},
        {"id": 3, "gold": "4", "answer": 4},
        CASES[2],
    ]
    done = run(root, lines)
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["line 2", "line 3", "line 5", "line 6", "line 7"]
    assert len(done.stdout.splitlines()) == 2


def test_audit(root: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: it is the audit's second verifier")
    lines = [
        {"id": "a", "gold": "4", "answer": "$4$", "label": True},
        {"id": "b", "gold": "4", "answer": "$5$", "label": False},
        {"id": "mislabelled", "gold": "4", "answer": "$5$", "label": True},
        {"id": "differs", "gold": "$\\frac{1}{2^{99}}$", "answer": "$\\frac{1}{2^{98}}$", "label": False},
    ]
    done = run(root, lines, "--audit")
    assert (done.returncode, done.stderr) == (0, "")
    out = " ".join(done.stdout.split())
    assert "4 cases, 3 as labelled (75.0%)" in out
    assert "label true 1 1 0 label false 0 2 0" in out
    assert "not as labelled (1): mislabelled: label True, graded False" in out
    assert "other than math-verify (1 of 4): differs: label False, here False, math-verify True" in out
    assert "slowest (ms):" in out


def test_an_audit_wants_labels(root: Path) -> None:
    done = run(root, CASES[:1], "--audit")
    assert done.returncode == 2
    assert "label" in done.stderr


def test_code_cases_go_to_the_sandbox(root: Path) -> None:
    from rewards import sandbox

    case = {"id": "c", "completion": "```python\ndef f(x):\n    return x + 1\n```", "asserts": ["assert f(1) == 2"]}
    wrong = {**case, "id": "w", "completion": "```python\ndef f(x):\n    return x\n```"}
    assert sandbox
    command = [sys.executable, "-m", "rewards.grade", "--kind", "code"]
    text = "\n".join(map(json.dumps, (case, wrong, {"id": "bad"})))
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=root, timeout=120, check=False)
    if "sandbox" in done.stderr and not done.stdout:
        pytest.skip(f"no sandbox on this host: {done.stderr[-200:]}")
    assert done.returncode == 2
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == [1.0, 0.0]
    assert done.stderr.startswith("line 3:")
