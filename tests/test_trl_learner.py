"""`learner = "trl"`: the recipe's keys as TRL's, the same updates in the same order, and a whole run through TRL's own trainer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipes import run as door
from recipes import trl_learner
from recipes.street import load_task
from rl import config as configs
from rl.data import Order
from rl.policy import load_tokenizer
from rl.rollout import load
from tests.tiny_run import refused, write_recipe

RUN = ["learner=trl", "run.save_every=0", "guard.truncated=1.1"]


@pytest.fixture(scope="module", autouse=True)
def trl() -> Iterator[None]:
    """TRL, without the import of vLLM that it does where that is installed, and one thread."""
    utils = pytest.importorskip("trl.import_utils", reason="TRL is not installed: `make setup` installs it for the tests")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "is_vllm_available", lambda min_version=None: False)
        importlib.import_module("trl")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny)


def settings(recipe: Path, *overrides: str) -> dict[str, Any]:
    config = configs.load(recipe, ["learner=trl", *overrides])
    trl_learner.check(config)
    return trl_learner.settings(config, Path("out"), cuda=False)


def test_batch_sizes_by_hand(recipe: Path) -> None:
    """4 questions x 4 answers, 2 updates a rollout: 8 samples an update. A row of 512 holds two of 200 + 12 tokens: 4 passes of 2."""
    given = settings(recipe)
    assert given["per_device_train_batch_size"] == 2
    assert given["gradient_accumulation_steps"] == 4
    assert given["steps_per_generation"] == 8
    assert given["num_generations"] == 4
    assert given["max_steps"] == 12  # 6 rollouts
    assert given["per_device_train_batch_size"] * given["steps_per_generation"] == 16
    assert settings(recipe, "learn.row_tokens=64")["per_device_train_batch_size"] == 1
    assert settings(recipe, "learn.row_tokens=1600")["gradient_accumulation_steps"] == 2  # 7 would fit, 4 divides 8
    more = settings(recipe, "algorithm.inner_epochs=3", "algorithm.minibatches=1")
    assert (more["num_iterations"], more["steps_per_generation"], more["max_steps"]) == (3, 8, 18)


def test_the_loss_by_hand(recipe: Path) -> None:
    given = settings(recipe, "algorithm.clip_low=0.1", "algorithm.clip_high=0.3", "rollout.temperature=0.7")
    expected = {
        "loss_type": "dapo", "importance_sampling_level": "token", "epsilon": 0.1, "epsilon_high": 0.3, "scale_rewards": "group",
        "beta": 0.01, "temperature": 0.7, "mask_truncated_completions": False, "use_bias_correction_kl": False,
        "sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 4,  # 2 rollouts of 2 updates
    }  # fmt: skip
    assert {k: given[k] for k in expected} == expected
    gspo = settings(recipe, "algorithm.loss=gspo", "algorithm.advantage=group_mean", "algorithm.overlong=mask")
    assert (gspo["loss_type"], gspo["importance_sampling_level"], gspo["scale_rewards"]) == ("grpo", "sequence", "none")
    assert gspo["mask_truncated_completions"]
    assert settings(recipe, "algorithm.loss=cispo", "algorithm.clip_high=4")["epsilon_high"] == 5.0


def test_its_engine_by_hand(recipe: Path) -> None:
    assert "use_vllm" not in settings(recipe)
    given = settings(
        recipe, "rollout.sampler=vllm", "algorithm.importance_cap=3", "rollout.engine={gpu_memory_utilization=0.2}"
    )
    assert given["use_vllm"]
    assert given["vllm_max_model_length"] == 212
    assert given["vllm_gpu_memory_utilization"] == 0.2
    assert (given["vllm_importance_sampling_mode"], given["vllm_importance_sampling_clip_max"]) == ("token_truncate", 3.0)
    assert not settings(recipe, "rollout.sampler=vllm", "algorithm.importance_cap=0")["vllm_importance_sampling_correction"]


def test_the_schedule_is_the_recipes(recipe: Path) -> None:
    config = configs.load(recipe)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learn.lr)
    course, rates = trl_learner.schedule(config, optimizer), []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    assert rates == pytest.approx([5e-4, 1e-3] + [1e-3 * (1 - k / 10) for k in range(10)])


REFUSED = {
    "rollout.refill=1": "rollout.refill",
    "rollout.top_p=0.9": "rollout.top_p",
    "rollout.top_k=5": "rollout.top_k",
    "rollout.stop_loops=8": "rollout.stop_loops",
    "rollout.length_jumps=[[2, 20]]": "rollout.length_jumps",
    "rollout.placement=processes": "rollout.placement",
    "algorithm.advantage=leave_one_out": "algorithm.advantage",
    "learn.optimizer=adamw8": "learn.optimizer",
    "learn.compile=always": "learn.compile",
    "guard.rollbacks=1": "guard.rollbacks",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_trl_cannot_do_is_refused_by_name(recipe: Path, override: str) -> None:
    with pytest.raises(ValueError, match=f"^{REFUSED[override]} with learner = 'trl': "):
        settings(recipe, override)


def test_a_mixture_of_experts_is_refused_what_trl_lacks(recipe: Path) -> None:
    from transformers import Qwen3MoeConfig

    shape = Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, intermediate_size=16, vocab_size=64,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape)
    trl_learner.check_experts(configs.load(recipe, ["model.routing_replay=false", "learn.balance_rate=0"]), model)
    for override, key in [
        ("learn.balance_rate=0", "model.routing_replay"),
        ("model.routing_replay=false", "learn.balance_rate"),
    ]:
        with pytest.raises(ValueError, match=f"^{key} with learner = 'trl': "):
            trl_learner.check_experts(configs.load(recipe, [override]), model)


def test_a_launcher_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="several processes"):
        settings(recipe)


def test_prompts_that_are_not_their_text_are_refused(recipe: Path, tiny: str) -> None:
    config, tokenizer = configs.load(recipe), load_tokenizer(tiny)
    prompts = load_task(config, tokenizer).train
    assert tokenizer(trl_learner.texts(prompts, tokenizer))["input_ids"] == [list(p.ids) for p in prompts]
    tokenizer.add_tokens(["What is"])  # from here on the same text has other ids
    with pytest.raises(ValueError, match="its own ids again"):
        trl_learner.texts(prompts, tokenizer)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 steps of 4 x 4 through TRL's trainer, two updates each."""
    out = tmp_path_factory.mktemp("trl") / "run"
    assert door.main([str(recipe), *RUN, "run.steps=3", f"run.out={out}"]) == 0
    return out


def test_a_run_leaves_what_ours_leaves(whole: Path) -> None:
    left = {p.name for p in whole.iterdir()}
    assert {
        "after.json",
        "before.json",
        "config.json",
        "final",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "rollouts",
    } <= left
    result = json.loads((whole / "result.json").read_text())
    assert result["learner"] == "trl"
    assert result["before"]["problems"] == result["after"]["problems"] == 4
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines] == [1, 2, 3]
    for m in lines:
        parts = m["seconds_rollout"] + m["seconds_reward"] + m["seconds_learn"]
        assert parts == pytest.approx(m["seconds"])
        assert {"reward", "accuracy", "format", "length", "truncated", "zero_variance", "loss", "grad_norm", "kl"} <= set(m)
        assert m["kl"] >= 0
    assert [m["lr"] for m in lines] == pytest.approx([1e-3, 7.5e-4, 2.5e-4])  # of the 2nd, 4th and 6th of 6 updates


def test_the_same_questions_in_the_same_order(whole: Path, recipe: Path, tiny: str) -> None:
    task = load_task(configs.load(recipe), load_tokenizer(tiny))
    order = [task.train[i].id for i in Order(len(task.train), 0).take(0, 12)]
    asked = []
    for step in (1, 2, 3):
        lines = [json.loads(x) for x in (whole / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()]
        asked += [line["id"] for line in lines]
        assert all(len(line["completions"]) == 4 for line in lines)
    assert asked == order


def test_the_weights_are_trained(whole: Path, tiny: str) -> None:
    new, old = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (whole / "final", tiny))
    moved = max((new[n] - old[n]).abs().max().item() for n in old)
    assert 1e-4 < moved < 2e-2  # six updates of Adam: at most the sum of the rates, 3.5e-3, and a little


def test_resume_only_and_replay_are_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(recipe), *RUN, f"run.out={tmp_path / 'run'}"]
    assert "no --resume, --only or --replay" in refused(capsys, [*args, "--only", "rollout"])


def test_a_guard_stops_it(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(recipe), "learner=trl", f"run.out={tmp_path / 'run'}", "run.save_every=0", "evaluate.problems=0"]
    told = refused(capsys, [*args, "rollout.max_tokens=1", "guard.patience=2"], code=1)
    assert "cut off" in told
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


def test_from_the_same_answers_both_learn_the_same(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    """Three updates from the same groups: loss, gradient and weights agree, so what differs between two runs is what they sample."""
    from trl import GRPOTrainer

    keys = [
        "run.steps=3",
        "evaluate.problems=0",
        "algorithm.minibatches=1",
        "algorithm.importance_cap=0",
        "rollout.temperature=0.5",
    ]
    keys += [
        "algorithm.reference_every=0",
        "learn.row_tokens=1024",
        "learn.lr=1e-5",
        "rewards.soft_overlong={limit=14, cache=14}",
    ]
    assert door.main([str(recipe), *keys, f"run.out={tmp_path / 'half'}", "--only", "rollout"]) == 0
    stored = tmp_path / "half" / "groups.jsonl"
    assert door.main([str(recipe), *keys, f"run.out={tmp_path / 'own'}", "--replay", str(stored), "guard.mismatch=100"]) == 0
    steps = [[[list(c.ids) for g in groups for c in g.completions], None] for _, groups in load(stored)]
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_: steps.pop(0))
    assert door.main([str(recipe), *keys, *RUN, f"run.out={tmp_path / 'trl'}"]) == 0
    assert steps == []

    own, trl = ([json.loads(x) for x in (tmp_path / way / "metrics.jsonl").read_text().splitlines()] for way in ("own", "trl"))
    for name, close in [("reward", 1e-6), ("loss", 1e-3), ("grad_norm", 1e-3), ("kl", 2e-2), ("lr", 1e-9)]:
        assert [m[name] for m in trl] == pytest.approx([m[name] for m in own], rel=close, abs=1e-6), name
    assert min(m["grad_norm"] for m in own) > 1e-3
    old, ours, theirs = (
        AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (tiny, tmp_path / "own/final", tmp_path / "trl/final")
    )
    moved = torch.cat([(ours[n] - old[n]).flatten() for n in old]).abs().mean()
    apart = torch.cat([(ours[n] - theirs[n]).flatten() for n in old]).abs().mean()
    assert moved > 1e-6
    assert apart < 0.02 * moved
