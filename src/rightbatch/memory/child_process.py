"""Running a function in a forked child, so that this process stays as it is."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rightbatch.core.errors import RightbatchError, first_cause
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import (
    FakeTensorMode,
    no_room_for_threads,
    out_of_memory,
)

AVAILABLE = sys.platform.startswith("linux")
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_END_S = 0.1  # for a child that has answered to end by itself [assumed]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a child.

    Attributes:
        value: What the function returned; None if it did not.
        memory: Whether memory ran out.
        late: Whether it was not waited for any longer.
        seen: What happened otherwise, in a line.
    """

    value: Any = None
    memory: bool = False
    late: bool = False
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
    fork = multiprocessing.get_context("fork")  # a job's closures cannot be pickled
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(
        target=_answer, args=(function, limit, sender, os.getpid()), daemon=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside threads: the child uses none
        child.start()
    sender.close()
    try:
        if receiver.poll(patience_s):
            return receiver.recv()
        return Answer(late=True, seen=f"it took more than {patience_s:.0f} s")
    except EOFError:
        child.join()
        return _ended(child.exitcode)
    finally:
        receiver.close()
        child.join(_END_S)
        child.kill()
        child.join()


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
        memory, root = out_of_memory(error), first_cause(error)
        text = first_line(root) if memory is None else memory.text
        if memory is not None or no_room_for_threads(text):
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


def _answer(
    function: Callable[[], Any], limit: float | None, sender: Any, parent: int
) -> None:
    """What the child does."""
    import resource

    library = ctypes.CDLL(None)
    library.prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()  # what breaks here is said in one line
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with contextlib.suppress(AttributeError):  # of the GNU library only
        library.malloc_trim(0)  # what lies free would be used for nothing
    if limit is not None:
        data = data_sizes()["VmData"] + int(limit)
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    sender.send(attempt(function))
    os._exit(0)  # nothing of the parent is cleaned up twice


def _ended(status: int | None) -> Answer:
    """It ended without an answer: killed for its memory, or broken."""
    number = -status if status is not None and status < 0 else 0
    if number in (0, signal.SIGKILL):
        return Answer(memory=True, seen="the process was ended by the system")
    return Answer(seen=f"the process was ended by {signal.Signals(number).name}")
