"""A rollout worker: one sampler in a process of its own, told what to do over a socket (`python -m rl.worker_child FD`).

One thread does everything that touches the engine; between two of the engine's steps it looks for messages, so weights can come, canaries
be answered and prompts be added while it generates. Each second of work it gives a sign of life, from that same thread: a hung engine
falls silent. It dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

SIGN_S = 1.0  # between two signs of life


def main() -> int:
    link = socket.socket(fileno=int(sys.argv[1]))
    serve(link)
    return 0


def serve(link: socket.socket) -> None:
    """Read the spec, build the sampler, answer until the other side closes."""
    from rl import frames

    first = frames.receive(link)
    if first is None:
        return
    spec = first[0]
    die_with(spec["parent"])
    started = time.monotonic()
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        sampler = build(spec)
    except Exception as error:  # whatever it is, the learner must hear it in words
        frames.send(link, {"id": 0, "error": f"{type(error).__name__}: {error}"[:2000]})
        return
    ready = {
        "dtype": str(sampler.dtype).removeprefix("torch."),
        "vocabulary": vocabulary(sampler),
        "seconds": time.monotonic() - started,
    }
    gc.collect()
    gc.freeze()
    frames.send(link, {"id": 0, "ready": ready})
    Server(link, sampler).run()


def die_with(parent: int | None) -> None:
    """No worker outlives its learner, however that ends. None: the parent is on another host and the socket's end says it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the learner's; it closes its workers
    if parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def build(spec: dict[str, Any]) -> Any:
    """The sampler of the spec, as it would be made in the learner's process."""
    import torch

    from rl.policy import load_tokenizer

    device = torch.device(spec["device"])
    tokenizer = load_tokenizer(spec["path"], spec["trust_remote_code"])
    if spec["sampler"] == "transformers":
        from rl.sampler import TransformersSampler

        return TransformersSampler(spec["path"], tokenizer, device=device, trust_remote_code=spec["trust_remote_code"])
    from rl.sampler_vllm import VllmSampler

    return VllmSampler(
        spec["path"], tokenizer, device=device, max_model_len=spec["context"], seed=spec["seed"],
        trust_remote_code=spec["trust_remote_code"], restart=spec["restart"], stop_loops=spec["stop_loops"],
        experts=spec.get("experts", False), engine=spec["engine"],
    )  # fmt: skip


def vocabulary(sampler: Any) -> int:
    """Ids that the sampler's model can give."""
    config = sampler.llm.llm_engine.model_config.hf_config if hasattr(sampler, "llm") else sampler.model.config
    return int(config.get_text_config().vocab_size)


class Server:
    """Messages in, answers out. Every answer carries the `id` of its message."""

    def __init__(self, link: socket.socket, sampler: Any) -> None:
        self.link, self.sampler = link, sampler
        self.inbox: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
        self.later: deque[Any] = deque()  # messages that came in the middle of a load
        self.more: dict[int, list[list[Sequence[int]]]] = {}  # answers to finished groups, by generate message
        self.sign = 0.0
        self.window: Any = None
        sampler.between, sampler.alive = self.between, self.alive
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        from rl import frames

        try:
            while (message := frames.receive(self.link)) is not None:
                self.inbox.put(message)
        except (OSError, frames.Broken):
            pass
        os._exit(0)  # the learner is gone, or closed us; a busy engine must not keep the GPU

    def run(self) -> None:
        while True:
            self.handle(self.next())

    def next(self) -> Any:
        return self.later.popleft() if self.later else self.inbox.get()

    def between(self) -> None:
        """Between two steps of the engine."""
        while self.later or not self.inbox.empty():
            self.handle(self.next())
        self.alive()

    def alive(self) -> None:
        if time.monotonic() - self.sign > SIGN_S:
            self.sign = time.monotonic()
            self.say({"alive": True})

    def say(self, header: dict[str, Any], payload: bytes = b"") -> None:
        from rl import frames

        frames.send(self.link, header, payload)

    def handle(self, message: Any) -> None:
        header, _ = message
        if header["op"] == "more":  # prompts in answer to a finished group
            self.more.get(header["of"], []).append(header["prompts"])
            return
        try:
            answer = getattr(self, f"do_{header['op']}")(header)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        self.say({"id": header["id"]} | answer)

    def do_generate(self, header: dict[str, Any]) -> dict[str, Any]:
        from rl import frames
        from rl.records import Completion, Sampling

        me, asks = header["id"], header["asks"]
        self.more[me] = []
        waiting, left = 0, len(header["prompts"])

        def done(index: int, completions: Sequence[Completion]) -> list[Sequence[int]]:
            nonlocal waiting, left
            fields, payload = frames.encode(completions)
            self.say({"id": me, "group": index} | fields, payload)
            if not asks:
                return []
            waiting, left = waiting + 1, left - 1
            new: list[Sequence[int]] = []
            while True:
                while self.more[me]:
                    new += self.more[me].pop(0)
                    waiting -= 1
                if left + len(new) or not waiting:
                    break
                self.handle(self.next())  # nothing is left to sample but what the learner may still ask for
            left += len(new)
            return new

        try:
            self.sampler.generate(header["prompts"], Sampling(**header["sampling"]), done)
        finally:
            del self.more[me]
        return {"finished": True}

    def do_window(self, header: dict[str, Any]) -> dict[str, Any]:
        import torch

        from rl.transfer import open_window

        self.window = open_window(header["window"], torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return {"opened": True}

    def do_load(self, header: dict[str, Any]) -> dict[str, Any]:
        try:
            self.sampler.load(self._arriving(header["id"]), header["version"])
        finally:
            if (cuda := sys.modules.get("torch")) and cuda.cuda.is_available():
                cuda.cuda.synchronize()
        return {"version": self.sampler.version}

    def _arriving(self, me: int) -> Iterator[tuple[str, Any]]:
        """The weights of a load, bucket by bucket; a bucket is answered when its last weight has been taken."""
        import torch

        from rl.transfer import unpack

        self.say({"id": me, "begun": True})
        while True:
            message = self.inbox.get()
            header = message[0]
            if header["op"] == "window":
                self.handle(message)
                continue
            if header["op"] != "bucket":  # nothing else may be done under half of the new weights
                self.later.append(message)
                continue
            if not header["index"]:
                break
            yield from unpack(header["index"], self.window.arrived(header["size"]))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.say({"id": header["id"], "taken": True})
        self.say({"id": header["id"], "taken": True})

    def do_fingerprint(self, header: dict[str, Any]) -> dict[str, Any]:
        # 64-bit numbers as text: other readers of JSON cut them.
        return {"version": self.sampler.version, "sums": {k: str(v) for k, v in self.sampler.fingerprint().items()}}


if __name__ == "__main__":
    sys.exit(main())
