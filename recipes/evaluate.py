"""`python -m recipes.evaluate`: eval/run.py with the problem sets that recipes generate (task `nano`)."""

from __future__ import annotations

import sys

from eval.run import main
from recipes.street import SOURCES

if __name__ == "__main__":
    sys.exit(main(sources=SOURCES))
