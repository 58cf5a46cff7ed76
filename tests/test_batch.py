"""Packing: what stands where in a row, budgets, splits, counts and weights."""

import random

import pytest
import torch

from rl.batch import Counts, count, pack, with_logprobs
from rl.records import Batch, Completion, Group, Prompt, Span
from tests import tiny

SHAPES = [(5, [3, 7, 1]), (9, [4, 4]), (2, [11, 6, 2, 2])]


def packed(groups, advantages=None, *, row_tokens=4096, loss="dapo", overlong="keep", max_tokens=16) -> Batch:
    advantages = advantages or [[float(10 * p + g) for g in range(len(x.completions))] for p, x in enumerate(groups)]
    counts = count(groups, advantages, overlong)
    return pack(
        groups, advantages, loss=loss, counts=counts, max_tokens=max_tokens, row_tokens=row_tokens, overlong=overlong
    )  # fmt: skip


def samples_of(batch: Batch) -> list[tuple]:
    """Each sample read back out of the rows, through the indices alone: prompt, completion, advantage, log-probs, weight."""
    found = []
    for row in batch.rows:
        for s, span in enumerate(row.spans):
            mine = row.samples_T == s
            targets = row.targets_T[mine].tolist()
            assert targets == row.ids_L[span.start : span.stop].tolist()
            assert row.sources_T[mine].tolist() == [span.prompt_stop - 1, *range(span.start, span.stop - 1)]
            prompt = row.ids_L[span.prompt_start : span.prompt_stop]
            assert row.positions_L[span.prompt_start : span.prompt_stop].tolist() == list(range(len(prompt)))
            assert row.positions_L[span.start : span.stop].tolist() == list(range(len(prompt), len(prompt) + len(targets)))
            assert row.lengths_S[s] == len(targets)
            (advantage,), (weight,) = set(row.advantages_T[mine].tolist()), set(row.weights_T[mine].tolist())
            found.append((tuple(prompt.tolist()), tuple(targets), advantage, tuple(row.sampled_T[mine].tolist()), weight))
    return found


def test_the_worked_example_of_row():
    group = Group(
        Prompt("a", (7, 8), {"gold": ""}),
        (Completion((1, 2), (-0.5, -0.25), "stop", "", 0), Completion((3,), (-1.0,), "stop", "", 0)),
    )
    (row,) = packed([group], [[2.0, -2.0]]).rows
    assert row.ids_L.tolist() == [7, 8, 1, 2, 3]
    assert row.positions_L.tolist() == [0, 1, 2, 3, 2]
    assert row.targets_T.tolist() == [1, 2, 3]
    assert row.sources_T.tolist() == [1, 2, 1]
    assert row.samples_T.tolist() == [0, 0, 1]
    assert row.lengths_S.tolist() == [2, 1]
    assert row.spans == (Span(2, 4, 0, 2), Span(4, 5, 0, 2))
    assert row.advantages_T.tolist() == [2.0, 2.0, -2.0]
    assert row.sampled_T.tolist() == [-0.5, -0.25, -1.0]
    assert row.weights_T.tolist() == pytest.approx([1 / 3] * 3)
    assert row.old_T is None
    assert row.ref_T is None


@pytest.mark.parametrize("row_tokens", [1, 12, 17, 30, 60, 4096])
def test_every_sample_stands_in_exactly_one_row(row_tokens):
    groups = tiny.groups(SHAPES)
    batch = packed(groups, row_tokens=row_tokens)
    expected = [
        (g.prompt.ids, c.ids, float(10 * p + i), tuple(torch.tensor(c.logprobs).tolist()), pytest.approx(1 / 40))
        for p, g in enumerate(groups)
        for i, c in enumerate(g.completions)
    ]
    found = samples_of(batch)
    assert len(found) == len(expected)
    assert sorted(found, key=lambda s: s[2]) == expected
    for row in batch.rows:
        # Over budget only where a single completion with its prompt is.
        assert len(row.ids_L) <= row_tokens or len(row.spans) == 1
    assert (batch.samples, batch.tokens) == (9, 40)


def test_the_prompt_is_laid_down_once_a_group_and_repeated_only_where_a_group_is_split():
    groups = tiny.groups([(10, [5, 5, 5, 5])])
    (row,) = packed(groups, row_tokens=30).rows
    assert len(row.ids_L) == 10 + 20
    first, second = packed(groups, row_tokens=29).rows
    assert len(first.ids_L) + len(second.ids_L) == 2 * 10 + 20
    assert [len(r.spans) for r in (first, second)] == [3, 1]


def test_few_rows_and_the_same_for_any_order_of_groups():
    draw = random.Random(1)
    groups = tiny.groups([(draw.randint(1, 30), [draw.randint(1, 40) for _ in range(4)]) for _ in range(40)])
    total = sum(len(g.prompt.ids) + sum(c.tokens for c in g.completions) for g in groups)
    lengths = [len(r.ids_L) for r in packed(groups, row_tokens=512).rows]
    assert sum(lengths) == total  # no group is longer than a row, so no prompt stands twice
    assert len(lengths) <= -(-total // 512) + 1
    draw.shuffle(groups)
    assert [len(r.ids_L) for r in packed(groups, row_tokens=512).rows] == lengths


def finishes(g: int) -> str:
    return "length" if g == 1 else "stop"


def test_counts_leave_out_what_has_no_verdict_and_overlong_where_that_is_masked():
    groups = tiny.groups(SHAPES, finish=finishes)
    advantages = [[1.0, -1.0, None], [0.5, -0.5], [None, 0.0, 0.0, 0.0]]
    assert count(groups, advantages) == Counts(samples=7, tokens=3 + 7 + 4 + 4 + 6 + 2 + 2)
    assert count(groups, advantages, "mask") == Counts(samples=4, tokens=3 + 4 + 2 + 2)
    with pytest.raises(ValueError, match="zip"):
        count(groups, advantages[:2])


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        ("grpo", lambda n: 1 / (4 * n)),
        ("gspo", lambda n: 1 / (4 * n)),
        ("dapo", lambda n: 1 / 11),
        ("cispo", lambda n: 1 / 11),
        ("dr_grpo", lambda n: 1 / (4 * 16)),
    ],
)
def test_weights_hold_the_global_counts_and_are_zero_where_masked(loss, weight):
    groups = tiny.groups(SHAPES, finish=finishes)
    advantages = [[1.0, -1.0, None], [0.5, -0.5], [None, 0.0, 0.0, 0.0]]
    batch = packed(groups, advantages, loss=loss, overlong="mask", row_tokens=20)
    kept = {
        g.completions[i].ids: g.completions[i].tokens
        for g, i in [(groups[0], 0), (groups[1], 0), *((groups[2], i) for i in (2, 3))]
    }
    for _, ids, _, _, found in samples_of(batch):
        assert found == (pytest.approx(weight(kept[ids])) if ids in kept else 0.0)
    if loss != "dr_grpo":
        assert sum(float(r.weights_T.sum()) for r in batch.rows) == pytest.approx(1.0)


def test_an_empty_completion_is_refused():
    empty = Group(Prompt("a", (7,), {"gold": ""}), (Completion((), (), "stop", "", 0),) * 2)
    with pytest.raises(ValueError, match="empty completion"):
        pack([empty], [[1.0, -1.0]], loss="dapo", counts=Counts(2, 1), max_tokens=4, row_tokens=8)


def test_log_probs_are_added_without_losing_those_already_there():
    (row,) = packed(tiny.groups([(2, [3])])).rows
    old_T, ref_T = torch.full((3,), -1.0), torch.full((3,), -2.0)
    both = with_logprobs(with_logprobs(row, old_T=old_T), ref_T=ref_T)
    assert both.old_T is old_T
    assert both.ref_T is ref_T
    assert row.old_T is None
    moved = both.to("cpu")
    assert torch.equal(moved.old_T, old_T)
    assert moved.spans == row.spans


def test_rows_for_several_ranks_are_even_and_hold_the_same():
    groups = tiny.groups([(8, [5 + (p * g) % 17 for g in range(1, 5)]) for p in range(11)])
    flat = [[1.0, 2.0, 3.0, 4.0]] * len(groups)
    options = {"loss": "dapo", "counts": Counts(44, 500), "max_tokens": 32, "row_tokens": 200}
    alone = pack(groups, flat, **options)
    for ranks in (2, 3, 4, 8):
        batch = pack(groups, flat, **options, ranks=ranks)
        sizes = [len(r.ids_L) for r in batch.rows]
        assert sorted(samples_of(batch)) == sorted(samples_of(alone))
        assert len(sizes) == -(-len(alone.rows) // ranks) * ranks
        assert max(sizes) <= 200
        assert max(sizes) <= 1.35 * sum(sizes) / len(sizes), sizes
    whole, halves = (pack(groups[:1], flat[:1], **options, ranks=ranks) for ranks in (1, 2))
    assert [len(r.spans) for r in halves.rows] == [2, 2]  # one group for two ranks: its prompt stands twice
    assert sum(len(r.ids_L) for r in halves.rows) == len(whole.rows[0].ids_L) + 8
    assert len(pack(groups[:1], flat[:1], **options, ranks=8).rows) == 4  # no more rows than samples
