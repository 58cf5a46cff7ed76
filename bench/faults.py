"""`python -m bench.faults [--readme]`, or `make faults`: every planted fault in a real run of a tiny model, and what caught it.

One line a guard (rl/guard_rules.py) and one a line of the doctor (recipes/doctor_checks.py); the last line is a run without a fault under
the same guards at their strictest. `--readme` puts the table into README.md, between its two marks. Exit code 1 where one was not caught.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rl.policy import ROOT
from tests.faults import ill, planted

BEGIN, END = "<!-- make faults -->\n", "<!-- end -->\n"
HEAD = ("by", "fault", "caught", "reason")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description="Every planted fault, and what caught it.")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so small a model is slower on two
    lines = [f"| {' | '.join(HEAD)} |", "| --- | --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    missed = 0
    for name, what, caught, reason in rows():
        missed += caught == "no"
        lines.append(f"| {name} | {what} | {caught} | {reason} |")
        print(lines[-1], flush=True)
    if args.readme:
        path = ROOT / "README.md"
        text = path.read_text()
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        path.write_text(before + "\n".join(lines) + "\n" + after)
    return int(missed > 0)


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(what caught it, the fault, when, the reason in short) of each, as they are run."""
    for fault in planted.FAULTS:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            try:
                got = planted.run(fault, Path(folder))
            except planted.NoPlace as why:
                yield f"guard {fault.guard}", fault.what, "not tried", str(why)
                continue
        named = got.code == 1 and f"guard {fault.guard}: " in got.reason and fault.told in got.reason
        reason = got.reason.partition(f"guard {fault.guard}: ")[2] or got.reason
        yield f"guard {fault.guard}", fault.what, f"step {got.step}" if named else "no", short(reason)
    for sick in ill.ILLS:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            try:
                code, said = ill.examine(sick, Path(folder))
            except planted.NoPlace as why:
                yield f"doctor {sick.line}", sick.what, "not tried", str(why)
                continue
        told = re.search(rf"^FAIL {re.escape(sick.line)} +(.*)$", said, re.M)
        named = code == 1 and told is not None and sick.told in told[1]
        yield f"doctor {sick.line}", sick.what, "before the run" if named else "no", short(told[1] if told else said)
    yield healthy()


def healthy() -> tuple[str, str, str, str]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        code, said, reason = planted.healthy(Path(folder))
    well = code == 0 and "warning" not in said
    return (
        "nothing",
        "none: the embedded base on its own problems",
        "not at all" if well else "no",
        short(reason) or "3 steps go by, without a warning",
    )


def short(text: str, most: int = 150) -> str:
    """The first sentence or so, as a cell of a table."""
    text = " ".join(text.split()).replace("|", "/").partition(". ")[0]
    text = re.sub(r"/\S*faults-\S+?(?=[/\s,])", "…", text)
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


if __name__ == "__main__":
    sys.exit(main())
