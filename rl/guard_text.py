"""What guards look at in the answers themselves: how much of them repeats itself, and whether they keep to the question's script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.language import LANGUAGES, share
from rl.records import Group

GRAM = 16  # tokens; so long a stretch returns by chance in no answer, in a loop all the time
MOST = 256  # answers looked at, evenly spread over the step's


def of_texts(groups: Sequence[Group]) -> dict[str, Any]:
    """`repetition`: the mean share of an answer's 16-token stretches that stood in it before; `language`: the mean share of its words in
    the script of the question (or of the row's column `language`)."""
    pairs = [(g, c) for g in groups for c in g.completions]
    pairs = pairs[:: math.ceil(len(pairs) / MOST)]
    targets = {g.prompt.id: language_of(g.prompt.problem) for g in groups}
    return {
        "repetition": math.fsum(repeated(c.ids) for _, c in pairs) / len(pairs),
        "language": math.fsum(share(c.text, targets[g.prompt.id]) for g, c in pairs) / len(pairs),
    }


def repeated(ids: Sequence[int], n: int = GRAM) -> float:
    """1 - distinct n-grams / all n-grams, in [0, 1).

    >>> repeated((1, 2, 1, 2, 1, 2), n=2)
    0.6
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def language_of(problem: Any) -> str:
    """The row's own language, else the first in whose script most words of the question are written.

    >>> language_of({"question": "Сколько будет 2+2?"}), language_of({"question": "2+2?"})
    ('ru', 'en')
    """
    if problem.get("language") in LANGUAGES:
        return str(problem["language"])
    question = str(problem.get("question", ""))
    return max(LANGUAGES, key=lambda code: share(question, code))
