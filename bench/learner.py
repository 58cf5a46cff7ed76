"""The learner alone on the device at hand, forward and backward: `python -m bench.learner [--shape 1.5b 0.5b] [--out FILE]`.

Groups of 8 completions to a prompt of 256 tokens, completions of 32 to 1,024 (mean 457, the same in every run), weights random, so no
files are needed. Every variant takes the same groups; the order is fixed, and each line is written as soon as it is measured:
  padded     prompt + completion padded to the longest of 8, SDPA, transformers' own logits: what TRL's trainer does
  packed     rows of `--rows` positions, each prompt once a group (rl/policy.py), fp32 weights under autocast
  compiled   the same with compiled layers; "lean" keeps less, "checkpoint s" runs a share s of the layers again
unique tokens count a prompt once a group, raw tokens once a completion. The share is 6 * parameters * unique tokens over the time,
against an 8,192-cubed bf16 product measured in this run. `update` is the AdamW step on top, in fp32; peak memory holds its moments.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from rl.attention import PACKED
from rl.batch import Counts, pack
from rl.loss import policy_loss
from rl.policy import Policy, graphs_compiled
from rl.records import Completion, Group, Prompt, Row

SHAPES: dict[str, dict[str, int]] = {
    "1.5b": {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151936,
    },
    "0.5b": {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "vocab_size": 512,
    },
}  # fmt: skip
MATMUL = 8192
PADDED_BATCH = 8  # sequences a micro-batch


@dataclass(frozen=True)
class Variant:
    name: str
    padded: bool = False
    bf16: bool = False  # weights in bf16, no optimiser; else fp32 under autocast, with AdamW
    compiled: bool = False
    lean: bool = False
    checkpoint: float = 0.0  # share of the layers
    row_tokens: int = 0


def variants(rows: Sequence[int]) -> list[Variant]:
    """In the order of their worth, those of one graph beside each other."""
    long = max(rows)
    return [
        Variant("padded, checkpointed, bf16 weights", padded=True, bf16=True, checkpoint=1.0),
        *(Variant(f"compiled, {n}", compiled=True, row_tokens=n) for n in sorted(rows, reverse=True)),
        Variant(f"compiled, {long}, checkpoint 1", compiled=True, checkpoint=1.0, row_tokens=long),
        Variant(f"compiled, {long}, lean", compiled=True, lean=True, row_tokens=long),
        Variant(f"compiled, {long}, lean, checkpoint 0.75", compiled=True, lean=True, checkpoint=0.75, row_tokens=long),
        Variant(f"packed, {long}", row_tokens=long),
        Variant("padded, checkpointed, fp32 weights", padded=True, checkpoint=1.0),
    ]


def make_groups(shape: str, vocabulary: int) -> list[Group]:
    """16 x 8 completions; 3 x 4 short ones for the tiny shape."""
    prompts, group, prompt, mean, most = (3, 4, 16, 12, 24) if shape == "tiny" else (16, 8, 256, 420, 1024)
    draw = torch.Generator().manual_seed(1)
    lengths = (
        (torch.randn(prompts * group, generator=draw) * 0.6 + math.log(mean)).exp().clamp(most // 32, most).long().tolist()
    )

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (n,), generator=draw).tolist())

    return [
        Group(
            Prompt(str(p), ids(prompt), {}),
            tuple(
                Completion(ids(n), (-11.9,) * n, "stop", "", 0) for n in lengths[p * group : (p + 1) * group]
            ),
        )
        for p in range(prompts)
    ]  # fmt: skip


def padded_pass(model: Any, groups: Sequence[Group], device: torch.device) -> None:
    """As TRL's trainer: micro-batches of sequences, logits of the completions, log-softmax a sequence at a time."""
    pairs = [(g.prompt.ids, c.ids) for g in groups for c in g.completions]
    for start in range(0, len(pairs), PADDED_BATCH):
        batch = pairs[start : start + PADDED_BATCH]
        prompt, longest = len(batch[0][0]), max(len(c) for _, c in batch)
        ids_BL = torch.tensor([[*p, *c, *[0] * (longest - len(c))] for p, c in batch], device=device)
        mask_BL = torch.tensor([[1] * (prompt + len(c)) + [0] * (longest - len(c)) for _, c in batch], device=device)
        logits = model(input_ids=ids_BL, attention_mask=mask_BL, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1]
        targets = ids_BL[:, prompt:]
        rows = [x.log_softmax(-1).gather(1, t[:, None])[:, 0] for x, t in zip(logits, targets, strict=True)]
        (torch.stack(rows) * mask_BL[:, prompt:]).sum().mul(-1e-5).backward()


def packed_pass(policy: Policy, rows: Sequence[Row], device: torch.device) -> None:
    """As the learner does it, row by row."""
    for row in rows:
        row = row.to(device)
        with autocast(device):
            logprobs_T, _ = policy(row, 1.0)
        policy_loss("dapo", logprobs_T, row, clip_low=0.2, clip_high=0.2, kl_coef=0.0, tis_cap=2.0)[0].backward()


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Bench:
    """One shape; its models are made when a variant wants them, one at a time."""

    def __init__(self, shape: str, device: torch.device, repeats: int, ceiling: float) -> None:
        self.shape, self.device, self.repeats, self.ceiling = shape, device, repeats, ceiling
        self.groups = make_groups(shape, SHAPES[shape]["vocab_size"])
        completions = sum(c.tokens for g in self.groups for c in g.completions)
        self.unique = completions + sum(len(g.prompt.ids) for g in self.groups)
        self.raw = completions + sum(len(g.prompt.ids) * len(g.completions) for g in self.groups)
        self.policy: Policy | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.lean = False

    def measure(self, v: Variant) -> dict[str, Any]:
        """Seconds and memory of a variant, or why it failed."""
        found: dict[str, Any] = {"shape": self.shape, "variant": v.name}
        try:
            return found | self._measure(v)
        except Exception as error:  # one that does not fit must not take the others along
            self.policy = self.optimizer = None
            return found | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, v: Variant) -> dict[str, Any]:
        policy = self._prepared(v)
        rows = self._rows(v)

        def work() -> None:
            if v.padded:
                with autocast(self.device):
                    padded_pass(policy.model, self.groups, self.device)
            else:
                packed_pass(policy, rows, self.device)

        graphs, update = graphs_compiled(), 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first = self._timed(work)
        if self.optimizer:
            self._timed(self.optimizer.step)  # makes the moments
            update = self._timed(self.optimizer.step)
        seconds = [self._timed(work) for _ in range(self.repeats)]
        made = graphs_compiled() - graphs
        policy.zero_grad(set_to_none=True)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        middle = statistics.median(seconds)
        parameters = sum(p.numel() for p in policy.parameters())
        rate = 6 * parameters * self.unique / middle / 1e12
        return {
            "seconds": middle, "range": [min(seconds), max(seconds)], "first": first, "update": update,
            "unique_per_s": self.unique / middle, "raw_per_s": self.raw / middle, "tflops": rate, "share": rate / self.ceiling,
            "peak_gib": peak, "graphs": made, "rows": len(rows), "parameters": parameters,
        }  # fmt: skip

    def _timed(self, work: Callable[[], Any]) -> float:
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _prepared(self, v: Variant) -> Policy:
        dtype = torch.bfloat16 if v.bf16 else torch.float32
        if self.policy is None or next(self.policy.parameters()).dtype != dtype:
            self.policy = self.optimizer = None
            gc.collect()
            self.policy = self._made(dtype)
            if not v.bf16:
                self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6, fused=True)
        policy = self.policy
        policy.train().zero_grad(set_to_none=True)
        policy.model.set_attn_implementation("sdpa" if v.padded else PACKED)
        policy.model.gradient_checkpointing_disable()
        if v.checkpoint:
            policy.checkpoint_layers(v.checkpoint)
        policy.compiled = False
        for layer in policy.layers():
            layer._compiled_call_impl = None
        if v.compiled:
            if v.lean != self.lean:
                torch._dynamo.reset()
                self.lean = v.lean
            policy.compile_layers(lean=v.lean)
        return policy

    def _made(self, dtype: torch.dtype) -> Policy:
        config = Qwen2Config(**SHAPES[self.shape], tie_word_embeddings=True, max_position_embeddings=32768)
        torch.manual_seed(0)
        with self.device:
            return Policy(AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED))

    def _rows(self, v: Variant) -> list[Row]:
        if v.padded:
            return []
        advantages = [[1.0 if i % 2 else -1.0 for i in range(len(g.completions))] for g in self.groups]
        completions = [c.tokens for g in self.groups for c in g.completions]
        batch = pack(
            self.groups, advantages, loss="dapo", counts=Counts(len(completions), sum(completions)), max_tokens=1024,
            row_tokens=v.row_tokens,
        )  # fmt: skip
        return list(batch.rows)


def matmul_rate(device: torch.device) -> float:
    """TFLOP/s of a square bf16 product, the median of ten; fp32 and small on a CPU."""
    n, dtype = (MATMUL, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out: Tensor = a @ b
    times = []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * n**3 / statistics.median(times) / 1e12


def line(found: dict[str, Any], base: float | None) -> str:
    name = f"{found['shape']:5} {found['variant']:36}"
    if "error" in found:
        return f"{name} FAILED {found['error']}"
    ratio = f"{found['raw_per_s'] / base:5.2f}x" if base else ""
    low, high = found["range"]
    return (
        f"{name} {found['seconds']:7.3f} s ({low:.3f}-{high:.3f})  unique {found['unique_per_s']:8.0f} raw {found['raw_per_s']:8.0f} "
        f"tokens/s {found['tflops']:5.0f} TFLOP/s {100 * found['share']:3.0f} % {found['peak_gib']:6.1f} GiB {ratio}  "
        f"update {found['update']:.3f} first {found['first']:.0f} s graphs {found['graphs']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["1.5b", "0.5b"], choices=sorted(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[32768, 16384], help="positions of a packed row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON, after each line")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceiling = matmul_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: bf16 product {ceiling:.0f} TFLOP/s", flush=True)
    figures: dict[str, Any] = {"device": name, "torch": torch.__version__, "matmul_tflops": ceiling, "variants": []}
    for shape in given.shape:
        bench, base = Bench(shape, device, given.repeats, ceiling), None
        for v in variants(given.rows):
            if given.only not in v.name:
                continue
            found = bench.measure(v)
            if v.padded and v.bf16:
                base = found.get("raw_per_s")
            figures["variants"].append(found)
            print(line(found, base), flush=True)
            if given.out:
                given.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
