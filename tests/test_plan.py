"""The planner against what was measured on an H200, against itself, and as the door of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from recipes import plan, plan_memory, plan_remedy, plan_time
from recipes import run as door
from recipes.plan_memory import GIB, Setup
from recipes.plan_trace import Kind, Meter, Work, _once, cost, shrunk
from rl import config as configs
from rl.config import Config
from tests.tiny_run import write_recipe

ROOT = Path(__file__).resolve().parent.parent
H200 = 139.8 * GIB
# One H200, Qwen2.5-1.5B's shape, bf16 weights and gradients, no optimiser, torch 2.11; 16 prompts of 256 tokens, 8 completions each.
# (row budget, the prompt once a group, checkpointed, compiled): peak GiB, tokens/s with the prompt counted 8 times
MEASURED = {
    (32768, False, False, False): (108.8, 40_075),
    (32768, True, False, False): (109.2, 52_532),
    (16384, True, False, False): (55.2, 50_811),
    (32768, True, True, False): (18.6, 43_439),
    (32768, True, False, True): (84.0, 64_803),
}
PROMPTS, GROUP, PROMPT = 16, 8, 256


def config(*overrides: str, recipe: str = "zero_gsm8k") -> Config:
    return configs.load(ROOT / f"recipes/{recipe}.toml", ["rollout.max_tokens=512", *overrides])


def setup(shape: str, *overrides: str, **changes: Any) -> Setup:
    return Setup(config(*overrides), plan.shape(shape), H200, **changes)


def lengths() -> list[int]:
    """The completions of that measurement: log-normal, seed 1."""
    draw = torch.randn(PROMPTS * GROUP, generator=torch.Generator().manual_seed(1))
    return (draw * 0.6 + math.log(420)).exp().clamp(32, 1024).long().tolist()


def measured_rows(budget: int, shared: bool) -> list[Work]:
    """As that measurement packed them: in order, a new row when the next group (or sample) does not fit."""
    groups = [lengths()[i : i + GROUP] for i in range(0, PROMPTS * GROUP, GROUP)]
    units = groups if shared else [[n] for group in groups for n in group]
    rows: list[list[list[int]]] = [[]]
    for unit in units:
        if rows[-1] and sum(sum(u) + PROMPT for u in rows[-1]) + sum(unit) + PROMPT > budget:
            rows.append([])
        rows[-1].append(unit)
    works = []
    for row in rows:
        positions = sum(sum(u) + PROMPT for u in row)
        keys = sum(PROMPT + sum(PROMPT + n for n in u) for u in row) if shared else positions
        pairs = sum(PROMPT**2 // 2 + sum(n * PROMPT + n * n // 2 for n in u) for u in row)
        works.append(Work(positions, sum(map(sum, row)), keys, pairs))
    return works


def measured_head(hidden: int, vocabulary: int) -> int:
    """Peak bytes of the log-probs in that measurement: chunks of 4,096 tokens under checkpointing, logits lifted to fp32."""

    def logprobs(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logits = (h @ w.t()).float()
        return logits.gather(1, t[:, None])[:, 0] - logits.logsumexp(-1)

    with FakeTensorMode(), torch.device("cpu"):
        w = torch.empty(vocabulary, hidden, dtype=torch.bfloat16, requires_grad=True)
        h = torch.empty(4096, hidden, dtype=torch.bfloat16, requires_grad=True)
        t = torch.zeros(4096, dtype=torch.int64)
        w.grad, h.grad = torch.empty_like(w), torch.empty_like(h)
        with Meter(there=[w, h, w.grad, h.grad, t]) as meter:
            checkpoint(logprobs, h, w, t, use_reentrant=False).sum().backward()
    return meter.peak


@pytest.mark.parametrize("setting", MEASURED)
def test_peak_memory_of_the_measured_table(setting: tuple[int, bool, bool, bool]) -> None:
    """Within 10 % of each of our rows in the table of measured ceilings."""
    budget, shared, checkpointed, compiled = setting
    shape = plan.shape("qwen2.5-1.5b")
    head, peaks = measured_head(shape.hidden_size, shape.vocab_size), []
    for work in measured_rows(budget, shared):
        of = cost(shape, work, Kind("bfloat16", autocast=False, checkpointing=checkpointed, repeat=True))
        states = 2 * work.targets * of.state  # gathered for the log-probs, and their gradient
        kept = of.kept + 2 * shape.num_hidden_layers * work.positions * of.state if compiled else of.forward
        peaks.append(4 * of.parameters + max(kept + states + head, kept + of.backward - of.forward))
    assert max(peaks) / GIB == pytest.approx(MEASURED[setting][0], rel=0.10)


@pytest.mark.parametrize("setting", [s for s in MEASURED if s[1]])
def test_learner_seconds_of_the_measured_table(setting: tuple[int, bool, bool, bool]) -> None:
    """Within 25 %; bf16 weights are what a sharded learner computes with."""
    budget, _, checkpointed, compiled = setting
    overrides = [f"learn.row_tokens={budget}", f"learn.compile={'cuda' if compiled else 'never'}"]
    overrides += ["model.gradient_checkpointing=true"] * checkpointed
    mean = sum(lengths()) // len(lengths())
    made = setup("qwen2.5-1.5b", *overrides, sharded=True, prompt=PROMPT, completion=mean, repeat=True)
    work = plan_memory.row(made)
    seconds = plan_time.row_seconds(made, plan_time.cards()["H200"])
    counted = work.positions * (GROUP * (PROMPT + mean)) / (PROMPT + GROUP * mean)  # the prompt counted 8 times
    assert counted / seconds == pytest.approx(MEASURED[setting][1], rel=0.25)


def test_generation_of_the_measured_step() -> None:
    """zero_gsm8k, 0.5B shape, 64 x 8 x 512 on one H200: 6.1 s."""
    made = setup("qwen2.5-0.5b", prompt=160, completion=512)
    taken = plan_time.times(made, plan_time.cards()["H200"], plan_memory.engine(made))
    assert taken.tokens == 64 * 8 * 512
    assert taken.generate == pytest.approx(6.1, rel=0.25)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen2.5-0.5b", 0.494), ("qwen2.5-1.5b", 1.544), ("qwen2.5-7b", 7.616), ("qwen2.5-math-7b", 7.616), ("llama-3.1-8b", 8.030),
     ("internlm2-20b", 19.86), ("deepseek-llm-67b", 67.42)],
)  # fmt: skip
def test_published_shapes_have_their_published_sizes(name: str, billions: float) -> None:
    assert cost(plan.shape(name), Work(8, 4, 8, 32), Kind()).parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("kind", [Kind(), Kind(checkpointing=True), Kind("bfloat16", lora=8), Kind(autocast=False)])
def test_a_model_is_a_straight_line_in_its_layers(kind: Kind) -> None:
    shape, work = shrunk(plan.shape("qwen2.5-0.5b"), 6), Work(2000, 1800, 2600, 2000 * 200)
    line, whole = cost(shape, work, kind), _once(shape, work, kind)
    for name in ("parameters", "trained", "forward", "casts", "kept", "lean", "backward", "end", "matmul", "moved"):
        assert getattr(line, name) == pytest.approx(getattr(whole, name), rel=0.01), name


def test_products_are_six_operations_a_weight_and_token() -> None:
    """Two forward, four backward, two when the forward pass is made again (each layer's up to its last product)."""
    shape, work = plan.shape("llama-3.1-8b"), Work(4096, 4000, 4096, 1)
    inside = 8.030e9 - 2 * shape.vocab_size * shape.hidden_size
    assert cost(shape, work, Kind()).matmul == pytest.approx(6 * inside * 4096, rel=0.01)
    again = cost(shape, work, Kind(checkpointing=True)).matmul / (inside * 4096)
    assert 7 < again <= 8.01


def test_what_is_held_between_rows() -> None:
    """fp32 weights, gradients and moments: 16 bytes a parameter; 8-bit moments: 10; an adapter: little; shards: a half."""

    def held(*overrides: str, **changes: Any) -> float:
        learns, _ = plan_memory.learner(setup("qwen2.5-7b", "model.gradient_checkpointing=true", *overrides, **changes))
        return sum(learns[name] for name in ("weights", "gradients", "optimiser state"))

    whole = held()
    assert whole == pytest.approx(16 * 7.616e9, rel=1e-3)
    assert held("learn.optimizer=adamw8") == pytest.approx(10.03 * 7.616e9, rel=1e-3)
    assert held("learn.offload=true") == pytest.approx(8 * 7.616e9, rel=1e-3)
    assert held("model.lora.rank=32") == pytest.approx(2 * 7.616e9 + 16 * 80.7e6, rel=1e-2)
    assert held("model.lora.rank=32", "model.qlora=true") < 0.5 * held("model.lora.rank=32")
    assert held(ranks=2, sharded=True) == pytest.approx(whole / 2, rel=1e-3)


def test_a_teacher_and_a_preference_model_are_counted(tmp_path: Path) -> None:
    taught = config("teacher.path=Qwen/Qwen2.5-7B")
    assert plan.beside(taught, cuda=True) == {"teacher": pytest.approx(2 * 7.616e9, rel=1e-3)}
    assert plan.beside(taught, cuda=False, parts=2)["teacher"] == pytest.approx(4 * 7.616e9 / 2, rel=1e-3)
    nano = plan.AutoConfig.from_pretrained(str(ROOT / "recipes/nano/base"))
    nano.num_labels = 1
    for name in ("helpful", "readable"):
        nano.save_pretrained(tmp_path / name)
    (tmp_path / "judge.json").write_text("{}")
    judged = config(f"rewards.preference={{model='{tmp_path}', weight=1.0}}")
    assert plan.beside(judged, cuda=True) == {"preference model": 2 * 2 * (919_168 + 128)}  # each with a head of its own
    assert plan.beside(config(), cuda=True) == {}
    held = setup("qwen2.5-7b", beside={"teacher": 5.0})
    alone = plan_memory.use(setup("qwen2.5-7b"))
    assert [a.peak - b.peak for a, b in zip(plan_memory.use(held), alone, strict=True)] == [5.0]


def test_a_reference_model_is_counted_and_an_adapter_needs_none() -> None:
    with_kl = plan_memory.learner(setup("qwen2.5-7b", "algorithm.kl=0.01"))[1]
    assert with_kl["reference model"] == pytest.approx(2 * 7.616e9, rel=1e-3)
    assert "reference model" not in plan_memory.learner(setup("qwen2.5-7b", "algorithm.kl=0.01", "model.lora.rank=8"))[1]


def test_a_row_holds_what_it_is_given() -> None:
    made = setup("qwen2.5-0.5b", "learn.row_tokens=4096", prompt=200, completion=300)
    work = plan_memory.row(made)
    assert work.positions == 4096
    assert work.targets < work.positions < work.keys
    few = setup("qwen2.5-0.5b", "rollout.prompts=1", "learn.row_tokens=65536", prompt=200, completion=300)
    assert plan_memory.row(few).positions == 200 + 8 * 300  # no more than a step has
    long = setup("qwen2.5-0.5b", "learn.row_tokens=1024", "rollout.length_jumps=[[5, 4000]]", prompt=200, completion=300)
    assert plan_memory.row(long).positions == 4200  # a single completion is not cut


def test_sleep_lends_the_engines_memory_to_the_learner() -> None:
    awake, asleep = (plan_memory.use(setup("qwen2.5-7b", f"rollout.sleep={s}"))[0] for s in ("false", "true"))
    pool = 0.4 * H200
    assert sum(awake.learn.values()) - sum(asleep.learn.values()) == pytest.approx(pool, rel=0.05)
    assert sum(awake.generate.values()) == sum(asleep.generate.values())


def test_an_engine_that_cannot_hold_one_sequence_says_what_it_needs() -> None:
    made = setup("internlm2-20b", "rollout.engine.gpu_memory_utilization=0.2", "model.lora.rank=8")
    (need,) = plan_memory.engine(made).needs
    assert "gpu_memory_utilization" in need
    enough = float(need.rsplit(" ", 1)[-1])
    assert plan_memory.engine(setup("internlm2-20b", f"rollout.engine.gpu_memory_utilization={enough + 0.01}")).needs == ()


def test_the_first_combination_fits_and_needs_each_of_its_changes() -> None:
    made = setup("qwen2.5-7b", prompt=160)
    assert not plan.fits(made, plan_memory.use(made))
    remedy = plan_remedy.first_that_fits(made)
    assert remedy is not None
    keys = [text for text in remedy.changes if not text.startswith("--")]
    again = setup("qwen2.5-7b", *keys, prompt=160)
    assert plan.fits(again, plan_memory.use(again))
    for left_out in keys:
        fewer = setup("qwen2.5-7b", *(k for k in keys if k != left_out), prompt=160)
        assert not plan.fits(fewer, plan_memory.use(fewer)), left_out


@pytest.mark.parametrize(("shape", "overrides", "ranks"), [
    ("qwen2.5-7b", ["learn.optimizer=adamw8", "rollout.engine.gpu_memory_utilization=0.25"], 1),
    ("qwen2.5-7b", ["rollout.sleep=true", "rollout.engine.gpu_memory_utilization=0.25"], 1),
    ("qwen2.5-7b", ["model.lora.rank=32"], 1),
    ("internlm2-20b", ["model.lora.rank=32"], 1),
])  # fmt: skip
def test_what_one_h200_holds_with_an_engine_on_it(shape: str, overrides: list[str], ranks: int) -> None:
    made = setup(shape, "model.gradient_checkpointing=true", *overrides, ranks=ranks)
    assert plan.fits(made, plan_memory.use(made))


@pytest.mark.parametrize(("workers", "devices", "fitting"), [
    (1, (), True), (2, (), False), (4, (), False),  # 2 x 0.4 of the card leave the learner too little
    (4, (0,), False),  # the learner's
    (2, (1,), True), (4, (1,), False), (4, (1, 2), True), (5, (1, 2), False),  # two and three on a card of their own
])  # fmt: skip
def test_every_engine_on_a_card_is_counted(workers: int, devices: tuple[int, ...], fitting: bool) -> None:
    over = ["rollout.placement=processes", f"rollout.workers={workers}", f"rollout.devices={list(devices)}"]
    assert plan.main([str(ROOT / "recipes/zero_gsm8k.toml"), "--shape", "qwen2.5-0.5b", *over]) == (0 if fitting else 1)


def test_what_engines_on_one_card_take() -> None:
    one, three = (
        plan_memory.use(setup("qwen2.5-0.5b", "rollout.placement=processes", f"rollout.workers={n}"))[0] for n in (1, 3)
    )
    each = sum(size for name, size in one.generate.items() if name.startswith("engine"))
    assert each == pytest.approx(0.4 * H200 + plan_memory.GRAPHS + plan_memory.CONTEXT)
    assert three.peak - one.peak == pytest.approx(2 * each)
    apart = setup("qwen2.5-0.5b", "rollout.placement=processes", "rollout.workers=3", shared=False, places=2)
    assert plan_memory.use(apart)[1].peak == pytest.approx(2 * each)


def test_a_host_without_a_gpu_holds_every_process(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)

    def refused(gib: int, *overrides: str) -> str:
        monkeypatch.setattr(plan, "host_memory", lambda: gib * GIB)
        try:
            plan.refuse(config(f"model.path={tiny}", *overrides, recipe="zero_nano"), 100)
        except ValueError as error:
            return str(error)
        return ""

    workers = ["rollout.placement=processes", "rollout.workers=8", "rollout.min_workers=2"]
    assert not refused(4)
    assert not refused(24, "rollout.placement=processes", "rollout.workers=2")
    assert "rollout.workers=1 rollout.min_workers=1" in refused(8, *workers)
    assert not refused(8, *workers[:1])
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "does not fit" in refused(8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # on hosts of their own
    assert not refused(8)


@pytest.mark.parametrize("override", ["learn.offload=true", "model.qlora=true"])
def test_what_a_sharded_learner_refuses_does_not_fit(override: str) -> None:
    over = [override, "model.lora.rank=16", "rollout.placement=processes"]
    apart, made = (setup("qwen2.5-0.5b", *over, ranks=2, sharded=sharded) for sharded in (False, True))
    assert plan.fits(apart, plan_memory.use(apart))
    uses = plan_memory.use(made)
    assert not plan.fits(made, uses)
    assert f"{override.partition('=')[0]} cannot be on a learner that is sharded" in plan.problem(made, uses)
    assert not any(change(made) for change in (plan_remedy.offload, plan_remedy.four_bits))
    assert plan_remedy.more_cards(setup("qwen2.5-0.5b", *over)) is None


@pytest.mark.parametrize(("name", "card", "overrides"), [
    ("deepseek-llm-67b", "H200", []),  # many cards, or adapters
    ("internlm2-20b", "A100-40G", ["model.gradient_checkpointing=true", "model.checkpoint_share=0.5"]),
    ("qwen2.5-7b", "L40S", ["rollout.sleep=true"]),
    ("qwen2.5-0.5b", "H200", ["rollout.placement=processes", "rollout.workers=4", "rollout.min_workers=4"]),
])  # fmt: skip
def test_a_printed_remedy_can_be_pasted(name: str, card: str, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(ROOT / "recipes/zero_gsm8k.toml"), "--shape", name, "--card", card, *overrides]
    assert plan.main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("first combination that fits"))
    assert plan.main([*command, *lines[at + 1].split()]) == 0


def test_changes_of_one_setting_are_one_and_other_settings_stay() -> None:
    """Twice the cards twice; a model that sharding alone makes fit."""
    made = setup("deepseek-llm-67b", "rollout.sleep=true")
    remedy = plan_remedy._apply(made, [plan_remedy.more_cards] * 2)
    assert remedy is not None
    assert remedy.changes[:3] == ("--ranks=4", "rollout.placement=processes", "rollout.sleep=false")
    whole = plan_remedy._first(setup("internlm2-20b"), [c for c in plan_remedy.ORDER if c.__name__ not in (
        "adapters", "offload", "four_bits")])  # fmt: skip
    assert whole is not None
    assert "rollout.placement=processes" in whole.changes
    assert whole.setup.ranks >= 2


@pytest.mark.parametrize("wrong", [
    "--ranks=0", "--ranks=-1", "--prompt-tokens=0", "--prompt-tokens=-5", "--mean-tokens=-3", "--mean-tokens=0", "--mean-tokens=5000",
    "--price=-1", "--price=nan", "rollout.engine.tensor_parallel_size=0",
])  # fmt: skip
def test_numbers_that_nothing_is_planned_with_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([str(ROOT / "recipes/zero_gsm8k.toml"), "--shape", "qwen2.5-0.5b", wrong]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert wrong.partition("=")[0] in told.err
    assert not told.out


def test_the_door_of_the_planner(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/zero_gsm8k.toml")  # a hub name, planned without the hub
    assert plan.main([recipe]) == 0
    assert "It fits." in capsys.readouterr().out
    assert plan.main([recipe, "--card", "4090", "--json", "--price", "1"]) == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree["fits"] is False
    assert tree["remedy"]
    assert tree["dollars"] == pytest.approx(tree["times"]["hours"])
    assert plan.main([recipe, "--card", "4090", *tree["remedy"]]) == 0
    capsys.readouterr()
    assert plan.main([recipe, "--shape", "gpt-5"]) == 2
    assert "qwen2.5-7b" in capsys.readouterr().err


def test_a_run_that_cannot_fit_is_refused_before_it_starts(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path, tiny)
    args = [
        str(ROOT / "recipes/zero_nano.toml"), f"run.out={tmp_path / 'run'}", f"model.path={tiny}", f"data.train={tmp_path}/train.jsonl",
        f"data.heldout={tmp_path}/heldout.jsonl", "prompt.max_tokens=300", "rollout.sampler=transformers",
    ]  # fmt: skip
    monkeypatch.setattr(plan, "host_memory", lambda: 1.05 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert door.main([*args, "learn.row_tokens=100000", "rollout.prompts=512", "rollout.max_tokens=600"]) == 2
    told = capsys.readouterr()
    assert "does not fit" in told.err
    assert "GiB" in told.err
    assert "ready after" not in told.out
    assert not (tmp_path / "run").exists()


def test_a_plan_that_cannot_be_made_keeps_no_run_from_starting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = plan.AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=64)  # has no attention
    monkeypatch.setattr(plan, "shape_of", lambda _: other)
    plan.refuse(config(), 100)
    assert "not planned" in capsys.readouterr().out


def test_experts_are_planned_in_what_their_product_knows() -> None:
    shape = plan.AutoConfig.for_model(
        "qwen3_moe", hidden_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, vocab_size=300,
    )  # fmt: skip
    half, full = (
        cost(shape, Work(256, 200, 300, 999), kind) for kind in (Kind("bfloat16", autocast=False), Kind(autocast=False))
    )
    assert full.forward == 2 * half.forward
    assert half.matmul > 0


def test_deepseek_v3_is_counted_whole_in_memory_and_by_its_active_part_in_time() -> None:
    """671 B parameters, 37 B of them active (arXiv 2412.19437); of 256 experts 8 a token, and a large batch wakes nearly all."""
    s = setup("deepseek-v3")
    of = plan_memory.layers(s, False, plan_memory.row(s))
    assert of.parameters == pytest.approx(671e9, rel=0.005)
    active = of.parameters - plan_time.idle_experts(s.shape)
    assert active == pytest.approx(37e9, rel=0.03)
    # What one position is multiplied with: all of that but the embedding and the head, which are counted elsewhere.
    inside = active - 2 * s.shape.vocab_size * s.shape.hidden_size
    assert of.matmul / plan_memory.row(s).positions == pytest.approx(6 * inside, rel=0.05)
    assert plan_time.idle_experts(s.shape, 512) < 1e-6 * of.parameters
    assert plan_memory.kv_bytes(s.shape) == 61 * (512 + 64) * 2
    assert plan_time.idle_experts(plan.shape("qwen2.5-7b")) == 0


def test_planned_against_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import fit_step, plan_check

    where = {
        "cards": 1, "cuda": True, "memory": H200, "device": "NVIDIA H200", "lengths": [256, 457],
        "shape": plan.shape("qwen2.5-0.5b").to_dict(),
    }  # fmt: skip
    made = config("learn.row_tokens=32768")
    planned = fit_step.prediction(made, plan.shape("qwen2.5-0.5b"), where)
    found = {"case": "0.5b", "where": where, "config": configs.to_dict(made)}
    file = tmp_path / "fit.json"
    for factor, code in ((1.0, 0), (1.3, 1)):
        measured = {name: planned[name] * factor for name in ("torch_gib", "learn_s")}
        file.write_text(json.dumps([{**found, **measured}, {"case": "7b", "error": "longer than 9 s"}]))
        assert plan_check.main([str(file)]) == code
    out = capsys.readouterr().out
    assert "-23.1 %  MISSED" in out
    assert "longer than 9 s" in out


def test_every_card_is_whole() -> None:
    for name, card in plan_time.cards().items():
        assert card.name == name
        assert min(replace(card).__dict__[f] for f in ("memory_gib", "tflops", "bandwidth_gbs", "link_gbs", "price")) > 0
        assert 0 < card.matmul <= 1
