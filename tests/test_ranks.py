"""One rank equals two, replicated and sharded: losses, gradient norms, weights, log-probs, checkpoints; over gloo on this host."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recipes import run as door
from rl import checkpoint, checkpoint_parts, feed, ranks
from rl.batch import Counts, pack
from rl.config import Config, Lora
from rl.learn import Learner
from rl.records import Group, Row
from tests import ranks_child, tiny
from tests.tiny_run import write_recipe

BOUND = 1e-5
# Tied weights and untied.
MODES = pytest.mark.parametrize(
    ("sharded", "family"), [(False, "qwen3"), (True, "qwen3"), (True, "llama")], ids=["replicated", "sharded", "sharded-untied"]
)
# Prompt and completion lengths of three steps: uneven shares, fewer rows than ranks, and a step of which nothing is left.
STEPS: list[list[tuple[int, list[int]]]] = [
    [(5, [3, 7, 1]), (9, [4, 4, 12]), (2, [11, 6, 2]), (21, [1, 8, 3]), (4, [5, 5, 5])],
    [(5, [3, 7, 1])],
    [(7, [2, 9, 3]), (3, [30, 1, 1])],
]
MAX_TOKENS = 32
BRIEF = ["run.steps=2", "evaluate.problems=0", "algorithm.reference_every=1"]


def config(**sections: Any) -> Config:
    algorithm = {"loss": "grpo", "kl": 0.05, "inner_epochs": 2, "overlong": "mask"} | sections.pop("algorithm", {})
    return tiny.config(algorithm=algorithm, learn={"lr": 2e-4, "row_tokens": 24, "max_grad_norm": 0.5}, **sections)


def made(step: int) -> tuple[list[Group], list[list[float | None]]]:
    groups = tiny.groups(STEPS[step], seed=step, finish=lambda g: "length" if g == 2 else "stop")
    return groups, [[1.0, -0.5, 0.25] if p != 2 else [None, 1.5, -1.5] for p in range(len(groups))]


def learn(one: Learner, steps: range, metrics: list[dict[str, float]]) -> None:
    for step in steps:
        metrics.append(one.step(*made(step), MAX_TOKENS))
        if step == 1 and one.reference:
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the curve of one rank without any of this, by family."""

    @functools.cache
    def folder(family: str) -> Path:
        made = tmp_path_factory.mktemp(f"alone-{family}")
        curve(made, tiny.path(family), config())
        return made

    return folder


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
def test_two_ranks_learn_what_one_does(alone: Callable[[str], Path], tmp_path: Path, sharded: bool, family: str) -> None:
    assert ranks_child.launch(2, sharded, curve, tmp_path, tiny.path(family), config()) == [0, 0]
    same(tmp_path, alone(family))


def test_adapters_under_sharding_and_gradient_checkpointing(tmp_path: Path) -> None:
    """Frozen and trained weights in one unit, merged from shards for the sampler; the base as the reference."""
    settings = config(model={"gradient_checkpointing": True, "lora": Lora(rank=4)})
    (tmp_path / "alone").mkdir()
    curve(tmp_path / "alone", tiny.path("qwen3"), settings)
    assert ranks_child.launch(2, True, curve, tmp_path, tiny.path("qwen3"), settings) == [0, 0]
    same(tmp_path, tmp_path / "alone")


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


@pytest.mark.parametrize(("sharded", "family"), [(False, "qwen3"), (True, "llama")], ids=["replicated", "sharded"])
def test_a_run_goes_on_with_another_number_of_ranks(
    alone: Callable[[str], Path], tmp_path: Path, sharded: bool, family: str
) -> None:
    """Two ranks, killed; then one; then three, or two: the same curve."""
    model, last = tiny.path(family), 3 if sharded else 2
    assert ranks_child.launch(2, sharded, part, tmp_path, model, config(), 0, True) == [-signal.SIGKILL, 1]
    part(tmp_path, model, config(), 1, False)
    assert ranks_child.launch(last, sharded, part, tmp_path, model, config(), 2, False) == [0] * last
    same(tmp_path, alone(family))
    kinds = ["model", "optimizer", "reference"]
    whole = [f"{kind}.safetensors" for kind in kinds]
    assert files(tmp_path / "checkpoints" / "step-000002") == sorted(["manifest.json", "random.json", "state.json", *whole])
    if sharded:
        whole = [f"{kind}-{i:05d}-of-00003.safetensors" for kind in kinds for i in (1, 2, 3)]
    whole += [f"random-{i:05d}-of-{last:05d}.json" for i in range(1, last + 1)]
    assert files(tmp_path / "checkpoints" / "step-000003") == sorted(["manifest.json", "state.json", *whole])


def troubles(folder: Path, model: str) -> None:
    """A disk that is full for rank 1, a gradient that is no number, a damaged part, another model: each is said on rank 0, and the
    ranks go on together."""
    saved = checkpoint_parts.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if ranks.rank() == 1 and not (folder / "space").exists():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        saved(tensors, path)

    checkpoint_parts.save_file = full

    def program(one: Learner) -> None:
        state = checkpoint.State(1, 0, {})
        with pytest.raises(OSError, match=r"No space left .*\(rank 1\)") as told:
            checkpoint.save(folder / "checkpoints", one, state, keep=2)
        assert told.value.errno == errno.ENOSPC
        assert files(folder / "checkpoints") == []
        (folder / "space").touch()
        before = contents(one)
        groups, advantages = made(0)
        with pytest.raises(FloatingPointError, match="update 1 is nan"):
            one.step(groups, [[math.nan] * 3, *advantages[1:]], MAX_TOKENS)
        assert all(torch.equal(t, before[n]) for n, t in contents(one).items())
        first = checkpoint.save(folder / "checkpoints", one, state, keep=2)
        second = checkpoint.save(folder / "checkpoints", one, checkpoint.State(2, 0, {}), keep=2)
        with (second / "model-00002-of-00002.safetensors").open("ab") as file:
            file.write(b"x")
        restored, damaged = checkpoint.load(folder / "checkpoints", one)
        assert restored == state
        assert damaged == ["step-000002: model-00002-of-00002.safetensors does not have its recorded hash"]
        hashes = json.loads((first / "manifest.json").read_text())
        (first / "manifest.json").write_text(json.dumps({k: v for k, v in hashes.items() if "optimizer-00002" not in k}))
        with pytest.raises(ValueError, match=r"no whole checkpoint .*step-000001: its manifest lacks files"):
            checkpoint.load(folder / "checkpoints", one)
        (folder / "done").touch()

    ranks_child.drive(ranks_child.learner(config(), model, folder), program)


def test_what_fails_on_one_rank_is_said_on_rank_0(tmp_path: Path) -> None:
    assert ranks_child.launch(2, True, troubles, tmp_path, tiny.path("qwen3")) == [0, 0]
    assert (tmp_path / "done").exists()


def test_shares_have_as_many_rows_and_even_loads() -> None:
    draw = random.Random(0)
    for _ in range(200):
        sizes, number = [draw.randrange(1, 100) for _ in range(draw.randrange(0, 30))], draw.randrange(1, 9)
        shares = ranks.share(sizes, number)
        assert sorted(i for mine in shares for i in mine) == list(range(len(sizes)))
        assert max(map(len, shares)) == -(-len(sizes) // number)
        loads = [sum(sizes[i] for i in mine) for mine in shares]
        assert max(loads) - min(loads) <= max(sizes, default=0)


@pytest.mark.parametrize("name", ["FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING", "FSDP_VERSION"])
def test_settings_of_accelerate_that_are_not_followed_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert ranks.asked_to_shard()
    monkeypatch.setenv(name, "1" if name == "FSDP_VERSION" else "true")
    with pytest.raises(ValueError, match=name.lower()):
        ranks.asked_to_shard()


@pytest.fixture(scope="module")
def recipe(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and the folder of its run on one rank."""
    folder = tmp_path_factory.mktemp("recipe")
    made = write_recipe(folder, tiny)
    assert door.main([str(made), f"run.out={folder / 'one'}", *BRIEF]) == 0
    return made, folder / "one"


def equal(ours: Path, theirs: Path) -> None:
    """Two runs through the door: metrics and final weights to BOUND."""
    mine, other = ([json.loads(x) for x in (o / "metrics.jsonl").read_text().splitlines()] for o in (ours, theirs))
    for one, two in zip(mine, other, strict=True):
        for name in ("loss", "grad_norm", "entropy", "kl", "reward", "length"):
            assert one[name] == pytest.approx(two[name], rel=BOUND, abs=BOUND), name
    weights, wanted = (load_file(o / "final" / "model.safetensors") for o in (ours, theirs))
    assert weights.keys() == wanted.keys()
    assert all(torch.allclose(t, wanted[n], rtol=0, atol=BOUND) for n, t in weights.items())


def through_the_door(args: list[str], number: int) -> None:
    """A run of which rank 0 is sent a signal when it samples for step 2."""
    torch.set_num_threads(1)
    real, calls = feed.scored_rollout, []

    def signalled(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return real(*given, **options)

    feed.scored_rollout = signalled
    sys.exit(door.main(args))


@pytest.mark.parametrize(
    ("number", "sharded", "codes"),
    [(signal.SIGTERM, False, [0, 0]), (signal.SIGKILL, True, [-signal.SIGKILL, 1])],
    ids=["told to end, replicated", "killed, sharded"],
)
def test_two_ranks_end_early_and_one_goes_on(
    recipe: tuple[Path, Path], tmp_path: Path, number: int, sharded: bool, codes: list[int]
) -> None:
    args = [str(recipe[0]), f"run.out={tmp_path / 'run'}", *BRIEF, "run.save_every=1"]
    assert ranks_child.launch(2, sharded, through_the_door, args, number) == codes
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000001"]
    assert door.main([*args, "--resume"]) == 0
    equal(tmp_path / "run", recipe[1])


@pytest.mark.slow
def test_make_with_two_processes(root: Path, recipe: tuple[Path, Path], tmp_path: Path) -> None:
    """The recipe as a user launches it: the metrics, checkpoints and final weights are those of one rank."""
    args = f"RECIPE={recipe[0]} OUT={tmp_path} PROCESSES=2 ACCELERATE=recipes/accelerate/fsdp2.yaml".split()
    command = ["make", "r1-zero", f"PY={sys.executable}", *args, f"ARGS={' '.join(BRIEF)}"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("1/2 reward") == 1
    equal(tmp_path, recipe[1])
    assert len(list((tmp_path / "checkpoints" / "step-000002").glob("model*"))) == 2
