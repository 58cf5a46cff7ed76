"""The policy: model, tokenizer, and token log-probs over packed rows. The only shift by one lives in a row's `sources_T`.

Log-probs are those of the distribution that was sampled (logprobs.py); layers run on packed rows (attention.py), compiled on CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from rl import adapters
from rl.attention import PACKED, layout
from rl.logprobs import Cut, token_logprobs
from rl.records import Row
from rl.routing import Routing, biases, carried

ROOT = Path(__file__).resolve().parent.parent


class Policy(nn.Module):
    """A causal language model that scores packed rows. `forward(row, temperature)` -> (logprobs_T, entropy_T), fp32."""

    def __init__(self, model: Any, fp32_head: bool = False) -> None:
        super().__init__()
        self.model, self.fp32_head, self.compiled = model, fp32_head, False
        # Where weights are sharded over ranks, set by the learner: (names in state_dict, dtype) -> full tensors, all ranks helping.
        self.fetch: Callable[[Sequence[str], torch.dtype | None], Iterator[tuple[str, Tensor]]] | None = None
        self.routing: Routing | None = None  # of a mixture of experts, where the learner wants to replay or balance

    def forward(self, row: Row, temperature: float, top_p: float = 1.0, top_k: int = 0) -> tuple[Tensor, Tensor]:
        if self.routing:
            self.routing.force(row.experts_LMK)
        hidden_LH = self.model.base_model(
            input_ids=row.ids_L[None],
            position_ids=row.positions_L[None],
            use_cache=False,
            packing=layout(row.spans, len(row.ids_L), row.ids_L.device),
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        # Its weight is read here and not by its own forward: under FSDP the head belongs to the root's unit.
        hidden_TH = hidden_LH.index_select(0, row.sources_T).to(self._head_dtype(head.weight))
        cut = Cut(temperature, top_k, top_p)
        return token_logprobs(hidden_TH, head.weight, getattr(head, "bias", None), row.targets_T, cut, self.compiled)

    def _head_dtype(self, weight: Tensor) -> torch.dtype:
        if self.fp32_head:
            return torch.promote_types(weight.dtype, torch.float32)
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def layers(self) -> list[Any]:
        """The decoder's layers, in order."""
        return [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def compile_layers(self, backend: str = "inductor", lean: bool = False) -> None:
        """Compile each layer, and the passes over logits: one graph for all layers and all row lengths, made at the first row.

        `lean`: what costs little (norms, activations, casts of weights) is computed again in the backward pass instead of kept; with
        Qwen2.5-1.5B's shape that is 53 KiB of 76 a token and layer. The switch is one for the whole process.
        """
        torch._functorch.config.ban_recompute_materialized_backward = not lean
        for layer in self.layers():
            layer.compile(dynamic=True, backend=backend)
        self.compiled = True

    def checkpoint_layers(self, share: float) -> None:
        """Gradient checkpointing of this share of the layers, evenly spread."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for i, layer in enumerate(self.layers()):
            layer.gradient_checkpointing = int((i + 1) * share + 1e-9) > int(i * share + 1e-9)

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Named weights, tied ones once, cast to `dtype` for a sampler, and the routers' biases as they are; adapters are merged in."""
        if adapters.attached(self.model):
            yield from adapters.merged(self.model, self._fetched, dtype)
            yield from biases(self.model).items()
            return
        if self.fetch:
            yield from self.fetch(list(carried(self.model)), dtype)
            return
        for name, weight in self.model.named_parameters():
            yield name, weight.detach().to(dtype or weight.dtype)
        yield from biases(self.model).items()

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """The adapter's weights alone, named as peft saves them."""
        return adapters.adapter(self.model, self._fetched)

    @property
    def _fetched(self) -> adapters.Fetch | None:
        fetch = self.fetch
        return None if fetch is None else lambda names: fetch(names, None)


def graphs_compiled() -> int:
    """Graphs that torch.compile has made in this process; a number that goes on growing means that rows recompile."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] if "torch._dynamo" in sys.modules else 0


def resolve(path: str, what: str = "model.path") -> str:
    """A folder as given or under the repository; anything else is a hub name. `what` names the setting in a ValueError."""
    if not path:
        raise ValueError(f"{what} is empty: name a folder or a hub model, e.g. model.path=Qwen/Qwen2.5-0.5B")
    for folder in (Path(path), ROOT / path):
        if folder.is_dir():
            return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(f"{what} = {path!r}: no such folder, and not a hub name (owner/name)")
    return path


def _from_pretrained(kind: Any, path: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except Exception as error:  # transformers and the hub raise many kinds; the user needs one line
        raise ValueError(f"model.path = {path!r}: the {what} does not load: {why(error)}") from error


def why(error: Exception) -> str:
    """Transformers' reason for not loading something, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "custom code" in "".join(lines[:1]):
        return "it brings code of its own, which was not run; read that code, then set model.trust_remote_code=true"
    return lines[0][:240] if lines else type(error).__name__


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer, with an end-of-sequence token, or ValueError."""
    tokenizer = _from_pretrained(AutoTokenizer, resolve(path), "tokenizer", trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.path = {path!r}: the tokenizer has no end-of-sequence token, so no completion could end")
    return tokenizer


def save_model(model: Any, state: Mapping[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """As transformers saves it, with the weights `state` of `dtype`; the config says so too, or they would load as the model's own."""
    own = model.config.dtype
    model.save_pretrained(folder, state_dict=dict(state))
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    model.config.dtype = own


def load_model(
    path: str, *, dtype: torch.dtype, attention: str = PACKED, trust_remote_code: bool = False, quantization: Any = None
) -> Any:
    """A causal LM from a folder or the hub. Dropout is off: it would make the learner's log-probs noisy copies of the sampler's."""
    config = _from_pretrained(AutoConfig, resolve(path), "config", trust_remote_code=trust_remote_code)
    for name in ("attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop"):
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
    model, report = _from_pretrained(
        AutoModelForCausalLM, resolve(path), "model", config=config, dtype=dtype, attn_implementation=attention,
        trust_remote_code=trust_remote_code, output_loading_info=True,
        **({"quantization_config": quantization} if quantization else {}),
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
