"""Tiny random models of three families with a byte-level tokenizer, made once a test session in a folder that goes with it.

The weights are wide (std 0.12), so that distributions are far from uniform and gradients far from zero. The vocabulary (330) is not a
multiple of 64, as an engine that pads its own would like it. Axes: G completions of a group.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.batch import Counts, pack
from rl.config import Config
from rl.learn import Learner, accelerator
from rl.policy import Policy, load_model
from rl.records import Completion, Group, Prompt

torch.set_num_threads(1)  # models this small only lose by more

FAMILIES = ("qwen3", "qwen2", "llama")  # dense; and "deepseek": DeepSeek-V3's latent attention and experts
VOCABULARY = 330
EOS = 0
STOPS = [EOS, *range(40, 52)]  # of generation_config: many, so that random models do stop
SENTENCES = [
    "A farmer has 12 apples and gives 5 of them away. How many apples are left?",
    "Anna reads 3 pages a day. How many pages does she read in 14 days?",
    "Let us think step by step. 12 - 5 = 7, so the answer is 7.",
    "<think>3 pages times 14 days is 42.</think> <answer>42</answer>",
]
_FOLDER = tempfile.TemporaryDirectory(prefix="grpo-tiny-")


@functools.cache
def path(family: str = "qwen3") -> str:
    """The folder of a model with its tokenizer."""
    folder = str(Path(_FOLDER.name) / family)
    make(_config(family)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def make(config: Any, **changes: Any) -> Any:
    """A model of `config` with random weights, the same each time, and a generation config with STOPS."""
    from transformers import AutoModelForCausalLM

    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        # Norms and biases too: left at 1 and 0 they would hide a mix-up.
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1 and weight.mean() > 0.5), std=0.12)
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(bias, std=0.05)
    model.generation_config.eos_token_id = STOPS
    return model


def _config(family: str) -> Any:
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    shape = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 1,
    }  # fmt: skip
    if family == "deepseek":
        return _deepseek(shape)
    if family == "qwen3":
        return Qwen3Config(**shape, head_dim=32, tie_word_embeddings=True)
    if family == "qwen2":
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 32: vLLM on a CPU knows none of 16
        return Qwen2Config(**shape, tie_word_embeddings=False)
    return LlamaConfig(**shape, head_dim=32, tie_word_embeddings=False)


def _deepseek(shape: Mapping[str, Any]) -> Any:
    """A dense layer and two with experts, 2 of 8 a token, from 2 of 4 groups; keys wider than values. As published, vLLM needs the last
    two fields."""
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **dict(shape) | {"num_hidden_layers": 3, "num_key_value_heads": 4}, moe_intermediate_size=32, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=2, first_k_dense_replace=1, kv_lora_rank=32, q_lora_rank=24,
        qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=24, num_mtp_layers=0, tie_word_embeddings=False,
        topk_method="noaux_tc", scoring_func="sigmoid",
    )  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    """Byte-level BPE over a few sentences: 318 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|pad|>"]
    made.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=318, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|pad|>")


def policy(family: str = "qwen3") -> Policy:
    """A fresh fp32 policy for packed rows."""
    return Policy(load_model(path(family), dtype=torch.float32))


def plain(family: str = "qwen3") -> Any:
    """The same model with transformers' own SDPA attention."""
    return load_model(path(family), dtype=torch.float32, attention="sdpa")


def groups(
    shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0, finish: Callable[[int], str] | None = None
) -> list[Group]:
    """Random groups, one for each (prompt length, completion lengths). Log-probs are noise unless `with_sampled` sets them."""
    draw = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(n))

    made = []
    for p, (length, lengths_G) in enumerate(shapes):
        completions = tuple(
            Completion(tokens(n), tuple(draw.uniform(-3, 0) for _ in range(n)), finish(g) if finish else "stop", "", 0)
            for g, n in enumerate(lengths_G)
        )
        made.append(Group(Prompt(f"p{p}", tokens(length), {"id": f"p{p}", "gold": ""}), completions))
    return made


def padded(model: Any, group: Group, temperature: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs and entropies of each completion by the plain forward pass: prompt + completion, right-padded, one row each.

    This is the reference that packed rows are held against: no packing, no shared prompt, no chunks, the model's own head.
    """
    sequences = [group.prompt.ids + c.ids for c in group.completions]
    width = max(map(len, sequences))
    ids_GL = torch.tensor([[*s, *[1] * (width - len(s))] for s in sequences])
    mask_GL = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    logits_GLV = model(input_ids=ids_GL, attention_mask=mask_GL).logits
    logprobs, entropies = [], []
    for g, s in enumerate(sequences):
        scaled_TV = (logits_GLV[g, len(group.prompt.ids) - 1 : len(s) - 1] / temperature).log_softmax(-1)
        logprobs.append(scaled_TV.gather(1, torch.tensor(group.completions[g].ids)[:, None])[:, 0])
        entropies.append(-(scaled_TV.exp() * scaled_TV).sum(-1))
    return logprobs, entropies


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter's gradient, by name."""
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm, all tensors together."""
    assert ours.keys() == theirs.keys()
    assert ours
    difference = sum(float((ours[n].double() - theirs[n].double()).square().sum()) for n in ours)
    return (difference / sum(float(t.double().square().sum()) for t in theirs.values())) ** 0.5


def config(**sections: Mapping[str, Any]) -> Config:
    """The defaults with changes: `config(learn={"lr": 1e-3}, algorithm={"kl": 0.1})`."""
    made = Config(rewards={"accuracy": {}})
    for name, changes in sections.items():
        made = dataclasses.replace(made, **{name: dataclasses.replace(getattr(made, name), **changes)})
    return made


def learner(settings: Config, family: str = "qwen3", teacher: Policy | None = None) -> Learner:
    """A learner from the model of `family`, with a reference model where there is a KL term."""
    reference = policy(family) if settings.algorithm.kl else None
    return Learner(settings, policy(family), reference, accelerator(settings, Path(_FOLDER.name)), teacher)


def updates(of: Learner, number: int, prompts: Sequence[Prompt], seed: int = 5) -> None:
    """Real optimiser updates on random completions, away from where the model was."""
    for i in range(number):
        made = [replace(g, prompt=p) for p, g in zip(prompts, groups([(1, [6, 4])] * len(prompts), seed + i), strict=True)]
        of.step(made, [[1.0, -1.0]] * len(made), max_tokens=8)


def parity(of: Learner, made: Sequence[Group], temperature: float) -> float:
    """The largest |sampler's log-prob - learner's| over every token of the groups, nats."""
    zeros = [[0.0] * len(g.completions) for g in made]
    batch = pack(made, zeros, loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=2048)
    with torch.no_grad():
        return max(float((of.policy(r, temperature or 1.0)[0] - r.sampled_T).abs().max()) for r in batch.rows)
