"""Trace files as others write them -> Trace. Which form a row has is seen from its columns:

  ours          id, problem, question, text (distill/traces.py)
  reasoning     a question and `reasoning_content` or `reasoning` beside `content`, `answer` or `response`, as DeepSeek's interface answers
  text          a question and one text with <think> tags in `generation`, `completion`, `response`, `output`, `solution` or `content`
  messages      `messages`: [{"role": "user", "content": ...}, {"role": "assistant", "content": ..., "reasoning_content": ...}], or TRL's
                `prompt` and `completion`, each a list of such turns
  ShareGPT      `conversations`: [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]
A conversation must be one question and one answer, after at most one system message: a longer one is refused, never cut. Where a text
closes </think> without having opened it, the prompt did (R1's template), and the tag is put back. Other names for the tags
(<|begin_of_thought|> ... of OpenThoughts) are read too. Reasoning and answer become "<think>\n...\n</think>\n\nanswer", R1's own form.
A reply that is there and empty stays empty, for the filters to drop and count: no other column takes its place, and a gold stays the gold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.traces import CLOSE, NAMES, NEEDED, OPEN, Trace, from_row
from rl.data import GOLD_FIELDS, QUESTION_FIELDS, read_file

REASONING = ("reasoning_content", "reasoning", "thinking")
REPLIES = ("generation", "completion", "response", "output", "content")
TEXTS = (*REPLIES, "solution", "answer")  # the last two are the reply only where no other column could be
QUESTIONS = (*QUESTION_FIELDS, "instruction", "input", "query")
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
FINISHED = ("stop", "eos", "eos_token", "")  # any other `finish_reason`: the teacher did not come to its end
_OTHER_TAGS = (
    (re.compile(r"<\|begin_of_thought\|>"), OPEN),
    (re.compile(r"<\|end_of_thought\|>"), CLOSE),
    (re.compile(r"<\|(?:begin|end)_of_solution\|>"), ""),
)


def read(path: str | Path) -> Iterator[Trace]:
    """The traces of a .jsonl, .jsonl.gz or .parquet file of any of these forms. Raises ValueError with the row."""
    path = Path(path)
    for n, row in enumerate(read_file(path), 1):
        try:
            yield trace_of(row, path.name.split(".")[0], n - 1)
        except ValueError as error:
            raise ValueError(f"{path}, row {n}: {error}") from None


def trace_of(row: Mapping[str, Any], source: str, index: int) -> Trace:
    """One row as a trace. Raises ValueError where no form fits.

    Its kind, where no column says one, is "math", that is reasoning in tags, verified where there is a gold. "general" is what has neither
    gold nor tags nor a column of reasoning.
    """
    if NEEDED <= set(row) <= NAMES:
        return from_row(row)
    question, system, text, reasoned, used = _conversation(row) or _columns(row)
    gold_name = _first(row, [name for name in GOLD_FIELDS if name not in used])
    gold = "" if gold_name is None else str(row[gold_name])
    kind = row.get("kind") or ("math" if gold or reasoned or OPEN in text or CLOSE in text else "general")
    finish = str(row.get("finish_reason") or "")
    spent = (*used, gold_name, "id", "kind", "finish_reason")
    name = f"{source}/{index}" if row.get("id") is None else str(row["id"])
    return from_row({
        "question": question.strip(), "text": text, "gold": gold, "id": name, "problem": str(row.get("problem_id") or question),
        "kind": str(kind), "finish": "stop" if finish in FINISHED else finish, "source": source, "system": system,
        "columns": {k: v for k, v in row.items() if k not in spent and v is not None},
    })  # fmt: skip


def joined(reasoning: str, answer: str) -> str:
    """R1's own form of the two.

    >>> joined("2 and 2", "4")
    '<think>\\n2 and 2\\n</think>\\n\\n4'
    """
    return f"{OPEN}\n{reasoning.strip()}\n{CLOSE}\n\n{answer.strip()}"


def normal(text: str) -> str:
    """One spelling of the tags, and the opening one where the prompt had it."""
    for pattern, tag in _OTHER_TAGS:
        text = pattern.sub(tag, text)
    return OPEN + "\n" + text.lstrip("\n") if CLOSE in text and OPEN not in text else text


# Question, system message, text, whether reasoning has a place of its own, the columns they were made of.
Read = tuple[str, str, str, bool, tuple[str, ...]]


def _columns(row: Mapping[str, Any]) -> Read:
    """A question and a reply in columns of their own."""
    asked = _first(row, QUESTIONS)
    if asked is None:
        raise ValueError(
            f"no question: neither messages, conversations nor one of {', '.join(QUESTIONS)}; it has {sorted(row)}"
        )
    question = _text(row, asked)
    if asked == "instruction" and (more := _text(row, "input")):  # Alpaca's form
        question = f"{question}\n\n{more}"
    names = [name for name in TEXTS if name in row and name != asked]
    reasoning = _first(row, REASONING)
    if not names:
        missing = "no answer" if reasoning is None else f"{reasoning} without the answer behind it"
        raise ValueError(f"{missing} (looked for {', '.join(TEXTS)}); it has {sorted(row)}")
    name = _first(row, [name for name in names if name in REPLIES]) or names[0]
    text, reasoned = _whole(row, name)
    used = (asked, *(["input"] if asked == "instruction" else []), "system", *REASONING, name)
    return question, _text(row, "system"), text, reasoned, used


def _conversation(row: Mapping[str, Any]) -> Read | None:
    """A system message or none, one question, one answer; None where the row is no conversation."""
    turns, used = row.get("messages") or row.get("conversations"), ("messages", "conversations", "system")
    if not turns and isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        turns, used = [*row["prompt"], *row["completion"]], ("prompt", "completion", "system")
    if not turns:
        return None
    said: list[tuple[str, Mapping[str, Any]]] = []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, Mapping):
            raise ValueError(
                f"a turn is of type {type(turn).__name__}: a conversation is a list of objects with role and content"
            )
        role = str(turn.get("role") or turn.get("from"))
        if role not in ROLES:
            raise ValueError(f"a turn of role {role!r}; known are {', '.join(ROLES)}")
        said.append((ROLES[role], turn))
    first = said.pop(0)[1] if said and said[0][0] == "system" else None
    if [role for role, _ in said] != ["user", "assistant"]:
        raise ValueError(f"a conversation of {' '.join(role for role, _ in said)}: one question and one answer are wanted")
    (_, user), (_, answer) = said
    system = _text(row, "system") if first is None else _text(first, _content(first))
    if not (question := _text(user, _content(user))):
        raise ValueError("the user's turn is empty: leave the row out")
    text, reasoned = _whole(answer, _content(answer))
    return question, system, text, reasoned, used


def _content(turn: Mapping[str, Any]) -> str:
    return _first(turn, ("content", "value")) or "content"


def _whole(row: Mapping[str, Any], name: str) -> tuple[str, bool]:
    """The whole completion, and whether reasoning has a place of its own there: empty, it is one that was left out."""
    answer, reasoning = _text(row, name), _first(row, REASONING)
    if reasoning is None:
        return normal(answer), any(row.get(r) is not None for r in REASONING)
    return joined(_text(row, reasoning), answer), True


def _text(row: Mapping[str, Any], name: str) -> str:
    """A column's text, empty where it is null or not there."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is of type {type(value).__name__}, no text: write it as text, or leave the row out")
    return value or ""


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) not in (None, "")), None)
