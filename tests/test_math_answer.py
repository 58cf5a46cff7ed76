r"""The accuracy reward: every gold of the real data earns 1, what is not an answer earns nothing, and nothing hangs."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.math_rewards import BOMBS
from rewards.math_answer import accuracy, check_gold, equal, verdict
from rewards.math_eval import context
from rewards.math_extract import extract
from rewards.score import Text

EXCEPTIONS = json.loads((Path(__file__).parent / "gold_exceptions.json").read_text())


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open()]


def boxed(solution: str) -> str:
    r"""The content of a solution's last `\boxed`, found by counting braces; `\boxed 2` is 2."""
    at = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    rest = solution[at:].split("\\boxed", 1)[-1].split("\\fbox", 1)[-1]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i]
    raise AssertionError(solution)


def golds(data: Path) -> Iterator[tuple[str, str, str]]:
    """(data set, row, gold) of everything in the data folder."""
    for part in ("train", "test"):
        for i, row in enumerate(rows(data / f"gsm8k/{part}.jsonl")):
            yield f"gsm8k/{part}", str(i), row["answer"].split("####")[1].strip()
    for i, row in enumerate(rows(data / "math/test.jsonl")):
        yield "math/test", str(i), boxed(row["solution"])
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow is not installed: the MATH train answers are a Parquet file"
    )
    for i, row in enumerate(parquet.read_table(data / "math/train_answers_only.parquet", columns=["reward_model"]).to_pylist()):
        yield "math/train", str(i), row["reward_model"]["ground_truth"]
    for i, row in enumerate(rows(data / "math500/test.jsonl")):
        yield "math500", str(i), row["answer"]
    for name in ("aime24", "aime25"):
        for row in rows(data / f"competition/{name}.jsonl"):
            yield name, row["id"], row["expected_answer"]
    for row in rows(data / "competition/amc23.jsonl"):
        yield "amc23", str(row["id"]), str(row["answer"])
    for i, row in enumerate(rows(data / "competition/minerva_math.jsonl")):
        yield "minerva", str(i), boxed(row["solution"])
    for row in rows(data / "competition/olympiadbench.jsonl"):
        yield "olympiadbench", str(row["id"]), row["final_answer"][0]


def test_every_gold_earns_one_with_and_without_surroundings(data_root: Path) -> None:
    strict, lenient = accuracy("strict"), accuracy("lenient")
    seen, lost = 0, []
    for name, row, gold in golds(data_root):
        seen += 1
        if row in EXCEPTIONS.get(name, {}):
            with pytest.raises(ValueError, match="empty"):
                check_gold(gold)
            continue
        check_gold(gold)
        core = gold.strip()
        if core.startswith("$") and core.endswith("$") and core.count("$") == 2:
            core = core[1:-1]
        formula = core if "$" in core.replace("\\$", "") else f"${core}$"
        texts = [
            (lenient, f"We find that it is so. The answer is {formula}."),
            (lenient, f"Therefore it is $\\boxed{{{core}}}$."),
            (lenient, f"so we get there\n#### {' '.join(core.split())}"),
            (strict, f"<think> 1 + 1 = 2 </think> <answer> {gold} </answer>"),
            (strict, f"<think> 1 + 1 = 2 </think> <answer>\\boxed{{{core}}}</answer>"),
        ]
        if not equal(gold, gold):
            lost.append((name, row, gold, "itself"))
        lost += [(name, row, gold, text) for reward, text in texts if reward(Text(text), {"gold": gold}).value != 1.0]
    assert seen == 22_839
    assert lost == []


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (r"<answer>42</answer>", "42", "42"),
        (r"<answer> \boxed{42} </answer>", "42", "42"),
        (r"<answer>The answer is $42$.</answer>", "$42$", "$42$"),
        (r"<think>put it in <answer> tags</think><answer>7</answer>", "7", "7"),
        (r"<answer>1</answer> no: <answer>2</answer>", "2", "2"),
        (r"<answer>1</answer> no: \boxed{2}", "1", "2"),
        (r"\boxed{1} <answer>2</answer>", "2", "2"),
        (r"<answer>42", None, None),
        (r"42</answer>", None, None),
        (r"<answer></answer>", None, None),
        (r"\boxed{\frac{1}{\sqrt{2}}}.", None, r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\text{a \{b\} c}}", None, r"\text{a \{b\} c}"),
        (r"\boxed{1} then \boxed{2}", None, "2"),
        (r"\boxed{5} oops \boxed{}", None, "5"),
        (r"\boxed 7 is it", None, "7"),
        (r"$\boxed{\frac{1}{2}$ and so", None, r"\frac{1}{2}"),
        (r"\boxed{3", None, "3"),
        (r"\boxed{1}, \boxed{2} and \boxed{3}", None, "1, 2, 3"),
        (r"$x = \boxed{1}$ and $y = \boxed{2}$", None, "1, 2"),
        (r"\boxed{4} or maybe it is rather \boxed{5}", None, "5"),
        (r"\boxed{\boxed{6}}", None, "6"),
        (r"\fbox{6}", None, "6"),
        ("so 3 + 4 = 7\n#### 7", None, "7"),
        ("#### 7\nno\n#### 8", None, "8"),
        ("#### $1,234\nThank you", None, "$1,234"),
        ("The answer is 12.", None, "12"),
        ("The answer is 1.5.", None, "1.5"),
        ("The answer is: 12", None, "12"),
        ("**Answer:** 12", None, "12"),
        ("Answer: B", None, "B"),
        ("the final answer is $\\frac{1}{2}$. I hope it is correct.", None, r"$\frac{1}{2}$"),
        ("The answer is 3. Wait, the answer is 4.", None, "4"),
        ("Final Answer: The largest $n$ is 34.", None, "34"),
        ("The answer is\n\n42", None, "42"),
        ("We compute 17, then 3, and stop.", None, None),
        ("no box here", None, None),
        ("", None, None),
    ],
)
def test_extract(text: str, strict: str | None, lenient: str | None) -> None:
    assert extract(text, "strict") == strict
    assert extract(text, "lenient") == lenient


@pytest.mark.parametrize(
    "text",
    ["", "The answer is", r"\boxed{}", "<answer> </answer>", "$$", "#### ", "...", r"\boxed{\text{}}", r"<answer>?</answer>"],
)
@pytest.mark.parametrize("gold", ["0", "1", r"\frac{1}{2}", "C", "x"])
def test_nothing_said_earns_nothing(text: str, gold: str) -> None:
    assert accuracy()(Text(text), {"gold": gold}).value == 0.0


def test_reasons() -> None:
    reward = accuracy()
    assert reward(Text(r"\boxed{42}"), {"gold": "42"}).reason == "right: 42"
    assert reward(Text(r"\boxed{41}"), {"gold": "42"}).reason == "wrong: 41, gold 42"
    assert reward(Text("hm"), {"gold": "42"}).reason == "no answer"


@pytest.mark.parametrize("gold", ["", "  ", r"\frac{1}{", r"\frac{}{2}", "1 2 3", "(1,2", "((", "+", r"\boxed{}", "9" * 20_000])
def test_a_gold_that_cannot_be_read_is_an_error(gold: str) -> None:
    with pytest.raises(ValueError, match=r"gold"):
        check_gold(gold)


def test_a_bad_gold_never_pays() -> None:
    with pytest.raises(ValueError, match="gold"):
        accuracy()(Text(r"\boxed{\frac{1}{}"), {"gold": r"\frac{1}{"})


def test_modes_and_tolerance_are_checked() -> None:
    with pytest.raises(ValueError, match="lenent"):
        accuracy("lenent")
    with pytest.raises(ValueError, match="tolerance"):
        accuracy(tolerance=2.0)


def test_tolerance_only_where_stated() -> None:
    text = Text(r"\boxed{3.83 \times 10^{35}}")
    assert accuracy()(text, {"gold": "3.8e35"}).value == 0.0
    assert accuracy()(text, {"gold": "3.8e35", "tolerance": 0.01}).value == 1.0
    assert accuracy(tolerance=0.01)(text, {"gold": "3.8e35"}).value == 1.0
    assert accuracy(tolerance=0.001)(text, {"gold": "3.8e35"}).value == 0.0
    assert accuracy(tolerance=0.01)(Text(r"\boxed{\sqrt{2}}"), {"gold": "1.41"}).value == 1.0


def judge_bombs() -> list[tuple[bool, float]]:
    found = []
    for answer, gold in BOMBS:
        start = time.perf_counter()
        right, _ = verdict(answer, gold)
        found.append((right, time.perf_counter() - start))
    return found


def test_bombs_are_neither_right_nor_slow_also_in_a_thread() -> None:
    equal(r"\sqrt{2}", "1")  # imports mpmath
    found = judge_bombs()
    thread = threading.Thread(target=lambda: found.extend(judge_bombs()))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(found) == 2 * len(BOMBS)
    assert not any(right for right, _ in found)
    assert max(seconds for _, seconds in found) < 0.5


LONG = {
    "spaces": "1" + " " * 9_000 + "2",
    "dots": "1" + "." * 9_000 + "2",
    "dollars": "$" * 9_000,
    "backslashes": "\\" * 9_000,
    "open texts": "\\text{" * 1_500,
    "minuses": "-" * 9_000 + "1",
    "commas": "1," * 4_500,
    "bars": "|" * 500,
    "sines": "\\sin " * 500 + "x",
    "factorials": "3" + "!" * 500,
    "fractions": "\\frac" * 500 + "12",
    "plus minus": "\\pm 1" * 200,
    "sums of roots": "+".join(f"\\sqrt{{{n}}}" for n in range(2, 150)),
    "products of sums": "".join(f"(x+{n})" for n in range(110)),
    "powers of powers": "((((2^{9})^{9})^{9})^{9})^{9^{9}}",
    "unions": "\\cup".join(f"({n},{n + 1})" for n in range(90)),
    "matrix": "\\begin{pmatrix}" + "\\\\".join("&".join("12") for _ in range(90)) + "\\end{pmatrix}",
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(
    "gold", ["2", r"\sqrt{2}+1", "x^2+1", "1,2", "(1,2)", "[0,1)", "x<3", r"\begin{pmatrix}1&2\end{pmatrix}"]
)
def test_long_answers_are_judged_quickly(name: str, gold: str) -> None:
    start = time.perf_counter()
    assert equal(LONG[name], gold) is False
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize("piece", ["\\boxed{", "answer is ", "<answer>", "$", "#### ", "\\boxed{1} ", " is ", "{", "\\[", "\n"])
def test_extraction_is_linear(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.perf_counter()
    accuracy()(Text(text), {"gold": "1234567"})
    assert time.perf_counter() - start < 3.0


def test_threads_agree_with_one_another() -> None:
    """mpmath's contexts are not thread-safe: functions raise their precision for a while, and threads switch often here."""
    pairs = [
        (f"\\sin({n}x) \\cos(y) + \\binom{{{n}}}{{t}}", f"\\binom{{{n}}}{{t}} + \\cos(y)\\sin({n} x)") for n in range(2, 30)
    ]
    pairs += [(f"x^{{{n}}}\\sin {n}x", f"\\sin({n} x) x^{{{n + 1}}}") for n in range(2, 30)]
    expected = [True] * 28 + [False] * 28
    found: dict[int, list[bool]] = {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: [equal(a, g) for a, g in pairs]})) for k in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(found[k] == expected for k in range(8))


def test_every_thread_has_a_context_of_its_own() -> None:
    found = [context()]
    thread = threading.Thread(target=lambda: found.append(context()))
    thread.start()
    thread.join()
    assert found[0] is context()
    assert found[0] is not found[1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("1" * 10_001, "longer than 10000 characters"),
        ("1" * 1_001, "a number of more than 1000 digits"),
        ("(" * 41 + "1" + ")" * 41, "nested deeper than 40"),
        ("+1" * 301, "more than 600 symbols"),
        ("\\sqrt" * 70 + "2", "nested deeper than 60"),
        ("3" + "!" * 200, "a tree deeper than 120"),
        ("2 * 1e999", "exponent 999 is too large"),
    ],
)
def test_what_is_refused_before_it_is_judged(answer: str, reason: str) -> None:
    assert verdict(answer, "2") == (False, reason)


@pytest.mark.parametrize(
    "chain",
    ["1" + "/2" * 290, "1" + "!" * 590, "x" + "'" * 590, "(0,1)" + "\\cup(0,1)" * 90, "2" + "^\\circ" * 290, "9" + "^9" * 290],
)
def test_chains_without_brackets_are_bounded(chain: str) -> None:
    assert equal(chain, "7") is False
    assert equal(chain + "+7", "x<7") is False
