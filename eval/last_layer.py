"""A decoder of which only some positions are asked for: its last layer is computed at these alone.

Every layer below must know all positions, for the next one attends to them; in the last one keys and values of all are needed, but
queries, and the feed-forward part, only where something is read. With four layers and prompts of 2,000 tokens that is a fifth of the
work. Where a model is built otherwise (no `layers[-1].mlp`, no `layer_idx`), and on CUDA, everything is computed.
Axes: L positions of a row, N positions asked for, H query heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from rl.attention import Varlen, layout, packed_attention
from rl.policy import load_model
from rl.records import Span

ASKED = "grpo_packed_asked"


@dataclass(frozen=True)
class Asked:
    """What the last layer has to compute."""

    layer: int  # its index
    positions_N: Tensor  # int64
    mask_NL: Tensor  # bool: what each of them attends to


def asked(spans: Sequence[Span], positions_N: Tensor, length: int, layer: int) -> Asked:
    """Positions in prompts and completions of a packed row: a prompt's sees the prompt up to itself, a completion's its own too."""
    mask_NL = torch.zeros(len(positions_N), length, dtype=torch.bool)
    for n, at in enumerate(positions_N.tolist()):
        span = next(s for s in spans if s.start <= at < s.stop or s.prompt_start <= at < s.prompt_stop)
        if at >= span.start:
            mask_NL[n, span.start : at + 1] = True
        mask_NL[n, span.prompt_start : min(span.prompt_stop, at + 1)] = True
    return Asked(layer, positions_N, mask_NL)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **others: Any
) -> tuple[Tensor, None]:
    """query [1, H, L, D] -> [1, L, H, D], zero where nothing is asked for."""
    wanted: Asked | None = others.pop("asked", None)
    last = wanted is not None and getattr(module, "layer_idx", None) == wanted.layer and others.get("sliding_window") is None
    if wanted is None or not last or isinstance(others["packing"], Varlen):
        return packed_attention(module, query, key, value, mask, scaling, **others)
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    found = F.scaled_dot_product_attention(query[:, :, wanted.positions_N], key, value, attn_mask=wanted.mask_NL, scale=scaling)
    out = query.new_zeros(query.shape)
    out[:, :, wanted.positions_N] = found
    return out.transpose(1, 2), None


@dataclass(frozen=True)
class Packed:
    """A packed row as lists, and what is read from it: targets[i] as the token after position sources[i]."""

    ids: Sequence[int]
    positions: Sequence[int]
    spans: Sequence[Span]
    sources: Sequence[int]
    targets: Sequence[int]


class _OnlyAsked(nn.Module):
    """A position-wise module that computes `positions_N` alone, all where that is None."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.positions_N: Tensor | None = None

    def forward(self, hidden_1LE: Tensor) -> Tensor:
        if self.positions_N is None:
            return self.inner(hidden_1LE)
        out = torch.zeros_like(hidden_1LE)
        out[:, self.positions_N] = self.inner(hidden_1LE[:, self.positions_N])
        return out


class Reader:
    """Log-probs at some positions of packed rows, by a causal language model of its own, loaded with attention ASKED."""

    def __init__(self, path: str, device: torch.device, trust_remote_code: bool = False) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = load_model(path, dtype=dtype, attention=ASKED, trust_remote_code=trust_remote_code).to(device).eval()
        self.model, self.device, self.mlp = model, device, None
        layers = getattr(model.base_model, "layers", None)
        if device.type == "cpu" and layers and isinstance(getattr(layers[-1], "mlp", None), nn.Module):
            self.last, self.mlp = len(layers) - 1, _OnlyAsked(layers[-1].mlp)
            layers[-1].mlp = self.mlp

    @torch.inference_mode()
    def __call__(self, packed: Packed) -> list[float]:
        """log p of each target, nats."""
        unique_N, inverse_T = torch.tensor(packed.sources, device=self.device).unique(return_inverse=True)
        trimmed: dict[str, Any] = {}
        if self.mlp is not None:
            self.mlp.positions_N = unique_N
            trimmed = {"asked": asked(packed.spans, unique_N, len(packed.ids), self.last)}
        logits_NV = self.model(
            input_ids=torch.tensor([packed.ids], device=self.device),
            position_ids=torch.tensor([packed.positions], device=self.device),
            use_cache=False, logits_to_keep=unique_N, packing=layout(packed.spans, len(packed.ids), self.device), **trimmed,
        ).logits[0]  # fmt: skip
        logprobs_NV = logits_NV.float().log_softmax(-1)
        return logprobs_NV[inverse_T, torch.tensor(packed.targets, device=self.device)].tolist()


AttentionInterface.register(ASKED, attention)
