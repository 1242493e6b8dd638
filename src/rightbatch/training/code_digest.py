"""What code computes, as a digest that comments and lines moved do not change."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.user_code import is_theirs

ELEMENTS = 4096  # of a tensor, evenly spaced, that stand for it
_PLAIN = (bool, int, float, complex, type(None), torch.dtype)
# What stands for a function, and where it holds that and its arguments.
_AROUND = (MethodType, staticmethod, classmethod, property, functools.partial)
_INSIDE = ("__func__", "__self__", "fget", "func", "args")


def code_digest(value: Any) -> str:
    """Sixteen letters for a function, a class, a module or an object, and its helpers.

    Followed is what a user wrote: functions and classes that it calls by their names,
    what it closes over, numbers and short words that it reads. What libraries hold goes
    by its name. Lists, dicts and numpy arrays, which code may fill while it runs, do
    not count.

    Args:
        value: Such as a job's loss. Equal only within one version of Python.
    """
    lines: list[str] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):  # that chooses something; no path or time of a run
            lines.append(value if value.isidentifier() else "text")
        elif isinstance(value, _PLAIN):
            lines.append(repr(value))
        elif isinstance(value, Tensor):
            lines.append(tensor_digest(value))
        elif isinstance(value, tuple):
            waiting += value
        elif id(value) not in seen:
            seen.add(id(value))
            lines.append(getattr(value, "__qualname__", type(value).__qualname__))
            lines += _text(value)
            waiting += _parts(value)
    return blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _text(value: Any) -> Iterator[str]:
    """What a function or a module does, in words."""
    if isinstance(value, FunctionType) and _is_their(value.__code__.co_filename):
        for code in _nested(value.__code__):
            yield code.co_code.hex()
            yield " ".join(code.co_names)
            for constant in code.co_consts:
                if isinstance(constant, frozenset):
                    yield repr(sorted(map(repr, constant)))
                elif not isinstance(constant, CodeType) and constant != value.__doc__:
                    yield repr(constant)
    elif isinstance(value, nn.Module):
        yield str(value)


def _parts(value: Any) -> Iterator[Any]:
    """What it computes with: each is looked into in its turn."""
    if isinstance(value, _AROUND):
        yield from (getattr(value, name, None) for name in _INSIDE)
        yield from _fields(getattr(value, "keywords", {}))
    elif isinstance(value, FunctionType):
        if _is_their(value.__code__.co_filename):
            yield value.__defaults__
            yield from _fields(value.__kwdefaults__ or {})
            # An empty cell is not bound yet.
            cells = [c for c in value.__closure__ or () if c != type(c)()]
            yield from (cell.cell_contents for cell in cells)
            yield from _named(value)
    elif isinstance(value, type):
        if _is_their_class(value):
            yield value.__bases__
            yield from _fields(vars(value))
    elif isinstance(value, nn.Module) or _is_their_class(type(value)):
        yield type(value)
        yield from _fields(getattr(value, "__dict__", {}))
        if isinstance(value, nn.Module):
            yield from value.children()


def _named(function: FunctionType) -> Iterator[Any]:
    """Global names that it reads; of a user's module what it reads there."""
    names = sorted({n for c in _nested(function.__code__) for n in c.co_names})
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and is_theirs(value.__file__ or "<built-in>"):
            inner = vars(value)
            yield from (inner[n] for n in names if n in inner)
        elif name in function.__globals__:
            yield name, value


def _nested(code: CodeType) -> Iterator[CodeType]:
    """It, and the functions made in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _fields(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of a class, an object or keywords; not what is private or made by Python."""
    for name, value in sorted(values.items()):
        special = name.startswith("_") and not inspect.isroutine(value)
        if not special and name != "training":
            yield name, value


def _is_their_class(kind: type) -> bool:
    methods = [v for v in vars(kind).values() if isinstance(v, FunctionType)]
    files = {method.__code__.co_filename for method in methods}
    module = sys.modules.get(kind.__module__)
    return any(map(_is_their, files or {getattr(module, "__file__", None) or "<"}))


def _is_their(file: str) -> bool:
    """Whether a user wrote it, in a file or at a console."""
    return is_theirs(file) or file.startswith(("<ipython", "<stdin"))


def tensor_digest(tensor: Tensor, most: int = ELEMENTS) -> str:
    """Shape, type and up to ``most`` numbers of it, evenly spaced."""
    text = f"{tensor.dtype} {tuple(tensor.shape)}"
    if tensor.layout is not torch.strided or tensor.is_meta:
        return text
    flat = tensor.detach().reshape(-1)
    if len(flat) > most:
        places = torch.linspace(0, len(flat) - 1, most, dtype=torch.float64)
        flat = flat[places.round().long().to(flat.device)]
    content = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return f"{text} {blake2b(content, digest_size=8).hexdigest()}"
