"""From a recipe to its workers: which GPU, which cores, what they are told, what weights travel through, and what is refused."""

from __future__ import annotations

import os
import re

import pytest
import torch

from recipes import engines
from rl.config import Config
from rl.transfer import SharedWindow
from tests import sampler_laws as laws
from tests import tiny

CUDA = torch.device("cuda", 0)  # named, never used: these functions only look at names


def config(**rollout) -> Config:
    made = {"sampler": "transformers", "placement": "processes"} | rollout
    return tiny.config(model={"path": tiny.path()}, rollout=made, run={"seed": 5})


@pytest.mark.parametrize(
    ("visible", "ranks", "rollout", "chosen"),
    [
        ("0", 1, {}, ["0"]),  # one card: shared
        ("0,1,2,3", 1, {}, ["1", "2", "3"]),  # those the learner does not use
        ("0,1,2,3", 2, {}, ["2", "3"]),
        ("0,1,2,3", 4, {}, ["0"]),  # none is free: the leading learner's
        ("4,6", 1, {}, ["6"]),  # as they are named, not counted
        ("GPU-ab,GPU-cd", 1, {}, ["GPU-cd"]),
        ("0,1,2,3", 1, {"devices": (3, 1)}, ["3", "1"]),
        ("0,1", 1, {"devices": (0,)}, ["0"]),
        ("0,1", 1, {"placement": "ray"}, []),  # Ray chooses
        ("0,1,2,3", 1, {"engine": {"tensor_parallel_size": 2}}, ["1", "2"]),  # one worker's; the third has no partner
    ],
)
def test_the_card_of_each_worker(monkeypatch, visible, ranks, rollout, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert engines.devices(config(**rollout), CUDA) == chosen


def test_cards_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"rollout.devices = \[1, 2\]: GPU 2 is not there; this process sees 2"):
        engines.devices(config(devices=(1, 2)), CUDA)
    with pytest.raises(
        ValueError, match=r"rollout.devices = \[0, 1\]: some workers would share the learner's GPU and others not"
    ):
        engines.devices(config(devices=(0, 1)), CUDA)


@pytest.mark.parametrize(
    ("ranks", "rollout", "seen"),
    [
        (4, {"workers": 1}, ["4,5,6,7"]),  # the cards of one engine, beside the learner's
        (8, {"workers": 2}, ["0,1,2,3"] * 2),  # none is free: all on the leading learner's and those behind it
        (2, {"workers": 2, "devices": (2, 3, 4, 5, 6, 7, 10, 11)}, ["2,3,4,5", "6,7,10,11"]),
        (2, {"workers": 3, "devices": (4, 5, 6, 7)}, ["4,5,6,7"] * 3),
        (1, {"workers": 1, "devices": (10, 11, 2, 3)}, ["10,11,2,3"]),  # "1" and "0" are not among them
    ],
)
def test_a_worker_has_the_cards_of_its_engine(monkeypatch, ranks, rollout, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(12 if "devices" in rollout else 8))))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(engines, "ProcessPlace", lambda environment: environment["CUDA_VISIBLE_DEVICES"])
    monkeypatch.setattr(engines, "Remote", lambda name, place, *rest: place)
    monkeypatch.setattr(engines, "Pool", lambda start, workers, **rest: [start(slot, 0) for slot in range(workers)])
    made = config(sampler="vllm", engine={"tensor_parallel_size": 4}, **rollout)
    assert engines.make_pool(made, CUDA, 384, tiny.policy().model) == seen


@pytest.mark.parametrize(
    ("visible", "devices", "told"),
    [
        ("0", (), "= 2: too few GPUs for one worker: this process sees 1; name"),
        ("0,1", (), "= 2: too few GPUs for one worker: 1 of 2 are not the learner's; name"),
        ("0,1,2,3", (1, 2, 3), "rollout.devices = [1, 2, 3]: 3 GPUs do not divide by rollout.engine.tensor_parallel_size = 2"),
        ("0,1,2,3", (0, 1, 2, 3), "some workers would share the learner's GPU and others not"),
        ("0,1,2,3", (1, 0), "rollout.devices = [1, 0]: the learner's GPU must be a worker's first"),
    ],
)
def test_cards_that_make_no_engine_are_refused(monkeypatch, visible, devices, told):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=re.escape(told)):
        engines.devices(config(devices=devices, engine={"tensor_parallel_size": 2}), CUDA)


def test_a_cpu_has_no_cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert engines.devices(config(), laws.CPU) == []
    assert engines.gpus(config(engine={"tensor_parallel_size": 2}), laws.CPU) == 0
    assert engines.gpus(config(engine={"tensor_parallel_size": 2}), CUDA) == 2


def test_cores_are_shared_out_unless_the_user_did(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert engines.environment(config(workers=3), "4") == {
        "OMP_NUM_THREADS": "5",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "4",
        "CUDA_MPS_CLIENT_PRIORITY": "0",
    }
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert engines.environment(config(workers=99), None)["OMP_NUM_THREADS"] == "2"


def test_the_recipes_pool(monkeypatch):
    """With real workers: it starts, its window is of the model's size, and what a worker is told is the recipe's."""
    model = tiny.policy().model
    pool = engines.make_sampler(config(workers=1, timeout_s=50.0), tiny.tokenizer(), laws.CPU, 384, model)
    try:
        assert [name for name, _ in pool.replicas()] == ["worker 0"]
        assert (pool.vocabulary, pool.minimum, pool.timeout_s, pool.dtype) == (330, 1, 50.0, torch.float32)
        window = pool.make_window(1)
        assert isinstance(window, SharedWindow)
        assert window.bytes_.numel() >= 4 * sum(p.numel() for p in model.parameters())
        window.close()
        laws.restore(pool)
        assert pool.window.bytes_.numel() == window.bytes_.numel()
    finally:
        pool.close()


def test_what_a_worker_is_told():
    told = engines.spec(config(in_flight="restart", stop_loops=64, engine={"max_num_seqs": 8}), laws.CPU, 384, 123, 2)
    assert told == {
        "parent": 123, "sampler": "transformers", "path": tiny.path(), "device": "cpu", "context": 384, "seed": 7,
        "trust_remote_code": False, "restart": True, "stop_loops": 64, "engine": {"max_num_seqs": 8},
    }  # fmt: skip


def test_a_model_that_is_not_there_is_said_once(capfd):
    bad = tiny.config(model={"path": "./nowhere"}, rollout={"placement": "processes", "workers": 2})
    with pytest.raises(ValueError, match=r"model.path = './nowhere': no such folder"):
        engines.make_sampler(bad, None, laws.CPU, 384, tiny.policy().model)
