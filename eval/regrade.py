"""Stored completions from anywhere -> graded answers, without a model.

A file of JSON lines, a question each, with one completion or a list of them in a column (`--field`, else the first of FIELDS that is
there). A row is matched by its `id` (a task's own, or that of this toolkit), by lm-evaluation-harness' `doc_id`, else by its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval import tasks
from eval.answer import answered, cut, grader, sampled
from eval.ledger import claim
from eval.provenance import commit, file_hash, grader_hash
from eval.records import Answered, Settings, write_samples
from rewards.score import Score, Text
from rewards.scorer import RewardError
from rl.data import Row, read_file

FIELDS = (
    "completion",
    "completions",
    "samples",
    "resps",
    "responses",
    "response",
    "generations",
    "generation",
    "outputs",
    "output",
    "text",
)


def regrade(name: str, path: str, field: str, rows: Sequence[Row], out: Path) -> list[Answered]:
    """Grade `path` as answers to the task's rows into the folder `out`. Raises ValueError."""
    entry = tasks.task(name)
    if entry.mode == "loglikelihood":
        raise ValueError(f"task {name} is answered by log-likelihood, there are no completions; grade mmlu_cot instead")
    stored = read_file(Path(path))
    found = [texts(raw, field, n) for n, raw in enumerate(stored, 1)]
    at = match(rows, stored, path)
    k = len(found[at[0]])
    if odd := next((n for n in at if len(found[n]) != k), None):
        raise ValueError(
            f"{path}, line {odd + 1}: {len(found[odd])} completions where line {at[0] + 1} has {k}; give each question as many"
        )
    settings = Settings(
        task=tasks.short(name), data=name, rows=len(rows), data_hash=tasks.digest(rows), template="as stored", template_hash="",
        model=path, model_hash=file_hash(Path(path)), grader="rewards/code_tests" if rows[0]["kind"] == "code" else "rewards/math_answer",
        grader_version=grader_hash("rewards", "eval/answer.py"), mode="regrade", samples=k, temperature=0.0, max_tokens=0, seed=0,
        engine="none", engine_version="", dtype="", date=f"{datetime.now(UTC):%Y-%m-%d}", commit=commit(), extra={"field": field},
    )  # fmt: skip
    claim(out, settings)
    grade = grader(entry, rows)
    try:
        cuts = [[cut(text, entry.until) for text in found[n]] for n in at]
        pending = [[grade.submit(text, row) for text in cuts_k] for row, cuts_k in zip(rows, cuts, strict=True)]
        graded = [
            answered(
                settings.task, row, 0, [sampled(text, _score(p.result), row) for text, p in zip(texts_k, waits, strict=True)]
            )
            for row, texts_k, waits in zip(rows, cuts, pending, strict=True)
        ]
    finally:
        grade.close()
    write_samples(out, settings.task, graded)
    return graded


def _score(result: Any) -> Score:
    try:
        return result()
    except RewardError as error:
        raise ValueError(f"the grader raised: {error}") from None


def texts(raw: Mapping[str, Any], field: str, line: int) -> list[Text]:
    """The completions of one row. Items are strings, lists of one (lm-evaluation-harness), or objects with a `text`."""
    name = field or next((f for f in FIELDS if raw.get(f) not in (None, [])), "")
    if name not in raw:
        raise ValueError(
            f"line {line}: no completion in it (looked for {field or ', '.join(FIELDS)}); name its column with --field"
        )
    value = raw[name]
    items = value if isinstance(value, list) else [value]
    if len(items) == 1 and isinstance(items[0], list):
        items = items[0]
    return [_text(item, name, line) for item in items]


def _text(item: Any, name: str, line: int) -> Text:
    if isinstance(item, list) and len(item) == 1:
        item = item[0]
    if isinstance(item, str):
        return Text(item)
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        return Text(item["text"], int(item.get("tokens") or 0), bool(item.get("truncated")))
    raise ValueError(f"line {line}: {name} holds {type(item).__name__}; a completion is a text, or an object with a text")


def match(rows: Sequence[Row], stored: Sequence[Mapping[str, Any]], path: str) -> list[int]:
    """For each row of the task the place of its line. Raises ValueError unless every question is there once."""
    if not stored:
        raise ValueError(f"{path}: no lines")
    known = {row["id"]: i for i, row in enumerate(rows)}
    ids = [str(raw.get("id", raw.get("task_id"))) for raw in stored]
    if any(i in known for i in ids):
        places = [known.get(i, -1) for i in ids]
    elif all(isinstance(raw.get("doc_id"), int) for raw in stored):
        places = [raw["doc_id"] for raw in stored]
    else:
        places = list(range(len(stored)))
    at: dict[int, int] = {}
    for n, place in enumerate(places):
        if not 0 <= place < len(rows):
            raise ValueError(f"{path}, line {n + 1}: it answers no question of the task ({len(rows)} questions)")
        if place in at:
            raise ValueError(f"{path}, line {n + 1}: question {rows[place]['id']} was answered in line {at[place] + 1} already")
        at[place] = n
    if missing := [row["id"] for i, row in enumerate(rows) if i not in at]:
        raise ValueError(
            f"{path}: {len(missing)} of {len(rows)} questions have no completion (first: {missing[0]}); a score needs all"
        )
    return [at[i] for i in range(len(rows))]
