"""What learner and rollout workers say to each other: frames of a JSON header and raw bytes over a socket. Never pickle.

Completions travel as int32 ids and float32 log-probs (which is what engines give), and int16 experts where they have them, so nothing is
lost and little is parsed.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl.records import Completion

HEADER = struct.Struct("<II")  # bytes of the JSON, bytes of the payload
FINISHES = ("stop", "length", "loop")
LARGEST = 1 << 30  # of either; what claims more is not ours


class Broken(RuntimeError):
    """The other side sent what is no frame of ours."""


def send(to: socket.socket, header: Mapping[str, Any], payload: bytes = b"") -> None:
    """One whole frame. OSError when the other side is gone."""
    text = json.dumps(header, ensure_ascii=False).encode()
    to.sendall(HEADER.pack(len(text), len(payload)) + text + payload)


def receive(source: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None at the end of the stream. Raises Broken, OSError."""
    head = _exactly(source, HEADER.size)
    if head is None:
        return None
    length, extra = HEADER.unpack(head)
    if max(length, extra) > LARGEST:
        raise Broken("not a frame")
    body = _exactly(source, length + extra)
    if body is None:
        return None
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise Broken(f"not a frame: {error}") from None
    if not isinstance(header, dict):
        raise Broken("not a frame: no table of fields")
    return header, body[length:]


def _exactly(source: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        data = source.recv(min(1 << 20, count - len(parts)))
        if not data:
            return None
        parts += data
    return bytes(parts)


def encode(completions: Sequence[Completion]) -> tuple[dict[str, Any], bytes]:
    """Completions as fields of a header and a payload."""
    ids, logprobs = array("i"), array("f")
    for c in completions:
        ids.extend(c.ids)
        logprobs.extend(c.logprobs)
    fields = {
        "lengths": [c.tokens for c in completions],
        "finish": [c.finish for c in completions],
        "texts": [c.text for c in completions],
        "versions": [c.version for c in completions],
        "switches": [c.switches for c in completions],
        "experts": [None if c.experts is None else c.experts.shape for c in completions],
    }
    experts = [c.experts.astype(np.int16, copy=False).tobytes() for c in completions if c.experts is not None]
    return fields, b"".join([ids.tobytes(), logprobs.tobytes(), *experts])


def decode(header: Mapping[str, Any], payload: bytes) -> list[Completion]:
    """The inverse. Raises Broken for fields that do not fit each other."""
    try:
        lengths = [int(n) for n in header["lengths"]]
        ids, logprobs = array("i"), array("f")
        ids.frombytes(payload[: 4 * sum(lengths)])
        logprobs.frombytes(payload[4 * sum(lengths) : 8 * sum(lengths)])
        experts = _experts(header["experts"], payload[8 * sum(lengths) :])
        if min(lengths, default=0) < 0 or not len(ids) == len(logprobs) == sum(lengths):
            raise ValueError(f"{len(ids)} ids and {len(logprobs)} log-probs for {sum(lengths)} tokens")
        made, at = [], 0
        rows = (header[name] for name in ("finish", "texts", "versions", "switches"))
        for n, finish, text, version, switches, routed in zip(lengths, *rows, experts, strict=True):
            both = ids[at : at + n].tolist(), logprobs[at : at + n].tolist()
            marks = tuple((int(i), int(v)) for i, v in switches)
            made.append(Completion(tuple(both[0]), tuple(both[1]), str(finish), str(text), int(version), marks, routed))
            at += n
        return made
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(f"completions that do not fit together: {error}") from None


def _experts(shapes: Sequence[Any], payload: bytes) -> list[np.ndarray | None]:
    """The int16 arrays of these shapes, one after the other; None where there is no shape. ValueError where they do not fill it."""
    made: list[np.ndarray | None] = []
    at = 0
    for shape in shapes:
        if shape is None:
            made.append(None)
            continue
        count = math.prod(map(int, shape))
        if len(shape) != 3 or min(shape) < 0:
            raise ValueError(f"experts of shape {shape}")
        made.append(np.frombuffer(payload, np.int16, count, 2 * at).reshape(shape))
        at += count
    if 2 * at != len(payload):
        raise ValueError(f"{len(payload)} bytes of experts where {2 * at} were announced")
    return made


def check(completions: Sequence[Completion], n: int, vocabulary: int, max_tokens: int) -> None:
    """Whether this can be what was asked for: `n` samples of ids below `vocabulary` with a finite log-prob each. Raises Broken."""
    if len(completions) != n:
        raise Broken(f"{len(completions)} completions where {n} were asked for")
    for c in completions:
        if not 0 < c.tokens <= max_tokens:
            raise Broken(f"a completion of {c.tokens} tokens where 1 to {max_tokens} were asked for")
        if not 0 <= min(c.ids) <= max(c.ids) < vocabulary:
            raise Broken(f"token ids outside the vocabulary of {vocabulary}")
        if not all(-1e4 < lp <= 1e-3 for lp in c.logprobs):  # nan fails too
            raise Broken("log-probs that are no log-probs (nan, infinite or positive)")
        if c.finish not in FINISHES:
            raise Broken(f"a completion that ended with {c.finish!r}")
        marks = [i for i, _ in c.switches]
        if marks != sorted(set(marks)) or any(not 0 < i < c.tokens for i in marks):
            raise Broken(f"new weights at tokens {marks} of {c.tokens}")
