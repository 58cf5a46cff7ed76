"""Mixture of experts, the arithmetic: load of experts, its spread, and balance without an auxiliary loss. Pure functions of tensors.

A router gives each token its K of E experts by score + bias; the bias takes part in the choice alone, never in an expert's weight. After
an update, with c_i the tokens that expert i of a layer was given and c their mean over the layer's experts,
  b_i <- b_i + rate * sign(c - c_i)
(DeepSeek-V3, arXiv 2412.19437, section 2.1.2; rate = 0.001 there). The spread of a layer's load is its maximal violation,
  MaxVio = max_i c_i / c - 1
(Wang et al., arXiv 2408.15664), 0 for an even load and E / K - 1 when all tokens go to the same K.
What differs from the paper: a token counts where the loss does, once for each token that the update learned from. So the load is the same
whatever the packing, the split into rows or the number of ranks; a prompt counts by its last position only.
Axes: T tokens, M layers with experts, K experts of a token, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def load(chosen_TMK: Tensor, counted_T: Tensor, experts: int) -> Tensor:
    """Tokens by layer and expert [M, E] in float64; `counted_T` says which tokens count.

    >>> load(torch.tensor([[[0, 2]], [[0, 1]], [[1, 2]]]), torch.tensor([True, True, False]), 4)
    tensor([[2., 1., 1., 0.]], dtype=torch.float64)
    """
    layers, k = chosen_TMK.shape[1:]
    flat = (chosen_TMK.long() + experts * torch.arange(layers, device=chosen_TMK.device)[:, None]).flatten()
    counts = torch.zeros(layers * experts, dtype=torch.float64, device=chosen_TMK.device)
    # Not bincount: on a GPU the host would wait for it.
    counts.index_add_(0, flat, counted_T.double().repeat_interleave(layers * k))
    return counts.view(layers, experts)


def violation(load_ME: Tensor) -> Tensor:
    """MaxVio of each layer [M]; 0 where there was no token.

    >>> violation(torch.tensor([[2.0, 2.0], [3.0, 1.0], [0.0, 0.0]]))
    tensor([0.0000, 0.5000, 0.0000])
    """
    mean_M = load_ME.mean(-1)
    return torch.where(mean_M > 0, load_ME.amax(-1) / mean_M.clamp(min=1e-30) - 1, torch.zeros_like(mean_M))


def rebalanced(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """The bias after an update whose tokens were shared out as `load_E`.

    >>> rebalanced(torch.zeros(3), torch.tensor([4.0, 2.0, 0.0]), 0.5)
    tensor([-0.5000,  0.0000,  0.5000])
    """
    return bias_E + rate * torch.sign(load_E.mean() - load_E).to(bias_E.dtype)


def same_choice(ours_TMK: Tensor, theirs_TMK: Tensor) -> Tensor:
    """Whether both chose the same set of experts, [T, M]; their order does not count."""
    return (ours_TMK.long().sort(-1).values == theirs_TMK.long().sort(-1).values).all(-1)
