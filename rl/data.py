"""Problem files or hub names -> rows -> Prompts, and the deterministic, resumable order in which a run meets them.

A row is a dict with `id`, `question`, `gold`, `kind` and free columns. The order is a pure function of (seed, position): a run
that resumes at prompt 3,200 needs that number and nothing else, no prompt is skipped and no remainder dropped.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.code_tests import read_tests
from rewards.math_answer import check_gold
from rl.prompts import render
from rl.records import Prompt

Row = dict[str, Any]
Source = Callable[[str], list[Row]]  # split ("train" or "heldout") -> rows

QUESTION_FIELDS = ("question", "problem", "prompt")
GOLD_FIELDS = ("gold", "expected_answer", "final_answer", "answer")
SOLUTION_FIELDS = ("solution", "reference_solution", "canonical_solution")  # never enter a row: reinforcement sees golds only


def load_rows(name: str, split: str, folder: str = "", sources: Mapping[str, Source] | None = None) -> list[Row]:
    """The rows of `name` for `split` ("train" or "heldout").

    `name` is a key of `sources`, "gsm8k" (files under `folder`, or the hub's openai/gsm8k), a .jsonl/.parquet file, or another
    hub name. Raises ValueError for what cannot be found or a row without question, or without gold (of kind "code": without tests).
    """
    if sources and name in sources:
        rows = sources[name](split)
    elif name in ("gsm8k", "openai/gsm8k"):
        rows = _gsm8k(split, folder)
    elif name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        rows = _named(read_file(Path(name)), Path(name).stem)
    elif "/" in name:
        rows = _named(read_hub(name, None, "test" if split == "heldout" else "train"), name)
    else:
        known = ", ".join(sorted({*(sources or {}), "gsm8k"}))
        raise ValueError(
            f"data.{split} = {name!r}: not a known set ({known}), a .jsonl or .parquet file, or a hub name (owner/name)"
        )
    if not rows:
        raise ValueError(f"data.{split} = {name!r}: no rows")
    _check_rows(rows, name)
    return rows


def prompts(rows: Sequence[Row], template: str, tokenizer: Any, max_tokens: int) -> list[Prompt]:
    """Rows -> Prompts. A prompt over `max_tokens` is an error that counts them: a cut question has another answer."""
    made = [Prompt(row["id"], render(row["question"], template, tokenizer), row) for row in rows]
    long = [p for p in made if len(p.ids) > max_tokens]
    if long:
        worst = max(long, key=lambda p: len(p.ids))
        raise ValueError(
            f"{len(long)} of {len(made)} prompts are longer than prompt.max_tokens = {max_tokens} (the longest, {worst.id}, has "
            f"{len(worst.ids)} tokens): raise prompt.max_tokens or drop these rows"
        )
    return made


class Order:
    """The endless, shuffled order of `count` items: epoch after epoch, each a permutation of its own.

    With `parts` (of the indices 0 .. count-1, see curriculum.py) each epoch goes through them in turn and is shuffled inside each.

    >>> Order(3, seed=0).take(0, 6) == Order(3, seed=0).take(0, 2) + Order(3, seed=0).take(2, 4)
    True
    >>> Order(3, seed=0, parts=[[2], [0, 1]]).take(3, 1)
    [2]
    """

    def __init__(self, count: int, seed: int, parts: Sequence[Sequence[int]] | None = None) -> None:
        self.count, self.seed, self.parts = count, seed, parts or [range(count)]
        assert sorted(i for part in self.parts for i in part) == list(range(count)), "each item once"
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> list[int]:
        order, draw = list[int](), random.Random(f"order/{self.seed}/{epoch}")
        for part in self.parts:
            shuffled = list(part)
            draw.shuffle(shuffled)
            order += shuffled
        return order

    def take(self, start: int, count: int) -> list[int]:
        """Indices of positions start .. start+count-1."""
        return [self._epoch(i // self.count)[i % self.count] for i in range(start, start + count)]


def _gsm8k(split: str, folder: str) -> list[Row]:
    part = "test" if split == "heldout" else "train"
    raw = read_file(Path(folder) / "gsm8k" / f"{part}.jsonl") if folder else read_hub("openai/gsm8k", "main", part)
    rows: list[Row] = []
    for i, r in enumerate(raw):
        solution, mark, gold = str(r.get("answer", "")).rpartition("####")
        if not mark:
            raise ValueError(f"gsm8k/{part}/{i}: the answer has no '#### gold' line; is this GSM8K?")
        # Only the gold enters the row: reinforcement never sees a solution.
        question = str(r.get("question", "")).strip()
        rows.append({"id": f"gsm8k/{part}/{i}", "question": question, "gold": gold.strip(), "kind": "math"})
        rows[-1]["steps"] = max(1, solution.count("<<"))
    return rows


def read_file(path: Path) -> list[Row]:
    """The rows of a .jsonl, .jsonl.gz or .parquet file as they are. Raises ValueError."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; set data.folder to the folder that holds the data sets, or use a hub name")
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else list(_read_lines(path))
    except (OSError, EOFError, UnicodeDecodeError) as error:  # no permission, a broken archive, another encoding
        raise ValueError(f"{path}: cannot be read: {error}") from None
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from None


def _read_lines(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {n}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {n}: {type(row).__name__} is no row; each line must be a JSON object")
            yield row


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """The rows of a hub data set as they are. Raises ValueError."""
    from datasets import load_dataset

    try:
        return [dict(r) for r in load_dataset(name, config, split=split)]
    except Exception as error:  # the hub's errors are many; the remedy is one
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"data set {name} ({split}): the hub did not give it ({reason}); go online, or set data.folder to its files"
        ) from None


def _named(raw: Sequence[Row], name: str) -> list[Row]:
    """Foreign rows with our column names; the first of the usual names that is there wins."""
    rows = []
    for i, r in enumerate(raw):
        question = next((r[f] for f in QUESTION_FIELDS if r.get(f)), None)
        gold = next((r[f] for f in GOLD_FIELDS if r.get(f) not in (None, "")), None)
        free = {key: value for key, value in r.items() if key not in SOLUTION_FIELDS}
        if isinstance(gold, str) and "####" in gold:  # GSM8K's own form: a solution, then the gold
            gold = free["answer"] = gold.rpartition("####")[2].strip()
        rows.append({"kind": "math", **free, "id": str(r.get("id", f"{name}/{i}")), "question": question, "gold": gold})
    return rows


def _check_rows(rows: Sequence[Row], name: str) -> None:
    for row in rows:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(f"{name}, row {row.get('id')}: no question (looked for {', '.join(QUESTION_FIELDS)})")
        if row["kind"] == "code":
            _check_code(row, name)
            continue
        if row["kind"] == "general":  # judged by a model of preferences
            row["gold"] = str(row.get("gold") or "")
            continue
        if row.get("gold") in (None, ""):
            raise ValueError(f"{name}, row {row['id']}: no gold answer (looked for {', '.join(GOLD_FIELDS)})")
        row["gold"] = str(row["gold"])
        if row["kind"] == "math":
            try:
                check_gold(row["gold"])
            except ValueError as error:
                raise ValueError(f"{name}, row {row['id']}: the gold cannot be graded: {error}") from None


def _check_code(row: Row, name: str) -> None:
    """A program is judged by the row's tests; a gold it need not have."""
    try:
        read_tests(row)
    except (ValueError, SyntaxError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}, row {row['id']}: the tests cannot be run: {error}") from None
    row["gold"] = str(row.get("gold") or "")
