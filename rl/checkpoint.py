"""Checkpoints that are whole or absent, and exact resume.

A save writes files into a temporary folder and syncs each to disk, then `manifest.json` with their SHA-256, then syncs the folder, renames
it to its name in one step and syncs the folder above. A folder without a matching manifest is not a checkpoint: loading names it and takes
the one before. One that is dropped first loses its name. safetensors and JSON only; what every rank writes: checkpoint_parts.py.

On a CPU a resumed run equals the uninterrupted one bit for bit: the order of prompts and the seeds of sampling are functions of (seed,
step) and the cursor, so besides weights, optimiser, reference model and random generators a few counters are all of its state. What was
sampled ahead of the learner is not kept: the cursor is that of the step learned from, so those prompts are sampled again under newer
weights, and none is skipped or learned from twice (tests/test_ahead.py).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rl import checkpoint_parts as parts
from rl.checkpoint_parts import fsync, write_json
from rl.config import Run
from rl.learn import Learner

MANIFEST, STATE = "manifest.json", "state.json"


@dataclass(frozen=True)
class State:
    """The counters of a checkpoint: steps done, updates done, and what guards remember."""

    step: int
    updates: int
    guard: dict[str, Any]
    cursor: int = 0  # position in the order of the data from which the next step takes its prompts
    window: tuple[float, ...] = ()  # run.best of the steps since the last checkpoint that was due
    score: float | None = None  # its mean, of a checkpoint that was due


class Keeper:
    """The checkpoints of one run: the newest `run.keep`, and the best by the metric `run.best`."""

    def __init__(self, folder: Path, learner: Learner, run: Run) -> None:
        self.folder, self.learner, self.run = folder, learner, run
        self.state, self.saved = State(0, 0, {}), True

    def note(self, state: State, metrics: Mapping[str, Any]) -> None:
        """A whole step is done."""
        if state.step == 1 and self.run.best and self.run.best not in metrics:
            raise ValueError(f"run.best = {self.run.best!r}: a step has no such number; it has {', '.join(sorted(metrics))}")
        value = metrics.get(self.run.best)
        window = self.state.window + ((float(value),) if isinstance(value, int | float) and math.isfinite(value) else ())
        self.state, self.saved = replace(state, window=window), False

    def due(self, wanted: bool = True) -> None:
        """Save where it is time for it: every `run.save_every` steps unless it is not `wanted`, and in the end."""
        state, window, every = self.state, self.state.window, self.run.save_every
        if state.step == self.run.steps or (wanted and every and state.step % every == 0):
            self.state = replace(state, score=sum(window) / len(window) if window else None, window=())
            self.save()

    def save(self) -> None:
        """The state after the last whole step, unless that is on disk."""
        if not self.saved:
            save(self.folder, self.learner, self.state, self.run.keep)
            self.saved = True

    def load(self, last: int | None = None) -> tuple[State, list[str]]:
        """As `load`; the state that a run begins with where it never saved one."""
        if any(self.folder.glob("step-*")):
            self.state, damaged = load(self.folder, self.learner, last)
            return self.state, damaged
        return self.state, []


def save(folder: Path, learner: Learner, state: State, keep: int) -> Path:
    """Write `folder/step-000120` and drop all but the newest `keep` and the one with the highest score. OSError (full disk) leaves the
    older ones untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state.step:06d}"
    with whole(final) as temporary:
        hashes: dict[str, str] = {}
        for mine in learner.ranks.collect("write", str(temporary)):
            hashes |= mine
        hashes[STATE] = write_json(temporary / STATE, asdict(state))
        write_json(temporary / MANIFEST, dict(sorted(hashes.items())))
    there = sorted(folder.glob("step-*"))
    older = [p for p in there if p <= final]
    scores = {p: score for p in older if (score := _score(p)) is not None}
    kept = {*older[-keep:], *([max(scores, key=lambda p: (scores[p], p))] if scores else [])}
    # Newer ones than this were damaged and passed over at the resume; they must not count as the newest.
    for old in [p for p in there if p not in kept]:
        nameless = old.with_name(f".tmp-old-{old.name}")  # first of all: half a checkpoint never bears a name
        old.rename(nameless)
        shutil.rmtree(nameless)
    return final


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / STATE).read_bytes())["score"]
    except (OSError, ValueError, KeyError, TypeError):  # damaged, and said so where it is loaded
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes `final` (replacing an older one) when the block ends well, and is gone when it does not."""
    for left in final.parent.glob(".tmp-*"):  # of a process that was killed while it wrote
        shutil.rmtree(left)
    temporary, older = final.with_name(f".tmp-{final.name}"), final.with_name(f".tmp-old-{final.name}")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            fsync(file)
        fsync(temporary)
        if final.exists():
            final.rename(older)
        temporary.rename(final)
        fsync(final.parent)
    except BaseException:
        if older.exists() and not final.exists():
            older.rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if older.exists():
        shutil.rmtree(older)


def load(folder: Path, learner: Learner, last: int | None = None) -> tuple[State, list[str]]:
    """The newest whole checkpoint under `folder` (of step `last` at most) into `learner`; also the names of damaged ones passed over,
    with the reason.

    ValueError when none is whole.
    """
    damaged = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if last is not None and path.name > f"step-{last:06d}":
            continue
        try:
            _examine(path, learner)
            state = _state(path)
        except (OSError, ValueError, SafetensorError) as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            damaged.append(f"{path.name}: {kind}{error}")
            continue
        learner.ranks.collect("restore", str(path))
        return state, damaged
    detail = f" ({'; '.join(damaged)})" if damaged else ""
    raise ValueError(f"--resume: no whole checkpoint under {folder}{detail}; start the run without --resume in a new run.out")


def _examine(path: Path, learner: Learner) -> None:
    """Raises ValueError, OSError or SafetensorError where `path` is no whole checkpoint."""
    hashes = json.loads((path / MANIFEST).read_bytes())
    if not isinstance(hashes, dict) or not all(parts.PART.fullmatch(name) for name in hashes):
        raise ValueError("its manifest is no list of its files")
    found: dict[str, str] = {}
    for mine in learner.ranks.collect("hash", [str(path), sorted(hashes)]):
        found |= mine
    for name, wanted in hashes.items():
        if found[name] != wanted:
            raise ValueError(found[name] if " " in found[name] else f"{name} does not have its recorded hash")
    if STATE not in hashes or not all(parts.files(hashes, kind) for kind in ("model", "optimizer", "random")):
        raise ValueError("its manifest lacks files")
    for name in parts.files(hashes, "random"):
        parts.check_random(path / name)
    for kind in ("model", "optimizer", "reference"):
        try:
            parts.Source(path, parts.files(hashes, kind))
        except SafetensorError as error:
            raise ValueError(f"{kind} is no safetensors file: {error}") from None


def _state(path: Path) -> State:
    tree = json.loads((path / STATE).read_bytes())
    try:
        state = State(**{**tree, "window": tuple(tree["window"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{STATE} holds other counters ({error})") from None
    if not all(isinstance(n, int) and n >= 0 for n in (state.step, state.updates, state.cursor)):
        raise ValueError(f"{STATE} holds counters that are none")
    return state
