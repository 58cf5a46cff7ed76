"""One trace: a question, what a teacher wrote for it, and where that came from. JSON lines in files that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Trace:
    """A teacher's answer as text; a student has a tokenizer of its own.

    >>> t = Trace("gsm8k/train/7#0", "gsm8k/train/7", "2+2?", " <think> 2 and 2 </think> <answer>4</answer>", gold="4")
    >>> t.think, t.answer
    ('2 and 2', '<answer>4</answer>')
    """

    id: str  # of the trace
    problem: str  # id of its question; all traces of one question have the same
    question: str
    text: str  # the whole completion, reasoning in <think> tags, as the student shall write it
    gold: str = ""  # "": there is nothing to verify it against
    kind: str = "math"  # "math", "code", "general"
    finish: str = "stop"  # as rl.records.Completion has it
    tokens: int = 0  # of the teacher's tokenizer; 0: not known
    source: str = ""  # the teacher, or the file
    system: str = ""  # a system message of its own
    columns: Mapping[str, Any] = field(default_factory=dict)  # what else the question's row has (language, tests, steps, ...)

    @property
    def think(self) -> str:
        """The reasoning; "" where its tags are not both there."""
        _, opened, rest = self.text.partition(OPEN)
        inside, closed, _ = rest.partition(CLOSE)
        return inside.strip() if opened and closed else ""

    @property
    def answer(self) -> str:
        """What stands behind the reasoning."""
        return self.text.rpartition(CLOSE)[2].strip()

    @property
    def row(self) -> dict[str, Any]:
        """The question's row, as rewards want it."""
        return {**self.columns, "id": self.problem, "question": self.question, "gold": self.gold, "kind": self.kind}

    @property
    def truncated(self) -> bool:
        return self.finish != "stop"


NAMES = frozenset(f.name for f in fields(Trace))
NEEDED = frozenset(("id", "problem", "question", "text"))
_OTHER = {"tokens": int, "columns": dict}  # types of fields that are no text


def to_json(trace: Trace) -> str:
    return json.dumps(asdict(trace), ensure_ascii=False, default=str)  # columns of a parquet file may be dates


def from_json(line: str) -> Trace:
    """The inverse of `to_json`. Raises ValueError."""
    tree = json.loads(line)
    if not isinstance(tree, dict) or not NEEDED <= set(tree) <= NAMES:
        raise ValueError(f"no trace: {line[:80]!r}")
    return from_row(tree)


def from_row(row: Mapping[str, Any]) -> Trace:
    """A row of this project's own form: null is a field's default, a number among ids and golds its text.

    Raises ValueError for a field of another type, and for text that no file can hold.
    """
    row = {k: v for k, v in row.items() if v is not None}
    if missing := sorted(NEEDED - set(row)):
        raise ValueError(f"{missing[0]} is null: every trace has its own; write it, or leave the row out")
    row |= {k: str(row[k]) for k in ("id", "problem", "gold") if type(row.get(k)) in (int, float)}
    for name, value in row.items():
        if not isinstance(value, wanted := _OTHER.get(name, str)) or isinstance(value, bool):
            raise ValueError(f"{name} is of type {type(value).__name__}, not {wanted.__name__}: mend it, or leave the row out")
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for k, v in row.items()}
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            broken = f"half of a character (a lone surrogate, {text[error.start]!a})"
            raise ValueError(f"{name} holds {broken}, which UTF-8 has not: mend it, or leave the row out") from None
    return Trace(**row)


def write(path: Path, lines: Iterable[str]) -> None:
    """Lines into a file that is whole, on disk and under its name when this returns, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: Path) -> Iterator[Trace]:
    """The traces of a file that `write` made. Raises ValueError with the line."""
    with path.open(encoding="utf-8") as lines:
        for n, line in enumerate(lines, 1):
            try:
                yield from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {n}: {error}") from None
