"""A tiny base to run recipes on: a two-layer model with random weights and a tokenizer of its own, real transformers files.

`tiny` (a fixture of conftest.py) is one such folder a session. Every byte is a token, so any text survives the round trip; the four
tags are one token each, so that even random completions earn the format reward now and then. (`tiny.py` makes models of other
families, with weights wide enough to show a wrong mask.)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
EOS, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT = 1024
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(vocabulary: int = 480) -> Any:
    """A byte-level BPE that knows the R1-Zero template well; EOS, pad, ChatML marks and the tags are tokens of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rl.prompts import CHAT_SYSTEM, R1_ZERO

    made = Tokenizer(models.BPE())
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([digits, level]), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[EOS, PAD, "<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    made.train_from_iterator([R1_ZERO, CHAT_SYSTEM] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS, pad_token=PAD, chat_template=CHAT)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def tiny_model(folder: str | Path, arch: str = "qwen3", seed: int = 0, tie: bool = True, context: int = CONTEXT) -> str:
    """Write a two-layer model ("qwen2", "qwen3" or "llama") and the tokenizer into `folder`; returns the folder's path."""
    import torch
    import transformers as hf

    kinds = {
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
    }
    config_class, model_class = kinds[arch]
    tokenizer = tiny_tokenizer()
    shape = {} if arch == "qwen2" else {"head_dim": 64}
    config = config_class(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=192,
        vocab_size=512, tie_word_embeddings=tie, max_position_embeddings=context, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=tokenizer.pad_token_id, **shape,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = model_class(config)
    for weight in model.parameters():
        if weight.ndim == 2:  # wider than the default: log-probs that a wrong mask or position would move
            torch.nn.init.normal_(weight, std=0.08)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


QUESTIONS = [
    {"id": f"train/{i}", "question": f"What is {i}+{2 * i}?", "gold": str(3 * i), "steps": 1 + i % 2} for i in range(10)
]
HELDOUT = [
    {"id": f"held/{i}", "question": f"What is twice {i}?", "gold": str(2 * i), "part": "seen" if i % 2 else "unseen"}
    for i in range(4)
]
RECIPE = """
name = "tiny"
[run]
steps = 6
save_every = 3
[model]
path = "{model}"
[data]
train = "{folder}/train.jsonl"
heldout = "{folder}/heldout.jsonl"
[prompt]
max_tokens = 200
[rollout]
sampler = "transformers"
prompts = 4
group = 4
max_tokens = 12
[rewards.accuracy]
[rewards.format]
mode = "lenient"
[algorithm]
loss = "dapo"
kl = 0.01
reference_every = 2
minibatches = 2
[learn]
lr = 1e-3
schedule = "linear"
warmup = 2
row_tokens = 512
[evaluate]
problems = 4
samples = 2
"""


def write_recipe(folder: Path, model: str) -> Path:
    """A recipe with its two data files: 6 steps of 4 x 4 short completions, two updates a step, a reference that is replaced."""
    for name, rows in (("train", QUESTIONS), ("heldout", HELDOUT)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(model=model, folder=folder))
    return recipe


def timeless(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "eta_s", "tokens_per_s", "reward_ms")
    return [{k: v for k, v in m.items() if not k.startswith(clocks)} for m in lines]


def reward_workers() -> list[str]:
    """The reward processes below this one (another test's sandbox may still be up)."""
    command = ["ps", "-o", "args=", "--ppid", str(os.getpid())]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in listed.splitlines() if "worker_child" in line]


def refused(capsys: pytest.CaptureFixture[str], args: Sequence[str], code: int = 2) -> str:
    """What the door says, in one line, when it gives up with this exit code."""
    from recipes import run as door

    capsys.readouterr()
    assert door.main([str(a) for a in args]) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    return told
