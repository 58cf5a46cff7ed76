"""The worker's side of the socket, in a real process: whose child it is, and messages in the middle of others."""

from __future__ import annotations

import os
import socket
import time

import pytest

from rl import frames
from rl.records import Sampling
from rl.sampler import WorkerLost
from tests import tiny_pool as pools

SAMPLING = Sampling(n=1, max_tokens=4)


@pytest.fixture
def start():
    made = []

    def started(*given, **options):
        made.append(pools.worker(*given, **options))
        return made[-1]

    yield started
    for worker in made:
        worker.close()
        assert not pools.alive(pools.pid(worker))


def test_a_worker_whose_learner_is_gone_by_the_time_it_starts_ends(start):
    worker = start(of={"parent": 1})
    with pytest.raises(WorkerLost, match="ended with exit status 1"):
        worker.ready()


def test_it_ends_with_its_socket_though_its_engine_hangs(start):
    worker = start("group:asleep", after=0)
    worker.ready()
    worker.post({"op": "generate", "prompts": [[1]], "sampling": {"n": 1, "max_tokens": 1}, "asks": False})
    time.sleep(0.3)
    worker.place.link.shutdown(socket.SHUT_WR)
    assert pools.gone([pools.pid(worker)])


def test_what_comes_in_the_middle_of_new_weights_is_answered_after_them(start):
    worker = start(loads=True)
    worker.ready()
    me = worker.post({"op": "load", "version": 4})
    assert worker.wait(me) == {"id": me, "begun": True}
    sums = worker.post({"op": "fingerprint"})
    asked = worker.post({"op": "generate", "prompts": [[5]], "sampling": {"n": 1, "max_tokens": 4}, "asks": False})
    last = worker.post({"op": "bucket", "index": [], "size": 0})
    assert worker.wait(last)["taken"]
    assert worker.wait(me) == {"id": me, "version": 4}
    assert worker.wait(sums)["version"] == 4
    header, payload = worker._next(asked)
    assert frames.decode(header, payload)[0].version == 4


def test_an_answer_to_nobody_is_passed_over_and_an_unknown_message_is_refused(start):
    worker = start()
    worker.ready()
    worker._send({"op": "more", "of": 99, "prompts": [[1]]})
    assert len(worker.generate([[5]], SAMPLING)) == 1
    with pytest.raises(WorkerLost, match=r"AttributeError: .*do_dance"):
        worker.call({"op": "dance"})


def test_weights_arrive_while_it_samples_and_while_it_waits_for_further_prompts(start):
    """`done` on the learner's side is what asks for the load: the worker has nothing left to sample but waits for the answer."""
    worker = start(loads=True)
    worker.ready()
    versions = []

    def done(index, completions):
        versions.append(completions[0].version)
        if index:
            return None
        me = worker.post({"op": "load", "version": 7})
        assert worker.wait(me)["begun"]
        assert worker.wait(worker.post({"op": "bucket", "index": [], "size": 0}))["taken"]
        assert worker.wait(me)["version"] == 7
        return [[9]]

    assert len(worker.generate([[5]], SAMPLING, done)) == 2
    assert versions == [0, 7]
    assert os.getpgid(pools.pid(worker)) == pools.pid(worker)  # ctrl-C of a terminal does not reach it
