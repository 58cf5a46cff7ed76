"""What an evaluation leaves: a question with its graded answers, and the settings to repeat it. Frozen; one JSON object each.

The folder of one evaluation of one model:
  settings.json        a list of Settings, one a task
  samples/TASK.jsonl   one Answered a line, in the task's row order
  results.json         the figures, in lm-evaluation-harness's layout
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar


@dataclass(frozen=True)
class _Record:
    def to_json(self) -> str:
        """One line; equal records give equal bytes."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse. Raises ValueError for what is no such record."""
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg})") from None
        return cls.from_row(row)

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """The same from a parsed object."""
        names = {f.name for f in fields(cls)}
        if not isinstance(row, dict) or not row.keys() <= names:
            raise ValueError(f"no {cls.__name__}: it is a JSON object with {', '.join(sorted(names))}")
        try:
            return cls(**row)
        except TypeError:
            raise ValueError(f"no {cls.__name__}: of its fields {sorted(names - row.keys())} are missing") from None


@dataclass(frozen=True)
class Sampled(_Record):
    """One graded answer. Strict reads only the form that was asked for, lenient the last committed answer of any form.

    >>> Sampled("<answer>4</answer>", 5, False, 1.0, 1.0, "4", "right: 4").truncated
    False
    """

    text: str
    tokens: int  # with the end-of-sequence token
    truncated: bool  # ended by the token budget
    strict: float | None  # 1.0 right, 0.0 wrong, None: no verdict was possible. Code has one verdict: strict == lenient
    lenient: float | None
    answer: str  # as lenient extracted it, "" where there is none: what a vote counts
    reason: str


@dataclass(frozen=True)
class Answered(_Record):
    """One question with its k answers.

    A log-likelihood task has the log-prob (nats) of each choice in `choices` and one sample: the chosen letter, with 0 tokens.
    """

    task: str
    id: str
    question: str
    gold: str
    groups: Mapping[str, str]  # {"subject": "astronomy", "level": "3"}: what accuracy is broken down by
    prompt_tokens: int
    samples: tuple[Sampled, ...]
    choices: tuple[float, ...] = ()

    @classmethod
    def from_row(cls, row: Any) -> Self:
        if isinstance(row, dict):
            samples = row.get("samples", [])
            if not isinstance(samples, list):
                raise ValueError("no Answered: samples is no list")
            row = {**row, "samples": tuple(map(Sampled.from_row, samples)), "choices": tuple(row.get("choices", ()))}
        return super().from_row(row)


@dataclass(frozen=True)
class Settings(_Record):
    """Everything that is needed to repeat one task's figures, and to know what they may be compared with."""

    task: str
    data: str  # name of the data set
    rows: int
    data_hash: str  # sha256 over the rows
    template: str
    template_hash: str  # sha256 over the template as it is rendered around {question}
    model: str  # folder or hub name as it was given; the completions' file when re-grading
    model_hash: str  # sha256 over its safetensors' bytes; over the completions' file when re-grading
    grader: str
    grader_version: str  # sha256 over the grader's sources
    mode: str  # "generate", "loglikelihood" or "regrade"
    samples: int  # k
    temperature: float
    max_tokens: int
    seed: int
    engine: str
    engine_version: str
    dtype: str
    date: str  # UTC day on which the evaluation was started
    commit: str  # of this repository; "" outside a git checkout
    top_p: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # what only some tasks have: {"prompts_cut": 12, "shots": 5}


R = TypeVar("R", bound=_Record)


def read_lines(path: str | Path, kind: type[R]) -> Iterator[R]:
    """The records of a JSON-lines file. Raises ValueError with file and line for a line that is none."""
    with Path(path).open(encoding="utf-8") as lines:
        for n, line in enumerate(lines, 1):
            try:
                yield kind.from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {n}: {error}") from None


def write_atomic(path: Path, text: str) -> None:
    """The whole file or, after a kill, the one before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, path)


def write_settings(folder: str | Path, settings: Sequence[Settings]) -> None:
    text = json.dumps([asdict(s) for s in settings], indent=1, ensure_ascii=False) + "\n"
    write_atomic(Path(folder) / "settings.json", text)


def read_settings(folder: str | Path) -> list[Settings]:
    """Raises ValueError where the folder holds no evaluation."""
    path = Path(folder) / "settings.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Settings.from_row(row) for row in rows]
    except FileNotFoundError:
        raise ValueError(f"{folder}: no evaluation (no settings.json); make one with `make eval OUT={folder}`") from None
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def samples_path(folder: str | Path, task: str) -> Path:
    return Path(folder) / "samples" / f"{task}.jsonl"


def write_samples(folder: str | Path, task: str, answered: Iterable[Answered]) -> None:
    write_atomic(samples_path(folder, task), "".join(a.to_json() + "\n" for a in answered))


def read_samples(folder: str | Path, task: str) -> list[Answered]:
    """Raises ValueError for a task that this evaluation does not have, or a bad line."""
    path = samples_path(folder, task)
    if not path.exists():
        have = sorted(p.stem for p in path.parent.glob("*.jsonl"))
        raise ValueError(f"{folder}: no samples of task {task}; there are {', '.join(have) or 'none'}")
    return list(read_lines(path, Answered))
