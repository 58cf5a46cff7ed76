"""The ids a prompt is made of: the template to the letter, each tokenizer's own habits, and the same ids from sampler to learner."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl.batch import Counts, pack
from rl.data import prompts
from rl.guard import check_prompts
from rl.policy import ROOT, load_tokenizer
from rl.prompts import CHAT_SYSTEM, render
from rl.records import Completion, Prompt, Sampling
from rl.rollout import rollout
from tests.tiny_run import tiny_tokenizer

QUESTIONS = [
    "What is 2+2?",
    "Compute 17 - 5",
    "Janet’s ducks lay 16 eggs; she sells each for $2.50 (½ of them). How much is that — in €?",
    "Solve {x} in \\frac{1}{x} = {question}, 100%!",
    "计算 12×3 😀.",
    "  two lines\nand a tab\there  ",
]


@pytest.fixture(scope="module", params=["tiny", "nano", "qwen2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "qwen2":
        return load_tokenizer(str(request.getfixturevalue("data_root") / "qwen2_tokenizer"))
    if request.param == "nano":
        base = ROOT / "recipes" / "nano" / "base"
        if not base.is_dir():
            pytest.skip("no recipes/nano/base in this checkout")
        return load_tokenizer(str(base))
    return tiny_tokenizer()


def decode(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_the_r1_zero_template_to_the_letter(tokenizer: Any) -> None:
    """Table 1 of arXiv 2501.12948; a question that ends in a stop brings its own."""
    text = (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks "
        "about the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are "
        "enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
        "<answer> answer here </answer>. User: %s Assistant:"
    )
    assert decode(tokenizer, render("Compute 17 - 5", "r1_zero", tokenizer)) == text % "Compute 17 - 5."
    assert decode(tokenizer, render("What is 2+2?", "r1_zero", tokenizer)) == text % "What is 2+2?"
    assert decode(tokenizer, render("Add 2 and 2. ", "r1_zero", tokenizer)) == text % "Add 2 and 2."


@pytest.mark.parametrize("template", ["r1_zero", "chat"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_ids_decode_to_the_text(tokenizer: Any, template: str, question: str) -> None:
    ids = render(question, template, tokenizer)
    assert all(type(i) is int for i in ids)
    text = decode(tokenizer, ids)
    assert question.strip() in text
    assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == ids  # neither adds a BOS
    check_prompts([Prompt("q", ids, {})], tokenizer, len(tokenizer), 4096, 16)


def test_the_qwen2_tokenizer_is_the_real_one(data_root: Path) -> None:
    real = load_tokenizer(str(data_root / "qwen2_tokenizer"))
    assert len(real) == 151_646
    ids = render("What is 2+2?", "r1_zero", real)
    assert len(ids) == len(set(range(len(ids)))) < 120
    assert decode(real, ids[:3]) == "A conversation between"


def test_the_chat_template_gets_system_user_and_an_open_turn(tokenizer: Any) -> None:
    text = decode(tokenizer, render("What is 2+2?", "chat", tokenizer))
    assert (
        text.index("<|im_start|>system") < text.index(CHAT_SYSTEM) < text.index("<|im_start|>user") < text.index("What is 2+2?")
    )
    assert text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == 3


def test_what_cannot_be_rendered() -> None:
    base = tiny_tokenizer()
    base.chat_template = None
    with pytest.raises(ValueError, match=r'no chat template; use prompt\.template = "r1_zero"'):
        render("2+2?", "chat", base)
    with pytest.raises(ValueError, match='"alpaca" is not known'):
        render("2+2?", "alpaca", base)


def with_bos(template: str) -> Any:
    """A tokenizer that begins every text with a BOS, as Llama's does, with a chat template of ours."""
    from tokenizers import processors

    made = tiny_tokenizer()
    made.add_special_tokens({"bos_token": "<|bos|>"})
    bos = ("<|bos|>", made.bos_token_id)
    made.backend_tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])]
    )
    made.chat_template = template
    return made


PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("chat", "template", "leading", "told"),
    [
        (PLAIN, "r1_zero", 1, None),  # the tokenizer's own, once
        ("{{ bos_token }}" + PLAIN, "chat", 1, None),  # Llama's way: the template brings it
        ("{{ bos_token }}{{ bos_token }}" + PLAIN, "chat", 2, "begins with 2 BOS tokens"),
        (PLAIN, "chat", 0, "has no BOS, but this tokenizer begins every text with one"),
    ],
)
def test_bos_is_there_once(chat: str, template: str, leading: int, told: str | None) -> None:
    made = with_bos(chat)
    ids = render("What is 2+2?", template, made)
    bos = made.bos_token_id
    assert ids.count(bos) == leading
    assert ids[:leading] == (bos,) * leading
    prompt = Prompt("q7", ids, {})
    if told is None:
        check_prompts([prompt], made, 1000, 4096, 16)
    else:
        with pytest.raises(ValueError, match=rf"prompt q7 {told}"):
            check_prompts([prompt], made, 1000, 4096, 16)


def test_a_text_that_brings_its_bos_as_well_is_refused() -> None:
    """What happens to whoever tokenises a rendered chat again: the template's BOS and the tokenizer's."""
    made = with_bos("{{ bos_token }}" + PLAIN)
    text = made.apply_chat_template([{"role": "user", "content": "2+2?"}], tokenize=False)
    with pytest.raises(ValueError, match="begins with 2 BOS tokens: the template brings one and the tokenizer another"):
        check_prompts([Prompt("q", tuple(made(text)["input_ids"]), {})], made, 1000, 4096, 16)


def test_a_tokenizer_of_another_model(data_root: Path) -> None:
    real = load_tokenizer(str(data_root / "qwen2_tokenizer"))
    ids = render("What is 2+2?", "chat", real)
    with pytest.raises(ValueError, match="the model has 512: tokenizer and model do not belong together"):
        check_prompts([Prompt("q", ids, {})], real, 512, 4096, 16)
    check_prompts([Prompt("q", ids, {})], real, 151_936, 4096, 16)


def test_prompt_and_budget_must_fit_the_context() -> None:
    made = tiny_tokenizer()
    prompt = Prompt("q", tuple(range(50)), {})
    check_prompts([prompt], made, 512, 66, 16)
    with pytest.raises(ValueError, match=r"prompt q \(50 tokens\) and 16 new tokens exceed the model's context of 65"):
        check_prompts([prompt], made, 512, 65, 16)
    with pytest.raises(ValueError, match="has no tokens"):
        check_prompts([Prompt("q", (), {})], made, 512, 65, 16)


class Spy:
    """A sampler that keeps what it was given and answers with fixed ids that no tokenizer would have made of their text."""

    version, dtype = 0, torch.float32
    answer = (300, 65, 66, 0)

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def generate(self, asked: Any, sampling: Sampling) -> list[list[Completion]]:
        self.seen += [tuple(ids) for ids in asked]
        one = Completion(self.answer, (-1.0,) * 4, "stop", "another text", 0)
        return [[one] * sampling.n for _ in asked]


def test_the_ids_of_the_sampler_are_the_ids_of_the_learner(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": str(i), "question": q, "gold": "1", "kind": "math"} for i, q in enumerate(QUESTIONS)]
    made = prompts(rows, "r1_zero", tokenizer, 4096)
    for kind in type(tokenizer).__mro__[:-1]:  # from here on nobody may tokenise
        for name in ("__call__", "encode", "apply_chat_template", "_encode_plus", "batch_encode_plus"):
            if name in vars(kind):
                monkeypatch.setattr(kind, name, lambda *a, **k: pytest.fail("something was tokenised again"))
    spy = Spy()
    groups = rollout(spy, made, Sampling(n=2, max_tokens=4))
    assert spy.seen == [p.ids for p in made]
    batch = pack(groups, [[1.0, -1.0]] * len(groups), loss="dapo", counts=Counts(12, 48), max_tokens=4, row_tokens=10_000)
    packed = []
    for row in batch.rows:
        for span in row.spans:
            assert tuple(row.ids_L[span.start : span.stop].tolist()) == Spy.answer
            packed.append(tuple(row.ids_L[span.prompt_start : span.prompt_stop].tolist()))
    assert sorted(set(packed)) == sorted(spy.seen)
    assert len(packed) == 2 * len(spy.seen)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    made = tiny_tokenizer()
    made.eos_token = None
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_the_guard_reads_ids_only() -> None:
    """No tokenizer is asked for anything but its BOS habit."""
    fake = SimpleNamespace(bos_token_id=None)
    check_prompts([Prompt("q", (1, 2), {})], fake, 3, 10, 1)
