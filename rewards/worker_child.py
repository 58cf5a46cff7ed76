"""The process behind `rewards.workers.RewardPool`: builds a recipe's rewards, then scores one sample at a time.

Frames are 4 bytes of length and JSON, in on standard input, out on what was standard output. First the setup, answered by ["ready"] or
["error", text]; then for each request ["part", name] before every reward, and at last ["score", ...] or ["error", text].
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
from collections.abc import Callable
from typing import IO, Any

from rewards.score import Score, Text
from rewards.scorer import Timed


def write_frame(stream: IO[bytes], data: Any) -> None:
    text = json.dumps(data).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    stream.flush()


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            os._exit(0)  # the pool is gone
        data += part
    return data


def _read_frame(fd: int) -> Any:
    return json.loads(_read_exactly(fd, struct.unpack("<I", _read_exactly(fd, 4))[0]))


def worker() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the pool
    requests, answers = os.dup(0), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a reward prints must not get among the frames
    setup = _read_frame(requests)
    if os.getppid() != setup["parent"]:
        os._exit(0)
    if setup["memory_mb"]:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = setup["memory_mb"] << 20
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    zero: dict[str, str] = {}  # reward -> why the pool says that it is 0

    def around(name: str, call: Callable[[], Score]) -> Score:
        if name in zero:
            return Score(0.0, {}, zero[name])
        write_frame(answers, ["part", name])
        try:
            return call()
        except MemoryError:
            return Score(0.0, {}, "memory: over the worker's limit")

    try:
        timed = Timed(setup["spec"], around)
    except Exception as e:
        write_frame(answers, ["error", f"{type(e).__name__}: {e}" if not isinstance(e, ValueError) else str(e)])
        os._exit(1)
    write_frame(answers, ["ready"])
    while True:
        request = _read_frame(requests)
        zero = request["zero"]
        try:
            score = timed.score(Text(request["text"], request["tokens"], request["truncated"]), request["problem"])
            seconds = {name: taken for name, taken in timed.seconds.items() if name not in zero}
            write_frame(answers, ["score", score.value, dict(score.parts), score.reason, seconds])
        except Exception as e:
            write_frame(answers, ["error", str(e)])


if __name__ == "__main__":
    worker()
