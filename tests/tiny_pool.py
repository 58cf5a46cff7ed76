"""Rollout workers for tests: real processes, with the tiny models of tiny.py or scripted answers, healthy or with a planted fault."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.places import ProcessPlace
from rl.remote import Remote
from rl.transfer import SharedWindow, Window
from rl.workers import Pool
from tests import tiny

WINDOW = 1 << 17  # bytes: several buckets for a tiny model
SCRIPTED = "0.01"  # seconds a prompt
START_S = 120.0


def spec(sampler: str = "transformers", family: str = "qwen3", restart: bool = False, **engine: Any) -> dict[str, Any]:
    return {
        "parent": os.getpid(), "sampler": sampler, "path": tiny.path(family), "device": "cpu", "context": 384, "seed": 0,
        "trust_remote_code": False, "restart": restart, "stop_loops": 0, "engine": engine,
    }  # fmt: skip


def worker(
    fault: str = "", *, after: int = 1, timeout_s: float = 60, start_s: float = START_S, name: str = "worker 0",
    scripted: str = SCRIPTED, loads: bool = False, of: Mapping[str, Any] | None = None,
) -> Remote:  # fmt: skip
    """A worker, not yet ready. `scripted` empty: the real sampler of the spec `of`. `loads`: a time-out does not count torch's import."""
    environment = {"FAULT": fault, "AFTER": str(after), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if scripted:
        environment |= {"SCRIPTED": scripted, "LOADS": "1" if loads else ""}
    place = ProcessPlace(environment, module="tests.faulty_worker" if fault or scripted else "rl.worker_child")
    return Remote(name, place, of or spec_scripted(), timeout_s, start_s)


def spec_scripted() -> dict[str, Any]:
    return {"parent": os.getpid(), "device": "cpu"}


def pool(
    count: int = 2, faults: Mapping[int, str] | None = None, *, minimum: int = 1, vocabulary: int = tiny.VOCABULARY, **options: Any
) -> Pool:  # fmt: skip
    """`faults`: by slot, for the first start alone; `options` as for `worker`."""

    def start(slot: int, attempt: int) -> Remote:
        return worker((faults or {}).get(slot, "") if not attempt else "", name=f"worker {slot}.{attempt}", **options)

    def window(workers: int) -> Window:
        return SharedWindow(WINDOW)

    return Pool(
        start, count, minimum=minimum, vocabulary=vocabulary, timeout_s=options.get("timeout_s", 60), window=window
    )  # fmt: skip


def pid(of: Remote) -> int:
    return of.place.popen.pid  # type: ignore[attr-defined]


def alive(number: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(numbers: list[int], within_s: float = 15) -> bool:
    """Whether all these processes have ended, waiting that long."""
    end = time.monotonic() + within_s
    while any(map(alive, numbers)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def below(parent: int) -> list[int]:
    """The processes that `parent` started, and theirs, whatever session they are in."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(text.split()[0]))
    found, new = [], [parent]
    while new:
        new = [c for p in new for c in children.get(p, [])]
        found += new
    return found
