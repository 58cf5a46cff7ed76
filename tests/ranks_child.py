"""Several ranks on this host for tests: `launch` runs one function of a module in N fresh processes over gloo, replicated or sharded.

The processes come from a fork server that has torch and transformers loaded already, so that a launch takes a second or two.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rl import adapters
from rl.config import Config
from rl.learn import Learner, accelerator
from rl.policy import Policy, load_model

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.ranks_child", "tests.tiny", "recipes.run"])


def launch(size: int, sharded: bool, work: Callable[..., None], *args: Any, timeout_s: float = 120.0) -> list[int | None]:
    """Run `work(*args)` on `size` ranks, each with an environment as a launcher makes it; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [_SERVER.Process(target=_rank, args=(r, size, port, sharded, work, args), daemon=True) for r in range(size)]
    for one in ranks:
        one.start()
    deadline = time.monotonic() + timeout_s
    for one in ranks:
        one.join(max(0.1, deadline - time.monotonic()))
    for one in ranks:
        if one.is_alive():
            one.kill()
            one.join()
    return [one.exitcode for one in ranks]


def _rank(rank: int, size: int, port: int, sharded: bool, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "FSDP_VERSION": "2",
        "ACCELERATE_USE_FSDP": str(sharded).lower(),
    }  # fmt: skip
    work(*args)


def learner(config: Config, model: str, folder: Path) -> Learner:
    """A learner over the files of `model`, on as many ranks as this process was launched with."""
    acc = accelerator(config, folder)

    def policy() -> Policy:
        return Policy(load_model(model, dtype=torch.float32))

    trained = policy()
    if config.model.lora.rank:
        torch.manual_seed(0)
        adapters.attach(trained.model, config.model.lora, model)
    return Learner(config, trained, policy() if config.algorithm.kl and not config.model.lora.rank else None, acc)


def drive(one: Learner, program: Callable[[Learner], None]) -> None:
    """`program` on rank 0, the others following it, as recipes/run.py does."""
    one.begin()
    try:
        if one.ranks.rank:
            one.ranks.follow()
        else:
            program(one)
    finally:
        one.ranks.end()
        one.acc.end_training()
