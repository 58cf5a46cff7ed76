"""The policy: chunked head, checkpointing, heads that do more than project, and what is refused at loading."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl import logprobs
from rl.attention import PACKED, layout
from rl.batch import Counts, pack
from rl.policy import Policy, check_head, load_model, load_tokenizer, resolve, save_model, stop_ids
from tests import tiny


def one_row(shapes=((5, [9, 7]), (3, [6]))):
    groups = tiny.groups(shapes)
    advantages = [[1.0] * len(g.completions) for g in groups]
    return pack(groups, advantages, loss="dapo", counts=Counts(3, 22), max_tokens=9, row_tokens=4096).rows[0]


def scored(policy, row, temperature=0.7):
    """Log-probs, entropies, and gradients of a sum in which every token counts differently."""
    policy.zero_grad()
    logprobs_T, entropy_T = policy(row, temperature)
    (logprobs_T * torch.linspace(-1, 2, len(logprobs_T))).sum().backward()
    return logprobs_T.detach(), entropy_T, tiny.gradients(policy)


@pytest.mark.parametrize("tokens", [1, 4, 21, 22])
def test_the_chunked_head_equals_the_whole_one(monkeypatch, tokens):
    row, policy = one_row(), tiny.policy()
    calls = []
    whole = logprobs._stats
    monkeypatch.setattr(
        logprobs, "_kernels", lambda _: (lambda x, *rest: calls.append(len(x)) or whole(x, *rest), logprobs._slope)
    )
    expected = scored(policy, row)
    assert calls == [22]
    calls.clear()
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", tokens * tiny.VOCABULARY + 5)
    found = scored(policy, row)
    assert max(calls) <= tokens  # no more logits at once than asked for
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=5e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=5e-6)
    assert not found[1].requires_grad
    assert tiny.distance(found[2], expected[2]) < 1e-6


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradient_checkpointing_changes_nothing(family):
    row, policy = one_row(), tiny.policy(family)
    expected = scored(policy.train(), row)
    forwards = []
    policy.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: forwards.append(1) or None)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = scored(policy, row)
    assert len(forwards) == 2  # it was really recomputed
    assert torch.equal(found[0], expected[0])
    assert tiny.distance(found[2], expected[2]) < 1e-6


@pytest.mark.parametrize(("share", "again"), [(0.25, 1), (0.5, 2), (0.6, 2), (0.75, 3), (1.0, 4)])
def test_a_share_of_the_layers_is_checkpointed(share, again):
    model = tiny.make(tiny._config("qwen3"), num_hidden_layers=4, layer_types=["full_attention"] * 4)
    model.set_attn_implementation(PACKED)
    row, policy = one_row(), Policy(model).train()
    expected = scored(policy, row)
    forwards = []
    for layer in policy.layers():
        layer.mlp.register_forward_pre_hook(lambda *_: forwards.append(1) or None)
    policy.checkpoint_layers(share)
    found = scored(policy, row)
    assert len(forwards) == 4 + again
    assert torch.equal(found[0], expected[0])
    assert tiny.distance(found[2], expected[2]) < 1e-6


def test_a_head_in_fp32_differs_from_one_in_bf16_by_its_rounding():
    row, exact = one_row(), tiny.policy()
    fine = Policy(exact.model, fp32_head=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = exact.model.base_model
        coarse_T, fine_T = exact(row, 1.0)[0], fine(row, 1.0)[0]
        last_LH = hidden(input_ids=row.ids_L[None], position_ids=row.positions_L[None], use_cache=False,
                         packing=layout(row.spans, len(row.ids_L), row.ids_L.device)).last_hidden_state[0]  # fmt: skip
    logits_TV = last_LH[row.sources_T].float() @ exact.model.lm_head.weight.t()
    want_T = logits_TV.log_softmax(-1).gather(1, row.targets_T[:, None])[:, 0]
    torch.testing.assert_close(fine_T, want_T, rtol=0, atol=1e-5)
    assert (coarse_T - want_T).abs().max() > 1e-3


def test_log_probs_of_what_top_k_and_top_p_left():
    row, policy = one_row(), tiny.policy()
    whole_T, cut_T = policy(row, 0.8)[0], policy(row, 0.8, top_p=0.5, top_k=40)[0]
    assert (cut_T > whole_T).all()  # the same logits over less mass
    assert torch.equal(policy(row, 0.8, 1.0, 0)[0], whole_T)


def test_a_temperature_divides_the_logits_before_the_softmax():
    row, policy = one_row(), tiny.policy()
    logprobs_T, entropy_T = policy(row, 1e4)
    assert logprobs_T.tolist() == pytest.approx([-5.79909] * 22, abs=2e-3)  # -ln 330: nearly uniform
    assert entropy_T.tolist() == pytest.approx([5.79909] * 22, abs=1e-3)


def test_plain_heads_pass(monkeypatch):
    for family in tiny.FAMILIES:
        assert check_head(tiny.policy(family), one_row()) < 1e-5


def scaled_models():
    from transformers import CohereConfig, Gemma2Config, GraniteConfig

    shape = {
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "vocab_size": tiny.VOCABULARY, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    return {
        "cohere": CohereConfig(**shape, logit_scale=0.25),
        "granite": GraniteConfig(**shape, logits_scaling=1.1),
        "gemma2": Gemma2Config(
            **shape, head_dim=16, final_logit_softcapping=30.0, attn_logit_softcapping=None, sliding_window=64
        ),
    }


@pytest.mark.parametrize("name", ["cohere", "granite", "gemma2"])
def test_a_head_that_scales_or_caps_logits_is_refused(name, tmp_path):
    model = tiny.make(scaled_models()[name])
    for weight in model.parameters():  # a real model's logits at start may be this small
        weight.data.mul_(0.5 if weight.ndim == 2 else 1.0)
    model.save_pretrained(tmp_path)
    policy = Policy(load_model(str(tmp_path), dtype=torch.float32))
    with pytest.raises(ValueError, match=r"scales or caps logits"):
        check_head(policy, one_row())


def test_weights_are_named_as_saved_tied_ones_once_and_cast():
    from safetensors import safe_open

    for family in tiny.FAMILIES:
        policy = tiny.policy(family)
        with safe_open(f"{tiny.path(family)}/model.safetensors", "pt") as file:
            saved = set(file.keys())
        sent = dict(policy.weights(torch.bfloat16))
        assert set(sent) == saved
        assert {w.dtype for w in sent.values()} == {torch.bfloat16}
        assert not any(w.requires_grad for w in sent.values())
    assert "lm_head.weight" not in dict(tiny.policy("qwen3").weights())


def test_dropout_is_off_even_where_the_config_asks_for_it(tmp_path):
    tiny.make(tiny._config("qwen3"), attention_dropout=0.5).save_pretrained(tmp_path)
    policy = Policy(load_model(str(tmp_path), dtype=torch.float32)).train()
    first, second = (policy(one_row(), 1.0)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_model_or_tokenizer_that_does_not_load_gets_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path is empty"):
        resolve("")
    with pytest.raises(ValueError, match="no such folder, and not a hub name"):
        resolve("./nowhere")
    assert resolve("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    for load in (load_tokenizer, lambda p: load_model(p, dtype=torch.float32)):
        with pytest.raises(ValueError, match="does not load") as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_every_id_that_ends_a_completion():
    model = tiny.policy().model
    assert stop_ids(model, tiny.tokenizer()) == tuple(tiny.STOPS)
    model.generation_config.eos_token_id = 7
    assert stop_ids(model, tiny.tokenizer()) == (0, 7)
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tiny.tokenizer()) == (0,)


def test_a_saved_models_config_says_what_its_weights_are(tmp_path):
    model = load_model(tiny.path("qwen3"), dtype=torch.float32)
    state = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    save_model(model, state, torch.bfloat16, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert model.config.dtype == model.dtype == torch.float32
