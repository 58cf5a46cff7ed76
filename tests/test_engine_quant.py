"""What an engine of fewer bits keeps whole and what it quantises; the engine itself runs on a GPU (tests/gpu/test_engines_cuda.py)."""

from __future__ import annotations

import contextlib
from typing import ClassVar

import torch
from torch import nn

from rl.engine_quant import Quantised, kept, matrices
from rl.sampler import fingerprint


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(4, 6)
        self.o_proj = nn.Linear(4, 4, bias=False)


class Model(nn.Module):
    """As vLLM has it: q, k and v are one."""

    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm = nn.LayerNorm(4)


def quantised() -> Model:
    model = Model()
    for module in (model.attention.qkv_proj, model.attention.o_proj):
        module.weight = nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        module.register_parameter("weight_scale", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    return model


def test_matrices_have_the_names_of_a_checkpoint():
    parts = {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"}
    assert matrices(quantised(), torch.float32) == parts
    assert matrices(Model(), torch.float32) == set()


def test_what_is_kept_whole():
    names = [name for name, _ in kept(quantised(), torch.float32)]
    assert names == ["attention.qkv_proj.bias", "norm.weight", "norm.bias"]


class Engine:
    """The two calls of vllm.LLM that are used; puts what is kept whole in place, as the real one does."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def apply_model(self, look):
        return [look(self.model)]

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        for name, weight in kwargs["weights_iterator"]:
            if name == "norm.weight":
                self.model.norm.weight.data.copy_(weight)
            if name == "broken":
                raise KeyError(name)


def test_the_fingerprint_is_of_what_came_and_of_what_is_in_place():
    engine = Quantised(Engine(quantised()), torch.float32)
    whole = dict(kept(engine.llm.model, torch.float32))
    sent = [(f"attention.{part}_proj.weight", torch.randn(2, 4)) for part in "qkvo"]
    sent += [("norm.weight", torch.randn(4)), ("norm.bias", whole["norm.bias"]), ("attention.qkv_proj.bias", torch.zeros(6))]
    engine.load(iter(sent))
    ours, theirs = fingerprint(sent), engine.fingerprint()
    assert {n for n in ours if theirs[n] != ours[n]} == {"attention.qkv_proj.bias"}  # the one this engine did not put in place
    assert set(theirs) == set(ours)


def test_after_a_load_that_failed_nothing_is_claimed():
    engine = Quantised(Engine(quantised()), torch.float32)
    engine.load([("attention.q_proj.weight", torch.randn(2, 4))])
    with contextlib.suppress(KeyError):
        engine.load([("attention.q_proj.weight", torch.randn(2, 4)), ("broken", torch.zeros(1))])
    assert "attention.q_proj.weight" not in engine.fingerprint()
