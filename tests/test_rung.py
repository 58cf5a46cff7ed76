"""One rung of a ladder on the questions of a recipe, and the page over all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from recipes import ladder_report as report
from recipes import rung
from tests.browser import browser
from tests.tiny_run import HELDOUT, write_recipe


def test_a_rung_is_judged_by_rules_and_repeats(tmp_path: Path, tiny: str) -> None:
    recipe = write_recipe(tmp_path, tiny)
    general = tmp_path / "general.jsonl"
    general.write_text(json.dumps({"id": "g/0", "question": "Say hello.", "kind": "general", "gold": "hello"}) + "\n")
    args = ["--recipe", str(recipe), "--general", str(general), "--truth", "tests.test_rung:short", "evaluate.samples=3"]
    told = []
    for out in ("one", "two"):
        assert rung.main([tiny, str(tmp_path / out), *args]) == 0
        told.append(json.loads((tmp_path / out / "eval.json").read_text()))
    assert told[0].pop("seconds") > 0
    told[1].pop("seconds")
    assert told[0] == told[1]
    assert told[0]["problems"] == len(HELDOUT)
    assert {"greedy", "pass@1", "pass@3", "general", "tokens", "language", "scripts"} <= told[0].keys()
    assert told[0]["general"]["value"] == 1.0  # `short` holds for answers of twelve tokens
    assert rung.main([tiny, str(tmp_path / "three"), "--recipe", str(recipe), "evaluate.problems=0"]) == 2


def short(row: Any, text: str) -> bool:
    return row["kind"] == "general" and len(text) < 400


def figure(value: float, half: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def entry(minutes: float, **metrics: Any) -> dict[str, Any]:
    return {"minutes": minutes, "metrics": metrics}


def judged(minutes: float, pass1: float) -> dict[str, Any]:
    return entry(
        minutes, greedy=figure(pass1 + 0.1), problems=250, samples=4, parameters=920_000, tokens=41.0, truncated=0.01, language=0.98,
        scripts={"latin": 0.98, "han": 0.02}, general=figure(0.3), **{"pass@1": figure(pass1), "pass@4": figure(pass1 + 0.2)},
    )  # fmt: skip


STAGES = [
    ("base", "Base", "base", ""),
    ("zero", "", "", ""),
    ("zero_eval", "R1-Zero <of nano>", "zero", ""),
    ("pick", "", "", ""),
]
STAGES += [("cold", "", "", ""), ("cold_eval", "Cold start SFT", "cold", "zero"), ("later", "Not there yet", "later", "")]
MADE = {"base": judged(0.5, 0.2), "zero": entry(4.0), "zero_eval": judged(0.5, 0.55), "pick": entry(0.25), "cold": entry(1.5)}
MADE |= {"cold_eval": judged(0.5, 0.5)}


def test_gains_and_costs_by_hand() -> None:
    told = report.collect("tiny", STAGES, {"stages": MADE})
    assert [r["title"] for r in told["rungs"]] == ["Base", "R1-Zero <of nano>", "Cold start SFT"]
    assert [r["minutes"] for r in told["rungs"]] == [0.0, 4.0, 1.75]
    assert [r["stages"] for r in told["rungs"]] == [[], ["zero"], ["pick", "cold"]]
    assert (told["minutes"], told["judging"]) == (5.75, 1.5)
    half = math.hypot(0.05, 0.05)
    assert told["rungs"][1]["gain"]["pass@1"] == pytest.approx({"value": 0.35, "low": 0.35 - half, "high": 0.35 + half})
    assert told["rungs"][2]["gain"]["pass@1"]["value"] == pytest.approx(-0.05)
    assert "+35.0" in report.table(told)
    share, half = 0.5 / 0.55, math.hypot(0.05, 0.5 / 0.55 * 0.05) / 0.55
    assert told["rungs"][2]["kept"]["pass@1"] == pytest.approx({"value": share, "low": share - half, "high": share + half})
    assert "Cold start SFT keeps of R1-Zero <of nano>: pass@1 90.9" in report.table(told)


def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    path = report.write(tmp_path / "report.html", report.collect("tiny", STAGES, {"stages": MADE}))
    text = path.read_text()
    assert "R1-Zero &lt;of nano&gt;" in text
    assert "<of nano>" not in text
    with browser(tmp_path) as tab:
        tab.size(1100, 900)
        tab.open(path)
        tab.picture(tmp_path / "page.png", whole=True)
        assert tab.js("document.querySelectorAll('svg circle').length") == 9
        assert tab.js("document.querySelectorAll('table').length") == 2
        assert tab.js("[...document.querySelectorAll('td.up')].length") == 2  # greedy and pass@1 of R1-Zero
        assert tab.js("document.documentElement.scrollWidth <= window.innerWidth")
        assert tab.errors == []
