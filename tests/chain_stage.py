"""A stage for tests of the chain: counts to STEPS into OUT/steps, going on from what is there; then writes OUT/final/sum."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(out: str, steps: str, pause: str, *read: str) -> int:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not steps.isdigit():
        print("error: steps must be a number")
        return 2
    done = (folder / "steps").read_text().splitlines() if (folder / "steps").exists() else []
    start = sum(int(Path(name).read_text()) for name in read)
    for step in range(len(done), int(steps)):
        with (folder / "steps").open("a") as file:
            file.write(f"{step}\n")
        if step < 2:  # then it is silent, as a stage may be: nobody who reads is missed
            print(f"step {step}", flush=True)
        time.sleep(float(pause))
    (folder / "final").mkdir(exist_ok=True)
    (folder / "final" / "sum").write_text(str(start + int(steps)))
    (folder / "result.json").write_text(f'{{"steps": {steps}}}')
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
