"""TRL's reward functions here and ours in TRL's own GRPOTrainer, with the real TRL."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from rewards.combine import build
from rewards.score import Score, Text
from rewards.trl_bridge import as_trl, from_trl

ROW = {"id": "a", "question": "2+2?", "gold": "4"}
GOOD = Text("<think>2+2=4</think> The answer is $\\boxed{4}$.", tokens=90)


@pytest.fixture(scope="module")
def trl():
    """TRL; without the import of vLLM that it does where that is installed."""
    utils = pytest.importorskip("trl.import_utils", reason="TRL is not installed: `make setup` installs it for the tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "is_vllm_available", lambda min_version=None: False)
        yield importlib.import_module("trl")


def test_trls_functions_in_a_recipe(trl) -> None:
    reward = build(
        {
            "accuracy": {"weight": 1.0},
            "trl.rewards:think_format_reward": {"weight": 0.1},
            "trl.rewards:accuracy_reward": {"weight": 0.0, "columns": {"solution": "gold"}},
            "trl.rewards:get_soft_overlong_punishment": {"weight": 1.0, "max_completion_len": 100, "soft_punish_cache": 20},
        }
    )
    score = reward(GOOD, ROW)
    assert score.parts == {
        "accuracy": 1.0,
        "trl.rewards:think_format_reward": 1.0,
        "trl.rewards:accuracy_reward": 1.0,
        "trl.rewards:get_soft_overlong_punishment": -0.5,  # 90 tokens, 80 free of 100
    }
    assert score.value == pytest.approx(0.6)
    assert reward(Text("4"), ROW).parts["trl.rewards:think_format_reward"] == 0.0


def test_trls_accuracy_reward_without_a_readable_gold_masks(trl) -> None:
    """TRL returns None where the gold does not parse: the sample is masked, not zero."""
    reward = from_trl("trl.rewards:accuracy_reward", columns={"solution": "gold"})
    assert reward(GOOD, {**ROW, "gold": "no number at all"}).value is None


def plain(prompts: list[str], completions: list[str], bonus: list[float], **columns: Any) -> list[float]:
    assert prompts == ["2+2?"]
    return [b + len(c) for c, b in zip(completions, bonus, strict=True)]


def test_strings_instead_of_messages_and_columns() -> None:
    assert from_trl(f"{__name__}:plain", chat=False)(Text("abc"), {**ROW, "bonus": 0.5}).value == 3.5


def bad(completions: list[Any], **columns: Any) -> list[float]:
    return []


def test_a_function_that_returns_the_wrong_number_of_values_is_named() -> None:
    with pytest.raises(ValueError, match="0 values"):
        from_trl(f"{__name__}:bad")(GOOD, ROW)


def test_a_factory_with_wrong_options_is_named(trl) -> None:
    with pytest.raises(ValueError, match="max_len"):
        from_trl("trl.rewards:get_soft_overlong_punishment", max_len=3)


def test_ours_reads_strings_and_messages() -> None:
    function = as_trl(build({"accuracy": {}}), "ours")
    assert function.__name__ == "ours"
    texts = ["\\boxed{4}", "\\boxed{5}"]
    messages = [[{"role": "assistant", "content": t}] for t in texts]
    questions = [[{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]] * 2
    assert function(["2+2?"] * 2, texts, gold=["4", "4"]) == [1.0, 0.0]
    assert function(questions, messages, completion_ids=[[1], [1, 2]], gold=["4", "4"], trainer_state=object()) == [1.0, 0.0]


def test_ours_gets_questions_tokens_and_rows() -> None:
    seen: list[tuple[str, int, Any]] = []

    def spy(completion: Any, problem: Any) -> Score:
        seen.append((completion.text, completion.tokens, dict(problem)))
        return Score(None)

    prompts = [[{"role": "user", "content": "a?"}], [{"role": "user", "content": "b?"}]]
    values = as_trl(spy, "spy")(prompts, ["x", "y"], completion_ids=[[1], [1, 2]], gold=["1", "2"], log_metric=print)
    assert values == [None, None]
    assert seen == [("x", 1, {"question": "a?", "gold": "1"}), ("y", 2, {"question": "b?", "gold": "2"})]


@pytest.mark.parametrize("chat", [False, True])
def test_one_step_of_trls_trainer_with_our_reward(trl, chat: bool, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import path

    folder = path("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if chat:
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    prompt: Any = [{"role": "user", "content": "2+2?"}] if chat else "2+2?"
    calls: list[list[float | None]] = []
    function = as_trl(build({"accuracy": {}, "format": {"mode": "lenient"}, "repetition": {"n": 1}}), "ours")

    def recorded(**arguments: Any) -> list[float | None]:
        calls.append(function(**arguments))
        return calls[-1]

    recorded.__name__ = "ours"
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=recorded,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [prompt] * 4, "gold": ["4"] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "rewards/ours/mean" in entry)
    assert len(calls) == 1
    assert len(calls[0]) == 4
    assert logged["rewards/ours/mean"] == pytest.approx(sum(v or 0.0 for v in calls[0]) / 4, abs=1e-6)
    json.dumps(calls)
