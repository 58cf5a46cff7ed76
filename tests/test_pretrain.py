"""The script that makes the nano base, run small."""

import json

import pytest

torch = pytest.importorskip("torch")

from recipes.nano.evaluate_base import evaluate  # noqa: E402
from recipes.nano.pretrain import document_loss, parse, pretrain, rate_at  # noqa: E402
from tests import tiny  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("nano") / "base"
    shape = "--hidden 64 --layers 1 --heads 1 --intermediate 64 --rate 0.01"
    options = parse(f"--out {out} --documents 300 --batch-tokens 3000 --processes 1 {shape}".split())
    torch.set_num_threads(2)
    return out, pretrain(options)


def test_loss_falls_and_the_manifest_tells(made) -> None:
    out, manifest = made
    assert len(manifest["loss_curve"]) >= 15
    assert manifest["final_loss"] < 0.7 * manifest["loss_curve"][0]
    assert manifest["heldout_overlap"] == 0
    assert manifest["documents"] == 300
    assert json.loads((out / "manifest.json").read_text())["mix"]["shares"]["bare"] > 0
    assert "/" not in json.dumps(manifest["settings"])  # no path of the machine it was made on


def test_a_model_is_trained_on(made, tmp_path) -> None:
    """From where it stood: its sizes, its tokenizer, a loss that begins below that of random weights."""
    from rl.policy import load_tokenizer
    from rl.teacher import check_tokenizer

    start, first = made
    options = f"--out {tmp_path} --documents 40 --batch-tokens 3000 --processes 1 --rate 1e-4 --seed 1 --start {start}"
    manifest = pretrain(parse(options.split()))
    check_tokenizer("student", load_tokenizer(str(tmp_path)), load_tokenizer(str(start)))
    assert manifest["start"] == "base"
    assert manifest["parameters"] == first["parameters"]
    assert manifest["loss_curve"][0] < 0.7 * first["loss_curve"][0]


def test_loads_as_any_model(made) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, manifest = made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.model_type == "qwen3"
    assert model.config.tie_word_embeddings
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"]
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert (out / "model.safetensors").stat().st_size < 10_000_000


def test_evaluation_counts(made) -> None:
    figures = evaluate(made[0], count=4, samples=2, limit=8)
    assert set(figures["table"]["all"]) == {"greedy", "pass@1", "pass@2"}
    assert sum(kind["share"] for kind in figures["kinds"].values()) == pytest.approx(1)


def test_document_loss_ignores_padding_and_weighs_prompts() -> None:
    class Favours1(torch.nn.Module):
        """Logits that favour token 1, whatever stands before."""

        def model(self, ids, position_ids, use_cache, packing):
            return type("Out", (), {"last_hidden_state": torch.zeros(*ids.shape, 1)})

        def lm_head(self, hidden):
            return torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(*hidden.shape[:-1], 4)

    ids = torch.tensor([[2, 3, 1, 1, 0, 0]], dtype=torch.int16)  # prompt 2 3, completion 1 1, padding 0 0
    total, completion = document_loss(Favours1(), ids, torch.tensor([4]), torch.tensor([2]), 1)
    norm = torch.logsumexp(torch.tensor([0.0, 1.0, 0.0, 0.0]), 0)
    assert completion == pytest.approx(float(norm - 1), abs=1e-6)
    assert total == pytest.approx(float((0.1 * norm + 2 * (norm - 1)) / 2.1), abs=1e-6)


def test_one_template_before_all_documents_changes_no_loss() -> None:
    """Against the plain forward pass of each document by itself, padding and all."""
    model, plain = tiny.policy("qwen2").model, tiny.plain("qwen2").requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    ids, prefix = torch.randint(2, 300, (3, 12), generator=draw), 4
    ids[:, :prefix] = ids[0, :prefix]
    lengths, prompts = torch.tensor([12, 9, 11]), torch.tensor([6, 5, 7])
    total, completion = (loss.detach() for loss in document_loss(model, ids, lengths, prompts, prefix))
    logprobs = plain(ids[:, :-1]).logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    at = torch.arange(1, 12)
    said = (at >= prompts[:, None]) & (at < lengths[:, None])
    asked = (at >= prefix) & (at < prompts[:, None])
    assert completion == pytest.approx(float(-(logprobs * said).sum() / said.sum()), abs=1e-5)
    weight = said + 0.1 * asked
    assert total == pytest.approx(float(-(logprobs * weight).sum() / weight.sum()), abs=1e-5)


def test_rate_warms_up_and_ends_low() -> None:
    assert rate_at(0, 100) == pytest.approx(1 / 3)
    assert rate_at(3, 100) == pytest.approx(1.0)
    assert rate_at(99, 100) < 0.03
