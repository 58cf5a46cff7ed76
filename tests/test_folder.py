"""A run's folder: one process at a time, and what the run began with."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from recipes import folder as folders
from recipes.street import Task
from rl import config as configs
from rl.config import Config
from rl.records import Prompt


@pytest.fixture
def config() -> Config:
    return Config(rewards={"accuracy": {}})


def task(*words: str, **changes: object) -> Task:
    prompts = [Prompt(f"train/{i}", (1, 2, i), {"question": word, "gold": "4"}) for i, word in enumerate(words)]
    return replace(Task(prompts, [Prompt("held/0", (9,), {"question": "?", "gold": "1"})]), **changes)


def in_a_fork(folder: Path) -> str:
    """What another process is told that wants the folder."""
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            with folders.claimed(folder):
                os.write(told, b"claimed")
        except ValueError as error:
            os.write(told, str(error).encode())
        finally:
            os._exit(0)
    os.close(told)
    os.waitpid(child, 0)
    with os.fdopen(ready) as said:
        return said.read()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with folders.claimed(folder):
        told = in_a_fork(folder)
        assert re.fullmatch(
            rf"{folder} is in use by process {os.getpid()} on \S+: wait until it ends, or choose .* run\.out=", told
        )
        (folder / "metrics.jsonl").touch()
        assert "is in use" in in_a_fork(folder)  # its having been refused took nothing away
    assert [p.name for p in folder.iterdir()] == ["metrics.jsonl"]
    assert in_a_fork(folder) == "claimed"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with folders.claimed(tmp_path):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert (tmp_path / "lock").exists()
    with folders.claimed(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()


def test_a_folder_in_which_nothing_was_written_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such data"), folders.claimed(tmp_path / "run"):
        raise ValueError("no such data")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_config_is_shown_and_refused_unless_allowed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.record(tmp_path, config, task("a"))
    with pytest.raises(ValueError, match="already holds a run: go on with --resume"):
        folders.check(tmp_path, config, resume=False, allow_changes=False)
    longer = replace(config, run=replace(config.run, steps=200))
    folders.check(tmp_path, longer, resume=True, allow_changes=False)
    assert capsys.readouterr().out == "changed since the run began: run.steps: 100 -> 200\n"
    faster = replace(longer, learn=replace(config.learn, lr=1e-3))
    told = r"the config is not the run's \(learn\.lr: 1e-06 -> 0\.001\); only run\.steps may change\. Go on .* --allow-changes"
    with pytest.raises(ValueError, match=told):
        folders.check(tmp_path, faster, resume=True, allow_changes=False)
    folders.check(tmp_path, faster, resume=True, allow_changes=True)
    assert "changed since the run began: learn.lr: 1e-06 -> 0.001\n" in capsys.readouterr().out
    folders.record(tmp_path, faster, task("a"))  # from here on it is the run's
    folders.check(tmp_path, faster, resume=True, allow_changes=False)
    assert configs.from_dict(json.loads((tmp_path / "config.json").read_text())) == faster


CHANGED = {
    "a question": (task("a", "c"), "data.train is"),
    "the order of the file": (replace(task("a", "b"), train=task("a", "b").train[::-1]), "data.train is"),
    "one question more": (task("a", "b", "c"), "data.train is"),
    "the prompt around it": (replace(task("a", "b"), train=[replace(p, ids=(7, *p.ids)) for p in task("a", "b").train]), "data.train is"),
    "held-out questions": (task("a", "b", heldout=[]), "data.heldout is"),
    "the curriculum": (task("a", "b", parts=[[0], [1]]), "data.curriculum is"),
    "its order": (task("a", "b", parts=[[0, 1]]), "data.curriculum is"),
    "both": (task("a", parts=[[0]]), "data.train and data.curriculum are"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_changed_data_are_noticed(config: Config, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    folders.record(tmp_path, config, task("a", "b", parts=[[1], [0]] if what == "its order" else None))
    folders.check_inputs(tmp_path, task("a", "b", parts=[[1], [0]] if what == "its order" else None), allow_changes=False)
    new, told = CHANGED[what]
    with pytest.raises(ValueError, match=f"--resume: {told} not what the run began with; .*--allow-changes"):
        folders.check_inputs(tmp_path, new, allow_changes=False)
    folders.check_inputs(tmp_path, new, allow_changes=True)
    assert "changed since the run began: data." in capsys.readouterr().out


def test_a_run_killed_before_it_noted_its_data_goes_on(config: Config, tmp_path: Path) -> None:
    folders.check_inputs(tmp_path, task("a"), allow_changes=False)
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(ValueError, match=r"inputs\.json cannot be read"):
        folders.check_inputs(tmp_path, task("a"), allow_changes=False)
