"""Overlap of a training set with test sets: by hand, against a plain search, and a known fact about MATH."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from eval.contamination import BATCH, contamination, main, markdown, training_texts, words

Q = "a b c d e f g h i j"  # ten words


def found(train: list[str], question: str = Q, n: int = 8):
    (got,) = contamination([(f"t{i}", text) for i, text in enumerate(train)], {"toy": [("q", question)]}, (n,))
    return got


def test_words() -> None:
    assert words("Let $x_1 = 2.5$; ＡＢＣ find 数学!") == ["let", "x", "1", "2", "5", "abc", "find", "数", "学"]


def test_shares_by_hand() -> None:
    got = found(["z a b c d e f g h z", "c d, e F g\nh I j z", "nothing of it"])
    (only,) = got.found
    assert (only.id, only.whole, only.train, got.rows) == ("q", "", "t0", 3)
    assert only.share == pytest.approx(2 / 3)  # a..h and c..j of three 8-grams
    assert only.text == "a b c d e f g h"
    assert (got.exact, got.whole, got.most, got.short) == (0, 0, 0, 0)
    assert found(["a b c d e f g h", *["x"] * BATCH, "a b c d e f g h"]).found[0].train == "t0"
    assert found(["a b c d e f g"]).found == ()  # seven words are no 8-gram
    assert found(["a b c d", "e f g h i j"]).found == ()  # an n-gram does not go on in the next row


def test_a_whole_question_with_text_around_it() -> None:
    (only,) = found(["x", f"Solve: {Q}. The answer is 4."]).found
    assert (only.whole, only.share, only.train) == ("exact", 1.0, "t1")
    (only,) = found([Q.replace("e f", "e f x") + " " + Q[2:] + " " + Q[:-2]]).found
    assert (only.whole, only.share) == ("", 1.0)  # all n-grams, and never the question


def test_signs_between_the_words_count_for_exact() -> None:
    (only,) = found(["Compute $2-3$ now"], "Compute $2+3$.").found
    assert only.whole == "words"
    (only,) = found(["Compute $2-3$ now", "compute  $ 2 + 3 $ now"], "Compute $2+3$.").found
    assert (only.whole, only.train) == ("exact", "t1")
    got = found(["compute 2 then 3"], "Compute $2+3$.")
    assert (got.found, got.short, got.questions) == ((), 1, 1)


def test_it_is_a_plain_search() -> None:
    """Random texts of few words against a search without index, hashes or batches, over more than one batch."""
    chance = random.Random(1)

    def text(length: int) -> str:
        return " ".join(chance.choices("pqrst", k=length))

    train = [(str(i), text(chance.randint(0, 12))) for i in range(BATCH + 300)]
    tests = [(f"q{i}", text(chance.randint(1, 9))) for i in range(60)]
    for n in (4, 6):
        (got,) = contamination(train, {"toy": tests}, (n,))
        by_id = {f.id: f for f in got.found}
        for name, question in tests:
            own = question.split()
            grams = [f" {' '.join(own[i : i + n])} " for i in range(len(own) - n + 1)]
            seen = [any(gram in f" {row} " for _, row in train) for gram in grams]
            holder = next((i for i, row in train if f" {question} " in f" {row} "), None)
            assert (name in by_id) == (any(seen) or holder is not None)
            if name in by_id:
                assert by_id[name].share == pytest.approx(sum(seen) / len(seen) if seen else 1.0)
                assert by_id[name].whole == ("exact" if holder is not None else "")
                assert holder is None or by_id[name].train == holder


def test_known_fact_about_math(data_root: Path) -> None:
    """MATH's train and test share ten questions by words, MATH-500 one of them; six of the ten differ in a sign."""
    folder = data_root / "math"
    tests = {
        name: [(str(i), json.loads(line)["problem"]) for i, line in enumerate(path.open(encoding="utf-8"))]
        for name, path in (("math", folder / "test.jsonl"), ("math500", data_root / "math500" / "test.jsonl"))
    }
    all_of_it, part = contamination(training_texts(str(folder / "train_answers_only.parquet")), tests, (13,))
    whole = {f.id for f in all_of_it.found if f.whole}
    ten = {"311", "1038", "2157", "2339", "2432", "2638", "3023", "4656", "4678", "2121"}
    contained = {"1330", "2145", "3613"}  # these are a part of a longer training question
    assert whole == ten | contained
    assert {f.id for f in all_of_it.found if f.whole == "exact"} == {"311", "1038", "3023", "4656"} | contained
    assert [(f.id, f.whole) for f in part.found if f.whole] == [("46", "words")]  # z^4 - z^2 + 1 there, z^4 + z^2 + 1 here


def test_training_files_are_read_row_by_row(tmp_path: Path) -> None:
    rows = [
        {"id": "m", "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
        {"text": "three", "n": 3},
    ]
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text("\n\n".join(map(json.dumps, rows)))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        assert [text.split("\n") for _, text in training_texts(str(path))] == [
            ["m", "user", "one", "assistant", "two"],
            ["three"],
        ]
    assert [name for name, _ in training_texts(str(plain))] == ["m", "1"]
    plain.write_text("{")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: not JSON"):
        list(training_texts(str(plain)))
    with pytest.raises(ValueError, match="no such"):
        list(training_texts(str(tmp_path / "none.jsonl")))


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        contamination([], {"toy": [("q", Q)]})
    with pytest.raises(ValueError, match="no question"):
        contamination([("t", Q)], {"toy": [("q", "?")]})


def test_the_command_lists_them_before_any_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test, train = tmp_path / "german.jsonl", tmp_path / "train.jsonl"
    test.write_text(
        json.dumps({"id": "g1", "question": Q, "gold": "4"}) + "\n" + json.dumps({"id": "g2", "question": "k l", "gold": "4"})
    )
    train.write_text(json.dumps({"id": 7, "text": f"so {Q}"}))
    assert main(["--train", str(train), "--task", str(test), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| german | 8 | 2 | 1 | 1 | 1 | 1 | 1 |" in out
    assert "- g1: exact, 100% (training row 7): a b c" in out
    saved = json.loads((tmp_path / "contamination.json").read_text())
    assert [(c["n"], c["exact"], c["found"][0]["train"]) for c in saved] == [(8, 1, "7"), (13, 1, "7")]
    assert main(["--train", "nothing.jsonl", "--task", str(test)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_test_sets_of_one_file_name_are_all_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / part / "test.jsonl" for part in ("a", "b")]
    for path, question in zip(files, (Q, "k l m"), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps({"id": "q", "question": question, "gold": "4"}))
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"text": f"so {Q}"}))
    assert main(["--train", str(train), "--task", ",".join(map(str, files)), "--out", str(tmp_path)]) == 0
    assert f"| {files[0]} | 8 | 1 | 0 | 1 |" in capsys.readouterr().out
    saved = json.loads((tmp_path / "contamination.json").read_text())
    assert [(c["task"], c["n"], c["exact"]) for c in saved] == [
        (str(path), n, int(path == files[0])) for path in files for n in (8, 13)
    ]


def test_a_long_list_is_cut_and_says_so() -> None:
    (got,) = contamination([("t", Q)], {"toy": [(f"q{i:02}", Q) for i in range(30)]}, (8,))
    assert "toy, n = 8: 20 of 30" in markdown([got])
