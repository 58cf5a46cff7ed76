"""Does it fit, and does it run as planned: one real learner update for each case, beside what recipes/plan.py predicts for this card.

    python -m bench.fit_step --out fit.json                       # all cases that this host's cards allow, one process each
    python -m bench.fit_step --out fit.json --cases 7b-lora,20b-lora --engine vllm --limit 120
    python -m bench.fit_step --tiny                               # a dry run on a CPU

Random weights of a published shape, made on the device; random tokens; the repository's own Learner. One update warms up (kernels,
moments), `--updates` are measured. `--engine reserve` holds the engine's share of the card as a block of memory; `vllm` starts a real
one with dummy weights in the same process and samples from it too (graphs are left out: they cost a minute). Results are written after
each case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 1 << 30
CHECKPOINTED = "model.gradient_checkpointing=true"
CASES: dict[str, tuple[str, int, list[str]]] = {  # name: shape, cards, overrides
    "7b-full": ("qwen2.5-7b", 1, [CHECKPOINTED, "learn.optimizer=adamw8", "rollout.engine.gpu_memory_utilization=0.25"]),
    "7b-full-fp32": ("qwen2.5-7b", 1, [CHECKPOINTED, "rollout.sleep=true", "rollout.engine.gpu_memory_utilization=0.25"]),
    "7b-lora": ("qwen2.5-7b", 1, [CHECKPOINTED, "model.lora.rank=32", "rollout.engine.gpu_memory_utilization=0.4"]),
    "20b-lora": ("internlm2-20b", 1, [CHECKPOINTED, "model.lora.rank=32", "rollout.engine.gpu_memory_utilization=0.4"]),
    "67b-lora": (
        "deepseek-llm-67b",
        2,
        [CHECKPOINTED, "model.lora.rank=32", "learn.row_tokens=8192", "rollout.placement=processes"],
    ),
    "0.5b": ("qwen2.5-0.5b", 1, ["learn.row_tokens=32768"]),
}
TINY = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
DEFAULT = "7b-full,7b-full-fp32,7b-lora,20b-lora,67b-lora"
PROMPT, GROUP, MEAN, LONGEST = 256, 8, 457, 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fit_step")
    parser.add_argument("--out", type=Path, default=Path("runs/fit_step.json"))
    parser.add_argument("--cases", default=DEFAULT, help=f"of {', '.join(CASES)}")
    parser.add_argument("--engine", choices=["none", "reserve", "vllm"], default="reserve")
    parser.add_argument("--limit", type=int, default=100, help="seconds a case")
    parser.add_argument("--rows", type=int, default=3, help="packed rows an update and card")
    parser.add_argument("--updates", type=int, default=1, help="that are measured")
    parser.add_argument("--compile", choices=["cuda", "never", "always"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape in place of each case's, on whatever is here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return run_case(args, measure)
    return sweep(args, {name: case[1] for name, case in CASES.items()}, lambda name: launch(name, args), line)


def sweep(
    args: argparse.Namespace,
    wanted: dict[str, int],
    launch: Callable[[str], dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
) -> int:
    """The cases of --cases one after the other, where there are the cards that each wants; --out is written after each."""
    import torch

    cards, results = (2 if args.tiny else torch.cuda.device_count()), list[dict[str, Any]]()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.cases.split(","):
        enough = wanted[name] <= cards
        results.append(launch(name) if enough else {"case": name, "error": f"wants {wanted[name]} cards, {cards} here"})
        args.out.write_text(json.dumps(results, indent=1))
        print(line(results[-1]), flush=True)
    return 0


def launch(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The case in processes of its own; what it left behind, or why there is nothing."""
    own = ["--engine", args.engine, "--rows", str(args.rows), "--updates", str(args.updates), "--compile", args.compile]
    return launched("bench.fit_step", name, CASES[name][1], args, own)


def launched(module: str, name: str, cards: int, args: argparse.Namespace, own: list[str]) -> dict[str, Any]:
    """`python -m module --case name ...`, on several cards by accelerate's launcher; what it wrote into its --out."""
    with tempfile.TemporaryDirectory(prefix="fit-step-") as folder:
        out, log = Path(folder) / "case.json", Path(folder) / "log"
        file = "recipes/accelerate/fsdp2.yaml"
        ranks = ["accelerate.commands.launch", "--config_file", file, "--num_processes", str(cards), "-m"] if cards > 1 else []
        command = [sys.executable, "-m", *ranks, module, "--case", name, "--out", str(out), *own] + ["--tiny"] * args.tiny
        with log.open("w") as file_:
            told = os.environ | {"PYTHONFAULTHANDLER": "1"}
            child = subprocess.Popen(command, stdout=file_, stderr=subprocess.STDOUT, start_new_session=True, env=told)
            try:
                code = child.wait(args.limit)
                why = "" if code == 0 else f"exit status {code}"
            except subprocess.TimeoutExpired:
                why = f"longer than {args.limit} s"
                if cards == 1:  # a launcher would leave its ranks behind
                    os.killpg(child.pid, signal.SIGABRT)  # says where it is, into the log
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(10)
            finally:
                end(child)
        found = json.loads(out.read_text()) if out.exists() else {"case": name}
        if why:
            tail = [text for text in log.read_text(errors="replace").splitlines() if text.strip()][-100:]
            found |= {"error": found.get("error") or why, "log": tail}
        return found


def end(child: subprocess.Popen[bytes]) -> None:
    """A launcher ends its ranks, which have sessions of their own, when it is asked to; then whatever is left of it."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            os.killpg(child.pid, ask)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)


def run_case(args: argparse.Namespace, measure: Callable[[argparse.Namespace, Any], None]) -> int:
    """In the case's own process (on each rank)."""
    began = time.perf_counter()
    found: dict[str, Any] = {"case": args.case}
    leading = int(os.environ.get("RANK", 0)) == 0

    def note(**values: Any) -> None:
        found.update(values, total_s=time.perf_counter() - began)
        if leading:
            args.out.write_text(json.dumps(found))

    try:
        measure(args, note)
    except Exception as error:
        note(error=f"{type(error).__name__}: {str(error)[:400]}")
        raise
    return 0


def measure(args: argparse.Namespace, note: Any) -> None:
    import torch

    from recipes import plan
    from rl import config as configs
    from rl.learn import Learner, accelerator
    from rl.policy import Policy

    name, cards, overrides = CASES[args.case]
    shape = plan.AutoConfig.for_model(**TINY) if args.tiny else plan.shape(name)
    config = settings(overrides, args, cards)
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else plan.host_memory()
    device = torch.cuda.get_device_name(0) if cuda else "cpu"
    lengths = (16, 24) if args.tiny else (PROMPT, MEAN)
    where = {"cards": cards, "cuda": cuda, "memory": memory, "device": device, "lengths": lengths, "shape": shape.to_dict()}
    note(config=configs.to_dict(config), where=where, planned=prediction(config, shape, where))
    acc = accelerator(config, Path(tempfile.gettempdir()))
    engine = Engine(args.engine if cuda and cards == 1 else "none", config, shape)
    note(engine=engine.kind, engine_start_s=engine.seconds, generated=engine.generate())
    model = build(shape, config, acc, sharded=cards > 1)
    learner = Learner(config, Policy(model), None, acc)
    note(built=True)
    engine.rest()
    learner.begin()
    if learner.ranks.rank:
        learner.ranks.follow()
    else:
        learn(learner, config, shape, args, note, engine)
        learner.ranks.end()
    acc.end_training()


def settings(overrides: list[str], args: argparse.Namespace, cards: int) -> Any:
    """As many groups as fill the rows of one update."""
    from dataclasses import replace

    from rl import config as configs

    config = configs.load("recipes/zero_gsm8k.toml", [*overrides, f"learn.compile={args.compile}"])
    rows = 512 if args.tiny else config.learn.row_tokens
    mean = 24 if args.tiny else MEAN
    prompt, longest = (16, 48) if args.tiny else (PROMPT, LONGEST)
    together = max(1, int(rows / (prompt + GROUP * mean)))
    rollout = replace(config.rollout, prompts=args.rows * cards * together, group=GROUP, max_tokens=longest)
    return replace(config, rollout=rollout, learn=replace(config.learn, row_tokens=rows))


def prediction(config: Any, shape: Any, where: dict[str, Any]) -> dict[str, Any]:
    """What the planner says of a case on the card that `where` describes."""
    from recipes import plan
    from recipes.plan_memory import engine, use
    from recipes.plan_time import cards, times

    many = where["cards"] > 1
    setup = plan.Setup(
        config, shape, where["memory"], cuda=where["cuda"], ranks=where["cards"], sharded=many and where["cuda"], shared=not many,
        prompt=where["lengths"][0], completion=where["lengths"][1],
    )  # fmt: skip
    uses = use(setup)
    card = next((c for n, c in cards().items() if n.split("-")[0] in where["device"].upper()), cards()["H200"])
    taken = times(setup, card, engine(setup))
    return {
        "fits": plan.fits(setup, uses), "torch_gib": uses[0].torch_peak / GIB, "card_gib": max(u.peak for u in uses) / GIB,
        "parts_gib": {k: v / GIB for k, v in uses[0].learn.items()}, "learn_s": taken.learn, "generate_s": taken.generate,
        "card": card.name,
    }  # fmt: skip


class Engine:
    """What shares the card with the learner."""

    def __init__(self, kind: str, config: Any, shape: Any) -> None:
        import torch

        began = time.perf_counter()
        self.kind, self.config, self.llm, self.block = kind, config, None, None
        share = float(config.rollout.engine.get("gpu_memory_utilization", 0.4))
        if kind == "vllm":
            os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
            try:
                from vllm import LLM
            except ImportError:
                self.kind = kind = "reserve"
        if kind == "vllm":
            self.folder = tempfile.TemporaryDirectory(prefix="fit-step-model-")
            shape.architectures = [{"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[shape.model_type]]
            shape.save_pretrained(self.folder.name)
            self.llm = LLM(
                model=self.folder.name, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16",
                gpu_memory_utilization=share, max_model_len=PROMPT + LONGEST, max_num_seqs=1024, disable_log_stats=True,
                enable_sleep_mode=config.rollout.sleep,
            )  # fmt: skip
        elif kind == "reserve" and not config.rollout.sleep:
            self.block = torch.empty(
                int(share * torch.cuda.get_device_properties(0).total_memory), dtype=torch.uint8, device="cuda"
            )
        self.seconds = time.perf_counter() - began
        self.held = torch.cuda.memory_allocated() if kind != "none" else 0  # not the learner's

    def generate(self, tokens: int = 64) -> dict[str, float] | None:
        """Seconds of a short rollout: the recipe's prompts and completions, `tokens` each."""
        if self.llm is None:
            return None
        from vllm import SamplingParams

        r = self.config.rollout
        params = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False)
        prompts = [{"prompt_token_ids": [5 + i % 900] * PROMPT} for i in range(r.prompts) for _ in range(r.group)]
        began = time.perf_counter()
        self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return {
            "sequences": len(prompts),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": len(prompts) * tokens / seconds,
        }

    def rest(self) -> None:
        if self.llm is not None and self.config.rollout.sleep:
            self.llm.sleep(level=2)


def build(shape: Any, config: Any, acc: Any, sharded: bool) -> Any:
    """The model with random weights on the device; sharded ones are drawn after they were sharded, before that they are nowhere."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl import adapters, ranks
    from rl.attention import PACKED

    lora = config.model.lora
    cuda = acc.device.type == "cuda"
    dtype = torch.bfloat16 if lora.rank and cuda else torch.float32
    with torch.device("meta" if sharded else acc.device):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=PACKED)
    if lora.rank:
        adapters.attach(model, lora, "")
    if sharded:
        ranks.shard = drawn(ranks.shard)
    return model


def drawn(shard: Callable[..., None]) -> Callable[..., None]:
    """`shard` for a model that is nowhere yet: each rank takes memory for its own parts, and draws them."""
    import torch

    from rl import ranks

    def shard_and_draw(module: Any, model: Any, device: Any) -> None:
        ranks._from_first = lambda tensor, device: tensor  # type: ignore[assignment]
        model.base_model.rotary_emb.to("meta")
        shard(module, model, device)
        module.to_empty(device=device)
        model.base_model.rotary_emb = type(model.base_model.rotary_emb)(model.config).to(device)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                local = weight.to_local() if hasattr(weight, "to_local") else weight
                local.fill_(0.0 if name.endswith("bias") else 1.0) if weight.ndim == 1 else local.normal_(0.0, 0.02)

    return shard_and_draw


def learn(learner: Any, config: Any, shape: Any, args: argparse.Namespace, note: Any, engine: Engine) -> None:
    """Updates on random groups, timed; the memory is that of the measured ones."""
    import torch

    cuda = torch.cuda.is_available()
    made = groups(config, shape, args.tiny)
    advantages = [[1.0 if g % 2 else -1.0 for g in range(config.rollout.group)] for _ in made]
    tokens = sum(len(g.prompt.ids) + sum(c.tokens for c in g.completions) for g in made)
    seconds = []
    for update in range(1 + args.updates):
        if cuda:
            torch.cuda.synchronize()
            if update == 1:
                torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        metrics = learner.step(made, advantages, config.rollout.max_tokens)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        note(warm_s=seconds[0], tokens=tokens, loss=metrics["loss"], grad_norm=metrics["grad_norm"])
    timed = statistics.median(seconds[1:])
    peak = (torch.cuda.max_memory_allocated() - engine.held) / GIB if cuda else 0.0
    free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
    note(
        learn_s=timed, tokens_per_s=tokens / timed, torch_gib=peak, card_gib=(total - free) / GIB,
        reserved_gib=torch.cuda.max_memory_reserved() / GIB if cuda else 0.0,
    )  # fmt: skip


def groups(config: Any, shape: Any, tiny: bool) -> list[Any]:
    """Random prompts with completions of mixed lengths, log-probs those of the uniform distribution."""
    import math

    from rl.records import Completion, Group, Prompt

    draw, r = random.Random(1), config.rollout
    prompt, mean, least, longest = (16, 24, 4, 48) if tiny else (PROMPT, 420, 32, LONGEST)
    even = -math.log(shape.vocab_size)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(shape.vocab_size), k=n))

    made = []
    for p in range(r.prompts):
        lengths = [min(longest, max(least, int(draw.lognormvariate(math.log(mean), 0.6)))) for _ in range(r.group)]
        completions = tuple(Completion(ids(n), (even,) * n, "stop", "", 0) for n in lengths)
        made.append(Group(Prompt(f"p{p}", ids(prompt), {"id": f"p{p}", "gold": ""}), completions))
    return made


def line(found: dict[str, Any]) -> str:
    if "learn_s" not in found:
        return f"{found['case']:<14} {found.get('error', 'nothing')}"
    p = found["planned"]
    return (
        f"{found['case']:<14} update {found['learn_s']:7.2f} s (planned {p['learn_s']:.2f})  {found['tokens_per_s']:9,.0f} positions/s  "
        f"learner {found['torch_gib']:6.1f} GiB (planned {p['torch_gib']:.1f})  card {found['card_gib']:6.1f} GiB "
        f"(planned {p['card_gib']:.1f})  engine {found['engine']}  {found['total_s']:.0f} s in all"
    )


if __name__ == "__main__":
    sys.exit(main())
