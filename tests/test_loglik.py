"""Log-likelihood of letters: packed rows against one plain forward pass a choice, cut prompts, and going on after a kill."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from eval import loglik
from eval.last_layer import Reader
from eval.ledger import Ledger
from eval.loglik import Plan, choose, pieces, scored, units, windows
from eval.records import read_samples
from rl.policy import load_model, load_tokenizer

CPU = torch.device("cpu")
CHOICES = [(11,), (12,), (13, 14), (13, 15, 16), (17, 18)]  # one token, or more, with and without a common beginning


@pytest.fixture(scope="module")
def reader(tiny: str) -> Reader:
    return Reader(tiny, CPU)


def questions(seed: int = 0) -> tuple[list[tuple[int, ...]], list[str]]:
    """Contexts of 20 to 90 tokens, those of a subject alike for some 15."""
    draw = random.Random(seed)
    contexts, subjects = [], []
    for subject in ("a", "b"):
        shots = tuple(draw.randrange(20, 300) for _ in range(15))
        for _ in range(7):
            contexts.append(shots + tuple(draw.randrange(20, 300) for _ in range(draw.randrange(5, 75))))
            subjects.append(subject)
    return contexts, subjects


def plain(model: torch.nn.Module, context: tuple[int, ...], choice: tuple[int, ...], limit: int) -> float:
    """As lm-evaluation-harness does it: cut from the left to limit + 1 tokens, the last one is target only."""
    inputs = torch.tensor([(context + choice)[-(limit + 1) :][:-1]])
    with torch.no_grad():
        logprobs = model(input_ids=inputs).logits[0, -len(choice) :].log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(choice)[:, None]).sum())


@pytest.mark.parametrize("limit", [1024, 50, 30])
@pytest.mark.parametrize("room", [150, 8192])
def test_every_choice_has_the_log_prob_of_a_plain_forward_pass(
    tiny: str, reader: Reader, limit: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loglik, "ROW_TOKENS", room)
    contexts, subjects = questions()
    rows = units(pieces(contexts, CHOICES, subjects, limit))
    assert (len(rows) > 3) == (room == 150)
    found = {}
    for row in rows:
        assert not found.keys() & {i for piece in row for i in piece.questions}  # a question is in one row
        found |= scored(row, reader)
    model = load_model(tiny, dtype=torch.float32, attention="sdpa")
    wanted = {i: [plain(model, context, choice, limit) for choice in CHOICES] for i, context in enumerate(contexts)}
    assert found.keys() == wanted.keys()
    for i, values in wanted.items():
        assert found[i] == pytest.approx(values, abs=2e-4)


def test_letters_that_see_the_same_are_read_from_one_window() -> None:
    (whole,) = windows(3, (7, 8), [(1,), (2, 3), (2,)], 9)
    assert whole.ids == (7, 8, 2)
    assert {(q.question, q.choice, q.source, q.target) for q in whole.queries} == {
        (3, 0, 1, 1),
        (3, 1, 1, 2),
        (3, 1, 2, 3),
        (3, 2, 1, 2),
    }
    assert [w.ids for w in windows(0, (7, 8, 9), [(1,), (2, 3)], 3)] == [
        (8, 9, 2),  # the longer one is cut by one more
        (7, 8, 9),
    ]


def test_what_is_alike_is_computed_once() -> None:
    contexts, subjects = questions()
    made = pieces(contexts, CHOICES, subjects, 1024)
    assert len(made) == 2
    assert all(piece.shared >= 15 and len(piece.questions) == 7 for piece in made)
    assert all(piece.shared == len(piece.windows[0].ids) - 1 for piece in pieces(contexts, CHOICES, subjects, 20))


def rows(count: int) -> list[dict]:
    return [
        {"id": f"q{i}", "question": f"Is it {i}?", "gold": "ABCD"[i % 4], "kind": "choice", "subject": f"s{i % 2}",
         "groups": {"subject": f"s{i % 2}"}, "plain": f"About s{i % 2}.\n\nIs it {i}?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"}
        for i in range(count)
    ]  # fmt: skip


def answer(folder: Path, plan: Plan, reader: Reader, stop_after: int = -1) -> int:
    """Units that were computed; `stop_after` of them it dies."""
    ledger, done = Ledger(folder, "mmlu", [r["id"] for r in plan.rows], plan.ids()), []

    def step(work: float) -> None:
        done.append(work)
        if len(done) == stop_after:
            raise KeyboardInterrupt

    choose("mmlu", plan, reader, ledger, step)
    ledger.finish()
    return len(done)


def test_it_goes_on_after_a_kill_with_the_same_bytes(
    tiny: str, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loglik, "ROW_TOKENS", 60)
    plan = Plan(rows(9), load_tokenizer(tiny), 1024)
    count = len(plan.units)
    assert count > 3
    assert answer(tmp_path / "whole", plan, reader) == count
    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path / "killed", plan, reader, stop_after=2)
    with (tmp_path / "killed/samples/mmlu.part").open("a") as part:
        part.write('{"task": "mmlu", "id": "q7", "que')  # torn by the kill
    assert answer(tmp_path / "killed", plan, reader) == count - 2
    assert (tmp_path / "killed/samples/mmlu.jsonl").read_bytes() == (tmp_path / "whole/samples/mmlu.jsonl").read_bytes()
    answered = read_samples(tmp_path / "whole", "mmlu")
    assert [a.id for a in answered] == [f"q{i}" for i in range(9)]
    for a in answered:
        (best,) = a.samples
        assert best.text == "ABCD"[max(range(4), key=a.choices.__getitem__)]
        assert best.strict == best.lenient == float(best.text == a.gold)
        assert (best.tokens, best.reason.split(":")[0]) == (0, "right" if best.lenient else "wrong")


def test_prompts_that_are_cut_are_counted(tiny: str) -> None:
    tokenizer, some = load_tokenizer(tiny), rows(4)
    lengths = sorted(len(tokenizer(row["plain"])["input_ids"]) for row in some)
    some[2]["plain"] = "Long before. " * 9 + some[2]["plain"]
    assert Plan(some, tokenizer, lengths[-1] + 5).cut == 1
    assert Plan(some, tokenizer, 1024).cut == 0


def test_letters_without_tokens_are_refused(tiny: str) -> None:
    class Deaf:
        def __call__(self, text: str | list[str]) -> dict:
            return {"input_ids": [1, 2]}

    with pytest.raises(ValueError, match="no tokens of their own for the letters"):
        loglik.continuations(["x"], Deaf())
