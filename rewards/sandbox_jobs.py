"""What a fork of the warm worker does with one program: the three kinds of job, and the frames on its channel.

A frame is 4 bytes of length and JSON. The first one in is the job:
  script     run the source as __main__; nothing else
  functions  run the source, then answer the operations of `Answers`, one reply each: ["v", data] or ["e", exception type, text]
  checks     run trusted tests against a stand-in for the program's names, whose operations go out on the channel
Nothing here is trusted by the judge: a hostile program shares this memory and may write any frame it likes.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import importlib
import json
import os
import struct
import sys
import threading
import types
from typing import Any

import sandbox_codec as codec


def read_frame() -> Any:
    """The next frame of the channel; ends the process when there is none."""

    def take(n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = os.read(3, min(n - len(data), 1 << 20))
            if not part:
                os._exit(0)
            data += part
        return data

    return json.loads(take(struct.unpack("<I", take(4))[0]))


def write_frame(data: Any) -> None:
    text = json.dumps(data).encode()
    text = struct.pack("<I", len(text)) + text
    while text:
        text = text[os.write(4, text) :]


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def complain(error: BaseException) -> None:
    """The traceback on standard error; a program may have broken anything that this needs."""
    try:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__, limit=-8)
    except BaseException:
        pass


def module(name: str) -> dict[str, Any]:
    made = types.ModuleType(name)
    made.__dict__.update(__file__="solution.py", __builtins__=builtins)
    sys.modules[name] = made
    return made.__dict__


def run_script(source: str) -> int:
    """As the interpreter would: exit status 0, 1 after an uncaught exception, or what sys.exit was given."""
    status = 0
    try:
        exec(compile(source, "solution.py", "exec"), module("__main__"))
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException as e:
        status = 1
        complain(e)
        write_frame(["e", type(e).__name__[:80], str(e)[:200]])
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        status = status or 1
    return status


class Answers:
    """Operations on a program's names and on the objects that it handed out: name, call, get, set, iter, item, len, str."""

    def __init__(self, names: dict[str, Any]):
        self.names = names
        self.kept: list[Any] = []

    def keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def name(self, dotted: str) -> Any:
        """`f`, `Class.f` (a method of a new instance), or `f` as a method of the class Solution, as contest sites have it."""
        first, *rest = dotted.split(".")
        if first not in self.names and not rest and hasattr(self.names.get("Solution"), first):
            first, rest = "Solution", [first]
        if first not in self.names:
            raise NameError(f"name {first!r} is not defined")
        found = self.names[first]
        for attribute in rest:
            found = getattr(found() if isinstance(found, type) else found, attribute)
        return found

    def find(self, target: int | str) -> Any:
        return self.name(target) if isinstance(target, str) else self.kept[target]

    def operate(self, op: str, target: Any, *data: Any) -> Any:
        held = self.find(target)
        args = [codec.decode(x, lambda i, _: self.find(i)) for x in data]
        if op == "name":
            return held
        if op == "call":
            return held(*args[0], **args[1])
        if op == "get":
            return getattr(held, args[0])
        if op == "set":
            return setattr(held, args[0], args[1])
        if op == "iter":
            return [x for x, _ in zip(held, range(1_000_000), strict=False)]
        return {"item": lambda: held[args[0]], "len": lambda: len(held), "str": lambda: str(held)}[op]()


def run_functions(source: str) -> int:
    names = module("solution")
    try:
        exec(compile(source, "solution.py", "exec"), names)
    except BaseException as e:
        complain(e)
        flush()
        write_frame(["e", type(e).__name__[:80], str(e)[:200]])
        return 1
    write_frame(["v", None])
    answers = Answers(names)
    while True:
        frame = read_frame()
        try:
            reply = ["v", codec.encode(answers.operate(*frame), answers.keep)]
        except BaseException as e:
            reply = ["e", type(e).__name__[:80], str(e)[:200]]
        flush()
        write_frame(reply)


class ProgramError(Exception):
    """An exception of the program that is not a builtin one."""


def ask(op: str, target: Any, *args: Any) -> Any:
    write_frame(["ask", op, target, *(codec.encode(a, held_id) for a in args)])
    kind, *rest = read_frame()
    if kind == "v":
        return codec.decode(rest[0], Held)
    known = getattr(builtins, str(rest[0]), None)
    if not (isinstance(known, type) and issubclass(known, Exception)):
        raise ProgramError(": ".join(map(str, rest)))
    raise (ProgramError(str(rest[1])) if known in (UnicodeDecodeError, UnicodeEncodeError) else known(str(rest[1])))


def held_id(value: Any) -> int | str:
    if type(value) is not Held:
        raise TypeError(f"the test passes a {type(value).__name__}, which is not plain data")
    return value._id


class Held:
    """Stands in the tests for an object or a name of the program. Equal to nothing but itself, and neither true nor false."""

    def __init__(self, target: int | str, kind: str = ""):
        object.__setattr__(self, "_id", target)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ask("call", self._id, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return ask("get", self._id, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ask("set", self._id, name, value)

    def __iter__(self) -> Any:
        return iter(ask("iter", self._id))

    def __getitem__(self, key: Any) -> Any:
        return ask("item", self._id, key)

    def __len__(self) -> int:
        return ask("len", self._id)

    def __str__(self) -> str:
        return ask("str", self._id)

    def __bool__(self) -> bool:
        raise TypeError(f"the program returned an object of type {self._kind}, which is neither true nor false")


class Names(dict):
    """The tests' own names; what they do not define, and neither Python nor its library has, is the program's."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return importlib.import_module(name) if name in sys.stdlib_module_names else Held(name)


def run_checks(setup: list[str], asserts: list[str], entry: str, check: str, every: bool) -> int:
    """Trusted tests. `setup` sources first; then each of `asserts`, or `check(candidate)`; a frame each, then "done"."""
    names = Names(__name__="tests")
    try:
        for source in setup:
            exec(compile(source, "tests", "exec"), names)
        if entry:
            names[entry] = Held(entry)
        tests = [functools.partial(exec, compile(a, "tests", "exec"), names) for a in asserts]
        tests += [functools.partial(names[check], names[entry])] if check else []
    except BaseException as e:
        write_frame(["result", False, f"{type(e).__name__}: {e}"[:200]])
        tests = []
    for test in tests:
        try:
            test()
            write_frame(["result", True, ""])
        except BaseException as e:
            write_frame(["result", False, f"{type(e).__name__}: {e}"[:200]])
            if not every:
                break
    write_frame(["done"])
    return 0


JOBS = {"script": run_script, "functions": run_functions, "checks": run_checks}
