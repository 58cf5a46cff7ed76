"""Trace files as others write them -> Trace. Which form a row has is seen from its columns:

  ours          id, problem, question, text (distill/traces.py)
  reasoning     a question and `reasoning_content` or `reasoning` beside `content`, `answer` or `response`, as DeepSeek's interface answers
  text          a question and one text with <think> tags in `generation`, `completion`, `response`, `output`, `solution` or `content`
  messages      `messages`: [{"role": "user", "content": ...}, {"role": "assistant", "content": ..., "reasoning_content": ...}]
  ShareGPT      `conversations`: [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]
A conversation must be one question and one answer, after at most one system message: a longer one is refused, never cut. Where a text
closes </think> without having opened it, the prompt did (R1's template), and the tag is put back. Other names for the tags
(<|begin_of_thought|> ... of OpenThoughts) are read too. Reasoning and answer become "<think>\n...\n</think>\n\nanswer", R1's own form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.traces import CLOSE, NAMES, OPEN, Trace
from rl.data import GOLD_FIELDS, QUESTION_FIELDS, read_file

REASONING = ("reasoning_content", "reasoning", "thinking")
TEXTS = ("generation", "completion", "response", "output", "content", "solution", "answer")
QUESTIONS = (*QUESTION_FIELDS, "instruction", "input", "query")
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
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
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, row {n}: {error}") from None


def trace_of(row: Mapping[str, Any], source: str, index: int) -> Trace:
    """One row as a trace. Raises ValueError where no form fits."""
    if {"id", "problem", "question", "text"} <= set(row) <= NAMES:
        return Trace(**row)
    turns = row.get("messages") or row.get("conversations")
    if turns:
        system, question, text = _conversation(turns)
        system = system or str(row.get("system") or "")
        used: tuple[str, ...] = ("messages", "conversations", "system")
    else:
        asked = _first(row, QUESTIONS)
        if asked is None:
            raise ValueError(
                f"no question: neither messages, conversations nor one of {', '.join(QUESTIONS)}; it has {sorted(row)}"
            )
        question, system = str(row[asked]), str(row.get("system") or "")
        text, names = _answer(row, asked)
        used = (asked, "system", *names)
    gold_name = _first(row, [name for name in GOLD_FIELDS if name not in used])
    gold = "" if gold_name is None else str(row[gold_name])
    name = str(row.get("id", f"{source}/{index}"))
    columns = {k: v for k, v in row.items() if k not in (*used, gold_name, "id", "kind", "finish_reason") and v is not None}
    finish = {"length": "length"}.get(str(row.get("finish_reason")), "stop")
    kind = str(row.get("kind") or ("math" if gold else "general"))
    return Trace(
        name, str(row.get("problem_id") or question), question.strip(), text, gold, kind, finish, 0, source, system, columns
    )  # fmt: skip


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


def _answer(row: Mapping[str, Any], asked: str) -> tuple[str, tuple[str, ...]]:
    """The whole completion, and the columns it was made of."""
    reasoning = _first(row, REASONING)
    name = _first(row, [t for t in TEXTS if t != asked])  # `answer` is the gold where anything else could be the reply
    if reasoning is not None:
        if name is None:
            raise ValueError(f"{reasoning} without the answer behind it (looked for {', '.join(TEXTS)})")
        return joined(str(row[reasoning]), str(row[name])), (reasoning, name)
    if name is None:
        raise ValueError(f"no answer (looked for {', '.join((*REASONING, *TEXTS))}); it has {sorted(row)}")
    return normal(str(row[name])), (name,)


def _conversation(turns: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """System message, question, answer."""
    said: list[tuple[str, Mapping[str, Any]]] = []
    for turn in turns:
        role = str(turn.get("role") or turn.get("from"))
        if role not in ROLES:
            raise ValueError(f"a turn of role {role!r}; known are {', '.join(ROLES)}")
        said.append((ROLES[role], turn))
    system = _content(said.pop(0)[1]) if said and said[0][0] == "system" else ""
    if [role for role, _ in said] != ["user", "assistant"]:
        raise ValueError(f"a conversation of {' '.join(role for role, _ in said)}: one question and one answer are wanted")
    answer = said[1][1]
    reasoning = _first(answer, REASONING)
    text = _content(answer)
    return system, _content(said[0][1]), normal(text) if reasoning is None else joined(str(answer[reasoning]), text)


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content", turn.get("value"))
    if not isinstance(content, str):
        raise ValueError(f"a turn whose content is {type(content).__name__}, no text")
    return content


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) not in (None, "")), None)
