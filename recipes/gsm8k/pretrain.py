"""A base for GSM8K from scratch in minutes: `python -m recipes.gsm8k.pretrain --data DIR --out DIR --minutes 4`.

DIR holds gsm8k/train.jsonl and gsm8k/test.jsonl; the test is read only to keep it out. Text is made by all cores while torch loads; then
everything stays on the device. `--minutes` is the whole command's: the learning rate follows the clock where the documents would take
longer, so that it always ends decayed. Needs one GPU; on a CPU it runs too, for tests. manifest.json tells what the base is made of.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.decontaminate import decontaminate
from distill.traces import Trace
from eval.contamination import Contamination, contamination
from recipes.gsm8k.corpus import CHUNK, Document, Mix, Writer, documents
from recipes.gsm8k.templates import Template, read
from recipes.nano.corpus import PREFIX, Encoded
from recipes.nano.tokenizer import fast, train_bpe
from rl.data import read_file

VOCABULARY = 4096
TOKENIZER_DOCUMENTS = 8000
CHECKED = 20_000  # documents whose text is compared with the test
DECAY = 0.1  # of the weights
UNTIMED = 5  # steps, while layers compile
SAVING = 8.0  # seconds kept for it


@dataclass
class Clock:
    """Seconds since the command began, by what has ended then."""

    started: float = field(default_factory=time.time)
    ends: dict[str, float] = field(default_factory=dict)

    def end(self, name: str) -> None:
        self.ends[name] = round(time.time() - self.started, 1)
        print(f"{self.ends[name]:6.1f} s  {name}", flush=True)


@dataclass(frozen=True)
class Source:
    """What may be written from: GSM8K's training rows as templates without test questions, and how that was found."""

    templates: list[Template]
    tests: list[tuple[str, str]]  # id, question
    told: dict[str, Any]


def source(folder: Path) -> Source:
    """Raises ValueError where the files are not there."""
    rows = read_file(folder / "gsm8k" / "train.jsonl")
    tests = [(f"gsm8k/test/{i}", str(r["question"]).strip()) for i, r in enumerate(read_file(folder / "gsm8k" / "test.jsonl"))]
    templates, reasons = read(rows)
    row_of = {t.id: rows[int(t.id.rpartition("/")[2])] for t in templates}
    clean = decontaminate([Trace(id, id, r["question"], r["answer"]) for id, r in row_of.items()], {"gsm8k": tests})
    kept = {trace.id for trace in clean.kept}
    told = {
        "rows": len(rows),
        "templates": len(templates),
        "with_prose": sum(bool(t.prose) for t in templates),
        "no_template": dict(reasons.most_common()),
        "dropped_for_the_test": sorted(set(row_of) - kept),
        "templates_before": [counts(c) for c in clean.before],
        "templates_after": [counts(c) for c in clean.after],
    }
    return Source([t for t in templates if t.id in kept], tests, told)


def counts(c: Contamination) -> dict[str, float]:
    """Test questions that stand in the training text whole, of which it has 70 % of the n-grams, and the largest share."""
    share = max((f.share for f in c.found), default=0.0)
    return {"n": c.n, "rows": c.rows, "whole": c.whole, "most": c.most, "largest_share": round(share, 3)}


def written(
    count: int, seed: int, mix: Mix, templates: Sequence[Template], tests: list[tuple[str, str]]
) -> list[dict[str, float]]:
    """The same check on the corpus' own first documents, as text."""
    texts: list[Document] = []
    for chunk in range(-(-count // CHUNK)):
        texts += documents(CHUNK, f"{seed}/{chunk}", mix, templates)
    return [
        counts(c)
        for c in contamination(((str(i), f"{d.question}\n{d.completion}") for i, d in enumerate(texts)), {"gsm8k": tests})
    ]


def train(
    model: Any, encoded: Encoded, prefix: int, pad: int, options: argparse.Namespace, device: str, deadline: float
) -> dict[str, Any]:
    """One pass over the documents, or what of it the time allows. The completions' loss is the mean of each 2 % of the pass."""
    import torch

    from recipes.nano.pretrain import batches, document_loss, rate_at, to_buckets
    from rl.attention import PACKED
    from rl.policy import Policy

    model.set_attn_implementation(PACKED)
    if device == "cuda":
        Policy(model).compile_layers()
    order = list(batches(to_buckets(encoded, pad, device), options.batch_tokens, options.seed))
    groups = [[p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": DECAY}, {"params": groups[1], "weight_decay": 0.0}],
        lr=options.rate, betas=(0.9, 0.95), fused=device == "cuda",
    )  # fmt: skip
    curve: list[float] = []
    recent: list[torch.Tensor] = []
    tokens, timed, begun = 0, 0, time.time()
    every = max(1, len(order) // 50)
    for step, batch in enumerate(order):
        if step == UNTIMED:
            begun, timed = time.time(), tokens
        late = (time.time() - begun) / max(1e-3, deadline - begun) if step >= UNTIMED else 0.0
        if late >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate_at(int(1000 * max(step / len(order), late)), 1000)
        loss, shown = document_loss(model, *batch, prefix)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(batch[0].shape[0] * (batch[0].shape[1] - prefix))
        recent.append(shown)
        if step % 5 == 0:
            float(shown)  # so that the clock is the device's
        if (step + 1) % every == 0:
            curve.append(round(float(torch.stack(recent).mean()), 4))
            recent = []
            speed = (tokens - timed) / (time.time() - begun)
            print(f"step {step + 1}/{len(order)}  loss {curve[-1]:.4f}  {speed:,.0f} tokens/s", flush=True)
    speed = (tokens - timed) / (time.time() - begun)
    return {
        "steps": step + (late < 1),
        "steps_of_the_pass": len(order),
        "tokens": tokens,
        "tokens_per_s": round(speed),
        "loss_curve": curve,
    }


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Make the base and write it to `options.out`; returns its manifest."""
    clock, mix = Clock(), Mix(**json.loads(options.mix))
    given = source(options.data)
    clock.end("rows read")
    sample = documents(TOKENIZER_DOCUMENTS, f"{options.seed}/tokenizer", mix, given.templates)
    bpe = train_bpe((PREFIX, *(d.prompt[len(PREFIX) :] + d.completion for d in sample)), VOCABULARY)
    clock.end("tokenizer trained")
    chunks = max(1, options.documents // CHUNK)
    writer = Writer(chunks, options.seed, mix, given.templates, bpe.to_str(), [q for _, q in given.tests], options.processes)
    check = writer.pool.submit(written, min(CHECKED, chunks * CHUNK), options.seed, mix, given.templates, given.tests)

    import torch
    import transformers

    from recipes.nano.pretrain import build_model, save

    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = fast(bpe)
    model = build_model(
        options.hidden, options.layers, options.heads, options.intermediate, tokenizer, VOCABULARY, options.key_heads
    ).to(device)  # fmt: skip
    clock.end("model built")
    encoded, checked = writer.encoded(), check.result()
    clock.end(f"{len(encoded.lengths):,} documents written")
    if encoded.overlap or any(c["most"] for c in checked):
        raise RuntimeError(f"test questions stand in the corpus: {encoded.overlap} documents, {checked}")
    prefix = len(tokenizer(PREFIX)["input_ids"])
    trained = train(
        model, encoded, prefix, tokenizer.pad_token_id, options, device, clock.started + 60 * options.minutes - SAVING
    )
    clock.end("trained")
    save(model, tokenizer, options.out)
    clock.end("saved")
    manifest = {
        "command": "python -m recipes.gsm8k.pretrain",
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "data", "mix", "processes")},
        "mix": asdict(mix),
        "parameters": sum(p.numel() for p in model.parameters()),
        "gsm8k": given.told,
        "documents": len(encoded.lengths),
        "documents_that_are_test_questions": encoded.overlap,
        "documents_checked": checked,
        "prefix_tokens": prefix,  # computed once for all documents of a row
        **trained,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processes": options.processes,
        "seconds": clock.ends,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.gsm8k.pretrain", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds gsm8k/train.jsonl and gsm8k/test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the whole command, at most")
    parser.add_argument("--documents", type=int, default=800_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--heads", type=int, default=12, help="of 64 each")
    parser.add_argument("--key-heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=2304)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch-tokens", type=int, default=131_072, help="prompts' common beginning counted in each document")
    parser.add_argument("--mix", default="{}", help='JSON of what differs from corpus.Mix, such as {"error": 0.1}')
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args(arguments)


if __name__ == "__main__":
    pretrain(parse())
