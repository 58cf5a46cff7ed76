"""The door: what a finished run leaves, what each half does alone, a real kill in the middle, and one line for every bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import run as door
from rewards import combine
from rewards.score import Score, Text
from rl import checkpoint
from rl import config as configs
from rl.policy import ROOT
from tests.tiny_run import QUESTIONS, refused, timeless, tiny_model, write_recipe

FILES = {
    "after.json",
    "before.json",
    "checkpoints",
    "config.json",
    "final",
    "inputs.json",
    "metrics.jsonl",
    "report.html",
    "result.json",
    "rollouts",
}


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


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps from start to end, with a tracker; its printed lines stand in out.txt beside it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with (out.parent / "out.txt").open("w") as said, redirect_stdout(said):
        assert door.main([str(recipe), f"run.out={out}", 'run.trackers=["tensorboard"]']) == 0
    return out


SUBPROCESS: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}


def command(recipe: Path, out: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "recipes.run", str(recipe), f"run.out={out}", *args]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as in this process: bit for bit


# ---- what a run leaves ----


def test_everything_that_is_promised_is_there(whole: Path, recipe: Path) -> None:
    assert {p.name for p in whole.iterdir()} == FILES | {"tiny"}  # the tracker's folder has the run's name
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    assert len(list((whole / "rollouts").iterdir())) == 6
    config = configs.from_dict(json.loads((whole / "config.json").read_text()))
    assert config == configs.load(recipe, [f"run.out={whole}", 'run.trackers=["tensorboard"]'])
    assert (whole / "report.html").read_text().startswith("<!doctype html>")


def test_the_result(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert {"name", "seed", "model", "data", "steps", "minutes", "versions", "commit", "before", "after"} <= set(result)
    assert set(result["minutes"]) >= {"setup", "before", "train", "after", "total"}
    for when in ("before", "after"):
        for measure in ("greedy", "pass@1", "pass@2"):
            m = result[when][measure]
            assert 0 <= m["low"] <= m["value"] <= m["high"] <= 1
        assert set(result[when]["by_part"]) == {"seen", "unseen"}


def test_one_line_a_step_and_a_last_word(whole: Path) -> None:
    lines = (whole.parent / "out.txt").read_text().splitlines()
    steps = [line for line in lines if re.match(r"\d/6 ", line)]
    assert [line[0] for line in steps] == list("123456")
    for word in ("reward", "acc", "fmt", "len", "trunc", "zerovar", "kl", "ent", "clip", "mis", "tok/s", "eta"):
        assert f" {word}" in steps[0]
    assert lines[-3].startswith("tiny, 4 held-out problems: greedy 0.000 -> ")
    assert lines[-2] == f"model  {whole / 'final'}"
    assert lines[-1] == f"report {whole / 'report.html'}"


def test_the_final_model_is_the_policy(whole: Path) -> None:
    """final/ loads as any model does, and gives the logits of the weights in the last checkpoint."""
    from safetensors.torch import load_file

    model = AutoModelForCausalLM.from_pretrained(whole / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(whole / "final")
    ids = tokenizer("What is 1+1?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        missing = model.load_state_dict(load_file(whole / "checkpoints/step-000006/model.safetensors"), strict=False)
        theirs = model(input_ids=ids).logits
    assert not missing.unexpected_keys
    assert torch.equal(ours, theirs)


def test_the_tracker_has_the_numbers(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((whole / "tiny").rglob("events.out*")).parent))
    events.Reload()
    assert {"reward", "accuracy", "kl", "length", "truncated"} <= set(events.Tags()["scalars"])
    read = [(e.step, e.value) for e in events.Scalars("reward")]
    assert read == [(m["step"], pytest.approx(m["reward"])) for m in timeless(whole)]


# ---- each half alone ----


def test_rollout_alone_and_replay_are_the_direct_run(recipe: Path, tmp_path: Path) -> None:
    both = ["run.steps=1", "evaluate.problems=0"]
    assert door.main([str(recipe), f"run.out={tmp_path / 'direct'}", *both]) == 0
    assert door.main([str(recipe), f"run.out={tmp_path / 'half'}", *both, "--only", "rollout"]) == 0
    assert [p.name for p in (tmp_path / "half").iterdir()] == ["groups.jsonl"]
    groups = tmp_path / "half" / "groups.jsonl"
    assert door.main([str(recipe), f"run.out={tmp_path / 'replay'}", *both, "--replay", str(groups)]) == 0
    (direct,), (replayed,) = timeless(tmp_path / "direct"), timeless(tmp_path / "replay")
    del direct["canary"]  # there is no sampler to compare with
    assert replayed == direct
    model = "final/model.safetensors"
    assert (tmp_path / "replay" / model).read_bytes() == (tmp_path / "direct" / model).read_bytes()


def test_a_replay_has_as_many_steps_as_its_file(recipe: Path, tmp_path: Path) -> None:
    assert door.main([str(recipe), f"run.out={tmp_path / 'half'}", "run.steps=3", "--only", "rollout"]) == 0
    lines = (tmp_path / "half/groups.jsonl").read_text().splitlines()
    later = tmp_path / "later.jsonl"
    later.write_text("\n".join(lines[4:]) + "\n")  # steps 2 and 3 only
    assert door.main([str(recipe), f"run.out={tmp_path / 'replay'}", "--replay", str(later)]) == 0
    first, second = timeless(tmp_path / "replay")
    assert (first["step"], second["step"]) == (1, 2)
    assert second["mismatch"] > 0.01  # these groups are not of the present weights, and that does not stop a replay


# ---- bad input: exit code 2, one line, nothing left behind ----


def bad_inputs() -> dict[str, tuple[list[str], str]]:
    return {
        "unknown key": (["run.step=5"], "unknown key run.step; did you mean run.steps?"),
        "wrong type": (["run.steps=many"], "must be a whole number"),
        "sizes": (["rollout.prompts=5"], "rollout.prompts = 5 does not divide by algorithm.minibatches = 2"),
        "unknown reward": (["rewards.acuracy.weight=1"], "did you mean 'accuracy'?"),
        "unknown option of a reward": (["rewards.format.mod=x"], "did you mean 'mode'?"),
        "missing model": (["model.path=./absent"], "no such folder, and not a hub name"),
        "no model": (["model.path="], "model.path is empty"),
        "hub model, offline": (["model.path=someone/absent"], "does not load"),
        "model that does not load": (["model.path={broken}"], "does not load"),
        "missing data": (["data.train={folder}/absent.jsonl"], "absent.jsonl: no such file"),
        "no data": (["data.train="], "data.train is empty"),
        "unknown data": (["data.train=gsm9k"], "not a known set"),
        "row without gold": (["data.train={folder}/nogold.jsonl"], "row q1: no gold answer"),
        "held-out row without gold": (["data.heldout={folder}/nogold.jsonl"], "row q1: no gold answer"),
        "held-out questions in training": (
            ["data.heldout={folder}/train.jsonl"],
            "4 held-out questions stand in data.train too",
        ),
        "long prompt": (["prompt.max_tokens=50"], "10 of 10 prompts are longer than prompt.max_tokens = 50"),
        "prompt over the context": (["rollout.max_tokens=1000"], "exceed the model's context of 1024"),
        "jump over the context": (["rollout.length_jumps=[[5, 1000]]"], "exceed the model's context of 1024"),
        "no chat template": (["prompt.template=chat", "model.path={plain}"], "this tokenizer has no chat template"),
        "another tokenizer": (["model.path={mismatched}"], "tokenizer and model do not belong together"),
        "unknown tracker": (['run.trackers=["nobody"]'], "nobody"),
        "resume without a run": (["--resume"], "holds no run; start it without --resume"),
        "changes of a new run": (["--allow-changes"], "--allow-changes is for --resume"),
        "missing replay": (["--replay", "{folder}/absent.jsonl"], "--replay {folder}/absent.jsonl: cannot be read"),
        "replay of something else": (["--replay", "{folder}/train.jsonl"], "line 1: not a group written by --only rollout"),
        "both halves": (["--only", "rollout", "--replay", "{folder}/train.jsonl"], "goes with neither --replay nor --resume"),
    }


@pytest.fixture(scope="module")
def places(recipe: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders that something is wrong with."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("broken", "plain", "mismatched")}
    for folder in made.values():
        shutil.copytree(tiny, folder, dirs_exist_ok=True)
    (made["broken"] / "model.safetensors").write_bytes(b"\0" * 100)
    (made["plain"] / "chat_template.jinja").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(300)
    model.save_pretrained(made["mismatched"])
    (recipe.parent / "nogold.jsonl").write_text(json.dumps(QUESTIONS[0]) + '\n{"id": "q1", "question": "2+2?"}\n')
    return {"folder": str(recipe.parent)} | {name: str(folder) for name, folder in made.items()}


@pytest.mark.parametrize("fault", bad_inputs())
def test_bad_input(
    fault: str, recipe: Path, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    args, told = bad_inputs()[fault]
    monkeypatch.chdir(tmp_path)
    places = {**places}
    filled = [re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), a) for a in args]
    assert told.replace("{folder}", places["folder"]) in refused(capsys, [str(recipe), "run.out=run", *filled])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "recipe absent.toml: no such file" in refused(capsys, ["absent.toml"])


def test_the_process_says_the_same(recipe: Path, tmp_path: Path) -> None:
    """Not only main(): the process's own exit code and stderr, libraries' chatter included."""
    ended = subprocess.run(command(recipe, tmp_path / "run", "model.path=./absent"), env=environment(), **SUBPROCESS)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: model.path = './absent'")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_belongs_to_one_run(whole: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    args = [str(recipe), f"run.out={whole}", 'run.trackers=["tensorboard"]']
    assert "already holds a run: go on with --resume" in refused(capsys, args)
    told = refused(capsys, [*args, "--resume", "learn.lr=1e-4", "rollout.group=8"])
    assert "the config is not the run's (learn.lr: 0.001 -> 0.0001; rollout.group: 4 -> 8); only run.steps may change" in told
    assert told.endswith("Go on all the same with --allow-changes\n")
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_resume_where_nothing_was_saved(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(configs.to_dict(configs.load(recipe, [f"run.out={out}"]))))
    (out / "checkpoints" / "step-000003").mkdir(parents=True)
    assert "no whole checkpoint" in refused(capsys, [str(recipe), f"run.out={out}", "--resume"])
    (out / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(capsys, [str(recipe), f"run.out={out}", "--resume"])


def test_a_run_folder_that_is_a_file(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine")
    assert str(tmp_path / "run") in refused(capsys, [str(recipe), f"run.out={tmp_path / 'run'}"])
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("size", ["6k", "1500k", "4500k"])
def test_a_full_disk(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    """Full at the first file, at the first checkpoint, and at a later one (each has about 4 MB), where nobody looked before (guard.disk):
    no half file is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        told = refused(
            capsys,
            [str(recipe), f"run.out={disk / 'run'}", "evaluate.problems=0", "run.save_every=1", "run.steps=2", "guard.disk=0"],
        )
        assert "the disk is full" in told
        left = [p for p in disk.rglob("*") if ".tmp" in p.name]
        assert left == []
        for path in disk.rglob("*.json"):
            json.loads(path.read_text())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- a run that stops itself ----


def test_a_reward_that_raises_stops_the_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on: a bug is not masked, and what it raised on stands in rollouts/."""
    seen: list[str] = []

    def fails(completion: Any, problem: Any) -> Score:
        if isinstance(completion, Text):  # what the doctor asks at the start
            return Score(float(f">{problem['gold']}<" in completion.text))
        seen.append(problem["id"])
        if len(seen) > 20:
            raise RuntimeError("no such unit")
        return Score(1.0)

    monkeypatch.setitem(combine.REWARDS, "accuracy", lambda: fails)
    told = refused(capsys, [str(recipe), f"run.out={tmp_path / 'run'}", "evaluate.problems=0"], code=1)
    assert "stopped: a reward raised on 12 of the samples, first in accuracy of train/" in told
    assert "RuntimeError: no such unit" in told
    assert [m["step"] for m in timeless(tmp_path / "run")] == [1]
    written = (tmp_path / "run" / "rollouts" / "step-000002.jsonl").read_text()
    assert written.count("reward raised: accuracy of train/") == 12
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "final").exists()


def test_too_many_samples_without_a_verdict_stop_the_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def down(completion: Any, problem: Any) -> Score:
        if isinstance(completion, Text):  # what the doctor asks at the start
            return Score(float(f">{problem['gold']}<" in completion.text))
        seen.append(problem["id"])
        return Score(None, {}, "no such server") if len(seen) > 31 else Score(1.0)

    monkeypatch.setitem(combine.REWARDS, "accuracy", lambda: down)
    told = refused(capsys, [str(recipe), f"run.out={tmp_path / 'run'}", "evaluate.problems=0"], code=1)
    assert "stopped: guard masked: 6.2% of this step's samples have no verdict (allowed 2.0%)" in told
    assert [m["masked"] for m in timeless(tmp_path / "run")] == [0.0, 1 / 16]
    assert (tmp_path / "run" / "rollouts" / "step-000002.jsonl").read_text().count("no such server") == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "stopped after step 2 of 6</span> guard masked: 6.2% of this step" in page
    monkeypatch.undo()  # the server is back
    args = [str(recipe), f"run.out={tmp_path / 'run'}", "evaluate.problems=0", "--resume"]
    assert door.main(args) == 0
    assert not (tmp_path / "run" / "stopped.json").exists()
    assert "stopped after" not in (tmp_path / "run" / "report.html").read_text()


def test_a_stop_on_a_full_disk_still_says_why_it_stopped(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    args = [str(recipe), "evaluate.problems=0", "rollout.max_tokens=1", "guard.patience=2", "run.save_every=0"]
    monkeypatch.setattr(checkpoint.Keeper, "save", full)
    assert "error: stopped: guard truncated" in refused(capsys, [*args, f"run.out={tmp_path / 'one'}"], code=1)
    assert "guard truncated" in json.loads((tmp_path / "one" / "stopped.json").read_text())["reason"]
    monkeypatch.setattr(door, "write_report", full)
    assert "error: stopped: guard truncated" in refused(capsys, [*args, f"run.out={tmp_path / 'two'}"], code=1)


def test_truncated_answers_stop_a_run_after_patience(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(recipe), f"run.out={tmp_path / 'run'}", "evaluate.problems=0", "rollout.max_tokens=1", "guard.patience=2"]
    assert "guard truncated: 100% of the completions were cut off" in refused(capsys, args, code=1)
    assert len(timeless(tmp_path / "run")) == 2


# ---- dry run ----


def test_dry_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = [str(recipe), "--dry-run", "algorithm.inner_epochs=3", "rollout.length_jumps=[[5, 64]]", "model.path=not/loaded"]
    assert door.main(args) == 0
    tree, numbers = capsys.readouterr().out.split("\n\n")
    assert configs.from_dict(json.loads(tree)).algorithm.inner_epochs == 3
    read = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in numbers.splitlines())
    assert read == {
        "training questions": "10",
        "steps an epoch": "2.5",
        "epochs": "2.40",
        "completions a step": "16",
        "completions in all": "96",
        "completion tokens a step, at most": "1024",
        "updates a step": "6",
        "completions an update": "8",
        "updates in all": "36",
        "evaluation completions, before and after": "24",
        "folder": "runs/tiny-seed0",
    }
    assert list(tmp_path.iterdir()) == []
    assert "did you mean 'accuracy'" in refused(capsys, [*args, "rewards.acuracy.weight=1"])


def test_overrides_may_stand_after_flags(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([str(recipe), "--dry-run", "run.seed=7"]) == 0
    assert "runs/tiny-seed7" in capsys.readouterr().out


def test_chat_template_runs_too(recipe: Path, tmp_path: Path) -> None:
    args = ["prompt.template=chat", "run.steps=1", "evaluate.problems=0", "algorithm.kl=0", "algorithm.reference_every=0"]
    assert door.main([str(recipe), f"run.out={tmp_path / 'run'}", *args]) == 0
    line = json.loads((tmp_path / "run/rollouts/step-000001.jsonl").read_text().splitlines()[0])
    assert line["prompt"].startswith("<|im_start|>system\n")


def test_an_untied_model_of_another_family(recipe: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "llama", arch="llama", tie=False)
    args = [f"model.path={model}", "run.steps=1", "evaluate.problems=0"]
    assert door.main([str(recipe), f"run.out={tmp_path / 'run'}", *args]) == 0
    assert timeless(tmp_path / "run")[0]["mismatch_max"] < 1e-5
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
