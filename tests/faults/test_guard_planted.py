"""Every guard catches its planted fault within three steps of a real run, says its name and leaves a checkpoint; a healthy run goes by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rl.guard_rules import RULES
from tests.faults import planted
from tests.faults.planted import FAULTS, Fault, NoPlace

NOT_WHOLE = ("nan", "workers")  # the step that they stop is not


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_guard_has_a_fault() -> None:
    assert [f.guard for f in FAULTS] == list(RULES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.guard)
def test_caught(fault: Fault, tmp_path: Path) -> None:
    try:
        caught = planted.run(fault, tmp_path)
    except NoPlace as why:
        pytest.skip(str(why))
    assert caught.code == 1, caught.reason
    assert caught.reason.startswith(f"error: stopped: guard {fault.guard}: ")
    assert fault.told in caught.reason
    assert caught.reason.count("\n") == 1
    assert 1 <= caught.step <= 3
    if not RULES[fault.guard].at_once and "guard.patience=1" not in fault.overrides and fault.guard not in NOT_WHOLE:
        assert caught.warned == [fault.guard]  # a warning came first
    whole = caught.step - (fault.guard in NOT_WHOLE)
    if fault.guard == "disk":  # the step's own does not fit any more
        assert caught.checkpoints == ["step-000001"]
    else:
        assert caught.checkpoints == ([f"step-{whole:06d}"] if whole else [])
    assert "report " in caught.said


def test_a_healthy_run_goes_by(tmp_path: Path) -> None:
    code, said, reason = planted.healthy(tmp_path)
    assert (code, reason) == (0, "")
    assert "warning" not in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [len(m["heldout_right"]) for m in lines] == [8] * 3
    assert {"repetition", "language", "heldout", "entropy", "truncated", "zero_variance", "mismatch"} <= lines[-1].keys()
