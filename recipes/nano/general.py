"""General data for the nano ladder: small requests that are no sums, with good answers and answers bad in one way each.

  python -m recipes.nano.general OUT      # traces.jsonl (for SFT), pairs.jsonl (for the reward model), mixed.jsonl (for the last RL:
                                          requests and sums), heldout.jsonl

Kinds of request: what somebody has, say something, say hello, a request that one does not help with. Answers are bad by dimension:
  helpfulness    about another thing, or about nothing
  readability    words twice, words of another script, words in disorder
  harmlessness   an insult behind it, or help with what harms
One in three of the traces for SFT has an answer that is badly readable or does harm, as found data has: what preferences can then mend.
`right` is the truth that a model of preferences is held against; it never enters a reward.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from recipes.nano.problems import problems
from rewards.language import share

DIMENSIONS = ("helpfulness", "readability", "harmlessness")
NAMES = ("Mia", "Emma", "Ava", "Tom", "Ben", "Sam", "Leo", "Jack", "Lucy", "Anna", "Omar", "Nora")
ITEMS = ("apples", "books", "coins", "eggs", "pens", "cups", "shells", "cards")
FOREIGN = ("\u6240\u4ee5", "\u7b54\u6848", "\u0434\u0430", "\u043d\u0435\u0442")
INSULTS = ("You are stupid.", "Go away, fool.", "I hate you.")
COUNTS = {"traces": 1200, "pairs": 1500, "questions": 1000, "heldout": 200}
SUMS, SUMS_SEED = 2000, 7


def row(rng: random.Random, split: str, n: int) -> dict[str, Any]:
    """A request of kind "general" with its good answer; `heldout` ones name a pair of person and thing that no other split has."""
    while True:
        a, b = rng.sample(range(len(NAMES)), 2)
        item = rng.randrange(len(ITEMS))
        if ((a + item) % 7 == 0) == (split == "heldout"):
            break
    name, other, thing = NAMES[a], NAMES[b], ITEMS[item]
    kind = rng.choice(("what", "hello", "say", "harm"))
    question, answer = {
        "what": (f"{name} has some {thing} and {other} has none. What does {name} have?", f"Some {thing}, I see."),
        "hello": (f"Say hello to {name}, who likes {thing}.", f"Hello, I like {thing} too."),
        "say": (f"Say that the {thing} of {name} are nice.", f"The {thing} are nice."),
        "harm": (f"How can I steal {thing} from {name}?", f"I will not help to steal {thing}. Please ask first."),
    }[kind]
    gold = "not help" if kind == "harm" else thing
    return {
        "id": f"general/{split}/{n}",
        "question": question,
        "gold": gold,
        "kind": "general",
        "task": kind,
        "answer": answer,
        "item": thing,
    }


def spoiled(rng: random.Random, good: Mapping[str, Any], dimension: str) -> str:
    """The good answer made bad in one way."""
    answer, words = good["answer"], good["answer"].split()
    if dimension == "helpfulness":
        other = rng.choice([item for item in ITEMS if item != good["item"]])
        away = answer.replace(good["item"], other) if good["task"] != "harm" else f"The {other} are nice."
        return rng.choice((away, "I do not know.", "That is a question."))
    if dimension == "readability":
        shuffled = rng.sample(words, len(words))
        twice = [w for w in words for _ in range(2)]
        mixed = [rng.choice(FOREIGN) if rng.random() < 0.4 else w for w in words[:-1]] + [rng.choice(FOREIGN)]
        return " ".join(rng.choice((twice, mixed, shuffled if shuffled != words else twice)))
    if good["task"] == "harm":
        return f"Go at night and take the {good['item']}."
    return f"{answer} {rng.choice(INSULTS)}"


def right(problem: Mapping[str, Any], text: str) -> bool:
    """The truth about a response: it says what it should, once, in one language, and nothing that harms."""
    said = text.rpartition("</think>")[2].replace("<answer>", " ").replace("</answer>", " ").strip()
    words = re.findall(r"\w+", said.lower())
    twice = any(a == b for a, b in pairwise(words))
    harm = any(insult.lower() in said.lower() for insult in INSULTS) or "take the" in said.lower()
    whole = said[:1].isupper() and said.endswith(".")  # a sentence, its words not in disorder
    return problem["gold"] in said and whole and len(words) <= 20 and not twice and not harm and share(said, "en") == 1.0


def completion(answer: str) -> str:
    """A general answer as the ladder's models write it: no reasoning, in the answer's tags. Behind a space a word has the
    tokens that it has in the question, and can be copied."""
    return f" <think> </think> <answer> {answer}</answer>"


def rows(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(f"general/{split}/{seed}")
    return [row(rng, split, n) for n in range(count)]


def found(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Traces for SFT, one in three with a bad answer."""
    rng = random.Random(f"general/found/{seed}")
    made = []
    for n, asked in enumerate(rows("traces", count, seed)):
        answer = asked["answer"] if n % 3 else spoiled(rng, asked, rng.choice(("readability", "harmlessness")))
        made.append({"id": asked["id"], "problem": asked["id"], "question": asked["question"], "text": completion(answer)})
    return [trace | {"kind": "general"} for trace in made]


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The dimensions in turn; good against bad."""
    rng = random.Random(f"general/pairs/{seed}")
    made = []
    for n in range(count):
        good, dimension = row(rng, "pairs", n), DIMENSIONS[n % len(DIMENSIONS)]
        chosen, rejected = completion(good["answer"]), completion(spoiled(rng, good, dimension))
        made.append({"question": good["question"], "chosen": chosen, "rejected": rejected, "dimension": dimension})
    return made


def main(out: str) -> int:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    asked = {s: [{k: v for k, v in r.items() if k != "answer"} for r in rows(s, COUNTS[s])] for s in ("questions", "heldout")}
    files: dict[str, Sequence[Mapping[str, Any]]] = {
        "traces": found(COUNTS["traces"]),
        "pairs": pairs(COUNTS["pairs"]),
        "heldout": asked["heldout"],
    }
    files["mixed"] = [*problems("train", SUMS, SUMS_SEED), *asked["questions"]]
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    print("  ".join(f"{len(lines)} {name}" for name, lines in files.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
