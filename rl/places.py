"""Where rollout workers run: as processes on this host, or as actors of a Ray cluster. Either way the worker is `worker_child.serve` at
the other end of a socket; Ray only decides where, with which GPUs, and ends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rl.ranks import LAUNCHED
from rl.transfer import here

ROOT = str(Path(__file__).resolve().parent.parent)
ENDS_S = 10.0  # a killed process is gone after that
CONNECT_S = 300.0  # a cluster may have to start a node


def python_path() -> str:
    return os.pathsep.join(dict.fromkeys([ROOT, *filter(None, sys.path)]))


class ProcessPlace:
    """A child process with one end of a socket pair. Killed with this process, however that ends (see worker_child.die_with)."""

    def __init__(self, environment: Mapping[str, str], module: str = "rl.worker_child") -> None:
        self.link, theirs = socket.socketpair()
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**inherited, **environment, "PYTHONPATH": python_path()},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # ctrl-C is for the learner; and what the engine starts can be ended as a group
            )

    def why(self) -> str:
        end = time.monotonic() + ENDS_S
        while time.monotonic() < end:
            # Not reaped yet: its number must stay its own until `kill` has ended what it started.
            with contextlib.suppress(ChildProcessError):
                if ended := os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                    killed = ended.si_code != os.CLD_EXITED
                    return (
                        f"killed by {signal.Signals(ended.si_status).name}"
                        if killed
                        else f"ended with exit status {ended.si_status}"
                    )
            time.sleep(0.02)
        return ""

    def kill(self) -> None:
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.popen.pid, signal.SIGKILL)
            # What it started sees that and cleans up (Python's keeper of shared memory, an engine's ranks); who does not is ended.
            end = time.monotonic() + ENDS_S
            while _others(self.popen.pid) and time.monotonic() < end:
                time.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(ENDS_S)
        _close(self.link)


def _others(group: int) -> bool:
    """Whether other processes of a process group live than its leader."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
            if rest[2] == str(group) and rest[0] not in "ZX" and number != str(group):
                return True
    return False


class RayPlace:
    """A Ray actor in a placement group of its own: `gpus` GPUs (as many as its engine's tensor-parallel size) on one node, or CPUs.

    `start_ray` comes first. Raises ValueError.
    """

    def __init__(self, environment: Mapping[str, str], gpus: int, cpus: int = 1, module: str = "rl.worker_child") -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        self.group = placement_group([bundle], strategy="STRICT_PACK")
        if not self.group.wait(CONNECT_S):
            self._end()
            raise ValueError(
                f"Ray has no node with {bundle} free after {CONNECT_S:.0f} s: lower rollout.workers, or add nodes (`ray status`)"
            )
        listener = socket.create_server((address(), 0))
        listener.settimeout(CONNECT_S)
        token = secrets.token_hex(16)
        try:
            actor = ray.remote(_Actor).options(  # type: ignore[attr-defined]
                num_cpus=cpus, num_gpus=gpus, max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=self.group),
                runtime_env={"env_vars": {**environment, "PYTHONPATH": python_path()}},
            )  # fmt: skip
            self.actor = actor.remote()
            self.task = self.actor.run.remote(*listener.getsockname()[:2], token, module)
            self.link = self._accept(listener, token)
        except (OSError, ray.exceptions.RayError) as error:
            self._end()
            raise ValueError(f"a Ray worker did not come up: {error}") from None
        finally:
            listener.close()

    def _accept(self, listener: socket.socket, token: str) -> socket.socket:
        while True:
            link, _ = listener.accept()
            link.settimeout(10)
            said = b""
            with contextlib.suppress(OSError):
                while len(said) < len(token) and (part := link.recv(len(token) - len(said))):
                    said += part
            if secrets.compare_digest(said, token.encode()):
                link.settimeout(None)
                return link
            link.close()  # somebody else on the network

    def why(self) -> str:
        import ray

        try:
            ray.get(self.task, timeout=ENDS_S)
        except ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return "the actor ended"

    def kill(self) -> None:
        self._end()
        _close(self.link)

    def _end(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        if ray.is_initialized():
            if hasattr(self, "actor"):
                ray.kill(self.actor, no_restart=True)
            remove_placement_group(self.group)


class _Actor:
    """What runs in the cluster."""

    def run(self, host: str, port: int, token: str, module: str) -> None:
        import importlib

        for name in LAUNCHED:
            os.environ.pop(name, None)
        link = socket.create_connection((host, port), timeout=60)
        link.settimeout(None)
        link.sendall(token.encode())
        importlib.import_module(module).serve(link)


def _close(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads from it
    link.close()


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this host, on loopback and without its dashboard. Raises ValueError."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f'rollout.placement = "ray": Ray does not import here ({error}); install the extra `ray`') from None
    if ray.is_initialized():
        return
    where = os.environ.get("RAY_ADDRESS")
    local = {} if where else {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises many kinds
        at = f"the cluster at RAY_ADDRESS = {where!r}" if where else "a cluster on this host"
        raise ValueError(f'rollout.placement = "ray": {at} cannot be had: {str(error).splitlines()[0][:300]}') from error


def address() -> str:
    """Where workers of the cluster reach this process: loopback when the cluster is this host alone."""
    import ray

    return "127.0.0.1" if len(ray.nodes()) == 1 else ray.util.get_node_ip_address() or here()
