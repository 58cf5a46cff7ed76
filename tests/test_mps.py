"""NVIDIA MPS around a run: when it is started, and that it goes with the learner. The control program here stands in for NVIDIA's, which
needs a GPU (tests/gpu/test_mps_cuda.py runs the real one)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes import engines, mps
from rl.config import Config, Rollout

CONTROL = """#!/bin/sh
if [ "$1" = -f ]; then
    echo "${CUDA_VISIBLE_DEVICES-all}" > "$CUDA_MPS_PIPE_DIRECTORY/cards"
    echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/control"
    while [ ! -e "$CUDA_MPS_PIPE_DIRECTORY/over" ]; do sleep 0.05; done
else
    read -r said && [ "$said" = quit ] && : > "$CUDA_MPS_PIPE_DIRECTORY/over"
fi
"""
LEARNER = """
import os, sys
from recipes import mps
from rl.config import Config
mps.shares_a_card = lambda config: True
mps.torch.cuda.is_available = lambda: True
with mps.service(Config()):
    folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
    print(folder, open(folder + "/control").read().strip(), flush=True)
    sys.stdin.read()
"""
PLACED = replace(Config(), rollout=Rollout(placement="processes"))


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / mps.CONTROL
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in mps.NAMES:
        monkeypatch.delenv(name, raising=False)


def gone(pid: int) -> bool:
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.05)
    return not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("how", ["returns", "killed"])
def test_the_service_ends_with_the_learner(control: None, how: str) -> None:
    learner = subprocess.Popen(
        [sys.executable, "-c", LEARNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert learner.stdout is not None
    folder, pid = learner.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    if how == "killed":
        learner.send_signal(signal.SIGKILL)
    learner.communicate()
    assert gone(int(pid))
    end = time.monotonic() + 20
    while Path(folder).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(folder).exists()


def test_it_serves_all_cards(control: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that saw the second alone would call it the first, and its clients, told to use the second, would find none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(mps, "shares_a_card", lambda config: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with mps.service(PLACED):
        assert (Path(os.environ[mps.NAMES[0]]) / "cards").read_text() == "all\n"


def test_workers_go_before_the_learner(control: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(engines.PRIORITY, raising=False)
    monkeypatch.setattr(mps, "shares_a_card", lambda config: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with mps.service(PLACED):
        assert os.environ[engines.PRIORITY] == "1"  # below normal
        assert engines.environment(PLACED, "0")[engines.PRIORITY] == "0"
    assert engines.PRIORITY not in os.environ


def test_a_gpu_that_is_not_reached_is_said(control: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "shares_a_card", lambda config: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU through nvidia-cuda-mps-control"), mps.service(PLACED):
        pass
    assert mps.NAMES[0] not in os.environ


def test_without_the_program_the_run_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(mps, "shares_a_card", lambda config: True)
    monkeypatch.setattr(mps, "CONTROL", "no-such-program")
    monkeypatch.setattr(mps, "KEEPER", "exit 1")
    with mps.service(PLACED):
        assert mps.NAMES[0] not in os.environ
    assert "take turns on the GPU" in capsys.readouterr().out


def test_a_service_that_is_there_is_left_alone(control, monkeypatch, tmp_path):
    monkeypatch.setattr(mps, "shares_a_card", lambda config: True)
    monkeypatch.setenv(mps.NAMES[0], str(tmp_path))
    with mps.service(PLACED):
        assert os.environ[mps.NAMES[0]] == str(tmp_path)
    assert os.environ[mps.NAMES[0]] == str(tmp_path)


@pytest.mark.parametrize(
    ("cards", "rollout", "shared"),
    [
        (1, Rollout(placement="processes"), True),
        (1, Rollout(), False),
        (2, Rollout(placement="processes"), False),  # the worker takes the other one
        (2, Rollout(placement="processes", devices=(0,)), True),
        (2, Rollout(placement="processes", devices=(1,)), False),
        (0, Rollout(placement="processes"), False),
    ],
)
def test_it_is_for_workers_on_the_learners_card(monkeypatch, cards, rollout, shared):
    for name in ("RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert mps.shares_a_card(replace(Config(), rollout=rollout)) is shared
