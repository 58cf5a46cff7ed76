"""Experts on one rank and on two, replicated and sharded: the same losses, load and biases; over gloo on this host."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.config import Config
from rl.learn import Learner
from rl.routing import biases
from tests import ranks_child, tiny
from tests.test_routing import told

SHAPES = [(5, [3, 7, 1]), (9, [4, 4, 12]), (2, [11, 6, 2])]


def curve(folder: Path, model: str, settings: Config) -> None:
    """Three steps with replayed experts; leaves their metrics, the weights and the biases."""

    def program(one: Learner) -> None:
        metrics = []
        for step in range(3):
            groups = told(tiny.groups(SHAPES, seed=step), seed=step)
            metrics.append(one.step(groups, [[1.0, -0.5, 0.25]] * len(groups), 32))
        weights = {n: w.clone().contiguous() for n, w in one.policy.weights()}
        save_file(weights, folder / "weights.safetensors")
        (folder / "metrics.json").write_text(json.dumps(metrics))

    ranks_child.drive(ranks_child.learner(settings, model, folder), program)


def run(folder: Path, size: int, sharded: bool) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    folder.mkdir()
    settings = tiny.config(learn={"lr": 2e-4, "row_tokens": 24, "balance_rate": 0.01})
    codes = ranks_child.launch(size, sharded, curve, folder, tiny.path("deepseek"), settings)
    assert codes == [0] * size
    return json.loads((folder / "metrics.json").read_text()), load_file(folder / "weights.safetensors")


@functools.cache
def alone(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    return run(folder / "one", 1, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_ranks_are_one(folder: Path, sharded: bool) -> None:
    metrics, weights = run(folder / f"two-{sharded}", 2, sharded)
    wanted, exact = alone(folder)
    for mine, theirs in zip(metrics, wanted, strict=True):
        for name in ("loss", "grad_norm", "mismatch"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5)
        for name in ("load_violation", "load_violation_max"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-12)
        assert 0 < mine["mismatch_replayed"] < 20
    assert weights.keys() == exact.keys()
    for name, weight in weights.items():
        assert (weight - exact[name]).abs().max() < 1e-5
    moved = {n: b - weights[n] for n, b in biases(tiny.policy("deepseek").model).items()}
    assert len(moved) == 2
    assert all(0.005 < float(m.abs().max()) < 0.031 for m in moved.values())
