"""Loss and gradient by every weight equal TRL 1.16's GRPOTrainer, the real class, on one batch with padding on both sides.

TRL's side: `_compute_loss` on a padded batch and its own fused head. Ours: each sequence alone and unpadded through an
untouched copy of the model, log-softmax, gather, then `policy_loss` over the flat token axis.
"""

import copy
import importlib
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rl.loss import AGGREGATE, LOSSES, policy_loss, token_weights
from rl.records import Row

pytest.importorskip("trl", reason="TRL is not installed: `make setup` installs it for the tests")

PROMPTS = [[3, 7, 11], [3, 7, 11], [5, 9, 2, 8, 4, 6], [5, 9, 2, 8, 4, 6], [13], [13]]
LENGTHS = [7, 3, 1, 5, 4, 9]
ADVANTAGES = [1.2, -1.2, 0.4, -0.4, 0.0, -0.9]
MAX_TOKENS = 9
TIS_CAP = 1.25
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def completions() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 32, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,  # wide, so that probabilities and gradients are far from uniform and from zero
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).train()


@pytest.fixture(scope="module")
def trainer(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # TRL imports all of vLLM where it is installed (10 s), which a loss does not need.
        patch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda min_version=None: False)
        from trl import GRPOConfig, GRPOTrainer

    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 32)}}, unk_token="<pad>"))
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=MAX_TOKENS,
        use_bias_correction_kl=False,  # the papers' KL, see rl/loss.py
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=TIS_CAP,
    )
    made = GRPOTrainer(
        model=copy.deepcopy(model),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * 6}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )
    made.model.train()
    return made


def our_logprobs(model, completions) -> list[Tensor]:
    """Per sample, its completion's log-probs: no padding, no mask, no batch."""
    found = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        found.append(logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return found


@pytest.fixture(scope="module")
def others(model, completions) -> dict[str, Tensor]:
    """Log-probs of the old policy, the sampler and the reference: the current ones and noise, wide enough to clip."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        now_T = torch.cat(our_logprobs(model, completions))
    old_T = now_T + 0.3 * torch.randn(now_T.shape, generator=generator)
    return {
        "old": old_T,
        "sampled": old_T + 0.3 * torch.randn(now_T.shape, generator=generator),
        "ref": now_T + 0.5 * torch.randn(now_T.shape, generator=generator),
    }


def padded(flat_T: Tensor, picked: range) -> Tensor:
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).tolist()
    parts = [flat_T[a:b] for a, b in pairwise(starts)]
    return torch.nn.utils.rnn.pad_sequence([parts[i] for i in picked], batch_first=True)


def trl_inputs(completions, others, picked: range, *, old: bool, kl: bool, tis: bool) -> dict[str, Tensor]:
    """What `_generate_and_score_completions` gives the loss, of the samples `picked`; prompts padded left, answers right."""
    prompts = [torch.tensor(PROMPTS[i]) for i in picked]
    answers = [torch.tensor(completions[i]) for i in picked]
    left = {"batch_first": True, "padding_side": "left"}
    pad = torch.nn.utils.rnn.pad_sequence
    old_T = others["old"]
    return {
        "prompt_ids": pad(prompts, **left),
        "prompt_mask": pad([torch.ones_like(p) for p in prompts], **left),
        "completion_ids": pad(answers, batch_first=True),
        "completion_mask": pad([torch.ones_like(a) for a in answers], batch_first=True),
        "advantages": torch.tensor([ADVANTAGES[i] for i in picked]),
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS))),
        **({"old_per_token_logps": padded(old_T, picked)} if old else {}),
        **({"ref_per_token_logps": padded(others["ref"], picked)} if kl else {}),
        **(
            {"importance_sampling_ratio": torch.exp(padded(old_T - others["sampled"], picked)).clamp(max=TIS_CAP)}
            if tis
            else {}
        ),
    }


def trl_loss(trainer, name, batches, *, beta: float, tis: bool) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of TRL over one accumulation window of `batches`."""
    trainer.loss_type = "grpo" if name == "gspo" else name
    trainer.importance_sampling_level = "sequence" if name == "gspo" else "token"
    trainer.epsilon_low = CLIP["clip_low"]
    trainer.epsilon_high = CLIP["clip_high"] + (1 if name == "cispo" else 0)  # for cispo TRL sets the bound itself
    trainer.beta = beta
    trainer.use_vllm = tis
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = len(batches)
    trainer._metrics["train"].clear()
    trainer.model.zero_grad()
    total = 0.0
    for inputs in batches:
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        total += loss.item()
    return total, {key: p.grad.clone() for key, p in trainer.model.named_parameters()}


def our_loss(model, name, completions, others, *, old: bool, beta: float, tis: bool):
    lengths_S = torch.tensor(LENGTHS)
    per_sample = token_weights(AGGREGATE[name], LENGTHS, samples=len(LENGTHS), tokens=sum(LENGTHS), max_tokens=MAX_TOKENS)
    row = Row(
        ids_L=NONE,
        positions_L=NONE,
        spans=(),
        sources_T=NONE,
        targets_T=NONE,
        samples_T=torch.repeat_interleave(torch.arange(len(LENGTHS)), lengths_S),
        lengths_S=lengths_S,
        advantages_T=torch.tensor(ADVANTAGES).repeat_interleave(lengths_S),
        sampled_T=others["sampled"],
        weights_T=torch.tensor(per_sample).repeat_interleave(lengths_S),
        old_T=others["old"] if old else None,
        ref_T=others["ref"] if beta else None,
    )
    model.zero_grad()
    logprobs_T = torch.cat(our_logprobs(model, completions))
    loss, metrics = policy_loss(name, logprobs_T, row, **CLIP, kl_coef=beta, tis_cap=TIS_CAP if tis else None)
    loss.backward()
    return loss.item(), {key: p.grad.clone() for key, p in model.named_parameters()}, {k: m.item() for k, m in metrics.items()}


def assert_equal(ours, theirs) -> None:
    (loss, grads), (trl, trl_grads) = ours, theirs
    assert loss == pytest.approx(trl, abs=1e-5, rel=0)
    assert grads.keys() == trl_grads.keys()
    assert max(g.abs().max() for g in trl_grads.values()) > 0.05  # there is something to compare
    for key, grad in grads.items():
        torch.testing.assert_close(grad, trl_grads[key], atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("tis", [False, True], ids=["", "tis"])
@pytest.mark.parametrize("beta", [0.0, 0.1], ids=["", "kl"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_trl(trainer, model, completions, others, name, beta, tis):
    loss, grads, metrics = our_loss(model, name, completions, others, old=True, beta=beta, tis=tis)
    inputs = trl_inputs(completions, others, range(6), old=True, kl=bool(beta), tis=tis)
    assert_equal((loss, grads), trl_loss(trainer, name, [inputs], beta=beta, tis=tis))

    tokens, theirs = metrics["tokens"], {key: values[0] for key, values in trainer._metrics["train"].items()}
    assert tokens == sum(LENGTHS)
    if beta:
        assert metrics["kl"] / tokens == pytest.approx(theirs["kl"], abs=1e-5)
    if name in ("grpo", "dr_grpo", "dapo"):
        assert metrics["clip_low"] > 0
        assert metrics["clip_high"] > 0
        assert metrics["clip_low"] / tokens == pytest.approx(theirs["clip_ratio/low_mean"])
        assert metrics["clip_high"] / tokens == pytest.approx(theirs["clip_ratio/high_mean"])
    if tis:  # some truncated, some not
        assert 0.5 * tokens < metrics["tis"] < TIS_CAP * tokens


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_equals_trl(trainer, model, completions, others, name):
    loss, grads, _ = our_loss(model, name, completions, others, old=False, beta=0.1, tis=False)
    inputs = trl_inputs(completions, others, range(6), old=False, kl=True, tis=False)
    assert_equal((loss, grads), trl_loss(trainer, name, [inputs], beta=0.1, tis=False))


@pytest.mark.parametrize("name", LOSSES)
def test_one_row_equals_trl_over_three_micro_batches(trainer, model, completions, others, name):
    loss, grads, _ = our_loss(model, name, completions, others, old=True, beta=0.1, tis=True)
    batches = [trl_inputs(completions, others, range(i, i + 2), old=True, kl=True, tis=True) for i in (0, 2, 4)]
    assert_equal((loss, grads), trl_loss(trainer, name, batches, beta=0.1, tis=True))


def test_gspo_clips_a_sample_here(model, completions, others):
    _, _, metrics = our_loss(model, "gspo", completions, others, old=True, beta=0.0, tis=False)
    assert metrics["clip_low"] + metrics["clip_high"] > 0
