"""LoRA: a packed row through adapters equals the merged model, gradients reach the adapter alone, the reference is the base."""

import json
from dataclasses import replace

import pytest
import torch

from rl import adapters
from rl.batch import Counts, pack
from rl.config import Lora
from rl.policy import Policy, load_model
from tests import tiny
from tests.tiny_run import timeless, write_recipe

LORA = Lora(rank=4, alpha=8.0)
SHAPES = [(5, [9, 7]), (3, [6, 4])]


def row():
    groups = tiny.groups(SHAPES)
    return pack(groups, [[1.0, -1.0]] * 2, loss="dapo", counts=Counts(4, 26), max_tokens=9, row_tokens=4096).rows[0]


def adapted(family="qwen3", lora=LORA, dtype=torch.float32):
    """A policy whose adapters are away from zero."""
    model = load_model(tiny.path(family), dtype=dtype)
    adapters.attach(model, lora, tiny.path(family))
    draw = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1, generator=draw)
    return Policy(model)


def loaded(weights, family):
    """The plain model under these weights."""
    policy = tiny.policy(family)
    own = dict(policy.model.named_parameters())
    assert weights.keys() == own.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
    return policy


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probs_are_those_of_the_merged_model(family):
    policy = adapted(family)
    before = {n: p.clone() for n, p in policy.named_parameters()}
    logprobs_T, entropy_T = policy(row(), 0.7)
    merged_T, merged_entropy_T = loaded(dict(policy.weights()), family)(row(), 0.7)
    torch.testing.assert_close(logprobs_T, merged_T, rtol=0, atol=2e-5)
    torch.testing.assert_close(entropy_T, merged_entropy_T, rtol=0, atol=2e-5)
    assert (logprobs_T - tiny.policy(family)(row(), 0.7)[0]).abs().max() > 0.1  # the adapter does something
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters())  # merging left the model as it was


def test_gradients_reach_every_adapter_weight_and_nothing_else():
    policy = adapted()
    policy(row(), 1.0)[0].sum().backward()
    for name, p in policy.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == ("lora_" in name), name
    assert sum("lora_" in n for n, _ in policy.named_parameters()) == 2 * 2 * 7  # A and B, layers, projections


def test_switched_off_it_is_the_base_and_then_the_adapter_again():
    policy, base = adapted(), tiny.policy()
    on_T = policy(row(), 1.0)[0]
    with torch.no_grad(), adapters.disabled(policy.model):
        torch.testing.assert_close(policy(row(), 1.0)[0], base(row(), 1.0)[0], rtol=0, atol=0)
    assert torch.equal(policy(row(), 1.0)[0], on_T)
    with pytest.raises(RuntimeError), adapters.disabled(policy.model):
        raise RuntimeError
    assert torch.equal(policy(row(), 1.0)[0], on_T)


def test_the_adapter_is_fp32_over_a_bf16_base():
    policy = adapted(dtype=torch.bfloat16)
    kinds = {(p.dtype, p.requires_grad) for p in policy.parameters()}
    assert kinds == {(torch.float32, True), (torch.bfloat16, False)}
    assert {w.dtype for _, w in policy.weights(torch.bfloat16)} == {torch.bfloat16}


def test_merged_in_fp32_and_rounded_once():
    policy = adapted(dtype=torch.bfloat16)
    name = "model.layers.0.mlp.up_proj"
    layer = policy.model.get_submodule(name)
    exact = (
        layer.base_layer.weight.double()
        + 2.0 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    )
    torch.testing.assert_close(dict(policy.weights())[name + ".weight"].double(), exact, rtol=0, atol=1e-6)


def test_peft_loads_what_is_saved(tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    policy = adapted()
    adapters.save(policy.model, tmp_path, None)
    theirs = PeftModel.from_pretrained(load_model(tiny.path(), dtype=torch.float32), str(tmp_path))
    inner = Policy(theirs.get_base_model())
    torch.testing.assert_close(inner(row(), 1.0)[0], policy(row(), 1.0)[0], rtol=0, atol=1e-6)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == dict(policy.adapter()).keys()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, tiny.path())


def test_a_seed_draws_the_adapter_and_disturbs_no_other_draw():
    made = []
    for other in (1, 2):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        model = load_model(tiny.path(), dtype=torch.float32)
        torch.set_rng_state(before)
        adapters.attach(model, LORA, "", seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(dict(adapters.adapter(model)))
    assert all(torch.equal(a, made[1][n]) for n, a in made[0].items())


def test_targets_are_checked():
    model = load_model(tiny.path(), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"'query' is no linear layer below the head; .*q_proj"):
        adapters.attach(model, replace(LORA, targets=("q_proj", "query")), "")
    with pytest.raises(ValueError, match="'lm_head' is no linear layer below the head"):
        adapters.attach(tiny.policy("qwen2").model, replace(LORA, targets=("lm_head",)), "")
    few = adapted(lora=replace(LORA, targets=("q_proj", "v_proj")))
    assert sum("lora_" in n for n, _ in few.named_parameters()) == 2 * 2 * 2


def test_qlora_is_refused_where_it_cannot_work(monkeypatch):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        adapters.four_bits(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="bitsandbytes, which is not installed"):
        adapters.four_bits(torch.device("cuda"))


def test_the_learner_trains_the_adapter_against_the_base():
    """Two steps: KL is 0 at the base and then is that of the merged model against the base; frozen weights stay bit for bit."""
    from pathlib import Path

    from rl.learn import Learner, accelerator

    config = tiny.config(learn={"lr": 1e-2}, algorithm={"kl": 0.05}, model={"lora": LORA})
    model = load_model(tiny.path(), dtype=torch.float32)
    adapters.attach(model, LORA, tiny.path())
    learner = Learner(config, Policy(model), None, accelerator(config, Path(tiny.path())))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    groups, advantages = tiny.groups(SHAPES), [[1.0, -1.0], [0.5, -0.5]]
    assert learner.step(groups, advantages, 9)["kl"] == 0.0
    with torch.no_grad():
        mine_T, base_T = learner.policy(row(), 1.0)[0], tiny.policy()(row(), 1.0)[0]
    kl = float(((base_T - mine_T).exp() - (base_T - mine_T) - 1).mean())
    assert kl > 1e-4
    assert learner.step(groups, advantages, 9)["kl"] == pytest.approx(kl, rel=1e-3)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_a_run_with_lora_from_end_to_end(tmp_path, tiny, capsys):
    """Sampler synced with merged weights (fingerprint and canaries), checkpoints of the adapter alone, exact resume, final/ for peft."""
    from peft import AutoPeftModelForCausalLM
    from safetensors import safe_open

    from recipes import run as door

    recipe = write_recipe(tmp_path, tiny)
    lora = [
        "model.lora={rank=4, alpha=8}",
        "algorithm.reference_every=0",
        "run.steps=4",
        "run.save_every=2",
        "learn.schedule=constant",
    ]
    assert door.main([str(recipe), *lora, f"run.out={tmp_path / 'whole'}"]) == 0
    lines = timeless(tmp_path / "whole")
    assert [m["step"] for m in lines] == [1, 2, 3, 4]
    assert max(m["canary"] for m in lines) < 1e-4
    assert lines[0]["kl"] < lines[-1]["kl"]
    with safe_open(tmp_path / "whole/checkpoints/step-000004/model.safetensors", "pt") as file:
        assert file.keys()
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118 (not a dict)
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "whole/final"))
    trained = dict(model.named_parameters())
    assert any(p.abs().sum() > 0 for n, p in trained.items() if "lora_B" in n)
    assert (tmp_path / "whole/final/tokenizer.json").exists()
    part = [str(recipe), *lora, f"run.out={tmp_path / 'part'}"]
    assert door.main([*part, "run.steps=2"]) == 0
    assert door.main([*part, "--resume"]) == 0
    assert timeless(tmp_path / "part") == lines
    capsys.readouterr()


def test_a_reference_that_would_be_replaced_is_refused(tmp_path, tiny, capsys):
    from tests.tiny_run import refused

    recipe = write_recipe(tmp_path, tiny)
    assert "cannot be replaced" in refused(capsys, [recipe, "model.lora.rank=4"])
    assert "say what is trained instead" in refused(capsys, [recipe, "model.qlora=true"])
