"""Foreign trace files are read into one record; what cannot be read is refused with its row."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from distill import formats
from distill.traces import Trace, from_json, read, to_json, write

WANTED = "<think>\n2 and 2\n</think>\n\nIt is 4."
ASKED = {"question": "2+2?"}
TURNS = [{"role": "user", "content": "2+2?"}]

ROWS: dict[str, dict[str, Any]] = {
    "DeepSeek's fields": {**ASKED, "reasoning_content": "2 and 2", "content": "It is 4.", "answer": "4"},
    "reasoning": {"problem": "2+2?", "reasoning": "2 and 2", "response": "It is 4.", "final_answer": "4"},
    "think text": {**ASKED, "generation": WANTED, "gold": 4},
    "opened by the prompt": {**ASKED, "completion": "2 and 2\n</think>\n\nIt is 4.", "gold": "4"},
    "OpenThoughts' tags": {
        **ASKED, "gold": "4",
        "output": "<|begin_of_thought|>\n2 and 2\n<|end_of_thought|>\n\n<|begin_of_solution|>It is 4.<|end_of_solution|>",
    },
    "messages": {"messages": [*TURNS, {"role": "assistant", "content": WANTED}], "gold": "4"},
    "messages with reasoning": {
        "messages": [*TURNS, {"role": "assistant", "reasoning_content": "2 and 2", "content": "It is 4."}], "gold": "4",
    },
    "ShareGPT": {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": WANTED}], "answer": "4"},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_form_gives_the_same_trace(name: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_text(json.dumps(ROWS[name]) + "\n", encoding="utf-8")
    (trace,) = formats.read(path)
    assert (trace.question, trace.text, trace.gold, trace.kind) == ("2+2?", WANTED, "4", "math")
    assert (trace.think, trace.answer) == ("2 and 2", "It is 4.")
    assert (trace.id, trace.source) == ("foreign/0", "foreign")


def test_parquet_with_a_system_message_and_free_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4."}]
    pq.write_table(pa.Table.from_pylist([{"conversations": turns, "language": "en", "id": "x"}]), tmp_path / "a.parquet")
    (trace,) = formats.read(tmp_path / "a.parquet")
    assert (trace.system, trace.question, trace.text, trace.id) == ("Be brief.", "2+2?", "4.", "x")
    assert trace.kind == "general"  # no gold: nothing to verify
    assert trace.columns == {"language": "en"}


def test_cut_off_rows_say_so() -> None:
    row = {**ASKED, "generation": WANTED, "finish_reason": "length"}
    assert formats.trace_of(row, "f", 0).truncated


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"generation": WANTED}, "no question"),
        (ASKED, "no answer"),
        ({**ASKED, "reasoning_content": "2"}, "without the answer"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "4"}, *TURNS]}, "one question and one answer"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "role 'tool'"),
        ({"messages": [*TURNS, {"role": "assistant", "content": None}]}, "no text"),
    ],
)
def test_what_has_no_form_is_refused_with_its_row(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS["think text"]) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"row 2: .*{why}"):
        list(formats.read(path))


def test_our_own_files_are_read_and_written_unchanged(tmp_path: Path) -> None:
    trace = Trace("a#0", "a", "Q\u2028?", " <think> t </think> 4", "4", finish="length", tokens=7, columns={"steps": 2})
    assert from_json(to_json(trace)) == trace
    write(tmp_path / "t.jsonl", [to_json(trace), to_json(dataclasses.replace(trace, id="b"))])
    assert [t.id for t in read(tmp_path / "t.jsonl")] == ["a#0", "b"] == [t.id for t in formats.read(tmp_path / "t.jsonl")]
    (tmp_path / "t.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="line 1: no trace"):
        list(read(tmp_path / "t.jsonl"))


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, ["old"])

    def lines() -> Any:
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, lines())
    assert path.read_text() == "old\n"
