"""Attention over packed rows: each completion attends to its prompt and to itself, causally; each prompt to itself.

One function, registered in transformers under the name PACKED, so that any decoder that hands keyword arguments through to its
attention runs on packed rows unchanged. Two paths, tested equal to the padded forward pass in outputs and gradients:
on CUDA `torch.nn.attention.varlen` over keys gathered by index (the prompt once a group), elsewhere SDPA block by block.
Axes: L positions of a row, H query heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from rl.records import Span

PACKED = "grpo_packed"


@dataclass(frozen=True)
class Block:
    """A prompt of P positions from `start` on with its G completions behind it, the longest of M tokens: they attend side by side."""

    start: int
    prompt: int  # P
    index_GM: Tensor  # int64, the row's position of each completion's tokens; beyond a completion's end any position
    inside_GM: Tensor  # bool, False beyond a completion's end
    mask_MK: Tensor  # bool, K = P + M: the whole prompt, and a completion's own tokens up to this one

    @property
    def max_k(self) -> int:
        return self.mask_MK.shape[1]


@dataclass(frozen=True)
class Varlen:
    """The same as segments for variable-length attention. Segment i has queries cu_q[i]:cu_q[i+1] and keys kv[cu_k[i]:cu_k[i+1]]."""

    cu_q: Tensor  # int32
    cu_k: Tensor  # int32
    kv: Tensor  # int64 positions: prompt, then the completion itself
    max_q: int
    max_k: int
    heads: str  # see _shared_heads


Layout = tuple[Block, ...] | Varlen


def layout(spans: Sequence[Span], length: int, device: torch.device) -> Layout:
    """How a row of `length` positions attends, in the form its device wants."""
    return _varlen(spans, device) if device.type == "cuda" else _blocks(spans, length, device)


def _groups(spans: Sequence[Span]) -> list[list[Span]]:
    groups: list[list[Span]] = []
    for span in spans:
        if groups and groups[-1][0].prompt_start == span.prompt_start:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _blocks(spans: Sequence[Span], length: int, device: torch.device) -> tuple[Block, ...]:
    blocks = []
    for group in _groups(spans):
        start, prompt = group[0].prompt_start, group[0].prompt_stop - group[0].prompt_start
        longest = max(span.stop - span.start for span in group)
        offset_M = torch.arange(longest)
        index_GM = torch.tensor([span.start for span in group])[:, None] + offset_M
        inside_GM = index_GM < torch.tensor([span.stop for span in group])[:, None]
        mask_MK = torch.cat([torch.ones(longest, prompt, dtype=torch.bool), offset_M[:, None] >= offset_M], 1)
        blocks.append(Block(start, prompt, index_GM.clamp(max=length - 1).to(device), inside_GM.to(device), mask_MK.to(device)))
    if spans[-1].stop != length:
        raise AssertionError("the spans do not cover the row")
    return tuple(blocks)


def _varlen(spans: Sequence[Span], device: torch.device) -> Varlen:
    lengths_q: list[int] = []
    lengths_k: list[int] = []
    kv: list[Tensor] = []
    for group in _groups(spans):
        prompt = torch.arange(group[0].prompt_start, group[0].prompt_stop)
        lengths_q.append(len(prompt))
        lengths_k.append(len(prompt))
        kv.append(prompt)
        for span in group:
            lengths_q.append(span.stop - span.start)
            lengths_k.append(len(prompt) + span.stop - span.start)
            kv += [prompt, torch.arange(span.start, span.stop)]

    def cumulative(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device=device, dtype=torch.int32)

    return Varlen(
        cumulative(lengths_q),
        cumulative(lengths_k),
        torch.cat(kv).to(device),
        max(lengths_q),
        max(lengths_k),
        _shared_heads(device),
    )


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    packing: Layout | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H, L, D], key [1, H_kv, L, D], value [1, H_kv, L, at most D] -> [1, L, H, as value]; `packing` comes from the model's
    forward call.

    ValueError where the architecture wants more than plain causal attention: dropping that would change log-probs silently.
    """
    if packing is None:
        raise ValueError(
            f"{type(module).__name__} did not hand the row layout to its attention: this architecture cannot learn from packed rows"
        )
    extra = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if sliding_window is not None and sliding_window < _longest(packing):
        extra.append(f"sliding_window = {sliding_window} below a sequence of {_longest(packing)} tokens")
    if extra:
        raise ValueError(f"{type(module).__name__} wants {', '.join(extra)}, which attention over packed rows does not do")
    width = value.shape[-1]
    if width < query.shape[-1]:  # latent attention (MLA): kernels want values as wide as keys, and zeros add nothing
        value = F.pad(value, (0, query.shape[-1] - width))
    if isinstance(packing, Varlen):
        return _varlen_attention(query, key, value, scaling, packing)[None, ..., :width], None
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    parts = [part for block in packing for part in _block_attention(query, key, value, scaling, block)]
    return torch.cat(parts)[None, ..., :width], None


def _block_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, block: Block) -> tuple[Tensor, Tensor]:
    """The block's prompt [P, H, D] and its completions' tokens [sum of lengths, H, D], in the row's order."""
    start, stop = block.start, block.start + block.prompt
    q, k, v = (x[:, :, start:stop] for x in (query, key, value))
    prompt = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    group = len(block.index_GM)
    # A key beyond a completion's end is seen by no token inside it, for it would stand later.
    own = [x[0].transpose(0, 1)[block.index_GM].transpose(1, 2) for x in (query, key, value)]
    k, v = (torch.cat([x.expand(group, -1, -1, -1), mine], 2) for x, mine in zip((k, v), own[1:], strict=True))
    answers = F.scaled_dot_product_attention(own[0], k, v, attn_mask=block.mask_MK, scale=scaling)
    return prompt[0].transpose(0, 1), answers.transpose(1, 2)[block.inside_GM]


def _longest(packing: Layout) -> int:
    return packing.max_k if isinstance(packing, Varlen) else max(b.max_k for b in packing)


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, packing: Varlen) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Under autocast an fp32 norm weight lifts queries and keys to fp32; flash attention wants them as the values are.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    k, v = _gathered(k, packing.kv), _gathered(v, packing.kv)
    if packing.heads == "repeat":
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    options = {"enable_gqa": True} if packing.heads == "option" else {}
    return varlen_attn(
        q.contiguous(), k, v, packing.cu_q, packing.cu_k, packing.max_q, packing.max_k,
        scale=scaling, window_size=(-1, 0), **options,
    )  # fmt: skip


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Rows by index. Through fp32, so that a prompt's gradient is summed over its completions in fp32; compiled it costs nothing."""
    return x.float().index_select(0, index).to(x.dtype)


@cache
def _shared_heads(device: torch.device) -> str:
    """How key heads are shared among query heads: "option" of the kernel's call, "native" without one, or "repeat" before it.

    torch 2.13 has the option. Before it, the kernel may do it all the same: it is asked, and its answer and gradient are compared.
    """
    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return "option"
    if device.type != "cuda":
        return "repeat"
    draw = torch.Generator(device).manual_seed(0)
    cu = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)
    q, key = (torch.randn(8, h, 64, device=device, dtype=torch.bfloat16, generator=draw) for h in (4, 2))
    found = []
    try:
        with torch.enable_grad(), torch.autocast("cuda", enabled=False):
            for repeat in (1, 2):
                k = key.detach().requires_grad_()
                kv = k.repeat_interleave(repeat, 1)
                out = varlen_attn(q, kv, kv, cu, cu, 5, 5, window_size=(-1, 0))
                found.append((out, *torch.autograd.grad(out.float().square().sum(), k)))
    except (RuntimeError, ValueError):
        return "repeat"
    same = all(torch.allclose(a.float(), b.float(), rtol=0.05, atol=0.05) for a, b in zip(*found, strict=True))
    return "native" if same else "repeat"


AttentionInterface.register(PACKED, packed_attention)
