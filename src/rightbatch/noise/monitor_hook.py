"""A hook that calls its owner as long as there is one, and never breaks the step."""

from __future__ import annotations

from typing import Any

import torch


class Hook:
    """Passes a call of torch's on to a method, through the owner's guard.

    It does not keep its owner alive, and a copy of it calls nobody: a watched model can
    be copied and pickled, and its copy is not watched.

    Args:
        owner: Weak reference to an object with a ``guard``; None: nobody.
        name: Of its method.
        part: The parameter that is lost if the method fails, by index; the method is
            given it first. None: everything is lost.
    """

    def __init__(self, owner: Any, name: str, part: int | None = None) -> None:
        self._owner, self._name, self._part = owner, name, part

    def __call__(self, *args: Any) -> Any:
        """What the method returns, unless a compiler is tracing it."""
        owner = None if self._owner is None else self._owner()
        if owner is None or torch.compiler.is_compiling():
            return None
        first = () if self._part is None else (self._part,)
        work = getattr(owner, self._name)
        return owner.guard.run(work, *first, *args, part=self._part)

    def __reduce__(self) -> Any:
        return Hook, (None, self._name)
