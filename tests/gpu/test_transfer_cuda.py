"""Weights from GPU memory to other processes: opened in place (CUDA IPC), or broadcast by NCCL. The steps are those of test_transfer.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.engines import visible
from rl.transfer import GroupWindow, IpcWindow
from tests.test_transfer import same, send, weights

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


def test_gpu_memory_opened_in_place(tmp_path):
    window = IpcWindow(40_000, CUDA)
    one, other = send(window, 2, tmp_path, count=3, cards=visible()[:1] * 2)
    assert same(one, weights())
    assert same(other, weights())
    window.close()


def test_opened_again_for_other_workers(tmp_path):
    before = torch.cuda.memory_allocated()
    for size in (40_000, 41_000):
        window = IpcWindow(size, CUDA)
        assert same(*send(window, 1, tmp_path, cards=visible()[:1]), weights())
        window.close()
        torch.cuda.ipc_collect()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_broadcast(tmp_path):
    window = GroupWindow(40_000, CUDA, workers=1, timeout_s=60)
    assert same(*send(window, 1, tmp_path, count=3, cards=visible()[1:2]), weights())
    window.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_worker_that_is_killed_before_a_broadcast_is_a_time_out(tmp_path):
    """In a process of its own: NCCL must neither hang nor take the learner down."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240
    )
    assert "NOTICED" in done.stdout, done.stdout + done.stderr[-3000:]


KILLED = """
import json, os, subprocess, sys, torch
from recipes.engines import visible
from rl.transfer import GroupWindow
from tests.test_transfer import CHILD

window = GroupWindow(1 << 20, torch.device("cuda", 0), workers=1, timeout_s=10)
child = subprocess.Popen(
    [sys.executable, "-c", CHILD, json.dumps(window.opened(0)), "-", "cuda"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    env={**os.environ, "CUDA_VISIBLE_DEVICES": visible()[1]}, text=True,
)
window.join()
print(child.stdout.readline())
child.kill()
child.wait()
try:
    window.publish(1 << 20)
except RuntimeError as error:
    print("NOTICED", error)
window.close()
"""
