r"""Forms that must be equal and forms that must differ: the table `math_forms.txt`."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.math_answer import equal

LINES = (Path(__file__).parent / "math_forms.txt").read_text(encoding="utf-8").splitlines()
ONE_WAY = ("choices", "hacks", "units", "mixed")  # answers there need not be golds, or mean more as a gold than as an answer


def rows() -> list[tuple[str, str]]:
    """(section, line) of every row."""
    section, found = "", []
    for line in LINES:
        if line.startswith("[") and line.endswith("]") and line[1:-1].isalpha():
            section = line[1:-1]
        elif line and not line.startswith("#"):
            found.append((section, line))
    return found


def split(row: str) -> tuple[str, str, bool]:
    """Gold, answer and whether they are equal; the first ` == ` or ` != ` divides (no gold here contains one)."""
    at, sign = min((row.index(sign), sign) for sign in (" == ", " != ") if sign in row)
    return row[:at], row[at + 4 :], sign == " == "


@pytest.mark.parametrize(("section", "row"), rows(), ids=[row for _, row in rows()])
def test_form(section: str, row: str) -> None:
    gold, answer, expected = split(row)
    assert equal(answer, gold) is expected
    if not expected and section not in ONE_WAY:
        assert equal(gold, answer) is False


def test_the_table_is_there() -> None:
    equals = [split(row)[2] for _, row in rows()]
    assert len(equals) >= 550
    assert equals.count(False) >= 150
