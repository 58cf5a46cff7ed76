"""Weights into an engine that holds them in fewer bits (`rollout.engine.quantization = "fp8"`), and what can be proven of it.

The engine's own copy of a quantised matrix cannot have the learner's fingerprint, and an update of 1e-6 mostly rounds to the same eight
bits, so that no canary would show a stale one. What is proven instead: every weight that it keeps whole (embeddings, norms, head, biases)
bit for bit in place, every matrix that it quantises bit for bit as it was received; `reload_weights` raises where it could not place one.
What it costs in log-probs is the run's `mismatch`, which the guard watches and the importance correction weighs.

What is relied on in vLLM 0.26 to 0.31: `Worker.reload_weights(weights_iterator=...)`, which quantises layer by layer into the storage that
the CUDA graphs know, and a model's `packed_modules_mapping`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, dtype, nn

from rl.sampler import Weights, fingerprint


class Quantised:
    """The weights of one `vllm.LLM` that quantises what it is given; `dtype` is that of what it keeps whole."""

    def __init__(self, llm: Any, whole: dtype) -> None:
        self.llm, self.whole = llm, whole
        self.received: dict[str, int] = {}
        self.matrices: set[str] = llm.apply_model(lambda model: matrices(model, whole))[0]
        if not self.matrices:
            raise ValueError("rollout.engine.quantization: vLLM quantises none of this model's weights; leave it out")

    def load(self, weights: Weights) -> None:
        """Quantise and put in place. Raises what vLLM raises for a weight that has no place."""
        received: dict[str, int] = {}

        def seen() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                received.update(fingerprint([(name, weight)]))
                yield name, weight.clone()  # a layer waits for all of its parts, and what was sent may not

        self.received = {}  # of a load that fails nothing is claimed
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": seen()})
        self.received = received

    def fingerprint(self) -> dict[str, int]:
        """In place for what is whole; as received for the matrices."""
        mine = {name: value for name, value in self.received.items() if name.removesuffix(".weight") in self.matrices}
        return mine | self.llm.apply_model(lambda model: fingerprint(kept(model, self.whole)))[0]


def kept(model: nn.Module, whole: dtype) -> Iterator[tuple[str, Tensor]]:
    """Parameters that the engine did not quantise; scales belong to those that it did."""
    inside = {name for name, module in model.named_modules() if _quantised(module, whole)}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in inside or parameter.dtype == whole:
            yield name, parameter


def matrices(model: nn.Module, whole: dtype) -> set[str]:
    """Names of the quantised modules as a checkpoint has them: the parts of a fused one, not the fused one."""
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    names = set()
    for name, module in model.named_modules():
        if _quantised(module, whole):
            prefix, _, last = name.rpartition(".")
            names |= {f"{prefix}.{part}" for part in packed.get(last, [last])}
    return names


def _quantised(module: nn.Module, whole: dtype) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dtype != whole
