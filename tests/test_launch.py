"""The launch files of clusters: whole, naming what exists; and one of them, with stand-ins for SLURM's commands, through a preemption."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl import config as configs
from rl.policy import ROOT
from tests.tiny_run import timeless, write_recipe

LAUNCH = ROOT / "recipes" / "launch"
FILES = sorted(LAUNCH.glob("*.sh"))


def test_there_are_two() -> None:
    assert [p.name for p in FILES] == ["ray.sh", "slurm.sh"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_what_a_launch_file_names_exists(path: Path) -> None:
    text = path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""
    modules = re.findall(r"-m ([a-z_.]+)", text)
    assert "recipes.run" in modules
    for module in modules:
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"(?<![\w/])recipes/[\w/]+\.(?:toml|yaml|sh)", text):
        assert (ROOT / name).is_file(), name
    keys = [
        f"{key}={3 if key == 'rollout.workers' else value}"
        for key, value in re.findall(r"\b((?:rollout|run|model)\.[a-z_]+)=([\w/$.-]+)", text)
    ]
    assert keys
    configs.load(ROOT / "recipes" / "zero_gsm8k.toml", [k for k in keys if "$" not in k])
    for option in ("--requeue", "--signal=B:TERM@300", "--open-mode=append"):
        assert f"#SBATCH {option}\n" in text
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text


SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" >> "$CALLS"\n'


def test_preempted_and_queued_again(tiny: str, tmp_path: Path) -> None:
    """Told to end, the run saves, the job is queued again, and the next one goes on to the end; that one is not queued again."""
    recipe, out, tools = write_recipe(tmp_path, tiny), tmp_path / "run", tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "SLURM_JOB_ID": "77", "PY": sys.executable, "PROCESSES": "1",
        "RECIPE": str(recipe), "OUT": str(out), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [shutil.which("bash") or "bash", str(LAUNCH / "slurm.sh"), "evaluate.problems=0"]

    def job(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with job("run.steps=100000") as first:
        end = time.monotonic() + 120
        while len(list((out / "rollouts").glob("step-*.jsonl"))) < 2 and first.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        first.send_signal(signal.SIGTERM)
        said, told = first.communicate(timeout=120)
    assert first.returncode == 0, told
    assert "SIGTERM: saved after step" in said
    assert calls.read_text() == "requeue 77\n"
    done = len(timeless(out))
    with job(f"run.steps={done + 2}") as second:
        said, told = second.communicate(timeout=240)
    assert second.returncode == 0, told
    assert f"resumed after step {done} of {done + 2}" in said
    assert calls.read_text() == "requeue 77\n"
    assert json.loads((out / "result.json").read_text())["steps"] == done + 2
