"""Running a function in several local processes that talk by gloo."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_lost_connection

Measure = Callable[[], Any]


def on_local_ranks(
    measure: Measure, world_sizes: Sequence[int], *, patience_s: float = 120.0
) -> dict[int, Any]:
    """What rank 0 of each number of ranks measures; all take part.

    The processes are forked where that can be, and spawned otherwise.

    Args:
        measure: Called on every rank of a gloo group of each size.
        world_sizes: Numbers of ranks.
        patience_s: Seconds to wait for all of it.

    Raises:
        SettingError: Processes cannot be started from here, and why.
        JobError: ``measure`` failed, or did not end.
    """
    if dist.is_available() and dist.is_initialized():
        raise SettingError(
            "this process is one of several ranks already",
            why="local ranks are started from one process",
            fix="call it outside of torchrun",
        )
    context: Any = multiprocessing.get_context(_start_method(measure))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside threads: a child uses none
        pipes = [context.Pipe(duplex=False) for _ in range(max(world_sizes))]
        processes = [
            context.Process(
                target=_serve,
                args=(measure, rank, tuple(world_sizes), folder, sender, patience_s),
                daemon=True,
            )
            for rank, (_, sender) in enumerate(pipes)
        ]
        try:
            for process, (_, sender) in zip(processes, pipes, strict=True):
                process.start()
                sender.close()
            return _answers([receiver for receiver, _ in pipes], patience_s)[0]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _start_method(measure: Measure) -> str:
    """Fork, since what is spawned runs the user's script again; not beside CUDA."""
    if sys.platform.startswith("linux") and not torch.cuda.is_initialized():
        return "fork"
    reason = ""
    try:
        # A script's own functions have another name in a process that is spawned.
        if b"__main__" in pickle.dumps(measure):
            reason = "it is defined in the program that runs"
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        reason = first_line(error)
    if reason:
        raise SettingError(
            "the function cannot be sent to another process",
            seen=reason,
            why="a process can be forked only on Linux, before CUDA is used",
            fix="define it at the top of a module that can be imported",
        )
    return "spawn"


def _answers(receivers: list[Any], patience_s: float) -> list[Any]:
    """What every rank sent, in their order."""
    answers: dict[Any, Any] = {}
    end, fix = time.monotonic() + patience_s, ""
    while len(answers) < len(receivers):
        waiting = [receiver for receiver in receivers if receiver not in answers]
        ready: list[Any] = wait(waiting, max(0.0, end - time.monotonic()))
        failures = {} if ready else {False: f"no answer in {patience_s:.0f} s"}
        for receiver in ready:
            try:
                answers[receiver], failure, lost = receiver.recv()
            except EOFError:
                failure, lost = "a process ended without an answer", True
                fix = 'the call under if __name__ == "__main__": in a script'
            if failure:
                failures[lost] = failure
        if failures:  # of one that ended by itself first, whom the others have lost
            seen = failures.get(False) or failures[True]
            raise JobError("the function fails on local ranks", seen=seen, fix=fix)
    return [answers[receiver] for receiver in receivers]


def _serve(
    measure: Measure,
    rank: int,
    world_sizes: Sequence[int],
    folder: str,
    sender: Any,
    patience_s: float,
) -> None:
    """What a process does: one group after the other."""
    torch.set_num_threads(1)
    size = 0
    answer: tuple[Any, str, bool] = ({}, "", False)
    try:
        for size in world_sizes:
            if rank >= size:
                continue
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/{size}",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=patience_s),
            )
            answer[0][size] = measure()
            dist.barrier()
            dist.destroy_process_group()
    except Exception as error:
        text = f"rank {rank} of {size}: {type(error).__name__}: {first_line(error)}"
        answer = None, text, is_lost_connection(error)
    with contextlib.suppress(BrokenPipeError):
        sender.send(answer)
    os._exit(0)  # gloo's threads sometimes end the interpreter with SIGABRT
