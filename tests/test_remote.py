"""One worker in a real process: what it answers, and every way in which it can be lost, each within the call and by name.

The workers here answer from a script (faulty_worker.Scripted): the process, the frames and the learner's side are the real ones.
"""

from __future__ import annotations

import os
import signal
import threading

import pytest

from rl.records import Sampling
from rl.remote import Remote
from rl.sampler import WorkerLost
from tests import tiny_pool as pools
from tests.faulty_worker import scripted

PROMPTS = [[5], [6, 7], [8, 9, 10], [11]]
SAMPLING = Sampling(n=2, max_tokens=4, seed=3)


def expected(prompts, version=0):
    return [scripted(p, SAMPLING, version) for p in prompts]


@pytest.fixture
def start():
    made = []

    def started(fault="", **options) -> Remote:
        made.append(pools.worker(fault, **options))
        return made[-1]

    yield started
    for worker in made:
        worker.close()
        assert not pools.alive(pools.pid(worker))
        assert worker.place.link.fileno() == -1


@pytest.fixture
def healthy(start):
    worker = start()
    worker.ready()
    return worker


def test_it_answers(healthy):
    assert (healthy.vocabulary, str(healthy.dtype)) == (330, "torch.float32")
    heard = {}
    assert healthy.generate(PROMPTS, SAMPLING, lambda i, made: heard.update({i: list(made)})) == expected(PROMPTS)
    assert [heard[i] for i in range(4)] == expected(PROMPTS)
    assert healthy.generate([], SAMPLING) == []
    assert list(healthy.replies) == [0]  # nothing is kept of calls that are over


def test_further_prompts(healthy):
    """Asked for at once, at the very end, and in answer to such ones."""
    answers = {0: [[20], [21]], 3: [[22]], 6: [[23]]}
    made = healthy.generate(PROMPTS, SAMPLING, lambda i, _: answers.get(i))
    assert made == expected([*PROMPTS, [20], [21], [22], [23]])


def test_calls_of_two_threads_do_not_mix(healthy):
    results = {}

    def call(k):
        results[k] = healthy.generate([[k]] * 20, SAMPLING)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: expected([[k]] * 20) for k in range(4)}


LOST = {
    "group:killed": "killed by SIGKILL",
    "group:exits": "ended with exit status 7",
    "group:memory": "MemoryError: cannot allocate 1.0 TiB",
    "group:cuda": "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "group:stopped": r"no sign of life for 3 s \(hung\)",
    "group:asleep": r"no sign of life for 3 s \(hung\)",
    "answer:nan": "garbage: log-probs that are no log-probs",
    "answer:positive": "garbage: log-probs that are no log-probs",
    "answer:vocabulary": "garbage: token ids outside the vocabulary of 330",
    "answer:long": "garbage: a completion of 198 tokens where 1 to 4",
    "answer:empty": "garbage: a completion of 0 tokens",
    "answer:switches": r"garbage: new weights at tokens \[3\] of 2",
    "answer:torn": "garbage: completions that do not fit together",
    "answer:fewer": "garbage: completions that do not fit together",
    "answer:count": "garbage: 0 completions where 2 were asked for",
    "answer:nameless": "garbage: completions that do not fit together",
    "answer:index": "garbage: an answer to prompt 99",
    "answer:text": "garbage: a frame that is no group",
    "answer:number": "garbage: unhashable",
}


@pytest.mark.parametrize("fault", LOST)
def test_lost_in_the_middle(start, fault):
    worker = start(fault, timeout_s=3)
    worker.ready()
    heard = []
    with pytest.raises(WorkerLost, match=f"^worker 0: {LOST[fault]}"):
        worker.generate(PROMPTS, SAMPLING, lambda i, _: heard.append(i))
    assert heard == ([0] if fault.startswith("group:") else [])
    assert worker.died == (fault in ("group:killed", "group:exits"))
    assert pools.gone([pools.pid(worker)], 0)
    with pytest.raises(WorkerLost, match=f"^worker 0: {LOST[fault]}"):  # and so says every later call
        worker.fingerprint()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("start:dies", "ended with exit status 3"),
        ("start:hangs", "not ready after 3 s"),
        ("start:garbage", "garbage: not a frame"),
        ("start:raises", "ValueError: model.path = './nowhere': no such folder"),
    ],
)
def test_it_does_not_start(start, fault, reason):
    worker = start(fault, start_s=3, of=pools.spec_scripted() | {"path": "./nowhere"})
    with pytest.raises(WorkerLost, match=f"^worker 0: {reason}"):
        worker.ready()


def test_a_stopped_process_cannot_hold_up_a_large_message(start):
    worker = start(timeout_s=1)
    worker.ready()
    os.kill(pools.pid(worker), signal.SIGSTOP)
    with pytest.raises(WorkerLost, match=r"worker 0: takes no message for 1 s \(hung\)"):
        worker.generate([list(range(300))] * 4000, SAMPLING)


def test_a_busy_engine_is_not_a_hung_one(start):
    """Longer than the time-out, with signs of life."""
    worker = start(scripted="0.7", timeout_s=3)
    worker.ready()
    assert worker.generate(PROMPTS * 2, SAMPLING) == expected(PROMPTS * 2)


def test_a_learner_that_fails_in_the_middle_gives_the_worker_up(healthy):
    with pytest.raises(ZeroDivisionError):
        healthy.generate(PROMPTS, SAMPLING, lambda *_: 1 / 0)
    assert pools.gone([pools.pid(healthy)], 0)
    with pytest.raises(WorkerLost, match="the learner failed"):
        healthy.fingerprint()


def test_killed_from_outside_while_nobody_waits(healthy):
    os.kill(pools.pid(healthy), signal.SIGTERM)
    assert pools.gone([pools.pid(healthy)])
    with pytest.raises(WorkerLost, match="worker 0: killed by SIGTERM"):
        healthy.generate(PROMPTS, SAMPLING)
    assert healthy.died
