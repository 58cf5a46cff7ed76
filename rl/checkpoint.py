"""Checkpoints that are whole or absent, and exact resume.

A save writes files into a temporary folder, `manifest.json` with their SHA-256 last, syncs each to disk, and renames the folder to its
name in one step. A folder without a matching manifest is not a checkpoint: loading names it and takes the one before.
safetensors and JSON only. On a CPU a resumed run equals the uninterrupted one bit for bit: the order of prompts and all seeds are
functions of (seed, step) and the cursor, so these counters are the whole of its state besides weights and optimiser.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl.learn import Learner

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


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
        save_file(_weights(learner), temporary / "model.safetensors")
        save_file(_moments(learner), temporary / "optimizer.safetensors")
        if learner.reference is not None:
            save_file(_named(learner.reference.model), temporary / "reference.safetensors")
        counters = {"step": state.step, "updates": state.updates, "guard": state.guard, "cursor": state.cursor}
        (temporary / "state.json").write_text(json.dumps(counters))
        hashes = {f.name: _sha256(f) for f in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(hashes, indent=1))
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
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):  # safetensors' own word for an OSError
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error), str(final)) from None
        raise


def load(folder: Path, learner: Learner) -> tuple[State, list[str]]:
    """The newest whole checkpoint under `folder` into `learner`; also the names of damaged ones passed over, with the reason.

    ValueError when none is whole.
    """
    damaged = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if reason := _damage(path):
            damaged.append(f"{path.name}: {reason}")
            continue
        return _restore(path, learner), damaged
    detail = f" ({'; '.join(damaged)})" if damaged else ""
    raise ValueError(f"--resume: no whole checkpoint under {folder}{detail}; start the run without --resume in a new run.out")


def _restore(path: Path, learner: Learner) -> State:
    counters = json.loads((path / "state.json").read_text())
    _copy(load_file(path / "model.safetensors"), _named(learner.policy.model), path)
    if learner.reference is not None:
        _copy(load_file(path / "reference.safetensors"), _named(learner.reference.model), path)
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in learner.policy.model.named_parameters():
        found = {m: moments[f"{m}/{name}"] for m in MOMENTS if f"{m}/{name}" in moments}
        if found:
            # The optimiser's own counter stays where it was made: on the CPU unless fused on a GPU.
            learner.optimizer.state[parameter] = {m: t.to(parameter.device) for m, t in found.items()}
    learner.updates = counters["updates"]
    return State(counters["step"], counters["updates"], counters["guard"], counters["cursor"])


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> None:
    if source.keys() != target.keys() or any(source[n].shape != t.shape for n, t in target.items()):
        raise ValueError(f"--resume: {path} holds another model than model.path; resume with the model the run began with")
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _named(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def _weights(learner: Learner) -> dict[str, Tensor]:
    return {name: t.contiguous() for name, t in _named(learner.policy.model).items()}


def _moments(learner: Learner) -> dict[str, Tensor]:
    state = learner.optimizer.state
    return {
        f"{moment}/{name}": state[p][moment].detach().contiguous()
        for name, p in learner.policy.model.named_parameters()
        for moment in MOMENTS
        if moment in state.get(p, {})
    }


def _damage(path: Path) -> str | None:
    """Why `path` is no whole checkpoint, or None."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        for name, wanted in hashes.items():
            if _sha256(path / name) != wanted:
                return f"{name} does not have its recorded hash"
        if not {"model.safetensors", "optimizer.safetensors", "state.json"} <= hashes.keys():
            return "its manifest lacks files"
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
