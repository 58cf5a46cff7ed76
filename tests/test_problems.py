"""Nano problems: golds, sentences and splits."""

import random
import re
import time
from collections import Counter

import pytest

from recipes.nano import problems as nano
from recipes.nano.problems import Program, draw, draw_for, execute, heldout, is_heldout, overlap, problems
from recipes.nano.situations import SEEN, SITUATIONS, UNSEEN, steps_of


def test_gold_is_what_the_program_gives() -> None:
    rng = random.Random(1)
    for i in range(2000):
        drawn = draw_for(rng, nano.SPLITS[i % 3], 1 + i % 8)
        x, t = drawn.program.start, 0
        for (target, operator, left, right), result in zip(drawn.program.steps, drawn.results, strict=True):
            value = eval(f"{left} {operator} {right}".replace("/", "//"), {}, {"x": x, "t": t})
            assert value == result
            assert 0 <= value <= 999
            if operator == "/":
                assert value * right == {"x": x, "t": t}[str(left)]
            x, t = (value, t) if target == "x" else (x, value)
        assert len(drawn.results) == 1 + i % 8
        assert x == drawn.results[-1]


def test_execute_by_hand_and_refuses() -> None:
    assert execute(Program(10, (("t", "*", 4, 6), ("x", "+", "x", "t"), ("x", "/", "x", 2)))) == (24, 34, 17)
    with pytest.raises(ValueError, match="not an integer"):
        execute(Program(9, (("x", "/", "x", 2),)))
    with pytest.raises(ValueError, match="-1 is not in"):
        execute(Program(9, (("x", "-", "x", 10),)))


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.name)
def test_every_sentence_renders_and_reads_as_english(situation) -> None:
    rng = random.Random(situation.name)
    words = Counter()
    for i in range(150):
        question = draw(rng, situation, 1 + i % 8).question
        assert not re.search(r"[{}|]|  | 0 | 1 ", question), question
        assert question[-1] in "?.", question
        for sentence in re.split(r"(?<=[.?]) ", question):
            assert sentence[0].isupper() or sentence[0].isdigit(), question
        # A pronoun stands only where its person was named.
        pronoun = re.search(r"\b(he|she|his|her|him)\b", question, re.I)
        name = re.search(r"\b(" + "|".join(nano._SHE + nano._HE) + r")\b", question)
        assert not pronoun or (name and name.start() < pronoun.start()), question
        words.update(question.split())
    for sentence in (*situation.start, *situation.events, *situation.ask):
        assert set(re.findall(r"\{(\w+)\}", sentence.text)) <= {
            "a",
            "b",
            "name",
            "friend",
            "item",
            "He",
            "he",
            "His",
            "his",
            "him",
        }
        used = {operand for step in sentence.steps for operand in step[2:]} & {"a", "b"}
        said = set(re.findall(r"\{([ab])\}", sentence.text))
        assert used <= said, sentence.text
        assert used == said or sentence in situation.start, sentence.text


def test_situations() -> None:
    assert len(SITUATIONS) >= 40
    assert len(UNSEEN) >= 8
    assert len({s.name for s in SITUATIONS}) == len(SITUATIONS)
    assert steps_of("-x/3") == (("t", "/", "x", 3), ("x", "-", "x", "t"))
    with pytest.raises(ValueError, match="not an operation"):
        steps_of("a b")


def test_rows_are_balanced_repeatable_and_without_solution() -> None:
    rows = problems("train", 600, 3)
    assert rows == problems("train", 600, 3) != problems("train", 600, 4)
    assert Counter(row["steps"] for row in rows) == dict.fromkeys(range(1, 7), 100)
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 600
    assert set(rows[0]) == {"id", "question", "gold", "kind", "steps", "part", "situation"}
    assert all(row["kind"] == "math" and row["gold"] == str(int(row["gold"])) for row in rows)
    assert {row["steps"] for row in problems("train", 10, 0, (7, 8))} == {7, 8}


def test_splits_share_nothing() -> None:
    train, held = problems("train", 6000, 0), heldout(500)
    assert overlap(train, held) == {"question": 0, "numbers": 0}
    assert Counter(row["part"] for row in held) == {"seen": 250, "unseen": 250}
    unseen = {s.name for s in UNSEEN}
    assert not unseen & {s.name for s in SEEN}
    assert not unseen & {row["situation"] for row in train + held[:250]}
    assert {row["situation"] for row in held[250:]} == unseen
    assert all(is_heldout(nano.fingerprint(row["situation"], row["question"])) for row in held[:250])


def test_overlap_measures() -> None:
    rows = problems("train", 20, 0)
    again = [{**row, "question": row["question"].replace(" has ", " owns ")} for row in rows]
    assert overlap(rows, rows) == {"question": 20, "numbers": 20}
    assert overlap(rows, again)["numbers"] == 20
    assert overlap(rows, again)["question"] < 20


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match='no split "test"; there are train'):
        problems("test", 1, 0)
    with pytest.raises(ValueError, match="from 1 to 8"):
        problems("train", 1, 0, (0,))


def test_fast() -> None:
    started = time.process_time()
    problems("train", 2000, 0)
    assert time.process_time() - started < 2  # about 0.15 s; 10,000 rows take 0.7 s on an idle core
