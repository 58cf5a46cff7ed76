"""Runs whose rewards are computed in processes of their own: the same run, hangs, interrupts, hosts without a sandbox, programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import run as door
from recipes import street
from rewards.sandbox import SandboxRefused, resolve
from rl import sampler as sampling
from rl.learn import Learner
from rl.records import Completion
from tests.tiny_run import refused, reward_workers, timeless, write_recipe


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny)


# Hangs in its first three calls (a sample's three tries; not those of the doctor at the start) where `hang` stands beside it.
USER = """
import os, pathlib, time
here = pathlib.Path(__file__).parent
def act(prompts, completions, **columns):
    text = completions[0][0]["content"]
    for n in range(3 if (here / "hang").exists() and "</think> <answer>" not in text else 0):
        try:
            os.close(os.open(here / f"hung{n}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        time.sleep(60)
    return [len(text) % 7 / 7]
"""
NAME = "reward_of_a_user"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for a run that scores with a user's function in one process."""
    (tmp_path / f"{NAME}.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    workers = ["reward_workers.processes=1", "reward_workers.wall_s=0.5"]
    return [f"run.out={tmp_path / 'run'}", "run.steps=2", "evaluate.problems=0", f"rewards.{NAME}:act.weight=1", *workers]


def test_a_pool_makes_the_same_run(recipe: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert door.main([str(recipe), f"run.out={whole}"]) == 0
    workers = ["reward_workers.processes=2", "reward_workers.wall_s=60"]
    assert door.main([str(recipe), f"run.out={tmp_path / 'run'}", *workers]) == 0
    accidents = {f"reward_{what}": 0.0 for what in ("restarts", "timeouts", "deaths")}
    assert timeless(tmp_path / "run") == [m | accidents for m in timeless(whole)]
    for name in ["final/model.safetensors", *(f"rollouts/step-{s:06d}.jsonl" for s in range(1, 7))]:
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    for run in (whole, tmp_path / "run"):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            m = json.loads(line)
            assert 0 < m["reward_ms_p50/accuracy"] <= m["reward_ms_p99/accuracy"] <= m["reward_ms_p99/all"]
    assert not reward_workers()


def test_a_reward_that_hangs_is_killed_and_the_run_goes_on(recipe: Path, tmp_path: Path, user: list[str]) -> None:
    (tmp_path / "hang").touch()
    assert door.main([str(recipe), *user, "guard.masked=0.1"]) == 0
    first, second = timeless(tmp_path / "run")
    assert (first["masked"], second["masked"]) == (1 / 16, 0.0)
    assert (first["reward_timeouts"], first["reward_restarts"], second["reward_restarts"]) == (3, 3, 0)
    told = (tmp_path / "run" / "rollouts" / "step-000001.jsonl").read_text()
    assert told.count(f"infrastructure: {NAME}:act over 0.5 s") == 1
    assert not reward_workers()


def test_an_interrupted_run_leaves_no_process(
    recipe: Path, tmp_path: Path, user: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running: list[list[str]] = []

    def interrupted(*args: Any) -> None:
        running.append(reward_workers())
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "step", interrupted)
    refused(capsys, [str(recipe), *user], code=130)
    assert [len(lines) for lines in running] == [1]
    assert not reward_workers()


def test_what_needs_a_pool_does_not_run_here(
    recipe: Path, tmp_path: Path, user: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, [str(recipe), *user, "reward_workers.processes=0"])
    assert f"rewards.{NAME}:act can hang or die for reasons of its own" in told
    assert "set reward_workers.processes=2" in told
    assert not (tmp_path / "run").exists()


def test_a_host_that_cannot_contain_programs_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(street, "tier", lambda wanted: {"tier": "none", "why": "sandbox REFUSED: no namespaces"})
    for more in ([], ["--dry-run"]):
        args = [str(recipe), f"run.out={tmp_path / 'run'}", "rewards.code.weight=1", "reward_workers.processes=1", *more]
        assert refused(capsys, args) == "error: sandbox REFUSED: no namespaces\n"
    assert not (tmp_path / "run").exists()
    assert not reward_workers()


CODE = [
    {"id": "add", "question": "Write add(a, b).", "kind": "code", "asserts": ["assert add(1, 2) == 3"]},
    {"id": "last", "question": "Write last(x).", "kind": "code", "inputs": [[[1, 5]]], "outputs": [5], "fn_name": "last"},
    {"id": "echo", "question": "Repeat the input.", "kind": "code", "stdin": "7\n", "stdout": "7\n"},
]
PROGRAM = """```python
def add(a, b):
    return a + b
def last(x):
    return x[-1]
if __name__ == "__main__":
    print(input())
```"""
CODE_RECIPE = """
name = "code"
run = {{steps = 2, out = "{folder}/run"}}
model.path = "{model}"
data = {{train = "{folder}/code.jsonl", heldout = "{folder}/held.jsonl"}}
prompt.max_tokens = 200
rollout = {{sampler = "transformers", prompts = 3, group = 4, max_tokens = 12}}
rewards.code = {{}}
reward_workers.processes = 2
evaluate = {{problems = 1, samples = 2}}
"""


def test_programs_as_a_reward(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From task files to result.json, in the real sandbox. The model is random, so some of its texts are replaced by a right program."""
    try:
        where = resolve()
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(r) + "\n" for r in CODE))
    (tmp_path / "held.jsonl").write_text(json.dumps(CODE[0] | {"id": "held", "question": "Write add(x, y)."}) + "\n")
    (tmp_path / "code.toml").write_text(CODE_RECIPE.format(folder=tmp_path, model=tiny))
    real = sampling.completion

    def often_right(
        ids: list[int], logprobs: list[float], stops: Sequence[int], text: str, *rest: Any, **more: Any
    ) -> Completion:
        return real(ids, logprobs, stops, PROGRAM if ids[0] % 2 else text, *rest, **more)

    monkeypatch.setattr(sampling, "completion", often_right)
    assert door.main([str(tmp_path / "code.toml")]) == 0
    assert f"sandbox tier {where[0]}" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sandbox"] == {"tier": where[0], "why": where[1]}
    right = 0
    for step in (1, 2):
        for line in (tmp_path / f"run/rollouts/step-{step:06d}.jsonl").open():
            for c in json.loads(line)["completions"]:
                assert c["reward"] == float(c["text"] == PROGRAM), c["reason"]
                right += c["reward"] == 1
    assert 0 < right < 24
    for m in timeless(tmp_path / "run"):
        assert (m["masked"], m["part/code"]) == (0.0, m["reward"])
    assert result["before"]["pass@2"]["value"] in (0.0, 1.0)
    assert not reward_workers()
