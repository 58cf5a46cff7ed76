"""A preference model trained from pairs by TRL's RewardTrainer, then asked through the folder that a recipe names."""

from __future__ import annotations

import dataclasses
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
    assert sum(d["dropped"] for d in told.values()) == 1
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
    swapped = [p | {"chosen": p["rejected"], "rejected": p["chosen"]} for p in some_pairs()]
    assert door.main(recipe(tmp_path, tiny, swapped)) == 2
    assert "the rows of" in capfd.readouterr().err
    (tmp_path / "out" / "inputs.json").unlink()  # of which pairs nobody knows
    assert door.main(args) == 2


def test_no_question_is_both_trained_on_and_held_out_and_what_is_not_read_whole_is_dropped(tiny: str) -> None:
    config = door.Preference(model=tiny, heldout=0.2, dimensions={"help": door.Wanted()})
    pairs = [
        {"question": f"q{i}", "chosen": f"good {j}", "rejected": "bad", "dimension": "help"}
        for i in range(40)
        for j in range(4)
    ]
    long = "word " * 600  # below learn.max_tokens = 8192, beyond the model's 1024
    more = [pairs[0] | {"chosen": long}, pairs[1] | {"rejected": long}, pairs[2] | {"dimension": "other"}]
    used, held, dropped = door.divided(config, "help", [*pairs, *more])
    assert dropped == 2
    assert len(used) + len(held) == len(pairs)
    assert len({p["question"] for p in held}) == 8
    assert not {p["question"] for p in held} & {p["question"] for p in used}
    short = dataclasses.replace(config, learn=door.Learn(max_tokens=5))
    with pytest.raises(ValueError, match=r"0 pairs of 0 questions .* and 162 of more than 5 tokens"):
        door.divided(short, "help", [*pairs, *more])


def test_figures_are_over_questions_and_know_no_text_that_was_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"good": 3.0, "fair": 1.0, "bad": -1.0, "unread": None}
    monkeypatch.setattr(Judge, "raw", lambda self, name, texts: [scores[text.split("\n\n")[1]] for text in texts])

    def pair(question: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"question": question, "chosen": chosen, "rejected": rejected}

    used = [pair("a", "good", "bad"), pair("a", "good", "unread"), pair("b", "unread", "bad")]
    held = [pair("c", "good", "bad")] * 3 + [pair("d", "bad", "fair"), pair("d", "good", "unread")]
    told = door.measured(tmp_path, "help", door.Wanted(), used, held)
    assert (told["mean"], told["std"]) == (1.0, 2.0)  # of 3 and -1
    assert told["heldout"] == 4
    assert told["accuracy"]["value"] == 0.5  # question c 3 of 3, question d 0 of 1
    assert told["accuracy"]["n"] == 2


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        ({"question": "a", "chosen": "b"}, "must be texts"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "dimension None is none of"),
        ({"question": "a", "chosen": "b", "rejected": "c", "dimension": "helpfulness"}, "has 1 pairs of 1 questions"),
        ({"question": "a", "chosen": "b \ud83d", "rejected": "c", "dimension": "helpfulness"}, "row 1: half of a character"),
    ],
)
def test_pairs_that_cannot_be_used(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], pair: dict[str, str], why: str
) -> None:
    assert door.main(recipe(tmp_path, tiny, [pair])) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
