"""What each rank writes of a checkpoint, and reads of it (see checkpoint.py).

Replicated weights are one file of a kind. Of sharded ones every rank writes its own (model-00001-of-00002.safetensors: of each tensor the
rows that follow those of the file before), and a load cuts them anew: a checkpoint of any number of ranks loads on any other. On several
hosts the folder must be one that all of them see. Every rank writes the state of its random generators; one that has no predecessor
begins with its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from rl import ranks
from rl.learn import Learner, state_of

PART = re.compile(r"(\w+)(?:-(\d{5})-of-(\d{5}))?\.(safetensors|json)")


def _write(learner: Learner, folder: str, _: Any) -> dict[str, str]:
    """On every rank: its files, and their hashes by name."""
    rank, size = learner.ranks.rank, learner.ranks.size
    here = Path(folder, f"random{_of(rank, size)}.json")
    hashes = {here.name: write_json(here, _random(learner))}
    if rank and not learner.sharded:
        return hashes
    for kind, tensors in kinds(learner).items():
        path = Path(folder, f"{kind}{_of(rank, size if learner.sharded else 1)}.safetensors")
        # What is the same everywhere is in the first part; a tensor of few rows ends before the last.
        mine = {n: ranks.local(t).contiguous() for n, t in tensors.items() if rank == 0 or isinstance(t, DTensor)}
        try:
            save_file({n: t for n, t in mine.items() if rank == 0 or len(t)}, path)
        except SafetensorError as error:  # safetensors' own word for an OSError
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
        fsync(path)  # on this host; its folder is synced by the one that renames it
        hashes[path.name] = sha256(path)
    return hashes


def _of(rank: int, size: int) -> str:
    return "" if size == 1 else f"-{rank + 1:05d}-of-{size:05d}"


def _restore(learner: Learner, folder: str, _: Any) -> None:
    """On every rank: its part of what `folder` holds. ValueError, and nothing is changed, where that is of another model or optimiser."""
    path, targets = Path(folder), kinds(learner)
    names = json.loads((path / "manifest.json").read_text())
    sources = {kind: Source(path, files(names, kind)) for kind in targets}
    _check(path, learner, targets, sources)
    with torch.no_grad():
        for kind in targets.keys() - {"optimizer"}:
            for name, tensor in targets[kind].items():
                ranks.local(tensor).copy_(sources[kind].read(name, *ranks.extent(tensor)))
    moments, state = sources["optimizer"], learner.optimizer.state
    parameters = dict(learner.policy.model.named_parameters())
    for key, shape in moments.shapes.items():
        moment, _, name = key.partition("/")
        parameter = parameters[name]
        if shape[:1] == tuple(parameter.shape)[:1] and shape:
            state[parameter][moment] = ranks.like(parameter, moments.read(key, *ranks.extent(parameter)))
        else:  # the optimiser's own counter, on the CPU unless fused on a GPU
            state[parameter][moment] = moments.read(key).to(parameter.device)
    learner.updates = json.loads((path / "state.json").read_text())["updates"]
    written = files(names, "random")
    if learner.ranks.rank < len(written):
        _set_random(learner, json.loads((path / written[learner.ranks.rank]).read_text()))


def _check(path: Path, learner: Learner, targets: dict[str, dict[str, Tensor]], sources: dict[str, Source]) -> None:
    if "reference" in targets and not sources["reference"].shapes:
        raise ValueError(
            f"--resume: {path} holds no reference model, for algorithm.kl was 0: resume with that, or start a new run"
        )
    for kind in targets.keys() - {"optimizer"}:
        if {n: tuple(t.shape) for n, t in targets[kind].items()} != sources[kind].shapes:
            raise ValueError(f"--resume: {path} holds another model than model.path; resume with the model the run began with")
    moments, trained = sources["optimizer"], {n for n, p in learner.policy.model.named_parameters() if p.requires_grad}
    if {key.partition("/")[2] for key in moments.shapes} - trained:
        raise ValueError(
            f"--resume: {path} holds moments of other weights than are trained; resume with the run's own model.lora"
        )
    learn = learner.config.learn
    if learn.optimizer == "adamw" and not learn.offload and moments.coarse:
        raise ValueError(f"--resume: {path} holds moments in 8 bits; resume with learn.optimizer=adamw8, as the run began")


def _random(learner: Learner) -> dict[str, Any]:
    """The states of this process's random generators, as JSON."""
    kind, keys, *rest = numpy.random.get_state()  # noqa: NPY002 (what other code may use)
    device = learner.acc.device
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": torch.cuda.get_rng_state(device).numpy().tobytes().hex() if device.type == "cuda" else "",
        "python": random.getstate(),
        "numpy": [kind, numpy.asarray(keys).tolist(), *rest],
    }


def _set_random(learner: Learner, tree: dict[str, Any]) -> None:
    torch.set_rng_state(_bytes(tree["torch"]))
    if learner.acc.device.type == "cuda" and tree["cuda"]:
        torch.cuda.set_rng_state(_bytes(tree["cuda"]), learner.acc.device)
    version, keys, gauss = tree["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = tree["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))  # noqa: NPY002


def check_random(path: Path) -> None:
    """Raises ValueError where the file is none that `_random` made."""
    tree = json.loads(path.read_bytes())
    try:
        fits = (
            len(_bytes(tree["torch"])) == len(torch.get_rng_state())
            and len(tree["python"][1]) == 625
            and len(tree["numpy"][1]) == 624
        )
        assert isinstance(tree["cuda"], str)
    except (TypeError, KeyError, IndexError, AssertionError):
        fits = False
    if not fits:
        raise ValueError(f"{path.name} holds no states of random generators")


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


class Source:
    """The tensors of one kind in a checkpoint, each cut along its first axis over the files in their order."""

    def __init__(self, path: Path, files: list[str]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.coarse = False  # whether any is in 8 bits
        self.pieces: dict[str, list[tuple[int, int, Any]]] = {}  # name -> (first row, rows, file)
        for file in files:
            opened = safe_open(path / file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                shape = tuple(opened.get_slice(name).get_shape())
                self.coarse |= opened.get_slice(name).get_dtype() == "U8"
                first = self.shapes[name][0] if name in self.shapes else 0
                self.pieces.setdefault(name, []).append((first, shape[0] if shape else 1, opened))
                self.shapes[name] = (first + shape[0], *shape[1:]) if shape else ()

    def read(self, name: str, start: int = 0, stop: int = 1) -> Tensor:
        """Rows [start, stop) of a tensor; a scalar is one row."""
        if not self.shapes[name]:
            return self.pieces[name][0][2].get_tensor(name)
        parts: list[Tensor] = []
        for first, rows, opened in self.pieces[name]:
            low, high = max(start - first, 0), min(stop - first, rows)
            if low < high or not parts:  # at least an empty one, for its type
                parts.append(opened.get_slice(name)[low : max(low, high)] if low < rows else opened.get_slice(name)[:0])
        return torch.cat(parts)


def kinds(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds of a learner: trained weights and buffers, the optimiser's tensors, the reference model."""
    model = ranks.at_rest(learner.policy).model
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}  # as model.path has them
    moments = {n: learner.optimizer.state.get(p, {}) for n, p in model.named_parameters()}
    kinds = {
        "model": {n: t for n, t in state_of(model).items() if n not in frozen},
        "optimizer": {f"{moment}/{n}": t.detach() for n, of in moments.items() for moment, t in of.items()},
    }
    if learner.reference is not None:
        kinds["reference"] = state_of(ranks.at_rest(learner.reference).model)
    return kinds


def files(names: Iterable[str], kind: str) -> list[str]:
    """The files of a kind in their order; none where one is missing."""
    found = sorted(n for n in names if (part := PART.fullmatch(n)) and part[1] == kind)
    part = PART.fullmatch(found[0]) if found else None
    return found if part and len(found) == int(part[3] or 1) else []


def _hash(learner: Learner, argument: tuple[str, list[str]], _: Any) -> dict[str, str]:
    """On every rank: the hashes of its share of the files, or why one has none."""
    folder, names = argument
    hashes = {}
    for name in names[learner.ranks.rank :: learner.ranks.size]:
        try:
            hashes[name] = sha256(Path(folder, name))
        except OSError as error:
            hashes[name] = f"{type(error).__name__}: {error}"
    return hashes


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, tree: Any) -> str:
    """Write a small file and sync it to disk; returns its hash."""
    data = json.dumps(tree).encode()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


ranks.JOINT |= {"write": _write, "restore": _restore, "hash": _hash}
