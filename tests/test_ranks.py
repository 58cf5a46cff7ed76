"""One rank equals two, replicated and sharded: losses, gradient norms, weights, log-probs, checkpoints; over gloo on this host."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl import checkpoint
from rl.batch import Counts, pack
from rl.config import Config
from rl.learn import Learner
from rl.records import Group, Row
from tests import ranks_child, tiny

BOUND = 1e-5
MODES = pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
# Prompt and completion lengths of three steps: uneven shares, fewer rows than ranks, and a step of which nothing is left.
STEPS: list[list[tuple[int, list[int]]]] = [
    [(5, [3, 7, 1]), (9, [4, 4, 12]), (2, [11, 6, 2]), (21, [1, 8, 3]), (4, [5, 5, 5])],
    [(5, [3, 7, 1])],
    [(7, [2, 9, 3]), (3, [30, 1, 1])],
]
MAX_TOKENS = 32


def config(**sections: Any) -> Config:
    algorithm = {"loss": "grpo", "kl": 0.05, "inner_epochs": 2, "overlong": "mask"} | sections.pop("algorithm", {})
    return tiny.config(algorithm=algorithm, learn={"lr": 1e-3, "row_tokens": 24, "max_grad_norm": 0.5}, **sections)


def made(step: int) -> tuple[list[Group], list[list[float | None]]]:
    groups = tiny.groups(STEPS[step], seed=step, finish=lambda g: "length" if g == 2 else "stop")
    return groups, [[1.0, -0.5, 0.25] if p != 2 else [None, 1.5, -1.5] for p in range(len(groups))]


def learn(one: Learner, steps: range, metrics: list[dict[str, float]]) -> None:
    for step in steps:
        metrics.append(one.step(*made(step), MAX_TOKENS))
        if step == 1:
            one.replace_reference()


def row() -> Row:
    return pack(*made(0), loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=4096).rows[0]


def contents(one: Learner) -> dict[str, torch.Tensor]:
    """The weights as a sampler gets them, and log-probs as the canaries ask for them."""
    with torch.no_grad():
        logprobs_T = one.policy(row(), 1.0)[0].clone()
    return {n: w.clone() for n, w in one.policy.weights()} | {"logprobs": logprobs_T}


def curve(folder: Path, model: str, settings: Config) -> None:
    """Three steps; leaves their metrics, the weights after them, and log-probs as the canaries ask for them."""

    def program(one: Learner) -> None:
        metrics: list[dict[str, float]] = []
        learn(one, range(3), metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        save_file(contents(one), folder / "weights.safetensors")

    ranks_child.drive(ranks_child.learner(settings, model, folder), program)


def result(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    return json.loads((folder / "metrics.json").read_text()), load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The curve of one rank without any of this, on tied and on untied weights."""
    folder = tmp_path_factory.mktemp(f"alone-{request.param}")
    curve(folder, tiny.path(request.param), config())
    return request.param, folder


def same(ours: Path, theirs: Path) -> None:
    (metrics, weights), (expected, wanted) = result(ours), result(theirs)
    for mine, other in zip(metrics, expected, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name] == pytest.approx(other[name], rel=BOUND, abs=BOUND), name
    assert weights.keys() == wanted.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=BOUND, atol=BOUND, msg=name)


@MODES
def test_two_ranks_learn_what_one_does(alone: tuple[str, Path], tmp_path: Path, sharded: bool) -> None:
    family, folder = alone
    assert ranks_child.launch(2, sharded, curve, tmp_path, tiny.path(family), config()) == [0, 0]
    same(tmp_path, folder)


def part(folder: Path, model: str, settings: Config, step: int, killed: bool) -> None:
    """One step of the curve, from the newest checkpoint, into a new one; `killed`: and then rank 0 dies in the next."""

    def program(one: Learner) -> None:
        metrics: list[dict[str, float]] = []
        if step:
            state, damaged = checkpoint.load(folder / "checkpoints", one)
            assert (state.step, state.updates, damaged) == (step, 2 * step, [])
            metrics = json.loads((folder / "metrics.json").read_text())
        learn(one, range(step, step + 1), metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        checkpoint.save(folder / "checkpoints", one, checkpoint.State(step + 1, one.updates, {}), keep=3)
        save_file(contents(one), folder / "weights.safetensors")
        if killed:
            one.ranks.announce("forward", None, [row()])
            os.kill(os.getpid(), signal.SIGKILL)

    ranks_child.drive(ranks_child.learner(settings, model, folder), program)


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@MODES
def test_a_run_goes_on_with_another_number_of_ranks(alone: tuple[str, Path], tmp_path: Path, sharded: bool) -> None:
    """Two ranks, killed; then one; then two again, then three: the same curve."""
    family, folder = alone
    model = tiny.path(family)
    assert ranks_child.launch(2, sharded, part, tmp_path, model, config(), 0, True) == [-signal.SIGKILL, 1]
    part(tmp_path, model, config(), 1, False)
    assert ranks_child.launch(3 if sharded else 2, sharded, part, tmp_path, model, config(), 2, False) == [0] * (2 + sharded)
    same(tmp_path, folder)
    kinds = ["model", "optimizer", "reference"]
    whole = [f"{kind}.safetensors" for kind in kinds]
    assert files(tmp_path / "checkpoints" / "step-000002") == sorted(["manifest.json", "state.json", *whole])
    if sharded:
        whole = [f"{kind}-{i:05d}-of-00003.safetensors" for kind in kinds for i in (1, 2, 3)]
    assert files(tmp_path / "checkpoints" / "step-000003") == sorted(["manifest.json", "state.json", *whole])
