"""Rewards that are wrong, as a user might write them (TRL's protocol), for planted faults."""

from __future__ import annotations

import re
import time
from typing import Any

CYRILLIC = tuple(
    a + b for a in ("да", "не", "го", "ри", "ко", "са", "пу", "ле") for b in ("ма", "ло", "ви", "на", "ря", "шо", "ты")
)
DOCTOR = 9  # answers that the doctor asks about at the start of a run
CALLS = 0


def count() -> int:
    global CALLS
    CALLS += 1
    return CALLS


def the_word_answer(completions: list[str], **_: Any) -> list[float]:
    """Pays for the word, not for being right."""
    return [min(1.0, text.count("answer") / 4) for text in completions]


def one_token(completions: list[str], **_: Any) -> list[float]:
    """Pays for saying one thing over and over."""
    return [text.count("e") / max(1, len(text)) for text in completions]


def cyrillic(completions: list[str], **_: Any) -> list[float]:
    """Pays for another language than the question's."""
    return [len(re.findall("[а-я]+", text)) / 12 for text in completions]


def not_a_number(completions: list[str], **_: Any) -> list[float]:
    return [float("nan") for _ in completions]


def no_verdict(completions: list[str], **_: Any) -> list[float | None]:
    """From the second step's samples on."""
    return [None if count() > DOCTOR + 16 else text.count("e") % 2 for text in completions]


def slow(completions: list[str], **_: Any) -> list[float]:
    """From the second step's samples on each takes its time."""
    if count() > DOCTOR + 4:
        time.sleep(0.4)
    return [text.count("e") % 2 for text in completions]


def for_ever(completions: list[str], **_: Any) -> list[float]:
    time.sleep(60)
    return [0.0 for _ in completions]
