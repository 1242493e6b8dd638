"""A hook that calls a monitor as long as there is one."""

from __future__ import annotations

from typing import Any

import torch


class Hook:
    """Calls a monitor as long as there is one; a copy of it calls nobody.

    So a watched model can be copied and pickled, and its copy is not watched.
    """

    def __init__(self, monitor: Any, name: str) -> None:
        self._monitor, self._name = monitor, name

    def __call__(self, *args: Any) -> None:
        """Pass the call on, unless a compiler is tracing it."""
        monitor = None if self._monitor is None else self._monitor()
        if monitor is not None and not torch.compiler.is_compiling():
            getattr(monitor, self._name)(*args)

    def __reduce__(self) -> Any:
        return Hook, (None, self._name)
