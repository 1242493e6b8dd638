"""What a data set holds and what its code names: every object, by the way to it."""

from __future__ import annotations

import dis
import functools
import importlib.util
import itertools
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset

MOST_LOOKED_AT = 20_000  # objects; some 0.5 s [measured]
MOST_ITEMS = 256  # of a list or dict: transforms are few, records many [assumed]
MOST_NESTED = 2  # lists or dicts directly in each other: so are records [assumed]
ENTRIES = ("__getitem__", "__getitems__", "__call__", "forward")  # what is called
ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.Tensor)
FOREIGN = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
MEMBER = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM")
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
    code names which reading an example may run. Nobody's code is run for it.

    Args:
        data: The data set.

    Attributes:
        cut_short: Whether there was more than `MOST_LOOKED_AT`.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.cut_short = data, False
        self._classes: dict[int, type] = {}  # the user's, by id: a class may not hash
        self._others: dict[int, type] = {}
        self._names: dict[str, None] = dict.fromkeys(ENTRIES)

    def __iter__(self) -> Iterator[Way]:
        seen: set[Any] = set()
        queue = deque([_Found("", self.data)])
        while queue:
            found = queue.popleft()
            one = found.one
            key: Any = id(one)
            if type(one) is _Code:
                key = id(one.function), id(one.owner)
            if key in seen:
                continue
            if len(seen) == MOST_LOOKED_AT:
                self.cut_short = True
                return
            seen.add(key)
            yield found.way, one
            nested = found.nested + 1 if _is_container(one) else 0
            with suppress(Exception):  # whatever an object does when it is looked at
                for piece, held in itertools.chain(_held(one), self._called(one)):
                    if _is_container(held) and nested >= MOST_NESTED:
                        continue
                    if not issubclass(type(held), ATOMS):
                        queue.append(_Found(f"{found.way}/{piece}", held, nested))

    def _called(self, one: Any) -> Iterator[Way]:
        """What the names in all code so far may mean on the objects so far.

        Code rarely says of what class an object is: ``self.change.apply(x)``.
        """
        if type(one) is _Code:
            new = [n for n in _names(one.function.__code__)[1] if n not in self._names]
            self._names |= dict.fromkeys(new)
            for kind in list(self._classes.values()):
                for name in new:
                    yield from _defined(kind, name)
            return
        kind = one if issubclass(type(one), type) else type(one)
        if id(kind) in self._classes or id(kind) in self._others:
            return
        if not _is_the_users(kind):
            self._others[id(kind)] = kind
            return
        self._classes[id(kind)] = kind
        for name in list(self._names):
            yield from _defined(kind, name)


def _is_container(one: Any) -> bool:
    return issubclass(type(one), (list, tuple, dict, deque))


def _is_foreign(module: Any) -> bool:
    return str(module).split(".")[0] in FOREIGN


def _is_the_users(kind: type) -> bool:
    """Whether it is no installed library's; those call their own methods by self."""
    module = type.__dict__["__module__"].__get__(kind)
    if _is_foreign(module):
        return False
    file = str(getattr(sys.modules.get(str(module)), "__file__", ""))
    return "site-packages" not in file and "dist-packages" not in file


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
    elif issubclass(kind, BuiltinMethodType):
        yield "self", one.__self__
    elif issubclass(kind, (staticmethod, classmethod)):
        yield "", one.__func__
    elif issubclass(kind, FunctionType):
        yield "", _Code(one)
    elif kind is _Code:
        if not _is_foreign(one.function.__module__):
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
    with suppress(Exception):
        attributes = object.__getattribute__(one, "__dict__")
        if type(attributes) is dict:
            yield from ((f".{name}", value) for name, value in attributes.items())
            if issubclass(kind, (ConcatDataset, StackDataset)):  # all of its parts
                yield from _items(attributes.get("datasets"))
    for base in kind.__mro__:
        for name, slot in vars(base).items():
            if type(slot) is MemberDescriptorType:
                with suppress(AttributeError):  # nothing in it
                    yield f".{name}", slot.__get__(one)
    for name in ENTRIES:
        yield from _defined(kind, name)


def _defined(kind: type, name: str) -> Iterator[Way]:
    """What a name means in a class and in those it inherits from (``super()``)."""
    for base in kind.__mro__:
        if name in vars(base) and not _is_foreign(vars(base).get("__module__")):
            yield f"{base.__qualname__}.{name}", _bare(vars(base)[name], kind)


def _bare(value: Any, owner: type) -> Any:
    """What a class holds under a name: the code of a method or property, or itself."""
    if issubclass(type(value), property):
        value = value.fget
    elif issubclass(type(value), functools.cached_property):
        value = value.func
    elif issubclass(type(value), (staticmethod, classmethod)):
        value = value.__func__
    return _Code(value, owner) if issubclass(type(value), FunctionType) else value


def _named(function: FunctionType, owner: type | None) -> Iterator[Way]:
    """What a function's code takes from outside of it."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with suppress(ValueError):  # empty as yet
            yield f"closure {name}", cell.cell_contents
    defaults = [*_numbered(function.__defaults__ or ())]
    defaults += (function.__kwdefaults__ or {}).items()
    yield from ((f"default {name}", value) for name, value in defaults)
    for name, value in function.__dict__.items():  # such as __wrapped__
        yield f".{name}", value
    taken, attributes, imported = _names(function.__code__)
    for name in taken:
        if name in function.__globals__:
            value = function.__globals__[name]
            yield f"global {name}", value
            yield from _inside(f"global {name}", value, attributes)
    package = function.__globals__.get("__package__") or ""
    for name in imported:
        with suppress(ImportError):  # beyond the top
            full = importlib.util.resolve_name(name, package)
            for module in {full, full.split(".")[0]}:
                yield from _inside(
                    f"import {module}", sys.modules.get(module), attributes
                )
    if owner is not None:
        for name in attributes:
            yield from _defined(owner, name)


def _inside(
    way: str, value: Any, attributes: list[str], deep: int = 2
) -> Iterator[Way]:
    """What code may mean that goes on from a module or a class by a name."""
    if not issubclass(type(value), (ModuleType, type)) or not deep:
        return
    if issubclass(type(value), type):
        for name in attributes:
            yield from ((f"{way}.{piece}", one) for piece, one in _defined(value, name))
        return
    held = ModuleType.__getattribute__(value, "__dict__")  # it may be lazy
    if _is_foreign(held.get("__name__")):
        return
    for name in attributes:
        inner = held.get(name)
        if inner is not None:
            yield f"{way}.{name}", inner
            yield from _inside(f"{way}.{name}", inner, attributes, deep - 1)


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[list[str], list[str], list[str]]:
    """Globals, attributes and imports that code names, functions inside included."""
    found: tuple[dict[str, None], ...] = ({}, {}, {})
    taken, attributes, imported = found
    level: Any = 0
    before: Any = 0
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            taken[instruction.argval] = None
        elif instruction.opname == "IMPORT_NAME":
            # Two instructions before is how relative it is.
            dots = "." * level if isinstance(level, int) else ""
            imported[f"{dots}{instruction.argval}"] = None
        elif instruction.opname in MEMBER:
            attributes[instruction.argval] = None
        level, before = before, instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for names, more in zip(found, _names(constant), strict=True):
                names |= dict.fromkeys(more)
    return list(taken), list(attributes), list(imported)
