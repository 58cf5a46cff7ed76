r"""How fast the math reward judges, against math-verify in the same run, and what bombs cost: `python -m bench.math_rewards`.

Three loads, each over `--workers` processes (2 by default), all wall times:
  numbers   plain-number answers in a completion, through `accuracy` (extraction included)
  latex     LaTeX golds against right and wrong spellings of themselves, `verdict` only, no pair twice
  bombs     1,000 verdicts of which 5 % are expressions that must not be evaluated; the same again from a thread
math-verify judges a sample of the same pairs (`parse` and `verify` of both sides, its timers on), so the ratio is of one machine
and one run. `--gmpy2` says whether Python's integers are GMP's here, because sympy and mpmath change their arithmetic with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.math_answer import accuracy, verdict
from rewards.score import Text

BOMBS = [
    ("9^{9^{9}}", "2"),
    ("9^{9^{9^{9}}}", "9^{9^{9^{8}}}"),
    ("(x+y+z)^{200}", "(x+y+z)^{201}"),
    ("100000000!", "100000001!"),
    ("(((10!)!)!)!", "1"),
    ("(" * 20_000 + "1" + ")" * 20_000, "2"),
    ("9" * 1_000_000, "9"),
    ("\\frac{1}" * 500 + "{2}", "3"),
    ("^".join(["9"] * 300), "4"),
    ("\\sqrt{" * 3_000 + "2" + "}" * 3_000, "5"),
    ("\\binom{10^{9}}{10^{8}}", "6"),
    ("2^{10^{12}}+1", "2^{10^{12}}"),
    ("\\sum_{k=1}^{10^{12}} k^{k}", "7"),
    ("e^{e^{e^{e^{e}}}}", "8"),
    ("+".join(f"\\frac{{1}}{{{p}}}" for p in range(10**6, 10**6 + 400)), "9"),
    ("__import__('os').system('true') or 0", "0"),
]


def number_pairs(n: int, seed: int) -> list[tuple[str, str, bool]]:
    """(completion, gold, right) with plain numbers in all the usual spellings."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(n):
        value = draw.choice([draw.randint(-999, 9_999_999), draw.randint(1, 99)])
        right = draw.random() < 0.5
        said = value if right else value + draw.choice([-10, -1, 1, 7, 1000])
        forms = [f"\\boxed{{{said}}}", f"#### {said:,}", f"<answer>{said}</answer>", f"The answer is {said}."]
        form = draw.choice([*forms, f"<answer> {said}.0 </answer>"])
        pairs.append((f"<think> {value} + 0 = {value}, so ... </think> {form}", f"{value}", right))
    return pairs


def latex_pairs(n: int, seed: int) -> list[tuple[str, str, bool]]:
    """(answer, gold, right) over fractions, roots, polynomials, tuples, intervals, equations; numbers drawn anew for each."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(n):
        a, b, c = draw.randint(2, 97), draw.randint(2, 97), draw.randint(2, 97)
        right = draw.random() < 0.5
        d = c if right else c + 1
        pairs.append(
            draw.choice(
                [
                    (f"\\dfrac{{{a}\\sqrt{{{b}}}}}{{{d}}}", f"\\frac{{{a}}}{{{c}}}\\sqrt{{{b}}}", right),
                    (f"{a}x^2 + {b}x + {d}", f"{d and c}+{b}x+{a}x^{{2}}", right),
                    (f"\\left({a}, \\frac{{{d}\\pi}}{{{b}}}\\right)", f"({a},\\frac{{{c}}}{{{b}}}\\pi)", right),
                    (f"(-\\infty, {a}) \\cup ({a + d}, \\infty)", f"(-\\infty,{a})\\cup({a + c},\\infty)", right),
                    (f"{d}+\\sqrt{{{a}}}, {d}-\\sqrt{{{a}}}", f"{c} \\pm \\sqrt{{{a}}}", right),
                    (f"y = {a}x + {d}", f"y={a} x+{c}", right),
                    (f"\\frac{{{a}}}{{{b}}} + \\frac{{{d}}}{{{b}}}", f"\\frac{{{a + c}}}{{{b}}}", right),
                    (f"{a}\\sin({b}x) e^{{-{d}x}}", f"{a} e^{{-{c} x}} \\sin {b} x", right),
                ]
            )
        )
    return pairs


def ours_completion(pair: tuple[str, str, bool]) -> bool:
    return _REWARD(Text(pair[0]), {"gold": pair[1]}).value == 1.0


def ours(pair: tuple[str, str, bool]) -> bool:
    return verdict(pair[0], pair[1])[0]


def theirs(pair: tuple[str, str, bool]) -> bool:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    answer = pair[0] if "answer" in pair[0] or "\\boxed" in pair[0] or "####" in pair[0] else f"${pair[0]}$"
    return bool(verify(parse(f"${pair[1]}$"), parse(answer)))


_REWARD = accuracy("lenient")


def measure(judge: Callable[[Any], bool], pairs: list[tuple[str, str, bool]], workers: int) -> dict[str, float]:
    """Pairs a second over all workers, the share judged as built, and the slowest in ms; workers are warm."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(judge, pairs[: 8 * workers], chunksize=8)
        start = time.perf_counter()
        verdicts = pool.map(judge, pairs, chunksize=max(1, len(pairs) // (8 * workers)))
        seconds = time.perf_counter() - start
    right = sum(v == p[2] for v, p in zip(verdicts, pairs, strict=True))
    return {"per_second": round(len(pairs) / seconds, 1), "as_built": round(right / len(pairs), 4), "pairs": len(pairs)}


def bombs(calls: int = 1_000) -> dict[str, float]:
    """All calls in this process, one after the other, 5 % of them bombs."""
    plain = latex_pairs(calls, 5)
    wrong, slowest, start = 0, 0.0, time.perf_counter()
    for i, (answer, gold, right) in enumerate(plain):
        if i % 20 == 0:
            (answer, gold), right = BOMBS[i // 20 % len(BOMBS)], False
        begun = time.perf_counter()
        wrong += verdict(answer, gold)[0] != right
        if i % 20 == 0:
            slowest = max(slowest, time.perf_counter() - begun)
    return {"seconds": round(time.perf_counter() - start, 2), "wrong": wrong, "slowest_bomb_ms": round(1000 * slowest, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    from mpmath.libmp import BACKEND

    figures: dict[str, Any] = {"workers": given.workers, "cores": os.cpu_count(), "integers": BACKEND}
    for name, judge, pairs in (("numbers", ours_completion, number_pairs(40_000, 1)), ("latex", ours, latex_pairs(6_000, 2))):
        mine, other = (
            measure(judge, pairs, given.workers),
            measure(theirs, pairs[: 800 if name == "numbers" else 400], given.workers),
        )
        figures[name] = {"ours": mine, "math_verify": other, "ratio": round(mine["per_second"] / other["per_second"], 1)}
    figures["bombs"] = bombs()
    threaded: list[dict[str, float]] = []
    thread = threading.Thread(target=lambda: threaded.append(bombs()))
    thread.start()
    thread.join()
    figures["bombs_in_a_thread"] = threaded[0]
    print(json.dumps(figures, indent=1))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
