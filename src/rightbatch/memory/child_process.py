"""Running a function in a forked child, so that this process stays as it is."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rightbatch.core.errors import RightbatchError
from rightbatch.core.torch_private import (
    FakeTensorMode,
    no_room_for_threads,
    out_of_memory,
)

AVAILABLE = sys.platform.startswith("linux")
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a child.

    Attributes:
        value: What the function returned; None if it did not.
        memory: Whether memory ran out.
        seen: What happened otherwise, in a line.
    """

    value: Any = None
    memory: bool = False
    seen: str = ""


def in_child(
    function: Callable[[], Any], *, limit: float | None = None, patience_s: float = 60.0
) -> Answer:
    """Call a function in a forked child and bring its value back.

    The child computes in one thread, writes nothing to the terminal, and ends with this
    process at the latest. Only on Linux, and not for what touches an accelerator.

    Args:
        function: Its value goes through a pipe, pickled.
        limit: Bytes by which the child's data may grow, kept by the kernel.
        patience_s: Seconds to wait.
    """
    _load_libraries()
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside threads: the child uses none
        child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _be_a_child(function, limit, writer, parent)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        text = _read(reader, patience_s)
    finally:
        os.close(reader)
        status = _end(child)
    if text is None:
        return Answer(seen=f"it took more than {patience_s:.0f} s")
    if not text:
        return _unheard(status)
    return pickle.loads(text)


def data_sizes() -> dict[str, int]:
    """Bytes of this process's address space, by the kernel's names."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    rows = (line.split() for line in text.splitlines())
    return {
        row[0][:-1]: int(row[1]) * 1024
        for row in rows
        if row and row[0] in ("VmSize:", "VmPeak:", "VmData:")
    }


def attempt(function: Callable[[], Any]) -> Answer:
    """Call it; memory that runs out and other errors become an answer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Answer(value=function())
    except Exception as error:
        memory = out_of_memory(error)
        if memory is not None:
            return Answer(memory=True, seen=memory.text[:120])
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        text = (str(root).strip() or type(root).__name__).splitlines()[0]
        if no_room_for_threads(text):
            return Answer(memory=True, seen=text[:120])
        if isinstance(root, RightbatchError):
            text = f"{root.what}: {root.seen}" if root.seen else root.what
        else:
            text = f"{type(root).__name__}: {text}"
        return Answer(seen=text[:200])


@functools.cache
def _load_libraries() -> None:
    """Have in memory what a first step imports: no child should pay for it again."""
    import torch.profiler

    assert torch.profiler

    def step() -> None:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        classes = torch.zeros(2, dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(model(torch.zeros(2, 2)), classes)
        loss.backward()
        optimizer.step()

    with torch.random.fork_rng([]):
        step()
        with FakeTensorMode():
            step()


def _be_a_child(
    function: Callable[[], Any], limit: float | None, writer: int, parent: int
) -> None:
    import resource

    library = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):
        library.prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()  # what breaks here is told in one line
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with contextlib.suppress(AttributeError):
        library.malloc_trim(0)  # what lies free would be used for nothing
    if limit is not None:
        data = data_sizes()["VmData"] + int(limit)
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    answer = attempt(function)
    text = memoryview(pickle.dumps(answer))
    while text:
        text = text[os.write(writer, text) :]
    os._exit(0)


def _read(reader: int, patience_s: float) -> bytes | None:
    """All that the child says until it closes the pipe; None if that takes too long."""
    parts, ends = [], time.monotonic() + patience_s
    while True:
        ready, _, _ = select.select([reader], [], [], max(ends - time.monotonic(), 0))
        if not ready:
            return None
        part = os.read(reader, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _end(child: int) -> int | None:
    """Its exit status; it is killed if it has not ended by itself."""
    with contextlib.suppress(ChildProcessError):  # somebody else collects children here
        for _ in range(20):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    return None


def _unheard(status: int | None) -> Answer:
    """It ended without a word: killed for its memory, or broken."""
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    if number in (0, signal.SIGKILL):
        return Answer(memory=True, seen="the process was ended by the system")
    return Answer(seen=f"the process was ended by {signal.Signals(number).name}")
