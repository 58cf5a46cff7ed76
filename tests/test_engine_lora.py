"""LoRA inside vLLM, on a real engine: it computes with the learner's adapter, proves it, and no sample stays on an old one.

One engine serves the module (a start takes many seconds). The recipe has its own, in a worker's process, and comes before it: a run's end
takes the process groups of this process with it.
"""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from rl import adapters, engine_lora, transfer
from rl.config import Lora
from rl.policy import Policy, load_model
from rl.records import Group, Sampling
from rl.rollout import rollout
from rl.sampler import fingerprint
from rl.sync import SyncError, adapter_alone, expected, prove, sync
from tests import sampler_laws as laws
from tests import tiny
from tests.test_adapters import adapted, row
from tests.tiny_run import timeless, write_recipe

ODD = Lora(rank=3, alpha=5.0)  # neither a rank of vLLM's nor a scale that floats hold exactly


def moved(seed: int, lora: Lora = ODD) -> Policy:
    """A policy whose adapter is away from zero, another for each seed."""
    policy = adapted(lora=lora)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.1, generator=draw)
    return policy


def fresh(lora: Lora = ODD) -> Policy:
    """As a run begins: B is zero."""
    model = load_model(tiny.path(), dtype=torch.float32)
    adapters.attach(model, lora, tiny.path())
    return Policy(model)


def test_peft_reads_what_the_engine_is_given(tmp_path):
    from peft import PeftModel

    policy = moved(1)
    engine_lora.write(tmp_path, adapters.scaled(policy.model, policy.adapter(), torch.float32))
    theirs = PeftModel.from_pretrained(load_model(tiny.path(), dtype=torch.float32), str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(Policy(theirs.get_base_model())(row(), 1.0)[0], policy(row(), 1.0)[0], rtol=0, atol=2e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)  # the scale is in B


def test_options_and_what_vllm_is_not_given():
    model = fresh(Lora(rank=9, targets=("q_proj", "down_proj"))).model
    assert engine_lora.options(model) == {
        "enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": 16, "lora_target_modules": ["down_proj", "q_proj"],
    }  # fmt: skip
    assert engine_lora.unsuitable(model, quantised=False) is None
    assert "4 bits" in str(engine_lora.unsuitable(model, quantised=True))
    model.config.num_experts = 4
    assert "experts" in str(engine_lora.unsuitable(model, quantised=False))
    assert "its rank is 600" in str(engine_lora.unsuitable(fresh(Lora(rank=600)).model, quantised=False))
    strange = fresh().model
    strange.model.layers[0].mlp.gate = deepcopy(strange.model.layers[0].mlp.up_proj)
    assert "an adapter of gate" in str(engine_lora.unsuitable(strange, quantised=False))


def test_an_adapter_whose_b_is_zero_is_the_base():
    policy = fresh()
    assert engine_lora.adapter_prints(policy.adapter()) == {}
    one = dict(policy.adapter())
    name = next(n for n in one if "lora_B" in n)
    one[name][0, 0] = 1.0
    assert set(engine_lora.adapter_prints(one.items())) == {name, name.replace("lora_B", "lora_A")}


def test_a_recipe_with_one_worker_sends_the_adapter_alone(tmp_path, monkeypatch, capsys):
    pytest.importorskip("vllm", reason="vLLM is not installed: `make setup` installs it")
    from recipes import run as door

    model, sent, pack = tiny_folder(tmp_path), [], transfer.pack

    def spied(weights, window):
        for index, size in pack(weights, window):
            sent.extend(index)
            yield index, size

    monkeypatch.setattr(transfer, "pack", spied)
    sets = [
        "rollout.sampler=vllm", "rollout.placement=processes", "rollout.workers=1", "rollout.max_staleness=1", "run.steps=2",
        "evaluate.problems=1", "model.lora.rank=4", "algorithm.reference_every=0", f"run.out={tmp_path / 'run'}",
    ]  # fmt: skip
    assert door.main([str(write_recipe(tmp_path, model)), *sets]) == 0
    assert sent
    assert all(".lora_" in name for name, *_ in sent)
    assert "merged weights" not in capsys.readouterr().out
    metrics = timeless(tmp_path / "run")
    assert len(metrics) == 2
    assert max(m["canary"] for m in metrics) <= laws.BOUND


def tiny_folder(folder: Path) -> str:
    from tests.tiny_run import tiny_model

    return tiny_model(folder / "model")


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("vllm", reason="vLLM is not installed: `make setup` installs it")
    if torch.cuda.is_available():
        pytest.skip("the bounds are those of fp32 on a CPU")
    from rl.sampler_vllm import VllmSampler

    made = VllmSampler(
        tiny.path(), tiny.tokenizer(), device=laws.CPU, max_model_len=384, engine=engine_lora.options(fresh().model)
    )
    first_samples_begin_without_an_adapter(made)  # only a new engine has none
    yield made
    made.close()


def switched(engine, policies: dict[int, Policy], new: int) -> list[Group]:
    """Groups in whose middle the policy of version `new` arrived, with its proof."""
    state = {"steps": 0}

    def between() -> None:
        state["steps"] += 1
        if state["steps"] == 12:
            assert sync(policies[new], engine, new, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND

    engine.between = between
    try:
        made = engine.generate(laws.ids(), Sampling(n=4, max_tokens=60, seed=1))
    finally:
        del engine.between
    return [Group(p, tuple(c)) for p, c in zip(laws.prompts(), made, strict=True)]


def worst(groups: list[Group], policies: dict[int, Policy]) -> float:
    from tests.test_rl_workers_vllm import worst

    return worst(groups, policies)


def first_samples_begin_without_an_adapter(engine) -> None:
    policies = {0: fresh(), 1: moved(1)}
    prove(policies[0], engine, 0, laws.prompts(), laws.BOUND, laws.CPU)  # nothing was sent yet, and nothing is missing
    made = switched(engine, policies, 1)
    flat = [c for g in made for c in g.completions]
    assert {c.version for c in flat} == {0, 1}  # those under way began again
    assert not any(c.switches for c in flat)
    assert worst(made, policies) <= laws.BOUND


def test_log_probs_are_the_learners_after_each_update(engine, record_property):
    before = set(Path("/dev/shm").glob("grpo-adapter-*"))
    found = []
    for version, policy in enumerate([moved(2), moved(3), fresh(), moved(2)], start=2):
        assert adapter_alone(policy, engine)
        found.append(sync(policy, engine, version, laws.prompts(), laws.BOUND, laws.CPU))
        groups = rollout(engine, laws.prompts(), Sampling(n=4, max_tokens=16, seed=version, temperature=0.7))
        learner = type("", (), {"policy": policy})
        found.append(tiny.parity(learner, groups, 0.7))
    record_property("largest_difference", max(found))
    assert max(found) <= laws.BOUND
    assert engine.llm.llm_engine.list_loras() == {engine_lora.SLOT}  # the old ones are gone
    assert set(Path("/dev/shm").glob("grpo-adapter-*")) <= before


def test_the_fingerprint_is_of_what_the_engine_computes_with(engine):
    policy = moved(4)
    engine.load(adapters.scaled(policy.model, policy.adapter(), torch.float32), 4)
    ours, theirs = expected(policy, engine), engine.fingerprint()
    lora = {n: v for n, v in theirs.items() if "lora_" in n}
    assert lora == fingerprint(
        adapters.scaled(policy.model, policy.adapter(), torch.float32)
    )  # padded and fused there, the same
    assert sum(ours.values()) % (1 << 64) == sum(theirs.values()) % (1 << 64)
    assert any("qkv_proj.weight" in name for name in theirs)  # the base is looked at too


def test_a_stale_adapter_stops_the_run_and_is_named(engine, monkeypatch):
    sync(moved(5), engine, 5, laws.prompts(), laws.BOUND, laws.CPU)
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm.llm_engine, "add_lora", lambda request: True)  # it keeps the old one
        with pytest.raises(SyncError, match=r"weights 6 did not arrive whole in the sampler: .*self_attn.q_proj.lora_A.weight"):
            sync(moved(6), engine, 6, laws.prompts(), laws.BOUND, laws.CPU)
    assert sync(moved(6), engine, 6, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND


def test_a_layer_left_out_is_named(engine, monkeypatch):
    real, layer = engine.load, "model.layers.1.mlp.up_proj"
    monkeypatch.setattr(engine, "load", lambda weights, v: real([(n, w) for n, w in weights if layer not in n], v))
    with pytest.raises(SyncError) as caught:
        sync(moved(7), engine, 7, laws.prompts(), laws.BOUND, laws.CPU)
    assert str(caught.value) == f"weights 7 did not arrive whole in the sampler: base_model.model.{layer}"


def test_another_base_below_the_adapter_is_named(engine):
    policy = moved(8)
    with torch.no_grad():
        policy.model.model.layers[0].self_attn.o_proj.base_layer.weight[3, 5] += 1e-3
    with pytest.raises(SyncError, match=r"in the sampler: model.layers.0.self_attn.o_proj.weight$"):
        sync(policy, engine, 8, laws.prompts(), laws.BOUND, laws.CPU)


def test_samples_without_the_adapter_show_in_the_canaries(engine, monkeypatch):
    """It is there, bit for bit, but no sample asks for it."""
    enqueue = engine.llm.enqueue
    monkeypatch.setattr(engine.llm, "enqueue", lambda *a, lora_request, **k: enqueue(*a, **k))
    with pytest.raises(SyncError, match="log-probs of the sampler differ from the learner's"):
        sync(moved(9), engine, 9, laws.prompts(), 1e-4, laws.CPU)


@pytest.mark.parametrize("restart", [False, True])
def test_samples_under_way_do_not_stay_on_the_old_adapter(engine, monkeypatch, restart):
    monkeypatch.setattr(engine, "restart", restart)
    policies = {10: moved(10), 11: moved(11)}
    sync(policies[10], engine, 10, laws.prompts(), laws.BOUND, laws.CPU)
    made = switched(engine, policies, 11)
    flat = [c for g in made for c in g.completions]
    assert worst(made, policies) <= laws.BOUND
    assert worst(made, dict.fromkeys(policies, policies[10])) > 1e-2  # the bound above can tell the adapters apart
    if restart:
        assert {c.version for c in flat} == {10, 11}
        assert not any(c.switches for c in flat)
    else:
        assert {c.version for c in flat} == {10}
        assert {c.switches for c in flat if c.switches} == {((12, 11),)}
