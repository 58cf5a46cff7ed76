"""Traces -> samples -> rows: nothing cut, nothing lost, as many samples an update as asked for."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from distill import rows
from distill.rows import Samples
from distill.traces import Trace
from rl.data import Order
from rl.prompts import CHAT_SYSTEM, render
from tests.tiny_run import tiny_tokenizer

TRACE = Trace("q#0", "q", "2+2?", "<think> 2 and 2 </think> <answer>4</answer>", gold="4")


def samples(lengths: list[int], shared: int = 0) -> Samples:
    return Samples(
        np.zeros(sum(lengths), np.int32), np.cumsum([0, *lengths]), np.full(len(lengths), shared + 1, np.int32), shared
    )


def test_a_sample_is_the_prompt_as_sampled_the_whole_trace_and_its_end() -> None:
    tokenizer = tiny_tokenizer()
    made, dropped = rows.encode([TRACE], tokenizer, "r1_zero", 400, 300)
    ids, prompt = made.sample(0)
    assert tuple(ids[:prompt]) == render("2+2?", "r1_zero", tokenizer)
    assert tokenizer.decode(ids[prompt:]) == " " + TRACE.text + tokenizer.eos_token
    assert ids[-1] == tokenizer.eos_token_id
    assert made.targets == len(ids) - prompt
    assert not dropped.traces


def test_chat_traces_begin_where_the_template_ends() -> None:
    tokenizer = tiny_tokenizer()
    said = replace(TRACE, id="s", system="Be brief.")
    plain = replace(TRACE, id="g", kind="general", text="The sea.")
    made, _ = rows.encode([TRACE, said, plain], tokenizer, "chat", 600, 400)
    texts = [tokenizer.decode(made.sample(i)[0]) for i in range(3)]
    assert CHAT_SYSTEM in texts[0]
    assert "Be brief." in texts[1]
    assert CHAT_SYSTEM not in texts[1] + texts[2]
    assert all(t.count("assistant\n" + x) == 1 for t, x in zip(texts, ["<think>", "<think>", "The sea."], strict=True))
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    made, _ = rows.encode([TRACE, plain], tokenizer, "chat", 600, 400)
    assert tokenizer.decode(made.sample(0)[0]).count("<think>") == 1 + CHAT_SYSTEM.count("<think>")
    # An answer without reasoning stands behind the reasoning that the prompt has opened, not in it.
    ids, prompt = made.sample(1)
    assert tokenizer.decode(ids[:prompt]).endswith("assistant\n<think>\n")
    assert tokenizer.decode(ids[prompt:]) == "\n</think>\n\nThe sea." + tokenizer.eos_token


@pytest.mark.parametrize("name", ["system", "question", "text"])
def test_half_a_character_is_refused_with_its_trace(name: str) -> None:
    bad = replace(TRACE, id="q#7", **{name: "so \ud83d it is"})
    with pytest.raises(ValueError, match=rf"'q#7': its {name} has half of a character \(\\ud83d alone, at 3\)"):
        rows.encode([TRACE, bad], tiny_tokenizer(), "chat", 600, 400)


def test_what_does_not_fit_is_dropped_and_counted_never_cut() -> None:
    tokenizer = tiny_tokenizer()
    length = len(rows.encode([TRACE], tokenizer, "r1_zero", 400, 300)[0].ids)
    long = replace(TRACE, id="long", text=TRACE.text + "!")
    system = replace(TRACE, id="system", system="Be brief.")
    made, dropped = rows.encode([TRACE, long, system], tokenizer, "r1_zero", length, 300)
    assert len(made) == 1
    assert len(made.ids) == length
    assert [(t.id, by) for t, by, _ in dropped.traces] == [("long", "over-long"), ("system", "system message")]
    with pytest.raises(ValueError, match="1 over-long"):
        rows.encode([TRACE], tokenizer, "r1_zero", 400, 5)


def test_common_beginning_leaves_each_prompt_its_last_token() -> None:
    tokenizer = tiny_tokenizer()
    one, _ = rows.encode([TRACE, TRACE], tokenizer, "r1_zero", 400, 300)
    assert one.shared == one.prompts[0] - 1
    two, _ = rows.encode([TRACE, replace(TRACE, question="9 apples?")], tokenizer, "r1_zero", 400, 300)
    a, b = (two.sample(i)[0] for i in range(2))
    assert a[: two.shared] == b[: two.shared]
    assert a[two.shared] != b[two.shared]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 7])
def test_rows_of_a_plan(ranks: int, shared: int) -> None:
    draw = random.Random(5)
    lengths = [draw.randrange(shared + 2, 60) for _ in range(50)]
    made, batch = samples(lengths, shared), 12
    count = rows.updates(50, batch, 2.0)
    assert count == 9  # 100 samples, the last update filled from the third epoch
    packed, each = rows.plan(made, count, batch, 90, ranks, seed=1)
    assert each % ranks == 0
    assert len(packed) == count * each
    taken = []
    for at in range(0, len(packed), each):
        update = packed[at : at + each]
        assert sum(map(len, update)) == batch
        taken += sorted(i for row in update for i in row)
        assert all(row for row in update)
    assert all(shared + sum(lengths[i] - shared for i in row) <= 90 for row in packed)
    # The order is that of the data, whatever the ranks, and each epoch has each sample once.
    order = Order(50, 1).take(0, count * batch)
    assert taken == [i for u in range(count) for i in sorted(order[u * batch : (u + 1) * batch])]
    assert set(Counter(order[:100]).values()) == {2}


def test_a_plan_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"learn\.row_tokens = 20"):
        rows.plan(samples([30]), 1, 1, 20, 1, 0)
    with pytest.raises(ValueError, match=r"learn\.batch = 2 .* 4 ranks"):
        rows.plan(samples([10, 10, 10]), 1, 2, 20, 4, 0)
    with pytest.raises(ValueError, match=r"10 traces are fewer than learn\.batch = 64"):
        rows.updates(10, 64, 2.0)
