"""What code computes, as a digest that comments and lines moved do not change."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from hashlib import blake2b
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rightbatch.core.user_code import is_theirs

ELEMENTS = 4096  # of a tensor, evenly spaced, that stand for it
_NUMBERS = (bool, int, float, complex, type(None), torch.dtype)


def code_digest(value: Any) -> str:
    """Sixteen letters for a function, a class, a module or an object, and its helpers.

    Followed is what a user wrote: functions and classes that it calls by their names,
    what it closes over, numbers and short words that it reads. What libraries hold goes
    by its name. Lists and dicts, which code may fill while it runs, do not count.

    Args:
        value: Such as a job's loss. Equal only within one version of Python.
    """
    parts = "\n".join(_described(value, set()))
    return blake2b(parts.encode(), digest_size=8).hexdigest()


def _described(value: Any, seen: set[int]) -> Iterator[str]:
    """Line by line; what has been met already is not gone into again."""
    if isinstance(value, _NUMBERS):
        yield repr(value)
    elif isinstance(value, str):
        # Words that choose something; not the paths and times of a run.
        yield value if value.isidentifier() else "text"
    elif isinstance(value, Tensor):
        yield tensor_digest(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield tensor_digest(torch.as_tensor(value))
    elif isinstance(value, tuple):
        for item in value:
            yield from _described(item, seen)
    elif id(value) in seen:
        yield "again"
    else:
        seen.add(id(value))
        yield _name(value)
        yield from _parts(value, seen)


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, FunctionType):
        if _is_their(value.__code__.co_filename):
            yield from _function(value, seen)
    elif isinstance(value, MethodType):
        yield from _described(value.__func__, seen)
        yield from _described(value.__self__, seen)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _described(value.__func__, seen)
    elif isinstance(value, property):
        yield from _described(value.fget, seen)
    elif isinstance(value, functools.partial):
        yield from _described((value.func, value.args), seen)
        yield from _fields(value.keywords, seen)
    elif isinstance(value, type):
        if _is_their_class(value):
            yield from _described(value.__bases__, seen)
            yield from _fields(dict(vars(value)), seen)
    elif isinstance(value, nn.Module) or _is_their_class(type(value)):
        yield from _described(type(value), seen)
        yield from _fields(getattr(value, "__dict__", {}), seen)
        if isinstance(value, nn.Module):
            yield str(value)
            for module in value.children():
                yield from _described(module, seen)


def _function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    code = function.__code__
    yield from _code(code, function.__doc__)
    yield from _described(function.__defaults__ or (), seen)
    yield from _fields(function.__kwdefaults__ or {}, seen)
    for cell in function.__closure__ or ():
        try:
            yield from _described(cell.cell_contents, seen)
        except ValueError:  # not bound yet
            yield "empty"
    names = sorted(set(_names(code)))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and is_theirs(value.__file__ or "<built-in>"):
            for inner in names:
                if inner in vars(value):
                    yield from _described(vars(value)[inner], seen)
        elif name in function.__globals__:
            yield name
            yield from _described(value, seen)


def _code(code: CodeType, doc: str | None) -> Iterator[str]:
    yield code.co_code.hex()
    yield " ".join(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant, None)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        elif constant is not doc or doc is None:
            yield repr(constant)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _fields(values: dict[str, Any], seen: set[int]) -> Iterator[str]:
    """Of a class, an object or keywords; not what is private or made by Python."""
    for name, value in sorted(values.items()):
        special = name.startswith("_") and not inspect.isroutine(value)
        if not special and name != "training":
            yield name
            yield from _described(value, seen)


def _name(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    name = kind.__qualname__
    return name if isinstance(value, FunctionType) else f"{kind.__module__}.{name}"


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
