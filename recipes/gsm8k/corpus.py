"""Pretraining text in GSM8K's manner: its training questions with other numbers and names (draw.py), generated word problems, sums.

A document is the R1-Zero prompt of a question, a completion and the end-of-sequence token, in the mixed quality of nano/corpus.py:
  bare      "The answer is N.", mostly wrong; the most frequent kind
  untagged  the solution, then "The answer is N."
  tagged    "<think> solution </think> <answer>N</answer>": present but rare
  junk      broken tags, the question said again
A solution is equations, or the prose of the row's author with the new numbers; steps go wrong now and then. Nothing is taken from the test,
and no training row stands here with its own numbers. A fifth of the rows are no templates (templates.read says which): the model has
seen nothing of these, so that reinforcement learning meets questions it half knows and questions it does not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing import get_context

import numpy as np

from recipes.gsm8k.draw import FAULTS, Drawn, draw, equations, written
from recipes.gsm8k.templates import Template, Value, whole
from recipes.nano import corpus as nano
from recipes.nano.corpus import PREFIX, Encoded, Pieces, join
from rl.prompts import R1_ZERO

CHUNK = 1000  # documents
_PIECES = re.compile(r"</?think>|</?answer>|[0-9]| ?[^\W\d_]+| ?(?:[^\w\s<]|_)+|\s| ?<")


@dataclass(frozen=True)
class Mix:
    """Shares sum to 1 each. `right` is of a bare answer, by the number of steps from 1; `error` of a step."""

    sources: dict[str, float] = field(default_factory=lambda: {"gsm8k": 0.78, "nano": 0.10, "sums": 0.12})
    shares: dict[str, float] = field(default_factory=lambda: {"bare": 0.36, "untagged": 0.36, "tagged": 0.20, "junk": 0.08})
    prose: float = 0.3  # of the solutions
    error: float = 0.06
    right: tuple[float, ...] = (0.5, 0.25, 0.15, 0.10, 0.07, 0.05)

    def __post_init__(self) -> None:
        for name, shares, keys in (("sources", self.sources, ("gsm8k", "nano", "sums")), ("shares", self.shares, nano.KINDS)):
            if set(shares) != set(keys) or abs(sum(shares.values()) - 1) > 1e-9:
                raise ValueError(f"gsm8k corpus: {name} = {shares}; give one for each of {', '.join(keys)}, summing to 1")


@dataclass(frozen=True)
class Document:
    question: str
    completion: str  # begins with a space
    source: str
    kind: str

    @property
    def prompt(self) -> str:
        """What rl.prompts.render tokenises."""
        if self.question[-1] in ".?!":
            return R1_ZERO.replace("{question}.", self.question)
        return R1_ZERO.replace("{question}", self.question)


def _slip(rng: random.Random, value: Value) -> Value:
    slipped: Value = value + rng.choice((-10, -2, -1, 1, 2, 10))
    return slipped if slipped >= 0 else -slipped


def _guess(rng: random.Random, drawn: Drawn) -> str:
    """A wrong answer as one gives it without thinking: a number of the question, a result on the way, or near the truth."""
    near = [drawn.gold + d for d in (-10, -5, -2, -1, 1, 2, 5, 10) if drawn.gold + d >= 0]
    wrong = [v for v in rng.choice((near, drawn.registers, drawn.registers)) if v != drawn.gold]
    return written(rng.choice(wrong) if wrong else drawn.gold + 1)


def _solved(rng: random.Random, drawn: Drawn, kind: str, mix: Mix) -> str:
    """A completion for a question drawn from a template."""
    steps = len(drawn.template.steps)
    if kind == "bare":
        right = rng.random() < mix.right[min(steps, len(mix.right)) - 1]
        return f" The answer is {written(drawn.gold) if right else _guess(rng, drawn)}."
    error = mix.error * (3 if kind == "junk" else 1)
    faults = [rng.choice(FAULTS) if rng.random() < error else "" for _ in range(steps)]
    said, got = equations(drawn, faults, lambda value: _slip(rng, value))
    if drawn.template.prose and rng.random() < mix.prose:
        said = got.prose
    answer = written(got.gold)
    if kind == "untagged":
        return f" {said} The answer is {answer}."
    if kind == "tagged":
        return f" <think> {said} </think> <answer>{answer}</answer>"
    return rng.choice((
        f" <think> {said} <answer>{answer}", f" <think> {said} The answer is {answer}.", f" {drawn.question}",
        f" <answer>{answer}</answer> <think> {said}", f" {said} </think> {answer}", f" <think> {said} </think>", f" {said}",
    ))  # fmt: skip


def sums(rng: random.Random, count: int) -> list[str]:
    """Sums such as word problems need, as equations."""
    made = []
    for _ in range(count):
        a, b = rng.randint(2, rng.choice((20, 100, 1000, 5000))), rng.randint(2, rng.choice((12, 30, 100, 1000)))
        if rng.random() < 0.25:  # round numbers
            a, b = a * 10, b * rng.choice((1, 10))
        operator = rng.choice("+-*//*")
        if operator == "+":
            made.append(f"{a}+{b}={a + b}.")
        elif operator == "-":
            made.append(f"{max(a, b)}-{min(a, b)}={abs(a - b)}.")
        elif operator == "*":
            b = b if a < 100 and b < 100 else rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 20, 100))
            made.append(f"{a}*{b}={a * b}.")
        else:
            a, b = (a, b) if a < 100 and b < 100 else (a, rng.choice((2, 3, 4, 5, 6, 8, 10, 12, 100)))
            made.append(f"{a * b}/{b}={a}." if rng.random() < 0.8 else f"{a}/100={written(_hundredth(a))}.")
        if rng.random() < 0.12:  # prices
            cents, more = 5 * rng.randint(1, 400), rng.choice((2, 3, 4, 5, 6, 8, 10, 12))
            made[-1] = f"{written(_hundredth(cents))}*{more}={written(_hundredth(cents * more))}."
    return made


def _hundredth(value: int) -> Value:
    return whole(Fraction(value, 100))


def _sum_document(rng: random.Random) -> Document:
    solved = sums(rng, rng.randint(4, 8))
    asked = ", ".join(each.partition("=")[0] for each in solved)
    return Document(f"Work out {asked}.", f" {' '.join(solved)}", "sums", "untagged")


def documents(count: int, seed: int | str, mix: Mix, templates: Sequence[Template]) -> Iterator[Document]:
    """`count` documents; the same arguments give the same texts."""
    rng = random.Random(f"gsm8k/{seed}")
    sources = rng.choices(list(mix.sources), list(mix.sources.values()), k=count)
    generated = nano.documents(sources.count("nano"), f"gsm8k/{seed}", nano.Mix(error=mix.error, shares=mix.shares))
    for source in sources:
        if source == "sums":
            yield _sum_document(rng)
        elif source == "nano":
            made = next(generated)
            yield Document(made.drawn.question, re.sub(r" ([-+*/=]) ", r"\1", made.completion), source, made.kind)
        else:
            while (drawn := draw(rng, rng.choice(templates))) is None:
                pass
            kind = rng.choices(list(mix.shares), list(mix.shares.values()))[0]
            yield Document(drawn.question, _solved(rng, drawn, kind, mix), source, kind)


class Cut(Pieces):
    """Any text that templates hold, encoded piece by piece; exact, as nano's (tests/test_gsm8k_corpus.py)."""

    def encode(self, text: str) -> list[int]:
        return [id for piece in _PIECES.findall(text) for id in self[piece]]


_worker: tuple[Cut, Sequence[Template], frozenset[str]]


def _start(tokenizer_json: str, templates: Sequence[Template], avoid: frozenset[str]) -> None:
    global _worker
    _worker = Cut(tokenizer_json), templates, avoid


def _encode(chunk: int, seed: int, mix: Mix) -> Encoded:
    cut, templates, avoid = _worker
    prefix = cut.encode(PREFIX)
    flat: list[int] = []
    lengths, prompts, common = [], [], 0
    for document in documents(CHUNK, f"{seed}/{chunk}", mix, templates):
        prompt = prefix + cut.encode(document.prompt[len(PREFIX) :])
        completion = [*cut.encode(document.completion), cut.eos]
        flat += prompt
        flat += completion
        prompts.append(len(prompt))
        lengths.append(len(prompt) + len(completion))
        common += document.question in avoid
    return Encoded(np.array(flat, np.uint16), np.array(lengths, np.int32), np.array(prompts, np.int32), common)


class Writer:
    """Chunks of encoded documents from other processes, begun at once; `avoid`: questions that may not occur, counted in `overlap`."""

    def __init__(
        self, chunks: int, seed: int, mix: Mix, templates: Sequence[Template], tokenizer_json: str, avoid: Iterable[str], processes: int
    ) -> None:  # fmt: skip
        self.pool = ProcessPoolExecutor(
            processes, get_context("spawn"), _start, (tokenizer_json, tuple(templates), frozenset(avoid))
        )
        self.parts: list[Future[Encoded]] = [self.pool.submit(_encode, chunk, seed, mix) for chunk in range(chunks)]

    def encoded(self) -> Encoded:
        """All of them, whatever the number of processes."""
        parts = [part.result() for part in self.parts]
        self.pool.shutdown()
        return join(parts)
