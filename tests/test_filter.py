"""Each filter drops what the others let pass, says why, and is missed where it is taken away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill import filter
from distill.filter import FILTERS, Filters, sieve
from distill.traces import Trace
from rewards.score import Score

GOOD = Trace("q#0", "q", "2+2?", "<think>\nTwo and two make four, I think.\n</think>\n\nThe answer is 4.", gold="4")
CIRCLE = "so we add two and then we look at what we have and say it once more before we go on with it, "
SETTINGS = Filters(max_tokens=200, repetition=0.2)

# What one filter alone wants gone, and the reason that it gives.
BAD: dict[str, tuple[Trace, str]] = {
    "cut off": (replace(GOOD, finish="length"), "'length'"),
    "format": (replace(GOOD, text="<think> Two and two </think> make four. </think> The answer is 4."), "2 x </think>"),
    "length": (replace(GOOD, tokens=201), "201 tokens, more than 200"),
    "language": (replace(GOOD, text=GOOD.text.replace("I think", "\u6240\u4ee5\u662f\u56db")), "of the words are en"),
    "repetition": (replace(GOOD, text=f"<think>{CIRCLE * 5}</think> The answer is 4."), "20-grams repeated"),
    "wrong": (replace(GOOD, gold="5"), "wrong: 4, gold 5"),
}  # fmt: skip


def test_a_good_trace_is_kept() -> None:
    kept, dropped = sieve([GOOD], SETTINGS)
    assert kept == [GOOD]
    assert not dropped.traces


def test_there_is_a_case_for_every_filter() -> None:
    assert list(BAD) == list(FILTERS)


@pytest.mark.parametrize("name", BAD)
def test_it_drops_what_no_other_would(name: str) -> None:
    bad, reason = BAD[name]
    kept, dropped = sieve([bad], SETTINGS)
    assert not kept
    assert dropped.counts == {name: 1}
    assert reason in dropped.traces[0][2]
    without = {n: f for n, f in FILTERS.items() if n != name}
    assert sieve([bad], SETTINGS, filters=without)[0] == [bad], f"another filter drops it too: {name} could be removed unseen"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("The answer is 4.", "0 x <think>"),
        ("<think>Two and two make four. The answer is 4.", "0 x </think>"),
        ("Well. <think>Two and two make four.</think> 4", "text before <think>"),
        ("<think> </think> The answer is 4.", "no reasoning"),
        ("<think>Two and two make four: the answer is 4.</think>", "no answer behind the reasoning"),
        ("</think> two and two make <think> The answer is 4.", "text before <think>"),
    ],
)
def test_format(text: str, fault: str) -> None:
    _, dropped = sieve([replace(GOOD, text=text)], SETTINGS)
    assert [(by, why) for _, by, why in dropped.traces] == [("format", fault)]


def test_form_tags_wants_the_answer_in_its_tags_and_nothing_else() -> None:
    tags = replace(SETTINGS, form="tags")
    whole = replace(GOOD, text=" <think> Two and two make four. </think> <answer>4</answer>")
    assert sieve([whole], tags)[0] == [whole]
    assert sieve([GOOD], tags)[1].counts == {"format": 1}


def test_diversity_of_a_question() -> None:
    say = "<think>\n{}\n</think>\n\nThe answer is 4.".format
    texts = [
        say("Two and two make four, I think."),
        say("Two  and two make four, I THINK."),  # spaces and capitals
        say("Two and two make four, I think. Yes."),  # nearly
        say("Count up from two: three, then four."),
        say("Double the two and you have it at once."),
    ]
    traces = [replace(GOOD, id=f"q#{i}", text=t) for i, t in enumerate(texts)]
    kept, dropped = sieve(traces, replace(SETTINGS, similar=0.6, per_question=2))
    assert [t.id for t in kept] == ["q#0", "q#3"]
    assert [by for _, by, _ in dropped.traces] == ["duplicate", "similar", "per question"]
    # Another question may have the same reasoning, and a bad trace takes nobody's place.
    other = [replace(t, problem="p", finish="length" if i == 0 else "stop") for i, t in enumerate(traces[:2])]
    assert [t.problem for t in sieve([*traces, *other], SETTINGS)[0]].count("p") == 1


@pytest.mark.parametrize("name", ["duplicate", "similar", "per question"])
def test_each_part_of_diversity_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that switch one of them off let through what it drops."""
    twin = replace(GOOD, id="q#1", text=GOOD.text.replace("I think", "I think so, yes" if name == "similar" else "I THINK"))
    other = replace(GOOD, id="q#1", text="<think> Count up from two: three, four. </think> The answer is 4.")
    second = other if name == "per question" else twin
    on = {"duplicate": {"similar": 1.0}, "similar": {"similar": 0.5}, "per question": {"per_question": 1}}[name]
    assert sieve([GOOD, second], replace(SETTINGS, **on))[1].counts == {name: 1}
    if name == "duplicate":
        monkeypatch.setattr(filter, "_words", lambda text: text)  # no longer one spelling for both
    assert len(sieve([GOOD, second], replace(SETTINGS, similar=1.0))[0]) == 2


def test_general_data_needs_neither_reasoning_nor_gold() -> None:
    general = Trace("g#0", "g", "Write a line about the sea.", "The sea is wide and it is blue.", kind="general")
    assert sieve([general], SETTINGS)[0] == [general]
    assert sieve([replace(general, finish="loop")], SETTINGS)[1].counts == {"cut off": 1}
    assert sieve([replace(general, text="\u6d77" * 9)], SETTINGS)[1].counts == {"language": 1}
    assert sieve([replace(general, text="<think> </think> The sea.")], SETTINGS)[1].counts == {}


@pytest.mark.parametrize("form", ["think", "tags"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (" ", "nothing is written"),
        ("<think> Blue is the sea.", "0 x </think>"),
        ("<think> a </think> <think> b </think> Blue.", "2 x <think>"),
        ("<think> </think> ", "no answer behind the reasoning"),
    ],
)
def test_general_data_has_whole_tags_or_none(text: str, fault: str, form: str) -> None:
    general = Trace("g#0", "g", "Write a line about the sea.", text, kind="general")
    _, dropped = sieve([general], replace(SETTINGS, form=form))
    assert [(by, why) for _, by, why in dropped.traces] == [("format", fault)]


@pytest.mark.parametrize("reply", ["I could not find it.", "It is \\boxed{5}."])
def test_the_answer_is_what_stands_behind_the_reasoning(reply: str) -> None:
    text = "<think> So the answer is \\boxed{4}. Or is it not? </think> "
    assert sieve([replace(GOOD, text=text + reply)], SETTINGS)[1].counts == {"wrong": 1}
    assert sieve([replace(GOOD, text=text + "It is \\boxed{4}.")], SETTINGS)[1].counts == {}


@pytest.mark.parametrize("gold", ["{1, 2", "['4']", " "])
def test_a_gold_that_cannot_be_graded_is_counted(gold: str) -> None:
    kept, dropped = sieve([replace(GOOD, gold=gold), GOOD], SETTINGS)
    assert kept == [GOOD]
    assert dropped.counts == {"wrong": 1}
    assert "the gold cannot be graded" in dropped.traces[0][2]


def test_no_verdict_is_no_right_answer_and_programs_are_not_passed_unseen() -> None:
    assert (
        sieve([GOOD], SETTINGS, lambda t: Score(None, reason="the sandbox died"))[1].traces[0][2]
        == "no verdict: the sandbox died"
    )
    with pytest.raises(ValueError, match="running it"):
        sieve([replace(GOOD, kind="code")], SETTINGS)


def test_a_rows_language_goes_before_the_settings() -> None:
    chinese = replace(
        GOOD, text="<think>\u4e8c \u52a0 \u4e8c \u662f \u56db</think> \u7b54\u6848 \\boxed{4}", columns={"language": "zh"}
    )
    assert sieve([chinese], SETTINGS)[0] == [chinese]
    for other in ("python", "English", ["en"], None):  # no code of a language: the settings'
        assert sieve([replace(GOOD, columns={"language": other})], SETTINGS)[1].counts == {}
        assert sieve([replace(chinese, columns={"language": other})], SETTINGS)[1].counts == {"language": 1}
    with pytest.raises(ValueError, match=r"filter\.language"):
        sieve([GOOD], replace(SETTINGS, language="tlh"))
