"""A rollout worker with something broken, for ProcessPlace(environment, module="tests.faulty_worker"). FAULT chooses what.

Everything else is the real worker: same process, same frames, same engine.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rl import frames, worker_child
from rl.records import Completion, Sampling

FAULT, AFTER = os.environ.get("FAULT", ""), int(os.environ.get("AFTER", "1"))  # AFTER: finished groups, before it happens
VOCABULARY = 330


def main() -> int:
    serve(socket.socket(fileno=int(sys.argv[1])))
    return 0


def serve(link: socket.socket) -> None:
    if os.environ.get("SCRIPTED"):
        worker_child.build = lambda spec: Scripted(float(os.environ["SCRIPTED"]))
        if os.environ.get("LOADS"):
            import torch  # noqa: F401
    if FAULT.startswith("start:"):
        _AT_START[FAULT.removeprefix("start:")]()
    if FAULT.startswith("group:"):
        _in_generate(_GROUPS[FAULT.removeprefix("group:")])
    elif FAULT.startswith("answer:"):
        change = _ANSWERS[FAULT.removeprefix("answer:")]
        encode = frames.encode
        frames.encode = lambda completions: change(*encode([change_one(c) for c in completions]))
    elif FAULT in _LOADS:
        build = worker_child.build

        def built(spec: dict[str, Any]) -> Any:
            sampler = build(spec)
            _LOADS[FAULT](sampler)
            return sampler

        worker_child.build = built
    worker_child.serve(link)


class Scripted:
    """Answers that follow from prompt and seed alone, at a pace (seconds a prompt); starts at once, for there is no torch in it."""

    dtype = "float32"
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY)))

    def __init__(self, pace: float) -> None:
        self.pace, self.version = pace, 0
        self.between = self.alive = lambda: None

    def generate(self, prompts: Any, sampling: Sampling, done: Any) -> None:
        waiting = deque(enumerate(prompts))
        count = len(waiting)
        while waiting:
            index, prompt = waiting.popleft()
            time.sleep(self.pace)
            for new in done(index, scripted(prompt, sampling, self.version)) or []:
                waiting.append((count, new))
                count += 1
            self.between()

    def load(self, weights: Any, version: int) -> None:
        self.sums = {name: int(weight.sum()) for name, weight in weights}
        self.version = version

    def fingerprint(self) -> dict[str, int]:
        return self.sums


def scripted(prompt: Any, sampling: Sampling, version: int) -> list[Completion]:
    ids = [(sum(prompt) + sampling.seed + k) % VOCABULARY for k in range(sampling.n)]
    return [Completion((i, len(prompt)), (-0.5, -0.25), "length", f"{i}", version) for i in ids]


def _in_generate(happens: Callable[[], None]) -> None:
    """Once, before the answer to finished group number AFTER + 1."""
    encode, told = frames.encode, 0

    def counted(completions: Any) -> Any:
        nonlocal told
        told += 1
        if told > AFTER:
            happens()
        return encode(completions)

    frames.encode = counted


def _raise(error: Exception) -> Any:
    raise error


def _builds_nothing() -> None:
    worker_child.build = lambda spec: _raise(ValueError(f"model.path = {spec['path']!r}: no such folder"))


_AT_START: dict[str, Callable[[], Any]] = {
    "raises": _builds_nothing,
    "dies": lambda: os._exit(3),
    "hangs": lambda: time.sleep(3600),
    "garbage": lambda: os.write(int(sys.argv[1]), b"GET / HTTP/1.1\r\n\r\n"),
}
_GROUPS: dict[str, Callable[[], Any]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "asleep": lambda: time.sleep(3600),  # the process is there and reads messages, the engine's thread hangs
    "memory": lambda: _raise(MemoryError("cannot allocate 1.0 TiB")),
    "cuda": lambda: _raise(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    "exits": lambda: os._exit(7),
}


def change_one(c: Any) -> Any:
    """The completion, or one that no engine gives."""
    kind = FAULT.removeprefix("answer:")
    if kind == "nan":
        return replace(c, logprobs=(float("nan"), *c.logprobs[1:]))
    if kind == "positive":
        return replace(c, logprobs=(0.7, *c.logprobs[1:]))
    if kind == "vocabulary":
        return replace(c, ids=(330, *c.ids[1:]))
    if kind == "long":
        return replace(c, ids=c.ids * 99, logprobs=c.logprobs * 99)
    if kind == "empty":
        return replace(c, ids=(), logprobs=())
    if kind == "switches":
        return replace(c, switches=((c.tokens + 1, 4),))
    return c


def _fewer(fields: dict[str, Any], payload: bytes) -> Any:
    """One completion is left out of the table, its bytes are not."""
    return {name: values[1:] for name, values in fields.items()}, payload


_ANSWERS: dict[str, Callable[[dict[str, Any], bytes], Any]] = {
    **dict.fromkeys(("nan", "positive", "vocabulary", "long", "empty", "switches"), lambda fields, payload: (fields, payload)),
    "torn": lambda fields, payload: (fields, payload[:-4]),
    "fewer": _fewer,
    "count": lambda fields, payload: ({name: [] for name in fields}, b""),
    "nameless": lambda fields, payload: ({"lengths": fields["lengths"]}, payload),
    "index": lambda fields, payload: (fields | {"group": 99}, payload),
    "text": lambda fields, payload: (fields | {"group": "first"}, payload),
    "number": lambda fields, payload: (fields | {"id": [1]}, payload),
}


def _skips_one(sampler: Any) -> None:
    """One weight stays as it was."""
    load = sampler.load

    def most(weights: Any, version: int) -> None:
        old = dict(sampler.model.named_parameters())
        stale = "model.layers.1.mlp.up_proj.weight"
        load([(n, old[n].clone() if n == stale else w.clone()) for n, w in weights], version)

    sampler.load = most


def _stale_version(sampler: Any) -> None:
    """It takes part in a weight update and keeps what it had."""
    sampler.load = lambda weights, version: [None for _ in weights]


def _stale_cache(sampler: Any) -> None:
    """The cache outlives weights 4; and before a prompt that begins with VOCABULARY - 1 the engine's front end puts another token."""
    load, reset, enqueue = sampler.load, sampler.llm.reset_prefix_cache, sampler.llm.enqueue

    def stale(weights: Any, version: int) -> None:
        sampler.llm.reset_prefix_cache = (lambda **_: True) if version == 4 else reset
        load(weights, version)

    sampler.load = stale

    def changed(prompts: Any, *args: Any, **kw: Any) -> Any:
        every = [p["prompt_token_ids"] for p in prompts]
        return enqueue([{"prompt_token_ids": [2] * (p[0] == VOCABULARY - 1) + p} for p in every], *args, **kw)

    sampler.llm.enqueue = changed


def _second_bos_plain(sampler: Any) -> None:
    batch = sampler._batch
    sampler._batch = lambda prompts, sampling: batch([[2, *p] for p in prompts], sampling)


def _by_version(sampler: Any) -> None:
    """A fault for each version of the weights, so that one worker shows them all."""
    right, batch = sampler.load, sampler._batch

    def load(weights: Any, version: int) -> None:
        sampler.load, sampler._batch = right, batch
        {3: _skips_one, 4: _stale_version, 5: _second_bos_plain}.get(version, lambda _: None)(sampler)
        sampler.load(weights, version)
        sampler.load = load

    sampler.load = load


def _at_load(happens: Callable[[], Any]) -> Callable[[Any], None]:
    def planted(sampler: Any) -> None:
        load = sampler.load

        def broken(weights: Any, version: int) -> None:
            first = iter(weights)
            one = next(first)
            happens()
            load([one, *first], version)

        sampler.load = broken

    return planted


_LOADS: dict[str, Callable[[Any], None]] = {
    "load:by_version": _by_version,
    "load:cache": _stale_cache,
    "load:hangs": _at_load(lambda: time.sleep(3600)),
    "load:raises": _at_load(lambda: _raise(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))),
    "load:killed": _at_load(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "load:stopped": _at_load(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
}

if __name__ == "__main__":
    sys.exit(main())
