"""Routing replay and balance on a tiny DeepSeek-V3: packed rows, gradients, the learner, both ways of sampling by transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl import adapters, frames
from rl.batch import Counts, pack
from rl.config import Lora
from rl.learn import Learner, accelerator
from rl.policy import Policy, load_model
from rl.records import Completion, Group, Row, Sampling
from rl.rollout import dump, load, rollout
from rl.routing import Router, Routing, biases, carried, is_router, mixture
from rl.sampler import TransformersSampler, fingerprint
from rl.sync import SyncError, expected, prove, sync
from tests import tiny

CPU = torch.device("cpu")
FAMILY = "deepseek"
GROUPS = tiny.groups([(7, [5, 3]), (4, [6, 2, 9])])
PROMPTS = [g.prompt for g in GROUPS]


def rows(groups: list[Group], row_tokens: int = 64) -> tuple[Row, ...]:
    zeros = [[1.0] * len(g.completions) for g in groups]
    return pack(groups, zeros, loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=row_tokens).rows


def policy():
    made = tiny.policy(FAMILY)
    made.routing = Routing.of(made.model)
    return made


def told(groups: list[Group], seed: int = 0) -> list[Group]:
    """The groups with random experts: two different ones of eight, in two layers."""
    draw = np.random.default_rng(seed)

    def experts(g: Group, c: Completion) -> np.ndarray:
        prompt = np.random.default_rng(len(g.prompt.ids)).permuted(np.tile(np.arange(8), (len(g.prompt.ids), 2, 1)), axis=-1)
        answer = draw.permuted(np.tile(np.arange(8), (c.tokens - 1, 2, 1)), axis=-1)
        return np.concatenate([prompt, answer])[..., :2].astype(np.int16)

    return [replace(g, completions=tuple(replace(c, experts=experts(g, c)) for c in g.completions)) for g in groups]


@pytest.fixture(scope="module")
def sampler() -> TransformersSampler:
    return TransformersSampler(tiny.path(FAMILY), tiny.tokenizer(), device=CPU)


def test_latent_attention_in_packed_rows_equals_the_padded_pass() -> None:
    packed, plain = tiny.policy(FAMILY), tiny.plain(FAMILY)
    mine, theirs = [], []
    for group in GROUPS:
        (row,) = rows([group])
        mine.append(packed(row, 1.0)[0])
        theirs.append(torch.cat(tiny.padded(plain, group)[0]))
    ours_T, theirs_T = torch.cat(mine), torch.cat(theirs)
    assert (ours_T - theirs_T).abs().max() < 1e-5
    ours_T.sum().backward()
    theirs_T.sum().backward()
    assert tiny.distance(tiny.gradients(packed.model), tiny.gradients(plain)) < 1e-5


def test_own_experts_replayed_change_nothing() -> None:
    of = policy()
    for row in rows(GROUPS):
        free_T, _ = of(row, 1.0)
        chosen = of.routing.chosen().to(torch.int16)
        forced_T, _ = of(replace(row, experts_LMK=chosen), 1.0)
        assert (free_T - forced_T).abs().max() < 1e-6
        assert of.routing.agreement(replace(row, experts_LMK=chosen)) == 2 * len(row.targets_T)


def test_replayed_experts_are_those_that_are_used_and_learn() -> None:
    of = policy()
    (row,) = rows(told(GROUPS))
    free_T, _ = of(replace(row, experts_LMK=None), 1.0)
    own = of.routing.chosen()
    forced_T, _ = of(row, 1.0)
    used, wanted = of.routing.chosen(), row.experts_LMK.long()
    last = {span.stop - 1 for span in row.spans}
    for position in range(len(row.ids_L)):
        if position in last:  # never went through the sampler: the router's own choice
            assert (wanted[position] == -1).all()
            assert (used[position] >= 0).all()
        else:
            assert used[position].equal(wanted[position])
    assert (free_T - forced_T).abs().max() > 0.1
    assert not own.equal(used)
    forced_T.sum().backward()
    assert all(r.module.weight.grad.abs().max() > 1e-4 for r in of.routing.routers)  # the router learns through its weights


def test_weights_of_replayed_experts_by_hand() -> None:
    router: Router = policy().routing.routers[0]
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    router.forced_LK = torch.tensor([[5, 0], [-1, -1], [7, 2]])
    logits, weights, chosen = router.module(hidden)
    scores = (hidden @ router.module.weight.T).sigmoid()
    assert torch.allclose(logits.sigmoid(), scores, atol=1e-6)
    for i, pair in ((0, [5, 0]), (2, [7, 2])):
        assert chosen[i].tolist() == pair
        s = scores[i, pair]
        assert torch.allclose(weights[i], 1.0 * s / s.sum() * router.module.routed_scaling_factor, atol=1e-6)
    biased = scores[1] + router.module.e_score_correction_bias
    pairs = biased.view(4, 2).sum(1).topk(2).indices  # 2 of 4 groups of two experts
    best = sorted(int(e) for g in pairs for e in (2 * g, 2 * g + 1))
    assert set(chosen[1].tolist()) == {best[j] for j in biased[best].topk(2).indices.tolist()}


@pytest.mark.parametrize("row_tokens", [64, 14])
def test_load_does_not_depend_on_packing(row_tokens: int) -> None:
    of, total = policy(), torch.zeros(2, 8, dtype=torch.float64)
    for row in rows(told(GROUPS), row_tokens):
        of(row, 1.0)
        total += of.routing.load(row)
    # Position by position: a token is predicted at its source, whose experts count.
    by_hand = torch.zeros(2, 8, dtype=torch.float64)
    for group in told(GROUPS):
        for c in group.completions:
            for step in c.experts[len(group.prompt.ids) - 1 :]:
                for layer in range(2):
                    by_hand[layer, step[layer].astype(int)] += 1
    assert total.equal(by_hand)


def test_masked_samples_are_no_load() -> None:
    groups, of = told(GROUPS[:1]), policy()
    (row,) = pack(groups, [[None, 1.0]], loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=64).rows
    of(row, 1.0)
    assert of.routing.load(row).sum(1).tolist() == [2 * groups[0].completions[1].tokens] * 2  # of two layers


def test_the_sampler_tells_where_its_tokens_went(sampler: TransformersSampler) -> None:
    of = policy()
    sync(of, sampler, 0, PROMPTS, 1e-4, CPU)
    made = rollout(sampler, PROMPTS, Sampling(n=6, max_tokens=12, seed=1, experts=True))
    for group in made:
        for c in group.completions:
            assert c.experts.shape == (len(group.prompt.ids) + c.tokens - 1, 2, 2)
            assert not c.experts.flags.writeable
    for row in rows(made, 512):
        of(replace(row, experts_LMK=None), 1.0)
        told_L = row.experts_LMK[:, 0, 0] >= 0
        assert int((~told_L).sum()) == sum(len(g.completions) for g in made)
        ours, theirs = of.routing.chosen()[told_L].sort(-1).values, row.experts_LMK[told_L].long().sort(-1).values
        assert (ours == theirs).float().mean() > 0.999  # same weights, same precision
    assert rollout(sampler, PROMPTS, Sampling(n=1, max_tokens=4))[0].completions[0].experts is None


def test_replay_halves_the_mismatch_with_a_coarser_sampler(tmp_path) -> None:
    """bf16 sampler against fp32 learner, five layers of 16 experts: some 6 % of the choices flip, and each moves what follows."""
    config = tiny._config(FAMILY)
    config.num_hidden_layers = 6
    folder = tmp_path / "deeper"
    tiny.make(config, n_routed_experts=16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    coarse = TransformersSampler(str(folder), tiny.tokenizer(), device=CPU)
    coarse.model.to(torch.bfloat16)
    made = rollout(coarse, PROMPTS, Sampling(n=32, max_tokens=16, seed=1, experts=True))
    settings = tiny.config()
    learner = Learner(settings, Policy(load_model(str(folder), dtype=torch.float32)), None, accelerator(settings, tmp_path))
    numbers = learner.step(made, [[1.0, -1.0] * 16] * 2, 16)
    assert numbers["routing_agreement"] < 0.97
    assert numbers["mismatch_replayed"] <= 0.5 * numbers["mismatch_own_experts"]  # 0.2 of it


def test_a_step_moves_biases_by_the_rate_and_sync_carries_them(sampler: TransformersSampler) -> None:
    learner = tiny.learner(tiny.config(learn={"lr": 1e-3, "balance_rate": 0.01}), FAMILY)
    of = learner.policy
    before = {n: b.clone() for n, b in biases(of.model).items()}
    sync(of, sampler, 0, PROMPTS, 1e-4, CPU)
    made = rollout(sampler, PROMPTS, Sampling(n=4, max_tokens=10, seed=2, experts=True))
    numbers = learner.step(made, [[1.0, -1.0, 0.5, -0.5]] * 2, 10)
    assert numbers["load_violation"] > 0
    for name, bias in biases(of.model).items():
        moved = (bias - before[name]).abs()
        assert bool(((moved - 0.01).abs() < 1e-6).logical_or(moved < 1e-6).all())
        assert float(moved.sum()) > 0
    sync(of, sampler, 1, PROMPTS, 1e-4, CPU)
    assert sampler.fingerprint() == fingerprint(carried(of.model).items())
    next(iter(biases(sampler.model).values())).add_(1e-3)
    with pytest.raises(SyncError, match="e_score_correction_bias"):
        prove(of, sampler, 1, PROMPTS, 1e-4, CPU)
    next(iter(biases(sampler.model).values())).sub_(1e-3)


def test_balance_evens_the_load_over_updates() -> None:
    learner = tiny.learner(tiny.config(learn={"lr": 1e-9, "balance_rate": 0.04}, model={"routing_replay": False}), FAMILY)
    spread = [learner.step(GROUPS, [[1.0, -1.0], [1.0, 0.0, -1.0]], 16)["load_violation"] for _ in range(25)]
    assert sum(spread[-10:]) / 10 < 0.75 * spread[0]


def test_an_adapter_on_a_mixture_trains_its_attention(sampler: TransformersSampler, tmp_path) -> None:
    settings = tiny.config(model={"lora": Lora(rank=4)}, learn={"lr": 1e-2, "balance_rate": 0.01}, algorithm={"kl": 0.01})
    model = load_model(tiny.path(FAMILY), dtype=torch.float32)
    adapters.attach(model, settings.model.lora, tiny.path(FAMILY))
    assert {n.split(".lora_")[0].rpartition(".")[2] for n, _ in model.named_parameters() if "lora_" in n} == {
        "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
    }  # fmt: skip
    learner = Learner(settings, Policy(model), None, accelerator(settings, tmp_path))
    before = {name: bias.clone() for name, bias in biases(model).items()}
    sync(learner.policy, sampler, 0, PROMPTS, 1e-4, CPU)
    for update in (1, 2):
        made = rollout(sampler, PROMPTS, Sampling(n=4, max_tokens=10, seed=update, experts=True))
        numbers = learner.step(made, [[1.0, -1.0, 0.5, -0.5]] * 2, 10)
        sync(learner.policy, sampler, update, PROMPTS, 1e-4, CPU)
    assert numbers["kl"] > 0
    # They are the base's: moved, they would be missing in final/, and be in the reference.
    assert before
    assert all(torch.equal(bias, before[name]) for name, bias in biases(model).items())
    with pytest.raises(ValueError, match="mixture of experts"):
        adapters.attach(load_model(tiny.path(FAMILY), dtype=torch.float32), Lora(rank=4, targets=("up_proj",)), "")


def test_replay_off_forgets_the_experts() -> None:
    learner = tiny.learner(tiny.config(model={"routing_replay": False}), FAMILY)
    numbers = learner.step(told(GROUPS), [[1.0, -1.0], [1.0, 0.0, -1.0]], 16)
    assert "mismatch_replayed" not in numbers
    assert "routing_agreement" not in numbers


def test_a_dense_model_knows_nothing_of_it() -> None:
    learner = tiny.learner(tiny.config())
    assert learner.policy.routing is None
    assert learner.balance is None
    assert not any("load" in n or "routing" in n for n in learner.step(tiny.groups([(3, [2, 4])]), [[1.0, -1.0]], 8))
    assert list(carried(learner.policy.model)) == [n for n, _ in learner.policy.model.named_parameters()]
    assert not mixture(learner.policy.model.config)
    assert mixture(tiny.policy(FAMILY).model.config)


def test_gradient_checkpointing_replays_again() -> None:
    (row,) = rows(told(GROUPS))
    found = []
    for checkpointing in (False, True):
        of = policy()
        if checkpointing:
            of.checkpoint_layers(1.0)
        of.train()
        of(row, 1.0)[0].sum().backward()
        found.append(tiny.gradients(of.model))
    assert tiny.distance(*found) < 1e-6


def test_compiled_layers_replay(compiler: None) -> None:
    (row,) = rows(told(GROUPS))
    plain, compiled = policy(), policy()
    compiled.layers()[-1].mlp.compile(dynamic=True, backend="eager")  # what is in a layer with experts is in a compiled layer
    for each in (row, replace(row, experts_LMK=None)):
        assert (plain(each, 1.0)[0] - compiled(each, 1.0)[0]).abs().max() < 1e-5
    assert compiled.routing.chosen().equal(plain.routing.chosen())


def test_experts_of_another_model_are_refused() -> None:
    learner = tiny.learner(tiny.config(), FAMILY)
    wrong = [replace(g, completions=tuple(replace(c, experts=c.experts + 6) for c in g.completions)) for g in told(GROUPS)]
    with pytest.raises(ValueError, match="2 of 8"):
        learner.step(wrong, [[1.0, -1.0], [1.0, 0.0, -1.0]], 16)
    short = [replace(g, completions=tuple(replace(c, experts=c.experts[1:]) for c in g.completions)) for g in told(GROUPS)]
    with pytest.raises(ValueError, match="do not belong"):
        learner.step(short, [[1.0, -1.0], [1.0, 0.0, -1.0]], 16)


def test_a_router_of_another_formula_is_refused() -> None:
    class OddRouter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 8))
            self.top_k, self.num_experts = 2, 4

        def forward(self, hidden):
            logits = hidden @ self.weight.T
            top = logits.topk(2)
            return logits, top.values.square(), top.indices

    assert is_router(OddRouter())
    with pytest.raises(ValueError, match="routing_replay=false"):
        Routing.of(torch.nn.Sequential(OddRouter()))


def test_experts_go_over_the_wire_and_into_a_file(tmp_path) -> None:
    made = told(GROUPS)
    mixed = [made[0].completions[0], replace(made[1].completions[0], experts=None), made[1].completions[2]]
    back = frames.decode(*frames.encode(mixed))
    assert back[1].experts is None
    for i in (0, 2):
        assert back[i].experts.dtype == np.int16
        assert np.array_equal(back[i].experts, mixed[i].experts)
    header, payload = frames.encode(mixed)
    for broken in (payload[:-2], payload + b"\0\0"):
        with pytest.raises(frames.Broken):
            frames.decode(header, broken)
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(line + "\n" for line in dump(made, 1)))
    ((_, read),) = load(path)
    for old, new in zip(made, read, strict=True):
        assert all(np.array_equal(a.experts, b.experts) for a, b in zip(old.completions, new.completions, strict=True))


def test_expected_holds_the_biases_once() -> None:
    learner = tiny.learner(tiny.config(), FAMILY)
    sampler = type("Engine", (), {"dtype": torch.bfloat16})()
    names = expected(learner.policy, sampler)
    assert sum("e_score_correction_bias" in n for n in names) == 2
    exact = fingerprint(biases(learner.policy.model).items())  # in fp32, whatever the engine computes in
    assert {n: names[n] for n in exact} == exact
