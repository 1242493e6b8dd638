"""Frozen dataclasses to JSON and back: one codec for every file a run folder holds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import numbers
import os
import tempfile
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from rightbatch.core.errors import RunFolderError

T = TypeVar("T")
DIGITS = 25  # of an integer, at most: those of 64 bits have 20
# What values of the wrong kind, where another was written, can raise.
MISREAD = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and numbers into what strict JSON can hold.

    JSON has no infinity: such floats become the strings ``float()`` reads back.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # numpy's too
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """Rebuild a value of type ``kind`` from what `to_plain` made of it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return from_plain(next(a for a in arguments if a is not type(None)), value)
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"{value!r} is none of {arguments}")
        return value
    if origin is tuple:
        return tuple(from_plain(arguments[0], item) for item in value)
    if origin is dict:
        return {key: from_plain(arguments[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        kinds = _field_kinds(kind)
        unknown = sorted(set(value) - set(kinds))
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {unknown[0]!r}")
        return kind(**{n: from_plain(kinds[n], value[n]) for n in kinds if n in value})
    if kind is float:
        return float(value)
    if kind in (int, str, bool) and type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, not {value!r}")
    return value


@functools.cache
def _field_kinds(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, in their order: looked up once, not a row."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def write_json(path: str | Path, value: Any, kind: str) -> None:
    """Write a file atomically: a reader sees the old file or the new, never half.

    Args:
        path: Where it goes; the parent folder must exist.
        value: A dataclass, or a plain dict.
        kind: Format name and version, such as ``"rightbatch/plan/1"``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    plain = {"format": kind, **to_plain(value)}
    write_text(Path(path), json.dumps(plain, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text through a temporary file in the same folder, then rename it."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}",
            seen=f"{type(error).__name__}: {error.strerror}",
            fix="a folder that exists and can be written (--out DIR)",
        ) from error


def delete_temporaries(folder: Path) -> None:
    """Delete what `write_text` left behind when its process was killed.

    To be called where no other process writes.
    """
    for path in folder.glob(".*.json*-????????"):
        with contextlib.suppress(OSError):
            path.unlink()


def parse_json(text: str | bytes) -> Any:
    """What JSON holds, whoever wrote it.

    Raises:
        ValueError: It is none, not UTF-8, nested too deep, or has an integer that no
            file of ours can hold.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def read_json(path: str | Path, cls: type[T], kind: str) -> T:
    """Read a value of a dataclass that `write_json` wrote.

    Raises:
        RunFolderError: No such file, not JSON, another format or version, or a
            field that is missing or of the wrong type.
    """
    plain = read_plain(path, kind)
    try:
        return typing.cast(T, from_plain(cls, plain))
    except MISREAD as error:
        raise damaged(path, error) from error


def damaged(path: Path | str, error: Exception) -> RunFolderError:
    """What is said of a file whose JSON is not what was written."""
    name = type(error).__name__ if isinstance(error, KeyError) else ""
    return RunFolderError(
        f"{path} is damaged or was edited",
        seen=f"{name} {error}".strip()[:300],
        fix="the file as it was written, or measure again",
    )


def read_plain(path: str | Path, kind: str) -> dict[str, Any]:
    """Read the JSON that `write_json` wrote, as it is, without its format.

    Raises:
        RunFolderError: No such file, not JSON, or another format or version.
    """
    path = Path(path)
    try:
        plain = parse_json(path.read_bytes())
    except OSError as error:
        raise RunFolderError(
            f"cannot read {path}",
            seen=f"{type(error).__name__}: {error.strerror}",
            fix="name a file that `rightbatch tune` or `rightbatch measure` wrote",
        ) from error
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON", seen=str(error)) from error
    written = plain.pop("format", None) if isinstance(plain, dict) else None
    if written != kind:
        raise RunFolderError(
            f"{path} is not a {kind} file",
            seen=f"format: {written!r}",
            why="a file of another kind or version would be misread",
            fix="measure again with this version, or use the version that wrote it",
        )
    return plain
