"""Data sets that stay on disk: arrays, lines of text, token streams, folders."""

from __future__ import annotations

import fnmatch
import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rightbatch.core.errors import JobError, SettingError
from rightbatch.data.order.order import whole

CHUNK = 1 << 24  # bytes read at once while lines are counted [assumed]


class MappedRows:
    """The rows of an array on disk, read when asked for.

    Opened anew in every worker: only its path travels there, never its contents.

    Args:
        path: A ``.npy`` file, or a raw one, which needs dtype and shape.
        dtype: Of a raw file.
        shape: Of one row of a raw file; the number of rows follows from its size.

    Raises:
        SettingError: There is no such file, or its size is no whole number of rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.npy"
        >>> np.save(path, np.arange(12).reshape(6, 2))
        >>> MappedRows(path)[2]
        tensor([4, 5])
    """

    def __init__(
        self, path: str | Path, dtype: Any = None, shape: tuple[int, ...] = ()
    ) -> None:
        self.path, self._dtype, self._shape = Path(path), dtype, shape
        self._rows = _read_at_random(self._open())
        kind = self._rows.dtype
        if not self._rows.ndim or kind.kind not in "biufc" or not kind.isnative:
            raise SettingError(
                f"{self.path.name} holds no rows of numbers that torch can take",
                seen=f"shape {self._rows.shape}, dtype {kind}",
                fix="an array of native numbers, with an axis of examples",
            )
        self._fingerprint = _sampled(self.path)

    def _open(self) -> np.ndarray:
        size = _size(self.path)
        if self._dtype is None:
            try:
                rows = np.load(self.path, mmap_mode="r")
                if not isinstance(rows, np.ndarray):
                    raise ValueError("it is an archive of several arrays")
                return rows
            except (ValueError, EOFError) as error:
                raise SettingError(
                    f"{self.path.name} is no .npy file of plain numbers",
                    seen=str(error),
                    fix="MappedRows(path, dtype, shape) for a raw file",
                ) from error
        dtype = np.dtype(self._dtype)
        row = dtype.itemsize * int(np.prod(self._shape, dtype=np.int64))
        if not row or size % row or not size:
            raise SettingError(
                f"{self.path.name} is no whole number of rows",
                seen=f"{size} bytes, {row} a row"
                + (f": {size % row} left over" if row else ""),
                fix="the dtype and row shape it was written with",
            )
        shape = (size // row, *self._shape)
        return np.memmap(self.path, dtype=dtype, mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self._rows[index]))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = _read_at_random(self._open())


class MappedTokens:
    """Neighbouring blocks of a token file, each with its next tokens as targets.

    Args:
        path: A raw file of token numbers.
        block: Tokens in an example.
        dtype: Of the file.

    Raises:
        SettingError: The file is shorter than one block and one token.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tokens.bin"
        >>> np.arange(10, dtype=np.uint16).tofile(path)
        >>> MappedTokens(path, block=4)[1]
        (tensor([4, 5, 6, 7]), tensor([5, 6, 7, 8]))
    """

    def __init__(self, path: str | Path, block: int, dtype: Any = np.uint16) -> None:
        self._tokens, self.block = MappedRows(path, dtype), whole(block, "block")
        self._fingerprint = f"{self._tokens._fingerprint}/{block}"
        if len(self) < 1:
            raise SettingError(
                f"{Path(path).name} holds no block of {block} tokens and their targets",
                seen=f"{len(self._tokens)} tokens",
                fix=f"block={max(1, len(self._tokens) - 1)} or less",
            )

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self.block

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.block
        rows = self._tokens._rows[start : start + self.block + 1].astype(np.int64)
        tokens = torch.from_numpy(rows)
        return tokens[:-1], tokens[1:]


class MappedLines:
    r"""The lines of a text file, each read when asked for.

    Where lines begin is written once to an index file of 8 bytes a line beside the text
    (or in ``index``), and memory-mapped: memory does not grow with the file.

    Args:
        path: The text, in UTF-8; lines end with a newline, or with a return and one.
        index: Where to keep the index.

    Raises:
        SettingError: There is no such file, or no line in it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("one\ntwo\n")
        >>> lines = MappedLines(path)
        >>> len(lines), lines[1]
        (2, 'two')
    """

    def __init__(self, path: str | Path, index: str | Path | None = None) -> None:
        self.path = Path(path)
        size = _size(self.path)
        default = self.path.with_name(self.path.name + ".lines")
        self._index = Path(index) if index else default
        mark = f"{size}-{self.path.stat().st_mtime_ns}"
        stamp = self._index.with_name(self._index.name + ".of")
        kept = stamp.exists() and self._index.exists()
        if not kept or stamp.read_text(encoding="utf-8") != mark:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            self._write_index()
            stamp.write_text(mark, encoding="utf-8")
        self._fingerprint = _sampled(self.path)
        if self._index.stat().st_size < 16:
            raise SettingError(f"{self.path.name} has no lines", seen=f"{size} bytes")
        self._begin()

    def _begin(self) -> None:
        self._starts = np.memmap(self._index, dtype=np.int64, mode="r")
        self._file: Any = None

    def _write_index(self) -> None:
        part = _own(self._index)
        with self.path.open("rb") as text, part.open("wb") as index:
            position, last = 0, b"\n"
            while chunk := text.read(CHUNK):
                found = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
                if last == b"\n":
                    index.write(np.int64(position).tobytes())
                starts = found + (position + 1)
                # The line after the last newline begins with the next chunk, if any.
                (starts[:-1] if chunk.endswith(b"\n") else starts).tofile(index)
                position, last = position + len(chunk), chunk[-1:]
            end = position if last == b"\n" else position + 1
            index.write(np.int64(end).tobytes())
        part.replace(self._index)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        start, stop = int(self._starts[index]), int(self._starts[index + 1])
        line = os.pread(self._file, stop - start - 1, start)
        return line.removesuffix(b"\r").decode("utf-8")

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("path", "_index", "_fingerprint")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


class MappedFolder:
    """The files of a folder, in the order of their names, each read when asked for.

    The list of names is a file, read like `MappedLines`; ``data.names[i]`` is the name
    of an example, to derive its label from.

    Args:
        folder: Where to look, in all its folders.
        pattern: Which file names, such as ``"*.txt"``.
        names: File to keep the list in; made anew if it is not there, or of another
            folder or pattern. Remove it when files come or go.
        read: Turns a path into an example; default its bytes.

    Raises:
        SettingError: There is no such folder, or no file matches.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a", "b"):
        ...     _ = (folder / f"{name}.txt").write_text(name)
        >>> files = MappedFolder(folder, "*.txt", folder / "names")
        >>> files.names[1], files[1]
        ('b.txt', b'b')
    """

    def __init__(
        self,
        folder: str | Path,
        pattern: str,
        names: str | Path,
        read: Callable[[Path], Any] = Path.read_bytes,
    ) -> None:
        self.folder, self._read = Path(folder), read
        names = Path(names)
        if not self.folder.is_dir():
            raise SettingError(f"there is no folder {folder}", seen=str(folder))
        mark, stamp = f"{self.folder.resolve()}\n{pattern}", Path(f"{names}.of")
        if not names.exists() or not stamp.exists() or stamp.read_text() != mark:
            names.parent.mkdir(parents=True, exist_ok=True)
            part, base = _own(names), names.resolve()
            with part.open("w", encoding="utf-8") as file:
                for name in _walk(self.folder):
                    if not fnmatch.fnmatch(os.path.basename(name), pattern):
                        continue
                    # The list may lie in the folder: it is no example.
                    if not _of_list((self.folder / name).resolve(), base):
                        file.write(name + "\n")
            part.replace(names)
            stamp.write_text(mark, encoding="utf-8")
        if not names.stat().st_size:
            names.unlink(missing_ok=True)
            raise SettingError(
                f"no file in {self.folder} matches {pattern}",
                seen="0 files",
                fix="the pattern is for names of files, in all folders below: "
                f"{os.path.basename(pattern) or '*'}"
                if "/" in pattern
                else "another folder or pattern",
            )
        self.names = MappedLines(names)
        self._fingerprint = self.names._fingerprint

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        path = self.folder / self.names[index]
        try:
            return self._read(path)
        except FileNotFoundError as error:
            raise JobError(
                f"{path} is in the list of names, but not in the folder",
                seen=f"example {index} of {self.names.path}",
                why="the list is made once, so that every run has the same examples",
                fix=f"remove {self.names.path} to list the folder anew",
            ) from error


def _walk(folder: Path) -> Any:
    """Names of all files, sorted within each folder, one at a time."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if "\n" not in name:
                yield os.path.relpath(os.path.join(where, name), folder)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise SettingError(
            f"cannot read {path}", seen=error.strerror or str(error)
        ) from error


def _of_list(path: Path, names: Path) -> bool:
    """Whether a file is the list of names, or belongs to it."""
    if path.parent != names.parent or not path.name.startswith(names.name):
        return False
    rest = path.name.removeprefix(names.name)
    return rest in ("", ".of", ".lines", ".lines.of") or rest.endswith(".part")


def _own(path: Path) -> Path:
    """A name beside it that no other process writes: it is moved there when whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _sampled(path: Path) -> str:
    """Tells a file from others of its kind: its size and 16 blocks of it."""
    size, block = path.stat().st_size, 4096
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with path.open("rb") as file:
        for number in range(16):
            file.seek(max(0, size - block) * number // 15)
            digest.update(file.read(block))
    return digest.hexdigest()


def _read_at_random(rows: np.ndarray) -> np.ndarray:
    """Tell the system not to read what lies behind a row: it is not wanted next."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return rows
