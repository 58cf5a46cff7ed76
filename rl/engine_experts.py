"""Mixture of experts and latent attention (MLA) inside vLLM: which experts its routers chose, and weights that arrive.

Who tells the experts: on CUDA vLLM itself (`enable_return_routed_experts`, in the outputs that its scheduler makes: 0.31 those of each
step, older ones all when a sample ends). On a CPU, where that option needs a model runner that does not run there, its routers are
listened to step by step (`Listener`); without prefix caching, so that every position is computed where it is listened to.
What differs from vLLM's own use:
1. On a CPU its experts' matrices are packed at the start into a private layout, where no update would reach them: they are kept plain.
2. On a CPU its rotary kernel takes heads apart that lie side by side only: latent attention's do not, and got wrong positions.
3. On a CPU attention runs over whole keys and values (VLLM_MLA_DISABLE): its latent kernel knows one size.
4. Latent attention holds products of its weights beside them (W_UV, W_UK_T): they are made again after each update, and are no weights.
5. Experts' matrices are taken apart on the way in: transformers has those of a layer in one, vLLM's loader wants each by its name.
What is relied on in vLLM 0.31: modules with `router.set_capture_fn` and `layer_id`; `scheduler_output.num_scheduled_tokens`, the rows of a
step in the order of `model_output.req_id_to_index`.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl.sampler import Weights

DERIVED = ("W_UV", "W_UK_T")  # parameters of vLLM's that are no weights


def options(cpu: bool) -> dict[str, bool]:
    """What vLLM must be started with so that it tells the experts."""
    if cpu:
        return {"enable_prefix_caching": False, "async_scheduling": False}
    if importlib.util.find_spec("vllm.config.aux_output"):  # 0.31: its older model runner does not tell them
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    return {"enable_return_routed_experts": True}


def keep_plain() -> None:
    """On a CPU, before a model is made: experts' matrices as they are loaded, and rotary positions right for any strides."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    if getattr(RotaryEmbedding.forward_cpu, "grpo", False):
        return
    inner = RotaryEmbedding.forward_cpu

    def rotary(self: Any, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
        return (self.forward_native if query.dim() == 3 else partial(inner, self))(positions, query, key)

    rotary.grpo = True  # type: ignore[attr-defined]
    RotaryEmbedding.forward_cpu = rotary
    CPUUnquantizedExperts.process_weights_after_loading = lambda self, layer: None
    CPUUnquantizedExperts.apply = _apply


def _apply(
    self: Any, output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor, activation: Any,
    *others: Any, **named: Any,
) -> None:  # fmt: skip
    """vLLM's call: output [T, H] = sum over a token's experts of weight * w2 (silu(gate x) * up x), w1 = [gate; up]."""
    if activation.value != "silu":
        raise ValueError(f"experts with {activation.value} on a CPU: only silu is known here; set rollout.sampler=transformers")
    output.zero_()
    for expert in topk_ids.unique().tolist():
        token, slot = torch.where(topk_ids == expert)
        gate, up = F.linear(hidden_states[token], w1[expert]).chunk(2, -1)
        output.index_add_(0, token, F.linear(F.silu(gate) * up, w2[expert]) * topk_weights[token, slot, None])


class Listener:
    """The experts of each step of an engine in this process. Axes: N rows of a step, M layers with experts, K experts of a token."""

    def __init__(self, model: nn.Module) -> None:
        self.steps: deque[list[Tensor]] = deque()  # by layer, [N, K] each: of forward passes whose result is not taken yet
        routers = routed(model)
        for i, runner in enumerate(routers):
            runner.router.set_capture_fn(partial(self._heard, i))

    def _heard(self, layer: int, chosen_NK: Tensor) -> None:
        if layer == 0:
            self.steps.append([])
        self.steps[-1].append(chosen_NK.to(torch.int16))

    def take(self, scheduled: Mapping[str, int], rows: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The oldest step's experts by request, int16 [its tokens, M, K]; `rows` are the requests' places in it."""
        if not self.steps or not scheduled:
            return {}
        chosen_NMK = torch.stack(self.steps.popleft(), 1).numpy()
        made, at = {}, 0
        for name in sorted(scheduled, key=lambda name: rows[name]):
            made[name] = chosen_NMK[at : at + scheduled[name]]
            at += scheduled[name]
        return made


def routed(model: nn.Module) -> list[Any]:
    """vLLM's modules with experts, in the order of the layers."""
    return [m for m in model.modules() if hasattr(m, "layer_id") and hasattr(getattr(m, "router", None), "set_capture_fn")]


def layers(model: nn.Module) -> list[int]:
    """Numbers of the layers with experts: vLLM's own answer has a place for every layer."""
    return [int(m.layer_id) for m in routed(model)]


def assembled(pieces: list[tuple[int, np.ndarray]], positions: int) -> np.ndarray | None:
    """(first position, experts of the positions from there on) in the order they were computed -> int16 [positions, M, K]; what was
    computed twice is as it was the last time, -1 what never was. None without pieces."""
    if not pieces:
        return None
    made = np.full((positions, *pieces[0][1].shape[1:]), -1, np.int16)
    for start, rows in pieces:
        part = made[start : start + len(rows)]
        part[:] = rows[: len(part)]
    return made


def apart(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Each expert's matrices under the names that checkpoints give them."""
    for name, weight in weights:
        prefix, found, part = name.rpartition(".experts.")
        if not found or part not in ("gate_up_proj", "down_proj"):
            yield name, weight
            continue
        for i, one in enumerate(weight):
            halves = zip(("gate_proj", "up_proj"), one.chunk(2), strict=True) if part == "gate_up_proj" else [(part, one)]
            for kind, matrix in halves:
                yield f"{prefix}.experts.{i}.{kind}.weight", matrix


def derive(model: nn.Module) -> None:
    """After an update: make again what latent attention holds beside its weights."""
    for module in model.modules():
        if hasattr(module, DERIVED[0]) and hasattr(module, "process_weights_after_loading"):
            module.process_weights_after_loading(getattr(module, DERIVED[0]).dtype)


def held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of vLLM's model."""
    return ((name, p) for name, p in model.named_parameters() if name.rpartition(".")[2] not in DERIVED)
