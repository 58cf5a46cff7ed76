"""The dense nano base turned into DeepSeek-V3's architecture: what is exact, and what training on heals."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402

from recipes.nano import upcycle  # noqa: E402
from recipes.nano.corpus import PREFIX, Mix, encode  # noqa: E402
from recipes.nano.pretrain import batches, document_loss, to_buckets  # noqa: E402
from rl.attention import PACKED  # noqa: E402
from rl.policy import load_model, load_tokenizer  # noqa: E402
from rl.routing import Routing  # noqa: E402


@pytest.fixture(scope="module")
def dense():
    return AutoModelForCausalLM.from_pretrained(upcycle.DENSE, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoded():
    tokenizer = load_tokenizer(str(upcycle.DENSE))
    return encode(200, 7, Mix(), tokenizer.backend_tokenizer.to_str(), [], 1)


def test_one_expert_of_each_half_is_the_dense_mlp(dense, encoded, monkeypatch) -> None:
    monkeypatch.setattr(upcycle, "NOISE", 0.0)
    model = upcycle.build(dense, 8, 64, 2).requires_grad_(False)
    upcycle.upcycle(dense, model, encoded)
    hidden = torch.randn(1, 20, 128, generator=torch.Generator().manual_seed(0))
    for old, new in zip(dense.model.layers, model.model.layers, strict=True):
        if hasattr(new.mlp, "gate"):
            new.mlp.gate.weight.zero_()  # all weigh the same
            Routing.of(new.mlp).force(torch.tensor([[[6, 3]]] * 20))
        assert (new.mlp(hidden) - old.mlp(hidden)).abs().max() < 1e-4 * old.mlp(hidden).abs().max()


def test_the_upcycled_model_knows_most_of_what_the_dense_one_knew(dense, encoded) -> None:
    torch.manual_seed(0)
    model = upcycle.build(dense, 8, 64, 2).requires_grad_(False)
    prefix = len(load_tokenizer(str(upcycle.DENSE))(PREFIX)["input_ids"])
    batch = next(iter(batches(to_buckets(encoded, 1, "cpu"), 8192, 0)))
    losses = []
    for filled in (False, True):
        if filled:
            upcycle.upcycle(dense, model, encoded)
        model.set_attn_implementation(PACKED)
        losses.append(float(document_loss(model, *batch, prefix)[1]))
    assert losses[0] > 6.5  # of 1,024 tokens, at random
    assert losses[1] < 2.5


def test_it_writes_a_base(tmp_path) -> None:
    out = tmp_path / "base"
    manifest = upcycle.main(f"--out {out} --documents 40 --batch-tokens 1500 --width 32 --experts 4".split())
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["heldout_overlap"] == 0
    assert load_tokenizer(str(out)).eos_token_id == 0
    config = load_model(str(out), dtype=torch.float32).config
    assert (config.n_routed_experts, config.n_shared_experts, config.topk_method) == (4, 10, "noaux_tc")
