"""The loop: an interrupted and resumed run is the uninterrupted one, bit for bit; what it says, writes and stops for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipes import run as door
from rl import checkpoint, checkpoint_parts, feed, train
from rl import config as configs
from rl.data import Order
from rl.feed import sampling
from rl.learn import Learner
from rl.records import Sampling
from rl.sampler import TransformersSampler
from tests.tiny_run import timeless, write_recipe


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("recipe"), tiny))


@pytest.fixture(scope="module")
def whole(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of 6 steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert door.main([recipe, f"run.out={out}"]) == 0
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert timeless(one) == timeless(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[n]) for n, t in ours.items())
    files = sorted(p.name for p in (one / "rollouts").iterdir())
    assert files == sorted(p.name for p in (other / "rollouts").iterdir())
    for name in files:
        assert (one / "rollouts" / name).read_bytes() == (other / "rollouts" / name).read_bytes()
    for name in ("before.json", "after.json"):
        assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())


def test_a_run_learns_something(whole: Path, tiny: str) -> None:
    """So that the equalities below compare a run that moved."""
    lines = timeless(whole)
    assert [m["step"] for m in lines] == [1, 2, 3, 4, 5, 6]
    assert any(m["reward_std"] > 0 for m in lines)
    assert all(m["grad_norm"] > 0 for m in lines)
    base = load_file(Path(tiny) / "model.safetensors")
    assert sum((t - base[n]).abs().sum().item() for n, t in weights(whole).items()) > 1


def test_the_same_seed_is_the_same_run_and_another_is_not(whole: Path, recipe: str, tmp_path: Path) -> None:
    assert door.main([recipe, f"run.out={tmp_path / 'again'}"]) == 0
    assert_same_run(whole, tmp_path / "again")
    assert door.main([recipe, f"run.out={tmp_path / 'other'}", "run.seed=1", "run.steps=1", "evaluate.problems=0"]) == 0
    first = [json.loads(line)["id"] for line in (tmp_path / "other/rollouts/step-000001.jsonl").open()]
    assert first != [json.loads(line)["id"] for line in (whole / "rollouts/step-000001.jsonl").open()]


def test_interrupted_and_resumed_is_uninterrupted(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the checkpoint of step 6 is written."""
    real = checkpoint.save

    def save(*args: Any) -> Path:
        if args[2].step == 6:
            monkeypatch.setattr(checkpoint_parts, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        assert door.main([recipe, f"run.out={tmp_path / 'run'}"]) == 130
    monkeypatch.undo()
    assert not (tmp_path / "run" / "result.json").exists()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    capsys.readouterr()
    assert door.main([recipe, f"run.out={tmp_path / 'run'}", "--resume"]) == 0
    assert "resumed after step 3 of 6" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "moment", "saved", "code"),
    [
        (signal.SIGTERM, "sampling", 1, 0),  # step 2 is made again
        (signal.SIGTERM, "learning", 2, 0),  # is brought to its end
        (signal.SIGINT, "sampling", 1, 130),
    ],
    ids=["SIGTERM while it samples", "SIGTERM while it learns", "ctrl-C while it samples"],
)
def test_a_run_that_is_told_to_end_saves_and_goes_on(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: int, moment: str, saved: int, code: int,
) -> None:  # fmt: skip
    """In step 2, where no checkpoint is due."""
    calls: list[int] = []

    def told(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), number)
            return real(*args, **options)

        return wrapped

    owner, name = (feed, "scored_rollout") if moment == "sampling" else (Learner, "step")
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, told(getattr(owner, name)))
        assert door.main([recipe, f"run.out={tmp_path / 'run'}"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{signal.Signals(number).name}: saved after step {saved} of 6; go on with the same command and --resume"
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{saved:06d}"]
    assert not (tmp_path / "run" / "lock").exists()
    assert door.main([recipe, f"run.out={tmp_path / 'run'}", "--resume"]) == 0
    assert f"resumed after step {saved} of 6" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


def test_a_run_that_refills_repeats_and_resumes_exactly(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, real = [recipe, "rollout.refill=2.0", "evaluate.problems=0", "run.steps=4", "run.save_every=2"], checkpoint.save
    assert door.main([*args, f"run.out={tmp_path / 'whole'}"]) == 0
    assert sum(m["refilled"] for m in timeless(tmp_path / "whole")) > 4

    def save(*given):
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        assert door.main([*args, f"run.out={tmp_path / 'run'}"]) == 130
    assert door.main([*args, f"run.out={tmp_path / 'run'}", "--resume"]) == 0
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "run")
    assert all(torch.equal(t, weights(tmp_path / "run")[n]) for n, t in weights(tmp_path / "whole").items())
    # Each prompt of the order was used or judged: the steps' prompts follow it.
    met = [json.loads(line)["id"] for s in range(1, 5) for line in (tmp_path / f"whole/rollouts/step-{s:06d}.jsonl").open()]
    order = iter(f"train/{i}" for i in Order(10, seed=0).take(0, 100))
    assert all(name in order for name in met)


def test_resume_over_a_damaged_checkpoint(whole: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-000006/model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert door.main([recipe, f"run.out={tmp_path / 'run'}", "--resume"]) == 0
    told = capsys.readouterr().out
    assert "checkpoint passed over: step-000006: model.safetensors does not have its recorded hash" in told
    assert "resumed after step 3 of 6" in told
    assert_same_run(whole, tmp_path / "run")


def test_more_steps_than_before_are_evaluated_anew(whole: Path, recipe: str, tmp_path: Path) -> None:
    """A finished run goes on: its old "after" must not stand for the new weights."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "after.json").write_text('{"stale": true}')
    assert door.main([recipe, f"run.out={tmp_path / 'run'}", "--resume", "run.steps=7"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], len(timeless(tmp_path / "run"))) == (7, 7)
    assert result["after"]["problems"] == 4
    assert result["before"] == json.loads((whole / "before.json").read_text())
    assert timeless(tmp_path / "run")[:6] == timeless(whole)


def test_prompts_follow_the_order_without_gaps(whole: Path) -> None:
    """6 steps of 4 over 10 questions: the first 24 places of the order, epochs crossed, nothing dropped."""
    met = [json.loads(line)["id"] for step in range(1, 7) for line in (whole / f"rollouts/step-{step:06d}.jsonl").open()]
    assert met == [f"train/{i}" for i in Order(10, seed=0).take(0, 24)]
    assert {met.count(f"train/{i}") for i in range(10)} <= {2, 3}


def test_every_step_samples_with_its_own_seed(recipe: str) -> None:
    config = configs.load(recipe, ["rollout.length_jumps=[[4, 20]]", "run.seed=3"])
    seen = [sampling(config, s) for s in range(1, 7)]
    assert len({s.seed for s in seen}) == 6
    assert seen[2] == Sampling(4, 12, 1.0, seen[2].seed, experts=config.model.routing_replay)
    assert [s.max_tokens for s in seen] == [12, 12, 12, 20, 20, 20]
    other = configs.load(recipe, ["run.seed=4"])
    assert not {s.seed for s in seen} & {sampling(other, step).seed for step in range(1, 10_000)}


def test_the_sampler_follows_the_learner_at_every_step(whole: Path) -> None:
    """Two updates a step: completions of step n were sampled by weights 2 (n - 1)."""
    for step in range(1, 7):
        for line in (whole / f"rollouts/step-{step:06d}.jsonl").open():
            assert {c["version"] for c in json.loads(line)["completions"]} == {2 * (step - 1)}
    for m in timeless(whole):
        assert m["mismatch_max"] <= 1e-5
        assert m["canary"] <= 1e-5


def test_a_sampler_left_behind_stops_the_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = TransformersSampler.load

    def forgets_one(self: TransformersSampler, given, version: int) -> None:
        old = {n: w.clone() for n, w in self.model.named_parameters()}
        real(self, given, version)
        name = "model.layers.1.mlp.up_proj.weight"
        with torch.no_grad():
            dict(self.model.named_parameters())[name].copy_(old[name])

    monkeypatch.setattr(TransformersSampler, "load", forgets_one)
    assert door.main([recipe, f"run.out={tmp_path / 'run'}", "evaluate.problems=0"]) == 1
    assert "error: stopped: weights 2 did not arrive whole" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_stops_the_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "ADVANTAGES", {"group_std": lambda rewards: [float("nan")] * len(rewards)})
    assert door.main([recipe, f"run.out={tmp_path / 'run'}", "evaluate.problems=0"]) == 1
    told = capsys.readouterr()
    assert "error: stopped: guard nan: the gradient of update 1 is nan: the weights are untouched" in told.err
    assert len(told.err.splitlines()) == 1
    assert (tmp_path / "run" / "report.html").exists()  # the page says how far it came


def test_replaced_reference(recipe: str, tmp_path: Path) -> None:
    """With a reference replaced after every step, the KL of each rollout's first update is 0: one update a step shows it."""
    for name, every in (("on", 1), ("off", 0)):
        args = ["algorithm.minibatches=1", f"algorithm.reference_every={every}", "run.steps=3", "evaluate.problems=0"]
        assert door.main([recipe, f"run.out={tmp_path / name}", *args]) == 0
    assert all(m["kl"] == pytest.approx(0.0, abs=1e-9) for m in timeless(tmp_path / "on"))
    assert timeless(tmp_path / "off")[1]["kl"] > 1e-6
