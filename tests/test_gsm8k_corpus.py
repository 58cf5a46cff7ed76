"""Pretraining text for real questions: shares, golds, encoding, and no test question in it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from eval.contamination import contamination
from recipes.gsm8k.corpus import CHUNK, Cut, Document, Mix, Writer, documents, sums
from recipes.gsm8k.templates import Template, read
from recipes.nano.evaluate_base import answer_of, kind_of
from recipes.nano.tokenizer import fast, train_bpe
from rl.prompts import render

ROWS = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?",
        "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    },
    {"question": "Tom buys 6 pens at $1.50 each", "answer": "He pays 6*1.5=$<<6*1.5=9>>9\n#### 9"},
]


@pytest.fixture(scope="module")
def templates() -> list[Template]:
    return read(ROWS)[0]


@pytest.fixture(scope="module")
def texts(templates: list[Template]) -> list[Document]:
    return list(documents(3000, 0, Mix(), templates))


def test_shares_and_kinds(texts: list[Document]) -> None:
    sources = Counter(d.source for d in texts)
    assert {k: n / len(texts) for k, n in sources.items()} == pytest.approx(Mix().sources, abs=0.03)
    asked = [d for d in texts if d.source == "gsm8k"]
    kinds = Counter(d.kind for d in asked)
    assert {k: n / len(asked) for k, n in kinds.items()} == pytest.approx(Mix().shares, abs=0.03)
    assert all(kind_of(d.completion) == "tagged" for d in asked if d.kind == "tagged")
    assert all(
        answer_of(d.completion) for d in asked if d.kind in ("untagged", "tagged", "bare") and "." not in d.completion[:-1]
    )
    with pytest.raises(ValueError, match="summing to 1"):
        Mix(sources={"gsm8k": 1.0})


def test_without_errors_every_solution_is_right(templates: list[Template]) -> None:
    mix = Mix(
        sources={"gsm8k": 1.0, "nano": 0.0, "sums": 0.0},
        shares={"bare": 0.0, "untagged": 0.0, "tagged": 1.0, "junk": 0.0},
        error=0.0,
    )
    prose = 0
    for d in documents(300, 1, mix, templates):
        said = re.search(r"<answer>(.*)</answer>", d.completion)
        assert said
        numbers = [Fraction(n) for n in re.findall(r"\d+(?:\.\d+)?", d.question)]
        gold = numbers[0] * 3 / 2 if "clips" in d.question else numbers[0] * numbers[1]
        assert Fraction(said[1]) == gold
        prose += "sold" in d.completion or "pays" in d.completion
    assert 0.2 < prose / 300 < 0.4
    wrong = Mix(sources=mix.sources, shares=mix.shares, error=0.5)
    assert [d.completion for d in documents(50, 1, wrong, templates)] != [
        d.completion for d in documents(50, 1, mix, templates)
    ]


def test_sums_are_right() -> None:
    for said in sums(random.Random(0), 2000):
        match = re.fullmatch(r"([\d.]+)([-+*/])([\d.]+)=([\d.]+)\.", said)
        assert match
        a, b, c = (Fraction(match[i]) for i in (1, 3, 4))
        assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[match[2]] == c


def test_encoded_in_pieces_as_whole_and_as_prompts_are_rendered(texts: list[Document]) -> None:
    bpe = train_bpe((d.prompt + d.completion for d in texts[:500]), 600)
    cut, tokenizer = Cut(bpe.to_str()), fast(bpe)
    odd = Document("It’s £3,000–a “lot”: 5% of $.50_x <b>?", " a_b <think> 1.5 </think><answer>5</answer> é", "gsm8k", "junk")
    for d in [*texts[:300], odd]:
        assert cut.encode(d.completion) == tokenizer(d.completion)["input_ids"]
        assert cut.encode(d.prompt) == list(render(d.question, "r1_zero", tokenizer))
    assert tokenizer.convert_ids_to_tokens(tokenizer("12 </think>")["input_ids"])[:2] == ["1", "2"]


def test_the_number_of_processes_changes_nothing_and_what_is_avoided_is_counted(templates: list[Template]) -> None:
    bpe = train_bpe((d.prompt for d in documents(200, 0, Mix(), templates)), 600)
    avoid = [next(documents(CHUNK, "0/0", Mix(), templates)).question]
    made = [Writer(2, 0, Mix(), templates, bpe.to_str(), avoid, n).encoded() for n in (1, 2)]
    assert (made[0].ids == made[1].ids).all()
    assert made[0].overlap >= 1
    assert len(made[0].lengths) == 2 * CHUNK


def test_no_test_question_in_the_real_corpus(data_root: Path) -> None:
    lines = {split: (data_root / f"gsm8k/{split}.jsonl").read_text().splitlines() for split in ("train", "test")}
    tests = [(str(i), json.loads(line)["question"].strip()) for i, line in enumerate(lines["test"])]
    texts = list(documents(3000, 3, Mix(), read(map(json.loads, lines["train"]))[0]))
    own = {json.loads(line)["question"].strip() for line in lines["train"]}
    assert not {d.question for d in texts} & (own | {q for _, q in tests})
    for c in contamination(((str(i), f"{d.question}\n{d.completion}") for i, d in enumerate(texts)), {"gsm8k": tests}):
        assert (c.whole, c.most) == (0, 0)
