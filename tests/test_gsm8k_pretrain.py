"""The script that makes a base for real questions, run small."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from recipes.gsm8k import pretrain  # noqa: E402
from rl import config as configs  # noqa: E402
from rl.policy import ROOT  # noqa: E402
from tests.test_gsm8k_corpus import ROWS  # noqa: E402

SHAPE = "--hidden 64 --layers 1 --heads 2 --key-heads 1 --intermediate 64 --rate 0.01 --batch-tokens 4096 --documents 1000 --processes 1"
LEAK = {"question": "Ann has 12 red apples and 5 green apples in her bag. How many?", "answer": "12+5=<<12+5=17>>17\n#### 17"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    (data / "gsm8k").mkdir()
    for name, rows in (("train", [*ROWS, LEAK]), ("test", [LEAK | {"question": LEAK["question"].replace("12", "13")}, LEAK])):
        (data / "gsm8k" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return data


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Path, dict[str, Any]]:
    out = folder / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "VOCABULARY", 600)  # cheaper
        return out, pretrain.pretrain(pretrain.parse(f"--data {folder} --out {out} --minutes 30 {SHAPE}".split()))


def test_loss_falls_and_the_manifest_tells(made: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = made
    told = json.loads((out / "manifest.json").read_text())
    assert told["loss_curve"][-1] < 0.7 * told["loss_curve"][0]
    assert told["gsm8k"]["dropped_for_the_test"] == ["gsm8k/train/2"]  # a test question, and another one with its words
    assert told["gsm8k"]["templates_before"][0]["most"] >= 1
    assert told["gsm8k"]["templates_after"][0]["most"] == told["documents_checked"][0]["most"] == 0
    assert told["documents_that_are_test_questions"] == 0
    assert str(out) not in json.dumps(told)  # no path of the machine it was made on
    assert manifest["parameters"] > 600 * 64


def test_loads_as_any_model_and_fits_the_recipe(made: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, manifest = made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (model.config.model_type, model.config.num_key_value_heads, model.config.vocab_size) == ("qwen3", 1, 600)
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"]
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert configs.load(ROOT / "recipes/zero_gsm8k_small.toml").prompt.template == "r1_zero"


def test_it_ends_with_the_time_and_its_rate_decayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    clock = iter(range(10_000))
    options = pretrain.parse(f"--data {folder} --out {folder / 'short'} {SHAPE}".split())
    given = pretrain.source(options.data)
    bpe = pretrain.train_bpe((d.prompt for d in pretrain.documents(300, 0, pretrain.Mix(), given.templates)), 600)
    whole = pretrain.Writer(1, 0, pretrain.Mix(), given.templates, bpe.to_str(), [], 1).encoded()
    encoded = pretrain.Encoded(whole.ids, whole.lengths[:300], whole.prompts[:300], 0)
    from recipes.nano.pretrain import build_model

    model = build_model(64, 1, 1, 64, pretrain.fast(bpe), 600)
    options.batch_tokens, prefix = 1024, len(pretrain.fast(bpe)(pretrain.PREFIX)["input_ids"])
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    told = pretrain.train(model, encoded, prefix, 1, options, "cpu", deadline=20.0)
    assert told["steps"] < told["steps_of_the_pass"]
    assert len(rates) == told["steps"]
    assert max(rates) == pytest.approx(options.rate, rel=0.05)
    assert rates[-1] < 0.1 * options.rate
