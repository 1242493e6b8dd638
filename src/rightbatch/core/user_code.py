"""Errors raised by the user's own code, told with the user's own line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rightbatch.core.errors import JobError, RightbatchError

_OWN = str(Path(__file__).parent) + "/"


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn an exception of the user's code into a `JobError` that names their line.

    Args:
        what: Who raised, as the start of a sentence: ``"the loss"``.

    Raises:
        JobError: The block raised anything but a `RightbatchError`. The original
            exception is its cause.
    """
    try:
        yield
    except RightbatchError:
        raise
    except Exception as error:
        # Here, since commands look up a job before torch is imported.
        from rightbatch.core.torch_private import is_out_of_memory

        if is_out_of_memory(error):
            raise  # not the user's mistake: whoever chose the batch handles it
        message = str(error).strip() or repr(error)
        raise JobError(
            f"{what} raised {type(error).__name__}",
            seen=f"{message.splitlines()[0]}\n        at {user_line(error)}",
            fix="mend this line, or leave out what calls it",
        ) from error


def user_line(error: BaseException) -> str:
    """The deepest frame outside of libraries, as ``file:line: code``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    own_jobs = _OWN + "jobs/"
    theirs = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename
        and not frame.filename.startswith("<")
        and (not frame.filename.startswith(_OWN) or frame.filename.startswith(own_jobs))
        and "/lib/python" not in frame.filename
    ]
    frame = (theirs or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"
