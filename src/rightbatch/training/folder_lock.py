"""One run in a folder at a time: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from pathlib import Path

from rightbatch.core.errors import RunFolderError

try:
    import fcntl
except ImportError:  # on Windows nothing is locked
    fcntl = None

NAME = ".lock"
_HELD: set[Path] = set()  # by this process, to which its own locks are no hindrance


class FolderLock:
    """Keeps other runs out of a folder, until it is closed.

    The lock is the process's own (POSIX ``lockf``): whatever ends it lets go, data
    workers that outlive it for a moment do not hold it, and it works over NFS.

    Args:
        folder: Of the run; it exists.

    Raises:
        RunFolderError: Another run is under way there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / NAME
        self._file: int | None = None
        if self.path in _HELD:
            raise self._refusal(f"process {os.getpid()}, which is this one")
        try:
            self._lock()
        except OSError as error:
            opened = self._file is not None
            self.close()
            if opened and error.errno in (errno.EACCES, errno.EAGAIN):
                raise self._refusal(self._holder()) from error
            warnings.warn(
                f"cannot lock {folder} ({error.strerror}): nothing keeps a second run "
                "out of it",
                stacklevel=3,
            )

    def _lock(self) -> None:
        if fcntl is None:
            return
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _HELD.add(self.path)
        with contextlib.suppress(OSError):  # a full disk; it is for people only
            os.truncate(self._file, 0)
            name = f"process {os.getpid()} on {socket.gethostname()}"
            os.write(self._file, name.encode())

    def _holder(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")[:200]
        except OSError:
            return ""

    def _refusal(self, holder: str) -> RunFolderError:
        return RunFolderError(
            f"another run is under way in {self.path.parent}",
            seen=holder or "its lock is held",
            why="two of them would write over each other's checkpoints and trace",
            fix="wait for it, or end it; or another --out",
        )

    def close(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            _HELD.discard(self.path)
            os.close(self._file)
            self._file = None
