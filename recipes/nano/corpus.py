"""Pretraining text of mixed quality: the same word problems, answered rightly and wrongly, in several manners.

A document is the R1-Zero prompt of a question, a completion and the end-of-sequence token. The kinds of completion:
  bare      "The answer is N.", right ever more rarely as problems get longer; the most frequent kind, so the base's greedy one
  untagged  one equation a step ("12 + 5 = 17."), then "The answer is N."
  tagged    "<think> equations </think> <answer>N</answer>": present but rare
  junk      broken tags, rambling without end, the question said again
Traces carry errors: slips of arithmetic, wrong operations, skipped steps. Long problems are rarer here than in training,
so that reinforcement learning has something to learn. Only the "train" split is drawn from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from recipes.nano.problems import Drawn, Program, apply, draw_for, fingerprint
from recipes.nano.situations import Operand
from rl.prompts import R1_ZERO

KINDS = ("bare", "untagged", "tagged", "junk")
# The prompt up to the question is the same in every document; it ends where the tokenizer always cuts (before a space).
PREFIX, _, _ = R1_ZERO.partition(" {question}")


@dataclass(frozen=True)
class Mix:
    """How good the text is. Shares sum to 1; `right` and `steps` are by the number of steps, from 1."""

    shares: dict[str, float] = field(default_factory=lambda: {"bare": 0.46, "untagged": 0.30, "tagged": 0.14, "junk": 0.10})
    error: float = 0.12  # a step of a trace
    right: tuple[float, ...] = (0.70, 0.35, 0.20, 0.12, 0.08, 0.06)  # a bare answer
    steps: tuple[float, ...] = (0.20, 0.22, 0.21, 0.17, 0.12, 0.08)

    def __post_init__(self) -> None:
        if set(self.shares) != set(KINDS) or abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"nano corpus: shares = {self.shares}; give one for each of {', '.join(KINDS)}, summing to 1")


@dataclass(frozen=True)
class Document:
    """One text, still in two parts: `prompt` and `completion` (which begins with a space). `right`: it says the gold answer."""

    prompt: str
    completion: str
    kind: str
    right: bool
    drawn: Drawn


def prompt_text(question: str) -> str:
    """What `rl.prompts.render(question, "r1_zero", tokenizer)` tokenises, for a question that ends in "." or "?"."""
    return R1_ZERO.replace("{question}.", question)


def _slip(rng: random.Random, value: int) -> int:
    """A result that arithmetic gone wrong could give."""
    return max(0, value + rng.choice((-10, -2, -1, 1, 2, 10)))


def _calculate(operator: str, left: int, right: int) -> int:
    """Like `apply`, but a trace that has gone wrong goes on: rounded down, never below 0."""
    return left // max(right, 1) if operator == "/" else max(0, apply(operator, left, right))


def trace(rng: random.Random, program: Program, error: float) -> tuple[str, int]:
    """The steps as equations, and the value they end with; each step goes wrong with probability `error`.

    >>> trace(random.Random(0), Program(10, (("t", "*", 4, 6), ("x", "+", "x", "t"))), 0.0)
    ('4 * 6 = 24. 10 + 24 = 34.', 34)
    """
    registers: dict[Operand, int] = {"x": program.start, "t": 0}
    said: list[str] = []
    last = len(program.steps) - 1
    for i, (target, operator, left, right) in enumerate(program.steps):
        first: Any = registers.get(left, left)
        second: Any = registers.get(right, right)
        fault = rng.choice(("slip", "operation", "skip")) if rng.random() < error else ""
        if fault == "skip" and (said or i < last):  # a trace is never empty
            # "4 boxes of 6" is then taken for 6.
            if target == "t" or left != "x":
                registers[target] = second
            continue
        if fault == "operation":
            operator = rng.choice([o for o in "+-*" if o != operator])
        value = _calculate(operator, first, second)
        if fault == "slip":
            value = _slip(rng, value)
        said.append(f"{first} {operator} {second} = {value}.")
        registers[target] = value
    return " ".join(said), registers["x"]


def _guess(rng: random.Random, drawn: Drawn) -> int:
    """A wrong answer as one gives it without thinking: a result on the way, a number of the question, or near the truth."""
    gold = drawn.results[-1]
    told = [operand for step in drawn.program.steps for operand in step[2:] if isinstance(operand, int)]
    near = [gold + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if gold + d >= 0]
    way = list(drawn.results[:-1])
    wrong = [n for n in rng.choice((way or near, near, told)) if n != gold]
    return rng.choice(wrong) if wrong else gold + 1


def _bare(rng: random.Random, drawn: Drawn, mix: Mix) -> tuple[str, int | None]:
    steps = len(drawn.program.steps)
    answer = drawn.results[-1] if rng.random() < mix.right[min(steps, len(mix.right)) - 1] else _guess(rng, drawn)
    return f" The answer is {answer}.", answer


def _untagged(rng: random.Random, drawn: Drawn, mix: Mix) -> tuple[str, int | None]:
    said, answer = trace(rng, drawn.program, mix.error)
    return f" {said} The answer is {answer}.".replace("  ", " "), answer


def _tagged(rng: random.Random, drawn: Drawn, mix: Mix) -> tuple[str, int | None]:
    said, answer = trace(rng, drawn.program, mix.error)
    return f" <think> {said} </think> <answer>{answer}</answer>".replace("  ", " "), answer


def _junk(rng: random.Random, drawn: Drawn, mix: Mix) -> tuple[str, int | None]:
    said, answer = trace(rng, drawn.program, 3 * mix.error)
    manner = rng.random()
    if manner < 0.25:  # rambles on: too long for any budget
        value, parts = answer, []
        for _ in range(rng.randrange(11, 14)):
            operator, other = rng.choice("+-"), rng.randrange(2, 41)
            parts.append(f"{value} {operator} {other} = {(value := _calculate(operator, value, other))}.")
        return f" {said} {' '.join(parts)}".replace("  ", " "), None
    if manner < 0.40:
        return f" {drawn.question}", None
    broken = (
        f" <think> {said} <answer>{answer}",
        f" <think> {said} The answer is {answer}.",
        f" <answer>{answer}</answer> <think> {said}",
        f" {said} </think> {answer}",
        f" <think> {said} </think>",
        f" {said}",
    )
    return rng.choice(broken).replace("  ", " "), None


_WRITE = {"bare": _bare, "untagged": _untagged, "tagged": _tagged, "junk": _junk}


def documents(count: int, seed: int | str, mix: Mix) -> Iterator[Document]:
    """`count` documents; the same arguments give the same texts."""
    rng = random.Random(f"corpus/{seed}")
    kinds = rng.choices(list(mix.shares), list(mix.shares.values()), k=count)
    steps = rng.choices(range(1, len(mix.steps) + 1), mix.steps, k=count)
    for kind, n in zip(kinds, steps, strict=True):
        drawn = draw_for(rng, "train", n)
        completion, answer = _WRITE[kind](rng, drawn, mix)
        yield Document(prompt_text(drawn.question), completion, kind, answer == drawn.results[-1], drawn)


@dataclass(frozen=True)
class Encoded:
    """Documents as token ids: `ids` all in one array; document i has `lengths[i]` tokens, the first `prompts[i]` its prompt."""

    ids: np.ndarray  # uint16
    lengths: np.ndarray  # int32
    prompts: np.ndarray  # int32
    overlap: int  # documents whose question or fingerprint is one of those asked about


_CHUNK = 5000


# The generated texts' share of the tokenizer's own cutting rule: tags, digits, words, signs, spaces; all ASCII.
_PIECES = re.compile(r"</?think>|</?answer>|[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9<]+|\s")


class Pieces(dict[str, list[int]]):
    """Token ids of a piece of text, remembered: faster than encoding whole, for the corpus has few different pieces.

    Exact, because the tokenizer never merges across pieces (tests/test_corpus.py compares with whole texts).
    """

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.eos: int = self.tokenizer.token_to_id("<|endoftext|>") or 0  # it is the first token (tokenizer.py)

    def __missing__(self, piece: str) -> list[int]:
        self[piece] = ids = self.tokenizer.encode(piece).ids
        return ids

    def encode(self, text: str) -> list[int]:
        return [id for piece in _PIECES.findall(text) for id in self[piece]]


def join(parts: Sequence[Encoded]) -> Encoded:
    """All of them as one, in their order."""
    return Encoded(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.prompts for part in parts]),
        sum(part.overlap for part in parts),
    )


def _encode_chunk(chunk: int, count: int, seed: int, mix: Mix, tokenizer_json: str, avoid: frozenset[str]) -> Encoded:
    pieces = Pieces(tokenizer_json)
    prefix = pieces.encode(PREFIX)
    flat: list[int] = []
    lengths, prompts, common = [], [], 0
    for document in documents(min(_CHUNK, count - chunk * _CHUNK), f"{seed}/{chunk}", mix):
        prompt = prefix + pieces.encode(document.prompt[len(PREFIX) :])
        completion = [*pieces.encode(document.completion), pieces.eos]
        flat += prompt
        flat += completion
        prompts.append(len(prompt))
        lengths.append(len(prompt) + len(completion))
        common += document.drawn.fingerprint in avoid or document.drawn.question in avoid
    return Encoded(np.array(flat, np.uint16), np.array(lengths, np.int32), np.array(prompts, np.int32), common)


def encode(count: int, seed: int, mix: Mix, tokenizer_json: str, avoid: list[dict[str, Any]], processes: int) -> Encoded:
    """`count` documents as token ids, whatever the number of processes. `avoid`: rows to measure the overlap with."""
    known = frozenset(text for row in avoid for text in (row["question"], fingerprint(row["situation"], row["question"])))
    work = partial(_encode_chunk, count=count, seed=seed, mix=mix, tokenizer_json=tokenizer_json, avoid=known)
    chunks = range(-(-count // _CHUNK))
    if processes == 1:
        parts = [work(chunk) for chunk in chunks]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(work, chunks))
    return join(parts)
