"""results.json as lm-evaluation-harness lays it out. (Their make_table of 0.4.13 was tried on it by hand.)"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.report import read
from eval.report_results import results, to_json
from tests.stored_eval import MMLU, SETTINGS, SUBJECTS, generated, letters, stored


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = stored(tmp_path_factory.mktemp("eval"), (generated(), letters()), SETTINGS, MMLU)
    text = to_json(read(folder))
    assert "NaN" not in text
    assert "Infinity" not in text
    tree: dict[str, Any] = json.loads(text)
    return tree


def test_the_keys_are_theirs(made: dict[str, Any]) -> None:
    theirs = {"results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config",
              "git_hash", "date", "model_source", "model_name", "task_hashes"}  # fmt: skip
    assert theirs <= set(made)
    assert set(made) - theirs == {"figures", "settings", "contamination"}
    for name, entry in made["results"].items():
        for key, value in entry.items():
            if key == "alias":
                continue
            metric, _, filtered = key.partition(",")
            assert filtered
            assert isinstance(value, float)
            if not metric.endswith("_stderr"):
                assert f"{metric}_stderr,{filtered}" in entry
                assert made["higher_is_better"][name][metric]
        assert name in made["versions"]
        assert name in made["n-samples"]


def test_the_figures_are_right(made: dict[str, Any]) -> None:
    samples = [a.samples for a in generated()]
    for verdict in ("strict", "lenient"):
        right = [[getattr(s, verdict) for s in of] for of in samples]
        entry = made["results"]["gsm8k"]
        assert entry[f"exact_match,{verdict}"] == pytest.approx(sum(map(sum, right)) / 480)
        assert entry[f"pass@4,{verdict}"] == pytest.approx(sum(max(of) for of in right) / 120)
    assert "maj@4,strict" not in entry
    assert set(entry) >= {"maj@2,lenient", "maj@4,lenient", "pass@2,strict"}
    chosen = [a.samples[0].lenient for a in letters()]
    assert made["results"]["mmlu"]["acc,none"] == pytest.approx(sum(chosen) / 90)
    anatomy = made["results"]["mmlu_anatomy"]
    assert (anatomy["alias"], anatomy["acc,none"]) == ("anatomy", pytest.approx(sum(chosen[::3]) / 30))
    assert made["group_subtasks"] == {"gsm8k": [], "mmlu": [f"mmlu_{s}" for s in SUBJECTS]}
    assert made["groups"] == {"mmlu": made["results"]["mmlu"]}
    assert made["n-shot"] == {"gsm8k": 0, "mmlu": 5} | {f"mmlu_{s}": 5 for s in SUBJECTS}
    assert made["n-samples"]["gsm8k"] == {"original": 120, "effective": 120}
    assert made["configs"]["gsm8k"]["generation_kwargs"] == {
        "max_gen_toks": 256, "temperature": 1.0, "top_p": 1.0, "do_sample": True,
    }  # fmt: skip
    assert made["configs"]["mmlu"]["output_type"] == "multiple_choice"
    assert (made["config"]["model_sha"], made["config"]["random_seed"]) == ("3d" * 32, 5)
    assert made["figures"]["gsm8k"]["dual_chain"]["samples"] == 4


def test_programs_have_one_verdict(tmp_path: Path) -> None:
    settings = replace(SETTINGS, task="mbpp", grader="rewards/code_tests")
    rows = [replace(a, task="mbpp", groups={}) for a in generated(10)]
    got = results(read(stored(tmp_path, (rows,), settings)))
    assert {key for key in got["results"]["mbpp"] if "stderr" not in key} >= {"alias", "pass@1,none", "pass@4,none"}
    assert not [key for key in got["results"]["mbpp"] if "strict" in key or "exact_match" in key]
    assert got["figures"]["mbpp"]["dual_chain"] is None  # no vote on programs
    assert "groups" not in got
