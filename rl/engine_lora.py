"""LoRA inside vLLM: the engine holds the frozen base, and each new version of the policy is its adapter alone.

What differs from vLLM's own use:
1. There is one adapter with one id, and a new version takes the old one's place. So samples under way, which carry that id, go on under
   the new version; under an id of its own for each version the engine would keep them on the old one.
2. Files are how vLLM takes an adapter. They stand in memory (/dev/shm), in a folder that only this user reads, while it does.
3. alpha / rank is multiplied into B before the cast to the engine's precision (adapters.scaled), and the files say alpha = rank. So the
   engine holds bit for bit what was sent, padded with zeros to the next rank that it knows: the adapter has a fingerprint.
What is relied on in vLLM 0.26 to 0.31: `LoRARequest(load_inplace=True)`, `model.lora_manager` with `.modules`, `.packed_modules` and
`.lora_index_to_id`, and in each module `lora_a_stacked`, `lora_b_stacked`: one [adapters, 1, out, in] for each part of a fused layer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rl import adapters
from rl.routing import mixture
from rl.sampler import Weights, fingerprint

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
PARTS = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)  # that it knows in every decoder
SLOT = 1  # vLLM's id of the adapter


def unsuitable(model: Any, quantised: bool) -> str | None:
    """Why vLLM cannot be given the adapter of `model` alone; None when it can."""
    config = model.config.get_text_config()
    if quantised:
        return "the learner's base is held in 4 bits and the engine's is not"
    if mixture(config):
        return "the model is a mixture of experts"
    if other := sorted(set(adapters.targets(model)) - PARTS):
        return f"vLLM may not know an adapter of {other[0]}"
    if (rank := adapters.rank(model)) > RANKS[-1]:
        return f"its rank is {rank}, vLLM's largest {RANKS[-1]}"
    return None


def options(model: Any) -> dict[str, Any]:
    """vLLM's options for one adapter like that of `model`."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": next(r for r in RANKS if r >= adapters.rank(model)),
        "lora_target_modules": adapters.targets(model),
    }


class EngineLora:
    """The adapter of one `vllm.LLM`. `request` goes with every sample; None: none came yet, the policy is the base."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.request = llm, None

    def load(self, weights: Weights, version: int) -> None:
        """Put the adapter `weights`, named as peft saves them and scaled, in place of the one before."""
        from vllm.lora.request import LoRARequest

        shm = "/dev/shm"
        folder = tempfile.mkdtemp(prefix="grpo-adapter-", dir=shm if os.access(shm, os.W_OK) else None)
        name = f"policy-{version}"
        try:
            write(Path(folder), weights)
            if not self.llm.llm_engine.add_lora(LoRARequest(name, SLOT, folder, load_inplace=True)):
                raise RuntimeError(f"vLLM did not take the adapter of weights {version}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.request = LoRARequest(name, SLOT, folder)  # in place for loading only: with a sample it would load at each step


def write(folder: Path, weights: Weights) -> None:
    """An adapter in peft's two files."""
    # Copies: the tensors may be views into a window that is written again.
    held = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights}
    rank = next(weight.shape[0] for name, weight in held.items() if name.endswith("lora_A.weight"))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none", "inference_mode": True,
        "target_modules": sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in held}),
    }  # fmt: skip
    save_file(held, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def held(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A and B of each layer as the engine computes with them, under peft's names; of vLLM's `model`."""
    manager = model.lora_manager
    if SLOT not in manager.lora_index_to_id:
        return
    slot = manager.lora_index_to_id.index(SLOT)
    for name, module in manager.modules.items():
        parts = manager.packed_modules.get(name) or [name]
        for part, a, b in zip(parts, module.lora_a_stacked, module.lora_b_stacked, strict=True):
            yield f"{adapters.PREFIX}{part}.lora_A.weight", a[slot]
            yield f"{adapters.PREFIX}{part}.lora_B.weight", b[slot]


def adapter_prints(weights: Weights) -> dict[str, int]:
    """`fingerprint` of an adapter, each A followed by its B. A layer whose B is zero does not count: it is the base's, whatever A is, and
    before the first update no engine has one."""
    sums: dict[str, int] = {}
    each = iter(weights)
    for a, b in zip(each, each, strict=True):
        if bool(b[1].any()):
            sums |= fingerprint([a, b])
    return sums


def prints(model: Any) -> dict[str, int]:
    """Of vLLM's `model`: the base's fingerprint under the names it has without adapters, and the adapter's."""
    base = fingerprint((name.replace(".base_layer.", "."), p) for name, p in model.named_parameters())
    return base | adapter_prints(held(model))
