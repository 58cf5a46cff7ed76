"""Token log-probs and entropies from hidden states, a chunk of the vocabulary projection at a time, forward and backward.

The log-probs are those of the distribution that was sampled: logits / temperature, cut to the top-k and the top-p of what is left
(as vLLM cuts them), reduced in fp32. Full logits [T, V] never exist: the forward pass keeps one number a token (the normaliser), the
backward pass makes each chunk's logits again (a lone chunk's are still there) and turns them in place into their own gradient,
  d log p(y) / d logit_v = (1[v = y] - p_v) / temperature,
so a chunk costs four matrix products and two passes over its logits. On CUDA those passes are compiled into one kernel each.
Axes: T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that exist at once. On a GPU a chunk must be long enough that the products by the vocabulary are near its peak rate.
CHUNK_ELEMENTS = {"cpu": 1 << 26, "cuda": 1 << 29}


@dataclass(frozen=True)
class Cut:
    """The distribution that was sampled: `Cut(temperature=0.7, top_k=50, top_p=0.9)`; first top-k, then top-p on what is left."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0

    @property
    def whole(self) -> bool:
        return self.top_k <= 0 and self.top_p >= 1


def token_logprobs(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, cut: Cut, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """log p(targets) and the entropy of each token's distribution, both [T] in fp32; the entropy carries no gradient.

    The product with `weight_VH` runs in the dtype of `hidden_TH`. A sampled token counts as kept whatever the cut says of it: the
    sampler's rounding may differ at the edge. Logits that fit one chunk are not made again.
    """
    return _TokenLogprobs.apply(hidden_TH, weight_VH, bias_V, targets_T, cut, compiled)


def chunks(tokens: int, vocabulary: int, device: str) -> list[slice]:
    """Token ranges of nearly equal length, each with at most CHUNK_ELEMENTS logits."""
    most = max(1, CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"]) // vocabulary)
    number = max(1, -(-tokens // most))
    return [slice(i * tokens // number, (i + 1) * tokens // number) for i in range(number)]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, cut: Cut, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        stats, _ = _kernels(compiled)
        device = hidden_TH.device.type
        temperature = hidden_TH.new_full((), cut.temperature, dtype=torch.float32)
        found: list[tuple[Tensor, Tensor, Tensor]] = []  # log-probs, entropies, normalisers of a chunk
        floors: list[Tensor | None] = []
        with torch.autocast(device, enabled=False):
            weight, bias = _cast(weight_VH, bias_V, hidden_TH.dtype)
            parts = chunks(len(targets_T), len(weight), device)
            for part in parts:
                logits_TV = torch.nn.functional.linear(hidden_TH[part], weight, bias)
                floors.append(None if cut.whole else floor(logits_TV, cut))
                found.append(stats(logits_TV, targets_T[part], temperature, floors[-1]))
        logprobs_T, entropy_T, normaliser_T = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T, normaliser_T, temperature)
        ctx.floors, ctx.compiled = floors, compiled
        ctx.logits_TV = logits_TV if len(parts) == 1 and any(ctx.needs_input_grad) else None  # the backward pass comes next
        ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, bias_V, targets_T, normaliser_T, temperature = ctx.saved_tensors
        _, slope = _kernels(ctx.compiled)
        device, dtype = hidden_TH.device.type, hidden_TH.dtype
        exact = torch.promote_types(weight_VH.dtype, torch.float32)  # weight gradients add up over chunks
        grad_hidden_TH = torch.empty_like(hidden_TH) if ctx.needs_input_grad[0] else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=exact) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=exact) if bias_V is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(device, enabled=False):
            weight, bias = _cast(weight_VH, bias_V, dtype)
            for part, floor_T in zip(chunks(len(targets_T), len(weight), device), ctx.floors, strict=True):
                logits_TV, ctx.logits_TV = ctx.logits_TV, None  # to be written over
                if logits_TV is None:
                    logits_TV = torch.nn.functional.linear(hidden_TH[part], weight, bias)
                scale_T = grad_T[part] / temperature
                slopes_TV = slope(logits_TV, targets_T[part], temperature, floor_T, normaliser_T[part], scale_T)
                if grad_hidden_TH is not None:
                    torch.mm(slopes_TV, weight, out=grad_hidden_TH[part])
                if grad_weight_VH is not None and exact == dtype:
                    grad_weight_VH.addmm_(slopes_TV.t(), hidden_TH[part])
                elif grad_weight_VH is not None:
                    grad_weight_VH.add_(slopes_TV.t() @ hidden_TH[part])
                if grad_bias_V is not None:
                    grad_bias_V.add_(slopes_TV.sum(0, dtype=exact))
        return grad_hidden_TH, _as(grad_weight_VH, weight_VH), _as(grad_bias_V, bias_V), None, None, None


def _cast(weight_VH: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _as(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if gradient is None or like is None else gradient.to(like.dtype)


def _stats(logits_TV: Tensor, targets_T: Tensor, temperature: Tensor, floor_T: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """log p(targets), entropy and log of the normaliser, all [T]."""
    scaled_TV = logits_TV.float() / temperature
    if floor_T is not None:
        # Not -inf: a token without mass must give 0 to the entropy, and -inf * 0 is not a number.
        scaled_TV = scaled_TV.masked_fill(~_kept(logits_TV, targets_T, floor_T), -1e30)
    normaliser_T = scaled_TV.logsumexp(-1)
    logprob_T = scaled_TV.gather(1, targets_T[:, None])[:, 0] - normaliser_T
    log_TV = scaled_TV.sub_(normaliser_T[:, None])
    return logprob_T, -log_TV.exp().mul_(log_TV).sum(-1), normaliser_T


def _slope(
    logits_TV: Tensor, targets_T: Tensor, temperature: Tensor, floor_T: Tensor | None, normaliser_T: Tensor, scale_T: Tensor
) -> Tensor:
    """scale * (1[v = target] - p_v), [T, V], written over the logits."""
    p_TV = (logits_TV.float() / temperature).sub_(normaliser_T[:, None]).exp_()
    if floor_T is not None:
        p_TV = p_TV.masked_fill(~_kept(logits_TV, targets_T, floor_T), 0.0)
    # In fp32 before the rounding: of a token that is nearly certain, 1 - p is what matters.
    if torch.compiler.is_compiling():  # one pass
        p_TV = p_TV - _is_target(logits_TV, targets_T).float()
    else:  # without a mask as large as the logits
        p_TV.scatter_add_(1, targets_T[:, None], torch.full_like(normaliser_T, -1.0)[:, None])
    return logits_TV.copy_(p_TV.mul_(-scale_T[:, None]))


def _is_target(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    return torch.arange(logits_TV.shape[1], device=logits_TV.device) == targets_T[:, None]


def _kept(logits_TV: Tensor, targets_T: Tensor, floor_T: Tensor) -> Tensor:
    return (logits_TV.float() >= floor_T[:, None]) | _is_target(logits_TV, targets_T)


def floor(logits_TV: Tensor, cut: Cut) -> Tensor:
    """The lowest logit (before the temperature) that the cut keeps, [T] in fp32; tokens that tie with it are kept too.

    A token is in the top p when the mass of the tokens above it is below p, so the first always is.
    """
    logits_TV = logits_TV.float()
    vocabulary = logits_TV.shape[1]
    floor_T = logits_TV.amin(-1)
    if 0 < cut.top_k < vocabulary:
        floor_T = logits_TV.topk(cut.top_k, dim=-1).values[:, -1]
    if cut.top_p < 1:
        sorted_TV = logits_TV.sort(dim=-1, descending=True).values
        p_TV = (sorted_TV / cut.temperature).masked_fill(sorted_TV < floor_T[:, None], float("-inf")).softmax(-1)
        above_TV = p_TV.cumsum(-1) - p_TV
        number_T = ((above_TV < cut.top_p) & (p_TV > 0)).sum(-1).clamp(min=1)
        floor_T = sorted_TV.gather(1, number_T[:, None] - 1)[:, 0]
    return floor_T


@cache
def _kernels(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (_ragged(_stats), _ragged(_slope)) if compiled else (_stats, _slope)


def _ragged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for any number of tokens, but for one vocabulary."""
    made = torch.compile(function)

    def call(*tensors: Tensor | None) -> Any:
        for tensor in tensors:
            if tensor is not None and tensor.ndim:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return made(*tensors)

    return call
