"""A run that may go back goes back to its last healthy checkpoint, learns more slowly from there, and comes to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.planted import FAULTS, QUIET, recipe, through_the_door
from tests.tiny_run import refused, timeless

ENTROPY = next(f for f in FAULTS if f.guard == "entropy")
# So fast the policy falls apart: 5.8, 5.0, 2.7, 1.2, 0.4, 0.1 nats a token. The fourth step is the first bad one.
FAST = (
    "learn.lr=0.03",
    "learn.warmup=0",
    "learn.schedule=constant",
    "guard.entropy=0.3",
    "guard.patience=1",
    "run.save_every=1",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_it_goes_back_and_learns_more_slowly(tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = [str(recipe(ENTROPY, tmp_path)), f"run.out={out}", *QUIET, *FAST, "guard.rollbacks=1", "guard.rollback_lr=0.001"]
    code, said, reason = through_the_door([*args, "run.steps=5"])
    assert (code, reason) == (0, "")
    assert "gone back to step 2, learn.lr times 0.001 from there (1 of 1 times): guard entropy: entropy 5" in said
    lines = timeless(out)
    assert [m["step"] for m in lines] == [1, 2, 3, 4, 5]
    assert [m["lr"] for m in lines] == pytest.approx([0.03, 0.03, 3e-5, 3e-5, 3e-5])
    assert lines[-1]["entropy"] > 0.3 * lines[0]["entropy"]
    state = json.loads((out / "checkpoints" / "step-000005" / "state.json").read_text())
    assert state["guard"]["rollbacks"] == 1
    code, said, reason = through_the_door([*args, "run.steps=6", "--resume"])
    assert (code, reason) == (0, "")
    assert timeless(out)[-1]["lr"] == pytest.approx(3e-5)  # a resumed run has not forgotten


def test_more_often_than_allowed_it_stops(tmp_path: Path) -> None:
    args = [str(recipe(ENTROPY, tmp_path)), f"run.out={tmp_path / 'run'}", *QUIET, *FAST, "run.steps=5"]
    code, said, reason = through_the_door([*args, "guard.rollbacks=1", "guard.rollback_lr=1"])  # it cures nothing
    assert code == 1
    assert said.count("gone back to step 2") == 1
    assert reason.startswith("error: stopped: guard entropy")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-000003",
        "step-000004",
    ]  # that of the stop, too
    assert [m["step"] for m in timeless(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_that_samples_ahead_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(ENTROPY, tmp_path)
    told = refused(capsys, [str(path), "guard.rollbacks=1", "rollout.placement=processes", "rollout.max_staleness=1"])
    assert "guard.rollbacks with rollout.max_staleness" in told
