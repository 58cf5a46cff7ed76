"""Rows from files and the order in which a run meets them: nothing lost, nothing doubled, nothing that gives an answer away."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rewards.math_answer import accuracy
from rewards.score import Text
from rl.data import Order, load_rows, prompts

ROWS = [{"question": "2+2?", "gold": "4", "part": None}, {"question": "2+3?", "gold": 5, "part": "seen"}]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def refused(name: Path | str, split: str = "train", folder: str = "") -> str:
    with pytest.raises(ValueError) as caught:
        load_rows(str(name), split, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("split", "part", "count"), [("train", "train", 7473), ("heldout", "test", 1319)])
def test_gsm8k(data_root: Path, split: str, part: str, count: int) -> None:
    rows = load_rows("gsm8k", split, str(data_root))
    assert len(rows) == count == len({r["id"] for r in rows})
    raw = [json.loads(line) for line in (data_root / "gsm8k" / f"{part}.jsonl").open()]
    for row, r in zip(rows, raw, strict=True):
        # All that a row holds: a number as gold, and no word of the solution.
        assert set(row) == {"id", "question", "gold", "kind", "steps"}
        assert row["question"] == r["question"].strip()
        assert row["gold"] == r["answer"].split("####")[1].strip()
        assert float(row["gold"].replace(",", "")) is not None
        assert row["steps"] >= 1
    assert load_rows("openai/gsm8k", split, str(data_root)) == rows


def test_gsm8k_golds_earn_their_reward(data_root: Path) -> None:
    reward = accuracy(mode="lenient")
    for row in load_rows("gsm8k", "heldout", str(data_root)):
        assert reward(Text(f"<think>so</think> <answer>{row['gold']}</answer>"), row).value == 1.0, row


def test_the_two_parts_of_gsm8k_share_no_question(data_root: Path) -> None:
    train, heldout = (load_rows("gsm8k", s, str(data_root)) for s in ("train", "heldout"))
    assert not {r["question"] for r in train} & {r["question"] for r in heldout}


def test_a_folder_without_the_set(tmp_path: Path) -> None:
    assert "gsm8k/train.jsonl: no such file; set data.folder" in refused("gsm8k", folder=str(tmp_path))


def test_gsm8k_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    jsonl(tmp_path / "gsm8k/train.jsonl", [{"question": "2+2?", "answer": "4"}])
    assert "gsm8k/train/0: the answer has no '#### gold' line" in refused("gsm8k", folder=str(tmp_path))
    jsonl(tmp_path / "gsm8k/train.jsonl", [{"problem": "2+2?", "answer": "so #### 4"}])
    assert "row gsm8k/train/0: no question" in refused("gsm8k", folder=str(tmp_path))
    jsonl(tmp_path / "gsm8k/train.jsonl", [{"question": "2+2?", "answer": "so #### "}])
    assert "row gsm8k/train/0: no gold answer" in refused("gsm8k", folder=str(tmp_path))


@pytest.mark.parametrize("name", ["gsm8k", "someone/no-such-set"])
def test_the_hub_offline_is_one_line_with_the_remedy(name: str) -> None:
    told = refused(name)
    assert name in told
    assert "set data.folder to its files" in told


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = jsonl(tmp_path / "rows.jsonl", ROWS)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([r | {"gold": str(r["gold"])} for r in ROWS]), table)
    read = [load_rows(str(f), "train") for f in (plain, packed, table)]
    for rows in read:
        assert [(r["question"], r["gold"], r["kind"], r.get("part")) for r in rows] == [
            ("2+2?", "4", "math", None),
            ("2+3?", "5", "math", "seen"),
        ]
    assert [r["id"] for r in read[0]] == ["rows/0", "rows/1"]


def test_real_files_with_other_column_names(data_root: Path) -> None:
    math500 = load_rows(str(data_root / "math500" / "test.jsonl"), "heldout")
    assert len(math500) == 500
    assert not any("solution" in r for r in math500)
    gsm8k = load_rows(str(data_root / "gsm8k" / "test.jsonl"), "heldout")
    assert [r["gold"] for r in gsm8k] == [r["gold"] for r in load_rows("gsm8k", "heldout", str(data_root))]
    assert not any("####" in str(v) or "<<" in str(v) for r in gsm8k for v in r.values())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"gold": "4"}, "row rows/1: no question (looked for question, problem, prompt)"),
        ({"question": " ", "gold": "4"}, "row rows/1: no question"),
        ({"question": ["2+2?"], "gold": "4"}, "row rows/1: no question"),
        ({"question": "2+2?"}, "row rows/1: no gold answer (looked for gold, expected_answer"),
        ({"question": "2+2?", "gold": ""}, "row rows/1: no gold answer"),
        ({"question": "2+2?", "gold": None, "id": "q7"}, "row q7: no gold answer"),
        ({"question": "2+2?", "gold": "  "}, "row rows/1: the gold cannot be graded"),
        ({"question": "2+2?", "gold": "\\frac{1}{"}, "row rows/1: the gold cannot be graded"),
        ({"question": "f", "kind": "code"}, "row rows/1: the tests cannot be run: problem rows/1 has no tests"),
        ({"question": "f", "kind": "code", "asserts": ["assert f( == 1"]}, "row rows/1: the tests cannot be run"),
        ({"question": "f", "kind": "code", "tests": "{"}, "row rows/1: the tests cannot be run"),
        ([1, 2], "line 2: list is no row"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, told: str) -> None:
    assert told in refused(jsonl(tmp_path / "rows.jsonl", [ROWS[0], row]))


def test_a_program_needs_tests_and_no_gold(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"question": "add", "kind": "code", "asserts": ["assert add(1, 2) == 3"], "canonical_solution": "secret"},
        {"prompt": "def twice(x):\n", "kind": "code", "test": "def check(f):\n    assert f(2) == 4", "entry_point": "twice"},
    ]
    made = load_rows(str(jsonl(tmp_path / "rows.jsonl", rows)), "train")
    assert [(r["question"], r["gold"]) for r in made] == [("add", ""), ("def twice(x):\n", "")]
    assert "canonical_solution" not in made[0]
    assert made[1]["prompt"] == "def twice(x):\n"  # the head of the function under test


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n{'question': 1}\n")
    assert f"{path}, line 3: not JSON" in refused(path)  # empty lines count, but are no rows
    path.write_text("\n")
    assert "no rows" in refused(path)
    path.write_bytes(b'{"question": "\xff"}\n')
    assert f"{path}: cannot be read" in refused(path)
    torn = tmp_path / "rows.jsonl.gz"
    torn.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode())[:-12])
    assert f"{torn}: cannot be read" in refused(torn)
    torn.write_bytes(b"no archive")
    assert f"{torn}: cannot be read" in refused(torn)
    (tmp_path / "rows.parquet").write_bytes(b"no table")
    assert "rows.parquet: not a parquet file" in refused(tmp_path / "rows.parquet")
    assert "absent.jsonl: no such file" in refused(tmp_path / "absent.jsonl")
    assert "not a known set (gsm8k)" in refused("gsm9k")


def test_a_source_comes_before_a_name() -> None:
    rows = load_rows(
        "nano", "train", sources={"nano": lambda split: [{"id": split, "question": "q", "gold": "1", "kind": "math"}]}
    )
    assert rows[0]["id"] == "train"


def test_prompts_over_the_limit_are_counted_not_cut(tiny: str) -> None:
    from rl.policy import load_tokenizer

    rows = [{"id": str(i), "question": "why " * n, "gold": "1", "kind": "math"} for i, n in enumerate((1, 300, 500))]
    tokenizer = load_tokenizer(tiny)
    with pytest.raises(ValueError, match=r"2 of 3 prompts are longer than prompt.max_tokens = 200 \(the longest, 2, has"):
        prompts(rows, "r1_zero", tokenizer, 200)
    made = prompts(rows, "r1_zero", tokenizer, 5000)
    assert [p.id for p in made] == ["0", "1", "2"]
    assert [p.problem for p in made] == rows


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    order = Order(10, seed=3)
    epochs = [order.take(10 * e, 10) for e in range(4)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4


def test_no_remainder_is_dropped_where_a_step_crosses_epochs() -> None:
    order, size = Order(10, seed=3), 4  # 10 % 4 = 2: steps 3, 5, ... cross or end an epoch
    steps = [order.take(i * size, size) for i in range(15)]
    flat = [i for step in steps for i in step]
    assert flat == order.take(0, 60)
    assert all(flat.count(i) == 6 for i in range(10))


def test_the_order_is_a_function_of_seed_and_position_alone() -> None:
    walked = Order(100, seed=5)
    for i in range(20):
        walked.take(i * 7, 7)
    assert walked.take(140, 7) == Order(100, seed=5).take(140, 7)  # a resumed run sees what the uninterrupted one saw
    assert Order(100, seed=6).take(0, 100) != Order(100, seed=5).take(0, 100)


def test_the_order_never_changes() -> None:
    """Written down: another Python or another version of this file would break the resume of an old run silently."""
    assert Order(8, seed=0).take(0, 10) == [1, 3, 7, 4, 2, 0, 5, 6, 5, 2]
