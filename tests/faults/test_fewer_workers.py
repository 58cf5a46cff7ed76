"""A run goes on with fewer rollout workers than it was begun with: a cluster gives what it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import run as door
from tests.tiny_run import timeless, write_recipe


def test_a_run_goes_on_with_fewer_workers(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = str(write_recipe(tmp_path, tiny)), tmp_path / "run"
    args = [recipe, f"run.out={out}", "evaluate.problems=0", "rollout.placement=processes"]
    assert door.main([*args, "rollout.workers=2", "run.steps=2"]) == 0
    assert door.main([*args, "rollout.workers=1", "run.steps=4", "--resume"]) == 0
    said = capsys.readouterr().out
    assert "changed since the run began: rollout.workers: 2 -> 1" in said
    assert "resumed after step 2 of 4" in said
    lines = timeless(out)
    assert [(m["step"], m["workers"]) for m in lines] == [(1, 2), (2, 2), (3, 1), (4, 1)]
    assert all(m["mismatch_max"] < 1e-4 for m in lines)
