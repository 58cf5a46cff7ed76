"""The variable-length attention kernel's op with dense arithmetic behind it, so that a CPU runs the code that is meant for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import varlen


def _segments(cu_q: Tensor, cu_k: Tensor) -> Iterator[tuple[slice, slice]]:
    q, k = cu_q.tolist(), cu_k.tolist()
    yield from ((slice(q[i], q[i + 1]), slice(k[i], k[i + 1])) for i in range(len(q) - 1))


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[H, N, M], causal and aligned to the end of the keys."""
    n, m = len(q), len(k)
    visible = torch.ones(n, m, dtype=torch.bool).tril(m - n)
    scores = torch.einsum("nhd,mhd->hnm", q.float(), k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    return scores.masked_fill(~visible, float("-inf"))


def forward(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *others):
    assert is_causal
    out, normaliser = torch.empty_like(q), q.new_empty((q.shape[1], len(q)), dtype=torch.float32)
    assert max_q == int((cu_q[1:] - cu_q[:-1]).max())
    assert max_k == int((cu_k[1:] - cu_k[:-1]).max())
    for a, b in _segments(cu_q, cu_k):
        scores = _scores(q[a], k[b], scale)
        values = v[b].float().repeat_interleave(q.shape[1] // k.shape[1], 1)
        out[a] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), values).to(q.dtype)
        normaliser[:, a] = scores.logsumexp(-1)
    return out, normaliser, torch.zeros(2, dtype=torch.uint64)


def backward(grad, q, k, v, out, normaliser, cu_q, cu_k, max_q, max_k, is_causal, rng, scale=None, window_size=None):
    made = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    repeat = q.shape[1] // k.shape[1]
    for a, b in _segments(cu_q, cu_k):
        p = (_scores(q[a], k[b], scale) - normaliser[:, a, None]).exp()
        g, keys, values = grad[a].float(), *(x[b].float().repeat_interleave(repeat, 1) for x in (k, v))
        slope = p * (torch.einsum("nhd,mhd->hnm", g, values) - (g * out[a].float()).sum(-1).t()[:, :, None])
        made[0][a] = (torch.einsum("hnm,mhd->nhd", slope, keys) * scale).to(q.dtype)
        by_query_head = torch.einsum("hnm,nhd->mhd", slope, q[a].float()) * scale, torch.einsum("hnm,nhd->mhd", p, g)
        for into, x in zip(made[1:], by_query_head, strict=True):
            into[b] = x.unflatten(1, (-1, repeat)).sum(2).to(into.dtype)
    return made


def register() -> None:
    """For the whole process; nothing else calls the op on a CPU, where torch has no kernel for it."""
    varlen._varlen_attn.register_kernel("cpu", forward)
    varlen._varlen_attn_backward.register_kernel("cpu", backward)
