"""One real supervised step of each student's recipe on the cards at hand, beside what its plan says: tokens a second, peak memory.

    python -m bench.sft_step --out sft.json                       # the cases that this host's cards allow, one process each
    python -m bench.sft_step --out sft.json --cases 20b,67b --limit 150
    python -m bench.sft_step --tiny                               # a dry run on a CPU

The recipe as `make sft` runs it (distill/sft.py: TRL's SFTTrainer over packed rows), on random weights of its model's shape and random
tokens. One update warms up (kernels, moments), one is measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.fit_step import GIB, TINY, launched, run_case, sweep

# name: recipe, shape, cards, what differs from the recipe, traces an update
CASES: dict[str, tuple[str, str, int, list[str], int]] = {
    "7b": ("student_7b", "qwen2.5-math-7b", 2, ["learn.row_tokens=16384", "data.context=16384"], 8),
    "7b-one": (
        "student_7b",
        "qwen2.5-math-7b",
        1,
        ["learn.optimizer=adamw8", "learn.row_tokens=16384", "data.context=16384"],
        4,
    ),
    "20b-lora": ("student_20b", "internlm2-20b", 1, ["model.lora.rank=32", "learn.row_tokens=8192", "data.context=8192"], 4),
    "67b-lora": ("student_67b", "deepseek-llm-67b", 2, ["model.lora.rank=32", "learn.row_tokens=8192", "data.context=8192"], 8),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sft_step")
    parser.add_argument("--out", type=Path, default=Path("runs/sft_step.json"))
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--limit", type=int, default=200, help="seconds a case")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape in place of each case's, on whatever is here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return run_case(args, measure)
    wanted = {name: case[2] for name, case in CASES.items()}
    return sweep(args, wanted, lambda name: launched("bench.sft_step", name, wanted[name], args, []), line)


def measure(args: argparse.Namespace, note: Any) -> None:
    """On each rank: the trainer of the recipe, two updates of it."""
    import torch
    from transformers import TrainerCallback

    from distill import config as configs
    from distill import rows, sft
    from recipes import plan
    from rl.policy import ROOT, load_tokenizer

    recipe, name, cards, overrides, batch = CASES[args.case]
    short = ["data.context=256", "learn.row_tokens=256", "rope_theta=0"] if args.tiny else []
    given = [
        *overrides,
        *short,
        f"learn.batch={batch}",
        "model.path=recipes/nano/base",
    ]  # its tokenizer, which nothing is made with
    config = configs.load(configs.Sft, f"recipes/{recipe}.toml", given)
    shape = plan.AutoConfig.for_model(**TINY) if args.tiny else plan.shape(name)
    samples = random_samples(config, shape.vocab_size, 4 * batch)
    packed, each = rows.plan(samples, 2, batch, config.learn.row_tokens, cards, 0)
    fullest = max(int(sum(samples.lengths[i] for i in row)) for row in packed[each:])
    note(
        planned=prediction(config, shape, float(samples.lengths.mean()), cards, fullest),
        rows=each,
        cards=cards,
        fullest=fullest,
    )
    sft.student = lambda config, device: random_student(config, shape, device, cards)  # type: ignore[assignment]
    folder = Path(tempfile.mkdtemp(prefix="sft-step-"))
    made = sft.trainer(config, folder, load_tokenizer(str(ROOT / "recipes/nano/base")), samples, packed, each, cards)
    cuda = torch.cuda.is_available()

    class Clock(TrainerCallback):
        begun = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            draw(made.model)
            note(built=True)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self.begun = time.perf_counter()

        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            # A trainer saves at its end, which is not what is measured: 90 GB for every weight of 7B.
            control.should_save = False
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self.begun
            tokens = sum(
                int(samples.lengths[i])
                for row in packed[(state.global_step - 1) * each : state.global_step * each]
                for i in row
            )
            found = {"update": state.global_step, "seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds}
            free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
            peak = torch.cuda.max_memory_allocated() / GIB if cuda else 0.0
            note(**found, torch_gib=peak, card_gib=(total - free) / GIB)

    made.add_callback(Clock())
    sft.learn(made, folder, samples, packed, each)


def random_samples(config: Any, vocabulary: int, count: int) -> Any:
    """Traces of half of the context on the mean, prompts of a sixteenth, ids at random."""
    import numpy as np

    from distill.rows import Samples

    draw = np.random.default_rng(0)
    context = config.data.context
    lengths = draw.integers(context // 8, context * 7 // 8, count)
    ids = draw.integers(10, vocabulary, int(lengths.sum())).astype(np.int32)
    return Samples(ids, np.cumsum([0, *lengths]), np.full(count, context // 16, np.int32))


def prediction(config: Any, shape: Any, mean: float, cards: int, fullest: int) -> dict[str, Any]:
    """The plan for rows of `fullest` tokens: random traces do not fill the recipe's."""
    from dataclasses import replace

    import torch

    from recipes import plan
    from recipes.plan_memory import use
    from recipes.sft import setup_of

    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else plan.host_memory()
    full = replace(config, learn=replace(config.learn, row_tokens=fullest), data=replace(config.data, context=fullest))
    setup = setup_of(full, mean, memory, cuda, cards, cards > 1 and cuda, shape)
    found = use(setup, sampling=False)[0]
    return {"torch_gib": found.torch_peak / GIB, "card_gib": found.peak / GIB, "fits": plan.fits(setup, [found])}


def random_student(config: Any, shape: Any, device: Any, cards: int) -> Any:
    """As distill/sft.py would load it; of several ranks the first has it in the host's memory, in pages that nobody has touched."""
    import torch
    from transformers import AutoModelForCausalLM

    from distill.sft import extend
    from rl.attention import PACKED

    dtype = torch.bfloat16 if config.model.lora.rank and device.type == "cuda" else torch.float32
    sharded = cards > 1
    with torch.device("meta" if sharded else device):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=PACKED)
    if sharded:
        model.to_empty(device="cpu")
        model.base_model.rotary_emb = type(model.base_model.rotary_emb)(shape)
    if config.rope_theta:
        extend(model, config.rope_theta, config.data.context)
    return model


def draw(model: Any) -> None:
    """Weights, where they lie by now."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            part = weight.to_local() if hasattr(weight, "to_local") else weight
            part.fill_(0.0 if name.endswith("bias") else 1.0) if weight.ndim == 1 else part.normal_(0.0, 0.02)


def line(found: dict[str, Any]) -> str:
    if "error" in found or "seconds" not in found:
        return f"{found['case']:<10} {found.get('error', 'nothing')}"
    p = found["planned"]
    return (
        f"{found['case']:<10} {found['cards']} card(s), {found['rows']} rows: update {found['seconds']:7.2f} s  "
        f"{found['tokens_per_s']:9,.0f} tokens/s  peak {found['torch_gib']:6.1f} GiB (planned {p['torch_gib']:.1f})  card "
        f"{found['card_gib']:6.1f} GiB (planned {p['card_gib']:.1f})  {found['total_s']:.0f} s in all"
    )


if __name__ == "__main__":
    sys.exit(main())
