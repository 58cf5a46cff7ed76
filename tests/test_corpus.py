"""Nano pretraining text and the tokenizer trained on it."""

import json
import random
from collections import Counter

import pytest

from recipes.nano.corpus import KINDS, Mix, Pieces, documents, encode, prompt_text, trace
from recipes.nano.evaluate_base import answer_of, kind_of
from recipes.nano.problems import Program, heldout, problems
from recipes.nano.situations import UNSEEN
from recipes.nano.tokenizer import TAGS, train_tokenizer
from rl.prompts import render


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(count=3000)


@pytest.fixture(scope="module")
def texts():
    return list(documents(4000, 7, Mix()))


def test_kinds_at_their_shares(texts) -> None:
    found = Counter(text.kind for text in texts)
    for kind in KINDS:
        assert found[kind] / len(texts) == pytest.approx(Mix().shares[kind], abs=0.03)
    # What a reader of completions takes them for is what they were written as.
    assert all(kind_of(text.completion) == text.kind for text in texts if text.kind != "junk")
    assert all(kind_of(text.completion) == "junk" for text in texts if text.kind == "junk")
    for text in texts:
        if text.kind != "junk":
            assert (answer_of(text.completion) == str(text.drawn.results[-1])) == text.right


def test_bare_answers_get_worse_with_steps(texts) -> None:
    right: dict[int, list[bool]] = {n: [] for n in range(1, 7)}
    for text in texts:
        if text.kind == "bare":
            right[len(text.drawn.program.steps)].append(text.right)
    for n, expected in enumerate(Mix().right[:4], 1):
        assert sum(right[n]) / len(right[n]) == pytest.approx(expected, abs=0.08)


def test_only_train_and_no_unseen_situation(texts) -> None:
    unseen = {s.name for s in UNSEEN}
    assert not unseen & {text.drawn.situation.name for text in texts}
    held = {row["question"] for row in heldout(500)}
    assert not held & {text.drawn.question for text in texts}


def test_trace_right_and_wrong() -> None:
    program = Program(10, (("t", "*", 4, 6), ("x", "+", "x", "t")))
    assert trace(random.Random(0), program, 0.0) == ("4 * 6 = 24. 10 + 24 = 34.", 34)
    wrong = [trace(random.Random(i), program, 1.0)[1] for i in range(100)]
    assert wrong.count(34) < 20  # two errors may cancel
    assert all(trace(random.Random(i), program, 1.0)[0] for i in range(100))


def test_mix_must_sum() -> None:
    with pytest.raises(ValueError, match="summing to 1"):
        Mix(shares={"bare": 0.5, "untagged": 0.2, "tagged": 0.1, "junk": 0.1})


def test_prompt_is_the_house_template(tokenizer) -> None:
    for row in heldout(100):
        assert tokenizer(prompt_text(row["question"]))["input_ids"] == list(render(row["question"], "r1_zero", tokenizer))


def test_prompt_and_completion_encode_apart_and_by_pieces(tokenizer, texts) -> None:
    pieces = Pieces(tokenizer.backend_tokenizer.to_str())
    for text in texts[:800]:
        whole = tokenizer(text.prompt + text.completion)["input_ids"]
        assert text.completion.startswith(" ")
        assert tokenizer(text.prompt)["input_ids"] + tokenizer(text.completion)["input_ids"] == whole
        assert pieces.encode(text.prompt) + pieces.encode(text.completion) == whole
        assert tokenizer.decode(whole) == text.prompt + text.completion


def test_tokens(tokenizer, tmp_path) -> None:
    assert len(tokenizer) == 1024
    assert [len(tokenizer(tag)["input_ids"]) for tag in TAGS] == [1, 1, 1, 1]
    assert tokenizer("120")["input_ids"] == [tokenizer(d)["input_ids"][0] for d in "120"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    # Not special: decoding for the rewards must keep them.
    assert tokenizer.decode(tokenizer("<think> 1</think>")["input_ids"], skip_special_tokens=True) == "<think> 1</think>"
    lengths = sorted(len(render(row["question"], "r1_zero", tokenizer)) for row in heldout(200))
    assert lengths[100] <= 150
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    text = prompt_text("How many?") + " <think> 1 + 2 = 3. </think>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(render("How many?", "chat", again)).endswith("<|im_start|>assistant\n")


def test_real_questions_survive(tokenizer, data_root) -> None:
    lines = (data_root / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    for text in [*(json.loads(line)["question"] for line in lines), "3½ naïve\n\n\t£5 — 数 <thin>"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_encode_is_independent_of_processes_and_measures_overlap(tokenizer, monkeypatch) -> None:
    words = tokenizer.backend_tokenizer.to_str()
    one, two = (encode(5200, 0, Mix(), words, heldout(100), n) for n in (1, 2))
    assert (one.ids == two.ids).all()
    assert one.overlap == two.overlap == 0
    assert one.lengths.sum() == len(one.ids)
    assert (one.prompts < one.lengths).all()
    ends = one.lengths.cumsum() - 1
    assert (one.ids[ends] == tokenizer.eos_token_id).all()
    text = next(documents(1, "0/0", Mix()))
    row = {"question": text.drawn.question, "situation": text.drawn.situation.name}
    assert encode(1, 0, Mix(), words, [row, *problems("train", 1, 0)], 1).overlap == 1
