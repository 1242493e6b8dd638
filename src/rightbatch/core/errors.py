"""One base error and its kinds, each saying what, seen, why and fix.

The sentence of a refusal stands where its condition stands (a rule of the linter, the
check of an argument); this file gives every one of them the same shape.
"""

from __future__ import annotations

from rightbatch.core.text import described


class RightbatchError(Exception):
    """Base of everything rightbatch raises on purpose.

    Args:
        what: One sentence: what is wrong.
        seen: The values that showed it, with their numbers.
        why: Why it matters for the batch size.
        fix: What to type instead.
    """

    def __init__(
        self, what: str, *, seen: str = "", why: str = "", fix: str = ""
    ) -> None:
        self.what, self.seen, self.why, self.fix = what, seen, why, fix
        super().__init__(what)

    def __str__(self) -> str:
        return described(self.what, seen=self.seen, why=self.why, fix=self.fix)


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised ``from`` in the end; itself, if from nothing."""
    seen = {id(error)}  # causes may lead back to where they began
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    return error


class JobError(RightbatchError, ValueError):
    """The job itself cannot be measured: its model, loss, data or optimizer."""


class SettingError(RightbatchError, ValueError):
    """An argument or a command-line option does not make sense."""


class UnidentifiedError(RightbatchError, ValueError):
    """The data given cannot tell the parameter that was asked for."""


class RunFolderError(RightbatchError, ValueError):
    """A run folder or one of its files cannot be read or written."""


class MissingExtraError(RightbatchError, ImportError):
    """An optional dependency is needed; the fix is the exact install line."""


class UpdateOutOfMemoryError(JobError):
    """Memory ran out inside ``optimizer.step``: parameters may be half updated."""


class NotFiniteError(JobError):
    """Loss or gradient is NaN or infinite; the update was not made."""
