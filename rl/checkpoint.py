"""Checkpoints that are whole or absent, and exact resume.

A save writes files into a temporary folder, `manifest.json` with their SHA-256 last, syncs each to disk, and renames the folder to its
name in one step. A folder without a matching manifest is not a checkpoint: loading names it and takes the one before.
safetensors and JSON only. On a CPU a resumed run equals the uninterrupted one bit for bit: the order of prompts and all seeds are
functions of (seed, step) and the cursor, so these counters are the whole of its state besides weights and optimiser.

Replicated weights are one file of a kind. Of sharded ones every rank writes its own (model-00001-of-00002.safetensors: of each tensor the
rows that follow those of the file before), and a load cuts them anew: a checkpoint of any number of ranks loads on any other. On several
hosts the folder must be one that all of them see.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from rl import ranks
from rl.learn import Learner, state_of

PART = re.compile(r"(\w+)(?:-(\d{5})-of-(\d{5}))?\.safetensors")


@dataclass(frozen=True)
class State:
    """The counters of a checkpoint: steps done, updates done, and what guards remember."""

    step: int
    updates: int
    guard: dict[str, Any]
    cursor: int = 0  # position in the order of the data from which the next step takes its prompts


def save(folder: Path, learner: Learner, state: State, keep: int) -> Path:
    """Write `folder/step-000120` and drop all but the newest `keep`. OSError (full disk) leaves the older ones untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state.step:06d}"
    with whole(final) as temporary:
        hashes: dict[str, str] = {}
        for mine in learner.ranks.collect("write", str(temporary)):
            hashes |= mine
        counters = {"step": state.step, "updates": state.updates, "guard": state.guard, "cursor": state.cursor}
        (temporary / "state.json").write_text(json.dumps(counters))
        hashes["state.json"] = _sha256(temporary / "state.json")
        (temporary / "manifest.json").write_text(json.dumps(dict(sorted(hashes.items())), indent=1))
    there = sorted(folder.glob("step-*"))
    # Newer ones than this were damaged and passed over at the resume; they must not count as the newest.
    for old in [p for p in there if p > final] + [p for p in there if p <= final][:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes `final` (replacing an older one) when the block ends well, and is gone when it does not."""
    for left in final.parent.glob(".tmp-*"):  # of a process that was killed while it wrote
        shutil.rmtree(left)
    temporary = final.with_name(f".tmp-{final.name}")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _fsync(file)
        _fsync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _fsync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(folder: Path, learner: Learner) -> tuple[State, list[str]]:
    """The newest whole checkpoint under `folder` into `learner`; also the names of damaged ones passed over, with the reason.

    ValueError when none is whole.
    """
    damaged = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if reason := _damage(path, learner):
            damaged.append(f"{path.name}: {reason}")
            continue
        learner.ranks.collect("restore", str(path))
        c = json.loads((path / "state.json").read_text())
        return State(c["step"], c["updates"], c["guard"], c["cursor"]), damaged
    detail = f" ({'; '.join(damaged)})" if damaged else ""
    raise ValueError(f"--resume: no whole checkpoint under {folder}{detail}; start the run without --resume in a new run.out")


def _write(learner: Learner, folder: str, _: Any) -> dict[str, str]:
    """On every rank: its files, and their hashes by name."""
    rank, size = learner.ranks.rank, learner.ranks.size if learner.sharded else 1
    if rank >= size:
        return {}
    hashes = {}
    for kind, tensors in _kinds(learner).items():
        name = f"{kind}.safetensors" if size == 1 else f"{kind}-{rank + 1:05d}-of-{size:05d}.safetensors"
        # What is the same everywhere is in the first part; a tensor of few rows ends before the last.
        mine = {n: ranks.local(t).contiguous() for n, t in tensors.items() if rank == 0 or isinstance(t, DTensor)}
        try:
            save_file({n: t for n, t in mine.items() if rank == 0 or len(t)}, Path(folder, name))
        except SafetensorError as error:  # safetensors' own word for an OSError
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error), str(Path(folder, name))) from None
        _fsync(Path(folder, name))  # on this host; its folder is synced by the one that renames it
        hashes[name] = _sha256(Path(folder, name))
    return hashes


def _restore(learner: Learner, folder: str, _: Any) -> None:
    """On every rank: its part of what `folder` holds. ValueError, and nothing is changed, where that is another model."""
    path, targets = Path(folder), _kinds(learner)
    names = json.loads((path / "manifest.json").read_text())
    sources = {kind: _Source(path, _files(names, kind)) for kind in targets}
    for kind in targets.keys() - {"optimizer"}:
        if {n: tuple(t.shape) for n, t in targets[kind].items()} != sources[kind].shapes:
            raise ValueError(f"--resume: {path} holds another model than model.path; resume with the model the run began with")
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


class _Source:
    """The tensors of one kind in a checkpoint, each cut along its first axis over the files in their order."""

    def __init__(self, path: Path, files: list[str]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pieces: dict[str, list[tuple[int, int, Any]]] = {}  # name -> (first row, rows, file)
        for file in files:
            opened = safe_open(path / file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                shape = tuple(opened.get_slice(name).get_shape())
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


def _kinds(learner: Learner) -> dict[str, dict[str, Tensor]]:
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


def _files(names: Iterable[str], kind: str) -> list[str]:
    """The files of a kind in their order; none where one is missing."""
    found = sorted(n for n in names if (part := PART.fullmatch(n)) and part[1] == kind)
    part = PART.fullmatch(found[0]) if found else None
    return found if part and len(found) == int(part[3] or 1) else []


def _damage(path: Path, learner: Learner) -> str | None:
    """Why `path` is no whole checkpoint, or None."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        found: dict[str, str] = {}
        for mine in learner.ranks.collect("hash", [str(path), sorted(hashes)]):
            found |= mine
        for name, wanted in hashes.items():
            if found[name] != wanted:
                return found[name] if " " in found[name] else f"{name} does not have its recorded hash"
        if "state.json" not in hashes or not all(_files(hashes, kind) for kind in ("model", "optimizer")):
            return "its manifest lacks files"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _hash(learner: Learner, argument: tuple[str, list[str]], _: Any) -> dict[str, str]:
    """On every rank: the hashes of its share of the files, or why one has none."""
    folder, names = argument
    hashes = {}
    for name in names[learner.ranks.rank :: learner.ranks.size]:
        try:
            hashes[name] = _sha256(Path(folder, name))
        except OSError as error:
            hashes[name] = f"{type(error).__name__}: {error}"
    return hashes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


ranks.JOINT |= {"write": _write, "restore": _restore, "hash": _hash}
