r"""The test sets: where the rows lie, how they are asked, what they are graded by. One short entry each.

A task's rows are dicts with `id`, `question`, `gold`, `kind` ("math", "code", "choice"), `groups` (what accuracy is broken down by), and
`plain`, the whole prompt as text, where it is not the question under a template. A row whose gold would not be graded as right against
itself fails the load by name. Programs are proven right by `audit`, which runs them.

What is asked as others ask it, so that figures can be compared:
  gsm8k_8shot      the first 8 rows of GSM8K's training part with their solutions, in the form of lm-evaluation-harness' `gsm8k`
  mmlu             that harness' `mmlu`: its description line, the 5 dev rows, log-likelihood of the letters (loglik.py)
  math, minerva    gold: the last \boxed{} of the solution (Hendrycks et al. 2021); minerva's numbers within 1e-4, relative, as
                   Qwen2.5-Math's evaluation has it
  mbpp             rows 11 to 510, its test part (Austin et al. 2021), with the tests in the question
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.code_tests import read_tests
from rewards.math_answer import accuracy, check_gold
from rewards.score import Text
from rl import data
from rl.data import Row, Source

LETTERS = "ABCD"
SHOTS_8 = 8
MBPP_TEST = range(11, 511)


@dataclass(frozen=True)
class Task:
    """One entry. `file` lies below the data folder; `hub` is (name, config, split)."""

    form: str  # what a raw row looks like: a key of FORMS
    file: str = ""
    hub: tuple[str, str | None, str] = ("", None, "")
    max_tokens: int = 1024  # of an answer
    template: str = "r1_zero"  # "plain": only as the row's own text
    mode: str = "generate"  # or "loglikelihood"
    groups: tuple[str, ...] = ()  # columns
    tolerance: float = 0.0  # relative, of numbers
    shots: int = 0
    until: tuple[str, ...] = ()  # an answer ends before the first of these
    marked: str = ""  # strict extraction reads what follows this; "": the content of <answer> </answer>


TASKS: dict[str, Task] = {
    "gsm8k": Task("gsm8k", "gsm8k/test.jsonl", ("openai/gsm8k", "main", "test"), groups=("steps",)),
    "gsm8k_8shot": Task(
        "gsm8k", "gsm8k/test.jsonl", ("openai/gsm8k", "main", "test"), 256, "plain", groups=("steps",), shots=SHOTS_8,
        until=("Question:",), marked="####",
    ),
    "math500": Task("math", "math500/test.jsonl", ("HuggingFaceH4/MATH-500", None, "test"), 2048, groups=("subject", "level")),
    "math": Task(
        "math", "math/test.jsonl", ("DigitalLearningGmbH/MATH-lighteval", None, "test"), 2048, groups=("type", "level")
    ),
    "aime24": Task("math", "competition/aime24.jsonl", ("HuggingFaceH4/aime_2024", None, "train"), 8192),
    "aime25": Task("math", "competition/aime25.jsonl", ("math-ai/aime25", None, "test"), 8192),
    "amc23": Task("math", "competition/amc23.jsonl", ("math-ai/amc23", None, "test"), 4096),
    "minerva_math": Task(
        "math", "competition/minerva_math.jsonl", ("math-ai/minervamath", None, "test"), 2048, groups=("type",), tolerance=1e-4
    ),
    "olympiadbench": Task(
        "math", "competition/olympiadbench.jsonl", ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"), 4096,
        groups=("subfield", "answer_type"),
    ),
    "mmlu": Task(
        "mmlu", "mmlu/test", ("cais/mmlu", "all", "test"), 0, "plain", "loglikelihood", groups=("subject",), shots=5
    ),
    "mmlu_cot": Task("mmlu", "mmlu/test", ("cais/mmlu", "all", "test"), groups=("subject",)),
    "humaneval": Task("humaneval", "humaneval/HumanEval.jsonl.gz", ("openai/openai_humaneval", None, "test")),
    "mbpp": Task("mbpp", "mbpp/mbpp.jsonl", ("google-research-datasets/mbpp", "full", "test")),
    "nano": Task("rows", max_tokens=256, groups=("part", "steps")),  # generated: its rows are handed in
}  # fmt: skip


def task(name: str) -> Task:
    """The entry of `name`; a file of problems is a task too, with free columns as its groups. Raises ValueError."""
    if name in TASKS:
        return TASKS[name]
    if name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        return Task("rows", name, groups=("subject", "level", "language", "part", "steps"))
    raise ValueError(f"task {name!r} is not known: use one of {', '.join(TASKS)}, or a .jsonl or .parquet file")


def short(name: str) -> str:
    """A task's name in files: `german` for data/german.jsonl."""
    return name if name in TASKS else Path(name).name.split(".")[0]


def load(name: str, folder: str = "", sources: Mapping[str, Source] | None = None, limit: int = 0) -> list[Row]:
    """The rows of a task, from files below `folder` or from the hub; `limit` keeps an even draw of so many.

    `sources` gives rows by name that neither has. Raises ValueError with the task's name for what cannot be found, read or graded.
    """
    entry = task(name)
    try:
        if entry.form == "rows" and not entry.file and name not in (sources or {}):
            raise ValueError("its questions are generated: run it as `make eval` (python -m recipes.evaluate) does")
        if entry.form == "rows":
            rows = data.load_rows(entry.file or name, "heldout", folder, sources)
        else:
            rows = FORMS[entry.form](_raw(entry, folder), entry, folder)
        rows = [_finished(row, i, name, entry) for i, row in enumerate(rows)]
        if limit:
            rows = [rows[i * len(rows) // min(limit, len(rows))] for i in range(min(limit, len(rows)))]
        _check(rows)
    except ValueError as error:
        raise ValueError(f"task {name}: {error}".replace("data.folder", "--data")) from None
    return rows


def digest(rows: Sequence[Row]) -> str:
    """sha256 over the rows, columns in any order."""
    state = hashlib.sha256()
    for row in rows:
        state.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
    return state.hexdigest()


def _raw(entry: Task, folder: str) -> list[Row]:
    if not folder:
        return data.read_hub(*entry.hub)
    path = Path(folder) / entry.file
    return _subjects(path) if entry.form == "mmlu" else data.read_file(path)


def _finished(row: Row, index: int, name: str, entry: Task) -> Row:
    """With id, groups and tolerance; solutions go, but for a program's, which is its gold's proof."""
    own = next((row[key] for key in ("unique_id", "id", "task_id") if row.get(key) not in (None, "")), index)
    row = {**row, "id": own if isinstance(own, str) else f"{short(name)}/{own}"}
    row["groups"] = {column: str(row[column]) for column in entry.groups if row.get(column) not in (None, "")}
    return row | ({"tolerance": entry.tolerance} if entry.tolerance else {})


def _check(rows: Sequence[Row]) -> None:
    """Every gold is right against itself, as strict and as lenient extraction find it."""
    strict, lenient = accuracy("strict"), accuracy("lenient")
    seen, proven = set[str](), set[str]()
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"two rows have the id {row['id']}")
        seen.add(row["id"])
        if row["kind"] == "code":
            read_tests(row)
            continue
        if row["gold"] in proven:
            continue
        try:
            check_gold(row["gold"])
            right = all(reward(Text(f"<answer> {row['gold']} </answer>"), row).value == 1.0 for reward in (strict, lenient))
        except ValueError as error:
            raise ValueError(f"row {row['id']}: {error}") from None
        proven.add(row["gold"])
        if not right:
            raise ValueError(f"row {row['id']}: its gold {row['gold']!r} is not graded as right against itself")


# -- the forms of raw rows ---------------------------------------------------------------------------------------------------


def _gsm8k(raw: Sequence[Row], entry: Task, folder: str) -> list[Row]:
    def halves(r: Row) -> tuple[str, str]:
        solution, mark, gold = str(r.get("answer", "")).rpartition("####")
        if not mark:
            raise ValueError(f"{r.get('question', '?')[:60]!r} has no '#### gold' line; is this GSM8K?")
        return solution, gold.strip()

    def asked(r: Row) -> str:
        return f"Question: {r['question']}\nAnswer:"

    shots = ""
    if entry.shots:
        train = Path(folder) / "gsm8k/train.jsonl"
        examples = (data.read_file(train) if folder else data.read_hub("openai/gsm8k", "main", "train"))[: entry.shots]
        shots = "".join(f"{asked(r)} {r['answer']}\n\n" for r in examples)
    rows = []
    for i, r in enumerate(raw):
        solution, gold = halves(r)
        row = {"id": f"gsm8k/test/{i}", "question": r["question"].strip(), "gold": gold, "kind": "math"}
        row["steps"] = max(1, solution.count("<<"))
        rows.append(row | ({"plain": shots + asked(r)} if entry.shots else {}))
    return rows


def _math(raw: Sequence[Row], entry: Task, folder: str) -> list[Row]:
    """MATH and the competitions: a gold in one of the usual columns, else in the last box of the solution."""
    rows = []
    for i, r in enumerate(raw):
        gold = next((r[key] for key in ("expected_answer", "final_answer", "answer") if r.get(key) not in (None, "", [])), None)
        gold = gold[0] if isinstance(gold, list) else gold
        gold = int(gold) if isinstance(gold, float) and gold.is_integer() else gold
        gold = last_box(str(r.get("solution", ""))) if gold is None else str(gold)
        question = r.get("problem") or r.get("question")
        if not question:
            raise ValueError(f"row {i} has no problem and no question")
        columns = {key: r[key] for key in ("unique_id", "id", *entry.groups) if key in r}
        rows.append({**columns, "question": str(question).strip(), "gold": gold, "kind": "math"})
    return rows


def last_box(solution: str) -> str:
    r"""The content of the last `\boxed{}`, "" where there is none. (Boxes before it are other forms of the same.)"""
    at = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    start = solution.find("{", at)
    if at < 0 or start < 0:
        return ""
    if (bare := re.match(r"\\(?:boxed|fbox)\s+(\S+?)[.$]*(?:\s|$)", solution[at:])) is not None:
        return bare[1]
    depth = 0
    for i in range(start, len(solution)):
        depth += (solution[i] == "{") - (solution[i] == "}")
        if depth == 0:
            return solution[start + 1 : i].strip()
    return ""


def _mmlu(raw: Sequence[Row], entry: Task, folder: str) -> list[Row]:
    shots: dict[str, str] = {}
    if entry.shots:
        dev = _subjects(Path(folder) / "mmlu/dev") if folder else data.read_hub("cais/mmlu", "all", "dev")
        for r in dev:
            asked = f"{_options(r)}\nAnswer: {LETTERS[int(r['answer'])]}\n\n"
            shots[r["subject"]] = shots.get(r["subject"], "") + asked
    rows, counts = [], dict[str, int]()
    for r in raw:
        subject = r["subject"]
        n = counts[subject] = counts.get(subject, -1) + 1
        row = {"id": f"mmlu/{subject}/{n}", "question": _options(r), "gold": LETTERS[int(r["answer"])], "subject": subject}
        if not entry.shots:
            rows.append(row | {"kind": "math", "question": f"{row['question']}\nAnswer with the letter of the right option."})
            continue
        if subject not in shots:
            raise ValueError(f"subject {subject} has no examples in the dev part")
        about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        rows.append(row | {"kind": "choice", "plain": f"{about}{shots[subject]}{row['question']}\nAnswer:"})
    return rows


def _options(r: Row) -> str:
    choices = r.get("choices") or [r[f"choice{i}"] for i in range(4)]
    return "\n".join(
        [str(r["question"]).strip(), *(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True))]
    )


def _subjects(folder: Path) -> list[Row]:
    """MMLU as files: SUBJECT_SPLIT.csv, one a subject."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ValueError(f"{folder}: no .csv files; set --data to the folder that holds the data sets")
    rows: list[Row] = []
    for path in files:
        with path.open(newline="", encoding="utf-8") as lines:
            rows += [{**r, "subject": path.stem.rpartition("_")[0]} for r in csv.DictReader(lines)]
    return rows


def _humaneval(raw: Sequence[Row], entry: Task, folder: str) -> list[Row]:
    keep = ("task_id", "prompt", "entry_point", "test")
    return [
        {key: r[key] for key in keep}
        | {"question": f"Complete this Python function.\n```python\n{r['prompt'].strip()}\n```", "plain": r["prompt"]}
        | {"gold": "", "kind": "code", "program": r["prompt"] + r["canonical_solution"]}
        for r in raw
    ]


def _mbpp(raw: Sequence[Row], entry: Task, folder: str) -> list[Row]:
    keep = ("task_id", "test_list", "test_setup_code")
    return [
        {key: r[key] for key in keep}
        | {"question": f"{r['text'].strip()} Your code should pass these tests:\n" + "\n".join(r["test_list"])}
        | {"gold": "", "kind": "code", "program": r["code"]}
        for r in raw
        if int(r["task_id"]) in MBPP_TEST
    ]


FORMS = {"gsm8k": _gsm8k, "math": _math, "mmlu": _mmlu, "humaneval": _humaneval, "mbpp": _mbpp}
