"""Foreign trace files are read into one record; what cannot be read is refused with its row."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from distill import formats
from distill.filter import Filters, sieve
from distill.traces import Trace, from_json, read, to_json, write

WANTED = "<think>\n2 and 2\n</think>\n\nIt is 4."
ASKED = {"question": "2+2?"}
OURS = {"id": "a#0", "problem": "a", "question": "2+2?", "text": WANTED}
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
    "TRL's turns": {"prompt": TURNS, "completion": [{"role": "assistant", "content": WANTED}], "gold": "4"},
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
    row = {"conversations": turns, "language": "en", "id": "x", "day": datetime.date(2025, 1, 2)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (trace,) = formats.read(tmp_path / "a.parquet")
    assert (trace.system, trace.question, trace.text, trace.id) == ("Be brief.", "2+2?", "4.", "x")
    assert trace.kind == "general"  # neither a gold nor tags
    assert trace.columns == {"language": "en", "day": datetime.date(2025, 1, 2)}
    assert json.loads(to_json(trace))["columns"]["day"] == "2025-01-02"


@pytest.mark.parametrize(
    ("reason", "whole"),
    [
        (None, True), ("", True), ("stop", True), ("eos", True), ("eos_token", True),
        ("length", False), ("content_filter", False), ("insufficient_system_resource", False), ("tool_calls", False),
    ],
)  # fmt: skip
def test_cut_off_rows_say_so(reason: str | None, whole: bool) -> None:
    trace = formats.trace_of({**ASKED, "generation": WANTED, "finish_reason": reason}, "f", 0)
    assert trace.truncated != whole
    assert whole or trace.finish == reason


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"generation": "It is 4."}, "general"),
        ({"generation": "It is 4.", "kind": "math"}, "math"),
        ({"generation": WANTED, "kind": "general"}, "general"),
        ({"generation": "It is 4.", "gold": "4"}, "math"),
        ({"generation": WANTED}, "math"),
        ({"generation": "<think>\n2 and 2"}, "math"),
        ({"generation": "<|begin_of_thought|>2 and 2"}, "math"),
        ({"generation": "2 and 2 </think> 4"}, "math"),
        ({"reasoning": "2 and 2", "content": "4"}, "math"),
        ({"reasoning": "", "content": "4"}, "math"),  # reasoning was asked for
        ({"reasoning": None, "content": "4"}, "general"),
    ],
)
def test_general_is_said_or_has_neither_gold_nor_reasoning(row: dict[str, Any], kind: str) -> None:
    assert formats.trace_of({**ASKED, **row}, "f", 0).kind == kind


OF_CONTENT_NULL = {"messages": [*TURNS, {"role": "assistant", "content": None, "reasoning_content": "two and two is"}]}


@pytest.mark.parametrize(
    ("row", "gold", "by"),
    [
        ({**ASKED, "reasoning_content": "two and two is", "content": "", "answer": "4"}, "4", "format"),
        (
            {**ASKED, "reasoning_content": "two and two is", "content": None, "solution": "By Peano.", "answer": "4"},
            "4",
            "format",
        ),
        ({**ASKED, "reasoning_content": "two and two is", "content": "", "finish_reason": "length"}, "", "cut off"),
        ({**ASKED, "reasoning": "two and two is", "solution": "", "answer": "4"}, "4", "format"),
        ({**ASKED, "generation": None, "answer": "4"}, "4", "format"),
        ({**ASKED, "generation": ""}, "", "format"),
        (OF_CONTENT_NULL, "", "format"),
        ({**OF_CONTENT_NULL, "finish_reason": "length"}, "", "cut off"),
        ({"messages": [*TURNS, {"role": "assistant", "content": None}]}, "", "format"),
        ({**ASKED, "generation": "<think> a b c"}, "", "format"),
        ({**ASKED, "generation": "<think> a b c </think> </think> 4"}, "", "format"),
    ],
)
def test_a_reply_that_is_empty_or_broken_is_dropped_and_the_gold_stays_the_gold(
    row: dict[str, Any], gold: str, by: str
) -> None:
    trace = formats.trace_of(row, "f", 0)
    assert (trace.answer if gold else "", trace.gold) == ("", gold)
    assert sieve([trace], Filters())[1].counts == {by: 1}


def test_of_several_replies_one_that_is_there_is_taken() -> None:
    assert formats.trace_of({**ASKED, "generation": None, "response": WANTED, "answer": "4"}, "f", 0).text == WANTED


def test_alpacas_input_follows_its_instruction() -> None:
    row = {"instruction": "Into French.", "input": "Good morning", "output": "Bonjour", "id": None}
    trace = formats.trace_of(row, "f", 7)
    assert (trace.question, trace.columns, trace.id) == ("Into French.\n\nGood morning", {}, "f/7")
    assert formats.trace_of({**row, "input": ""}, "f", 0).question == "Into French."


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"generation": WANTED}, "no question"),
        (ASKED, "no answer"),
        ({**ASKED, "reasoning_content": "2"}, "without the answer"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "4"}, *TURNS]}, "one question and one answer"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "4"}]}, "user's turn is empty"),
        ({"messages": [*TURNS, {"role": "assistant", "content": ["4"]}]}, "content is of type list, no text"),
        ({"messages": "[]"}, "a turn is of type str"),
        ({"prompt": TURNS, "completion": "4"}, "prompt is of type list"),
        ({**ASKED, "response": ["4"]}, "response is of type list"),
        ({**ASKED, "reasoning": ["2"], "content": "4"}, "reasoning is of type list"),
        ({"instruction": "Add.", "input": [2, 2], "output": "4"}, "input is of type list"),
        ({"question": "2+2? \ud83d", "generation": WANTED}, "question holds half of a character"),
        ({**ASKED, "generation": WANTED, "note": ["\udc00"]}, "columns holds half of a character"),
        ({**OURS, "text": None}, "text is null"),
        ({**OURS, "question": 7}, "question is of type int, not str"),
        ({**OURS, "gold": ["4"]}, "gold is of type list, not str"),
        ({**OURS, "tokens": "many"}, "tokens is of type str, not int"),
        ({**OURS, "columns": "x"}, "columns is of type str, not dict"),
        ({**OURS, "text": "4 \ud83d"}, "text holds half of a character"),
    ],
)
def test_what_has_no_form_is_refused_with_its_row(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS["think text"]) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"row 2: .*{why}") as refused:
        list(formats.read(path))
    assert "\n" not in str(refused.value)


def test_our_own_rows_may_have_nulls_and_numbers() -> None:
    row = OURS | {"id": 1, "problem": 2, "gold": 4, "columns": None, "kind": None, "tokens": None}
    assert formats.trace_of(row, "f", 0) == Trace("1", "2", "2+2?", WANTED, "4")


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
