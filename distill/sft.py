"""Supervised fine-tuning: traces into a student, by TRL's SFTTrainer over this project's packed rows (rl/attention.py).

What differs from SFTTrainer as it comes:
1. Rows are made here (rows.py), for it cuts what is over-long and its packing draws batches of varying numbers of samples. An update
   is exactly `learn.batch` traces, the loss the mean over their tokens, all rows and ranks together.
2. Each trace attends to its prompt and itself alone, through the attention that reinforcement learning uses: on every device, without
   flash-attn, and with what all prompts begin with once a row.
3. The rate of an update is a function of its number (rl/schedule.py); order of data, too. So --resume on a CPU is exact.
4. A checkpoint counts as whole once its last file, `whole`, is there; what a kill left half is removed. Older ones go after that file,
   where Trainer removes them before it, and a kill between the two would leave none.
5. What ends a run early is decided by all ranks together, at the end of an update: a save needs every one of them.
Adapters are peft's (model.lora, model.qlora). Several processes: accelerate, recipes/accelerate/ (DDP, FSDP2).
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from distill.config import Sft, rate_at
from distill.rows import IGNORED, Samples
from distill.traces import write
from rl import adapters
from rl.attention import layout
from rl.checkpoint import whole
from rl.optim import SmallAdamW
from rl.policy import load_model, resolve, save_model
from rl.ranks import rank
from rl.records import Span
from rl.report import read_jsonl

CHECKPOINTS, METRICS, WHOLE = "checkpoints", "metrics.jsonl", "whole"


class Collator:
    """The samples of one row -> its tensors, [1, L]: what their prompts have in common, then the rest of each. `spans_S4`: their Spans."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        (row,) = rows
        shared = self.samples.shared
        ids, positions, labels = self.samples.sample(row["samples"][0])[0][:shared], list(range(shared)), [IGNORED] * shared
        spans = list[tuple[int, int, int, int]]()
        for i in row["samples"]:
            of, prompt = self.samples.sample(i)
            start = len(ids)
            ids += of[shared:]
            positions += range(shared, len(of))
            labels += [IGNORED] * (prompt - shared) + of[prompt:]
            # Without anything in common a sample's own prompt is what its trace attends to.
            spans.append((start, len(ids), 0, shared) if shared else (start + prompt, len(ids), start, start + prompt))
        flat = {"input_ids": ids, "position_ids": positions, "labels": labels}
        return {name: torch.tensor([values]) for name, values in flat.items()} | {"spans_S4": torch.tensor(spans)}


class PackedTrainer(SFTTrainer):
    """SFTTrainer over rows of Collator. The row's layout goes to the attention, on the device that it is computed on."""

    sft: Sft
    total: int
    optimizer: Any

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(inputs)
        spans = [Span(*span) for span in inputs.pop("spans_S4").tolist()]
        inputs["packing"] = layout(spans, inputs["input_ids"].shape[1], inputs["input_ids"].device)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        learn = self.sft.learn
        if learn.optimizer == "adamw8" and self.optimizer is None:
            self.optimizer = SmallAdamW(
                [p for p in (model or self.model).parameters() if p.requires_grad],
                lr=learn.lr, betas=learn.betas, weight_decay=learn.weight_decay, eight=True, offload=False,
            )  # fmt: skip
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        base, total = self.sft.learn.lr, self.total
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda update: rate_at(self.sft, update, total) / base
        )
        return self.lr_scheduler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: it would put the names of this machine's folders beside the checkpoints."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class Journal(TrainerCallback):
    """metrics.jsonl and the console line, one an update; a checkpoint's last file; SIGTERM and ctrl-C end the run with a checkpoint.

    `heard` is this rank's signal, `ended` the one that all ranks act on, both 0 where there is none.
    """

    def __init__(self, folder: Path, total: int, tokens: Sequence[int], done: int, keep: int) -> None:
        self.path, self.total, self.tokens, self.begun, self.first = folder / METRICS, total, tokens, time.monotonic(), done
        self.keep, self.heard, self.ended = keep, 0, 0
        if not rank():
            kept = [m for m in read_jsonl(self.path) if m["step"] <= done] if self.path.exists() else []
            write(self.path, [json.dumps(m) for m in kept])

    def hear(self, number: int, frame: Any) -> None:
        self.heard = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.ended = self.heard
        if args.world_size > 1:  # a rank may hear it in this update and another one only in the next
            loudest = torch.tensor(self.heard, device=args.device)
            dist.all_reduce(loudest, op=dist.ReduceOp.MAX)
            self.ended = int(loudest)
        if self.ended:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        step, taken = state.global_step, max(time.monotonic() - self.begun, 1e-9)
        speed = sum(self.tokens[self.first : step]) / taken
        names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm", "mean_token_accuracy": "token_accuracy"}
        numbers = {mine: float(logs[theirs]) for theirs, mine in names.items() if theirs in logs}
        line = {"step": step, **numbers, "tokens": self.tokens[step - 1], "tokens_per_s": round(speed, 1)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        left = taken / (step - self.first) * (self.total - step)
        print(
            f"{step:>{len(str(self.total))}}/{self.total} loss {line['loss']:.4f} token acc {line.get('token_accuracy', 0):.3f} "
            f"lr {line.get('lr', 0):.1e} {speed:,.0f} tok/s eta {left / 60:.1f} min", flush=True,
        )  # fmt: skip

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            dist.barrier()  # each rank has files of its own in it
        if state.is_world_process_zero:
            write(Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE, [str(state.global_step)])
            rotate_checkpoints(args.output_dir, self.keep)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; removes what a kill left half."""
    found = {int(p.name.rpartition("-")[2]): p for p in (folder / CHECKPOINTS).glob("checkpoint-*") if p.is_dir()}
    for step, path in list(found.items()):
        if not (path / WHOLE).exists():
            shutil.rmtree(path, ignore_errors=True)
            del found[step]
    return found[max(found)] if found else None


def student(config: Sft, device: torch.device) -> Any:
    """The model to train: fp32 weights, or for adapters a frozen base in the precision it computes in. Raises ValueError.

    Its context becomes data.context where that is longer, which without a larger rotary base would be positions it has never seen.
    """
    m, cuda = config.model, device.type == "cuda"
    dtype = torch.bfloat16 if m.lora.rank and cuda else torch.float32
    model = load_model(
        m.path, dtype=dtype, trust_remote_code=m.trust_remote_code, quantization=adapters.four_bits(device) if m.qlora else None
    )  # fmt: skip
    context = model.config.max_position_embeddings
    if config.data.context > context and not config.rope_theta:
        raise ValueError(
            f"data.context = {config.data.context} is beyond the {context} positions of {m.path}: extend its rotary embedding with "
            "rope_theta=300000 (for 32,768 from 4,096; the traces teach it the new positions), or lower data.context"
        )
    if config.rope_theta:
        extend(model, config.rope_theta, config.data.context)
    return model


def extend(model: Any, theta: float, context: int) -> None:
    """Another base of the rotary embedding (arXiv 2309.16039, section 2: a larger one slows its decay), in the model and its config."""
    text = model.config.get_text_config()
    text.rope_parameters = {**text.rope_parameters, "rope_theta": theta}
    text.max_position_embeddings = max(context, text.max_position_embeddings)
    decoder = model.base_model
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        raise ValueError(f"rope_theta: {type(model).__name__} has no rotary embedding to extend")
    decoder.rotary_emb = type(rotary)(config=text).to(rotary.inv_freq.device)


def settings(config: Sft, folder: Path, rows: int, ranks: int, total: int, cuda: bool) -> SFTConfig:
    """The recipe in TRL's terms."""
    learn, m = config.learn, config.model
    return SFTConfig(
        output_dir=str(folder / CHECKPOINTS), per_device_train_batch_size=1, gradient_accumulation_steps=rows // ranks,
        max_steps=total, learning_rate=learn.lr, lr_scheduler_type="constant", adam_beta1=learn.betas[0], adam_beta2=learn.betas[1],
        weight_decay=learn.weight_decay, max_grad_norm=learn.max_grad_norm, bf16=cuda, fp16=False, use_cpu=not cuda,
        optim="adamw_torch", seed=config.run.seed, data_seed=config.run.seed,
        gradient_checkpointing=m.gradient_checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="steps" if config.run.save_every else "no", save_steps=config.run.save_every or total,
        logging_steps=1, logging_strategy="steps", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, packing=False,
        dataloader_pin_memory=cuda, average_tokens_across_devices=True,
    )  # fmt: skip


def trainer(
    config: Sft, folder: Path, tokenizer: Any, samples: Samples, packed: list[list[int]], rows: int, ranks: int
) -> PackedTrainer:
    """Everything but the start. Raises ValueError."""
    total, lora = len(packed) // rows, config.model.lora
    args = settings(config, folder, rows, ranks, total, torch.cuda.is_available())
    model = student(config, args.device)  # after the arguments, which let the ranks meet: of those that shard it, one reads it
    peft = None
    if lora.rank:
        from peft import LoraConfig

        peft = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, task_type="CAUSAL_LM",
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        )  # fmt: skip
        model.config._name_or_path = resolve(config.model.path)
    made = PackedTrainer(
        model=model, args=args, train_dataset=Dataset.from_dict({"samples": packed}), processing_class=tokenizer,
        data_collator=Collator(samples), peft_config=peft,
    )  # fmt: skip
    made.sft, made.total = config, total
    made.remove_callback(_printer())
    return made


def learn(made: PackedTrainer, folder: Path, samples: Samples, packed: list[list[int]], rows: int) -> int:
    """Train to the end, or from the newest whole checkpoint to it; 0, or the signal that ended it earlier."""
    start = newest(folder)
    lengths = samples.lengths
    tokens = [int(sum(lengths[i] for row in packed[at : at + rows] for i in row)) for at in range(0, len(packed), rows)]
    done = int(start.name.rpartition("-")[2]) if start else 0
    journal = Journal(folder, made.total, tokens, done, made.sft.run.keep)
    made.add_callback(journal)
    if start:
        print(f"resumed after update {done} of {made.total}", flush=True)
    before = {number: signal.signal(number, journal.hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        made.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return journal.ended if made.state.global_step < made.total else 0


def save_final(made: PackedTrainer, tokenizer: Any, folder: Path) -> None:
    """The student as transformers, or of adapters peft, saves it, in the precision it computes in: loads in vLLM too."""
    model = made.accelerator.unwrap_model(made.model)
    state = made.accelerator.get_state_dict(made.model_wrapped)  # of shards the whole; every rank takes part
    if not made.is_world_process_zero():
        return
    dtype = (
        torch.bfloat16 if made.args.bf16 and not made.sft.model.lora.rank else torch.float32
    )  # adapters: as they were trained
    with whole(folder) as temporary:
        cast = {n: w.to("cpu", dtype) if w.is_floating_point() else w.cpu() for n, w in state.items()}
        if made.sft.model.lora.rank:
            model.save_pretrained(temporary, state_dict=cast)
        else:
            save_model(model, cast, dtype, temporary)
        tokenizer.save_pretrained(temporary)


def tail(folder: Path) -> dict[str, float]:
    """Means over the last fifth of the updates, for the result."""
    found = list(read_jsonl(folder / METRICS))
    last = found[-max(1, len(found) // 5) :]
    names = [n for n in ("loss", "token_accuracy", "tokens_per_s") if all(n in m for m in last)]
    return {n: round(float(np.mean([m[n] for m in last])), 5) for n in names}


def _printer() -> type:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
