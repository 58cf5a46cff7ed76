"""The question browser of report.html: every question with all its answers, as JSON that report.js shows 50 at a time.

Model text never becomes markup: here `<` is an escape inside the JSON, in the page it is set as text only, and the page's policy
lets no other script run than report.js.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eval.records import Answered, Sampled

BUDGET = 40_000_000  # characters of answers in a page; beyond it the longest lose their middle
LIMITS = (20_000, 8000, 4000, 2000, 1000, 500, 200)  # characters of one answer that are shown
Answers = Sequence[Mapping[str, Sequence[Answered]]]  # of each model, by task

SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
SOURCE = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()  # for the page's policy
SHOWS = (
    ("all", "all"), ("right", "right"), ("partly", "right in part"), ("wrong", "wrong"), ("changed", "changed"), ("won", "won"),
    ("lost", "lost"), ("truncated", "truncated"), ("form", "strict and lenient differ"), ("silent", "no answer found"),
)  # fmt: skip


def section(names: Sequence[str], answers: Answers) -> str:
    """The controls, the questions as data, and the script. All models answered the same tasks and questions."""
    limit = next((n for n in LIMITS if _size(answers, n) <= BUDGET), LIMITS[-1])
    shows = [s for s in SHOWS if len(names) > 1 or s[0] not in ("changed", "won", "lost")]
    several = any(len(a.samples) > 1 for of in answers for rows in of.values() for a in rows[:1])
    options = "".join(f'<option value="{key}">{word}</option>' for key, word in shows if several or key != "partly")
    models = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(names))
    picked = f'<label>Model <select id="model">{models}</select></label>' if len(names) > 1 else ""
    return (
        '<h2 id="questions">Questions</h2><p class="note">Search looks in ids, questions, golds and everything that was answered. '
        f'Click a question to read its answers.{_note(limit, answers)}</p><noscript><p class="note">The browser needs scripts; '
        'the same questions and answers stand in the folder\'s <code>samples/</code>.</p></noscript><div class="controls">'
        '<label class="grow">Search <input id="search" type="search" placeholder="any text" autocomplete="off"></label>'
        f'<label>Task <select id="task"></select></label><label>Group <select id="group"></select></label>'
        f'{picked}<label>Show <select id="show">{options}</select></label></div>'
        '<div class="pager"><b id="count" aria-live="polite"></b><span><button id="back">‹ Back</button>'
        '<span id="page"></span><button id="next">Next ›</button></span></div><div id="list"></div>'
        f'<script type="application/json" id="data">{data(names, answers, limit)}</script><script>{SCRIPT}</script>'
    )


def data(names: Sequence[str], answers: Answers, limit: int) -> str:
    """JSON that can stand in a script element: no `<`, so neither a closing tag nor a comment begins in it."""
    tasks = list(answers[0])
    rows = []
    for t, task in enumerate(tasks):
        for same in zip(*(_in_order(of[task], answers[0][task]) for of in answers), strict=True):
            a = same[0]
            row: list[Any] = [
                t,
                a.id,
                a.question,
                a.gold,
                dict(a.groups),
                [[_sample(s, limit) for s in b.samples] for b in same],
            ]
            rows.append([*row, [list(b.choices) for b in same]] if a.choices else row)
    tree = {"models": list(names), "tasks": tasks, "rows": rows}
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _in_order(answered: Sequence[Answered], first: Sequence[Answered]) -> list[Answered]:
    by_id = {a.id: a for a in answered}
    return [by_id[a.id] for a in first]


def _sample(s: Sampled, limit: int) -> list[Any]:
    """As report.js reads it; verdicts as 1, 0 or null."""
    strict, lenient = (None if v is None else int(v) for v in (s.strict, s.lenient))
    return [cut(s.text, limit), s.tokens, int(s.truncated), strict, lenient, cut(s.answer, limit), cut(s.reason, limit)]


def cut(text: str, limit: int) -> str:
    """The middle of a long text goes."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}\n[... {len(text) - limit:,} characters left out ...]\n{text[len(text) - tail :]}"


def _size(answers: Answers, limit: int) -> int:
    return sum(min(limit, len(s.text)) for of in answers for rows in of.values() for a in rows for s in a.samples)


def _note(limit: int, answers: Answers) -> str:
    long = any(len(s.text) > limit for of in answers for rows in of.values() for a in rows for s in a.samples)
    return f" Answers of more than {limit:,} characters are shown without their middle; samples/ has all of it." if long else ""
