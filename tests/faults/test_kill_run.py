"""A run that is killed and resumed ends, bit for bit, as one that nobody disturbed. (bench/kill_sweep.py: 20 random moments.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import kill_sweep
from bench.kill_sweep import Kill
from tests.tiny_run import write_recipe

KILLS = {  # what the checkpoint then is: save_every is 3
    "sampling step 2": (Kill("rollout", 1, 0.0), "rollout", 0),
    "learning step 5": (Kill("learn", 4, 0.0), "learn", 3),
    "writing the checkpoint of step 6": (Kill("checkpoint", 1, 0.0), "checkpoint", 3),
}


@pytest.fixture(scope="module")
def undisturbed(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    args = [str(write_recipe(folder, tiny))]
    assert kill_sweep.run(folder, [*args, f"run.out={folder / 'run'}"]) == 0, (folder / "said.txt").read_text()
    took = json.loads((folder / "took.json").read_text())
    assert [len(took[phase]) for phase in ("rollout", "learn", "sync", "checkpoint")] == [6, 6, 6, 2]
    return args, kill_sweep.contents(folder / "run")


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_resumed_is_undisturbed(undisturbed: tuple[list[str], dict[str, Any]], tmp_path: Path, moment: str) -> None:
    args, wanted = undisturbed
    kill, phase, saved = KILLS[moment]
    died, said, code = kill_sweep.killed(tmp_path, args, kill)
    assert (died, said, code) == (phase, f"resumed after step {saved} of 6", 0)
    found = kill_sweep.contents(tmp_path / "run")
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
