"""Errors raised by the user's own code, told with the user's own line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rightbatch.core.errors import JobError, RightbatchError
from rightbatch.core.text import first_line

_PACKAGE = Path(__file__).parents[1]
_BUILT_IN = _PACKAGE / "job" / "built_in"


@contextmanager
def user_code(what: str, *, imported: bool = False) -> Iterator[None]:
    """Turn an exception of the user's code into a `JobError` that names their line.

    Memory that runs out is passed on as it is: whoever chose the batch handles it.

    Args:
        what: Who raised, as the start of a sentence: ``"the loss"``.
        imported: The code is imported, before any batch: memory that runs out is an
            error of it as well.

    Raises:
        JobError: The block raised anything but a `RightbatchError`, or called
            ``sys.exit``: a run ends by its own status. The original exception is its
            cause.
    """
    try:
        yield
    except RightbatchError:
        raise
    except (Exception, SystemExit) as error:
        if not imported and _is_out_of_memory(error):
            raise
        fix = "mend this line, or leave out what calls it"
        if imported:
            fix = (
                "run the file with python first; guard training with "
                'if __name__ == "__main__"'
            )
        raise JobError(
            f"{what} raised {type(error).__name__}",
            seen=f"{first_line(error)}\n        at {user_line(error)}",
            fix=fix,
        ) from error


def user_line(error: BaseException) -> str:
    """The deepest frame outside of libraries, as ``file:line: code``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = list(traceback.extract_tb(error.__traceback__))
    theirs = [frame for frame in frames if _is_theirs(frame.filename)]
    frame = (theirs or frames)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


def _is_theirs(file: str) -> bool:
    """Whether a file belongs to the user, or is a built-in job."""
    library = "site-packages" in file or "/lib/python" in file or file.startswith("<")
    path = Path(file)
    ours = path.is_relative_to(_PACKAGE) and not path.is_relative_to(_BUILT_IN)
    return not library and not ours


def _is_out_of_memory(error: BaseException) -> bool:
    # Here, since commands look up a job before torch is imported.
    from rightbatch.core.torch_private import is_out_of_memory

    return is_out_of_memory(error)
