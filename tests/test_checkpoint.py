"""Whole or absent, and exact to the bit. (Damage and death at every system call: faults/; resume of a whole run: test_train.py.)"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from rl import config as configs
from rl.checkpoint import Keeper, State, load, save
from rl.config import Config
from rl.learn import Learner, accelerator
from rl.policy import Policy, load_model
from rl.records import Completion, Group, Prompt
from tests.tiny_run import tiny_model, write_recipe


@pytest.fixture(scope="module")
def config(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return configs.load(write_recipe(tmp_path_factory.mktemp("recipe"), tiny))


def learner(config: Config, tmp_path: Path, reference: bool = True) -> Learner:
    def policy() -> Policy:
        return Policy(load_model(config.model.path, dtype=torch.float32))

    return Learner(config, policy(), policy() if reference else None, accelerator(config, tmp_path))


def teach(one: Learner, seed: int) -> None:
    """One rollout's updates on random tokens."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 400, (n,), generator=draw).tolist())

    groups = [
        Group(Prompt(str(p), tokens(9), {}), tuple(Completion(tokens(5), (-6.0,) * 5, "stop", "", 0) for _ in range(4)))
        for p in range(4)
    ]
    one.step(groups, [[1.0, -1.0, 0.5, -0.5]] * 4, 12)


@pytest.fixture
def taught(config: Config, tmp_path: Path) -> Learner:
    one = learner(config, tmp_path)
    teach(one, 1)
    return one


def contents(one: Learner) -> dict[str, Tensor]:
    """Everything that a checkpoint must bring back, copied."""
    found = {f"policy/{n}": p for n, p in one.policy.named_parameters()}
    if one.reference is not None:
        found |= {f"reference/{n}": p for n, p in one.reference.named_parameters()}
    for n, p in one.policy.named_parameters():
        found |= {f"{moment}/{n}": t for moment, t in one.optimizer.state.get(p, {}).items()}
    return {name: t.detach().clone() for name, t in found.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_everything_comes_back_to_the_bit(config: Config, taught: Learner, tmp_path: Path) -> None:
    taught.replace_reference()
    teach(taught, 2)
    wanted, memory = contents(taught), {"truncated": [0.5, 1.0], "zero_variance": [0.25]}
    assert any(n.startswith("exp_avg_sq/") and t.abs().max() > 0 for n, t in wanted.items())
    assert any(n.startswith("step/") and t == 4 for n, t in wanted.items())
    save(tmp_path / "c", taught, State(2, taught.updates, memory), keep=2)

    fresh = learner(config, tmp_path)
    state, damaged = load(tmp_path / "c", fresh)
    assert (state, damaged, fresh.updates) == (State(2, 4, memory), [], 4)
    assert_equal(contents(fresh), wanted)
    # and the next update is the same
    teach(taught, 3)
    teach(fresh, 3)
    assert_equal(contents(fresh), contents(taught))


def test_a_learner_that_never_updated(config: Config, tmp_path: Path) -> None:
    one, other = learner(config, tmp_path, reference=False), learner(config, tmp_path, reference=False)
    save(tmp_path / "c", one, State(0, 0, {}), keep=1)
    assert load(tmp_path / "c", other) == (State(0, 0, {}), [])
    assert_equal(contents(one), contents(other))


def test_only_the_newest_are_kept(taught: Learner, tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        assert save(tmp_path, taught, State(step, step, {}), keep=2).name == f"step-{step:06d}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000009", "step-000012"]


def flip(path: Path) -> None:
    file = path / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def test_when_none_is_whole(config: Config, taught: Learner, tmp_path: Path) -> None:
    before = contents(taught)
    with pytest.raises(ValueError, match=r"no whole checkpoint under .*; start the run without --resume"):
        load(tmp_path / "none", taught)
    flip(save(tmp_path / "c", taught, State(1, 1, {}), keep=1))
    with pytest.raises(ValueError, match=r"no whole checkpoint under .*step-000001: optimizer\.safetensors does not have"):
        load(tmp_path / "c", taught)
    assert_equal(contents(taught), before)


def test_a_damaged_newer_one_does_not_push_the_new_one_out(config: Config, taught: Learner, tmp_path: Path) -> None:
    """Resumed from step 1 because step 6 was damaged: with keep = 1 the save of step 2 must be what is kept."""
    save(tmp_path / "c", taught, State(1, 2, {}), keep=2)
    flip(save(tmp_path / "c", taught, State(6, 2, {}), keep=2))
    save(tmp_path / "c", taught, State(2, 2, {}), keep=1)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-000002"]
    assert load(tmp_path / "c", learner(config, tmp_path))[0].step == 2


def test_random_generators_go_on(config: Config, taught: Learner, tmp_path: Path) -> None:
    def drawn() -> list[object]:
        legacy = [numpy.random.rand(), numpy.random.normal()]  # noqa: NPY002 (what other code may use)
        return [random.random(), random.gauss(), legacy, torch.rand(3).tolist()]

    numpy.random.normal()  # noqa: NPY002 (leaves a half of its pair behind)
    random.gauss()
    save(tmp_path / "c", taught, State(1, 2, {}), keep=1)
    wanted = drawn()
    assert drawn() != wanted
    load(tmp_path / "c", learner(config, tmp_path))
    assert drawn() == wanted


def test_the_best_is_kept_beside_the_newest(taught: Learner, config: Config, tmp_path: Path) -> None:
    """Steps 1 to 8, saved every second one: the mean of two steps counts, a lucky single one does not, nor one without a number."""
    run = replace(config.run, best="reward", save_every=2, keep=1, steps=8)
    rewards = [0.0, 0.1, 0.5, 0.5, 0.9, 0.0, math.nan, 0.2]

    def names() -> list[str]:
        return sorted(p.name for p in tmp_path.iterdir())

    keeper = Keeper(tmp_path, taught, run)
    for step, reward in enumerate(rewards[:5], 1):
        keeper.note(State(step, 0, {}), {"reward": reward})
        keeper.due()
    assert names() == ["step-000004"]
    keeper.save()  # told to end between two that are due: it is no candidate, and its part of the mean goes on
    assert names() == ["step-000004", "step-000005"]
    again = Keeper(tmp_path, taught, run)
    assert again.load() == (State(5, 0, {}, window=(0.9,)), [])
    for step, reward in enumerate(rewards[5:], 6):
        again.note(State(step, 0, {}), {"reward": reward})
        again.due()
    assert names() == ["step-000004", "step-000008"]
    assert json.loads((tmp_path / "step-000004/state.json").read_text())["score"] == 0.5
    with pytest.raises(ValueError, match=r"run\.best = 'acuracy': a step has no such number; it has accuracy, reward"):
        Keeper(tmp_path, taught, replace(run, best="acuracy")).note(State(1, 0, {}), {"reward": 0.0, "accuracy": 0.0})


def test_back_to_a_step(taught: Learner, config: Config, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, taught, State(step, step, {}), keep=3)
    keeper = Keeper(tmp_path, taught, config.run)
    assert keeper.load(last=5)[0].step == 4
    keeper.save()  # nothing new: nothing is written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000006"]
    keeper.note(replace(keeper.state, step=5), {})
    keeper.save()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000004", "step-000005"]  # 6 is of another life, keep is 2


def test_what_a_killed_save_left_is_swept_away(taught: Learner, tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000007").mkdir()
    (tmp_path / ".tmp-step-000007" / "model.safetensors").write_bytes(b"half")
    save(tmp_path, taught, State(8, 2, {}), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000008"]


def test_another_model_is_refused(taught: Learner, tiny: str, config: Config, tmp_path: Path) -> None:
    save(tmp_path / "c", taught, State(1, 2, {}), keep=1)
    other_path = tiny_model(tmp_path / "other", arch="llama")
    other = learner(configs.from_dict(configs.to_dict(config) | {"model": {"path": other_path}}), tmp_path)
    before = contents(other)
    with pytest.raises(ValueError, match=r"step-000001 holds another model than model\.path"):
        load(tmp_path / "c", other)
    assert_equal(contents(other), before)


def test_what_no_change_of_the_config_can_bridge(taught: Learner, config: Config, tmp_path: Path) -> None:
    one = learner(config, tmp_path, reference=False)
    save(tmp_path / "c", one, State(1, 0, {}), keep=1)
    with pytest.raises(ValueError, match=r"holds no reference model, for algorithm\.kl was 0"):
        load(tmp_path / "c", taught)
    eight = learner(replace(config, learn=replace(config.learn, optimizer="adamw8")), tmp_path)
    teach(eight, 1)
    save(tmp_path / "d", eight, State(1, 2, {}), keep=1)
    before = contents(taught)
    with pytest.raises(ValueError, match=r"holds moments in 8 bits; resume with learn\.optimizer=adamw8"):
        load(tmp_path / "d", taught)
    assert_equal(contents(taught), before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2.5 MB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or not mount:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(config: Config, taught: Learner, small_disk: Path, tmp_path: Path) -> None:
    one = learner(config, tmp_path, reference=False)  # without moments: it fits once, not twice
    save(small_disk / "c", one, State(1, 0, {}), keep=2)
    with pytest.raises(OSError) as caught:
        save(small_disk / "c", taught, State(2, 2, {}), keep=2)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in (small_disk / "c").iterdir()] == ["step-000001"]
    state, damaged = load(small_disk / "c", one)
    assert (state.step, damaged) == (1, [])


def test_the_manifest_names_every_file(taught: Learner, tmp_path: Path) -> None:
    path = save(tmp_path, taught, State(1, 2, {}), keep=1)
    named = set(json.loads((path / "manifest.json").read_text()))
    assert named == {"model.safetensors", "optimizer.safetensors", "reference.safetensors", "random.json", "state.json"}
    assert {p.name for p in path.iterdir()} == named | {"manifest.json"}
