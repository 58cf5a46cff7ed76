"""The page of an evaluation: by its source, and opened, searched and clicked in headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval import report_browser
from eval.compare import main as compare
from eval.contamination import Contamination, Shared, enter
from eval.report import write
from eval.report_plots import bins, kind, lengths, reach, thresholds, whiskers
from tests.browser import Tab, browser
from tests.stored_eval import HOSTILE, MMLU, SETTINGS, generated, letters, sampled, stored

OTHER = {"model": "runs/base", "model_hash": "ba" * 32}


class Source(HTMLParser):
    """Tags and attributes, and whether every tag is closed."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model: 120 questions x 4, 90 with letters."""
    return write(stored(tmp_path_factory.mktemp("one"), (generated(), letters()), SETTINGS, MMLU))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a better model on the same questions."""
    root = tmp_path_factory.mktemp("pair")
    rows = (generated(chance=0.3, seed=1), letters(seed=1)), (generated(chance=0.6, seed=2), letters(seed=2))
    stored(root / "base", rows[0], replace(SETTINGS, **OTHER), replace(MMLU, **OTHER))
    stored(root / "zero", rows[1], SETTINGS, MMLU)
    assert compare([str(root / "base"), str(root / "zero"), "--out", str(root / "both")]) == 0
    return root / "both" / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.size(1200, 900)
        yield opened


def count(tab: Tab) -> int:
    """Questions that are found, as the page says; the list never shows more than 50 of them."""
    found = int(tab.text("#count").split()[0].replace(",", ""))
    shown = tab.js("document.querySelectorAll('#list .entry').length")
    assert shown <= 50
    return found


# ---- by its source ----


@pytest.mark.parametrize("name", ["one", "pair"])
def test_the_page_stands_alone(name: str, request: pytest.FixtureRequest) -> None:
    page = Source(request.getfixturevalue(name))
    assert page.open == []
    assert not set(page.tags) & {"link", "img", "iframe", "object", "embed", "form"}
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "action") or a[1].startswith("on")]
    assert all(value.startswith("#questions?") for tag, key, value in page.attributes if key == "href")
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert page.tags.count("script") == 2  # the data and the browser
    script = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = next(v for t, k, v in page.attributes if t == "meta" and k == "content" and "default-src" in v)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r'(points|d|[xy][12]?|c[xy])="[^"]*(nan|inf|None)', page.source)


def test_the_page_says_the_figures(one: Path) -> None:
    text = one.read_text()
    right = [s.lenient for a in generated() for s in a.samples]
    assert f"{100 * sum(right) / len(right):.1f} % <small>[" in text
    for part in ("zero/final: evaluation", "120 questions × 4", "pass@k", "Largest gap by subject", "Largest gap by steps"):
        assert part in text, part
    for section in (
        "Training questions in the test sets",
        "Accuracy",
        "By group",
        "Length of answers",
        "Rules first, then a vote",
        "How it",
    ):
        assert f"<h2>{section}" in text


def test_the_comparison_says_the_differences(pair: Path) -> None:
    found = json.loads((pair.parent / "results.json").read_text())
    c = found["tasks"]["gsm8k"]["comparisons"][0]
    text = pair.read_text()
    assert text.count("<h2>Side by side</h2>") == 1
    assert f">{100 * c['lenient']['difference']:+.1f}</span>" in text
    for part in (
        f'task=0&amp;model=1&amp;show=won">{c["lenient"]["won"]}</a>',
        f'task=0&amp;model=1&amp;show=lost">{c["lenient"]["lost"]}</a>',
        f"{c['retention']['value']:.0%} <small>[",
        "gsm8k by steps: zero against base",
        "mmlu by subject: zero against base",
        "<h2>Accuracy",
    )[:-1]:
        assert part in text, part
    assert "ba" * 6 in text
    assert "3d" * 6 in text


def test_one_model_has_nothing_to_compare(one: Path) -> None:
    text = one.read_text()
    assert 'id="model"' not in text
    assert "won" not in re.sub(r"(?s)<script>.*?</script>", "", text)


def test_many_subjects_show_their_ends_and_hide_the_rest(tmp_path: Path) -> None:
    rows = [replace(a, groups={"subject": f"subject {chr(65 + i % 26)}"}) for i, a in enumerate(letters(260))]
    text = write(stored(tmp_path, (rows,), MMLU)).read_text()
    assert "All 26; above, the 5 best and worst" in text
    assert text.count("group=subject%3Dsubject+") == 26 + 10


def test_long_answers_lose_their_middle() -> None:
    assert report_browser.cut("a" * 10, 10) == "a" * 10
    assert report_browser.cut("b" * 700 + "c" * 300, 600) == "b" * 400 + "\n[... 400 characters left out ...]\n" + "c" * 200


def test_a_page_of_long_answers_stays_in_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_browser, "BUDGET", 500_000)
    html = report_browser.section(["m"], [{"gsm8k": generated(text=lambda i, j: "x" * 9000)}])
    assert "Answers of more than 1,000 characters are shown without their middle" in html
    assert len(html) < 800_000


# ---- charts ----


def test_bins_hold_every_answer() -> None:
    rows = generated(200)
    width, right, wrong = bins(rows)
    assert width == 5
    drawn = [s for a in rows for s in a.samples]
    assert (sum(right), sum(wrong)) == (sum(s.lenient == 1 for s in drawn), sum(s.lenient != 1 for s in drawn))
    assert right[4] == sum(s.lenient == 1 and 20 <= s.tokens < 25 for s in drawn)
    far = [replace(rows[0], samples=(sampled(True, "", 100_000),) + rows[0].samples[1:]), *rows[1:]]
    assert len(bins(far)[1]) == len(right)  # one that ran on does not squeeze the rest
    assert sum(bins(far)[1]) + sum(bins(far)[2]) == 800
    assert bins([replace(rows[0], samples=(sampled(True, "", 0),))]) == (1.0, [1, 0], [0, 0])


def test_charts_escape_their_titles() -> None:
    curve = [{"threshold": 0.0, "coverage": 1.0, "accuracy": 0.5, "precision": None}]
    for svg in (
        lengths(HOSTILE, generated(3), HOSTILE),
        thresholds(HOSTILE, curve, HOSTILE),
        whiskers([(HOSTILE, "main", {"value": 0.1, "low": 0.0, "high": 0.2})]),
    ):
        assert "<script" not in svg
        assert "<img" not in svg


def test_axes() -> None:
    assert [reach([v]) for v in (0.05, 0.1, 0.31, 0.61, 0.9, 1.0)] == [0.1, 0.1, 0.4, 0.8, 1.0, 1.0]
    assert [kind(i, 2) for i in range(2)] == ["second", "main"]
    assert [kind(i, 3) for i in range(3)] == ["third", "second", "main"]


# ---- in a browser ----


def test_searched_filtered_and_paged(tab: Tab, one: Path) -> None:
    tab.open(one)
    assert count(tab) == 210
    assert (tab.text("#page"), tab.js("document.querySelectorAll('#list .entry').length")) == ("page 1 of 5", 50)
    tab.click("#next")
    assert tab.text("#page") == "page 2 of 5"
    assert tab.text("#list .entry:first-child .id") == "gsm8k/test/50"
    tab.click("#back")
    assert tab.text("#list .entry:first-child .id") == "gsm8k/test/0"

    tab.type("#search", "NUMBER 11")  # in any case: 11 and 110 to 119
    tab.wait("document.querySelector('#count').innerText.startsWith('11 of 210')")
    tab.type("#search", "17 + 3 = 20")  # in what was answered
    tab.wait("document.querySelector('#count').innerText.startsWith('1 of 210')")
    assert tab.text("#list .entry:first-child .id") == "gsm8k/test/17"
    tab.type("#search", "nowhere at all")
    tab.wait("document.querySelector('#count').innerText.startsWith('0 of 210')")
    tab.type("#search", " ")
    tab.wait("document.querySelector('#count').innerText.startsWith('210 of 210')")

    assert tab.js("document.querySelector('#group').disabled")
    tab.choose("#task", "0")
    assert count(tab) == 120
    tab.choose("#group", "steps=2")
    assert count(tab) == 40
    rights = [[s.lenient == 1 for s in a.samples] for a in generated() if a.groups["steps"] == "2"]
    for show, expected in (("right", sum(map(all, rights))), ("wrong", sum(not any(r) for r in rights))):
        tab.choose("#show", show)
        assert count(tab) == expected
        assert f"({expected})" in tab.js("document.querySelector('#show').selectedOptions[0].textContent")
    tab.choose("#show", "partly")
    assert count(tab) == sum(any(r) and not all(r) for r in rights)
    tab.choose("#task", "1")  # its groups are others
    assert tab.js("document.querySelector('#group').value") == ""
    tab.choose("#show", "all")
    assert count(tab) == 90
    assert tab.errors == []


def test_questions_open_and_links_filter(tab: Tab, one: Path) -> None:
    tab.open(one)
    assert tab.js("document.querySelectorAll('.answer').length") == 0  # nothing is built before it is asked for
    tab.click("#list .entry:nth-child(3) summary")
    tab.wait("document.querySelectorAll('.answer').length === 4")
    said = tab.text("#list .entry:nth-child(3)")
    for part in ("Question number 2?", "gold 4", "gsm8k", "steps 3", "2 + 3 = 5", "tokens", "because"):
        assert part in said, part
    tab.click('a[href="#questions?task=1&group=subject%3Dastronomy"]')
    tab.wait("document.querySelector('#count').innerText.startsWith('30 of 210')")
    tab.click("#list .entry:first-child summary")
    tab.wait("document.querySelectorAll('.answer').length === 1")
    assert "log-probability of each letter" in tab.text(".answer")
    tab.type("#search", "astronomy/1")  # and the same link again puts the controls back
    tab.wait("!document.querySelector('#count').innerText.startsWith('30 of')")
    tab.click('a[href="#questions?task=1&group=subject%3Dastronomy"]')
    tab.wait("document.querySelector('#count').innerText.startsWith('30 of 210')")
    assert tab.errors == []


def test_won_and_lost_are_read_from_the_table(tab: Tab, pair: Path) -> None:
    found = json.loads((pair.parent / "results.json").read_text())["tasks"]
    tab.open(pair)
    for i, task in enumerate(("gsm8k", "mmlu")):
        c = found[task]["comparisons"][0]
        for show in ("won", "lost"):
            tab.click(f'.compared a[href="#questions?task={i}&model=1&show={show}"]')
            tab.wait(f"document.querySelector('#count').innerText.startsWith('{len(c[show + '_ids'])} of 210')")
            ids = tab.js("[...document.querySelectorAll('#list .id')].map((e) => e.innerText)")
            assert set(ids) <= set(c[show + "_ids"])
    tab.choose("#show", "changed")
    assert count(tab) == len(c["won_ids"]) + len(c["lost_ids"])
    tab.click("#list .entry:first-child summary")
    tab.wait("document.querySelectorAll('.answer').length === 2")
    assert tab.js("[...document.querySelectorAll('.body h4')].map((e) => e.innerText)") == ["base", "zero"]
    tab.choose("#model", "0")
    assert count(tab) == 0  # the base against itself
    assert tab.errors == []


@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_sticks_out(tab: Tab, one: Path, pair: Path, width: int) -> None:
    tab.size(width, 900)
    for page in (one, pair):
        tab.open(page)
        assert tab.js("document.documentElement.scrollWidth") <= width
    tab.size(1200, 900)


def test_what_a_model_wrote_is_shown_never_run(tab: Tab, tmp_path: Path) -> None:
    """Every text of an evaluation is hostile; the page neither breaks nor runs any of it."""
    settings = replace(SETTINGS, model=HOSTILE, engine=HOSTILE, template=HOSTILE, commit=HOSTILE, rows=40)
    rows = [
        replace(a, id=f"{HOSTILE}{i}", question=HOSTILE, gold=HOSTILE, groups={HOSTILE: HOSTILE + str(i % 2)}, samples=tuple(
            replace(s, answer=HOSTILE, reason=HOSTILE) for s in a.samples))
        for i, a in enumerate(generated(40, text=lambda i, j: HOSTILE))
    ]  # fmt: skip
    folder = stored(tmp_path / "hostile", (rows,), settings)
    shared = (Shared(HOSTILE, 1.0, "exact", HOSTILE, HOSTILE),)
    enter(folder, [Contamination("gsm8k", 8, 40, 0, 1, shared)], [HOSTILE])
    page = Source(write(folder))
    assert page.open == []
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    tab.open(folder / "report.html")
    tab.click("#list .entry:first-child summary")
    tab.wait("document.querySelectorAll('.answer').length === 4")
    assert tab.js("document.querySelector('.answer pre').textContent") == HOSTILE
    assert tab.js("document.querySelector('.body .question').textContent") == HOSTILE
    assert tab.js("document.querySelectorAll('img').length + document.querySelectorAll('script').length") == 2
    assert tab.js("typeof window.broken") == "undefined"
    tab.type("#search", "onerror")
    tab.wait("document.querySelector('#count').innerText.startsWith('40 of 40')")
    assert tab.errors == []


def test_the_policy_stops_markup_that_got_through(tab: Tab, one: Path) -> None:
    """Were a text ever set as markup, nothing of it would run."""
    tab.open(one)
    tab.js("document.querySelector('#list').innerHTML = '<img src=x onerror=\"window.broken = 1\">'")
    tab.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.broken = 1'}))")
    tab.js("new Promise((done) => setTimeout(done, 200))")
    assert tab.js("typeof window.broken") == "undefined"
    assert any("Content Security Policy" in error for error in tab.errors)
    tab.errors.clear()


def test_as_many_questions_as_mmlu_has(tab: Tab, tmp_path: Path) -> None:
    page = write(stored(tmp_path, (letters(14_042),), MMLU))
    tab.open(page)
    assert count(tab) == 14_042
    tab.type("#search", "which one, 14041?")
    tab.wait("document.querySelector('#count').innerText.startsWith('1 of 14,042')")
    assert tab.errors == []
