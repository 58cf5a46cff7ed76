"""Which test questions stand in a training set: word n-grams and whole questions. `python -m eval.contamination --train FILE --task gsm8k`.

What the field does, and what is done here:
1. n-grams of words, in lower case and without punctuation, n = 13 (GPT-3, Brown et al. 2020, appendix C) and n = 8 (PaLM, Chowdhery
   et al. 2022, section 8, which calls a question contaminated from 70 % of its 8-grams on). Both are listed, with the share of the
   question's n-grams that occur anywhere in the training set; `most` counts those from 70 % on.
2. A question all of whose words stand in a training row, one after another, is listed as `words`, whatever surrounds it: training rows
   carry instructions and solutions. It is `exact` where the operators between the words agree too. The difference matters: of the ten
   rows of MATH's test that are a row of its train by words, six differ in a sign, so they have another answer.
3. A question of fewer than n words has no n-gram; only 2 is tested for it, and `short` counts them.
The test questions are indexed (16 bytes an n-gram) and the training set goes past once, in batches, so memory does not grow with it.
n-grams are compared by 64-bit hashes with random keys: a false one is to be expected once in 10^13 pairs of 10^6 n-grams of the test.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.records import write_atomic
from eval.tasks import load, short
from rl.data import Row, Source

SIZES = (8, 13)
MOST = 0.7  # share of n-grams from which PaLM calls a question contaminated
FILE = "contamination.json"  # in the folder of an evaluation
BATCH = 2000  # training rows that are held at once
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
SIGN = re.compile(WORD.pattern + r"|[-+*/=<>^!|()]")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing modulo 2^64


@dataclass(frozen=True)
class Shared:
    """A test question of which the training set has something.

    `text` is the longest run of its words that the training set has; `train` the row that holds the question, or
    the one that had most of its n-grams first.
    """

    id: str
    share: float  # of its n-grams, anywhere in the training set
    whole: str  # "exact", "words" or ""
    train: str
    text: str


@dataclass(frozen=True)
class Contamination:
    """Of one test set, for one n. `found` is sorted: whole questions first, then by share."""

    task: str
    n: int
    questions: int
    short: int
    rows: int  # of the training set
    found: tuple[Shared, ...] = field(default_factory=tuple)

    @property
    def exact(self) -> int:
        return sum(f.whole == "exact" for f in self.found)

    @property
    def whole(self) -> int:
        """By words; the exact ones are among them."""
        return sum(bool(f.whole) for f in self.found)

    @property
    def most(self) -> int:
        return sum(f.share >= MOST or bool(f.whole) for f in self.found)


def words(text: str) -> list[str]:
    """What n-grams are made of. Ideographs are words of their own.

    >>> words("Let $x_1 = 2.5$; find 数学!")
    ['let', 'x', '1', '2', '5', 'find', '数', '学']
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _spaced(text: str) -> tuple[str, str]:
    """The words, and the words with the operators, each with a space on both sides: what whole questions are searched for in."""
    signs = SIGN.findall(unicodedata.normalize("NFKC", text).lower())
    return f" {' '.join(words(text))} ", f" {' '.join(signs)} "


def _grams(numbers: np.ndarray, n: int) -> np.ndarray:
    """The hash of every n-gram of a text given as word hashes (uint64)."""
    if len(numbers) < n:
        return np.zeros(0, dtype=np.uint64)
    total: np.ndarray = np.zeros(len(numbers) - n + 1, dtype=np.uint64)
    for i in range(n):  # Horner's rule, modulo 2^64
        total = total * FACTOR + numbers[i : len(numbers) - n + 1 + i]
    return total


def _numbers(found: Sequence[str]) -> np.ndarray:
    return np.fromiter((hash(w) & 0xFFFFFFFFFFFFFFFF for w in found), dtype=np.uint64, count=len(found))


class _Grams:
    """All n-grams of one length of some questions, by hash."""

    def __init__(self, texts: Mapping[int, Sequence[str]], length: int, anchored: bool) -> None:
        self.length = length
        own = {q: _grams(_numbers(w), length) for q, w in texts.items()}
        counts: np.ndarray
        self.hashes, counts = np.unique(np.concatenate(list(own.values())), return_counts=True)  # sorted, each once
        self.of: dict[int, np.ndarray] = {}  # question -> its n-grams, as places there
        self.of.update((q, np.asarray(np.searchsorted(self.hashes, hashes))) for q, hashes in own.items())
        self.first: np.ndarray = np.full(len(self.hashes), -1)  # the first training row with it
        bits = max(10, (16 * len(self.hashes)).bit_length())
        self.shift = np.uint64(64 - bits)
        self.possible: np.ndarray = np.zeros(2**bits, dtype=bool)  # by first bits: most n-grams are nowhere, and soon out
        self.possible[self.hashes >> self.shift] = True
        self.anchors: dict[int, list[int]] = {}  # place -> questions of which it is the rarest n-gram
        for q, places in self.of.items() if anchored else ():
            rarest = int(np.argmin(counts[places]))
            self.anchors.setdefault(int(places[rarest]), []).append(q)
        self.anchor: np.ndarray = np.isin(np.arange(len(self.hashes)), list(self.anchors))

    def find(self, numbers: np.ndarray, row_of_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `hashes` of the batch's n-grams that are there, and the row of each."""
        asked = _grams(numbers, self.length)
        end = row_of_word[len(numbers) - len(asked) :]
        likely = np.flatnonzero(self.possible[asked >> self.shift])
        likely = likely[row_of_word[likely] == end[likely]]
        at = np.minimum(np.searchsorted(self.hashes, asked[likely]), len(self.hashes) - 1)
        hit = self.hashes[at] == asked[likely]
        return at[hit], row_of_word[likely[hit]]

    def note(self, at: np.ndarray, row: np.ndarray) -> list[int]:
        """Remembers the first row of each n-gram; returns the rows that were the first with one."""
        grams, where = np.unique(at, return_index=True)
        new = self.first[grams] < 0
        self.first[grams[new]] = row[where[new]]
        return np.unique(row[where[new]]).tolist()


class _Index:
    """All test questions. A whole question is looked for only in rows that have its anchor: its rarest n-gram of the smallest n, or,
    where it is shorter than that, the question as one gram."""

    def __init__(self, texts: Sequence[str], sizes: Sequence[int]) -> None:
        self.sizes, smallest = sizes, min(sizes)
        self.words, self.spaced = [words(text) for text in texts], [_spaced(text) for text in texts]
        self.whole = [("", "")] * len(texts)  # how, and in which row first, the whole question was found
        self.names: dict[int, str] = {}  # of training rows that were the first with some n-gram
        self.grams: dict[int, _Grams] = {}
        self.held: dict[int, list[np.ndarray]] | None = (
            None  # by n, (place in `hashes`, row) of all n-grams; None: not asked for
        )
        for length in sorted({min(smallest, len(w)) for w in self.words} | set(sizes)):
            own = {q: w for q, w in enumerate(self.words) if len(w) == length or (len(w) > length and length in sizes)}
            if length and own:
                self.grams[length] = _Grams(own, length, length <= smallest)

    def add(self, rows: Sequence[tuple[str, str]], before: int) -> None:
        """Looks up a batch of training rows; `before` rows came earlier."""
        found = [words(text) for _, text in rows]
        numbers = _numbers([w for text in found for w in text])
        row_of_word: np.ndarray = np.repeat(np.arange(len(rows)), [len(text) for text in found])
        spaced: dict[int, tuple[str, str]] = {}
        for length, grams in self.grams.items():
            at, row = grams.find(numbers, row_of_word)
            if self.held is not None:
                self.held[length].append(np.unique(np.stack([at, row + before]), axis=1))
            for number in grams.note(at, row + before) if length in self.sizes else ():
                self.names[number] = rows[number - before][0]
            anchors = grams.anchor[at]
            for place, r in dict.fromkeys(zip(at[anchors].tolist(), row[anchors].tolist(), strict=True)):
                spaced[r] = spaced.get(r) or _spaced(rows[r][1])
                for q in grams.anchors[place]:
                    if self.whole[q][0] != "exact" and self.spaced[q][0] in spaced[r][0]:
                        exact = self.spaced[q][1] in spaced[r][1]
                        if exact or not self.whole[q][0]:
                            self.whole[q] = ("exact" if exact else "words", rows[r][0])

    def shared(self, q: int, name: str, n: int) -> Shared | None:
        """What the training set has of question `q`, or None."""
        grams, (whole, row) = self.grams.get(n), self.whole[q]
        first = grams.first[grams.of[q]] if grams is not None and q in grams.of else np.full(0, -1)
        seen = first >= 0
        if not whole and not seen.any():
            return None
        start, end = _longest(seen)
        text = self.words[q][start : end + n] if seen.any() else self.words[q]
        train = row if whole else self.names[int(np.bincount(first[seen]).argmax())]
        return Shared(name, float(seen.mean()) if seen.size else 1.0, whole, train, " ".join(text))


def _longest(seen: np.ndarray) -> tuple[int, int]:
    """First and last position of the longest run of True, the first of equals."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(np.int8), [0]])))
    if not edges.size:
        return 0, 0
    at = int(np.argmax(edges[1::2] - edges[::2]))
    return int(edges[2 * at]), int(edges[2 * at + 1]) - 1


def contamination(
    train: Iterable[tuple[str, str]], tests: Mapping[str, Sequence[tuple[str, str]]], sizes: Sequence[int] = SIZES
) -> list[Contamination]:
    """What `train`, (id, text) of each row, has of the questions (id, text) of each test set; for every task, every n.

    Raises ValueError for a test set or a training set that is empty.
    """
    for task, questions in tests.items():
        if not any(words(text) for _, text in questions):
            raise ValueError(f"{task}: no question with a word in it; there is nothing to look for")
    names = [(task, name) for task, questions in tests.items() for name, _ in questions]
    index = _Index([text for questions in tests.values() for _, text in questions], sizes)
    rows, source = 0, iter(train)
    while batch := list(itertools.islice(source, BATCH)):
        index.add(batch, rows)
        rows += len(batch)
    if not rows:
        raise ValueError("the training set has no rows; name the file that was trained on")
    results = []
    for task, n in itertools.product(tests, sizes):
        own = [q for q, (of, _) in enumerate(names) if of == task]
        found = [s for q in own if (s := index.shared(q, names[q][1], n)) is not None]
        found.sort(key=lambda s: (("exact", "words", "").index(s.whole), -s.share, s.id))
        short = sum(len(index.words[q]) < n for q in own)
        results.append(Contamination(task, n, len(own), short, rows, tuple(found)))
    return results


def holders(
    train: Sequence[tuple[str, str]], tests: Mapping[str, Sequence[tuple[str, str]]], sizes: Sequence[int] = SIZES
) -> Iterator[tuple[str, int, int, list[np.ndarray]]]:
    """(test set, number of the question in it, n, of each of its n-grams the rows of `train` that have it, sorted).

    A question of fewer words than the smallest n is one n-gram of its own length. Memory grows with what the two have in common.
    """
    names = [(task, i) for task, questions in tests.items() for i in range(len(questions))]
    index = _Index([text for questions in tests.values() for _, text in questions], sizes)
    index.held = {length: [np.zeros((2, 0), dtype=np.int64)] for length in index.grams}
    for start in range(0, len(train), BATCH):
        index.add(train[start : start + BATCH], start)
    for length, grams in index.grams.items():
        places, rows = np.concatenate(index.held[length], axis=1)
        order = np.lexsort((rows, places))
        of_place = np.split(rows[order], np.searchsorted(places[order], np.arange(1, len(grams.hashes))))
        for q, own in grams.of.items():
            yield *names[q], length, [of_place[place] for place in own]


def held_whole(question: str, text: str) -> str:
    """Whether a text has a question whole: "exact", "words" (other operators between the words) or "".

    >>> held_whole("Is 2 + 2 = 4?", "He asks: is 2+2=4?"), held_whole("Is 2 + 2 = 4?", "Is 2-2 = 4"), held_whole("Is 2 + 2 = 4?", "4")
    ('exact', 'words', '')
    """
    asked, found = _spaced(question), _spaced(text)
    return ("exact" if asked[1] in found[1] else "words") if asked[0] in found[0] else ""


def questions_of(names: Iterable[str], folder: str, sources: Mapping[str, Source] | None) -> dict[str, list[tuple[str, str]]]:
    """`asked` of test sets by name. Raises ValueError as eval.tasks.load."""
    return asked({name: load(name, folder, sources) for name in dict.fromkeys(names)})


def asked(rows: Mapping[str, Sequence[Row]]) -> dict[str, list[tuple[str, str]]]:
    """(id, question) of each test set's rows: by its short name, or its whole one where two are short alike."""
    names = [short(n) for n in rows]
    return {n if names.count(short(n)) > 1 else short(n): [(r["id"], r["question"]) for r in own] for n, own in rows.items()}


def training_texts(name: str, sources: Mapping[str, Source] | None = None) -> Iterator[tuple[str, str]]:
    """(id, all text of the row) of a .jsonl, .jsonl.gz or .parquet file, of a set in `sources`, or of a hub data set's train split.

    Files and hub sets are read a row at a time. Raises ValueError for what cannot be found or read.
    """
    for i, row in enumerate(_rows(name, sources or {})):
        yield str(row.get("id", i)), "\n".join(_strings(row))


def _rows(name: str, sources: Mapping[str, Source]) -> Iterator[Mapping[str, Any]]:
    path = Path(name)
    if name in sources:
        yield from sources[name]("train")
    elif name.endswith((".jsonl", ".jsonl.gz")) and path.exists():
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for n, line in enumerate(lines, 1):
                try:
                    row = json.loads(line) if line.strip() else None
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {n}: not JSON ({error.msg})") from None
                if row is not None:
                    yield row if isinstance(row, dict) else {"": row}
    elif name.endswith(".parquet") and path.exists():
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(BATCH):
            yield from batch.to_pylist()
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.suffix:
        from datasets import load_dataset

        try:
            yield from load_dataset(name, split="train", streaming=True)
        except Exception as error:  # the hub's errors are many; the remedy is one
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ValueError(f"data set {name}: the hub did not give it ({reason}); go online, or name its file") from None
    else:
        raise ValueError(f"--train {name}: no such .jsonl, .jsonl.gz or .parquet file, and no hub name (owner/name)")


def _strings(value: Any) -> Iterator[str]:
    """Every string in a row, messages and lists included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def enter(folder: str | Path, found: Sequence[Contamination], train: Sequence[str]) -> None:
    """Write it into contamination.json of an evaluation's folder: one object for each test set and n; other test sets stay there."""
    new = [asdict(c) | {"exact": c.exact, "whole": c.whole, "most": c.most, "training": list(train)} for c in found]
    kept = [row for row in entered(folder) if row["task"] not in {c.task for c in found}]
    rows = sorted([*kept, *new], key=lambda row: (row["task"], row["n"]))
    write_atomic(Path(folder) / FILE, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def entered(folder: str | Path) -> list[dict[str, Any]]:
    """What `enter` wrote there, [] where nobody looked. Raises ValueError for a damaged file."""
    path = Path(folder) / FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        whole = all(
            row["found"] is not None and {"task", "n", "questions", "rows", "most", "exact"} <= set(row) for row in rows
        )
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged; delete it, and look again with --train or `python -m eval.contamination --out`")
    return list(rows)


def markdown(found: Sequence[Contamination], shown: int = 20) -> str:
    """The table, and under it the questions, as many as `shown` for each test set and n."""
    lines = [
        "| test set | n | questions | fewer than n words | exact | all words | 70 % of n-grams | any n-gram |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {c.task} | {c.n} | {c.questions} | {c.short} | {c.exact} | {c.whole} | {c.most} | {len(c.found)} |" for c in found
    ]
    for c in found:
        if c.found:
            lines += ["", f"{c.task}, n = {c.n}: {min(shown, len(c.found))} of {len(c.found)}", ""]
            lines += [
                f"- {f.id}: {f.whole and f.whole + ', '}{f.share:.0%} (training row {f.train}): "
                f"{f.text[:160] + ' ...' if len(f.text) > 160 else f.text}"
                for f in c.found[:shown]
            ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, sources: Mapping[str, Source] | None = None) -> int:
    """`sources`: generated problem sets by name, handed in by what may import them."""
    parser = argparse.ArgumentParser(prog="eval.contamination", description="Which test questions stand in a training set.")
    parser.add_argument("--train", required=True, nargs="+", help=".jsonl, .jsonl.gz or .parquet files, or hub names")
    parser.add_argument("--task", required=True, help="test sets, separated by commas; names of eval/tasks.py or files")
    parser.add_argument(
        "--data", default=os.environ.get("GRPO_DATA", ""), help="folder of the data sets; empty: $GRPO_DATA, else the hub"
    )
    parser.add_argument("--out", default="", help="folder of an evaluation: contamination.json is written there for its report")
    given = parser.parse_args(argv)
    try:
        tests = questions_of(filter(None, given.task.split(",")), given.data, sources)
        found = contamination((text for name in given.train for text in training_texts(name, sources)), tests)
    except ValueError as error:
        print(f"eval.contamination: {error}", file=sys.stderr)
        return 2
    if given.out:
        enter(given.out, found, given.train)
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
