"""Weights into an engine that is spread over several processes (`engine.tensor_parallel_size` > 1): each rank loads its part by itself.

The engine's ranks are processes of vLLM's. What is sent to them is a method's name and plain data, never a function: they open the same
shared-memory window as rollout workers do (transfer.py), and load from it bucket by bucket. vLLM takes `Ranks` as `worker_extension_cls`,
so its methods are those of each rank's worker.

What each rank is given is fingerprinted where it is given (a rank holds slices, some of them twice, so what it holds has no sum to
compare); that it was put in the right place is what the canaries show.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rl import engine_experts, transfer
from rl.sampler import Weights, fingerprint

EXTENSION = "rl.engine_ranks.Ranks"


def keep_linear_plain() -> None:
    """CPU vLLM packs weights into a private layout at start, where no update reaches them: keep them as they are."""
    from vllm.model_executor.layers import utils

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain
    engine_experts.keep_plain()


if "vllm.v1.worker.worker_base" in sys.modules and not torch.cuda.is_available():  # we are in a rank, before its model is made
    keep_linear_plain()


class Ranks:
    """One rank's side."""

    model_runner: Any  # vLLM's, of the worker that this is mixed into

    def grpo_open(self, window: dict[str, Any]) -> None:
        self.grpo_window = transfer.open_window(window, torch.device("cpu"))
        self.grpo_sums: dict[str, int] = {}

    def grpo_take(self, index: transfer.Index, size: int) -> None:
        """Load what stands in the window."""
        self.model_runner.model.load_weights(self._counted(transfer.unpack(index, self.grpo_window.arrived(size))))
        engine_experts.derive(self.model_runner.model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _counted(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights:
            self.grpo_sums |= fingerprint([(name, weight)])
            yield name, weight

    def grpo_fingerprint(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.grpo_sums.items()}


class Spread:
    """The sampler's side: `llm` is a vllm.LLM with the extension."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.window: transfer.SharedWindow | None = None

    def load(self, weights: Weights) -> None:
        pairs = iter(weights)
        if self.window is None:
            first = list(pairs)  # once all at a time: the window's size follows from the weights'
            self.window = transfer.SharedWindow(transfer.window_size([w.numel() for _, w in first], first[0][1].dtype))
            self.llm.collective_rpc("grpo_open", args=(self.window.opened(0),))
            pairs = iter(first)
        for index, size in transfer.pack(pairs, self.window.bytes_):
            self.llm.collective_rpc("grpo_take", args=(index, size))

    def fingerprint(self) -> dict[str, int]:
        """What every rank was given last. Raises RuntimeError where they differ."""
        answers = self.llm.collective_rpc("grpo_fingerprint")
        if any(answer != answers[0] for answer in answers):
            raise RuntimeError("the engine's ranks were given different weights")
        return {name: int(value) for name, value in answers[0].items()}

    def close(self) -> None:
        if self.window is not None:
            self.window.close()
