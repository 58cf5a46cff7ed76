"""result.json and the last line of a run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from recipes import result
from rl.config import Config


def evaluation(value: float) -> dict:
    m = {"value": value, "low": value - 0.05, "high": value + 0.05}
    return {"problems": 500, "greedy": m, "pass@1": m, "pass@16": m, "format": m, "truncated": 0.1}


def test_the_last_line_says_before_after_and_interval() -> None:
    tree = result.result(Config(name="x"), 60, evaluation(0.2), evaluation(0.6), {"total": 5.123, "train": 4.0})
    assert result.line(tree) == (
        "x, 500 held-out problems: greedy 0.200 -> 0.600 [0.550, 0.650], sampled pass@1 0.200 -> 0.600 [0.550, 0.650], "
        "pass@16 0.200 -> 0.600 [0.550, 0.650]; 5.1 minutes, seed 0"
    )
    assert json.loads(json.dumps(tree)) == tree
    assert tree["minutes"] == {"total": 5.12, "train": 4.0}
    assert tree["sandbox"] is None
    where = {"tier": "B", "why": "tier A: bubblewrap is not installed"}
    assert result.result(Config(name="x"), 60, None, None, {}, where)["sandbox"] == where


def test_without_evaluation_it_says_so() -> None:
    tree = result.result(Config(name="x"), 60, None, None, {})
    assert result.line(tree) == "x: 60 steps done; no held-out evaluation (data.heldout, evaluate.problems)"


def test_versions_and_commit_are_those_in_use() -> None:
    import torch
    import transformers

    found = result.versions()
    assert found["torch"] == torch.__version__ or torch.__version__.startswith(found["torch"])
    assert found["transformers"] == transformers.__version__
    assert "python" in found
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=result.ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert head.stdout.startswith(result.commit().removesuffix("+changes"))


def test_the_commit_outside_of_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(result, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert result.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert result.commit() == "unknown"


def test_changed_files_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*args: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e@example.com", *args], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "m")
    monkeypatch.setattr(result, "ROOT", tmp_path)
    clean = result.commit()
    assert len(clean) == 12
    (tmp_path / "f").write_text("2")
    assert result.commit() == clean + "+changes"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    result.write_json(path, {"a": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        result.write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
