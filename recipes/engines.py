"""Config -> the sampler of a run: an engine in this process, or rollout workers elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rl import engine_lora
from rl.config import Config
from rl.places import ProcessPlace, RayPlace, address, start_ray
from rl.policy import resolve
from rl.remote import Placement, Remote
from rl.routing import mixture
from rl.sampler import Sampler, TransformersSampler
from rl.transfer import GroupWindow, IpcWindow, SharedWindow, Window, window_size
from rl.workers import Pool

PRIORITY, NORMAL = "CUDA_MPS_CLIENT_PRIORITY", "0"  # of a process, when it first uses CUDA (recipes/mps.py)
START_S = 1800.0  # a large model from a slow disk, compiled for the first time


def make_sampler(config: Config, tokenizer: Any, device: torch.device, context: int, model: Any) -> Sampler:
    """The recipe's sampler, under the weights of model.path. `model` is the learner's: its sizes decide the workers' window."""
    config = replace(config, rollout=replace(config.rollout, engine=engine_options(config, model)))
    r, trust = config.rollout, config.model.trust_remote_code
    if r.placement != "colocated":
        return make_pool(config, device, context, model)
    if r.sampler == "transformers":
        return TransformersSampler(config.model.path, tokenizer, device=device, trust_remote_code=trust)
    from rl.sampler_vllm import VllmSampler

    return VllmSampler(
        config.model.path, tokenizer, device=device, max_model_len=context, seed=config.run.seed, trust_remote_code=trust,
        stop_loops=r.stop_loops, sleep=r.sleep, experts=config.model.routing_replay and mixture(model.config), engine=r.engine,
    )  # fmt: skip


class AdapterPool(Pool):
    """Workers whose engines hold the frozen base: `sync` sends them the adapter."""

    adapter = True


def engine_options(config: Config, model: Any) -> dict[str, Any]:
    """`rollout.engine`, and with LoRA what vLLM needs to be sent the adapter alone; merged weights are sent where that cannot be."""
    given, lora = dict(config.rollout.engine), config.model.lora
    if config.rollout.sampler != "vllm":
        return given
    if not lora.rank and given.get("enable_lora"):
        raise ValueError("rollout.engine.enable_lora without an adapter: set model.lora.rank too, or leave it out")
    if not lora.rank or given.get("enable_lora") is False:
        return given
    spread = any(given.get(f"{kind}_parallel_size", 1) > 1 for kind in ("tensor", "pipeline"))
    why = "the engine is spread over several GPUs" if spread else engine_lora.unsuitable(model, config.model.qlora)
    if why:
        print(f"LoRA: merged weights are synced, not the adapter alone: {why}", flush=True)
        return given
    return engine_lora.options(model) | given


def make_pool(config: Config, device: torch.device, context: int, model: Any) -> Pool:
    """`rollout.workers` workers where `rollout.placement` says. Raises ValueError when one does not start."""
    r = config.rollout
    resolve(config.model.path)  # said once, not by every worker
    if r.placement == "ray":
        start_ray()
    cards = devices(config, device)
    seen = groups(config, cards)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    alone = bool(r.engine.get("enable_lora"))
    size = window_size([p.numel() for n, p in model.named_parameters() if ".lora_" in n or not alone], dtype)

    def window(workers: int) -> Window:
        if r.placement == "ray" or (cards and card_of(device) not in cards):
            return GroupWindow(size, device, workers, r.timeout_s, address() if r.placement == "ray" else "127.0.0.1")
        return IpcWindow(size, device) if device.type == "cuda" else SharedWindow(size)

    def start(slot: int, attempt: int) -> Remote:
        name = f"worker {slot}" + (f" (start {attempt + 1})" if attempt else "")
        place: Placement
        if r.placement == "ray":
            place = RayPlace(environment(config, None), gpus=gpus(config, device))
        else:
            place = ProcessPlace(environment(config, seen[slot % len(seen)] if seen else None))
        parent = os.getpid() if r.placement == "processes" else None
        routed = config.model.routing_replay and mixture(model.config)
        return Remote(name, place, spec(config, device, context, parent, slot) | {"experts": routed}, r.timeout_s, START_S)

    return (AdapterPool if alone else Pool)(
        start, r.workers, minimum=r.min_workers, vocabulary=model.config.get_text_config().vocab_size, timeout_s=r.timeout_s,
        window=window,
    )  # fmt: skip


def spec(config: Config, device: torch.device, context: int, parent: int | None, slot: int) -> dict[str, Any]:
    """What a worker must know, as plain data."""
    r, path = config.rollout, resolve(config.model.path)
    return {
        "parent": parent,
        "sampler": r.sampler,
        "path": os.path.abspath(path) if os.path.isdir(path) else path,  # an actor of Ray may run in another folder
        "device": device.type,
        "context": context,
        "seed": config.run.seed + slot,
        "trust_remote_code": config.model.trust_remote_code,
        "restart": r.in_flight == "restart",
        "stop_loops": r.stop_loops,
        "engine": dict(r.engine),
    }


def environment(config: Config, cards: str | None) -> dict[str, str]:
    """Of a worker's process, over what it inherits: its GPUs, where it goes before the learner, and its share of the cores."""
    cores = max(1, (os.cpu_count() or 1) // config.rollout.workers)
    mine = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)), "TOKENIZERS_PARALLELISM": "false"}
    if cards is not None:
        mine |= {"CUDA_VISIBLE_DEVICES": cards, PRIORITY: NORMAL}
    return mine


def devices(config: Config, device: torch.device) -> list[str]:
    """The GPUs of the workers, as CUDA_VISIBLE_DEVICES names them; see `groups`. None on a CPU machine. Raises ValueError."""
    r, own = config.rollout, card_of(device)
    if device.type != "cuda" or r.placement == "ray":
        return []
    there, each = visible(), width(config)
    if wrong := [d for d in r.devices if not 0 <= d < len(there)]:
        raise ValueError(f"rollout.devices = {list(r.devices)}: GPU {wrong[0]} is not there; this process sees {len(there)}")
    free = [c for c in there if c not in learners(device)]
    if r.devices:
        chosen = [there[d] for d in r.devices]
    elif free:
        chosen = free[: len(free) // each * each]
    else:  # shared: all workers on the leading learner's, and on those behind it
        chosen = there[there.index(own) :][:each]
    if len(chosen) < each and not r.devices:
        raise ValueError(
            f"rollout.engine.tensor_parallel_size = {each}: too few GPUs for one worker: "
            + (f"{len(free)} of {len(there)} are not the learner's" if free else f"this process sees {len(there)}")
            + "; name the workers' GPUs in rollout.devices, or split the engine less"
        )
    parts = [group.split(",") for group in groups(config, chosen)]
    if len({own in part for part in parts}) > 1:
        raise ValueError(
            f"rollout.devices = {list(r.devices)}: some workers would share the learner's GPU and others not; weights travel one way only: "
            "give all workers GPUs of their own, or none"
        )
    if any(own in part[1:] for part in parts):  # rl/transfer.py: weights are opened in place on a worker's first
        raise ValueError(
            f"rollout.devices = {list(r.devices)}: the learner's GPU must be a worker's first: name it before the others"
        )
    return chosen


def groups(config: Config, cards: Sequence[str]) -> list[str]:
    """The GPUs of each worker in turn, `tensor_parallel_size` consecutive ones each, as its CUDA_VISIBLE_DEVICES. Raises ValueError."""
    each = width(config)
    if len(cards) % each:
        raise ValueError(
            f"rollout.devices = {list(config.rollout.devices)}: {len(cards)} GPUs do not divide by "
            f"rollout.engine.tensor_parallel_size = {each}, which every worker needs"
        )
    return [",".join(cards[i : i + each]) for i in range(0, len(cards), each)]


def learners(device: torch.device) -> set[str]:
    """The GPUs of this host's learner ranks."""
    there = visible()
    return {there[i] for i in range(int(os.environ.get("LOCAL_WORLD_SIZE", 1)) % (len(there) + 1))} or {card_of(device)}


def width(config: Config) -> int:
    """GPUs of one worker's engine."""
    return int(config.rollout.engine.get("tensor_parallel_size", 1))


def visible() -> list[str]:
    """The GPUs this process sees, by the names it was given."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def card_of(device: torch.device) -> str:
    return visible()[device.index or 0] if device.type == "cuda" else ""


def gpus(config: Config, device: torch.device) -> int:
    return width(config) if device.type == "cuda" else 0
