"""What the decoder's layers cost over one packed row, from the architecture alone: bytes alive, multiplications, bytes moved.

The real model class (from its config, with one layer and with two) runs forward and backward on fake tensors, which have shapes and no
memory; a dispatch mode adds up the storages that are alive and what every operation reads, writes and multiplies. Every layer is like
the one before, so each number is a straight line in the number of layers. What autocast copies, what a norm keeps in fp32 and what
checkpointing recomputes is thereby counted from the code that runs, not by a formula for one family of models. Axes: L positions.
"""

from __future__ import annotations

import copy
import inspect
import json
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM

from rl.attention import PACKED, Varlen

MATMULS = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}
FREE = {"_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided"}  # touch no element
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of a config


@dataclass(frozen=True)
class Work:
    """One packed row: L `positions`, `targets` of them completion tokens, the `keys` that its queries are given (prompts repeated),
    the `pairs` of query and key that meet."""

    positions: int
    targets: int
    keys: int
    pairs: int


@dataclass(frozen=True)
class Kind:
    """How the layers compute."""

    base: str = "float32"  # precision of the weights; adapters are fp32
    autocast: bool = True  # bf16 compute
    checkpointing: bool = False
    lora: int = 0  # rank
    targets: str | tuple[str, ...] = "all-linear"
    repeat: bool = False  # key heads are repeated for the attention kernel, which else shares them among query heads


@dataclass(frozen=True)
class Cost:
    """Of one row, beside weights and gradients that exist already. Floats, for they are interpolated."""

    parameters: float
    trained: float
    projections: float  # weights of frozen linear layers, without the vocabulary's: what 4 bits can hold
    state: float  # bytes of the residual stream at one position
    forward: float  # bytes alive after the forward pass
    casts: float  # bytes of bf16 weights that autocast keeps for a second use until the forward pass is over
    kept: float  # of those after it, what products and attention have read or written: compiled layers keep little else
    lean: float  # of these, without what only a product has read: compiled for little memory, layers make that again
    backward: float  # bytes at the peak of the backward pass
    end: float  # the same where it has reached the embedding
    matmul: float  # floating-point operations of products: forward, recomputation, backward
    attention: float  # the same of attention
    moved: float  # bytes that all other operations read and write
    launches: float  # operations


class Meter(TorchDispatchMode):
    """Storages alive beside those of `there`, their peak, and operations done."""

    def __init__(self, pairs: int = 0, there: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.there = {t.untyped_storage()._cdata for t in there}
        self.pairs, self.live, self.peak, self.born = pairs, 0, 0, 0
        self.sums: Counter[str] = Counter()
        self.sizes: dict[int, int] = {}
        self.origin: dict[int, int] = {}  # by storage: a number, the same for casts of one tensor
        self.marked: set[int] = set()  # storages that a product or attention has read or written
        self.read: set[int] = set()  # of these, those that only a product has read
        self.refs: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        for t in outs:
            self._alive(t)
        if outs and not func.is_view and func.namespace != "prim" and func.overloadpacket.__name__ not in FREE:
            self._count(func, args, kwargs or {}, out, outs)
        return out

    def _alive(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.there:
            return
        self.sizes[key] = storage.nbytes()
        self.born += 1
        self.origin[key] = self.born
        self.live += self.sizes[key]
        self.peak = max(self.peak, self.live)

        def gone(_: Any) -> None:
            self.live -= self.sizes.pop(key)
            self.marked.discard(key)
            self.read.discard(key)
            del self.refs[key], self.origin[key]

        self.refs[key] = weakref.ref(storage, gone)

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, outs: list[torch.Tensor]) -> None:
        name = func.overloadpacket.__name__
        ins = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.sums["launches"] += 1
        if name in MATMULS:
            self.sums["matmul"] += _products(name, func, args, kwargs, out)
        elif "varlen_attn" in name:
            q = ins["backward" in name]
            # Forward q·k and p·v, 2 operations a pair and element each; backward has five products for these two.
            self.sums["attention"] += int(4 * q.shape[-1] * q.shape[-2] * self.pairs * (2.5 if "backward" in name else 1))
        else:
            if name == "_to_copy" and (source := self.origin.get(ins[0].untyped_storage()._cdata)):
                self.origin[outs[0].untyped_storage()._cdata] = source
            self.sums["moved"] += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in ins + outs)
            return
        reads, writes = ({t.untyped_storage()._cdata for t in ts} for ts in (ins, outs))
        self.read = (self.read | (reads - self.marked)) - writes if name in MATMULS else self.read - reads - writes
        self.marked |= reads | writes

    def alive(self, keys: set[int]) -> int:
        """Bytes of those of the storages that are alive; of casts of one tensor to one precision (a compiler makes one) only one."""
        return sum(size for _, size in {(self.origin[k], self.sizes[k]) for k in keys if k in self.sizes})


def _products(name: str, func: Any, args: Any, kwargs: Any, out: Any) -> int:
    if name != "_grouped_mm":
        return flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
    one, two = args[:2]  # of experts: [S, K] x [E, K, N], or [K, S] x [S, N] for the gradient of the weights
    return 2 * one.shape[-2] * one.shape[-1] * two.shape[-1]


class Untraceable(ValueError):
    """The architecture does not run on fake tensors."""


def cost(config: Any, work: Work, kind: Kind) -> Cost:
    """Of a row through all layers of a transformers config. Raises Untraceable."""
    try:
        return _cost(config.to_json_string(use_diff=False), type(config), work, kind)  # type: ignore[arg-type]
    except Exception as error:  # whatever a model's own code raises
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise Untraceable(f"{type(config).__name__}: cannot be planned: {reason}") from error


@lru_cache(maxsize=64)
def _cost(text: str, of: type, work: Work, kind: Kind) -> Cost:
    config = of.from_dict(json.loads(text))  # type: ignore[attr-defined]
    if kind.base == "float32" and any(getattr(config, name, 0) for name in EXPERTS):
        # The fake form of the experts' grouped product knows bf16 only.
        found, wider = _cost(text, of, work, replace(kind, base="bfloat16", autocast=False)), 1.3 if kind.autocast else 2.0
        return replace(
            found, **{name: wider * getattr(found, name) for name in ("state", "forward", "kept", "lean", "backward", "end")}
        )
    first = 1 + int(getattr(config, "first_k_dense_replace", 0) or 0)  # DeepSeek's first layers have no experts
    if config.num_hidden_layers <= first:
        return _once(config, work, kind)
    one, two = (_once(shrunk(config, n), work, kind) for n in (first, first + 1))
    more = config.num_hidden_layers - first
    return Cost(**{f.name: (a := getattr(one, f.name)) + more * (getattr(two, f.name) - a) for f in fields(Cost)})


def shrunk(config: Any, layers: int) -> Any:
    """The config with so many layers."""
    small = copy.deepcopy(config)
    small.num_hidden_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(config, name, None):
            setattr(small, name, list(getattr(config, name))[:layers])
    return small


def _once(config: Any, work: Work, kind: Kind) -> Cost:
    with torch.device("meta"):
        model = _model(config, kind)
    with FakeTensorMode(), torch.device("cpu"):
        _fake(model)
        weights = list(model.parameters())
        trained = [w for w in weights if w.requires_grad]
        for weight in trained:
            weight.grad = torch.empty_like(weight)
        starts, longest = torch.zeros(2, dtype=torch.int32), min(work.positions, work.keys)
        packing = Varlen(
            starts, starts, torch.zeros(work.keys, dtype=torch.int64), longest, longest, "repeat" if kind.repeat else _sharing()
        )
        ids = torch.zeros(1, work.positions, dtype=torch.int64)
        with Meter(work.pairs, [*weights, *(w.grad for w in trained if w.grad is not None)]) as meter:
            tops: list[int] = []  # the peak until the embedding's gradient

            def reached(_: torch.Tensor) -> None:
                tops.append(meter.peak)
                meter.peak = meter.live

            def embedded(*ends: Any) -> None:
                if ends[-1].requires_grad:
                    ends[-1].register_hook(reached)

            model.get_input_embeddings().register_forward_hook(embedded)
            with torch.autocast("cpu", torch.bfloat16, enabled=kind.autocast):
                hidden = model.base_model(input_ids=ids, position_ids=ids, use_cache=False, packing=packing).last_hidden_state
                inside = meter.live
            forward, kept, lean = meter.live, meter.alive(meter.marked), meter.alive(meter.marked - meter.read)
            meter.peak = 0
            hidden.backward(torch.empty_like(hidden))
    return Cost(
        parameters=sum(w.numel() for w in weights),
        trained=sum(w.numel() for w in trained),
        projections=_projections(model),
        state=hidden.shape[-1] * hidden.element_size(),
        forward=forward,
        casts=inside - forward,
        kept=kept,
        lean=lean,
        backward=max([*tops, 0]) or meter.peak,
        end=meter.peak if tops else 0,
        **{name: meter.sums[name] for name in ("matmul", "attention", "moved", "launches")},
    )


def _model(config: Any, kind: Kind) -> Any:
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, kind.base), attn_implementation=PACKED)
    if kind.lora:
        from peft import LoraConfig, inject_adapter_in_model

        targets = kind.targets if isinstance(kind.targets, str) else list(kind.targets)
        inject_adapter_in_model(LoraConfig(r=kind.lora, target_modules=targets, task_type="CAUSAL_LM"), model)
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" in name)
            if weight.requires_grad:
                weight.data = weight.data.float()
    if kind.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


@cache
def _sharing() -> str:
    """How this torch's kernel is told to share key heads; see rl/attention.py. Flash attention can, with the option or without."""
    from torch.nn.attention.varlen import varlen_attn

    return "option" if "enable_gqa" in inspect.signature(varlen_attn).parameters else "native"


def _fake(model: nn.Module) -> None:
    """Tensors on the meta device -> fake tensors on a CPU, which autocast acts on; tied weights stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                table[name] = made[id(old)]  # type: ignore[assignment]


def _projections(model: Any) -> int:
    head = model.get_output_embeddings()
    linear = (m for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return sum(m.weight.numel() for m in linear if not m.weight.requires_grad)
