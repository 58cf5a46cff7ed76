"""NVIDIA's Multi-Process Service for a learner and rollout workers on one GPU.

Without it the driver gives the card to one process at a time: an engine's decode step of a few milliseconds waits for the learner's time
slice, 512 times a rollout. With it the kernels of both run side by side; the learner is a client of the lower priority, so that the short
kernels of a decode step, each of which waits for the last, come before what is left of its long ones. A run starts a service of its own, in
a folder of its own, and ends it; nothing of the card's settings is touched. One that is there already (CUDA_MPS_PIPE_DIRECTORY) is used and
left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

import torch

from recipes.engines import PRIORITY, card_of, devices
from rl.config import Config

CONTROL = "nvidia-cuda-mps-control"
NAMES = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
BELOW_NORMAL = "1"
STARTS_S = 10.0
# The service outlives its clients, and ends when its standard input does: with the learner, however that ends.
KEEPER = f"""{CONTROL} -f & read -r _; echo quit | {CONTROL}; wait; rm -rf "${NAMES[0]}\""""


def shares_a_card(config: Config) -> bool:
    """Whether rollout workers will use the learner's GPU. Looks at nothing that would start CUDA in this process."""
    if config.rollout.placement != "processes" or not torch.cuda.device_count() or "RANK" in os.environ:
        return False
    device = torch.device("cuda", 0)
    return card_of(device) in devices(config, device)


@contextlib.contextmanager
def service(config: Config) -> Iterator[None]:
    """MPS while this lasts, where it is of use. Must come before the first use of CUDA in this process."""
    if not shares_a_card(config) or NAMES[0] in os.environ:
        yield
        return
    os.environ.update(
        dict.fromkeys(NAMES, tempfile.mkdtemp(prefix="grpo-mps-")) | {PRIORITY: os.environ.get(PRIORITY, BELOW_NORMAL)}
    )
    keeper = _start()
    try:
        if keeper is None:
            print(f"no {CONTROL} starts here: learner and workers take turns on the GPU", flush=True)
            _forget()
        elif not torch.cuda.is_available():
            raise ValueError(
                f"CUDA finds no GPU through {CONTROL}, though the driver has one: end other MPS services on this host, or run without "
                "the program on the PATH"
            )
        yield
    finally:
        del keeper
        _forget()


def _start() -> subprocess.Popen[bytes] | None:
    """The service, ready for clients; None where there is none. It lasts as long as what this returns."""
    quiet = subprocess.DEVNULL
    # A service that sees some GPUs only would number them anew for its clients, who choose among all of them.
    seeing = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    keeper = subprocess.Popen(
        ["sh", "-c", KEEPER], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, env=seeing, start_new_session=True
    )
    end = time.monotonic() + STARTS_S
    while not os.path.exists(os.path.join(os.environ[NAMES[0]], "control")):
        if not shutil.which(CONTROL) or time.monotonic() > end:
            return None
        time.sleep(0.05)
    return keeper


def _forget() -> None:
    for name in (*NAMES, PRIORITY):
        os.environ.pop(name, None)
