"""A tree of frozen dataclasses from TOML and `key.sub=value` overrides: an unknown key or a wrong type is an error that names the key."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's file with `key.sub=value` set in it. Raises ValueError in one line for a file that cannot be read."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"recipe {path}: no such file; `ls recipes/*.toml` lists them") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"recipe {path}: cannot be read: {error}") from None
    for text in overrides:
        override(tree, text)
    return tree


def override(tree: dict[str, Any], text: str) -> None:
    """Put `key.sub=value` into the tree: values in TOML syntax; a bare word is a string. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {text!r}: not of the form key.sub=value")
    node = tree
    *parents, last = key.strip().split(".")
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {text!r}: {part!r} is a value, not a table")
    try:
        node[last] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        node[last] = value


def build(kind: type, tree: Mapping[str, Any], where: str) -> Any:
    """`tree` as the dataclass `kind`; `where` is its key with a dot behind it. Raises ValueError."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where.rstrip('.')} = {tree!r}: must be a table")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.4)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known: {', '.join(hints)}"
            raise ValueError(f"unknown key {where}{key}{hint}")
    return kind(**{key: _value(hints[key], value, where + key) for key, value in tree.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or ValueError. Whole numbers pass as floats, lists as tuples; nothing else is converted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where + ".")
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} = {value!r}: must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} = {value!r}: must be a list")
        if args[-1] is Ellipsis:
            return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ValueError(f"{where} = {value!r}: must have {len(args)} entries")
        return tuple(_value(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} = {value!r}: must be a table")
        return {k: _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is Any or isinstance(hint, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint):
        raise ValueError(f"{where} = {value!r}: must be {_ARTICLE[hint]}")
    return value


_ARTICLE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def flat(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {where + key: value}
    return leaves
