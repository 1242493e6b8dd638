"""The one place where an error of ours is caught: the user's step goes on without us.

Torch calls our code in the middle of somebody's training step: before and after the
forward pass, as gradients arrive, around the update. Whatever goes wrong there is no
reason for that step to fail.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from rightbatch.core.text import first_line

METRICS = "metrics"  # a part beside the parameters: norms in the optimizer's metrics

# Whether errors of ours are raised where they happen, as our own tests want it.
strict = False

Result = TypeVar("Result")


def warn(text: str) -> None:
    """Tell the user; where warnings are errors, in a way that cannot fail."""
    try:
        warnings.warn(f"NoiseMonitor: {text}", stacklevel=2)
    except UserWarning:
        if strict:
            raise
        with suppress(OSError, ValueError):  # no stderr, or a closed one
            print(f"NoiseMonitor: {text}", file=sys.stderr)


@dataclass
class Guard:
    """Runs what hooks do. What fails once is not measured any more, and is told once.

    Attributes:
        clean_up: Takes away what measuring has put into the step.
        together: Whether other ranks measure with this one: it may not stop alone,
            since they would wait for it.
        failing: Why it is to stop, as soon as the others know; "" while it goes on.
        stopped: Why nothing is measured any more; "" while something is.
        lost: What is left out, and why: parameters by index, or ``METRICS``.
    """

    clean_up: Callable[[], object] = lambda: None
    together: bool = False
    failing: str = ""
    stopped: str = ""
    lost: dict[int | str, str] = field(default_factory=dict)

    @property
    def lost_parameters(self) -> dict[int, str]:
        """Those of what is left out that are parameters, by index, and why."""
        return {i: why for i, why in self.lost.items() if isinstance(i, int)}

    def run(
        self,
        work: Callable[..., Result],
        *args: Any,
        part: int | str | None = None,
    ) -> Result | None:
        """The result of our work in a hook.

        Args:
            work: Ours alone: an error of the user's code must not come from it.
            *args: Its arguments.
            part: What is lost if it fails; None: all.

        Returns:
            None where it failed, now or before.
        """
        if self.stopped or part in self.lost:
            return None
        try:
            return work(*args)
        except Exception as error:
            if strict:
                raise
            self._failed(_described(error), part)
            return None

    def stop(self, why: str) -> None:
        """Measure nothing any more."""
        self.stopped = why
        with suppress(Exception):  # it has failed already
            self.clean_up()

    def _failed(self, why: str, part: int | str | None) -> None:
        known = {self.failing, self.stopped, *self.lost.values()}
        if part is not None:
            self.lost[part] = why
        elif self.together:
            self.failing = self.failing or why
        else:
            self.stop(why)
        if why not in known:
            what = "nothing is"
            if part is not None:
                what = f"{'a metric' if part == METRICS else 'a parameter'} is not"
            warn(
                f"{what} measured any more, training goes on as without a monitor: "
                f"{why}; please report this"
            )


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


def _described(error: Exception) -> str:
    """The error in one line, and where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {first_line(error)}, {place}"
