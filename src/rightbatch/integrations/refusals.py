"""What keeps a trainer from being followed, said before it begins."""

from __future__ import annotations

from typing import Any

from rightbatch.core.errors import JobError, RightbatchError, SettingError
from rightbatch.job.job import Job
from rightbatch.lint.linter import check


def refuse(
    what: str,
    *reasons: tuple[Any, str, str],
    error: type[RightbatchError] = SettingError,
) -> None:
    """Raise the first of (whether it holds, what is seen, what to do) that holds.

    Raises:
        RightbatchError: One does; of the kind asked for.
    """
    for holds, seen, fix in reasons:
        if holds:
            raise error(what, seen=seen, fix=fix)


def refuse_findings(job: Job, codes: tuple[str, ...] | str, **settings: Any) -> None:
    """Raise what the linter finds of these codes, or beginnings of codes.

    Raises:
        JobError: It finds something.
    """
    for found in check(job, select=codes, **settings).items:
        what = f"{found.code}: {found.what}"
        raise JobError(what, seen=found.seen, why=found.why, fix=found.fix)
