"""Supervised fine-tuning: TRL over our packed rows gives the plain padded loss and gradient; resume is exact; final/ loads."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from bench import sft_step
from distill import config as configs
from distill import rows, sft
from distill.config import Sft, SftData, SftLearn, SftRun
from distill.traces import Trace, to_json, write
from recipes import plan, plan_memory
from recipes import sft as door
from rl import ranks
from rl.config import Lora, Model
from rl.policy import load_model, load_tokenizer
from tests import ranks_child

COUNT = 12


def traces(count: int = COUNT) -> list[Trace]:
    """Right traces of unlike lengths."""
    return [
        Trace(
            f"q{i}#0", f"q{i}", f"What is {i} and {i + 1}?" + " Say it." * (i % 3),
            f" <think> {' and '.join(f'{i} plus {k} is {i + k}' for k in range(1, 2 + i % 4))} </think> <answer>{2 * i + 1}</answer>",
            gold=str(2 * i + 1),
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "kept.jsonl"
    write(path, map(to_json, traces()))
    return path


def config(tiny: str, file: Path, out: Path, **learn: Any) -> Sft:
    settings = {"lr": 1e-3, "epochs": 2.0, "batch": 4, "row_tokens": 700, "warmup": 1, **learn}
    return Sft(
        run=SftRun(out=str(out), save_every=2), model=Model(path=tiny), data=SftData(train=(str(file),), context=600),
        learn=SftLearn(**settings),
    )  # fmt: skip


def made(c: Sft, out: Path) -> tuple[sft.PackedTrainer, rows.Samples, list[list[int]], int]:
    tokenizer = load_tokenizer(c.model.path)
    samples, _, _ = door.load_samples(c, tokenizer)
    count = rows.updates(len(samples), c.learn.batch, c.learn.epochs)
    packed, each = rows.plan(samples, count, c.learn.batch, c.learn.row_tokens, 1, c.run.seed)
    return sft.trainer(c, out, tokenizer, samples, packed, each, 1), samples, packed, each


@pytest.mark.parametrize("share", [True, False])
def test_loss_and_gradient_of_packed_rows_are_those_of_single_samples(
    tiny: str, file: Path, tmp_path: Path, share: bool
) -> None:
    trainer, samples, packed, each = made(config(tiny, file, tmp_path), tmp_path)
    assert samples.shared > 20  # the template
    trainer.data_collator = sft.Collator(samples if share else dataclasses.replace(samples, shared=0))
    assert max(len(row) for row in packed[:each]) > 1  # something shares a row
    plain = load_model(tiny, dtype=torch.float32, attention="sdpa")
    # The reference: every sample alone through the model's own forward pass, the mean over completion tokens of the update.
    chosen = [i for row in packed[:each] for i in row]
    total = torch.zeros(())
    tokens = 0
    for i in chosen:
        ids, prompt = samples.sample(i)
        logits_LV = plain(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits_LV, torch.tensor(ids[prompt:]), reduction="sum")
        tokens += len(ids) - prompt
    (total / tokens).backward()
    loss = 0.0
    trainer.model.train()
    for row in packed[:each]:
        inputs = trainer._prepare_inputs(trainer.data_collator([{"samples": row}]))
        part = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(tokens))
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(total.item() / tokens, rel=1e-5)
    theirs = {n: p.grad for n, p in plain.named_parameters()}
    for name, p in trainer.model.named_parameters():
        assert torch.allclose(p.grad, theirs[name], rtol=1e-3, atol=1e-6), name


@pytest.fixture(scope="module")
def uninterrupted(tiny: str, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    assert door.run(config(tiny, file, out), out) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "final" / "model.safetensors")


def test_it_learns_and_says_what_it_did(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines] == list(range(1, 7))  # 12 samples, 2 epochs, 4 an update
    assert lines[-1]["loss"] < lines[0]["loss"]
    told = json.loads((uninterrupted / "result.json").read_text())
    assert told["updates"] == 6
    assert told["traces"] == COUNT
    assert told["tokens"] == sum(m["tokens"] for m in lines)


class Killed(Exception):
    pass


def killed(c: Sft, out: Path) -> None:
    """A run of `c` that ends in its fourth update; the last whole checkpoint is of the second, and a half one of the third."""
    trainer, samples, packed, each = made(c, out)
    door.record(c, samples, out)
    inner, calls = trainer.training_step, 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3 * each:
            raise Killed
        return inner(*args, **kwargs)

    trainer.training_step = step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        sft.learn(trainer, out, samples, packed, each)
    half = out / sft.CHECKPOINTS / "checkpoint-3"  # as a kill during a save leaves it
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")


def test_resumed_after_a_kill_it_ends_with_the_same_weights(
    tiny: str, file: Path, tmp_path: Path, uninterrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    c = config(tiny, file, out)
    killed(c, out)
    assert door.run(c, out, resume=True) == 0
    assert "6 updates of 4 traces (2 epochs)" in capfd.readouterr().out
    assert {p.name for p in (out / sft.CHECKPOINTS).iterdir()} == {"checkpoint-4", "checkpoint-6"}
    ours, theirs = weights(out), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()] == list(range(1, 7))


def test_killed_before_a_checkpoint_is_whole_the_one_before_is_there(
    tiny: str, file: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    c = config(tiny, file, out)
    c = dataclasses.replace(c, run=dataclasses.replace(c.run, keep=1))
    trainer, samples, packed, each = made(c, out)
    door.record(c, samples, out)

    def ends(path: Path, lines: Any) -> None:
        if path.parent.name == "checkpoint-4":  # all of it is there but for its last file
            raise Killed
        write(path, lines)

    monkeypatch.setattr(sft, "write", ends)
    with pytest.raises(Killed):
        sft.learn(trainer, out, samples, packed, each)
    monkeypatch.undo()
    found = sft.newest(out)
    assert found is not None
    assert found.name == "checkpoint-2"
    assert door.run(c, out, resume=True) == 0
    assert [p.name for p in (out / sft.CHECKPOINTS).iterdir()] == ["checkpoint-6"]
    ours, theirs = weights(out), weights(uninterrupted)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def heard_by_one(c: Sft, out: Path, samples: rows.Samples) -> None:
    """On two ranks: the second one alone hears a SIGTERM, in the first update."""
    count = rows.updates(len(samples), c.learn.batch, c.learn.epochs)
    packed, each = rows.plan(samples, count, c.learn.batch, c.learn.row_tokens, 2, c.run.seed)
    trainer = sft.trainer(c, out, load_tokenizer(c.model.path), samples, packed, each, 2)
    inner = trainer.training_step

    def step(*args: Any, **kwargs: Any) -> Any:
        if ranks.rank():
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*args, **kwargs)

    trainer.training_step = step  # type: ignore[method-assign]
    assert sft.learn(trainer, out, samples, packed, each) == signal.SIGTERM
    assert trainer.state.global_step == 1
    trainer.accelerator.end_training()


def test_a_signal_that_one_rank_hears_ends_all_after_the_same_update(tiny: str, file: Path, tmp_path: Path) -> None:
    c = config(tiny, file, tmp_path, row_tokens=600)
    samples, _, _ = door.load_samples(c, load_tokenizer(tiny))
    assert ranks_child.launch(2, False, heard_by_one, c, tmp_path, samples, timeout_s=60.0) == [0, 0]
    found = sft.newest(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-1"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in found.iterdir()}


def test_other_traces_are_not_gone_on_with(tiny: str, file: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own.jsonl", tmp_path / "out"
    write(own, map(to_json, traces()))
    c = config(tiny, own, out)
    out.mkdir()
    door.record(c, door.load_samples(c, load_tokenizer(tiny))[0], out)
    other = [dataclasses.replace(t, question=t.question.replace("What", "Say what")) for t in traces()]
    for changed, told in ((traces(11), "12 then, 11 now"), (other, "12 then, 12 now")):
        write(own, map(to_json, changed))
        with pytest.raises(ValueError, match=rf"--resume: the traces are not .* \({told}.*run\.out"):
            door.run(c, out, resume=True)
    (out / "inputs.json").unlink()
    with pytest.raises(ValueError, match=r"inputs\.json cannot be read"):
        door.run(c, out, resume=True)


def test_moments_in_8_bits_resume_and_are_not_plain_adamw(tiny: str, file: Path, tmp_path: Path, uninterrupted: Path) -> None:
    whole, again = (config(tiny, file, tmp_path / name, optimizer="adamw8") for name in ("whole", "killed"))
    assert door.run(whole, tmp_path / "whole") == 0
    killed(again, tmp_path / "killed")
    state = torch.load(tmp_path / "killed" / sft.CHECKPOINTS / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    assert any(s["exp_avg"].dtype == torch.uint8 for s in state.values())
    assert door.run(again, tmp_path / "killed", resume=True) == 0
    ours, theirs, plain = weights(tmp_path / "killed"), weights(tmp_path / "whole"), weights(uninterrupted)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert not all(torch.equal(ours[n], plain[n]) for n in ours)


def test_final_loads_in_transformers_and_is_what_was_trained(uninterrupted: Path, tiny: str) -> None:
    model = load_model(str(uninterrupted / "final"), dtype=torch.float32, attention="sdpa")
    tokenizer = load_tokenizer(str(uninterrupted / "final"))
    before = load_model(tiny, dtype=torch.float32, attention="sdpa")
    ids = torch.tensor([tokenizer("What is 2 and 3?")["input_ids"]])
    assert not torch.allclose(model(input_ids=ids).logits, before(input_ids=ids).logits, atol=1e-3)


def test_lora_trains_the_adapter_alone_and_resumes(tiny: str, file: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    def lora(out: Path) -> Sft:
        c = config(tiny, file, out, lr=1e-2)
        return dataclasses.replace(c, model=Model(path=tiny, lora=Lora(rank=4, alpha=8.0)))

    out, again = tmp_path / "lora", tmp_path / "killed"
    assert door.run(lora(out), out) == 0
    base = load_model(tiny, dtype=torch.float32, attention="sdpa")
    ids = torch.tensor([[5, 6, 7]])
    before = base(input_ids=ids).logits.detach()
    assert not (out / "final" / "model.safetensors").exists()
    after = PeftModel.from_pretrained(base, str(out / "final"))(input_ids=ids).logits
    assert not torch.allclose(before, after, atol=1e-4)
    killed(lora(again), again)
    assert door.run(lora(again), again, resume=True) == 0
    ours, theirs = (load_file(f / "final" / "adapter_model.safetensors") for f in (again, out))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_what_cannot_be_learned_from_is_dropped_with_its_reason(tiny: str, tmp_path: Path) -> None:
    good, long = traces(3), " ".join(f"n{k}" for k in range(400))
    bad = [
        dataclasses.replace(good[0], id="no tag", problem="a", text=" 2 and 2 is 4. <answer>1</answer>"),
        dataclasses.replace(good[0], id="wrong", problem="b", text=good[0].text.replace("<answer>1", "<answer>7")),
        dataclasses.replace(good[0], id="other", problem="c", text=" <think> " + "\u6240\u4ee5" * 9 + " x y </think> <answer>1</answer>"),
        dataclasses.replace(good[0], id="long", problem="d", text=f" <think> {long} </think> <answer>1</answer>"),
    ]  # fmt: skip
    path = tmp_path / "traces.jsonl"
    write(path, map(to_json, [*good, *bad]))
    out = tmp_path / "out"
    c = config(tiny, path, out)
    samples, dropped, read = door.load_samples(c, load_tokenizer(tiny))
    assert read == 7
    assert len(samples) == 3
    assert {t.id: by for t, by, _ in dropped.traces} == {
        "no tag": "format",
        "wrong": "wrong",
        "other": "language",
        "long": "over-long",
    }
    assert dropped.counts.total() == 4
    ends = samples.starts[1:] - 1
    assert (samples.ids[ends] == load_tokenizer(tiny).eos_token_id).all()  # whole, to their end


def test_rotary_base_extends_the_context(tiny: str, file: Path, tmp_path: Path) -> None:
    c = config(tiny, file, tmp_path, row_tokens=4096)
    longer = dataclasses.replace(c, data=dataclasses.replace(c.data, context=2048))
    with pytest.raises(ValueError, match="rope_theta"):
        sft.student(longer, torch.device("cpu"))
    model = sft.student(dataclasses.replace(longer, rope_theta=300_000.0), torch.device("cpu"))
    assert model.config.max_position_embeddings == 2048
    # A larger base turns slower in every dimension but the first.
    plain = sft.student(c, torch.device("cpu"))
    slow, fast = model.base_model.rotary_emb.inv_freq, plain.base_model.rotary_emb.inv_freq
    assert slow[0] == fast[0] == 1
    assert (slow[1:] < fast[1:]).all()
    model.save_pretrained(tmp_path / "m")
    again = load_model(str(tmp_path / "m"), dtype=torch.float32, attention="sdpa")
    assert torch.equal(again.base_model.rotary_emb.inv_freq, slow)


@pytest.mark.parametrize(("case", "gib"), [("7b-one", 90.4), ("20b-lora", 46.1), ("67b-lora", 79.3)])
def test_the_plan_has_the_memory_that_was_measured(case: str, gib: float) -> None:
    """bench/sft_step.py on H200s (recipes/README.md): torch's peak of a card in one update, random traces."""
    recipe, name, cards, overrides, batch = sft_step.CASES[case]
    c = configs.load(Sft, f"recipes/{recipe}.toml", [*overrides, f"learn.batch={batch}", "model.path=recipes/nano/base"])
    shape = plan.shape(name)
    samples = sft_step.random_samples(c, shape.vocab_size, 4 * batch)
    packed, each = rows.plan(samples, 2, batch, c.learn.row_tokens, cards, 0)
    fullest = max(int(sum(samples.lengths[i] for i in row)) for row in packed[each:])
    full = dataclasses.replace(
        c, learn=dataclasses.replace(c.learn, row_tokens=fullest), data=dataclasses.replace(c.data, context=fullest)
    )
    setup = door.setup_of(full, float(samples.lengths.mean()), 140 * plan_memory.GIB, True, cards, cards > 1, shape)
    planned = plan_memory.use(setup, sampling=False)[0].torch_peak / plan_memory.GIB
    assert planned == pytest.approx(gib, rel=0.10)


def test_a_folder_is_one_run(tiny: str, file: Path, uninterrupted: Path) -> None:
    c = config(tiny, file, uninterrupted)
    with pytest.raises(ValueError, match="--resume"):
        door.check_folder(c, uninterrupted, resume=False)
    changed = dataclasses.replace(c, learn=dataclasses.replace(c.learn, lr=2e-3))
    with pytest.raises(ValueError, match=r"learn\.lr: 0\.001 -> 0\.002"):
        door.check_folder(changed, uninterrupted, resume=True)
