"""The policy: model, tokenizer, and token log-probs over packed rows. The only shift by one lives in a row's `sources_T`.

Log-probs are those of the distribution that was sampled: logits / temperature, reduced in fp32, a chunk of the vocabulary
projection at a time, so that the full [T, V] logits never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rl.attention import PACKED, layout
from rl.records import Row

CHUNK_ELEMENTS = 1 << 26  # of logits that exist at once: 256 MiB in fp32
ROOT = Path(__file__).resolve().parent.parent


class Policy(nn.Module):
    """A causal language model that scores packed rows. `forward(row, temperature)` -> (logprobs_T, entropy_T), fp32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Where weights are sharded over ranks, set by the learner: (names in state_dict, dtype) -> full tensors, all ranks helping.
        self.fetch: Callable[[Sequence[str], torch.dtype | None], Iterator[tuple[str, Tensor]]] | None = None

    def forward(self, row: Row, temperature: float) -> tuple[Tensor, Tensor]:
        hidden = self.model.base_model(
            input_ids=row.ids_L[None],
            position_ids=row.positions_L[None],
            use_cache=False,
            packing=layout(row.spans, len(row.ids_L), row.ids_L.device),
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        return _chunked(hidden[row.sources_T], head, row.targets_T, temperature)

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Named weights as `save_pretrained` names them, tied ones once, cast to `dtype` for a sampler."""
        if self.fetch:
            yield from self.fetch([name for name, _ in self.model.named_parameters()], dtype)
            return
        for name, weight in self.model.named_parameters():
            yield name, weight.detach().to(dtype or weight.dtype)

    def tie_weights(self) -> None:
        """accelerate asks for this after it has sharded the weights."""
        self.model.tie_weights()


def _chunked(hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    vocabulary = head.weight.shape[0]
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    if len(targets_T) <= step:
        return _token_logprobs(hidden_TH, head, targets_T, temperature)
    # Recomputed in the backward pass, chunk by chunk: memory stays at one chunk.
    parts = [
        checkpoint(_token_logprobs, h, head, t, temperature, use_reentrant=False)
        for h, t in zip(hidden_TH.split(step), targets_T.split(step), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _token_logprobs(hidden_TH: Tensor, head: nn.Module, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_TV = head(hidden_TH).float() / temperature
    normaliser_T = logits_TV.logsumexp(-1)
    logprobs_T = logits_TV.gather(1, targets_T[:, None])[:, 0] - normaliser_T
    with torch.no_grad():
        entropy_T = normaliser_T - (logits_TV.detach() - normaliser_T.detach()[:, None]).exp().mul_(logits_TV.detach()).sum(-1)
    return logprobs_T, entropy_T


def resolve(path: str) -> str:
    """A folder as given or under the repository; anything else is a hub name."""
    if not path:
        raise ValueError("model.path is empty: name a folder or a hub model, e.g. model.path=Qwen/Qwen2.5-0.5B")
    for folder in (Path(path), ROOT / path):
        if folder.is_dir():
            return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(f"model.path = {path!r}: no such folder, and not a hub name (owner/name)")
    return path


def _from_pretrained(kind: Any, path: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except Exception as error:  # transformers and the hub raise many kinds; the user needs one line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:240] if lines else type(error).__name__
        raise ValueError(f"model.path = {path!r}: the {what} does not load: {reason}") from error


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer, with an end-of-sequence token, or ValueError."""
    tokenizer = _from_pretrained(AutoTokenizer, resolve(path), "tokenizer", trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.path = {path!r}: the tokenizer has no end-of-sequence token, so no completion could end")
    return tokenizer


def load_model(path: str, *, dtype: torch.dtype, attention: str = PACKED, trust_remote_code: bool = False) -> Any:
    """A causal LM from a folder or the hub. Dropout is off: it would make the learner's log-probs noisy copies of the sampler's."""
    config = _from_pretrained(AutoConfig, resolve(path), "config", trust_remote_code=trust_remote_code)
    for name in ("attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop"):
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
    model, report = _from_pretrained(
        AutoModelForCausalLM, resolve(path), "model", config=config, dtype=dtype, attn_implementation=attention,
        trust_remote_code=trust_remote_code, output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model.path = {path!r}: {len(missing)} weights are not in its files ({missing[0]}, ...) and would be random; "
            "the download or the save is incomplete"
        )
    return model


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's and those of the model's generation config."""
    extra = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(extra if isinstance(extra, list) else [extra])}
    return tuple(sorted(i for i in ids if i is not None))


@torch.no_grad()
def check_head(policy: Policy, row: Row) -> float:
    """Largest difference between our log-probs and the model's own logits on a row; raises where the head does more than project.

    Some architectures scale or cap their logits after the projection; chunked log-probs would then be silently wrong.
    """
    ours_T, _ = policy(row, 1.0)
    logits_LV = policy.model(
        input_ids=row.ids_L[None], position_ids=row.positions_L[None], use_cache=False,
        packing=layout(row.spans, len(row.ids_L), row.ids_L.device),
    ).logits[0]  # fmt: skip
    theirs_T = logits_LV[row.sources_T].float().log_softmax(-1).gather(1, row.targets_T[:, None])[:, 0]
    difference = (ours_T - theirs_T).abs().max().item()
    rounding = 0.05 if torch.is_autocast_enabled(row.ids_L.device.type) else 1e-3
    if difference > rounding:
        raise ValueError(
            f"{type(policy.model).__name__}: log-probs from its hidden states differ from its own logits by {difference:.3f}; its head "
            "scales or caps logits, which this learner does not support"
        )
    return difference
