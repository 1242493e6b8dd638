"""Ctrl-C and SIGTERM: the step under way is finished, then the run ends."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

from rightbatch.core.torch_private import dead_workers_wait

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Within it, Ctrl-C or SIGTERM sets ``asked``; a second Ctrl-C interrupts at once.

    A scheduler's SIGTERM, or torchrun's after it, never does: the state is then saved.
    A data worker that dies does not interrupt a step either.
    Outside of the main thread, where signals cannot be caught, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}
        self._dead_workers = ExitStack()

    def __enter__(self) -> Interrupt:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._dead_workers.enter_context(dead_workers_wait())
            for kind in _CAUGHT:
                self._before[kind] = signal.signal(kind, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self._dead_workers.close()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
