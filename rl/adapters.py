"""LoRA and QLoRA through peft: low-rank adapters in fp32 beside frozen weights.

What differs from peft's own use:
1. Adapters are injected into the transformers model; no PeftModel wraps it. So `model.base_model` stays the decoder (a PeftModel's is
   peft's LoraModel), packed attention is reached as without adapters, and the model's names stay its own.
2. The reference model is the same model with the adapters switched off (`disabled`): no second one is loaded.
3. A sampler gets full weights, merged one at a time in fp32 (`merged`); the model itself is never merged, which would round it each
   time. Or it gets the adapter alone (`adapter`), named as peft saves it, which vLLM (engine_lora.py) and PeftModel.from_pretrained load.
A layer's output is W x + (alpha / rank) B A x (Hu et al., arXiv 2106.09685); B starts at zero, so training starts at the base.
QLoRA (Dettmers et al., arXiv 2305.14314) holds W in 4-bit NormalFloat.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rl.config import Lora
from rl.routing import mixture

Fetch = Callable[[Sequence[str]], Iterator[tuple[str, Tensor]]]  # names in state_dict -> full tensors, in this order
EXPERTS = ("gate_proj", "up_proj", "down_proj")  # of a mixture peft takes these names for the stacked experts too
NAME = "default"  # peft's own for the only adapter
PREFIX = "base_model.model."  # that peft puts before the names it saves


def attach(model: Any, lora: Lora, base: str, seed: int = 0) -> None:
    """Inject adapters into `model`, which was loaded from `base`; from here on only they are trained. Raises ValueError.

    `seed` draws A, here and nowhere else: a run is a function of its recipe.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_targets(model, lora.targets),
        task_type="CAUSAL_LM", base_model_name_or_path=base,
    )  # fmt: skip
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=NAME)
    model.peft_config = {NAME: config}
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def _targets(model: Any, targets: str | tuple[str, ...]) -> list[str]:
    """Last parts of the names of linear layers, checked; of a mixture of experts those of its attention."""
    head = model.get_output_embeddings()
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if mixed := mixture(model.config):
        linear -= set(EXPERTS)
    if targets == "all-linear":
        return sorted(linear)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if mixed and (experts := [name for name in wanted if name in EXPERTS]):
        raise ValueError(
            f"model.lora.targets: {experts[0]!r} of a mixture of experts cannot be merged for the sampler; adapt its attention: "
            f"{', '.join(sorted(linear))}"
        )
    if unknown := [name for name in wanted if name not in linear]:
        raise ValueError(
            f'model.lora.targets: {unknown[0]!r} is no linear layer below the head; use "all-linear" or some of {", ".join(sorted(linear))}'
        )
    return wanted


def attached(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters by name."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The model is its base as long as this lasts."""
    layers = _layers(model).values()
    for layer in layers:
        layer._disable_adapters = True  # peft's enable_adapters would also turn gradients off and on, weight by weight
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merged(model: nn.Module, fetch: Fetch | None = None, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Full weights W + (alpha / rank) B A under the base model's names, tied ones once; fp32 until the cast to `dtype`."""
    layers = _layers(model)
    wanted: list[str] = []
    for name, _ in model.named_parameters():
        owner = name.removesuffix(".base_layer.weight")
        if ".lora_" not in name:
            wanted += [name] if owner == name else [f"{owner}.lora_A.{NAME}.weight", f"{owner}.lora_B.{NAME}.weight", name]
    small: list[Tensor] = []  # A and B of the weight that comes next
    for name, tensor in (fetch or _fetch(model))(wanted):
        owner = name.removesuffix(".base_layer.weight")
        if ".lora_" in name:
            small.append(tensor)
            continue
        if owner != name:
            a, b = (t.float() for t in small)
            small, tensor = [], tensor.float() + (b @ a) * layers[owner].scaling[NAME]
        yield name.replace(".base_layer.", "."), tensor.to(dtype or tensor.dtype)


def adapter(model: nn.Module, fetch: Fetch | None = None) -> Iterator[tuple[str, Tensor]]:
    """The adapter's weights in fp32, named as peft saves them."""
    for name, tensor in (fetch or _fetch(model))([n for n, _ in model.named_parameters() if ".lora_" in n]):
        yield PREFIX + name.replace(f".{NAME}.", "."), tensor


def scaled(model: nn.Module, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """`adapter`'s weights with alpha / rank multiplied into B in fp32, then cast: for an engine that adds B A as it stands."""
    scales = {f"{PREFIX}{name}.lora_B.weight": layer.scaling[NAME] for name, layer in _layers(model).items()}
    for name, weight in weights:
        yield name, (weight.detach().float() * scales.get(name, 1.0)).to(dtype)


def frozen(
    model: nn.Module, fetch: Callable[[Sequence[str], torch.dtype | None], Iterator[tuple[str, Tensor]]] | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """The weights below the adapters under the base model's names, tied ones once. `fetch`: Policy.fetch."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if ".lora_" not in name}
    for name, weight in fetch(list(parameters), dtype) if fetch else parameters.items():
        yield name.replace(".base_layer.", "."), weight.to(dtype)


def targets(model: nn.Module) -> list[str]:
    """Last parts of the names of the layers with adapters."""
    return sorted({name.rpartition(".")[2] for name in _layers(model)})


def rank(model: nn.Module) -> int:
    return max(layer.r[NAME] for layer in _layers(model).values())


def save(model: Any, folder: Path, fetch: Fetch | None = None) -> None:
    """The adapter alone, as peft saves it."""
    config = copy.copy(model.peft_config[NAME])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file({name: t.cpu().contiguous() for name, t in adapter(model, fetch)}, folder / "adapter_model.safetensors")


def _fetch(model: nn.Module) -> Fetch:
    parameters = dict(model.named_parameters())
    return lambda names: ((name, _dequantised(parameters[name]).detach()) for name in names)


def _dequantised(weight: Any) -> Tensor:
    if not hasattr(weight, "quant_state"):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def four_bits(device: torch.device) -> Any:
    """The `quantization_config` of QLoRA. Raises ValueError where it cannot work."""
    if device.type != "cuda":
        raise ValueError("model.qlora needs a CUDA device: bitsandbytes has no 4-bit training here; use model.lora without it")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "model.qlora needs bitsandbytes, which is not installed: pip install bitsandbytes, or use model.lora alone"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
