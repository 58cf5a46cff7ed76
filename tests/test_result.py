"""result.json and the last line of a run."""

from __future__ import annotations

import errno
import json
import os
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


def test_what_was_gained_is_paired() -> None:
    told = [
        {"samples": 2, "right": {"greedy": g, "pass@1": s}}
        for g, s in (([0, 0, 1, 0], [0, 1, 2, 0]), ([0, 1, 1, 1], [2, 2, 2, 0]))
    ]
    found = result.gained(*told)
    assert (found["greedy"]["difference"], found["pass@1"]["difference"]) == (
        0.5,
        0.375,
    )  # (0 + 1 + 0 + 1) / 4, (1 + 1/2 + 0 + 0) / 4
    assert found["greedy"]["se"] == pytest.approx((1 / 3) ** 0.5 / 2)  # variance of 0, 1, 0, 1 over 4 problems
    assert found["pass@1"]["low"] < 0.375 < found["pass@1"]["high"]
    tree = result.result(Config(name="x"), 1, evaluation(0.2) | told[0], evaluation(0.6) | told[1], {"total": 1.0})
    assert "greedy +0.500 [" in result.line(tree)
    assert result.gained(told[0], told[1] | {"samples": 4}) == {}


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
