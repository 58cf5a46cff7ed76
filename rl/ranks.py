"""Several processes, one run: rank 0 runs the program, the others take part in what needs all of them.

Only rank 0 samples, scores, evaluates, writes and prints. So what a run does is a function of recipe, seed and step, never of the number
of ranks, and the loop has no line that knows them. Rank 0 announces each joint operation by name (JOINT) with its argument as JSON and
its rows as safetensors, never pickle; the others wait for it in gloo, on the CPU: a wait in NCCL would occupy their GPU and run into
its time-out while rank 0 samples.

Two ways to share the work, by how the run was launched (recipes/accelerate/): the weights replicated (DDP), or sharded over the ranks
(FSDP2), where whoever asks rank 0's policy for log-probs or weights makes the others take part (`lend`).
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import fields
from datetime import timedelta
from threading import RLock
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from rl.records import Row, Span

JOINT: dict[str, Callable[..., Any]] = {}  # operation -> f(learner, argument, rows); the modules that own one put it here
WAIT = timedelta(days=30)  # for rank 0's next operation
# What a launcher tells its processes: a child with a torch.distributed of its own (vLLM) must not inherit it.
LAUNCHED = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_EXPECTED = (OSError, ValueError)  # errors of a file operation that rank 0 must hear of; any other ends the process


def rank() -> int:
    """This process's rank as its launcher said it; known before anything is loaded."""
    return int(os.environ.get("RANK", 0))


class Ranks:
    """The processes of a run. `subject` (the learner) is what the operations of JOINT work on."""

    def __init__(self, acc: Accelerator, subject: Any) -> None:
        self.rank, self.size, self.subject = acc.process_index, acc.num_processes, subject
        if os.environ.get("LOCAL_WORLD_SIZE") == str(
            self.size
        ):  # one host: needs no name that resolves, and nothing else can connect
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.group = dist.new_group(backend="gloo", timeout=WAIT) if self.size > 1 else None
        self.leading = False  # from `begin` on, on rank 0
        self._busy = False  # in an operation that all ranks know of
        self._lock = RLock()  # a rollout thread may ask for weights

    def begin(self) -> None:
        """From here on rank 0 runs the program and the others `follow`; before it all ranks do the same."""
        self.leading = self.size > 1 and self.rank == 0

    def together(self, name: str, argument: Any = None, rows: Sequence[Row] = ()) -> Any:
        """Run JOINT[name] on every rank; returns this one's result. For operations that fail on all ranks or on none."""
        with self._announced(name, argument, rows):
            return JOINT[name](self.subject, argument, rows)

    def collect(self, name: str, argument: Any = None) -> list[Any]:
        """Run JOINT[name] on every rank; returns all results (JSON types), rank 0's first. A rank's OSError or ValueError is raised."""
        with self._announced(name, argument, reply=True):
            replies, error = self._replies(name, argument)
        if error:
            raise error
        for number, reply in enumerate(replies):
            if "error" in reply:
                text = f"{reply['error']} (rank {number})"
                raise OSError(reply["errno"], text, reply["file"]) if reply["errno"] else ValueError(text)
        return [reply["result"] for reply in replies]

    def announce(self, name: str, argument: Any, rows: Sequence[Row]) -> None:
        """Make the others run JOINT[name]; the caller does its part himself. Nothing happens inside an operation."""
        if self.leading and not self._busy:
            self._send({"name": name, "argument": argument, "reply": False}, rows)

    def follow(self) -> None:
        """What the other ranks do until rank 0 ends the run. Raises ConnectionError when it is gone."""
        for number in (signal.SIGTERM, signal.SIGINT):  # rank 0 decides what to do, and may need us to save
            signal.signal(number, signal.SIG_IGN)
        while True:
            with self._connected():
                message, rows = self._receive()
            if message["name"] == "end":
                return
            self._busy = True
            if message["reply"]:
                self._replies(message["name"], message["argument"])
            else:
                with suppress(FloatingPointError):  # rank 0 has it too, and says so
                    JOINT[message["name"]](self.subject, message["argument"], rows)
            self._busy = False

    def end(self) -> None:
        """Let the others go. Where an operation was broken off they cannot hear it, and the launcher ends them."""
        if self.leading and not self._busy:
            self._send({"name": "end"}, ())
        self.leading = False

    def wait(self) -> None:
        """Until every rank is here; without the short time-out of a GPU's collectives. Raises ConnectionError when one is gone."""
        if self.group is not None:
            with self._connected():
                dist.barrier(group=self.group)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(f"rank {self.rank}: another rank is gone ({str(error).splitlines()[0][:120]})") from None

    @contextmanager
    def _announced(self, name: str, argument: Any, rows: Sequence[Row] = (), reply: bool = False) -> Iterator[None]:
        with self._lock:
            if not self.leading or self._busy:
                yield
                return
            self._send({"name": name, "argument": argument, "reply": reply}, rows)
            self._busy = True
            try:
                yield
            except FloatingPointError:
                self._busy = False  # all ranks came through
                raise
            self._busy = False

    def _replies(self, name: str, argument: Any) -> tuple[list[Any], Exception | None]:
        """What every rank has to say, and this one's error."""
        failed: OSError | ValueError | None = None
        try:
            mine = {"result": JOINT[name](self.subject, argument, ())}
        except _EXPECTED as error:
            failed, number = error, getattr(error, "errno", None)
            mine = {
                "error": getattr(error, "strerror", None) or str(error),
                "errno": number,
                "file": getattr(error, "filename", None),
            }
        return [mine] if self.group is None else self._exchange(mine), failed

    def _exchange(self, mine: Any) -> list[Any]:
        data = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]), group=self.group)
        longest = int(max(lengths))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, nn.functional.pad(data, (0, longest - len(data))), group=self.group)
        return [json.loads(bytes(p[: int(n)].tolist())) for p, n in zip(parts, lengths, strict=True)]

    def _send(self, message: Mapping[str, Any], rows: Sequence[Row]) -> None:
        head = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        data = torch.frombuffer(bytearray(to_bytes({"head": head} | _flat(rows))), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(data)]), 0, group=self.group)
        dist.broadcast(data, 0, group=self.group)

    def _receive(self) -> tuple[dict[str, Any], list[Row]]:
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self.group)
        data = torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self.group)
        tensors = from_bytes(data.numpy().tobytes())
        return json.loads(bytes(tensors.pop("head").tolist())), _rows(tensors)


def _flat(rows: Sequence[Row]) -> dict[str, Tensor]:
    flat = {}
    for i, row in enumerate(rows):
        for field in fields(row):
            value = getattr(row, field.name)
            if field.name == "spans":
                value = torch.tensor([[s.start, s.stop, s.prompt_start, s.prompt_stop] for s in value])
            if value is not None:
                flat[f"{i}.{field.name}"] = value.cpu().contiguous()
    return flat


def _rows(flat: Mapping[str, Tensor]) -> list[Row]:
    made: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        number, _, name = key.partition(".")
        made.setdefault(int(number), {})[name] = tuple(Span(*s) for s in value.tolist()) if name == "spans" else value
    return [Row(**made[i]) for i in range(len(made))]


def share(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of rows by rank: the same number of slots for all but for the missing last ones, loads (positions) as even as that allows.

    Largest first to the rank with the least, so that the rows of one slot are of like size: sharded ranks wait for each other in each.
    """
    slots = -(-len(sizes) // ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = min((r for r in range(ranks) if len(shares[r]) < slots), key=lambda r: loads[r])
        shares[least].append(i)
        loads[least] += sizes[i]
    return shares


def asked_to_shard() -> bool:
    """Whether the launcher asked for FSDP. Raises ValueError for settings of accelerate's that are not followed."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ValueError("accelerate's fsdp_version is 1: set fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does")
    for name, instead in (("OFFLOAD_PARAMS", "learn's options"), ("ACTIVATION_CHECKPOINTING", "model.gradient_checkpointing")):
        if os.environ.get(f"FSDP_{name}", "false").lower() == "true":
            raise ValueError(f"accelerate's fsdp_{name.lower()} is not followed: use {instead} in the recipe")
    return True


def shard(module: nn.Module, model: Any, device: torch.device) -> None:
    """Shard a policy over all ranks: its layers, and the rest with it, are the units that are gathered one at a time.

    bf16 compute on a GPU from shards in their own dtype, gradients reduced in fp32. accelerate's own preparation is not used: it would
    reduce in bf16, cut log-probs to bf16, and cannot load a model with buffers in one process only. Weights come from rank 0 (the others
    may have read none), a unit at a time, so that no rank ever holds them all on its device.
    """
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if device.type == "cuda" else None, reduce_dtype=torch.float32)
    if coarse := [n for n, p in module.named_parameters() if not p.is_floating_point()]:
        raise ValueError(
            f"weights in 4 bits ({coarse[0]}) cannot be sharded over ranks: launch with recipes/accelerate/ddp.yaml, or without model.qlora"
        )
    names = set(getattr(model, "_no_split_modules", None) or ())
    for buffer in module.buffers():
        buffer.data = _from_first(buffer, device)
    for unit in [*(m for m in module.modules() if type(m).__name__ in names), module]:
        for parameter in unit.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = _from_first(parameter, device)
        fully_shard(unit, mp_policy=precision)


def _from_first(tensor: Tensor, device: torch.device) -> Tensor:
    full = tensor.detach().to(device) if dist.get_rank() == 0 else torch.empty_like(tensor, device=device)
    dist.broadcast(full, 0)
    return full


def sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def at_rest(module: nn.Module) -> nn.Module:
    """The module with its parameters as shards: after a forward pass the root's are still the gathered copies in compute precision."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()
    return module


def gather(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The full tensor on every rank that calls this together; cast first, so that less travels."""
    weight = weight.detach()
    weight = weight.to(dtype) if dtype and weight.is_floating_point() else weight
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def local(weight: Tensor) -> Tensor:
    """This rank's part of a tensor: the rows [start, stop) of its first axis that `extent` names."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def like(parameter: Tensor, part: Tensor) -> Tensor:
    """`part`, this rank's rows, as a tensor that is sharded as `parameter` is, on its device; its further axes may be others."""
    part = part.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return part
    mesh, placements = parameter.device_mesh, parameter.placements
    shape = torch.Size([parameter.shape[0], *part.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)


def extent(weight: Tensor) -> tuple[int, int]:
    """Rows [start, stop) of the first axis that this rank holds; (0, all) where nothing is sharded, (0, 1) for a scalar."""
    if not isinstance(weight, DTensor):
        return 0, weight.shape[0] if weight.ndim else 1
    if tuple(weight.placements) != (Shard(0),):
        raise AssertionError(f"sharded as {weight.placements}, not along the first axis over all ranks")
    chunk = -(-weight.shape[0] // weight.device_mesh.size())
    start = min(weight.device_mesh.get_local_rank() * chunk, weight.shape[0])
    return start, start + weight.to_local().shape[0]


def accumulating(acc: Accelerator, prepared: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Replicated gradients are summed over ranks once, with the last row. Sharded ones are reduced row by row: held back, they would lie
    unsharded in fp32 on every rank (4 bytes a parameter), and the reduction overlaps with the backward pass."""
    return nullcontext() if last or sharded(prepared) else acc.no_sync(prepared)
