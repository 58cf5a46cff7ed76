"""No trace of a test question is left, in whatever trace it stands; the rest stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.decontaminate import decontaminate
from distill.traces import Trace
from eval.contamination import MOST

TEST = "A farmer has three fields with forty two cows in each and sells nineteen of them at the market on Monday. How many cows are left?"
OTHER = "Nine trains leave the station every hour and each of them has twelve waggons with eighty seats. How many seats leave in a day?"
CLEAN = "Ben buys seven pens."


def trace(problem: str, question: str, text: str = "<think> easy </think> 4", n: int = 0) -> Trace:
    return Trace(f"{problem}#{n}", problem, question, text)


def cleaned(traces: list[Trace]) -> tuple[list[str], dict[str, str]]:
    found = decontaminate(traces, {"cows": [("cows/0", TEST)], "trains": [("trains/0", OTHER)]})
    assert all(c.exact == c.whole == c.most == 0 for c in found.after)
    assert len(found.kept) + len(found.dropped.traces) == len(traces)
    return [t.id for t in found.kept], {t.id: why for t, _, why in found.dropped.traces}


def test_test_questions_go_with_all_their_traces() -> None:
    words = TEST.split()
    part = " ".join(words[: int(len(words) * 0.9)])
    traces = [
        trace("exact", TEST), trace("exact", TEST, "<think> other </think> 5", 1),
        trace("again", f"Solve this. {TEST} Think first."),  # a second row with the same: another pass finds it
        trace("words", TEST.replace("forty two", "forty-two").upper()),
        trace("most", part),
        trace("recited", CLEAN, f"<think> As in: {OTHER} </think> 4"), trace("recited", CLEAN, n=1),
        trace("clean", CLEAN),
    ]  # fmt: skip
    kept, gone = cleaned(traces)
    assert kept == ["clean#0"]
    assert gone["exact#0"] == gone["exact#1"] == "cows cows/0: exact"
    assert gone["words#0"] == "cows cows/0: words"
    assert "8-grams" in gone["most#0"]
    assert gone["recited#1"].startswith("trains")


@pytest.mark.parametrize("order", [1, -1])
def test_every_question_of_an_id_is_looked_at_and_judged_alone(order: int) -> None:
    """Two files may number their rows from 0 on: a test question hides behind none, and takes none with it."""
    two = [trace("0", CLEAN), trace("0", TEST, n=1)][::order]
    assert cleaned(two) == (["0#0"], {"0#1": "cows cows/0: exact"})


def test_a_system_message_is_looked_at() -> None:
    traces = [replace(trace("a", CLEAN), system=f"Answer this: {TEST}"), replace(trace("b", CLEAN), system="Be brief.")]
    assert cleaned(traces) == (["b#0"], {"a#0": "cows cows/0: exact"})


def test_ngrams_spread_over_rows_are_found_together() -> None:
    words = TEST.split()
    half = len(words) // 2 + 4
    kept, gone = cleaned(
        [trace("left", " ".join(words[:half])), trace("right", " ".join(words[half - 7 :])), trace("c", CLEAN)]
    )
    assert "c#0" in kept
    assert gone  # neither half alone has 70 %, both together have


def test_what_many_rows_share_is_left_to_them() -> None:
    """The opening alone, in many rows, and the rest in one: that one goes, and one is enough."""
    words = TEST.split()
    opening = [trace(f"common/{i}", " ".join(words[:12]) + f" and waits {n}.") for i, n in enumerate(("one", "two", "six"))]
    kept, gone = cleaned([trace("rest", " ".join(words[4:])), *opening])
    assert set(gone) == {"rest#0"}
    assert kept == [t.id for t in opening]


def test_a_short_question_is_found_whole() -> None:
    found = decontaminate(
        [trace("a", "So: what is 2 + 2? Say."), trace("b", "What is 2 to me?")], {"sums": [("s/0", "What is 2+2?")]}
    )
    assert [t.id for t in found.kept] == ["b#0"]
    assert found.dropped.traces[0][2] == "sums s/0: exact"


def test_a_common_phrase_is_no_contamination() -> None:
    phrase = " ".join(TEST.split()[:10])
    assert cleaned([trace("a", phrase + " and goes home."), trace("b", CLEAN)])[1] == {}
    assert MOST == 0.7


def test_everything_may_go_and_nothing_to_look_for_is_an_error() -> None:
    assert cleaned([trace("a", TEST)])[0] == []
    with pytest.raises(ValueError, match="no test set"):
        decontaminate([trace("a", TEST)], {})


def test_gsm8k_test_questions_planted_among_training_questions(data_root: Path) -> None:
    from eval.tasks import load
    from rl.data import load_rows

    tests = [(r["id"], r["question"]) for r in load("gsm8k", str(data_root))]
    train = load_rows("gsm8k", "train", str(data_root))[:300]
    traces = [trace(r["id"], r["question"]) for r in train]
    planted = [replace(trace(f"planted/{i}", q), gold="1") for i, (_, q) in enumerate(tests[:20])]
    found = decontaminate([*traces, *planted], {"gsm8k": tests})
    gone = {t.problem for t, _, _ in found.dropped.traces}
    assert {t.problem for t in planted} <= gone
    assert len(gone) <= 22  # GSM8K's own train and test have next to nothing in common
