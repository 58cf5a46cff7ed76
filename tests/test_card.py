"""The data card: its counts add up, what a model wrote is shown as text and never runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from distill import card
from distill.decontaminate import decontaminate
from distill.filter import Filters, sieve
from distill.traces import Trace

HOSTILE = "</div><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp; \u202e"
TESTS = {"t": [("t/0", "How many sheep does the shepherd count when nine of the twelve have left?")]}


def traces() -> list[Trace]:
    good = [
        Trace(f"q{i}#0", f"q{i}", f"{i}+1? {HOSTILE}", f"<think>{i} and one: {i + 1} {HOSTILE}</think> The answer is {i + 1}", f"{i + 1}")
        for i in range(5)
    ]  # fmt: skip
    recited = replace(good[0], id="r", problem="r", question=TESTS["t"][0][1])
    return [*good, replace(good[1], id="cut", finish="length"), replace(good[2], id="wrong", problem="w", gold="9"), recited]


def page(tmp_path: Path) -> tuple[dict, str]:
    every = traces()
    kept, dropped = sieve(every, Filters(language_share=0.0))
    clean = decontaminate(kept, TESTS)
    told = card.statistics("x<y", every, clean, dropped)
    gone = [*dropped.traces, *clean.dropped.traces]
    return told, card.write_card(tmp_path / "card.html", told, clean.kept, gone).read_text(encoding="utf-8")


def test_counts_add_up(tmp_path: Path) -> None:
    told, html = page(tmp_path)
    assert told["dropped"] == {"cut off": 1, "wrong": 1, "test question": 1}
    assert told["kept"] + sum(told["dropped"].values()) == told["traces"] == 8
    assert told["traces_a_question"] == {"1": 5}
    assert told["tests_before"][0]["exact"] == 1
    assert told["tests_after"][0]["exact"] == 0
    assert sum(n for _, n in told["words_of_reasoning"]["histogram"]) == 5
    assert html.count('class="trace"') == 5 + 3  # the kept ones and one of each dropped kind
    assert "test question: t t/0: exact" in html


def test_nothing_a_model_wrote_is_markup(tmp_path: Path) -> None:
    _, html = page(tmp_path)
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert "x&lt;y" in html
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)", html)


def test_nothing_kept_still_has_a_page(tmp_path: Path) -> None:
    bad = [replace(t, finish="length") for t in traces()]
    kept, dropped = sieve(bad, Filters())
    clean = decontaminate(bad[:1], TESTS)
    told = card.statistics("none", bad, replace(clean, kept=kept), dropped)
    assert "Nothing was kept" in card.write_card(tmp_path / "c.html", told, [], dropped.traces).read_text()
