"""GSM8K rows as templates: by hand, and on every row of the real training set."""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from recipes.gsm8k.draw import Drawn, draw, equations, execute, original, other, sane
from recipes.gsm8k.templates import Number, Template, read, value_of

HALF = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
}


def one(question: str, answer: str) -> Template:
    found, why = read([{"question": question, "answer": answer}])
    assert found, why
    return found[0]


def reason(question: str, answer: str) -> str:
    found, why = read([{"question": question, "answer": answer}])
    assert not found, found
    return next(iter(why))


def test_a_row_by_hand() -> None:
    t = one(**HALF)
    assert [n.value for n in t.numbers] == [48]
    assert t.constants == (2,)  # "half" says it
    assert t.steps == (("/", 0, 1), ("+", 0, 2))
    assert t.results == (24, 72)
    assert (t.gold, t.answer) == (72, 3)
    assert original(t).question == HALF["question"]
    assert original(t).prose == "Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether."
    assert equations(original(t))[0] == "48/2=24. 48+24=72."
    drawn = Drawn(t, execute(t, [10]), {})
    assert "to 10 of her friends" in drawn.question
    assert drawn.prose.endswith("10+5 = 15 clips altogether.")
    assert drawn.gold == 15


def test_percentages_prices_and_thousands() -> None:
    t = one("A $1,200 desk is sold 20% off. What is it?", "It is 1200*.8 = $<<1200*.8=960>>960.\n#### 960")
    assert t.steps == (("-", 2, 1), ("/", 3, 2), ("*", 0, 4))  # (100 - 20) / 100
    assert "$1,600 desk" in Drawn(t, execute(t, [1600, 25]), {}).question
    assert Drawn(t, execute(t, [1600, 25]), {}).gold == 1200
    t = one("Pens cost $1.50. How much are 6?", "6*1.5=$<<6*1.5=9>>9\n#### 9")
    assert Drawn(t, execute(t, [Fraction(5, 2), 4]), {}).question == "Pens cost $2.50. How much are 4?"


def test_an_equation_without_a_note_is_a_step_too() -> None:
    t = one(
        "Jo has 30 eggs and eats 12. She sells half.",
        "She has 30 eggs - 12 eggs = 18 eggs.\nShe sells 18/2 = <<18/2=9>>9.\n#### 9",
    )
    assert t.steps == (("-", 0, 1), ("/", 3, 2))


def test_a_result_that_cannot_be_written_goes_into_the_next_equation() -> None:
    t = one("Of 30 cats, 10 in 15 are red. How many are red?", "10/15*30 = <<10/15*30=20>>20\n#### 20")
    assert equations(original(t))[0] == "10/15*30=20."


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("Tom has 9 hats.", "He has 9*7=<<9*7=63>>63\n#### 63", "a number from nowhere"),
        ("Tom has 9 hats and half a week.", "He has 9*7=<<9*7=64>>64\n#### 64", "inexact"),
        ("Tom has 9 hats, 6 of 5 and 30.", "6*5=<<6*5=30>>30. 30+9=<<30+9=39>>39\n#### 39", "two ways"),
        ("Tom has 9 hats, twice.", "2*9=<<2*9=18>>18\n#### 19", "gold"),
        ("Tom has two hats, twice.", "2*2=<<2*2=4>>4\n#### 4", "no number to redraw"),
        ("Tom has 9 hats ½.", "9*9=<<9*9=81>>81\n#### 81", "signs"),
    ],
)
def test_what_is_no_template(question: str, answer: str, why: str) -> None:
    assert reason(question, answer) == why


def test_numbers_that_words_say_too_stay() -> None:
    t = one("Two of 2 boxes hold 8 pens each.", "2*8=<<2*8=16>>16\n#### 16")
    assert [n.value for n in t.numbers] == [8]


def test_faults_are_carried_on() -> None:
    drawn = original(one(**HALF))
    text, wrong = equations(drawn, ["slip", ""], lambda value: value + 1)
    assert (text, wrong.gold) == ("48/2=25. 48+25=73.", 73)
    assert equations(drawn, ["operation", ""])[0] == "48*2=96. 48+96=144."
    assert equations(drawn, ["skip", ""])[0] == "48+48=96."


def test_draws_are_sane() -> None:
    rng, t = random.Random(0), one(**HALF)
    for _ in range(200):
        drawn = draw(rng, t)
        assert drawn
        number = drawn.registers[0]
        assert number % 2 == 0
        assert number != 48
        assert drawn.gold * 2 == 3 * number
        assert all(map(sane, drawn.registers[-2:], t.results))
    assert {other(rng, Number(20, 0, True, False)) for _ in range(400)} == {5 * i for i in range(1, 20)}
    assert all(other(rng, Number(Fraction(3, 2), 1, False, False)) * 10 % 1 == 0 for _ in range(100))


def test_names_and_things_change_together() -> None:
    t = one("Mary and Tom have 9 apples; an apple costs $4. Apples and pears?", "Mary's apples cost 9*4=$<<9*4=36>>36\n#### 36")
    rng, seen = random.Random(0), set()
    for _ in range(300):
        drawn = draw(rng, t)
        assert drawn
        names = drawn.names
        assert len({names["Mary"], names["Tom"]}) == 2
        assert drawn.prose.startswith(f"{names['Mary']}'s {names.get('apples', 'apples')} cost")
        if "apples" in names:
            assert f"; an {names['apple']} costs" in drawn.question
            assert names["pears"] != names["apples"] == names["Apples"].lower()
        seen.add(names.get("apples"))
    assert len(seen) > 20
    assert None in seen


@pytest.fixture(scope="module")
def rows(data_root: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (data_root / "gsm8k/train.jsonl").read_text().splitlines()]


def test_every_real_template_reproduces_its_row(rows: list[dict[str, str]]) -> None:
    templates, why = read(rows)
    assert len(templates) + sum(why.values()) == len(rows) == 7473
    assert len(templates) > 5500
    rng, drawn = random.Random(0), 0
    for t in templates:
        row = rows[int(t.id.rpartition("/")[2])]
        assert original(t).gold == t.gold == value_of(row["answer"].rpartition("####")[2].strip())
        shown = [value_of(n) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", original(t).question.replace(", ", "  "))]
        assert shown == [value_of(n) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", row["question"].strip().replace(", ", "  "))]
        if (new := draw(rng, t)) is not None:
            drawn += 1
            assert execute(t, new.registers[: len(t.numbers)]) == new.registers
    assert drawn > 0.95 * len(templates)
