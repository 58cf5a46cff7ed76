"""The routers of a mixture-of-experts policy: which experts each token went to, and routing replay.

Sampler and learner compute the same router with other kernels, and a token whose K-th and next score are close may go to other experts
in each: its log-prob then differs by far more than rounding. In replay the learner takes the experts that the sampler chose, and weighs
them by its own scores of these, so that the router learns:
  g_i = s_i / sum of s_j over the replayed j  (times the model's scale; without the sum where the model does not normalise)
(rollout routing replay, "R3": Ma et al., arXiv 2510.11370; routing replay of an older policy: GSPO, arXiv 2507.18071, section 5.3).

What is replayed, and what is not:
1. Every position of a row whose experts the sampler told (Completion.experts): those of the answer, and those of the prompt as the first
   of its samples in the row had them. A prompt's samples share its keys in the learner; in a sampler they do too (prefix cache), or differ
   by rounding.
2. Not the last token of an answer, which never goes through the sampler and predicts nothing: it is routed by the learner.
3. Not the reference model: it is another router.
4. A sample that new weights came into keeps the experts of its last computation.
Axes: L positions of a row, M layers with experts, K experts of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl import experts
from rl.records import Row

BIAS = "e_score_correction_bias"  # DeepSeek-V3's name for what balances the load


class Router:
    """One router of a transformers model: its forward pass is run outside autocast, recorded, and its choice replaced when told to."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module, self.inner = name, module, module.forward
        self.forced_LK: Tensor | None = None  # -1: as the router chooses
        self.chosen_LK: Tensor | None = None
        self.record: list[Tensor] | None = None  # the choices of one forward pass after another, while they are kept
        self._check()
        module.forward = self.forward

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, BIAS, None)

    # A choice replaced in the middle of a compiled layer is a break in its graph, not a recompilation for each row.
    @torch.compiler.disable(recursive=True)
    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [L, E], weights [L, K], experts [L, K]); in bf16 close scores would be equal, so fp32 under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(torch.promote_types(hidden.dtype, self.module.weight.dtype))
            logits, weights, chosen = self.inner(hidden)
            if self.forced_LK is not None:
                chosen = torch.where(self.forced_LK < 0, chosen, self.forced_LK)
                weights = self._weights(logits, chosen).to(weights.dtype)
        self.chosen_LK = chosen.detach()
        if self.record is not None:
            self.record.append(self.chosen_LK)
        return logits, weights, chosen

    def _weights(self, logits: Tensor, chosen: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = logits.sigmoid() if self.bias is not None else logits.softmax(-1)
        weights = scores.gather(1, chosen)
        if getattr(self.module, "norm_topk_prob", False):
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * getattr(self.module, "routed_scaling_factor", 1.0)

    @torch.no_grad()
    def _check(self) -> None:
        """That `_weights` is this router's formula. Raises ValueError."""
        draw, shape = torch.Generator().manual_seed(0), self.module.weight.shape
        # Weights of our own: of several ranks all but the first may not have read the model's yet.
        made = {"weight": torch.randn(shape, generator=draw)} | ({} if self.bias is None else {BIAS: torch.zeros(shape[0])})
        try:
            logits, weights, chosen = torch.func.functional_call(self.module, made, torch.randn(4, shape[1], generator=draw))
            known = torch.allclose(self._weights(logits, chosen), weights, rtol=1e-4)
        except (TypeError, ValueError):  # it gives something else
            known = False
        if not known:
            raise ValueError(
                f"{type(self.module).__name__} ({self.name}) weighs experts by a formula that routing replay does not know; "
                "set model.routing_replay=false and learn.balance_rate=0"
            )


class Routing:
    """All routers of a model in the order of its layers."""

    def __init__(self, routers: list[Router]) -> None:
        self.routers = routers
        module = routers[0].module
        self.layers, self.k, self.experts = len(routers), int(module.top_k), int(module.num_experts)

    @classmethod
    def of(cls, model: nn.Module) -> Routing | None:
        """The routers of `model`, from here on under control; None for a dense model. Raises ValueError."""
        found = [(name, m) for name, m in model.named_modules() if is_router(m)]
        return cls([Router(name, m) for name, m in found]) if found else None

    def force(self, experts_LMK: Tensor | None) -> None:
        """What the next forward passes replay; None: nothing."""
        for i, router in enumerate(self.routers):
            router.forced_LK = None if experts_LMK is None else experts_LMK[:, i].long()

    def chosen(self) -> Tensor:
        """The experts of the last forward pass, [L, M, K]."""
        return torch.stack([r.chosen_LK for r in self.routers if r.chosen_LK is not None], 1)

    def record(self) -> None:
        """Keep the choices of all forward passes until `recorded`."""
        for router in self.routers:
            router.record = []

    def recorded(self, batch: int) -> np.ndarray:
        """What was kept, of `batch` sequences that went forward together: int16 [batch, positions, M, K]."""
        layers = []
        for router in self.routers:
            steps, router.record = router.record or [], None
            layers.append(torch.cat([step.view(batch, -1, self.k) for step in steps], 1))
        return torch.stack(layers, 2).to("cpu", torch.int16).numpy()

    def check(self, row: Row) -> None:
        """Whether a row's experts can be this model's. Raises ValueError."""
        told = row.experts_LMK
        if told is None:
            return
        layers, k = told.shape[1:]
        largest = int(told.max())
        if (layers, k) != (self.layers, self.k) or largest >= self.experts:
            raise ValueError(
                f"the samples name experts of {layers} layers, {k} of a token, up to number {largest}; the model has {self.layers} layers "
                f"with {self.k} of {self.experts}: they were sampled from another one; sample anew, or set model.routing_replay=false"
            )

    def load(self, row: Row) -> Tensor:
        """Tokens by layer and expert in the last forward pass over `row`, [M, E]: those that its loss counts."""
        return experts.load(self.chosen().index_select(0, row.sources_T), row.weights_T > 0, self.experts)

    def told(self, row: Row) -> Tensor:
        """Which of a row's tokens count and were routed by the sampler, [T]."""
        assert row.experts_LMK is not None
        return (row.weights_T > 0) & (row.experts_LMK.index_select(0, row.sources_T)[:, 0, 0] >= 0)

    def agreement(self, row: Row) -> Tensor:
        """Number of counted (token, layer) pairs in which the last forward pass chose the sampler's experts."""
        assert row.experts_LMK is not None
        ours, theirs = (x.index_select(0, row.sources_T) for x in (self.chosen(), row.experts_LMK))
        return (experts.same_choice(ours, theirs) & self.told(row)[:, None]).sum()

    @torch.no_grad()
    def rebalance(self, load_ME: Tensor, rate: float) -> None:
        """One update of the biases (experts.py); routers without one stay as they are."""
        for router, load_E in zip(self.routers, load_ME, strict=True):
            if (bias := router.bias) is not None:
                bias.copy_(experts.rebalanced(bias, load_E, rate))


def is_router(module: nn.Module) -> bool:
    """Whether a module is a top-k router as transformers 5 builds them: (logits, weights, experts) from a matrix of its own."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__.lower().endswith("router")
    return named and hasattr(module, "top_k") and hasattr(module, "num_experts") and isinstance(weight, nn.Parameter)


def mixture(config: Any) -> bool:
    """Whether a transformers config is that of a mixture of experts."""
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    return any(getattr(config.get_text_config(), name, None) for name in names)


def biases(model: nn.Module) -> dict[str, Tensor]:
    """The routers' biases by name: buffers, but as much part of the policy as its weights."""
    return {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] == BIAS}


def carried(model: nn.Module) -> dict[str, Tensor]:
    """What a sampler needs of a model: its parameters, and the routers' biases after them."""
    return dict(model.named_parameters()) | biases(model)


class Balance:
    """The load of a policy's experts over an update, the biases that follow it, and how far own routing is from the replayed one.

    On several ranks all of it is over the rows of all ranks. Axes: M layers with experts, E experts.
    """

    def __init__(self, routing: Routing, rate: float, acc: Any) -> None:
        self.routing, self.rate, self.acc = routing, rate, acc
        self.load_ME = self._zeros()
        self.spreads: list[Tensor] = []  # MaxVio by layer of each update of this step
        self.compared: Tensor | None = None

    def _zeros(self) -> Tensor:
        return torch.zeros(self.routing.layers, self.routing.experts, dtype=torch.float64, device=self.acc.device)

    def count(self, row: Row) -> None:
        """After a forward pass that is learned from."""
        self.load_ME += self.routing.load(row)

    def update(self) -> None:
        """After an optimiser's step."""
        load_ME = self.acc.reduce(self.load_ME, "sum")
        self.load_ME = self._zeros()
        self.spreads.append(experts.violation(load_ME))
        if self.rate:
            self.routing.rebalance(load_ME, self.rate)

    @torch.no_grad()
    def compare(self, row: Row, logprobs: Callable[[Row], Tensor]) -> None:
        """One row of a step with the sampler's experts and with the learner's own, both under the weights that sampled it."""
        if row.experts_LMK is None:  # this rank's row has none: it takes part in the passes
            self.compared = torch.zeros(4, dtype=torch.float64, device=self.acc.device)
            logprobs(row), logprobs(row)
            return
        told_T = self.routing.told(row)
        own_T = logprobs(replace(row, experts_LMK=None))
        agreed = self.routing.agreement(row)
        sums = [told_T.sum() * self.routing.layers, agreed]
        for logprobs_T in (own_T, logprobs(row)):
            sums.append(((logprobs_T - row.sampled_T).abs() * told_T).sum() * self.routing.layers)
        self.compared = torch.stack([x.double() for x in sums])

    def numbers(self) -> dict[str, float]:
        """Of a step: MaxVio, mean over layers and that of the worst layer, mean over updates; where experts were replayed, the share of
        (token, layer) choices that the learner would have made too, and the mean |log-prob difference| to the sampler in nats over one
        row, with the learner's own experts and with the sampler's."""
        spread_M = torch.stack(self.spreads).mean(0)
        self.spreads = []
        made = {"load_violation": float(spread_M.mean()), "load_violation_max": float(spread_M.max())}
        if self.compared is not None:
            told, agreed, own, replayed = self.acc.reduce(self.compared, "sum").tolist()
            self.compared = None
            if told:
                made["routing_agreement"] = agreed / told
                made |= {"mismatch_own_experts": own / told, "mismatch_replayed": replayed / told}
        return made
