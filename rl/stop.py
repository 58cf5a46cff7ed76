"""SIGTERM and ctrl-C: heard at once where a run can be left, elsewhere at the next such place.

A run can be left while it samples or evaluates: weights and optimiser rest, and the step in flight is made again after a resume. It
cannot be left between the first of a step's updates and the last word about the step. What the trainer does outside (model, engine,
checkpoint) lasts seconds, sampling lasts minutes: so a run that is told to go saves well within the grace that a scheduler gives.
The second SIGTERM is ignored; the second ctrl-C ends the process as it always did, without saving.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ended(KeyboardInterrupt):
    """The run was told to end by the signal `number`, at a place where it can be left."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_heard: int | None = None  # the signal that came
_open = True  # whether this is a place where the run can be left


@contextmanager
def listening() -> Iterator[None]:
    """Inside, SIGTERM and ctrl-C raise Ended as described above. At first every place can be left."""
    global _heard, _open
    _heard, _open = None, True
    before = {number: signal.signal(number, _hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _heard, _open = None, True
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def closed() -> Iterator[None]:
    """A part of a run that cannot be left, but for what is inside `opened`."""
    with _set(False):
        yield


@contextmanager
def opened() -> Iterator[None]:
    """A place where the run can be left: raises Ended here when a signal came before, and whenever one comes inside."""
    with _set(True):
        if _heard is not None:
            raise Ended(_heard)
        yield


@contextmanager
def _set(value: bool) -> Iterator[None]:
    global _open
    before, _open = _open, value
    try:
        yield
    finally:
        _open = before


def _hear(number: int, frame: Any) -> None:
    global _heard
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # leaving is not torn apart
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _heard = number
    if _open:
        raise Ended(number)
