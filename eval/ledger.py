"""Graded answers on disk as they come in, so that a killed evaluation goes on where it was, and how far it is on the console.

The work of a task is cut into units (questions sampled together, or scored in one row) that depend on nothing but the settings. A unit's
answers are appended and synced to `samples/TASK.part` together; after a kill a unit is there as a whole or is done again. At
the end `samples/TASK.jsonl` is written in the task's order: the same bytes, however often it was interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from eval.records import Answered, Settings, read_settings, samples_path, write_samples, write_settings

FREE = ("date", "commit")  # of the first start; what is graded by the same grader may go on under another commit


def claim(folder: str | Path, wanted: Settings) -> bool:
    """Enter a task into the folder's settings, or find it there; True: its samples are all there. ValueError where others are.

    A folder holds one evaluation of one model: what is there was made with the same settings, or is not touched.
    """
    there = {s.task: s for s in read_settings(folder)} if (Path(folder) / "settings.json").exists() else {}
    other = next((s for s in there.values() if (s.model, s.model_hash) != (wanted.model, wanted.model_hash)), None)
    if other:
        raise ValueError(
            f"{folder} holds an evaluation of {other.model}, not of these weights of {wanted.model}: choose another OUT"
        )
    if (old := there.get(wanted.task)) is None:
        there[wanted.task] = wanted
        write_settings(folder, [there[name] for name in sorted(there)])
        return False
    now = replace(wanted, **{name: getattr(old, name) for name in FREE})
    changed = [
        f"{key} {a!r}, now {b!r}" for (key, a), b in zip(asdict(old).items(), asdict(now).values(), strict=True) if a != b
    ]
    if changed:
        raise ValueError(f"{folder} holds {wanted.task} under other settings ({'; '.join(changed)[:400]}): choose another OUT")
    return samples_path(folder, wanted.task).exists()


class Ledger:
    """The answers of one task. `units` are the ids of each unit's questions, `order` all ids in the task's order."""

    def __init__(self, folder: str | Path, task: str, order: Sequence[str], units: Sequence[Sequence[str]]) -> None:
        self.folder, self.task, self.order = Path(folder), task, order
        self.path = samples_path(folder, task).with_suffix(".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.answered: dict[str, Answered] = {}
        found = {a.id: a for a in self._whole_lines()}
        self.done = [bool(ids) and all(i in found for i in ids) for ids in units]
        kept = [i for ids, done in zip(units, self.done, strict=True) if done for i in ids]
        new = self.path.with_name(self.path.name + ".new")
        new.write_text("".join(found[i].to_json() + "\n" for i in kept), encoding="utf-8")
        os.replace(new, self.path)
        self.answered = {i: found[i] for i in kept}
        self.file: IO[str] = self.path.open("a", encoding="utf-8")

    def _whole_lines(self) -> list[Answered]:
        """What a kill left; its last line may be torn."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return [Answered.from_json(line) for line in lines if line]

    def add(self, answered: Sequence[Answered]) -> None:
        """One unit, on disk when this returns."""
        self.file.write("".join(a.to_json() + "\n" for a in answered))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.answered |= {a.id: a for a in answered}

    def finish(self) -> list[Answered]:
        """Write the samples' file in the task's order. All questions are there by now."""
        self.file.close()
        answered = [self.answered[i] for i in self.order]
        write_samples(self.folder, self.task, answered)
        self.path.unlink()
        return answered


class Progress:
    """`gsm8k  512/1319 questions, 0:31, 0:49 to go` on stderr: one line that changes, or now and then a new one where it is no terminal.

    `total` and `step` are in units of work; the time to go counts this process's work alone, not what was found done.
    """

    def __init__(self, name: str, questions: int, total: float, done: float = 0.0, every_s: float = 10.0) -> None:
        self.name, self.questions, self.total, self.found, self.at = name, questions, max(total, 1e-9), done, done
        self.terminal, self.every = sys.stderr.isatty(), every_s
        self.begun, self.said = time.monotonic(), time.monotonic()

    def step(self, work: float) -> None:
        self.at += work
        now = time.monotonic()
        if now - self.said >= (0.2 if self.terminal else self.every):
            self.said = now
            self._say(self.line(now))

    def line(self, now: float) -> str:
        taken, fresh = now - self.begun, self.at - self.found
        left = f", {_clock(taken / fresh * (self.total - self.at))} to go" if fresh > 0 else ""
        return f"{self.name}  {round(self.questions * self.at / self.total)}/{self.questions} questions, {_clock(taken)}{left}"

    def close(self) -> None:
        """Clears the changing line."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _say(self, line: str) -> None:
        print(f"\r\033[K{line}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    """`0:07`, `12:40`, `1:02:09`."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
