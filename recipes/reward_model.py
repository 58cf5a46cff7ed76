"""Pairs -> a preference reward model: `python -m recipes.reward_model recipes/preference_X.toml key.sub=value ...`.

One model a dimension (helpfulness, readability, harmlessness, or what [dimensions] names), each a sequence classifier with one score,
trained by TRL's RewardTrainer on the pairs of its dimension: -log sigmoid(r(chosen) - r(rejected)) (Bradley-Terry). A file of pairs has
`question`, `chosen`, `rejected` and, where there is more than one dimension, `dimension`. A pair of which a text is longer than
learn.max_tokens or the model's context is dropped and counted. Pairs are held out by question, all pairs of a question together.

The folder is what [rewards.preference] names (rl/judge.py): a folder a dimension, and judge.json with weights, mean and standard deviation
of the scores, and on held-out pairs how often the chosen one wins (a question's pairs averaged, with the interval over questions), and
the scores' correlation with length: a judge that pays for length will be hacked by it. Killed and started again with the same command it
goes on with the next dimension; with another config or other pairs (config.json, inputs.json) the folder is refused.
Exit code 0: done. 2: the input cannot be used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoConfig

from eval.estimators import mean_of_questions
from recipes import folder as folders
from recipes import result
from recipes.run import quiet_libraries
from rl import judge
from rl.checkpoint import whole
from rl.config_tree import build, override
from rl.data import Order, read_file
from rl.judge import Dimension, Judge, judged_text
from rl.policy import load_tokenizer, resolve


@dataclass(frozen=True)
class Wanted:
    """One dimension: its weight in the score, and the part of a response that it looks at."""

    weight: float = 1.0
    part: Literal["all", "answer"] = "all"


@dataclass(frozen=True)
class Learn:
    lr: float = 6e-6
    epochs: float = 1.0
    batch: int = 256  # pairs an update
    micro: int = 16  # pairs a pass
    max_tokens: int = 8192  # of question and response


@dataclass(frozen=True)
class Preference:
    name: str = "preference"
    out: str = ""  # the folder; empty: runs/NAME
    seed: int = 0
    model: str = ""  # what each dimension's model begins as
    pairs: tuple[str, ...] = ()  # .jsonl or .parquet
    heldout: float = 0.1  # share of the questions whose pairs nothing is trained on
    dimensions: Mapping[str, Wanted] = field(default_factory=dict)
    learn: Learn = field(default_factory=Learn)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.reward_model", description="Train a preference reward model from pairs."
    )
    parser.add_argument("recipe", help="a TOML file, e.g. recipes/preference_nano.toml")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_args(argv)
    try:
        config = load(args.recipe, args.overrides)
        folder = Path(config.out or f"runs/{config.name}")
        with folders.claimed(folder):
            run(config, folder)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return 0


def load(path: str | Path, overrides: Sequence[str] = ()) -> Preference:
    """Raises ValueError in one line."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"recipe {path}: cannot be read: {error}") from None
    for text in overrides:
        override(tree, text)
    config: Preference = build(Preference, tree, "")
    if not config.dimensions or not config.pairs:
        raise ValueError("pairs and [dimensions.NAME] are both needed: what is preferred, and under which names")
    if (
        any(not d.weight > 0 for d in config.dimensions.values())
        or not 0 < config.heldout < 1
        or min(config.learn.batch, config.learn.micro) < 1
    ):
        raise ValueError(
            "dimensions.NAME.weight must be above 0, heldout between 0 and 1, learn.batch and learn.micro at least 1"
        )
    if config.learn.batch % config.learn.micro:
        raise ValueError(f"learn.batch = {config.learn.batch} does not divide by learn.micro = {config.learn.micro}")
    return config


def run(config: Preference, folder: Path) -> None:
    """Every dimension that is not there yet, then judge.json."""
    quiet_libraries()
    rows = load_pairs(config)
    parts = {name: divided(config, name, rows) for name in config.dimensions}  # first: bad pairs leave no folder
    claim(config, rows, folder)
    begun, told = time.time(), {}
    for name, wanted in config.dimensions.items():
        used, held, dropped = parts[name]
        kept = folder / f"{name}.json"
        if not kept.exists():
            train(config, used, folder / name)
            result.write_json(kept, measured(folder, name, wanted, used, held) | {"dropped": dropped})
        told[name] = json.loads(kept.read_text())
        t = told[name]
        win = t["accuracy"]
        print(
            f"{name}: {t['pairs']} pairs ({t['dropped']} over-long dropped); of {t['heldout']} held out ({win['n']} questions) "
            f"chosen wins {win['value']:.3f} [{win['low']:.3f}, {win['high']:.3f}], correlation with length {t['length']:+.2f}", flush=True,
        )  # fmt: skip
    result.write_json(folder / judge.FILE, {"model": config.model, "minutes": (time.time() - begun) / 60, "dimensions": told})
    print(f"judge {folder / judge.FILE}", flush=True)


def claim(config: Preference, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Whether what the folder holds, if anything, was made by this config of these pairs; else ValueError. Writes both down."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    pairs = {"pairs": len(rows), "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}
    made, of = folder / "config.json", folder / "inputs.json"
    if made.exists():
        old = json.loads(made.read_text())
        changed = [key for key in settings if old.get(key) != settings[key]]
        if not changed and (not of.exists() or json.loads(of.read_text()) != pairs):
            changed = [f"the rows of {', '.join(config.pairs)}"]
        if changed:
            raise ValueError(
                f"{folder} holds a model made otherwise ({', '.join(changed)} changed): choose another folder with out="
            )
    result.write_json(of, pairs)
    result.write_json(made, settings)  # last: a folder with it has both


def load_pairs(config: Preference) -> list[dict[str, Any]]:
    """Raises ValueError with the row."""
    rows, only = list[dict[str, Any]](), next(iter(config.dimensions))
    for path in config.pairs:
        for n, row in enumerate(read_file(Path(path)), 1):
            made: dict[str, Any] = {
                "question": row.get("question", row.get("prompt")),
                "chosen": row.get("chosen"),
                "rejected": row.get("rejected"),
            }
            if not all(isinstance(text, str) for text in made.values()):
                raise ValueError(f"{path}, row {n}: question, chosen and rejected must be texts; it has {sorted(row)}")
            try:
                "".join(made.values()).encode()
            except UnicodeEncodeError:  # a tokenizer would not take it
                raise ValueError(
                    f"{path}, row {n}: half of a character (a lone surrogate) in a text: mend or remove the row"
                ) from None
            made["dimension"] = row.get("dimension", only if len(config.dimensions) == 1 else None)
            if made["dimension"] not in config.dimensions:
                raise ValueError(f"{path}, row {n}: dimension {made['dimension']!r} is none of {', '.join(config.dimensions)}")
            rows.append(made)
    return rows


def divided(config: Preference, name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any], int]:
    """A dimension's pairs to train on, those held out, and how many were over-long. No question is in both. Raises ValueError.

    The pairs have their token ids, `chosen_ids` and `rejected_ids`; over-long is what training or the judge could not read whole.
    """
    tokenizer, context = load_tokenizer(config.model), AutoConfig.from_pretrained(resolve(config.model, "model"))
    limit, part = min(config.learn.max_tokens, context.max_position_embeddings), config.dimensions[name].part
    of_question, over = defaultdict[str, list[Any]](list), 0
    for row in rows:
        if row["dimension"] != name:
            continue
        texts = {f"{which}_ids": judged_text(row["question"], row[which], part) for which in ("chosen", "rejected")}
        ids = {which: tokenizer(text)["input_ids"] for which, text in texts.items()}
        if max(map(len, ids.values())) > limit:
            over += 1
        else:
            of_question[row["question"]].append({**row, **ids})
    questions = list(of_question.values())
    if len(questions) < 10:
        raise ValueError(
            f"dimension {name} has {sum(map(len, questions))} pairs of {len(questions)} questions in {', '.join(config.pairs)}, and {over} "
            f"of more than {limit} tokens (learn.max_tokens, the model's context): from fewer than 10 questions nothing can be learned "
            "and measured"
        )
    order, cut = Order(len(questions), config.seed).take(0, len(questions)), max(5, round(config.heldout * len(questions)))
    held, used = ([pair for i in chosen for pair in questions[i]] for chosen in (order[:cut], order[cut:]))
    return used, held, over


def train(config: Preference, pairs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """One dimension's model into `folder`, whole or not at all."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    learn, tokenizer = config.learn, load_tokenizer(config.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ids = [{name: pair[name] for name in ("chosen_ids", "rejected_ids")} for pair in pairs]
    torch.manual_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(resolve(config.model), num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    cuda = torch.cuda.is_available()
    work = folder.with_name(f".{folder.name}.work")
    args = RewardConfig(
        output_dir=str(work), per_device_train_batch_size=learn.micro, gradient_accumulation_steps=learn.batch // learn.micro,
        learning_rate=learn.lr, num_train_epochs=learn.epochs, seed=config.seed, data_seed=config.seed, max_length=None, bf16=cuda,
        use_cpu=not cuda, gradient_checkpointing=cuda, logging_steps=10, save_strategy="no", report_to=[], disable_tqdm=True,
        center_rewards_coefficient=0.01, lr_scheduler_type="linear", dataloader_pin_memory=cuda,
    )  # fmt: skip
    trainer = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(ids), processing_class=tokenizer)
    trainer.train()
    with whole(folder) as temporary:
        model.to(torch.bfloat16 if cuda else torch.float32).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def measured(folder: Path, name: str, wanted: Wanted, used: Sequence[Any], held: Sequence[Any]) -> dict[str, Any]:
    """Scale of the scores on training answers; on held-out pairs how often the chosen one wins, and what length has to do with it.

    A pair of which the model cannot read a text is in no figure.
    """
    scorer = object.__new__(Judge)  # of one dimension, before there is a judge.json
    scorer.folder, scorer.loaded = folder, {}
    scorer.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def scored(rows: Sequence[Any]) -> list[tuple[Any, float, float]]:
        chosen, rejected = (
            scorer.raw(name, [judged_text(row["question"], row[which], wanted.part) for row in rows])
            for which in ("chosen", "rejected")
        )
        every = zip(rows, chosen, rejected, strict=True)
        return [(row, a, b) for row, a, b in every if a is not None and b is not None]

    known = [score for _, *two in scored(used) for score in two]
    wins = defaultdict[str, list[float]](list)
    both, lengths = list[float](), list[float]()
    judged = scored(held)
    for row, a, b in judged:
        wins[row["question"]].append(float(a > b))
        both += [a, b]
        lengths += [float(len(row["chosen"])), float(len(row["rejected"]))]
    steady = len(set(lengths)) > 1 and len(set(both)) > 1
    accuracy = mean_of_questions([statistics.fmean(of) for of in wins.values()])
    return asdict(Dimension(name, wanted.weight, wanted.part, statistics.fmean(known), max(statistics.pstdev(known), 1e-6))) | {
        "pairs": len(used), "heldout": len(judged), "accuracy": asdict(accuracy),
        "length": statistics.correlation(both, lengths) if steady else 0.0,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
