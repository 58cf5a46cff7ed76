"""Where workers run: what a process's environment is and how it is ended; and workers as actors of a real Ray cluster on this host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

from recipes.engines import make_pool
from rl.places import ProcessPlace, RayPlace, address, start_ray
from rl.ranks import LAUNCHED
from rl.records import Sampling
from rl.remote import Remote
from rl.sync import sync
from rl.transfer import GroupWindow
from rl.workers import Pool, of_share, share
from tests import sampler_laws as laws
from tests import tiny
from tests import tiny_pool as pools
from tests.faulty_worker import scripted

SAMPLING = Sampling(n=2, max_tokens=4, seed=3)


def ended(code: str, tmp_path, monkeypatch, **environment) -> ProcessPlace:
    (tmp_path / "child_of_test.py").write_text("import os, sys, time, signal, subprocess\n" + code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ProcessPlace(environment, module="child_of_test")


def test_the_environment_is_the_learners_with_changes(tmp_path, monkeypatch):
    for name in LAUNCHED:
        monkeypatch.setenv(name, "9")
    monkeypatch.setenv("KEPT", "kept")
    code = (
        f"told = [os.environ.get(n) for n in ('KEPT', 'CARD', *{LAUNCHED!r})]\nos.write(int(sys.argv[1]), repr(told).encode())"
    )
    place = ended(code, tmp_path, monkeypatch, CARD="3")
    assert place.link.recv(1000).decode() == repr(["kept", "3", *[None] * len(LAUNCHED)])
    assert place.why() == "ended with exit status 0"
    place.kill()
    assert place.link.fileno() == -1


def test_it_says_how_a_process_ended(tmp_path, monkeypatch):
    place = ended("os.kill(os.getpid(), signal.SIGSEGV)", tmp_path, monkeypatch)
    assert place.why() == "killed by SIGSEGV"
    assert place.why() == "killed by SIGSEGV"
    place.kill()
    place = ended("sys.exit(5)", tmp_path, monkeypatch)
    assert place.why() == "ended with exit status 5"
    place.kill()


def test_what_a_worker_started_ends_with_it(tmp_path, monkeypatch):
    """Also when the worker itself is long dead, as of an engine that runs its model in processes of its own."""
    code = "child = subprocess.Popen(['sleep', '600'])\nos.write(int(sys.argv[1]), str(child.pid).encode())\n"
    monkeypatch.setattr("rl.places.ENDS_S", 0.3)  # it does not end by itself
    for end in ("time.sleep(600)", "os.kill(os.getpid(), signal.SIGKILL)"):
        place = ended(code + end, tmp_path, monkeypatch)
        child = int(place.link.recv(100))
        assert pools.alive(child)
        if "SIGKILL" in end:
            assert place.why() == "killed by SIGKILL"
        place.kill()
        place.kill()
        assert pools.gone([place.popen.pid, child])


def test_shared_memory_of_a_killed_worker_is_cleared_away(tmp_path, monkeypatch):
    """Python's keeper of it is a process of the worker's group: ended with the worker it could not."""
    code = (
        "from multiprocessing.shared_memory import SharedMemory\n"
        "made = SharedMemory(create=True, size=99)\nos.write(int(sys.argv[1]), made.name.encode())\ntime.sleep(600)"
    )
    place = ended(code, tmp_path, monkeypatch)
    file = Path("/dev/shm") / place.link.recv(100).decode()
    assert file.exists()
    place.kill()
    assert not file.exists()


@pytest.fixture(scope="module")
def ray():
    """A cluster of this host; nothing of it is left."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: install the extra `ray`")

    before = set(pools.below(os.getpid()))
    assert "RAY_ADDRESS" not in os.environ
    start_ray()
    start_ray()  # once is enough
    begun = set(pools.below(os.getpid())) - before
    assert begun
    yield ray
    ray.shutdown()
    assert pools.gone([*begun, *set(pools.below(os.getpid())) - before], 30)


def ray_pool(count: int) -> Pool:
    environment = {"SCRIPTED": pools.SCRIPTED, "LOADS": "1", "OMP_NUM_THREADS": "1"}

    def start(slot: int, attempt: int) -> Remote:
        place = RayPlace(environment, gpus=0, module="tests.faulty_worker")
        return Remote(f"worker {slot}.{attempt}", place, {"parent": None, "device": "cpu"}, 60, 120)

    return Pool(
        start, count, minimum=1, vocabulary=330, timeout_s=60,
        window=lambda workers: GroupWindow(1 << 16, torch.device("cpu"), workers, 60, address()),
    )  # fmt: skip


def load(pool: Pool, version: int) -> None:
    weights = {"a": torch.full((90, 90), version), "b": torch.arange(7) * version}
    pool.load(iter(weights.items()), version)
    for _, worker in pool.replicas():
        assert worker.fingerprint() == {name: int(w.sum()) for name, w in weights.items()}
        assert worker.version == version


def test_two_actors_and_one_that_is_killed(ray):
    """The steps of test_rl_workers.py, through Ray and a process group."""
    prompts = [[k, k] for k in range(12)]
    parts = share([(i, 2) for i in range(12)], 2)
    pool = ray_pool(2)
    try:
        load(pool, 1)
        made = pool.generate(prompts, SAMPLING)
        for number, part in enumerate(parts):
            assert [made[i] for i in part] == [scripted(prompts[i], of_share(SAMPLING, number), 1) for i in part]
        actor, heard = pool.active[1].place.actor, []
        made = pool.generate(prompts, SAMPLING, lambda i, _: heard.append(i) or (len(heard) == 1 and ray.kill(actor)) or None)
        assert sorted(heard) == list(range(12))
        assert all(len(group) == 2 for group in made)
        counts = pool.stats()
        assert (counts["workers"], counts["workers_lost"]) == (1.0, 1.0)
        pool.coming[1].result()
        load(pool, 2)
        assert [name for name, _ in pool.replicas()] == ["worker 0.0", "worker 1.1"]
        assert {c.version for group in pool.generate(prompts, SAMPLING) for c in group} == {2}
        assert pool.stats() == {"workers": 2.0, "workers_new": 1.0}
    finally:
        pool.close()
    table = ray.util.placement_group_table().values()
    assert {group["state"] for group in table} == {"REMOVED"}


def test_the_recipes_workers_on_ray(ray):
    config = tiny.config(model={"path": tiny.path()}, rollout={"sampler": "transformers", "placement": "ray", "workers": 1})
    learner = tiny.learner(tiny.config(learn={"lr": 3e-3}))
    tiny.updates(learner, 1, laws.prompts())
    pool = make_pool(config, laws.CPU, 384, learner.policy.model)
    try:
        assert sync(learner.policy, pool, 1, laws.prompts(), laws.BOUND, laws.CPU) <= laws.BOUND
    finally:
        pool.close()


def test_a_stranger_who_connects_is_not_taken_for_the_worker(ray):
    place = RayPlace.__new__(RayPlace)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
        strangers = [socket.create_connection(where) for _ in range(2)]
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(32))
        strangers[1].close()
        worker = socket.create_connection(where)
        worker.sendall(b"right".ljust(32, b"!"))
        link = place._accept(listener, "right".ljust(32, "!"))
        assert link.getpeername() == worker.getsockname()
        for each in (link, worker, *strangers):
            each.close()


def test_a_cluster_without_room_says_so(ray, monkeypatch):
    monkeypatch.setattr("rl.places.CONNECT_S", 2)
    with pytest.raises(ValueError, match=r"Ray has no node with \{'CPU': 1000\} free after 2 s: lower rollout.workers"):
        RayPlace({}, gpus=0, cpus=1000)
