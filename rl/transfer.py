"""Weights from the learner to workers in other processes, bucket by bucket through a window of bytes.

Learner and workers go through the same steps whatever the window is made of; a bucket is written only when every worker has taken the one
before, and each step has a time-out:
  shared  memory without a name (workers on a CPU of this host)
  ipc     a piece of the learner's GPU memory opened by the worker (CUDA IPC: the same card, or another card of this host)
  group   broadcast in a process group of learner and workers: NCCL between GPUs, gloo elsewhere (other hosts)
"""

from __future__ import annotations

import base64
import math
import mmap
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

WINDOW = 256 << 20  # bytes, unless one weight is larger
ALIGN = 64

Index = list[tuple[str, str, list[int], int]]  # name, dtype, shape, offset


class Window(Protocol):
    """The learner's side."""

    bytes_: Tensor  # uint8, flat

    def opened(self, worker: int) -> dict[str, Any]:
        """What worker number `worker` needs to open it, as plain data."""
        ...

    def join(self) -> None:
        """Meet the workers, who are opening theirs. RuntimeError when they do not come."""
        ...

    def publish(self, size: int) -> None:
        """Make the first `size` bytes visible to all workers. RuntimeError when they do not take part."""
        ...

    def close(self) -> None: ...


def pack(weights: Iterator[tuple[str, Tensor]], window: Tensor) -> Iterator[tuple[Index, int]]:
    """Fill the window with as many weights as fit, again and again; yields what stands in it and how many bytes that is."""

    def whole() -> int:
        if window.is_cuda:  # who is told of it may read at once, in another process
            torch.cuda.synchronize(window.device)
        return used

    index: Index = []
    used = 0
    for name, weight in weights:
        flat = weight.contiguous().view(-1).view(torch.uint8)
        if used + flat.numel() > window.numel():
            yield index, whole()
            index, used = [], 0
        window[used : used + flat.numel()].copy_(flat)
        index.append((name, str(weight.dtype).removeprefix("torch."), list(weight.shape), used))
        used += math.ceil(flat.numel() / ALIGN) * ALIGN
    if index:
        yield index, whole()


def unpack(index: Sequence[Sequence[Any]], window: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The weights that stand in the window, as views into it."""
    for name, dtype, shape, offset in index:
        kind = getattr(torch, dtype)
        size = math.prod(shape) * kind.itemsize
        yield name, window[offset : offset + size].view(kind).view(shape)


def window_size(elements: Iterable[int], dtype: torch.dtype) -> int:
    """Bytes for weights of so many elements each: all of them up to WINDOW, and always the largest."""
    sizes = [math.ceil(n * dtype.itemsize / ALIGN) * ALIGN for n in elements]
    return max(max(sizes), min(WINDOW, sum(sizes)))


class SharedWindow:
    """Memory without a name, which workers open through /proc: it goes with the last process that holds it, however that ends."""

    def __init__(self, size: int) -> None:
        self.file: int | None = os.memfd_create("grpo-weights")
        try:
            os.ftruncate(self.file, size)
            self.map = mmap.mmap(self.file, size)
        except OSError as error:
            self.close()
            raise ValueError(f"{size / 2**20:.0f} MiB of shared memory for weights cannot be had: {error}") from None
        self.bytes_ = torch.frombuffer(self.map, dtype=torch.uint8)

    def opened(self, worker: int) -> dict[str, Any]:
        return {"kind": "shared", "path": f"/proc/{os.getpid()}/fd/{self.file}", "size": self.bytes_.numel()}

    def join(self) -> None:
        pass

    def publish(self, size: int) -> None:
        pass

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
        self.file = None


class IpcWindow:
    """GPU memory of the learner, opened in place by workers on this host."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes_ = torch.empty(size, dtype=torch.uint8, device=device)

    def opened(self, worker: int) -> dict[str, Any]:
        # One handle for each worker: it counts its users.
        parts = self.bytes_.untyped_storage()._share_cuda_()
        parts = (0, *parts[1:])  # the worker sees this card alone, as its first
        plain = [{"bytes": base64.b64encode(p).decode()} if isinstance(p, bytes) else p for p in parts]
        return {"kind": "ipc", "handle": plain, "size": self.bytes_.numel()}

    def join(self) -> None:
        pass

    def publish(self, size: int) -> None:
        pass

    def close(self) -> None:
        self.bytes_ = torch.empty(0, dtype=torch.uint8)


class GroupWindow:
    """A buffer in each process, filled by broadcast from rank 0 (the learner)."""

    def __init__(self, size: int, device: torch.device, workers: int, timeout_s: float, host: str = "127.0.0.1") -> None:
        self.bytes_ = torch.empty(size, dtype=torch.uint8, device=device)
        self.timeout_s, self.workers, self.host = timeout_s, workers, host
        self.store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
        self.group: Any = None

    def opened(self, worker: int) -> dict[str, Any]:
        return {
            "kind": "group", "host": self.host, "port": self.store.port, "rank": worker + 1, "ranks": self.workers + 1,
            "size": self.bytes_.numel(), "timeout_s": self.timeout_s,
        }  # fmt: skip

    def join(self) -> None:
        self.group = _group(self.store, 0, self.workers + 1, self.bytes_.device, self.timeout_s)

    def publish(self, size: int) -> None:
        _broadcast(self.group, self.bytes_[:size], self.timeout_s)

    def close(self) -> None:
        if self.group is not None and hasattr(self.group, "abort"):
            self.group.abort()
        self.group = self.store = None


def open_window(opened: dict[str, Any], device: torch.device) -> Opened:
    """The worker's side of a window."""
    kinds: dict[str, Callable[[dict[str, Any], torch.device], Opened]] = {
        "shared": OpenedShared,
        "ipc": OpenedIpc,
        "group": OpenedGroup,
    }
    return kinds[opened["kind"]](opened, device)


class Opened(Protocol):
    """The worker's side: `arrived(size)` waits for a bucket and gives its bytes."""

    def arrived(self, size: int) -> Tensor: ...


class OpenedShared:
    def __init__(self, opened: dict[str, Any], device: torch.device) -> None:
        with open(opened["path"], "r+b") as file:
            self.map = mmap.mmap(file.fileno(), opened["size"])
        self.bytes_ = torch.frombuffer(self.map, dtype=torch.uint8)

    def arrived(self, size: int) -> Tensor:
        return self.bytes_[:size]


class OpenedIpc:
    def __init__(self, opened: dict[str, Any], device: torch.device) -> None:
        parts = [base64.b64decode(p["bytes"]) if isinstance(p, dict) else p for p in opened["handle"]]
        torch.cuda.init()
        storage = torch.UntypedStorage._new_shared_cuda(*parts)
        self.bytes_ = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[: opened["size"]]

    def arrived(self, size: int) -> Tensor:
        return self.bytes_[:size]


class OpenedGroup:
    def __init__(self, opened: dict[str, Any], device: torch.device) -> None:
        self.timeout_s = opened["timeout_s"]
        wait = timedelta(seconds=self.timeout_s)
        self.store = dist.TCPStore(opened["host"], opened["port"], is_master=False, timeout=wait)
        self.group = _group(self.store, opened["rank"], opened["ranks"], device, self.timeout_s)
        self.bytes_ = torch.empty(opened["size"], dtype=torch.uint8, device=device)

    def arrived(self, size: int) -> Tensor:
        _broadcast(self.group, self.bytes_[:size], self.timeout_s)
        return self.bytes_[:size]


def _group(store: Any, rank: int, ranks: int, device: torch.device, timeout_s: float) -> Any:
    """A process group of its own, beside whatever default group the process has."""
    wait = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = 4 * wait  # ours, in `_broadcast`, comes first and raises; NCCL's own would end the process
        return dist.ProcessGroupNCCL(dist.PrefixStore("weights", store), rank, ranks, options)
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, ranks, wait)


def _broadcast(group: Any, part: Tensor, timeout_s: float) -> None:
    work = group.broadcast([part], dist.BroadcastOptions())
    work.wait(timedelta(seconds=timeout_s))
    if part.device.type == "cuda":
        torch.cuda.synchronize(part.device)


def here() -> str:
    """This host's address for workers on others."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
