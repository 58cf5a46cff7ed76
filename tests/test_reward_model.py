"""A preference model trained from pairs by TRL's RewardTrainer, then asked through the folder that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import reward_model as door
from recipes.nano import general
from rl.judge import Judge

SETTINGS = ["learn.lr=1e-3", "learn.batch=16", "learn.micro=16", "learn.epochs=3", "learn.max_tokens=120"]


def recipe(folder: Path, tiny: str, pairs: list[dict[str, str]]) -> list[str]:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    path = folder / "preference.toml"
    path.write_text(
        f'model = "{tiny}"\npairs = ["{folder}/pairs.jsonl"]\nout = "{folder}/out"\n'
        '[dimensions.helpfulness]\npart = "answer"\n[dimensions.harmlessness]\nweight = 0.5\n'
    )
    return [str(path), *SETTINGS]


def some_pairs() -> list[dict[str, str]]:
    made = [p for p in general.pairs(270) if p["dimension"] != "readability"]
    return [*made, {**made[0], "chosen": "word " * 200}]


def test_it_tells_good_answers_from_bad_ones_and_goes_on_where_it_was(
    tmp_path: Path, tiny: str, capfd: pytest.CaptureFixture[str]
) -> None:
    args = recipe(tmp_path, tiny, some_pairs())
    assert door.main(args) == 0
    told = json.loads((tmp_path / "out" / "judge.json").read_text())["dimensions"]
    assert list(told) == ["helpfulness", "harmlessness"]
    assert told["helpfulness"]["accuracy"]["value"] > 0.8
    assert told["harmlessness"]["weight"] == 0.5
    assert sum(d["dropped"] for d in told.values()) <= 1  # the long one, or it was held out
    judge = Judge(tmp_path / "out")
    rows = general.rows("heldout", 40)
    good = judge.score([(r["question"], general.completion(r["answer"])) for r in rows])
    bad = judge.score([(r["question"], general.completion("I do not know.")) for r in rows])
    assert sum((g or 0) > (b or 0) for g, b in zip(good, bad, strict=True)) > 32
    # Killed after the first dimension: it is read, not trained again.
    weights = (tmp_path / "out" / "helpfulness" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "out" / "judge.json").unlink()
    (tmp_path / "out" / "harmlessness.json").unlink()
    capfd.readouterr()
    assert door.main(args) == 0
    assert (tmp_path / "out" / "helpfulness" / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads((tmp_path / "out" / "judge.json").read_text())["dimensions"] == told
    assert door.main([*args, "seed=1"]) == 2
    assert "seed changed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        ({"question": "a", "chosen": "b"}, "must be texts"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "dimension None is none of"),
        ({"question": "a", "chosen": "b", "rejected": "c", "dimension": "helpfulness"}, "has 1 pairs"),
    ],
)
def test_pairs_that_cannot_be_used(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], pair: dict[str, str], why: str
) -> None:
    assert door.main(recipe(tmp_path, tiny, [pair])) == 2
    assert why in capsys.readouterr().err


def test_general_answers_are_good_and_spoiled_ones_are_bad() -> None:
    """The truth of the nano ladder's general part, and the splits that share no request."""
    rows = general.rows("heldout", 100)
    assert all(general.right(r, general.completion(r["answer"])) for r in rows)
    texts = {split: {r["question"] for r in general.rows(split, 300)} for split in ("traces", "questions", "pairs", "heldout")}
    assert not texts["heldout"] & (texts["traces"] | texts["questions"] | texts["pairs"])
    for dimension in general.DIMENSIONS:
        bad = [p for p in general.pairs(300) if p["dimension"] == dimension]
        asked = {r["question"]: r for r in general.rows("pairs", 300)}
        wrong = [general.right(asked[p["question"]], p["rejected"]) for p in bad if p["question"] in asked]
        assert sum(wrong) / len(wrong) < 0.15, dimension  # words in disorder may still hold what is asked for


def test_found_traces_are_of_mixed_quality_and_never_off_the_point() -> None:
    """What preferences can mend after SFT: one in three is badly readable or does harm, all say the thing that was asked for."""
    asked = {r["id"]: r for r in general.rows("traces", 300)}
    made = general.found(300)
    bad = [n for n, trace in enumerate(made) if not general.right(asked[trace["id"]], trace["text"])]
    assert all(n % 3 == 0 for n in bad)
    assert len(bad) > 90
    assert sum(general.share(trace["text"], "en") < 1 for trace in made) > 10
