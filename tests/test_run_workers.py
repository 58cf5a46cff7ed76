"""Runs with rollout workers through the door: one is killed on the way, and however a run ends, nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes import run as door
from rl.policy import ROOT
from tests import tiny_pool as pools
from tests.tiny_run import write_recipe

WORKERS = ["rollout.placement=processes", "rollout.workers=2", "rollout.max_staleness=1"]


@pytest.fixture(scope="module")
def recipe(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("recipe"), tiny))


def steps_of(out: Path) -> list[dict[str, float]]:
    """The steps that metrics.jsonl holds by now, whole lines only."""
    try:
        text = (out / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait(until: Callable[[], object], within_s: float = 240) -> None:
    end = time.monotonic() + within_s
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_below(parent: int) -> list[int]:
    """The rollout workers of this process."""
    found = []
    for number in pools.below(parent):
        try:
            command = Path(f"/proc/{number}/cmdline").read_bytes()
        except OSError:
            continue
        if b"rl.worker_child" in command or b"faulty_worker" in command:
            found.append(number)
    return found


def test_a_run_goes_on_without_a_killed_worker(recipe, tmp_path, capfd):
    out, killed = tmp_path / "run", []
    torch.set_num_threads(1)

    def kill() -> None:
        wait(lambda: len(steps_of(out)) >= 2)
        killed.append(workers_below(os.getpid())[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    before = set(workers_below(os.getpid()))
    assert door.main([recipe, *WORKERS, "run.steps=16", "learn.lr=1e-4", f"run.out={out}"]) == 0
    killer.join(1)
    metrics = steps_of(out)
    assert len(killed) == 1
    assert [m["step"] for m in metrics] == list(range(1, 17))
    assert sum(m.get("workers_lost", 0) for m in metrics) == 1
    assert max(m["staleness_max"] for m in metrics) == 1
    assert all(m["workers"] in (1, 2) for m in metrics)
    assert all(m["masked"] == 0 for m in metrics)
    assert "killed by SIGKILL; a new one is being started" in capfd.readouterr().out
    assert set(workers_below(os.getpid())) == before


def test_sigterm_ends_a_run_and_its_workers(recipe, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "recipes.run", recipe, *WORKERS, "rollout.workers=1", "run.steps=100000", f"run.out={out}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait(lambda: steps_of(out) or run.poll() is not None)
        below = pools.below(run.pid)
        assert len(workers_below(run.pid)) == 1
        run.terminate()
        told = run.communicate(timeout=60)
    assert told[0].splitlines()[-1].startswith("SIGTERM: saved after step ")
    assert run.returncode == 0, told[1]
    assert pools.gone(below, 1)


LEARNER = """
import sys, torch
from rl.records import Sampling
from tests import tiny_pool as pools

loads = sys.argv[1] == "SIGKILL"
pool = pools.pool(2, scripted="0.05", loads=loads)
try:
    if loads:
        pool.load(iter({"a": torch.ones(30000)}.items()), 1)
    print(*[pools.pid(w) for w in pool.begun], flush=True)
    while True:
        pool.generate([[5]] * 100, Sampling(n=2, max_tokens=4))
finally:
    pool.close()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_no_worker_outlives_its_learner(how):
    with subprocess.Popen(
        [sys.executable, "-c", LEARNER, how.name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as learner:
        workers = [int(n) for n in learner.stdout.readline().split()]
        assert len(workers) == 2
        every = [learner.pid, *pools.below(learner.pid)]
        assert set(workers) < set(every)
        time.sleep(0.5)  # into the middle of a call
        for number in every:
            # What has no name in a file system cannot be left behind in it.
            assert "/dev/shm" not in Path(f"/proc/{number}/maps").read_text()
            links = [os.readlink(link) for link in Path(f"/proc/{number}/fd").iterdir() if os.path.lexists(link)]
            assert not [link for link in links if link.startswith(("/dev/shm", "/tmp")) and "(deleted)" not in link]
        os.killpg(learner.pid, how)  # as a terminal does: everyone in the learner's group hears it
        told = learner.communicate(timeout=60)[1]
    assert pools.gone(every)
    if how is signal.SIGINT:
        assert "KeyboardInterrupt" in told.splitlines()[-1]
