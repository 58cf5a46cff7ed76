"""A run's folder belongs to one run, and to one process at a time; what it was begun with is what it goes on with.

`lock` is held (fcntl) by the process that runs, so the kernel gives it back however that ends. `config.json` has the settings,
`inputs.json` a hash of every question, its prompt's token ids, and the order of the curriculum: a data file, chat template or tokenizer
that was changed between stop and resume is noticed, for a position in the data would mean another question.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import result
from rl import config as configs
from rl.config import Config

if TYPE_CHECKING:
    from recipes.street import Task

LOCK, CONFIG, INPUTS = "lock", "config.json", "inputs.json"
WHERE = ("rollout.placement:", "rollout.workers:", "rollout.min_workers:", "rollout.devices:")  # a cluster gives what it has
FREE = ("run.steps:", "run.out:", *WHERE)  # may change without a word


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder is this process's until the block ends. Raises ValueError while another one has it.

    A folder that was made for this and holds nothing in the end is removed again.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder / LOCK)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(handle)
        if new:
            with suppress(OSError):  # it holds a run
                folder.rmdir()


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise ValueError(
                f"{path.parent} is in use by {owner}: wait until it ends, or choose another folder with run.out="
            ) from None
        with suppress(OSError):  # its owner removed it before we had it; another may have made a new one
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
        os.close(handle)


def check(folder: Path, config: Config, resume: bool, allow_changes: bool) -> None:
    """Whether the run may begin, or go on, here; says what has changed. Raises ValueError."""
    there = folder / CONFIG
    if not resume:
        if there.exists():
            raise ValueError(f"{folder} already holds a run: go on with --resume, or choose another folder with run.out=")
        return
    if not there.exists():
        raise ValueError(f"--resume: {folder} holds no run; start it without --resume")
    try:
        old = configs.from_dict(json.loads(there.read_text()))
    except ValueError as error:
        raise ValueError(f"--resume: {there} cannot be read: {error}") from None
    changed = configs.difference(old, config)
    if serious := [c for c in changed if not c.startswith(FREE)]:
        _refuse(f"the config is not the run's ({'; '.join(serious)})", allow_changes, "only run.steps may change")
    for change in changed:
        print(f"changed since the run began: {change}", flush=True)


def check_inputs(folder: Path, task: Task, allow_changes: bool) -> None:
    """On resume: whether the data are what the run began with. Raises ValueError."""
    try:
        old = json.loads((folder / INPUTS).read_text())
    except FileNotFoundError:  # killed before it was written
        return
    except ValueError as error:
        raise ValueError(f"--resume: {folder / INPUTS} cannot be read: {error}") from None
    changed = [name for name, found in inputs(task).items() if old.get(name) != found]
    if changed:
        what = f"{' and '.join(changed)} {'is' if len(changed) == 1 else 'are'} not what the run began with"
        _refuse(what, allow_changes, "a file behind [data], the template or the tokenizer was changed")
        print(f"changed since the run began: {', '.join(changed)}", flush=True)


def _refuse(what: str, allow_changes: bool, why: str) -> None:
    if not allow_changes:
        raise ValueError(f"--resume: {what}; {why}. Go on all the same with --allow-changes")


def record(folder: Path, config: Config, task: Task) -> None:
    """What the run is begun, or goes on, with. config.json last: a folder with it has all."""
    result.write_json(folder / INPUTS, inputs(task))
    result.write_json(folder / CONFIG, configs.to_dict(config))


def inputs(task: Task) -> dict[str, str | None]:
    """A SHA-256 by what the data are for; None where there are none."""
    prompts = {"data.train": task.train, "data.heldout": task.heldout}
    lines: dict[str, Iterable[Any]] = {name: ([p.id, p.ids, p.problem] for p in of) for name, of in prompts.items()}
    lines["data.curriculum"] = task.parts or ()
    return {name: _hash(of) for name, of in lines.items()}


def _hash(lines: Iterable[Any]) -> str | None:
    parts = [json.dumps(line, sort_keys=True, default=str) for line in lines]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None
