"""Log-probs of one packed row -> its part of the step's loss. Pure: nothing here knows config, device or rank.

Axes: T completion tokens of a row, S its samples. With r_t = exp(lp_t - old_t), A the advantage, and one weight w_t a token:

  loss   = sum_t w_t * (tis_t * policy_t + kl_coef * k3_t)
  policy grpo, dr_grpo, dapo   -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A)   PPO's clip, arXiv 1707.06347, eq. 7
         gspo                  the same, r_t replaced by exp(mean over the sample of lp - old), arXiv 2507.18071, eq. 5 to 7
         cispo                 -sg[min(r_t, 1 + clip_high)] A lp_t                     MiniMax-M1, arXiv 2506.13585, eq. 4, 5
  w_t    grpo, gspo            1 / (samples * length)      mean over samples of the mean over tokens, DeepSeekMath eq. 3
         dapo, cispo           1 / tokens                  every token alike, DAPO, arXiv 2503.14476, eq. 8
         dr_grpo               1 / (samples * max_tokens)  no bias by length, Dr. GRPO, arXiv 2503.20783
  tis_t  min(sg[exp(old_t - sampled_t)], cap)              the sampler is not quite the learner: importance weight, truncated
  k3_t   exp(ref_t - lp_t) - (ref_t - lp_t) - 1            Schulman's estimate of KL(policy || reference), never negative

What differs from the papers, and how TRL 1.16, against which loss and gradient are tested, has it:
 1. Clip-higher is two numbers, clip_low < clip_high (DAPO: 0.2 and 0.28), and is open to every loss. R1's clip of 10 fits too;
    gspo's ratio, a mean over the sample, varies far less: its paper clips at 3e-4 and 4e-4.
 2. The truncated weight multiplies the policy term only, not the KL, and is one number a token, for gspo too (as in TRL).
 3. k3 is as in DeepSeekMath (eq. 4) and R1: an unbiased value, but its gradient is on average that of KL(reference || policy).
    TRL multiplies k3 by r_t by default (`use_bias_correction_kl`, DeepSeek-V3.2, arXiv 2512.02556); the test turns it off.
 4. cispo has no lower bound (the paper sets it out of reach), so clip_low is not read. The upper is 1 + clip_high; TRL's
    epsilon_high is that sum. It bounds either sign of A, and so the metric counts both; TRL counts A > 0.
 5. A sample without a verdict has weight 0 and is in no count; nothing it holds, not even NaN, gets through. TRL counts it.
 6. `samples` and `tokens` are counts of the whole step over all ranks, so rows add up to one loss however they are split.
    TRL averages the means of micro-batches for grpo, which is the same only if these are of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl.records import Row


class Policy(NamedTuple):
    """The policy term of every token, and what its clip did."""

    loss_T: Tensor
    ratio_T: Tensor  # before any clipping; gspo: the sample's, at each of its tokens
    low_T: Tensor  # bool: the lower clip took the gradient
    high_T: Tensor  # bool: the upper clip took the gradient (cispo: bounded it)


def clipped(
    logprobs_T: Tensor,
    old_T: Tensor,
    advantages_T: Tensor,
    samples_T: Tensor,
    lengths_S: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Policy:
    """PPO's clipped surrogate with one ratio a token. Gradient by lp_t: -r_t A, and 0 where clipped."""
    return _surrogate(torch.exp(logprobs_T - old_T), advantages_T, clip_low, clip_high)


def gspo(
    logprobs_T: Tensor,
    old_T: Tensor,
    advantages_T: Tensor,
    samples_T: Tensor,
    lengths_S: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Policy:
    """The clipped surrogate with one ratio a sample, the geometric mean of its tokens'; it is clipped as a whole or not at all.

    With every token of a sample weighted alike (w) the gradient by each lp_t is -w s A.
    """
    sums_S = torch.zeros(lengths_S.shape, dtype=logprobs_T.dtype, device=logprobs_T.device)
    sums_S = sums_S.index_add(0, samples_T, logprobs_T - old_T)
    return _surrogate(torch.exp(sums_S / lengths_S)[samples_T], advantages_T, clip_low, clip_high)


def cispo(
    logprobs_T: Tensor,
    old_T: Tensor,
    advantages_T: Tensor,
    samples_T: Tensor,
    lengths_S: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Policy:
    """REINFORCE weighted by the bounded ratio: no token loses its gradient. Gradient by lp_t: -min(r_t, 1 + clip_high) A."""
    ratio_T = torch.exp(logprobs_T - old_T).detach()
    high_T = (ratio_T > 1 + clip_high) & (advantages_T != 0)
    loss_T = -ratio_T.clamp(max=1 + clip_high) * advantages_T * logprobs_T
    return Policy(loss_T, ratio_T, torch.zeros_like(high_T), high_T)


LOSSES: dict[str, Callable[..., Policy]] = {"grpo": clipped, "dr_grpo": clipped, "dapo": clipped, "gspo": gspo, "cispo": cispo}
AGGREGATE = {"grpo": "sample", "gspo": "sample", "dapo": "token", "cispo": "token", "dr_grpo": "budget"}


def kl_k3(logprobs_T: Tensor, ref_T: Tensor) -> Tensor:
    """exp(ref - lp) - (ref - lp) - 1, per token, in nats. Gradient by lp: 1 - exp(ref - lp)."""
    _same_shape(logprobs_T=logprobs_T, ref_T=ref_T)
    log_ratio_T = ref_T - logprobs_T
    return torch.exp(log_ratio_T) - log_ratio_T - 1


def token_weights(aggregate: str, lengths_S: Sequence[int], *, samples: int, tokens: int, max_tokens: int) -> list[float]:
    """For each sample the weight of each of its tokens, so that sum_T weight * loss over all rows is the loss of the step.

    `samples` and `tokens` count what is not masked in the whole step, over all rows and ranks; `max_tokens` is the budget.

    >>> token_weights("sample", [2, 5], samples=2, tokens=7, max_tokens=10)
    [0.25, 0.1]
    """
    for name, count in {"samples": samples, "tokens": tokens, "max_tokens": max_tokens}.items():
        if count < 1:
            raise ValueError(f"{name} is {count}: nothing to take a mean over; skip an update that has no unmasked sample")
    if any(length < 1 for length in lengths_S):
        raise ValueError(f"lengths {list(lengths_S)} hold an empty completion: a sample has at least one token")
    if aggregate == "sample":
        return [1 / (samples * length) for length in lengths_S]
    if aggregate == "token":
        return [1 / tokens] * len(lengths_S)
    if aggregate == "budget":
        return [1 / (samples * max_tokens)] * len(lengths_S)
    raise ValueError(f"aggregate {aggregate!r} is unknown: use sample, token or budget")


def policy_loss(
    name: str, logprobs_T: Tensor, row: Row, *, clip_low: float, clip_high: float, kl_coef: float, tis_cap: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The row's part of the step's loss (a scalar; rows add up) and its metrics.

    `name` is a key of LOSSES, `logprobs_T` the policy's log-probs with gradient, `tis_cap` the bound of the sampler's
    correction (None: off). Metrics are detached scalars: sums over the unmasked tokens of `tokens` (1 each), `ratio`,
    `clip_low`, `clip_high`, `tis`, `mismatch_abs` (|old - sampled| in nats, before any truncation) and, where the row has a
    reference, `kl`; but `mismatch_max` is a maximum.
    ValueError for an unknown name, a KL without reference, and shapes that would broadcast.
    """
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is unknown: use one of {', '.join(LOSSES)}")
    if kl_coef and row.ref_T is None:
        raise ValueError(
            f"kl_coef is {kl_coef} but the row has no reference log-probs: load a reference model or set kl_coef to 0"
        )
    _check_row(logprobs_T, row)
    keep_T = row.weights_T > 0
    logprobs_T, sampled_T, advantages_T = (_kept(x, keep_T) for x in (logprobs_T, row.sampled_T, row.advantages_T))
    old_T = logprobs_T.detach() if row.old_T is None else _kept(row.old_T, keep_T)

    terms = LOSSES[name](logprobs_T, old_T, advantages_T, row.samples_T, row.lengths_S, clip_low=clip_low, clip_high=clip_high)
    mismatch_T = old_T - sampled_T
    tis_T = torch.ones_like(mismatch_T) if tis_cap is None else torch.exp(mismatch_T).clamp(max=tis_cap)
    loss_T = terms.loss_T * tis_T
    parts_T = {
        "tokens": keep_T,
        "ratio": terms.ratio_T,
        "clip_low": terms.low_T,
        "clip_high": terms.high_T,
        "tis": tis_T,
        "mismatch_abs": mismatch_T.abs(),
    }
    if row.ref_T is not None:
        parts_T["kl"] = kl_k3(logprobs_T, _kept(row.ref_T, keep_T))
        loss_T = loss_T + kl_coef * parts_T["kl"]
    metrics = {key: _kept(part_T.detach().to(logprobs_T.dtype), keep_T).sum() for key, part_T in parts_T.items()}
    metrics["mismatch_max"] = mismatch_T.abs().max()
    return (row.weights_T * loss_T).sum(), metrics


def _surrogate(ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float) -> Policy:
    bounded_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    loss_T = -torch.min(ratio_T * advantages_T, bounded_T * advantages_T)
    low_T = (ratio_T < 1 - clip_low) & (advantages_T < 0)
    high_T = (ratio_T > 1 + clip_high) & (advantages_T > 0)
    return Policy(loss_T, ratio_T, low_T, high_T)


def _kept(x_T: Tensor, keep_T: Tensor) -> Tensor:
    """Zero where masked: multiplying by a weight of 0 would let NaN and infinity through."""
    return torch.where(keep_T, x_T, torch.zeros_like(x_T))


def _check_row(logprobs_T: Tensor, row: Row) -> None:
    _same_shape(
        logprobs_T=logprobs_T,
        old_T=row.old_T,
        ref_T=row.ref_T,
        sampled_T=row.sampled_T,
        advantages_T=row.advantages_T,
        weights_T=row.weights_T,
        samples_T=row.samples_T,
    )
    if row.lengths_S.dim() != 1:
        raise ValueError(f"lengths_S has shape {tuple(row.lengths_S.shape)}: it must have one axis, S")
    if logprobs_T.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"log-probs of type {logprobs_T.dtype} are too coarse for a ratio near 1: compute them in float32")


def _same_shape(**tensors: Tensor | None) -> None:
    """One axis, one length: (T,) with (T, 1) would broadcast to (T, T) without a word."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items() if x is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"shapes differ or have more than the axis T: {shapes}")
