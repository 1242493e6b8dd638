"""What a data set holds and what its code names: every object, by the way to it."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset

MOST_LOOKED_AT = 20_000  # objects [assumed: 0.1 s]
MOST_ITEMS = 256  # of a list or dict: transforms are few, records many [assumed]
MOST_NESTED = 2  # lists or dicts directly in each other: so are records [assumed]
ENTRIES = ("__getitem__", "__getitems__", "__call__", "forward")  # what is called
ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.Tensor)
FOREIGN = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
Way = tuple[str, Any]  # the next piece of the way, and what lies there


@dataclass(frozen=True, slots=True)
class _Found:
    """An object, the way to it, and how many lists and dicts lie just before it."""

    way: str
    one: Any
    nested: int = 0


@dataclass(frozen=True, slots=True)
class _Code:
    """A function, and the class of the object on which it is called."""

    function: FunctionType
    owner: type | None = None


class Reached:
    """All that can be reached from a data set, nearest first, as pairs (way, object).

    Followed are attributes, items of lists and dicts, partial functions, methods,
    closures, defaults, and the globals, class attributes and other functions that the
    code names which reading an example may run. The way to an object does not depend
    on what else there is.

    Args:
        data: The data set.

    Attributes:
        cut_short: Whether there was more than `MOST_LOOKED_AT`.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.cut_short = data, False

    def __iter__(self) -> Iterator[Way]:
        seen: set[Any] = set()
        queue = deque([_Found("", self.data)])
        while queue:
            found = queue.popleft()
            one = found.one
            key = (id(one.function), one.owner) if type(one) is _Code else id(one)
            if key in seen:
                continue
            if len(seen) == MOST_LOOKED_AT:
                self.cut_short = True
                return
            seen.add(key)
            yield found.way, one
            nested = found.nested + 1 if _is_container(one) else 0
            with suppress(Exception):  # whatever an object does when it is looked at
                for piece, held in _held(one):
                    if _is_container(held) and nested >= MOST_NESTED:
                        continue
                    if not issubclass(type(held), ATOMS):
                        queue.append(_Found(f"{found.way}/{piece}", held, nested))


def _is_container(one: Any) -> bool:
    return issubclass(type(one), (list, tuple, dict, deque))


def _held(one: Any) -> Iterator[Way]:
    # By type(), and by the methods of the built-in classes: an object may be lazy.
    kind = type(one)
    if issubclass(kind, (type, ModuleType)):
        return
    if _is_container(one):
        yield from itertools.islice(_items(one), MOST_ITEMS)
    elif issubclass(kind, np.ndarray):
        if one.dtype == object:
            yield from _numbered(one.flat[:MOST_ITEMS])
    elif issubclass(kind, functools.partial):
        yield from (("func", one.func), ("args", one.args), ("kw", one.keywords))
    elif issubclass(kind, MethodType):
        yield "self", one.__self__
        yield "", _Code(one.__func__, type(one.__self__))
    elif issubclass(kind, (staticmethod, classmethod)):
        yield "", one.__func__
    elif issubclass(kind, FunctionType):
        yield "", _Code(one)
    elif kind is _Code:
        if (one.function.__module__ or "").split(".")[0] not in FOREIGN:
            yield from _named(one.function, one.owner)
    else:
        yield from _of_an_instance(one, kind)


def _items(one: Any) -> Iterator[Way]:
    if issubclass(type(one), dict):
        for number, (key, value) in enumerate(dict.items(one)):
            named = type(key) in (str, int)
            yield f"[{key!r}]" if named else f"[#{number}]", value
        return
    for base in (list, tuple, deque):
        if issubclass(type(one), base):
            yield from _numbered(base.__iter__(one))


def _numbered(items: Any) -> Iterator[Way]:
    return ((f"[{number}]", item) for number, item in enumerate(items))


def _of_an_instance(one: Any, kind: type) -> Iterator[Way]:
    if issubclass(kind, (ConcatDataset, StackDataset)):  # all parts, however many
        parts = one.datasets
        if type(parts) is list or type(parts) is tuple:
            yield from _numbered(parts)
    with suppress(Exception):
        attributes = object.__getattribute__(one, "__dict__")
        if type(attributes) is dict:
            yield from ((f".{name}", value) for name, value in attributes.items())
    for base in kind.__mro__:
        for name in _slots(base):
            with suppress(Exception):
                yield f".{name}", vars(base)[name].__get__(one)
    for name in ENTRIES:
        yield from _defined(kind, name)


def _slots(base: type) -> list[str]:
    names = vars(base).get("__slots__", ())
    return [names] if isinstance(names, str) else list(names)


def _defined(kind: type, name: str) -> Iterator[Way]:
    """What a name means in a class and in those it inherits from (``super()``)."""
    for base in kind.__mro__:
        if name in vars(base) and base.__module__.split(".")[0] not in FOREIGN:
            value = vars(base)[name]
            if issubclass(type(value), property):
                value = value.fget
            elif issubclass(type(value), functools.cached_property):
                value = value.func
            elif issubclass(type(value), (staticmethod, classmethod)):
                value = value.__func__
            if issubclass(type(value), FunctionType):
                value = _Code(value, kind)
            yield f"{base.__qualname__}.{name}", value


def _named(function: FunctionType, owner: type | None) -> Iterator[Way]:
    """What a function's code takes from outside of it."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with suppress(ValueError):  # empty as yet
            yield f"closure {name}", cell.cell_contents
    yield from (
        (f"default {number}", value)
        for number, value in enumerate(function.__defaults__ or ())
    )
    yield from (
        (f"default {name}", value)
        for name, value in (function.__kwdefaults__ or {}).items()
    )
    for name, value in function.__dict__.items():  # such as __wrapped__
        yield f".{name}", value
    taken, attributes = _names(function.__code__)
    for name in taken:
        if name in function.__globals__:
            value = function.__globals__[name]
            yield f"global {name}", value
            yield from _inside(f"global {name}", value, attributes)
    if owner is not None:
        for name in attributes:
            yield from _defined(owner, name)


def _inside(
    way: str, value: Any, attributes: list[str], deep: int = 2
) -> Iterator[Way]:
    """What code may mean that goes on from a module or a class by a name."""
    if not issubclass(type(value), (ModuleType, type)) or not deep:
        return
    home = value.__name__ if issubclass(type(value), ModuleType) else value.__module__
    if home.split(".")[0] in FOREIGN:
        return
    for name in attributes:
        with suppress(KeyError):
            inner = inspect.getattr_static(value, name, None)
            if inner is not None:
                yield f"{way}.{name}", inner
                yield from _inside(f"{way}.{name}", inner, attributes, deep - 1)


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[list[str], list[str]]:
    """Globals and attributes that code names, functions inside of it included."""
    taken: dict[str, None] = {}
    attributes: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            taken[instruction.argval] = None
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            attributes[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            more = _names(constant)
            taken |= dict.fromkeys(more[0])
            attributes |= dict.fromkeys(more[1])
    return list(taken), list(attributes)
