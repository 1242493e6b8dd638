"""A command on every process that torchrun started: the first one speaks."""

from __future__ import annotations

import os
import sys


def first_speaks() -> bool:
    """Silence standard output on all ranks but the first; whether this is the first.

    Errors are not silenced: one may be of this rank alone.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # ruff: ignore[open-file-with-context-handler]
    return first


def end_together(status: int, joined: bool) -> int:
    """The exit status; with several processes, all end here at once.

    torchrun knows success and failure only, and starts failed processes again: what
    ended as it should, decided or not, is a success there.
    """
    if joined:
        from rightbatch.cli.console import DECIDED, UNDECIDED
        from rightbatch.training.ranks import leave

        leave(DECIDED if status == UNDECIDED else status)
    return status
