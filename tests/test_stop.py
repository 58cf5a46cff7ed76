"""When SIGTERM and ctrl-C are heard."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from rl import stop


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_once_where_a_run_can_be_left(number: int) -> None:
    with stop.listening(), pytest.raises(stop.Ended) as ended:
        send(number)
    assert ended.value.number == number


def test_elsewhere_at_the_next_such_place() -> None:
    passed = []
    with stop.listening(), stop.closed():
        with stop.opened():
            passed.append("sampled")
        send()
        passed.append("learned")
        with pytest.raises(stop.Ended), stop.opened():
            passed.append("sampled again")
        with stop.closed():
            passed.append("saved")
    assert passed == ["sampled", "learned", "saved"]


def test_a_second_sigterm_is_ignored_and_a_second_ctrl_c_ends() -> None:
    with stop.listening(), stop.closed():
        send()
        send()
        with pytest.raises(KeyboardInterrupt) as ended:
            send(signal.SIGINT)
    assert not isinstance(ended.value, stop.Ended)


def test_nothing_is_left_for_the_next_run() -> None:
    with stop.listening(), stop.closed():
        send()
    left = []
    with stop.listening(), stop.closed():
        with stop.opened():
            left.append("sampled")
        left.append("learned")
    assert left == ["sampled", "learned"]
