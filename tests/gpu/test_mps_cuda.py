"""Learner and two workers on one GPU under NVIDIA MPS: a worker that is killed takes neither the learner nor the other worker with it,
and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes import mps

pytestmark = pytest.mark.gpu


def children(pid: int) -> list[int]:
    return [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]


def workers(pid: int) -> list[int]:
    return [c for c in children(pid) if b"rl.worker_child" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_killed_worker_costs_its_groups_only(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "recipes.run",
        "recipes/zero_nano.toml",
        f"run.out={out}",
        "run.steps=4",
        "run.save_every=0",
    ]
    command += ["rollout.placement=processes", "rollout.workers=2", "rollout.devices=[0]", "evaluate.problems=0"]
    command += ["rollout.engine={gpu_memory_utilization=0.08,kv_cache_memory_bytes=1000000000,enforce_eager=true}"]
    with (tmp_path / "log").open("w") as log:
        learner = subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT)
        metrics = out / "metrics.jsonl"
        while learner.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.1)
        if learner.poll() is None:
            os.kill(workers(learner.pid)[0], signal.SIGKILL)
        assert learner.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    assert f"no {mps.CONTROL}" not in (tmp_path / "log").read_text()
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(steps) == 4
    assert sum(step.get("workers_lost", 0) for step in steps) == 1
    end = time.monotonic() + 30
    while _services() and time.monotonic() < end:
        time.sleep(0.2)
    assert not _services()


def _services() -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [name for name in [place.read_text().strip()] if name.startswith("nvidia-cuda-mps")]
        except OSError:
            continue
    return found
