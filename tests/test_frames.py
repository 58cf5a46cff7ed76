"""Frames between learner and workers: what is sent arrives bit for bit, what is broken is named."""

from __future__ import annotations

import json
import math
import random
import socket
import struct
import threading
from array import array
from dataclasses import replace

import pytest

from rl import frames
from rl.frames import Broken
from rl.records import Completion

ODD = ["", "4", "<think>\n\t\"'\\</think>", "ü 数 🙂 \u2028\u0085\x00\x7f", "\ufffd" * 3, "{}[]\r\n", "e\u0301"]


def float32(values):
    return tuple(array("f", values))


def completions(seed: int = 0) -> list[Completion]:
    draw = random.Random(seed)
    made = []
    for i, text in enumerate(ODD * 3):
        n = draw.randrange(3, 40)
        ids = tuple(draw.choice([0, 1, 151_935, 2**31 - 1, draw.randrange(1000)]) for _ in range(n))
        logprobs = float32(draw.choice([0.0, -0.0, -1e-45, -1e-7, -9999.0, -math.pi, draw.uniform(-20, 0)]) for _ in range(n))
        switches = ((1, i + 1), (2, i + 5)) if i % 3 == 0 else ()
        made.append(Completion(ids, logprobs, frames.FINISHES[i % 3], text, i, switches))
    return made


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def through(pair, header, payload=b""):
    """Sent from a thread: a frame may be larger than the socket's buffer."""
    thread = threading.Thread(target=frames.send, args=(pair[0], header, payload))
    thread.start()
    try:
        return frames.receive(pair[1])
    finally:
        thread.join()


def test_completions_arrive_bit_for_bit(pair):
    made = completions()
    fields, payload = frames.encode(made)
    header, body = through(pair, fields, payload)
    back = frames.decode(header, body)
    assert back == made
    for a, b in zip(back, made, strict=True):  # also where == does not tell, as of 0.0 and -0.0
        assert struct.pack(f"{a.tokens}d", *a.logprobs) == struct.pack(f"{b.tokens}d", *b.logprobs)
    frames.check(back, len(made), 2**31, 40)


def test_no_completions_are_completions_too(pair):
    assert frames.decode(*through(pair, *frames.encode([]))) == []


def test_frames_follow_each_other_and_end(pair):
    large = bytes(range(256)) * 40_000
    assert through(pair, {"a": 1}) == ({"a": 1}, b"")
    assert through(pair, {"text": ODD}, large) == ({"text": ODD}, large)
    pair[0].close()
    assert frames.receive(pair[1]) is None


@pytest.mark.parametrize("cut", [1, 7, 8, 12, -1])
def test_an_end_in_the_middle_is_an_end(pair, cut):
    text = json.dumps({"a": 1}).encode()
    pair[0].sendall((frames.HEADER.pack(len(text), 3) + text + b"xyz")[:cut])
    pair[0].close()
    assert frames.receive(pair[1]) is None


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        frames.HEADER.pack(frames.LARGEST + 1, 0),
        frames.HEADER.pack(0, 2**32 - 1),
        frames.HEADER.pack(4, 0) + b"{{{{",
        frames.HEADER.pack(4, 0) + b"\xff\xfe\xff\xfe",
        frames.HEADER.pack(2, 0) + b"[]",
        frames.HEADER.pack(0, 0),
        frames.HEADER.pack(200_000, 0) + b"[" * 200_000,
    ],
    ids=["http", "long header", "long payload", "no json", "no text", "no table", "empty", "deep"],
)
def test_what_is_no_frame_is_named(pair, sent):
    thread = threading.Thread(target=pair[0].sendall, args=(sent,))
    thread.start()
    with pytest.raises(Broken, match="not a frame"):
        frames.receive(pair[1])
    thread.join()


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [3]},
        {"lengths": "many"},
        {"lengths": [None]},
        {"lengths": [7, -2]},
        {"lengths": [10**12, 1]},
        {"texts": []},
        {"versions": ["new", "old"]},
        {"switches": [[1, 2], []]},
        {"switches": [[[1, 2, 3]], []]},
        {"switches": None},
        {"finish": None},
    ],
    ids=str,
)
def test_fields_that_do_not_fit_are_named(change):
    two = [Completion((5, 6, 7), (-0.5,) * 3, "stop", "x", 0), Completion((1, 2), (-0.5,) * 2, "length", "y", 0)]
    fields, payload = frames.encode(two)
    assert frames.decode(fields, payload) == two
    with pytest.raises(Broken, match="do not fit together"):
        frames.decode(fields | change, payload)


@pytest.mark.parametrize("cut", [0, 1, 4, 19])
def test_a_payload_of_another_length_is_named(cut):
    fields, payload = frames.encode([Completion((5, 6, 7), (-0.5,) * 3, "stop", "x", 0)])
    with pytest.raises(Broken, match="do not fit together"):
        frames.decode(fields, payload[:cut])
    with pytest.raises(Broken, match="do not fit together"):
        frames.decode(fields, payload + b"\0" * 4)


GOOD = Completion((5, 6, 329), (-0.5, -0.0, 0.0005), "stop", "x", 2, ((1, 3), (2, 4)))
GARBAGE = {
    "3 completions where 2": [GOOD] * 3,
    "0 completions where 2": [],
    "a completion of 0 tokens": [GOOD, replace(GOOD, ids=(), logprobs=(), switches=())],
    "a completion of 6 tokens where 1 to 4": [GOOD, replace(GOOD, ids=GOOD.ids * 2, logprobs=GOOD.logprobs * 2)],
    "outside the vocabulary of 330": [GOOD, replace(GOOD, ids=(5, 330, 6))],
    "outside the vocabulary of 330 ": [GOOD, replace(GOOD, ids=(5, -1, 6))],
    "no log-probs (nan": [GOOD, replace(GOOD, logprobs=(-0.5, float("nan"), -0.5))],
    "no log-probs (nan ": [GOOD, replace(GOOD, logprobs=(-0.5, float("-inf"), -0.5))],
    "no log-probs (nan  ": [GOOD, replace(GOOD, logprobs=(-0.5, 0.1, -0.5))],
    "ended with 'abort'": [GOOD, replace(GOOD, finish="abort")],
    "new weights at tokens [3] of 3": [GOOD, replace(GOOD, switches=((3, 1),))],
    "new weights at tokens [0] of 3": [GOOD, replace(GOOD, switches=((0, 1),))],
    "new weights at tokens [2, 1] of 3": [GOOD, replace(GOOD, switches=((2, 3), (1, 4)))],
}


@pytest.mark.parametrize("named", GARBAGE)
def test_garbage_is_named(named):
    frames.check([GOOD, GOOD], 2, 330, 4)
    with pytest.raises(Broken) as caught:
        frames.check(GARBAGE[named], 2, 330, 4)
    assert named.strip() in str(caught.value)
