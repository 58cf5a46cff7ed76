"""The rule chain's reading of equations, and the two chains' figures by hand."""

from __future__ import annotations

import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from eval.dual_chain import Checked, arithmetic, dual_chain, equations, main, markdown, verified
from eval.records import Answered, Sampled, write_samples
from rewards.code_tests import code_reward
from rewards.sandbox import SandboxRefused, resolve


def sampled(text: str, answer: str, right: bool, tokens: int = 10, truncated: bool = False) -> Sampled:
    return Sampled(text, tokens, truncated, float(right), float(right), answer, "")


def question(name: str, *samples: Sampled) -> Answered:
    return Answered("toy", name, "?", "9", {}, 5, samples)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He eats 16 - 3 - 4 = 9 eggs, so 9 * 2 = $18. Then 10/4 = 3", [(9, True), (18, True), (Fraction(5, 2), False)]),
        ("16-3-4=<<16-3-4=9>>9", [(9, True)]),
        (r"\(5 \cdot 6 = 30\) and $$\frac{1}{2} + \frac{1}{3} = \frac{5}{6}$$", [(30, True), (Fraction(5, 6), True)]),
        ("1. 3+4=7\n2. 7*2=14", [(7, True), (14, True)]),
        ("12*5=60, 60+4=64; 1,200 + 300 = 1,500", [(60, True), (64, True), (1500, True)]),
        ("10/3 = 3.33, 10/3 = 3.34", [(Fraction(10, 3), True), (Fraction(10, 3), False)]),
        ("1/4 = 25%, .20*20 = $4.00", [(Fraction(1, 4), True), (4, True)]),
        ("2+2 = 4 = 5", [(4, False)]),
        ("2 x 3 = 6, 4 × 5 = 20, 9 – 2 = 7", [(6, True), (20, True), (7, True)]),
        ("f(3) = 3^2 + 1 = 10 and y = 3*5 = 15", [(10, True), (15, True)]),
        ("-3 + 5 = 2", [(2, True)]),
        # what has words in it, or nothing to calculate, is no equation of numbers
        ("3 apples + 4 = 7; he had 3 apples - 1 = 2; x = 5; 5 = 5; = 4; a + 1 = 2; 3 + 4 =", []),
        ("9^9^9^9 = 3, 1/0 = 1, 10000000! = 1", []),
    ],
)
def test_equations(text: str, expected: list[tuple[Fraction, bool]]) -> None:
    assert equations(text) == expected


def test_gold_solutions_of_gsm8k_hold(data_root: Path) -> None:
    rows = [json.loads(line) for line in (data_root / "gsm8k" / "test.jsonl").open(encoding="utf-8")]
    found = [equations(row["answer"]) for row in rows]
    gold = [Fraction(row["answer"].rpartition("####")[2].replace(",", "")) for row in rows]
    held = [ok for f in found for _, ok in f]
    assert len(held) > 4300
    assert sum(held) / len(held) > 0.998  # a handful of its lines are wrong: $32 - $20 = $300
    assert sum(bool(f) and f[-1][0] == g for f, g in zip(found, gold, strict=True)) > 0.94 * len(rows)


def test_hostile_text_costs_little() -> None:
    start = time.process_time()
    bombs = ["1" * 10**6 + "=", "1+" * 10**5 + "=3", "=".join(["1+1"] * 10**4), "9^9^9=1\n" * 3000, "(" * 10**5 + "1=1"]
    for text in [*bombs, "1\\frac" * 10**4 + "=2", "2^4096=1, " * 2000, "__import__('os').system('x')=1+1"]:
        assert len(equations(text)) <= 300
    assert time.process_time() - start < 20  # a guard against what never ends; it takes well under a second
    chance = random.Random(0)
    pieces = [
        "1",
        "23",
        "+",
        "-",
        "*",
        "/",
        "=",
        " ",
        ".",
        ",",
        "$",
        "%",
        "(",
        ")",
        "\\frac",
        "{",
        "}",
        "x",
        "a",
        "\n",
        "\\(",
        "^",
        "!",
    ]
    for _ in range(3000):
        equations("".join(chance.choices(pieces, k=20)))


def test_the_check_wants_all_of_it() -> None:
    a = question("q")
    good = sampled("4 + 5 = 9", "9", True)
    assert arithmetic(a, good) == Checked(True, "9", 1, 1)
    assert not arithmetic(a, sampled("4 + 5 = 9", "8", False)).passes  # the answer is another
    assert not arithmetic(a, sampled("1 + 1 = 3. 4 + 5 = 9", "9", True)).passes  # a line is wrong
    assert not arithmetic(a, sampled("4 + 5 = 9", "9", True, truncated=True)).passes
    assert not arithmetic(a, sampled("it is 9", "9", True)).passes
    assert arithmetic(a, sampled("so 18/2 = 9", "9.0", True)).passes


QUESTIONS = [
    # passes on one sample and is right; the other three would have been wrong
    question("a", sampled("4+5=9", "9", True, 10), *[sampled("8", "8", False, 30)] * 3),
    # passes and is wrong
    question("b", sampled("4+4=8", "8", False, 10), *[sampled("9", "9", True, 30)] * 3),
    # does not pass; three of four votes are right
    question("c", sampled("8", "8", False, 20), *[sampled("9", "9", True, 20)] * 3),
    # does not pass; all differ
    question("d", *[sampled(str(i), str(i), i == 9, 25) for i in (9, 10, 11, 12)]),
]


def test_both_chains_by_hand() -> None:
    got = dual_chain(QUESTIONS, threshold=0.6)
    assert (got["questions"], got["samples"]) == (4, 4)
    rule, model, both = (got[name] for name in ("rule", "model", "combined"))
    assert (rule["coverage"]["value"], rule["accuracy"]["value"], rule["precision"]["value"]) == (0.5, 0.25, 0.5)
    assert (model["coverage"]["value"], model["accuracy"]["value"]) == (0.75, 0.5)  # a wrong, b and c right, d not answered
    assert model["precision"]["value"] == pytest.approx(2 / 3)
    assert (both["coverage"]["value"], both["accuracy"]["value"]) == (0.75, 0.5)  # a right, b wrong, c right, d not answered
    assert got["gain"]["value"] == 0
    assert got["tokens"]["always_k"] == pytest.approx((100 + 100 + 80 + 100) / 4)
    assert got["tokens"]["combined"] == pytest.approx((10 + 10 + 80 + 100) / 4)
    assert got["tokens"]["saved"]["value"] == pytest.approx(1 - 200 / 380)


def test_the_curve() -> None:
    points = {p["threshold"]: p for p in dual_chain(QUESTIONS, threshold=0.5)["curve"]}
    assert sorted(points) == [0, 0.25, 0.5, 0.75, 1]
    assert points[0]["coverage"] == 1
    assert points[0]["accuracy"] == pytest.approx((1 + 0 + 1 + 0.25) / 4)  # d: a tie of four, one of them right
    assert points[1] == {"threshold": 1, "coverage": 0.5, "accuracy": 0.25, "precision": 0.5}
    assert [points[t]["coverage"] for t in (0.25, 0.75)] == [1, 0.75]


def test_nothing_answers() -> None:
    silent = [question(str(i), *[sampled("?", "", False, 0)] * 2) for i in range(3)]
    got = dual_chain(silent, threshold=0.0)
    assert (got["combined"]["coverage"]["value"], got["combined"]["precision"], got["tokens"]["saved"]) == (0, None, None)
    assert "none" in markdown(got)
    with pytest.raises(ValueError, match="no share"):
        dual_chain(silent, threshold=1.5)


def test_unit_tests_as_the_rule_chain() -> None:
    """A program that passes the test that its task shows is given; the other is left to the vote."""
    try:
        resolve()
    except SandboxRefused as error:
        pytest.skip(str(error))
    good, bad = "```python\ndef add(a, b): return a + b\n```", "```python\ndef add(a, b): return a - b\n```"
    rows = {name: {"id": name, "test_list": ["assert add(1, 2) == 3"]} for name in ("one", "two")}
    answered = [
        question("one", sampled(good, good, True), sampled(bad, bad, False)),
        question("two", sampled(bad, bad, False), sampled(good, good, True)),
    ]
    got = dual_chain(answered, verified(code_reward(), rows), threshold=0.6)
    assert (got["rule"]["coverage"]["value"], got["rule"]["precision"]["value"], got["combined"]["accuracy"]["value"]) == (
        0.5,
        1.0,
        0.5,
    )


def test_the_command_reads_stored_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(tmp_path, "toy", QUESTIONS)
    assert main([str(tmp_path), "toy", "--threshold", "0.6"]) == 0
    out = capsys.readouterr().out
    assert "toy: 4 questions, k = 4, threshold 0.6" in out
    assert "Tokens a question: 50.0 in place of 95.0, 47.4%" in out
    assert main([str(tmp_path), "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 0.5
    assert main([str(tmp_path), "other"]) == 2
    assert "no samples of task other; there are toy" in capsys.readouterr().err
